//! Every wrapper of `kernels/ptx.cuh` on random bits, against what the PTX manual says of the instruction, written here once more in Rust; in `hopper.rs`
//! `wgmma.rs` and `tiles.rs` those of `kernels/hopper.cuh` and its parts, for devices that have them.
//!
//! What moves or rounds bits must give the same bits. `ex2.approx`, `lg2.approx` and the sums of `mma.sync` are the chip's own: they must lie within the
//! manual's bounds, or, where all sums are small whole numbers, be exact. On the emulator and by the interpreter of PTX (`tests/`) no bit differs
//! at all. `doctor --check` runs this on a device.

use crate::Result;
use crate::tensor::cuda::DType::U32;
use crate::tensor::cuda::{Arena, Buffer, Gpu, Graph, Kernel, Launch, Source};
use crate::tensor::philox::Philox;
use half::bf16;
use std::sync::Arc;

mod hopper;
mod tiles;
mod wgmma;

/// What came of one instruction.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The instruction and what it was given.
    pub name: &'static str,
    /// Results compared.
    pub results: usize,
    /// How many have other bits than the twin; two NaN are the same.
    pub different: usize,
    /// The largest error, as `bound` measures it; infinite where a number is of another kind (NaN, infinite, zero).
    pub worst: f64,
    /// The largest error that passes: 0 where all bits must be the same.
    pub bound: f64,
    /// Whether other bits within the bound are worth a word.
    pub informs: bool,
}

impl Finding {
    /// Whether the instruction does what it must.
    pub fn passes(&self) -> bool {
        self.worst <= self.bound
    }

    /// Of results that must have the same bits.
    fn exact(name: &'static str, got: &[u32], want: &[u32]) -> Self {
        let different = got.iter().zip(want).filter(|(a, b)| a != b).count() + got.len().abs_diff(want.len());
        Self { name, results: got.len(), different, worst: if different == 0 { 0.0 } else { f64::INFINITY }, bound: 0.0, informs: false }
    }

    /// Of f32 that may differ: `error(i, got)` measures.
    fn within(name: &'static str, got: &[u32], want: &[f32], bound: f64, error: impl Fn(usize, f64) -> f64) -> Self {
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let (mut different, mut worst) = (0, 0f64);
        for (i, (got, want)) in got.iter().map(|b| f32::from_bits(*b)).zip(want).enumerate() {
            if same(got, *want) {
                continue;
            }
            different += 1;
            let kind = got.is_finite() && want.is_finite();
            let error = if kind { error(i, f64::from(got)) } else { f64::INFINITY };
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
        Self { name, results: want.len(), different, worst, bound, informs: false }
    }
}

/// Lanes of a warp, and warps a launch.
const LANES: usize = 32;
const WARPS: usize = 16;

/// What is found of one instruction on a device.
pub type Check = Box<dyn Fn(&Arc<Gpu>) -> Result<Finding>>;

/// Every wrapper of `kernels/ptx.cuh`, and on Hopper those of `kernels/hopper.cuh`.
pub fn checks(gpu: &Gpu) -> Vec<Check> {
    let mut checks: Vec<Check> = vec![Box::new(cvt_bf16x2), Box::new(ex2), Box::new(lg2)];
    checks.extend([false, true].map(|transposed| -> Check { Box::new(move |gpu| ldmatrix(gpu, transposed)) }));
    checks.extend([Numbers::Whole, Numbers::Any, Numbers::Infinite].map(|n| -> Check { Box::new(move |gpu| mma(gpu, n)) }));
    checks.push(Box::new(cp_async));
    checks.push(Box::new(turns));
    checks.push(Box::new(follow));
    if gpu.is_hopper() {
        checks.extend(hopper::checks());
    }
    checks
}

/// All checks of a device, one after another.
///
/// # Errors
/// If the device fails or, on the emulator, a kernel does something wrong.
pub fn run(gpu: &Arc<Gpu>) -> Result<Vec<Finding>> {
    checks(gpu).iter().map(|check| check(gpu)).collect()
}

/// Launches `blocks` warps of a kernel whose parameters are `out`, of `len` words, and then `inputs`, and for element-wise kernels `n`.
fn launch(gpu: &Arc<Gpu>, name: &'static str, blocks: usize, len: usize, inputs: &[&[u32]], n: Option<usize>) -> Result<Vec<u32>> {
    let mut out = Buffer::uninit(gpu, U32, len)?;
    let inputs: Vec<Buffer> = inputs.iter().map(|bits| Buffer::from_u32(gpu, bits)).collect::<Result<_>>()?;
    let kernel = Kernel { source: Source::CONFORMANCE, name };
    let mut launch = Launch::new(gpu, kernel, [blocks, 1, 1], [LANES, 1, 1], 0).output("out", &mut out, U32, len);
    for input in &inputs {
        launch = launch.input("in", input, U32, input.len());
    }
    match n {
        Some(n) => launch.dim("n", n).run()?,
        None => launch.run()?,
    }
    out.to_u32()
}

/// Random 32-bit words; each `stream` is another sequence.
fn words(n: usize, stream: u64) -> Vec<u32> {
    let random = Philox::new(23, stream);
    (0..n).map(|i| (random.uniform(i as u64, 0) * 4_294_967_296.0) as u32).collect()
}

/// Bits of f32 with a case of everything: zeros, the ends of normal and subnormal numbers, infinities, NaN; ties of bf16.
const SPECIAL: [u32; 20] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0x3f80_8000,
    0x3f81_8000,
    0x3f80_7fff,
    0x3f80_8001,
    0x3f80_0000,
    0xbf80_0000,
    0x7f7f_8000,
];

