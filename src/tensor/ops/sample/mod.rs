//! Choosing the next token from a row of logits: greedy, or by temperature with top-k, top-p and min-p.
//!
//! The filters go in transformers' order: temperature, top-k, top-p (over what top-k left), min-p. One uniform number a token decides, by
//! inversion of the cumulative distribution: over the vocabulary's order where nothing is filtered, else over the candidates from the most
//! to the least likely (ties: the smaller id first).
//!
//! The vocabulary's order has three levels, each walked by itself: chunks of [`VOCAB_CHUNK`] tokens, of which the head knows the sums, pieces of
//! [`PIECE`], tokens. Probabilities are f64, sums of them one chain each; a device forms the same bits (`kernels/sample.cu`).

pub mod cuda;

use crate::tensor::cpu::vector::exp64;
use crate::tensor::cpu::vectorized;
use crate::tensor::ops::token_logprob::{ChunkSums, Softmax, chunk_sums};
use crate::tensor::plan::VOCAB_CHUNK;

/// Tokens of a chunk whose probabilities are summed before the token is sought among them.
pub const PIECE: usize = 64;

/// The filters; see [`Filters::is_none`] for the values that mean none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters {
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the most likely one's probability; 0 keeps all.
    pub min_p: f32,
}

impl Filters {
    /// Whether every token stays.
    pub fn is_none(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }
}

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// 0: greedy.
    pub temperature: f32,
    /// What may be chosen.
    pub filters: Filters,
    /// The uniform number in [0, 1).
    pub u: f64,
}

impl Draw {
    /// The temperature that the row's logits are divided by: 1 where the choice is greedy.
    pub fn divisor(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }

    fn is_plain(&self) -> bool {
        self.temperature == 0.0 || self.filters.is_none()
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its log softmax(logits / T), before any filter.
    pub logprob: f32,
}

/// The token of a row as its draw says.
pub fn choose(logits: &[f32], draw: &Draw) -> Choice {
    choose_by(logits, &sums(logits, draw.divisor()), draw)
}

/// The same by the row's chunk sums at [`Draw::divisor`], which a device may have formed.
pub fn choose_by(logits: &[f32], sums: &[ChunkSums], draw: &Draw) -> Choice {
    match draw.temperature == 0.0 {
        true => greedy_by(logits, sums),
        false => draw_by(logits, sums, draw.temperature, draw.filters, draw.u),
    }
}

/// The most likely token (the smallest id among equals), with its log-probability at temperature 1.
pub fn greedy(logits: &[f32]) -> Choice {
    greedy_by(logits, &sums(logits, 1.0))
}

/// The same by the row's chunk sums at temperature 1, which a device may have formed.
pub fn greedy_by(logits: &[f32], sums: &[ChunkSums]) -> Choice {
    let softmax = Softmax::of(sums);
    let chunk = likeliest_of(&sums.iter().map(|s| s.max).collect::<Vec<_>>());
    let i = chunk * VOCAB_CHUNK + likeliest_of(chunk_of(logits, chunk));
    Choice { id: i as u32, logprob: softmax.logprob(logits[i]) }
}

/// A token drawn at `temperature` > 0 with the uniform number `u` in [0, 1).
pub fn draw(logits: &[f32], temperature: f32, filters: Filters, u: f64) -> Choice {
    draw_by(logits, &sums(logits, temperature), temperature, filters, u)
}

/// The same by the row's chunk sums at this temperature, which a device may have formed.
pub fn draw_by(logits: &[f32], sums: &[ChunkSums], temperature: f32, filters: Filters, u: f64) -> Choice {
    let softmax = Softmax::of(sums);
    let (id, logit) = if filters.is_none() {
        let mut masses = vec![0.0; sums.len()];
        masses_of_chunks(sums, softmax.max, &mut masses);
        let (chunk, rest) = walk(masses, u * softmax.sum);
        let i = chunk * VOCAB_CHUNK + draw_from_chunk(chunk_of(logits, chunk), temperature, softmax.max, rest);
        (i as u32, logits[i])
    } else {
        let floor = floor(logits.len(), temperature, filters, &softmax);
        let possible = (0..).zip(logits.iter().copied()).filter(|(_, logit)| f64::from(*logit) >= floor).collect();
        draw_from(&candidates(possible, temperature, filters, &softmax), u)
    };
    Choice { id, logprob: softmax.logprob(logit / temperature) }
}

/// A token and its logit.
type Scored = (u32, f32);

/// The sums of a row's chunks at a temperature.
pub fn sums(logits: &[f32], temperature: f32) -> Vec<ChunkSums> {
    logits.chunks(VOCAB_CHUNK).map(|c| chunk_sums(c, temperature)).collect()
}

fn chunk_of(logits: &[f32], chunk: usize) -> &[f32] {
    &logits[chunk * VOCAB_CHUNK..(chunk * VOCAB_CHUNK + VOCAB_CHUNK).min(logits.len())]
}

/// Which of these masses is the first that `rest` does not pass, and what is left of it there. It may be a rounding error beyond all of them: then
/// the last that is not zero.
fn walk(masses: impl IntoIterator<Item = f64>, mut rest: f64) -> (usize, f64) {
    let mut taken = (0, rest);
    for (i, mass) in masses.into_iter().enumerate() {
        if mass > 0.0 {
            taken = (i, rest);
        }
        if rest < mass {
            break;
        }
        rest -= mass;
    }
    taken
}

fn likeliest_of(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] || (logits[best].is_nan() && !x.is_nan()) {
            best = i;
        }
    }
    best
}

