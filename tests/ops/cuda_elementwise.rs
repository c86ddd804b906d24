//! The kernels that work element by element. Each does what the processor's op does, in the same order, on inputs that bf16 holds: so the
//! expected numbers are the processor's, rounded once, and every bit is compared; on the emulator under every schedule, and on a GPU where
//! there is one.

use crate::adamw_8bit::rounding;
use crate::cuda_attention::mutant;
use crate::cuda_checker::modes;
use crate::cuda_matmul::broken;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, normal};
use half::bf16;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::adamw::codes::Coded;
use sorft_native::tensor::ops::{adamw, embedding, residual, rmsnorm, rope, swiglu};
use std::sync::Arc;

/// Sizes around a vector of 8, a block's 2048 and 1024, and none at all.
const SIZES: [usize; 8] = [0, 1, 7, 8, 1023, 1025, 2048, 2051];

fn round(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

fn upload(gpu: &Arc<Gpu>, data: &[f32]) -> Buffer {
    Buffer::from_f32(gpu, DType::Bf16, data).expect("uploaded")
}

fn download(buffer: &Buffer) -> Vec<f32> {
    buffer.to_f32().expect("downloaded")
}

/// Runs a check on every emulated device, and on a real one.
fn on_all_devices(check: impl Fn(&Arc<Gpu>)) {
    modes().into_iter().map(emulator::gpu).chain(real_gpu()).for_each(|gpu| check(&gpu));
}

#[test]
fn swiglu_has_the_processor_s_bits() {
    on_all_devices(swiglu_on);
}

pub fn swiglu_on(gpu: &Arc<Gpu>) {
    for n in SIZES {
        // Large gates too, where e^-g leaves f32's range.
        let gate = round(&normal(n, 1).iter().map(|x| x * 40.0).collect::<Vec<_>>());
        let (up, dy) = (round(&normal(n, 2)), round(&normal(n, 3)));
        let tensor = |x: &[f32]| Tensor::from_vec(&[1, n], x.to_vec());
        let (g, u, d) = (upload(gpu, &gate), upload(gpu, &up), upload(gpu, &dy));
        let y = swiglu::cuda::forward(gpu, &g, &u).expect("forward");
        let want = swiglu::forward(&tensor(&gate), &tensor(&up));
        assert_eq!(bits(&download(&y)), bits(&round(want.data())), "y of {n}");
        let (d_gate, d_up) = swiglu::cuda::backward(gpu, &d, &g, &u).expect("backward");
        let (want_gate, want_up) = swiglu::backward(&tensor(&dy), &tensor(&gate), &tensor(&up));
        assert_eq!(bits(&download(&d_gate)), bits(&round(want_gate.data())), "d gate of {n}");
        assert_eq!(bits(&download(&d_up)), bits(&round(want_up.data())), "d up of {n}");
    }
}

#[test]
fn rope_has_the_processor_s_bits() {
    on_all_devices(rope_on);
}

pub fn rope_on(gpu: &Arc<Gpu>) {
    for (tokens, heads, half) in [(1, 1, 1), (3, 2, 4), (5, 3, 32), (2, 1, 13), (9, 4, 48), (33, 2, 64)] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let positions: Vec<u32> = (0..tokens as u32).map(|i| i * 1000 + 7).collect();
        let angles = rope::Angles::new(&positions, &inv_freq);
        let device_angles = rope::cuda::DeviceAngles::new(gpu, &angles).expect("uploaded");
        let width = heads * 2 * half;
        let x = round(&normal(tokens * width, 4));
        for backward in [false, true] {
            let (mut on_device, mut want) = (upload(gpu, &x), Tensor::from_vec(&[tokens, width], x.clone()));
            if backward {
                rope::cuda::backward(&mut on_device, heads, &device_angles).expect("backward");
                rope::backward(&mut want, &angles);
            } else {
                rope::cuda::forward(&mut on_device, heads, &device_angles).expect("forward");
                rope::forward(&mut want, &angles);
            }
            assert_eq!(bits(&download(&on_device)), bits(&round(want.data())), "{tokens} x {heads} x {half}, backward {backward}");
        }
    }
}

#[test]
fn adamw_has_the_processor_s_bits() {
    on_all_devices(adamw_on);
}