fn with_special(mut bits: Vec<u32>) -> Vec<u32> {
    bits[..SPECIAL.len()].copy_from_slice(&SPECIAL);
    bits
}

fn cvt_bf16x2(gpu: &Arc<Gpu>) -> Result<Finding> {
    let n = LANES * WARPS - 3;
    let bits = with_special(words(2 * n, 1));
    let got = launch(gpu, "conformance_cvt_bf16x2", WARPS, n, &[&bits], Some(n))?;
    let rounded = |b: u32| {
        let x = f32::from_bits(b);
        if x.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(x).to_bits()) }
    };
    let want: Vec<u32> = bits.chunks_exact(2).map(|pair| rounded(pair[0]) | rounded(pair[1]) << 16).collect();
    Ok(Finding::exact("cvt.rn.bf16x2.f32", &got, &want))
}

/// A subnormal number becomes a zero of its sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Relative errors of normal results; 2^-22 is what the manual promises, rounded up.
const APPROXIMATE: f64 = 1.0 / 4_194_304.0;

fn ex2(gpu: &Arc<Gpu>) -> Result<Finding> {
    let n = LANES * WARPS - 1;
    // Half of them where 2^x is an f32, half anywhere.
    let near = |w: u32| (f64::from(w) / 4_294_967_296.0 * 280.0 - 145.0) as f32;
    let bits: Vec<u32> =
        words(n, 2).into_iter().enumerate().map(|(i, w)| if i.is_multiple_of(2) { near(w).to_bits() } else { w }).collect();
    let bits = with_special(bits);
    let got = launch(gpu, "conformance_ex2", WARPS, n, &[&bits], Some(n))?;
    let exact: Vec<f64> = bits.iter().map(|b| f64::from(flushed(f32::from_bits(*b))).exp2()).collect();
    let want: Vec<f32> = bits.iter().map(|b| flushed(flushed(f32::from_bits(*b)).exp2())).collect();
    Ok(Finding::within("ex2.approx.ftz.f32", &got, &want, APPROXIMATE, |i, got| {
        // Next to the smallest normal number a result may be flushed or not.
        let least = f64::from(f32::MIN_POSITIVE);
        if got == 0.0 && exact[i] < least * 1.000_001 { 0.0 } else { (got - exact[i]).abs() / exact[i].max(least) }
    }))
}