/// The token of a chunk whose cumulative mass passes `rest`: first its piece, then the token in that.
fn draw_from_chunk(chunk: &[f32], temperature: f32, max: f64, rest: f64) -> usize {
    let mut masses = [0.0; VOCAB_CHUNK];
    let masses = &mut masses[..chunk.len()];
    masses_of(chunk, temperature, max, masses);
    let (piece, rest) = walk(masses.chunks(PIECE).map(|p| p.iter().fold(0.0, |sum, m| sum + m)), rest);
    piece * PIECE + walk(masses[piece * PIECE..].iter().take(PIECE).copied(), rest).0
}

vectorized! {
    /// What each chunk has of the row's sum.
    fn masses_of_chunks(sums: &[ChunkSums], max: f64, masses: &mut [f64]) {
        for (mass, s) in masses.iter_mut().zip(sums) {
            *mass = s.mass(max);
        }
    }
}

vectorized! {
    /// e^{z - max} of each logit.
    fn masses_of(logits: &[f32], temperature: f32, max: f64, masses: &mut [f64]) {
        for (mass, x) in masses.iter_mut().zip(logits) {
            *mass = exp64(f64::from(x / temperature) - max);
        }
    }
}

/// The `k` most likely tokens, the most likely first (ties: the smaller id first), each with its log softmax(logits / T); T is 1 where
/// `temperature` is 0, as for [`greedy`].
pub fn likeliest(logits: &[f32], temperature: f32, k: usize) -> Vec<Choice> {
    let temperature = if temperature == 0.0 { 1.0 } else { temperature };
    likeliest_by(logits, &sums(logits, temperature), temperature, k)
}

/// The same by the row's chunk sums at this temperature (above 0), which a device may have formed.
pub fn likeliest_by(logits: &[f32], sums: &[ChunkSums], temperature: f32, k: usize) -> Vec<Choice> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(k - 1, order);
    ids.truncate(k);
    ids.sort_unstable_by(order);
    let softmax = Softmax::of(sums);
    ids.into_iter().map(|id| Choice { id, logprob: softmax.logprob(logits[id as usize] / temperature) }).collect()
}

/// Those that the filters keep, with e^{z - max}, the most likely first. `softmax` is the whole row's.
fn candidates(mut possible: Vec<Scored>, temperature: f32, filters: Filters, softmax: &Softmax) -> Vec<(Scored, f64)> {
    let order = |a: &Scored, b: &Scored| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let masses = |scored: &[Scored]| {
        let logits: Vec<f32> = scored.iter().map(|s| s.1).collect();
        let mut masses = vec![0.0; logits.len()];
        masses_of(&logits, temperature, softmax.max, &mut masses);
        masses
    };
    if filters.top_k > 0 && filters.top_k < possible.len() {
        possible.select_nth_unstable_by(filters.top_k - 1, order);
        possible.truncate(filters.top_k);
    }
    let enough = match (filters.top_p < 1.0, filters.top_k) {
        (false, _) => f64::INFINITY,
        (true, 0) => f64::from(filters.top_p) * softmax.sum,
        (true, _) => {
            possible.sort_unstable_by(order);
            f64::from(filters.top_p) * masses(&possible).iter().fold(0.0, |sum, mass| sum + mass)
        }
    };
    let mut kept = Vec::new();
    let mut sum = 0.0;
    // Sorted piece by piece, each larger than the one before: top-p seldom needs more than the first.
    let (mut sorted, mut piece) = (0, if enough.is_finite() { 64 } else { possible.len() });
    while sorted < possible.len() {
        let rest = &mut possible[sorted..];
        let n = piece.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n, order);
        }
        rest[..n].sort_unstable_by(order);
        for (&scored, e) in rest[..n].iter().zip(masses(&rest[..n])) {
            if filters.min_p > 0.0 && e < f64::from(filters.min_p) {
                return kept;
            }
            kept.push((scored, e));
            sum += e;
            if sum >= enough {
                return kept;
            }
        }
        (sorted, piece) = (sorted + n, piece * 8);
    }
    kept
}