pub fn adamw_on(gpu: &Arc<Gpu>) {
    let scalars = adamw::Step {
        decay: 0.9999,
        one_minus_beta1: 0.1,
        beta2: 0.95,
        one_minus_beta2: 0.05,
        eps: 1e-8,
        step_size: 1e-3,
        bias2_sqrt: 0.3,
        grad_scale: 0.7,
    };
    for n in SIZES {
        let f32s = |data: &[f32]| Buffer::from_f32(gpu, DType::F32, data).expect("uploaded");
        let mut p = normal(n, 5);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let mut w = Buffer::zeros(gpu, DType::Bf16, n).expect("cleared");
        let [mut dp, mut dm, mut dv] = [f32s(&p), f32s(&m), f32s(&v)];
        for step in 0..3 {
            let g = normal(n, 6 + step);
            adamw::step(&mut p, &g, &mut m, &mut v, scalars);
            let state = adamw::cuda::State { p: &mut dp, w: &mut w, m: &mut dm, v: &mut dv };
            adamw::cuda::step(state, &f32s(&g), scalars).expect("a step");
        }
        for (what, on_device, want) in [("p", &dp, &p), ("m", &dm, &m), ("v", &dv, &v), ("w", &w, &round(&p))] {
            assert_eq!(bits(&download(on_device)), bits(want), "{what} of {n}");
        }
    }
}

/// What a few steps with moments in 8 bits leave on a device: the weight, its bf16, and the moments as they are saved.
type Left = (Vec<f32>, Vec<f32>, (Coded, Coded));

/// Scalars of 8-bit steps.
const EIGHT_BIT: adamw::Step = adamw::Step {
    decay: 0.9999,
    one_minus_beta1: 0.1,
    beta2: 0.95,
    one_minus_beta2: 0.05,
    eps: 1e-8,
    step_size: 1e-3,
    bias2_sqrt: 0.3,
    grad_scale: 0.7,
};

/// Gradients of a step, of sizes from 1e-4 to 10, a seventh of them zero.
fn uneven(n: usize, step: u64) -> Vec<f32> {
    normal(n, 6 + step).iter().enumerate().map(|(i, x)| if i % 7 == 3 { 0.0 } else { x * 10f32.powi(1 - (i % 6) as i32) }).collect()
}

fn eight_bit_steps(gpu: &Arc<Gpu>, rows: usize, cols: usize, steps: u64) -> sorft_native::Result<Left> {
    let n = rows * cols;
    let mut p = Buffer::from_f32(gpu, DType::F32, &normal(n, 5))?;
    let mut w = Buffer::uninit(gpu, DType::Bf16, n)?;
    let mut moments = adamw::cuda::Moments::zeros(gpu, rows, cols)?;
    for step in 1..=steps {
        let g = Buffer::from_f32(gpu, DType::F32, &uneven(n, step))?;
        adamw::cuda::step_8bit(&mut p, &mut w, &mut moments, &g, EIGHT_BIT, rounding(step as u32))?;
    }
    Ok((p.to_f32()?, w.to_f32()?, moments.export()?))
}

/// The same by the processor.
fn eight_bit_steps_of_the_processor(rows: usize, cols: usize, steps: u64) -> Left {
    let mut p = PanelMatrix::from_rows(rows, cols, &normal(rows * cols, 5));
    let mut moments = adamw::panels::Moments::zeros(rows, cols);
    for step in 1..=steps {
        let g = PanelMatrix::from_rows(rows, cols, &uneven(rows * cols, step));
        adamw::panels::step(&mut p, &g, &mut moments, EIGHT_BIT, rounding(step as u32));
    }
    (p.to_rows(), round(&p.to_rows()), moments.export())
}

/// Rows of one block and of several, whole and not, in more blocks than a block of threads takes.
#[test]
fn adamw_in_8_bits_has_the_processor_s_bits() {
    on_all_devices(adamw_8bit_on);
}

pub fn adamw_8bit_on(gpu: &Arc<Gpu>) {
    for (rows, cols) in [(1, 1), (3, 7), (9, 8), (2, 255), (5, 256), (33, 264), (3, 530), (1, 2048)] {
        let (got, want) = (eight_bit_steps(gpu, rows, cols, 3).expect("steps"), eight_bit_steps_of_the_processor(rows, cols, 3));
        assert!(bits(&got.0) == bits(&want.0) && got.1 == want.1, "weights of {rows} x {cols}");
        assert!(got.2 == want.2, "moments of {rows} x {cols}");
        // What one saved the other goes on from.
        let mut moments = adamw::cuda::Moments::zeros(gpu, rows, cols).expect("cleared");
        moments.import(&want.2.0, &want.2.1).expect("uploaded");
        assert!(moments.export().expect("downloaded") == want.2);
    }
}

