//! The fused head: linear + log-softmax + gather + entropy, in chunks of the vocabulary. The logits of a large batch are never stored.
//!
//! With z = h W' / T (T the temperature), lse = ln sum_j e^{z_j} and p_j = e^{z_j - lse}: logprob = z_target - lse and
//! entropy = -sum_j p_j ln p_j. Shapes: h `[R, D]` (one row a prediction), W `[V, D]` in panels, targets `[R]`.
//! Where W is in bf16, h and dz are rounded to it too in the products with W; z, the softmax and the sums stay f32.
//!
//! Each chunk of [`VOCAB_CHUNK`] logits gives (max, sum of exponentials, entropy sum) by fixed reductions; a row's chunks are summed in order, in
//! f64. Sampling uses the same function on the same logits, so the log-probabilities it records are those of training, bit for bit.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::{SharedMut, over_units};
use crate::tensor::cpu::vector::{LANES, exp, exp64, max_lanes, sum_lanes};
use crate::tensor::cpu::{PanelMatrix, Weight, vectorized};
use crate::tensor::plan::VOCAB_CHUNK;
use std::ops::Range;

/// A row's log-sum-exp with what the entropy needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    /// The largest z.
    pub max: f64,
    /// sum e^{z - max}.
    pub sum: f64,
    /// sum e^{z - max} (z - max).
    pub weighted: f64,
}

impl Softmax {
    /// Of a row's chunks: their sums, each times e^{its max - the largest}, one after another.
    pub fn of(chunks: &[ChunkSums]) -> Self {
        let max = largest(chunks);
        let (sum, weighted) = totals(chunks, max);
        Self { max, sum, weighted }
    }

    /// ln p of a token with this z.
    pub fn logprob(&self, z: f32) -> f32 {
        (f64::from(z) - self.max - self.sum.ln()) as f32
    }

    /// -sum p ln p.
    pub fn entropy(&self) -> f32 {
        (self.sum.ln() - self.weighted / self.sum) as f32
    }
}

/// (max, sum e^{z - max}, sum e^{z - max} (z - max)) of one chunk.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkSums {
    /// The largest z.
    pub max: f32,
    /// sum e^{z - max}.
    pub sum: f32,
    /// sum e^{z - max} (z - max).
    pub weighted: f32,
}

/// The largest z of a row's chunks.
pub(super) fn largest(chunks: &[ChunkSums]) -> f64 {
    chunks.iter().fold(f64::NEG_INFINITY, |max, c| if f64::from(c.max) > max { f64::from(c.max) } else { max })
}

impl ChunkSums {
    /// The part of [`Softmax::sum`] that the chunk has in a row whose largest z is `max`.
    #[inline(always)]
    pub(super) fn mass(&self, max: f64) -> f64 {
        exp64(f64::from(self.max) - max) * f64::from(self.sum)
    }
}

vectorized! {
    /// A row's sum and weighted sum.
    fn totals(chunks: &[ChunkSums], max: f64) -> (f64, f64) {
        let (mut sum, mut weighted) = (0.0, 0.0);
        for c in chunks {
            let shift = f64::from(c.max) - max;
            sum += c.mass(max);
            weighted += exp64(shift) * (f64::from(c.weighted) + f64::from(c.sum) * shift);
        }
        (sum, weighted)
    }
}

vectorized! {
    /// The sums of one chunk of logits, divided by `temperature` first.
    pub fn chunk_sums(logits: &[f32], temperature: f32) -> ChunkSums {
        let (whole, rest) = logits.as_chunks::<LANES>();
        let mut top = [f32::NEG_INFINITY; LANES];
        for x in whole {
            for l in 0..LANES {
                top[l] = if x[l] > top[l] { x[l] } else { top[l] };
            }
        }
        for (top, x) in top.iter_mut().zip(rest) {
            *top = top.max(*x);
        }
        let max = max_lanes(top) / temperature;
        let (mut sum, mut weighted) = ([0.0; LANES], [0.0; LANES]);
        for x in whole {
            for l in 0..LANES {
                let d = x[l] / temperature - max;
                let e = exp(d);
                sum[l] += e;
                weighted[l] = e.mul_add(d, weighted[l]);
            }
        }
        for (l, x) in rest.iter().enumerate() {
            let d = x / temperature - max;
            let e = exp(d);
            sum[l] += e;
            weighted[l] = e.mul_add(d, weighted[l]);
        }
        ChunkSums { max, sum: sum_lanes(sum), weighted: sum_lanes(weighted) }
    }
}

/// The softmax of a whole row of logits.
pub fn softmax_of_row(logits: &[f32], temperature: f32) -> Softmax {
    Softmax::of(&logits.chunks(VOCAB_CHUNK).map(|chunk| chunk_sums(chunk, temperature)).collect::<Vec<_>>())
}

/// logits `[R, V]` = h W', for sampling.
pub fn logits<'a>(h: &Tensor, w: impl Into<Weight<'a>>) -> Tensor {
    crate::tensor::ops::matmul::forward(h, w)
}

/// What the backward pass needs.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    softmax: Vec<Softmax>,
    /// The logits of each chunk of the vocabulary, `[R, chunk]`, where there are at most [`KEPT_LOGITS`] in all.
    logits: Option<Vec<Vec<f32>>>,
}

/// Up to how many logits (256 MiB) stay in memory for the backward pass, which computes larger ones again: the same bits, a quarter more work.
pub const KEPT_LOGITS: usize = 64 << 20;

