//! What lies between the products q, k, v and attention, in one launch: the bits of norms, turns and writes one by one.

use crate::attention::heads;
use crate::cuda_attention::{mutant, rounded, upload};
use crate::cuda_checker::modes;
use crate::cuda_matmul::broken;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, tensor};
use sorft_native::Result;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cuda::{Buffer, Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::Heads;
use sorft_native::tensor::ops::attention::cuda::{DeviceKv, HeadNorms, NOWHERE};
use sorft_native::tensor::ops::rmsnorm;
use sorft_native::tensor::ops::rope::{self, Angles, cuda::DeviceAngles};
use std::sync::Arc;

const PAGES: usize = 5;
/// Large, so that a norm without it has other bits.
const EPS: f32 = 0.01;

/// A batch of tokens; every fifth from the third on only fills it.
struct Case {
    heads: Heads,
    tokens: usize,
    normed: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    norms: [Tensor; 2],
    slots: Vec<u32>,
}

/// Bits of q, of all keys and of all values.
type Outcome = [Vec<u32>; 3];

impl Case {
    fn new(heads: Heads, tokens: usize, normed: bool) -> Self {
        let random = |width: usize, stream| rounded(&tensor(&[tokens, width], stream));
        let Heads { num_heads, num_kv_heads, head_dim } = heads;
        let (q, kv) = (num_heads * head_dim, num_kv_heads * head_dim);
        let norms = [4, 5].map(|stream| rounded(&tensor(&[head_dim], stream)));
        let slot = |t: usize| if t % 5 == 3 { [NOWHERE, 0] } else { [(t % PAGES) as u32, (t * 7 % 64) as u32] };
        let slots = (0..tokens).flat_map(slot).collect();
        Self { heads, tokens, normed, q: random(q, 1), k: random(kv, 2), v: random(kv, 3), norms, slots }
    }

    fn name(&self) -> String {
        format!("{} tokens, {:?}, norms {}", self.tokens, self.heads, self.normed)
    }

    /// By `run` on a device, in pages that are full of one number.
    fn outcome(&self, gpu: &Arc<Gpu>, run: impl FnOnce(&Operands, &mut Buffer, &mut DeviceKv) -> Result<()>) -> Result<Outcome> {
        let width = self.heads.num_kv_heads * self.heads.head_dim;
        let all: Vec<u32> = (0..64 * PAGES as u32).flat_map(|i| [i / 64, i % 64]).collect();
        let filling = upload(gpu, &Tensor::from_vec(&[64 * PAGES, width], vec![7.0; 64 * PAGES * width]))?;
        let mut kv = DeviceKv::new(gpu, self.heads, PAGES)?;
        kv.write(&Buffer::from_u32(gpu, &all)?, &filling, &filling)?;
        let half = self.heads.head_dim / 2;
        let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let positions: Vec<u32> = (0..self.tokens as u32).map(|i| i * 37 % 1009 + 1).collect();
        let operands = Operands {
            k: upload(gpu, &self.k)?,
            v: upload(gpu, &self.v)?,
            norms: [upload(gpu, &self.norms[0])?, upload(gpu, &self.norms[1])?],
            angles: DeviceAngles::new(gpu, &Angles::new(&positions, &inv_freq))?,
            slots: Buffer::from_u32(gpu, &self.slots)?,
        };
        let mut q = upload(gpu, &self.q)?;
        run(&operands, &mut q, &mut kv)?;
        let [keys, values] = kv.numbers()?;
        Ok([bits(&q.to_f32()?), bits(&keys), bits(&values)])
    }

    fn in_one_launch(&self, gpu: &Arc<Gpu>) -> Result<Outcome> {
        self.outcome(gpu, |on, q, kv| {
            let norms = self.normed.then_some(HeadNorms { q: &on.norms[0], k: &on.norms[1], eps: EPS });
            kv.turn_and_write(q, &on.k, &on.v, norms, &on.angles, &on.slots)
        })
    }

    fn one_by_one(&self, gpu: &Arc<Gpu>) -> Outcome {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let run = |on: &Operands, q: &mut Buffer, kv: &mut DeviceKv| {
            let mut k = on.k.try_clone()?;
            if self.normed {
                *q = rmsnorm::cuda::forward(gpu, q, &on.norms[0], self.tokens * num_heads, head_dim, EPS)?.0;
                k = rmsnorm::cuda::forward(gpu, &k, &on.norms[1], self.tokens * num_kv_heads, head_dim, EPS)?.0;
            }
            rope::cuda::forward(q, num_heads, &on.angles)?;
            rope::cuda::forward(&mut k, num_kv_heads, &on.angles)?;
            kv.write(&on.slots, &k, &on.v)
        };
        self.outcome(gpu, run).expect("runs")
    }

    fn want(&self) -> Outcome {
        self.one_by_one(&emulator::gpu(Emulation { check: false, ..Emulation::default() }))
    }
}

struct Operands {
    k: Buffer,
    v: Buffer,
    norms: [Buffer; 2],
    angles: DeviceAngles,
    slots: Buffer,
}

#[test]
fn one_launch_has_the_bits_of_many_under_every_schedule() {
    let shapes = [(3, 1, 64, 1), (14, 2, 64, 3), (2, 2, 96, 16), (5, 1, 128, 17), (9, 3, 64, 64), (8, 2, 128, 200), (4, 1, 96, 7)];
    for (q, kv, dim, tokens) in shapes {
        for normed in [false, true] {
            let case = Case::new(heads(q, kv, dim), tokens, normed);
            let want = case.want();
            for mode in modes() {
                let got = case.in_one_launch(&emulator::gpu(mode)).unwrap_or_else(|e| panic!("{} under {mode:?}: {e}", case.name()));
                assert!(got == want, "{} under {mode:?}: other bits", case.name());
            }
        }
    }
}

#[test]
fn one_launch_has_the_bits_of_many_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for (q, kv, dim, tokens) in [(14, 2, 64, 1), (16, 8, 128, 64), (32, 8, 96, 200)] {
        for normed in [false, true] {
            let case = Case::new(heads(q, kv, dim), tokens, normed);
            assert!(case.in_one_launch(&gpu).expect("runs") == case.one_by_one(&gpu), "{}", case.name());
        }
    }
}

