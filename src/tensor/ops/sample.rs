//! Choosing the next token from a row of logits: greedy, or by temperature with top-k, top-p and min-p.
//!
//! The filters go in transformers' order: temperature, top-k, top-p (over what top-k left), min-p. One uniform number a token decides, by
//! inversion of the cumulative distribution: over the vocabulary's order where nothing is filtered, else over the candidates from the most
//! to the least likely (ties: the smaller id first).

use crate::tensor::ops::token_logprob::{Softmax, chunk_sums, softmax_of_row};
use crate::tensor::plan::VOCAB_CHUNK;

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

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// Its log softmax(logits / T), before any filter.
    pub logprob: f32,
}

/// The most likely token (the smallest id among equals), with its log-probability at temperature 1.
pub fn greedy(logits: &[f32]) -> Choice {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    Choice { id: best as u32, logprob: softmax_of_row(logits, 1.0).logprob(logits[best]) }
}

/// A token drawn at `temperature` > 0 with the uniform number `u` in [0, 1).
pub fn draw(logits: &[f32], temperature: f32, filters: Filters, u: f64) -> Choice {
    let sums: Vec<_> = logits.chunks(VOCAB_CHUNK).map(|c| chunk_sums(c, temperature)).collect();
    let softmax = sums.iter().fold(Softmax::EMPTY, |s, c| s.merge(*c));
    let id = if filters.is_none() {
        let masses = sums.iter().map(|c| f64::from(c.sum) * (f64::from(c.max) - softmax.max).exp());
        draw_from_all(logits, temperature, &softmax, masses, u)
    } else {
        draw_from(&candidates(logits, temperature, filters, &softmax), u)
    };
    Choice { id: id as u32, logprob: softmax.logprob(logits[id] / temperature) }
}

/// The `k` most likely tokens, the most likely first (ties: the smaller id first), each with its log softmax(logits / T); T is 1 where
/// `temperature` is 0, as for [`greedy`].
pub fn likeliest(logits: &[f32], temperature: f32, k: usize) -> Vec<Choice> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.select_nth_unstable_by(k - 1, order);
    ids.truncate(k);
    ids.sort_unstable_by(order);
    let temperature = if temperature == 0.0 { 1.0 } else { temperature };
    let softmax = softmax_of_row(logits, temperature);
    ids.into_iter().map(|id| Choice { id, logprob: softmax.logprob(logits[id as usize] / temperature) }).collect()
}

/// Inversion in two steps: the chunk whose cumulative mass passes `u`, then the token in it.
fn draw_from_all(logits: &[f32], temperature: f32, softmax: &Softmax, masses: impl Iterator<Item = f64>, u: f64) -> usize {
    let mut rest = u * softmax.sum;
    // The chunk that is taken, and what `u` still has to pass in it.
    let mut taken = (0, rest);
    for (c, mass) in masses.enumerate() {
        if mass > 0.0 {
            taken = (c, rest);
        }
        if rest < mass {
            break;
        }
        rest -= mass;
    }
    let (last, mut rest) = taken;
    let chunk = &logits[last * VOCAB_CHUNK..(last * VOCAB_CHUNK + VOCAB_CHUNK).min(logits.len())];
    // `rest` may be a rounding error beyond the chunk's mass: then its last token with any mass is taken.
    let mut choice = 0;
    for (i, x) in chunk.iter().enumerate() {
        let mass = (f64::from(x / temperature) - softmax.max).exp();
        if mass > 0.0 {
            choice = i;
            if rest < mass {
                break;
            }
        }
        rest -= mass;
    }
    last * VOCAB_CHUNK + choice
}

/// (token, e^{z - max}) of those that the filters keep, the most likely first. `softmax` is the whole row's.
fn candidates(logits: &[f32], temperature: f32, filters: Filters, softmax: &Softmax) -> Vec<(usize, f64)> {
    let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mass = |i: usize| (f64::from(logits[i] / temperature) - softmax.max).exp();
    let floor = floor(logits.len(), temperature, filters, softmax);
    let mut ids: Vec<usize> = (0..logits.len()).filter(|i| f64::from(logits[*i]) >= floor).collect();
    if filters.top_k > 0 && filters.top_k < ids.len() {
        ids.select_nth_unstable_by(filters.top_k - 1, order);
        ids.truncate(filters.top_k);
    }
    let enough = match (filters.top_p < 1.0, filters.top_k) {
        (false, _) => f64::INFINITY,
        (true, 0) => f64::from(filters.top_p) * softmax.sum,
        (true, _) => {
            ids.sort_unstable();
            f64::from(filters.top_p) * ids.iter().map(|i| mass(*i)).sum::<f64>()
        }
    };
    let mut kept = Vec::new();
    let mut sum = 0.0;
    // Sorted piece by piece, each larger than the one before: top-p seldom needs more than the first.
    let (mut sorted, mut piece) = (0, if enough.is_finite() { 64 } else { ids.len() });
    while sorted < ids.len() {
        let rest = &mut ids[sorted..];
        let n = piece.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable_by(n, order);
        }
        rest[..n].sort_unstable_by(order);
        for &id in &rest[..n] {
            let e = mass(id);
            if filters.min_p > 0.0 && e < f64::from(filters.min_p) {
                return kept;
            }
            kept.push((id, e));
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

fn draw_from(candidates: &[(usize, f64)], u: f64) -> usize {
    let mut rest = u * candidates.iter().map(|c| c.1).sum::<f64>();
    for (id, mass) in candidates {
        if rest < *mass {
            return *id;
        }
        rest -= mass;
    }
    candidates.last().map_or(0, |c| c.0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