fn lg2(gpu: &Arc<Gpu>) -> Result<Finding> {
    let n = LANES * WARPS - 1;
    // Half of them near 1, half anywhere.
    let near = |w: u32| (f64::from(w) / 4_294_967_296.0 * 2.0 + 0.25) as f32;
    let bits: Vec<u32> =
        words(n, 3).into_iter().enumerate().map(|(i, w)| if i.is_multiple_of(2) { near(w).to_bits() } else { w }).collect();
    let bits = with_special(bits);
    let got = launch(gpu, "conformance_lg2", WARPS, n, &[&bits], Some(n))?;
    let exact: Vec<f64> = bits.iter().map(|b| f64::from(flushed(f32::from_bits(*b))).log2()).collect();
    let want: Vec<f32> = bits.iter().map(|b| flushed(f32::from_bits(*b)).log2()).collect();
    // Absolute where the logarithm lies between -1 and 1, relative elsewhere.
    Ok(Finding::within("lg2.approx.ftz.f32", &got, &want, APPROXIMATE, |i, got| (got - exact[i]).abs() / exact[i].abs().max(1.0)))
}

fn ldmatrix(gpu: &Arc<Gpu>, transposed: bool) -> Result<Finding> {
    let numbers = words(4 * LANES * WARPS, 4);
    // Any row may be asked for, also by several lanes.
    let rows: Vec<u32> = words(LANES * WARPS, 5).into_iter().map(|w| w % 32).collect();
    let kernel = if transposed { "conformance_ldmatrix_trans" } else { "conformance_ldmatrix" };
    let got = launch(gpu, kernel, WARPS, numbers.len(), &[&numbers, &rows], None)?;
    let mut want = Vec::new();
    for warp in 0..WARPS {
        // Number `column` of the row that lane 8 piece + row asks for.
        let number = |piece: usize, row: usize, column: usize| {
            let at = warp * LANES + rows[warp * LANES + 8 * piece + row] as usize;
            numbers[4 * at + column / 2] >> (column % 2 * 16) & 0xffff
        };
        for lane in 0..LANES {
            let (g, t) = (lane / 4, lane % 4 * 2);
            let pair = |piece| match transposed {
                false => number(piece, g, t) | number(piece, g, t + 1) << 16,
                true => number(piece, t, g) | number(piece, t + 1, g) << 16,
            };
            want.extend((0..4).map(pair));
        }
    }
    Ok(Finding::exact(if transposed { "ldmatrix.x4.trans" } else { "ldmatrix.x4" }, &got, &want))
}

/// What a product is given.
#[derive(Clone, Copy)]
enum Numbers {
    /// Whole numbers so small that every sum is exact in f32, whatever its order.
    Whole,
    /// Of both signs and of sizes 2^-20 to 2^20.
    Any,
    /// The same, with an infinite number here and there.
    Infinite,
}

impl Numbers {
    fn draw(self, word: u32) -> f32 {
        let whole = (word >> 8 & 31) as f32 - 15.5;
        match self {
            Numbers::Whole => (whole + 0.5).min(15.0),
            Numbers::Infinite if word.is_multiple_of(97) => f32::INFINITY.copysign(whole),
            _ => bf16::from_f32((1.0 + (word & 127) as f32 / 128.0) * ((word >> 20 & 31) as f32 * 1.25 - 20.0).round().exp2())
                .to_f32()
                .copysign(whole),
        }
    }
}

