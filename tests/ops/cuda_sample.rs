//! Choosing tokens from logits on a device: they are the processor's, whatever the filters, and carry the log-probability of training.

use crate::cuda_attention::{broken, mutant};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::cuda_token_logprob::Case;
use crate::emulator;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::sample::{self, Choice, Draw, Filters};
use sorft_native::tensor::ops::token_logprob::cuda::{self, Logits};
use sorft_native::tensor::philox::Philox;
use sorft_native::{Error, Result};
use std::sync::Arc;

const NONE: Filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Temperatures and filters: top-k within one piece of the vocabulary, over several, and beyond what maxima of pieces can tell.
const WAYS: [(f32, Filters); 16] = [
    (0.0, NONE),
    (1.0, NONE),
    (0.6, NONE),
    (1.0, Filters { top_k: 1, ..NONE }),
    (1.0, Filters { top_k: 5, ..NONE }),
    (0.6, Filters { top_k: 40, ..NONE }),
    (1.0, Filters { top_k: 3000, ..NONE }),
    (0.6, Filters { top_p: 0.9, ..NONE }),
    (1.0, Filters { top_p: 0.3, ..NONE }),
    // Just above e^-4, which logits on a grid have.
    (1.0, Filters { min_p: 0.01832, ..NONE }),
    (0.6, Filters { top_k: 30, min_p: 0.3, ..NONE }),
    (1.0, Filters { top_k: 40, top_p: 0.6, min_p: 0.4 }),
    (1.0, Filters { top_k: 3000, top_p: 0.99, min_p: 0.0 }),
    (0.6, Filters { top_k: 20, top_p: 0.8, min_p: 0.01 }),
    (0.6, Filters { top_k: usize::MAX, min_p: 0.1, ..NONE }),
    (30.0, Filters { top_k: 400, ..NONE }),
];

fn draws(rows: usize) -> Vec<Draw> {
    let draw = |i: usize| {
        let (temperature, filters) = WAYS[i % WAYS.len()];
        // Where several filters meet, the end of what they keep tells most.
        let u = if filters.top_k > 0 && filters.min_p > 0.0 { 0.97 } else { (i as f64 * 0.381_966 + 0.2) % 1.0 };
        Draw { temperature, filters, u }
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
            let x = random.normal((row * vocab + i) as u64, 0) as f32 * (3.0 / (1 + (row + 2 * (row / WAYS.len())) % 4) as f32);
            let x = if grid { (x * 2.0).round() * 0.5 } else { x };
            match row {
                // The first has its largest several times.
                0 => x.min(6.0),
                // The second greedy row's largest is its last, and the rows behind it are above it.
                row if row == WAYS.len() => x - 16.0 + if i + 1 == vocab { 15.0 } else { 0.0 },
                // The second row of a way is where numbers share their first digits, some nearly all, and once some share them with few others.
                row if row == 2 * WAYS.len() - 1 => x + if i % 64 == 5 { 95.0 } else { 72.0 },
                row if row > WAYS.len() => 78.9 + x * [1.0, 1.0, 3e-4][row % 3],
                _ => x,
            }
        };
        Self { logits: (0..rows).map(|r| (0..vocab).map(|i| logit(r, i)).collect()).collect(), draws: draws(rows) }
    }

    fn on_device(&self, gpu: &Arc<Gpu>) -> Result<Logits> {
        let of_row = |(row, d): (&Vec<f32>, &Draw)| sample::sums(row, d.divisor());
        let sums = self.logits.iter().zip(&self.draws).flat_map(of_row).flat_map(|s| [s.max, s.sum, s.weighted]);
        let (logits, sums) = (self.logits.concat(), sums.collect::<Vec<f32>>());
        Ok(Logits::of(Buffer::from_f32(gpu, DType::F32, &logits)?, Buffer::from_f32(gpu, DType::F32, &sums)?, self.logits[0].len()))
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
    let divisors = [1.0, 0.6, 30.0];
    let trained = divisors.map(|t| case.on_device(gpu, |h| cuda::forward(gpu, h, &ids, t)).expect("runs").0);
    for (i, (draw, choice)) in draws.iter().zip(&choices).enumerate() {
        assert_eq!(choice.id, sample::choose(&logits.row(i).expect("downloaded").0, draw).id, "{draw:?}");
        let trained = trained[divisors.iter().position(|t| *t == draw.divisor()).expect("one of them")][i];
        assert_eq!(choice.logprob.to_bits(), trained.to_bits(), "{draw:?}");
    }
}

/// Rows leave the device only where more tokens pass their filters than the kernel sorts.
#[test]
fn rows_stay_on_the_device() {
    let gpu = emulator::gpu(Emulation::default());
    for (vocab, rows_downloaded) in [(2048, 0), (4392, 3), (6144, 3)] {
        let rows = Rows::new(WAYS.len(), vocab, false);
        let logits = rows.on_device(&gpu).expect("uploaded");
        let before = gpu.counts().downloads;
        sample::cuda::choose(&logits, &rows.draws).expect("runs");
        // A row comes with its sums.
        assert_eq!(gpu.counts().downloads - before, 1 + 2 * rows_downloaded, "{vocab} tokens");
    }
}