/// Small launches, for the second witness.
pub fn qkv_on(gpu: &Arc<Gpu>) {
    for (q, kv, dim, tokens, normed) in [(3, 1, 64, 5, false), (2, 2, 96, 4, true), (5, 1, 128, 3, true)] {
        let case = Case::new(heads(q, kv, dim), tokens, normed);
        assert!(case.in_one_launch(gpu).expect("both agree") == case.want(), "{}", case.name());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let gpu = emulator::gpu(Emulation::default());
    let case = Case::new(heads(3, 1, 64), 4, true);
    let other = Case::new(heads(3, 1, 64), 3, true);
    let error = case
        .outcome(&gpu, |on, q, kv| {
            let norms = Some(HeadNorms { q: &on.norms[0], k: &on.norms[1], eps: EPS });
            kv.turn_and_write(q, &upload(&gpu, &other.k)?, &on.v, norms, &on.angles, &on.slots)
        })
        .expect_err("k has a token less")
        .to_string();
    assert!(error.contains("qkv.cu: qkv_bf16") && error.contains("k holds 192 numbers where the kernel takes 256"), "{error}");
}

#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant("rows that fill a batch have a page", "if (page == kv_pages::NOWHERE) return;", ""),
        mutant("tokens beyond the last", "if (token >= tokens) return;", ""),
        mutant("keys have the norm of queries", "query ? w_q : w_k", "w_q"),
        mutant("not rounded before the turn", "    round8(own);\n", ""),
        mutant("no eps", "dim, eps), weights)", "dim, 0.0f), weights)"),
        mutant("partners by bits of a lane", "low ? lane + pairs : lane - pairs", "lane ^ pairs"),
        mutant("both halves are the lower", "own.v[j] = low ? p : q;", "own.v[j] = p;"),
        mutant("all tokens have the first's angles", "angles + token * dim", "angles"),
        mutant("the upper half has angles of its own", "angles + (low ? first : first - half)", "angles + first"),
        mutant("values are taken for keys", "store_vec(values + place", "store_vec(keys + place"),
        mutant("keys stay where they were", "    to = keys + place;\n", ""),
        mutant("every value is that of the first head", "load_vec<bf16x8>(v + source", "load_vec<bf16x8>(v + source - kv_head * dim"),
        mutant("slots are taken for one another", "* 64 + slot)", "* 64 + (slot ^ 1))"),
        mutant("numbers past a head's last are written", "if (inside) store8", "store8"),
        mutant("the mean is of another width", "sum / (float)cols", "sum / (float)(cols + 1)"),
        mutant("turned the other way", "p * cosine - q * sine", "p * cosine + q * sine"),
    ];
    let cases = [(2, 2, 96, 6), (3, 1, 64, 5)].map(|(q, kv, dim, tokens)| Case::new(heads(q, kv, dim), tokens, true));
    let wants = [0, 1].map(|i: usize| cases[i].want());
    // The pages are filled by the kernel as it is: what is looked at is this one.
    let right = |gpu: &Arc<Gpu>| cases.iter().zip(&wants).all(|(case, want)| case.in_one_launch(gpu).is_ok_and(|got| got == *want));
    let unbroken = broken(Source::QKV, &mutant("nothing", "namespace qkv {", "namespace qkv {"));
    assert!(right(&emulator::open(&unbroken, modes()[3])), "the kernel itself raises no alarm, and its numbers are right");
    for mutant in &mutants {
        let library = broken(Source::QKV, mutant);
        for mode in [modes()[0], modes()[4]] {
            assert!(!right(&emulator::open(&library, mode)), "{} under {mode:?}", mutant.name);
        }
    }
}