/// A [16, 16], B [16, 8] and C [16, 8] of each warp as the manual's fragments: lane 4g + t has, of each piece of 8 x 8, columns 2t and 2t + 1 of row g
/// (of B rows 2t and 2t + 1 of column g).
fn mma(gpu: &Arc<Gpu>, numbers: Numbers) -> Result<Finding> {
    let draw = |n: usize, stream| words(n, stream).into_iter().map(|w| numbers.draw(w)).collect::<Vec<f32>>();
    let (a, b, c) = (draw(WARPS * 256, 6), draw(WARPS * 128, 7), draw(WARPS * 128, 8));
    let bf16_pair = |x: f32, y: f32| x.to_bits() >> 16 | y.to_bits() & 0xffff_0000;
    let (mut a_bits, mut b_bits, mut c_bits) = (Vec::new(), Vec::new(), Vec::new());
    let (mut want, mut sizes, mut exact) = (Vec::new(), Vec::new(), Vec::new());
    for warp in 0..WARPS {
        let (a, b, c) = (&a[warp * 256..], &b[warp * 128..], &c[warp * 128..]);
        for lane in 0..LANES {
            let (g, t) = (lane / 4, lane % 4 * 2);
            for (below, right) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
                let at = (g + below) * 16 + t + right;
                a_bits.push(bf16_pair(a[at], a[at + 1]));
            }
            for below in [0, 8] {
                let at = (t + below) * 8 + g;
                b_bits.push(bf16_pair(b[at], b[at + 8]));
            }
            for (row, column) in [(g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1)] {
                let start = c[row * 8 + column];
                let terms: Vec<f64> = (0..16).map(|k| f64::from(a[row * 16 + k]) * f64::from(b[k * 8 + column])).collect();
                let sum = terms.iter().fold(f64::from(start), |sum, x| sum + x);
                c_bits.push(start.to_bits());
                sizes.push(terms.iter().fold(f64::from(start.abs()), |sum, x| sum + x.abs()));
                exact.push(sum);
                want.push(sum as f32);
            }
        }
    }
    let got = launch(gpu, "conformance_mma", WARPS, want.len(), &[&a_bits, &b_bits, &c_bits], None)?;
    let (name, bound) = match numbers {
        Numbers::Whole => ("mma.m16n8k16, whole numbers", 0.0),
        Numbers::Any => ("mma.m16n8k16", MMA_BOUND),
        Numbers::Infinite => ("mma.m16n8k16, infinite numbers", MMA_BOUND),
    };
    Ok(Finding::within(name, &got, &want, bound, |i, got| (got - exact[i]).abs() / sizes[i]))
}

/// Of a sum's error, relative to the sum of its terms' sizes. The chip cuts each of 17 terms off somewhere below 24 bits of the largest; a number in another
/// lane's place is wrong by much more.
const MMA_BOUND: f64 = 1.0 / 131_072.0;

fn cp_async(gpu: &Arc<Gpu>) -> Result<Finding> {
    let (groups, rows) = (3, 200);
    let numbers = words(4 * rows, 9);
    let from: Vec<u32> =
        words(WARPS * groups * LANES, 10).into_iter().map(|w| if w.is_multiple_of(5) { u32::MAX } else { w % rows as u32 }).collect();
    let got = launch(gpu, "conformance_cp_async", WARPS, 4 * from.len(), &[&numbers, &from], None)?;
    let mut want = Vec::new();
    for i in 0..from.len() {
        let (warp, group, lane) = (i / (groups * LANES), i / LANES % groups, i % LANES);
        let lane = if group == groups - 1 { LANES - 1 - lane } else { lane };
        let row = from[(warp * groups + group) * LANES + lane] as usize;
        want.extend(if row < rows { numbers[4 * row..4 * row + 4].to_vec() } else { vec![0; 4] });
    }
    Ok(Finding::exact("cp.async.cg, commit_group, wait_group", &got, &want))
}

/// More blocks than there is room for at a time, each of which goes on with what the one before has left.
fn turns(gpu: &Arc<Gpu>) -> Result<Finding> {
    let blocks = if gpu.is_emulated() { 12 } else { 20_000 };
    let numbers = words(blocks * LANES, 11);
    let (mut out, input) = (Buffer::uninit(gpu, U32, numbers.len())?, Buffer::from_u32(gpu, &numbers)?);
    let mut state = Buffer::zeros(gpu, U32, 2 + LANES)?;
    let kernel = Kernel { source: Source::CONFORMANCE, name: "conformance_turns" };
    Launch::new(gpu, kernel, [blocks, 1, 1], [LANES, 1, 1], 0)
        .output("out", &mut out, U32, numbers.len())
        .output("state", &mut state, U32, 2 + LANES)
        .input("in", &input, U32, numbers.len())
        .run()?;
    let mut words = [0u32; LANES];
    let mut want = Vec::new();
    for numbers in numbers.chunks_exact(LANES) {
        words.iter_mut().zip(numbers).for_each(|(word, x)| *word = word.wrapping_mul(3).wrapping_add(*x));
        want.extend(words);
    }
    Ok(Finding::exact("red.release.gpu, ld.acquire.gpu, blocks by turns", &out.to_u32()?, &want))
}