#[test]
fn mistakes_in_adamw_in_8_bits_are_found() {
    let mutants = [
        mutant("scales are written before all have read them", "__syncwarp();  // every lane has read the old scales", ""),
        mutant("every lane writes the scales", "if (lane == 0) m_scale", "m_scale"),
        mutant("a row's last block is taken for whole", "cols % EACH == 0 && count == EACH", "count == EACH"),
        mutant("columns beyond the last", "max(min(cols - column, EACH), 0)", "EACH"),
        mutant("blocks beyond the last", "if (block >= (i64)rows * in_row) return;", ""),
        mutant("the last columns' block is lost", "(cols + BLOCK - 1) / BLOCK", "max(cols / BLOCK, 1)"),
        mutant("the maximum of one lane", "m_new = scale_of(warp_max(m_top))", "m_new = scale_of(m_top)"),
        mutant("the code is that of the old scale", "code_first(m32[i + j], m_inverse", "code_first(m32[i + j], inverse_of(m_old)"),
        mutant("moments' scales are taken for one another", "m32[j] = first(m8.v[j], m_old)", "m32[j] = first(m8.v[j], v_old)"),
        mutant("the sign is lost", "(__float_as_uint(m) >> 24 & 0x80u)", "0u"),
        mutant("second moments become zero", "(u32)(v > 0.0f)", "0u"),
        mutant("a power of 16 too few", "max(126 - (int)", "max(125 - (int)"),
        mutant("rounded the other way", "u < way - (float)whole", "u >= way - (float)whole"),
        mutant("one round of Philox too few", "round < 10", "round < 9"),
        mutant("rows share their random numbers", "/ 4, row, counter", "/ 4, 0, counter"),
        mutant("steps share their random numbers", "row, counter, tensor", "row, 1, tensor"),
        mutant("tensors share their random numbers", "row, counter, tensor", "row, counter, 0"),
        mutant("groups of columns share their random numbers", "(u32)(column + i) / 4", "(u32)column / 4"),
    ];
    const SHAPES: [(usize, usize); 3] = [(3, 17), (2, 264), (9, 300)];
    let want = SHAPES.map(|(rows, cols)| eight_bit_steps_of_the_processor(rows, cols, 2));
    let right = |gpu: &Arc<Gpu>| -> sorft_native::Result<bool> {
        for ((rows, cols), want) in SHAPES.into_iter().zip(&want) {
            if eight_bit_steps(gpu, rows, cols, 2)? != *want {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let unbroken = broken(Source::ADAMW, &mutant("nothing", "round < 10", "round < 10"));
    assert!(right(&emulator::open(&unbroken, Emulation::default())).expect("no alarm"));
    for mutant in &mutants {
        let library = broken(Source::ADAMW, mutant);
        for mode in modes().into_iter().step_by(3) {
            assert!(!right(&emulator::open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}

/// Ids that come once, often and never; cutting the batch between tokens changes no bit.
#[test]
fn the_embedding_has_the_processor_s_bits() {
    on_all_devices(embedding_on);
}

pub fn embedding_on(gpu: &Arc<Gpu>) {
    for (vocab, cols, tokens) in [(1, 1, 1), (5, 7, 9), (40, 64, 30), (9, 1032, 17)] {
        let ids: Vec<u32> = (0..tokens as u32).map(|t| (t * t + 3) % vocab as u32).collect();
        let (w, dx) = (round(&normal(vocab * cols, 1)), round(&normal(tokens * cols, 2)));
        let device_ids = |ids: &[u32]| embedding::cuda::DeviceIds::new(gpu, ids, vocab).expect("uploaded");
        let x = embedding::cuda::forward(gpu, &upload(gpu, &w), &device_ids(&ids), cols).expect("forward");
        let want = embedding::forward(&PanelMatrix::from_rows(vocab, cols, &w), &ids);
        assert_eq!(bits(&download(&x)), bits(want.data()), "x of {tokens} x {cols}");

        let (mut rows, mut dense) = (embedding::SparseRows::default(), PanelMatrix::zeros(vocab, cols));
        rows.add(&ids, &Tensor::from_vec(&[tokens, cols], dx.clone()));
        rows.drain_into(&mut dense);
        for cut in [0, tokens / 2] {
            let mut d = Buffer::zeros(gpu, DType::F32, vocab * cols).expect("cleared");
            for span in [0..cut, cut..tokens] {
                let part = upload(gpu, &dx[span.start * cols..span.end * cols]);
                embedding::cuda::backward(gpu, &mut d, &part, &device_ids(&ids[span]), cols).expect("backward");
            }
            assert_eq!(bits(&download(&d)), bits(&dense.to_rows()), "d of {tokens} x {cols}, cut at {cut}");
        }
    }
}

/// A buffer that does not fit is refused before anything is launched.
#[test]
fn wrong_sizes_are_refused() {
    let gpu = emulator::gpu(modes()[0]);
    let (a, b) = (upload(&gpu, &[1.0; 8]), upload(&gpu, &[1.0; 7]));
    let error = swiglu::cuda::forward(&gpu, &a, &b).expect_err("up is shorter").to_string();
    assert!(error.contains("swiglu.cu: swiglu_fwd_bf16") && error.contains("up holds 7 numbers where the kernel takes 8"), "{error}");
}

/// Sums of two, roundings, and the bias's gradient over chunks.
#[test]
fn sums_and_roundings_have_the_processor_s_bits() {
    on_all_devices(sums_on);
}

pub fn sums_on(gpu: &Arc<Gpu>) {
    for n in SIZES {
        let (x, y) = (round(&normal(n, 1)), round(&normal(n, 2)));
        let mut sum = upload(gpu, &x);
        residual::cuda::add_to(&mut sum, &upload(gpu, &y)).expect("a sum");
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(bits(&download(&sum)), bits(&round(&want)), "{n} sums");
        let wide = normal(n, 3);
        let rounded = residual::cuda::round(gpu, &Buffer::from_f32(gpu, DType::F32, &wide).expect("uploaded")).expect("rounded");
        assert_eq!(bits(&download(&rounded)), bits(&round(&wide)), "{n} roundings");
    }
    for (tokens, cols, chunks) in [(1, 1, vec![0..1]), (5, 65, vec![0..2, 2..5]), (40, 9, vec![0..33, 33..40])] {
        let (dy, before) = (round(&normal(tokens * cols, 4)), normal(cols, 5));
        let mut db = Buffer::from_f32(gpu, DType::F32, &before).expect("uploaded");
        let rows = rmsnorm::cuda::RowChunks::new(gpu, &chunks, 1).expect("uploaded");
        residual::cuda::bias_gradient(&mut db, &upload(gpu, &dy), &rows).expect("a gradient");
        let mut want = Tensor::from_vec(&[cols], before);
        for chunk in &chunks {
            let of = |c| chunk.clone().fold(0.0, |sum, t| sum + dy[t * cols + c]);
            want.data_mut().iter_mut().enumerate().for_each(|(c, x)| *x += of(c));
        }
        assert_eq!(bits(&download(&db)), bits(want.data()), "the bias of {cols}");
    }
}

#[test]
fn mistakes_in_sums_and_roundings_are_found() {
    let mutants = [
        mutant("a token of the next chunk", "t < bounds[c + 1]", "t <= bounds[c + 1]"),
        mutant("what was there is lost", "float total = db[column];", "float total = 0.0f;"),
        mutant("columns beyond the last", "if (column >= cols) return;", ""),
        mutant("the sum is not formed", "a.v[j] += b.v[j];", "a.v[j] = b.v[j];"),
        mutant("numbers beyond the last", "j < count ? x[first + j] : 0.0f", "x[first + j]"),
    ];
    let right = |gpu: &Arc<Gpu>| -> sorft_native::Result<bool> {
        let (x, y) = (round(&normal(20, 1)), round(&normal(20, 2)));
        let [mut sum, on] = [Buffer::from_f32(gpu, DType::Bf16, &x)?, Buffer::from_f32(gpu, DType::Bf16, &y)?];
        residual::cuda::add_to(&mut sum, &on)?;
        let rounded = residual::cuda::round(gpu, &Buffer::from_f32(gpu, DType::F32, &normal(13, 3))?)?;
        let mut db = Buffer::from_f32(gpu, DType::F32, &[1.0, 2.0])?;
        residual::cuda::bias_gradient(&mut db, &on, &rmsnorm::cuda::RowChunks::new(gpu, &[0..3, 3..10], 1)?)?;
        let of = |chunk: std::ops::Range<usize>, c: usize| chunk.fold(0.0, |sum, t| sum + y[2 * t + c]);
        let want: Vec<f32> = (0..2).map(|c| (1.0 + c as f32 + of(0..3, c)) + of(3..10, c)).collect();
        let added: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        Ok(sum.to_f32()? == round(&added) && rounded.to_f32()? == round(&normal(13, 3)) && db.to_f32()? == want)
    };
    let unbroken = broken(Source::RESIDUAL, &mutant("nothing", "float total = db[column];", "float total = db[column];"));
    assert!(right(&emulator::open(&unbroken, Emulation::default())).expect("no alarm"));
    for mutant in &mutants {
        let library = broken(Source::RESIDUAL, mutant);
        for mode in modes().into_iter().step_by(3) {
            assert!(!right(&emulator::open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