/// Where nothing is filtered the other kernel is not launched, and one that is too wide is refused.
#[test]
fn what_is_launched() {
    let gpu = emulator::gpu(Emulation::default());
    let mut rows = Rows::new(3, 72, false);
    let logits = rows.on_device(&gpu).expect("uploaded");
    let launches = |draws: &[Draw]| {
        let before = gpu.counts().launches;
        sample::cuda::choose(&logits, draws).expect("runs");
        gpu.counts().launches - before
    };
    assert_eq!(launches(&rows.draws), 1);
    rows.draws[1].filters.top_k = 3;
    assert_eq!(launches(&rows.draws), 2);
    let vocab = 256 * 2048 + 8;
    let wide = Logits::of(
        Buffer::zeros(&gpu, DType::F32, vocab).expect("cleared"),
        Buffer::zeros(&gpu, DType::F32, 257 * 3).expect("cleared"),
        vocab,
    );
    let error = sample::cuda::choose(&wide, &rows.draws[..1]).expect_err("too wide").to_string();
    assert!(error.contains("524296 tokens"), "{error}");
}

#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant(
            "no barrier before the warps' maxima are read",
            "scratch[threadIdx.x / 32] = v;\n  __syncthreads();",
            "scratch[threadIdx.x / 32] = v;",
        ),
        mutant("no barrier behind the chunks", "sums[3 * threadIdx.x + 1], max);\n  __syncthreads();", "sums[3 * threadIdx.x + 1], max);"),
        mutant("a chunk too few", "told[0] = total(of_chunks, chunks);", "told[0] = total(of_chunks, chunks - 1);"),
        mutant("the rest of the whole row", "told[1] = w.rest,", "told[1] = d.u * told[0],"),
        mutant("the first chunk's likeliest", "(double)tops[c] == max", "c == 0"),
        mutant("the last of equals", "other == v && place < at", "other == v && place > at"),
        mutant("columns beyond the last", "at < count ? EACH : 0;", "EACH;"),
        mutant(
            "no barrier before pieces are summed",
            "(double)(v[i] / divisor) - max);\n  __syncthreads();",
            "(double)(v[i] / divisor) - max);",
        ),
        mutant("no barrier behind the pieces", "pieces[threadIdx.x] = sum;\n  }\n  __syncthreads();", "pieces[threadIdx.x] = sum;\n  }"),
        mutant("the rest of the chunk", "piece.rest, [&]", "rest, [&]"),
        mutant("no temperature", "(double)(v[i] / divisor) - max", "(double)v[i] - max"),
        mutant("another row's logits", "const float *own = logits + row * vocab;", "const float *own = logits;"),
        mutant("what equals the floor is lost", "if (rank_of(logit) < floor) return;", "if (rank_of(logit) <= floor) return;"),
        mutant("digits of all prefixes", "digit == 0 || rank >>", "true || rank >>"),
        mutant("a second digit that is a bit short", "digit == 1 ? 10", "digit == 1 ? 11"),
        mutant("bins are not cleared", "s.counts[i] = 0, s.masses[i] = 0;", ";"),
        mutant("no barrier behind the clearing", "s.masses[i] = 0;\n    __syncthreads();", "s.masses[i] = 0;"),
        mutant("no barrier behind the histogram", "    });\n    __syncthreads();\n    cut_at", "    });\n    cut_at"),
        mutant("a token's mass is not counted", "if (enough.mass != WHOLE) add_mass", "if (false) add_mass"),
        mutant("what is half of enough", "(u64)(mass * (double)UNITS)", "(u64)(mass * 0.5 * (double)UNITS)"),
        mutant("min-p before top-p of what top-k leaves", "d.top_p < 1.0f && d.top_k > 0 ? 0.0 :", "false ? 0.0 :"),
        mutant("no barrier before the cut is read", "above, enough);\n    __syncthreads();", "above, enough);"),
        mutant("no barrier before the warps' amounts are read", "warps[warp] = upto;\n  __syncthreads();", "warps[warp] = upto;"),
        mutant("the warps above are forgotten", "before.add(warps[w]);", ";"),
        mutant(
            "a thread's own bins are above it",
            "upto.count - own.count, before.mass += upto.mass - own.mass;",
            "upto.count, before.mass += upto.mass;",
        ),
        mutant("half of a mass", "atomicAdd(parts + 1, units >> 14);", ";"),
        mutant("one direction of runs", "((low & run) == 0)", "true"),
        mutant("no barrier between steps", "keys[high] = a;\n      }\n      __syncthreads();", "keys[high] = a;\n      }"),
        mutant("keys are not cleared", "keys[i] = ~0ull;", ";"),
        mutant("top-k keeps one more", "min(passing, d.top_k)", "min(passing, d.top_k + 1)"),
        mutant("top-p of the whole row", "d.top_k > 0 ? total(masses, by_p ? count : 0) : sum", "sum"),
        mutant("no min-p", "if (d.min_p > 0.0f && masses[i]", "if (false && masses[i]"),
        mutant("no top-p", "if (by_p && kept.sum >= enough) break;", ""),
        mutant("u of the whole row", "d.u * kept.sum", "d.u * sum"),
    ];
    let rows = [true, false].map(|grid| Rows::new(2 * WAYS.len(), 5200, grid));
    // How many downloads it took, where all tokens are right.
    let run = |gpu: Arc<Gpu>| {
        let right = rows.iter().try_fold(true, |right, rows| Ok::<bool, Error>(right && rows.right(&gpu)?));
        right.map(|right| right.then(|| gpu.counts().downloads))
    };
    let whole = broken(Source::SAMPLE, &mutant("nothing", "namespace sample {", "namespace sample {"), 64);
    let unbroken = run(emulator::open(&whole, Emulation::default())).expect("no alarm");
    assert!(unbroken.is_some(), "and its numbers are right");
    for (mutant, mode) in mutants.iter().zip(modes().into_iter().step_by(2).cycle()) {
        let library = broken(Source::SAMPLE, mutant, 64);
        assert!(run(emulator::open(&library, mode)).map_or(true, |got| got != unbroken), "{} under {mode:?}", mutant.name);
    }
}