/// Launches of a graph, each of which may begin before the one before has ended. Other numbers each time, as what is read too early is what the last time
/// has left.
fn follow(gpu: &Arc<Gpu>) -> Result<Finding> {
    const LAUNCHES: usize = 6;
    let (n, rounds) = (LANES * WARPS, if gpu.is_emulated() { 3 } else { 200 });
    let mut input = Buffer::uninit(gpu, U32, n)?;
    let kernel = Kernel { source: Source::CONFORMANCE, name: "conformance_follow" };
    let next = |x: &Buffer| -> Result<Buffer> {
        let mut y = Buffer::uninit(gpu, U32, n)?;
        let launch = Launch::new(gpu, kernel, [WARPS, 1, 1], [LANES, 1, 1], 0).output("out", &mut y, U32, n);
        launch.input("in", x, U32, n).dim("n", n).waits().run()?;
        Ok(y)
    };
    let chain = || (1..LAUNCHES).try_fold(next(&input)?, |x, _| next(&x));
    let (mut graph, out) = Graph::record(gpu, &mut Arena::default(), chain)?;
    let (mut got, mut want) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let numbers = words(n, 40 + round);
        input.upload_u32(&numbers)?;
        graph.launch()?;
        got.extend(out.to_u32()?);
        let step = |word: u32| word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let made = numbers.iter().map(|word| (0..1000 * LAUNCHES).fold(*word, |word, _| step(word)));
        // Turned round by each launch, an even number of times.
        want.extend(made);
    }
    Ok(Finding::exact("griddepcontrol, launches that begin early", &got, &want))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrapper_has_a_kernel() {
        let headers = [
            (include_str!("../../../../kernels/ptx.cuh"), Source::CONFORMANCE, 11),
            (include_str!("../../../../kernels/hopper.cuh"), Source::CONFORMANCE_HOPPER, 20),
            (include_str!("../../../../kernels/hopper_store.cuh"), Source::CONFORMANCE_TILES, 6),
            (include_str!("../../../../kernels/hopper_cluster.cuh"), Source::CONFORMANCE_TILES, 6),
        ];
        for (header, source, least) in headers {
            let wrappers: Vec<&str> = header
                .lines()
                .filter_map(|l| l.strip_prefix("__device__ __forceinline__ ")?.split('(').next()?.rsplit(' ').next())
                // What is no instruction of its own.
                .filter(|name| !["shared_address", "hold", "begin_after_earlier_launches"].contains(name))
                .collect();
            assert!(wrappers.len() >= least, "{wrappers:?}");
            for wrapper in wrappers {
                assert!(source.text.contains(&format!("ptx::{wrapper}")), "{wrapper} is not in {}", source.file);
            }
        }
    }

    #[test]
    fn findings_tell_bits_and_errors() {
        let exact = Finding::exact("x", &[1, 2], &[1, 3]);
        assert!(!exact.passes() && exact.different == 1);
        let bits = [1.0f32, 2.5, f32::NAN, f32::INFINITY].map(f32::to_bits);
        let want = [1.0, 2.0, f32::NAN, f32::MAX];
        let near = Finding::within("x", &bits[..3], &want[..3], 0.5, |i, got| (got - f64::from(want[i])).abs());
        assert!(near.passes() && (near.different, near.worst) == (1, 0.5));
        assert!(!Finding::within("x", &bits, &want, 0.5, |_, _| 0.0).passes(), "infinite where it must not be");
    }
}
