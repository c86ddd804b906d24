//! Choosing tokens from logits on a device: they are the processor's, whatever the filters, and carry the log-probability of training.

use crate::cuda_attention::{Mutant, broken, mutant};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::cuda_token_logprob::Case;
use crate::emulator;
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::sample::{self, Choice, Draw, Filters};
use sorft_native::tensor::ops::token_logprob::cuda::{self, Logits};
use sorft_native::tensor::philox::Philox;
use std::sync::Arc;

const NONE: Filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Temperatures and filters: top-k within one piece of the vocabulary, over several, and beyond what maxima of pieces can tell.
const WAYS: [(f32, Filters); 13] = [
    (0.0, NONE),
    (1.0, NONE),
    (0.6, NONE),
    (1.0, Filters { top_k: 1, ..NONE }),
    (1.0, Filters { top_k: 5, ..NONE }),
    (0.6, Filters { top_k: 40, ..NONE }),
    (1.0, Filters { top_k: 3000, ..NONE }),
    (0.6, Filters { top_p: 0.9, ..NONE }),
    (1.0, Filters { top_p: 0.3, ..NONE }),
    (1.0, Filters { min_p: 0.02, ..NONE }),
    (0.6, Filters { top_k: 30, min_p: 0.3, ..NONE }),
    (0.6, Filters { top_k: 20, top_p: 0.8, min_p: 0.01 }),
    (1.0, Filters { top_k: 3000, top_p: 0.99, min_p: 0.0 }),
];

fn draws(rows: usize) -> Vec<Draw> {
    let draw = |i: usize| {
        let (temperature, filters) = WAYS[i % WAYS.len()];
        Draw { temperature, filters, u: (i as f64 * 0.381_966 + 0.2) % 1.0 }
    };
    (0..rows).map(draw).collect()
}

/// Rows of logits, fine ones or on a grid where ties are many, and what choosing from them needs.
struct Rows {
    logits: Vec<Vec<f32>>,
    draws: Vec<Draw>,
}

impl Rows {
    fn new(rows: usize, vocab: usize, grid: bool) -> Self {
        let random = Philox::new(7, vocab as u64);
        let logit = |row: usize, i: usize| {
            // Each row spreads in its own way, so that no row's numbers do for another.
            let x = random.normal((row * vocab + i) as u64, 0) as f32 * (3.0 / (1 + row % 4) as f32);
            if grid { (x * 2.0).round() * 0.5 } else { x }
        };
        Self { logits: (0..rows).map(|r| (0..vocab).map(|i| logit(r, i)).collect()).collect(), draws: draws(rows) }
    }

    fn on_device(&self, gpu: &Arc<Gpu>) -> Result<Logits> {
        let sums = self.logits.iter().zip(&self.draws).map(|(row, d)| sample::sums(row, d.divisor())).collect();
        Ok(Logits { logits: Buffer::from_f32(gpu, DType::F32, &self.logits.concat())?, sums })
    }

    fn want(&self) -> Vec<Choice> {
        self.logits.iter().zip(&self.draws).map(|(row, draw)| sample::choose(row, draw)).collect()
    }

    fn right(&self, gpu: &Arc<Gpu>) -> Result<bool> {
        let got = sample::cuda::choose(&self.on_device(gpu)?, &self.draws)?;
        Ok(got.iter().zip(self.want()).all(|(a, b)| (a.id, a.logprob.to_bits()) == (b.id, b.logprob.to_bits())))
    }
}

#[test]
fn tokens_are_the_processor_s_for_vocabularies_of_every_shape() {
    for gpu in modes().into_iter().step_by(2).map(emulator::gpu).chain(real_gpu()) {
        for (vocab, grid) in [(8, false), (72, true), (2048, false), (2056, true), (4392, false), (6144, true)] {
            chosen_on(&gpu, vocab, grid);
        }
    }
}

pub fn chosen_on(gpu: &Arc<Gpu>, vocab: usize, grid: bool) {
    let rows = Rows::new(2 * WAYS.len(), vocab, grid);
    assert!(rows.right(gpu).expect("runs"), "{vocab} tokens, grid {grid}");
}

/// Tokens from the head's own logits carry the log-probability that training computes, bit for bit.
#[test]
fn logprobs_of_sampled_tokens_are_training_s() {
    modes().into_iter().step_by(2).map(emulator::gpu).chain(real_gpu()).for_each(|gpu| sampled_on(&gpu));
}

pub fn sampled_on(gpu: &Arc<Gpu>) {
    let draws = draws(2 * WAYS.len());
    let case = Case::new(draws.len(), 24, 2120, 1.0);
    let temperatures: Vec<f32> = draws.iter().map(Draw::divisor).collect();
    let logits = case.on_device(gpu, |h| cuda::logits(gpu, h, &temperatures)).expect("runs");
    let choices = sample::cuda::choose(&logits, &draws).expect("runs");
    let ids: Vec<u32> = choices.iter().map(|c| c.id).collect();
    let trained = [1.0, 0.6].map(|t| case.on_device(gpu, |h| cuda::forward(gpu, h, &ids, t)).expect("runs").0);
    for (i, (draw, choice)) in draws.iter().zip(&choices).enumerate() {
        assert_eq!(choice.id, sample::choose(&logits.row(i).expect("downloaded"), draw).id, "{draw:?}");
        let trained = trained[usize::from(draw.divisor() != 1.0)][i];
        assert_eq!(choice.logprob.to_bits(), trained.to_bits(), "{draw:?}");
    }
}

#[test]
fn every_mistake_is_found() {
    let mutants: [Mutant; 8] = [
        mutant("no barrier before the warps' counts are read", "  __syncthreads();\n  u32 base", "  u32 base"),
        mutant("a warp counts itself among those before", "if (w < warp)", "if (w <= warp)"),
        mutant("a thread counts itself among those before", "return base + upto - n;", "return base + upto;"),
        mutant("a scan of half a warp", "delta < 32; delta", "delta < 16; delta"),
        mutant("what equals the floor is lost", "if (!s.there || s.v[i] < floor) continue;", "if (!s.there || s.v[i] <= floor) continue;"),
        mutant("tokens are counted from their chunk", "ids[at] = (u32)(s.first + i);", "ids[at] = (u32)(threadIdx.x * sample::EACH + i);"),
        mutant("the first row's maxima", "top = fmaxf(top, logits[row * vocab + column]);", "top = fmaxf(top, logits[column]);"),
        mutant("columns beyond the last", "s.there = s.first < vocab;", "s.there = true;"),
    ];
    let rows = Rows::new(WAYS.len(), 4200, true);
    let whole = broken(Source::SAMPLE, &mutant("nothing", "namespace sample {", "namespace sample {"), 64);
    assert!(rows.right(&emulator::open(&whole, Emulation::default())).expect("no alarm"), "and its numbers are right");
    for mutant in &mutants {
        let library = broken(Source::SAMPLE, mutant, 64);
        for mode in modes().into_iter().step_by(5) {
            assert!(!rows.right(&emulator::open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