/// No token with a lower logit can pass the filters, so it need not be sorted. Only what is certain beforehand counts: top-p is a part of
/// what top-k leaves, so with both of them nothing is; without top-k, the tokens that are less than (1 - p) / V of the whole can together
/// not have the last 1 - p of it.
fn floor(vocab: usize, temperature: f32, filters: Filters, softmax: &Softmax) -> f64 {
    let (top_p, min_p) = (f64::from(filters.top_p), f64::from(filters.min_p));
    if top_p < 1.0 && filters.top_k > 0 {
        return f64::NEG_INFINITY;
    }
    let of_top_p = if top_p < 1.0 { ((1.0 - top_p) * softmax.sum / vocab as f64).ln().min(0.0) } else { f64::NEG_INFINITY };
    // With room for rounding; the filters themselves decide exactly.
    let room = 1e-3 + 1e-6 * softmax.max.abs();
    (softmax.max + of_top_p.max(min_p.ln()) - room) * f64::from(temperature)
}

/// The candidate whose cumulative mass passes `u` of the whole. Where logits are NaN there is none: token 0, with NaN.
fn draw_from(candidates: &[(Scored, f64)], u: f64) -> Scored {
    let total = candidates.iter().fold(0.0, |sum, c| sum + c.1);
    let (i, _) = walk(candidates.iter().map(|c| c.1), u * total);
    candidates.get(i).map_or((0, f32::NAN), |c| c.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::ops::token_logprob::softmax_of_row;

    const NONE: Filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };

    fn frequencies(logits: &[f32], temperature: f32, filters: Filters) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for i in 0..20_000 {
            counts[draw(logits, temperature, filters, (f64::from(i) + 0.5) / 20_000.0).id as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let weights: Vec<f64> = logits.iter().map(|x| f64::from(x / 0.7).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (f, w) in frequencies(&logits, 0.7, NONE).iter().zip(&weights) {
            assert!((f - w / total).abs() < 1e-3);
        }
    }

    #[test]
    fn filters_keep_what_they_should() {
        let logits = [0.0, 1.0, 2.0, 1.0];
        let seen = |f| frequencies(&logits, 1.0, f).iter().map(|x| *x > 0.0).collect::<Vec<_>>();
        assert_eq!(seen(Filters { top_k: 2, ..NONE }), [false, true, true, false]);
        assert_eq!(seen(Filters { top_p: 0.5, ..NONE }), [false, false, true, false]);
        assert_eq!(seen(Filters { top_p: 0.7, ..NONE }), [false, true, true, false]);
        assert_eq!(seen(Filters { min_p: 0.3, ..NONE }), [false, true, true, true]);
    }

    #[test]
    fn logprob_is_that_of_the_whole_distribution() {
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
        let c = draw(&logits, 0.5, Filters { top_k: 3, ..NONE }, 0.4);
        assert_eq!(c.logprob, softmax_of_row(&logits, 0.5).logprob(logits[c.id as usize] / 0.5));
        assert_eq!(greedy(&logits).id, logits.iter().position(|x| *x == 10.0).unwrap() as u32);
    }

    #[test]
    fn likeliest_tokens_come_first_with_their_logprobs() {
        let logits = [0.5, 2.0, -1.0, 2.0, 1.0];
        let top = likeliest(&logits, 0.5, 3);
        assert_eq!(top.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(top[0].logprob, softmax_of_row(&logits, 0.5).logprob(4.0));
        assert_eq!(likeliest(&logits, 0.0, 1), [greedy(&logits)]);
        assert!(likeliest(&logits, 1.0, 0).is_empty() && likeliest(&logits, 1.0, 9).len() == 5);
    }

    #[test]
    fn rounding_at_the_end_takes_a_possible_token() {
        let mut logits = vec![-200.0f32; 4096];
        logits[100] = 3.0;
        assert_eq!(draw(&logits, 1.0, NONE, 1.0 - 1e-16).id, 100);
    }
}