/// Whether the backward pass follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It does: what it needs is kept.
    ForBackward,
    /// It does not.
    Nothing,
}

/// Per row: logprob, entropy, and what [`backward`] needs.
///
/// # Panics
/// If a target is not in the vocabulary, or there is not one a row.
pub fn forward<'a>(h: &Tensor, w: impl Into<Weight<'a>>, targets: &[u32], temperature: f32, keep: Keep) -> (Vec<f32>, Vec<f32>, Saved) {
    let (rows, w) = (h.rows(), w.into());
    assert_eq!(rows, targets.len(), "one target a row");
    if let Some(t) = targets.iter().find(|t| **t as usize >= w.n()) {
        panic!("target {t} in a vocabulary of {}", w.n());
    }
    let chunks = w.n().div_ceil(VOCAB_CHUNK);
    let mut sums = vec![ChunkSums::default(); rows * chunks];
    let mut target_z = vec![0.0f32; rows];
    let mut kept = (keep == Keep::ForBackward && rows * w.n() <= KEPT_LOGITS).then(Vec::new);
    for (c, range) in vocabulary_chunks(w.n()).enumerate() {
        let n = range.len();
        let [logits] = Weight::nt_many(h.data(), [w.rows(range.start, range.end)]);
        let (sums, target_z) = (SharedMut::new(&mut sums), SharedMut::new(&mut target_z));
        over_units(rows, |r| {
            let row = &logits[r * n..(r + 1) * n];
            // SAFETY: each unit has its own row.
            let (s, z) = unsafe { (&mut sums.slice(r * chunks + c, 1)[0], &mut target_z.slice(r, 1)[0]) };
            *s = chunk_sums(row, temperature);
            if let Some(offset) = (targets[r] as usize).checked_sub(range.start).filter(|o| *o < n) {
                *z = row[offset] / temperature;
            }
        });
        if let Some(kept) = &mut kept {
            kept.push(logits);
        }
    }
    let softmax: Vec<Softmax> = sums.chunks(chunks.max(1)).map(Softmax::of).collect();
    let logprob = softmax.iter().zip(&target_z).map(|(s, z)| s.logprob(*z)).collect();
    let entropy = softmax.iter().map(Softmax::entropy).collect();
    (logprob, entropy, Saved { softmax, logits: kept })
}

/// The fixed grid of chunks over a vocabulary.
fn vocabulary_chunks(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(VOCAB_CHUNK).map(move |from| from..(from + VOCAB_CHUNK).min(n))
}

/// Returns dh `[R, D]` and adds to dW, for given d loss / d logprob and d loss / d entropy `[R]`:
/// dz_j = (d_logprob ([j = target] - p_j) - d_entropy p_j (ln p_j + entropy)) / T. Rows are summed into dW over `chunks`.
#[allow(clippy::too_many_arguments)]
pub fn backward<'a>(
    h: &Tensor,
    w: impl Into<Weight<'a>>,
    targets: &[u32],
    temperature: f32,
    saved: Saved,
    d_logprob: &[f32],
    d_entropy: Option<&[f32]>,
    chunks: &[Range<usize>],
    mut dw: Option<&mut PanelMatrix>,
) -> Tensor {
    let (rows, w) = (h.rows(), w.into());
    let mut dh = Tensor::zeros(h.shape());
    let mut kept = saved.logits.map(Vec::into_iter);
    for range in vocabulary_chunks(w.n()) {
        let n = range.len();
        let panels = w.rows(range.start, range.end);
        let mut logits = kept.as_mut().and_then(Iterator::next).unwrap_or_else(|| {
            let [again] = Weight::nt_many(h.data(), [panels]);
            again
        });
        let shared = SharedMut::new(&mut logits);
        over_units(rows, |r| {
            // SAFETY: each unit has its own row.
            let row = unsafe { shared.slice(r * n, n) };
            let s = &saved.softmax[r];
            let seeds = Seeds {
                logprob: d_logprob[r] / temperature,
                entropy: d_entropy.map_or(0.0, |d| d[r]) / temperature,
                temperature,
                max: s.max as f32,
                ln_sum: s.sum.ln() as f32,
                inv_sum: (1.0 / s.sum) as f32,
                row_entropy: s.entropy(),
            };
            dlogits(row, seeds);
            if let Some(offset) = (targets[r] as usize).checked_sub(range.start).filter(|o| *o < n) {
                row[offset] += seeds.logprob;
            }
        });
        panels.nn_add(&logits, dh.data_mut());
        if let Some(dw) = dw.as_deref_mut() {
            w.compute().tn(&logits, h.data(), (n, w.k()), chunks, dw.rows_mut(range.start, range.end));
        }
    }
    dh
}

/// What turns a row of logits into the loss's gradient.
#[derive(Clone, Copy)]
struct Seeds {
    logprob: f32,
    entropy: f32,
    temperature: f32,
    max: f32,
    ln_sum: f32,
    inv_sum: f32,
    row_entropy: f32,
}

vectorized! {
    fn dlogits(row: &mut [f32], s: Seeds) {
        if s.entropy == 0.0 {
            for x in row.iter_mut() {
                let p = exp(*x / s.temperature - s.max) * s.inv_sum;
                *x = -s.logprob * p;
            }
        } else {
            for x in row.iter_mut() {
                let d = *x / s.temperature - s.max;
                let p = exp(d) * s.inv_sum;
                *x = -p * (s.logprob + s.entropy * (d - s.ln_sum + s.row_entropy));
            }
        }
    }
}
