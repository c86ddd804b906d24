//! Choosing a token: which ones the filters keep, which one a uniform number takes, and what log-probability is recorded.

use proptest::prelude::*;
use sorft_native::tensor::ops::sample::{Choice, Filters, draw, greedy};
use sorft_native::tensor::ops::token_logprob::softmax_of_row;
use sorft_native::tensor::philox::Philox;

const NONE: Filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };

/// Probabilities of softmax(logits / T), in f64.
fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let z: Vec<f64> = logits.iter().map(|x| f64::from(x / temperature)).collect();
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| (z - max).exp()).sum();
    z.iter().map(|z| (z - max).exp() / sum).collect()
}

/// Tokens from the most to the least likely, the smaller id first among equals.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).expect("finite logits").then(a.cmp(b)));
    order
}

/// Whether `u` stands in the interval of `id` when the tokens of `order` share [0, 1) by `p`: inversion, up to rounding.
fn inverts(order: &[usize], p: &[f64], u: f64, id: usize, slack: f64) -> bool {
    let total: f64 = order.iter().map(|i| p[*i]).sum();
    let before: f64 = order.iter().take_while(|i| **i != id).map(|i| p[*i]).sum();
    order.contains(&id) && before / total - slack <= u && u <= (before + p[id]) / total + slack
}

/// Logits on a coarse grid, so that ties are frequent, or spread finely.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let coarse = prop::collection::vec(-8i32..8, 1..40).prop_map(|x| x.into_iter().map(|x| x as f32 * 0.5).collect());
    let fine = (1usize..5000, any::<u64>(), 0.1f32..6.0).prop_map(|(n, seed, scale)| {
        let random = Philox::new(seed, 1);
        (0..n).map(|i| random.normal(i as u64, 0) as f32 * scale).collect()
    });
    prop_oneof![coarse, fine]
}

fn filters() -> impl Strategy<Value = Filters> {
    let top_k = prop_oneof![Just(0usize), 1usize..12, Just(100_000)];
    let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0];
    let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0];
    (top_k, top_p, min_p).prop_map(|(top_k, top_p, min_p)| Filters { top_k, top_p, min_p })
}

/// How many of the ranked tokens the filters keep: (surely, at most); they differ where a threshold is met up to rounding.
fn kept(p: &[f64], order: &[usize], f: Filters) -> (usize, usize) {
    let k = if f.top_k == 0 { order.len() } else { f.top_k.min(order.len()) };
    let total: f64 = order[..k].iter().map(|i| p[*i]).sum();
    let bounds = [1e-6, -1e-6].map(|slack: f64| {
        let mut sum = 0.0;
        let mut n = 0;
        for id in &order[..k] {
            if f.top_p < 1.0 && n > 0 && sum >= (f64::from(f.top_p) - slack) * total {
                break;
            }
            if f.min_p > 0.0 && p[*id] < (f64::from(f.min_p) + slack) * p[order[0]] && n > 0 {
                break;
            }
            sum += p[*id];
            n += 1;
        }
        n
    });
    (bounds[0], bounds[1])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn unfiltered_draws_invert_the_distribution(logits in logits(), temperature in 0.2f32..3.0, u in 0.0f64..1.0) {
        let Choice { id, logprob } = draw(&logits, temperature, NONE, u);
        let p = probabilities(&logits, temperature);
        let order: Vec<usize> = (0..logits.len()).collect();
        // A chunk's mass is an f32 sum, its tokens' are f64.
        prop_assert!(inverts(&order, &p, u, id as usize, 1e-6), "token {id}");
        prop_assert!((f64::from(logprob) - p[id as usize].ln()).abs() <= 2e-6 * p[id as usize].ln().abs().max(1.0));
    }

    #[test]
    fn filtered_draws_invert_what_is_kept(logits in logits(), filters in filters(), temperature in 0.2f32..3.0, u in 0.0f64..1.0) {
        let Choice { id, logprob } = draw(&logits, temperature, filters, u);
        // The record is of the whole distribution, by the head's own function.
        let whole = softmax_of_row(&logits, temperature).logprob(logits[id as usize] / temperature);
        prop_assert_eq!(whole.to_bits(), logprob.to_bits());
        let p = probabilities(&logits, temperature);
        if filters.is_none() {
            return Ok(());
        }
        let order = ranked(&logits);
        let (surely, at_most) = kept(&p, &order, filters);
        prop_assert!(surely >= 1);
        let fits = (surely..=at_most).any(|n| inverts(&order[..n], &p, u, id as usize, 1e-9));
        prop_assert!(fits, "token {} of the {}..={} likeliest {:?}", id, surely, at_most, &order[..at_most]);
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest(logits in logits()) {
        let c = greedy(&logits);
        prop_assert_eq!(c.id as usize, ranked(&logits)[0]);
        prop_assert_eq!(c.logprob.to_bits(), softmax_of_row(&logits, 1.0).logprob(logits[c.id as usize]).to_bits());
        let top_1 = draw(&logits, 1.0, Filters { top_k: 1, ..NONE }, 0.999);
        prop_assert_eq!(top_1.id, c.id);
        let sharp = draw(&logits, 1.0, Filters { min_p: 1.0, ..NONE }, 0.0);
        prop_assert_eq!(logits[sharp.id as usize], logits[c.id as usize]);
    }
}

/// The ends of [0, 1), where rounding could step over the last possible token.
#[test]
fn the_ends_of_the_interval_take_possible_tokens() {
    let mut logits = vec![-1e4f32; 5000];
    for at in [10, 2100, 4500] {
        logits[at] = 1.0;
    }
    for filters in [NONE, Filters { top_k: 50, ..NONE }, Filters { top_p: 0.99, ..NONE }, Filters { min_p: 0.1, ..NONE }] {
        assert_eq!(draw(&logits, 1.0, filters, 0.0).id, 10, "{filters:?}");
        assert_eq!(draw(&logits, 1.0, filters, 1.0 - f64::EPSILON / 2.0).id, 4500, "{filters:?}");
    }
    // 1.0 is not in the interval, but must not fall through to a token without mass (or to the first with any).
    assert_eq!(draw(&logits, 1.0, NONE, 1.0).id, 4500);
}

/// Filters that keep everything take the same probability for every token as no filter.
#[test]
fn filters_that_keep_all_change_no_frequency() {
    let logits: Vec<f32> = (0..7).map(|i| (i * 5 % 7) as f32 * 0.4).collect();
    let count = |f: Filters| {
        let mut n = [0i32; 7];
        for i in 0..10_000 {
            n[draw(&logits, 0.9, f, (f64::from(i) + 0.5) * 1e-4).id as usize] += 1;
        }
        n
    };
    let plain = count(NONE);
    for f in [Filters { top_k: 7, ..NONE }, Filters { top_p: 0.999_999, ..NONE }, Filters { min_p: 1e-6, ..NONE }] {
        assert!(plain.iter().zip(count(f)).all(|(a, b)| (a - b).abs() <= 1), "{f:?}");
    }
}
