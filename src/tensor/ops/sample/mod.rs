//! Choosing the next token from a row of logits: greedy, or by temperature with top-k, top-p and min-p.
//!
//! The filters go in transformers' order: temperature, top-k, top-p (over what top-k left), min-p. One uniform number a token decides, by
//! inversion of the cumulative distribution: over the vocabulary's order where nothing is filtered, else over the candidates from the most
//! to the least likely (ties: the smaller id first).

pub mod cuda;

use crate::tensor::ops::token_logprob::{ChunkSums, Softmax, chunk_sums};
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
    let pick = Pick::greedy(sums);
    pick.finish(pick.chunk_of(logits), 1.0)
}

/// A token drawn at `temperature` > 0 with the uniform number `u` in [0, 1).
pub fn draw(logits: &[f32], temperature: f32, filters: Filters, u: f64) -> Choice {
    draw_by(logits, &sums(logits, temperature), temperature, filters, u)
}

/// The same by the row's chunk sums at this temperature, which a device may have formed.
pub fn draw_by(logits: &[f32], sums: &[ChunkSums], temperature: f32, filters: Filters, u: f64) -> Choice {
    if filters.is_none() {
        let pick = Pick::draw(sums, u);
        return pick.finish(pick.chunk_of(logits), temperature);
    }
    let row = (0..).zip(logits.iter().copied());
    draw_filtered(row, logits.len(), sums, temperature, filters, u)
}

/// A token and its logit.
type Scored = (u32, f32);

/// A token drawn of what the filters keep. `scored` are a row's tokens in the vocabulary's order; those that no filter can keep ([`floor`]), or
/// that are not among the `top_k` likeliest, may be missing.
fn draw_filtered(
    scored: impl Iterator<Item = Scored>,
    vocab: usize,
    sums: &[ChunkSums],
    temperature: f32,
    filters: Filters,
    u: f64,
) -> Choice {
    let softmax = merged(sums);
    let floor = floor(vocab, temperature, filters, &softmax);
    let possible = scored.filter(|(_, logit)| f64::from(*logit) >= floor).collect();
    let (id, logit) = draw_from(&candidates(possible, temperature, filters, &softmax), u);
    Choice { id, logprob: softmax.logprob(logit / temperature) }
}

/// The sums of a row's chunks at a temperature.
pub fn sums(logits: &[f32], temperature: f32) -> Vec<ChunkSums> {
    logits.chunks(VOCAB_CHUNK).map(|c| chunk_sums(c, temperature)).collect()
}

fn merged(sums: &[ChunkSums]) -> Softmax {
    sums.iter().fold(Softmax::EMPTY, |s, c| s.merge(*c))
}

/// A choice without filters takes two steps: the chunk, which the chunk sums tell, then the token in it. So of logits that lie on a device a
/// single chunk has to come to the processor.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    /// The chunk of the vocabulary.
    pub chunk: usize,
    softmax: Softmax,
    /// What a drawn number still has to pass in the chunk; none: its most likely token is taken.
    rest: Option<f64>,
}

impl Pick {
    /// The chunk of the most likely token (the first of equals), by sums at temperature 1.
    pub fn greedy(sums: &[ChunkSums]) -> Self {
        let mut chunk = 0;
        for (i, s) in sums.iter().enumerate() {
            if s.max > sums[chunk].max {
                chunk = i;
            }
        }
        Self { chunk, softmax: merged(sums), rest: None }
    }

    /// The chunk whose cumulative mass passes the uniform number `u` in [0, 1).
    pub fn draw(sums: &[ChunkSums], u: f64) -> Self {
        let softmax = merged(sums);
        let mut rest = u * softmax.sum;
        let mut taken = Self { chunk: 0, softmax, rest: Some(rest) };
        for (chunk, s) in sums.iter().enumerate() {
            let mass = f64::from(s.sum) * (f64::from(s.max) - softmax.max).exp();
            if mass > 0.0 {
                (taken.chunk, taken.rest) = (chunk, Some(rest));
            }
            if rest < mass {
                break;
            }
            rest -= mass;
        }
        taken
    }

    /// The picked chunk of a row.
    pub fn chunk_of<'a>(&self, logits: &'a [f32]) -> &'a [f32] {
        &logits[self.chunk * VOCAB_CHUNK..(self.chunk * VOCAB_CHUNK + VOCAB_CHUNK).min(logits.len())]
    }

    /// The token, given the logits of the picked chunk.
    pub fn finish(&self, chunk: &[f32], temperature: f32) -> Choice {
        let i = match self.rest {
            None => likeliest_of(chunk),
            Some(rest) => draw_from_chunk(chunk, temperature, self.softmax.max, rest),
        };
        Choice { id: (self.chunk * VOCAB_CHUNK + i) as u32, logprob: self.softmax.logprob(chunk[i] / temperature) }
    }
}

fn likeliest_of(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x > logits[best] {
            best = i;
        }
    }
    best
}

/// The token whose cumulative mass passes `rest`. That may be a rounding error beyond the chunk's mass: then its last token with any is taken.
fn draw_from_chunk(chunk: &[f32], temperature: f32, max: f64, mut rest: f64) -> usize {
    let mut choice = 0;
    for (i, x) in chunk.iter().enumerate() {
        let mass = (f64::from(x / temperature) - max).exp();
        if mass > 0.0 {
            choice = i;
            if rest < mass {
                break;
            }
        }
        rest -= mass;
    }
    choice
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
    let softmax = merged(sums);
    ids.into_iter().map(|id| Choice { id, logprob: softmax.logprob(logits[id as usize] / temperature) }).collect()
}

/// Those that the filters keep, with e^{z - max}, the most likely first. `softmax` is the whole row's.
fn candidates(mut possible: Vec<Scored>, temperature: f32, filters: Filters, softmax: &Softmax) -> Vec<(Scored, f64)> {
    let order = |a: &Scored, b: &Scored| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mass = |logit: f32| (f64::from(logit / temperature) - softmax.max).exp();
    if filters.top_k > 0 && filters.top_k < possible.len() {
        possible.select_nth_unstable_by(filters.top_k - 1, order);
        possible.truncate(filters.top_k);
    }
    let enough = match (filters.top_p < 1.0, filters.top_k) {
        (false, _) => f64::INFINITY,
        (true, 0) => f64::from(filters.top_p) * softmax.sum,
        (true, _) => {
            possible.sort_unstable_by_key(|(id, _)| *id);
            f64::from(filters.top_p) * possible.iter().map(|(_, logit)| mass(*logit)).sum::<f64>()
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
        for &scored in &rest[..n] {
            let e = mass(scored.1);
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
    let mut rest = u * candidates.iter().map(|c| c.1).sum::<f64>();
    for (scored, mass) in candidates {
        if rest < *mass {
            return *scored;
        }
        rest -= mass;
    }
    candidates.last().map_or((0, f32::NAN), |c| c.0)
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
