//! Whitening: advantages of mean 0 and deviation 1 over all tokens of a batch.

use std::collections::{BTreeMap, BTreeSet};

/// How a batch's advantages are whitened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Whitening {
    /// Not at all.
    None,
    /// `(a - mean) / sqrt(var + 1e-8)` with divisor n - 1 in the variance, as TRL and verl have it.
    Sample,
    /// `(a - mean) / sqrt(max(var, 1e-8))` with divisor n, as OpenRLHF has it.
    #[default]
    Population,
}

/// Whitens the advantages of all tokens of a batch together. Those of a batch of fewer than two tokens become 0 ([`Whitening::None`]
/// leaves all as they are). A number that is not finite makes all of them NaN, which the trainer reports.
pub fn whiten(advantages: &mut [Vec<f64>], whitening: Whitening) {
    if whitening == Whitening::None {
        return;
    }
    let mean = mean(advantages.iter());
    scale_by_deviation(advantages, |_| mean, whitening);
}

/// [`whiten`] with a mean for each kind of answer (`kinds`, one an answer) in place of the batch's. The deviation is that of the whole batch
/// about these means: a kind whose answers all earn the same stays near zero, where a deviation of its own would make its noise as loud as
/// what other kinds learn from.
///
/// # Panics
/// If there are fewer kinds than answers.
pub fn whiten_within<K: Ord + Copy>(advantages: &mut [Vec<f64>], kinds: &[K], whitening: Whitening) {
    if whitening == Whitening::None {
        return;
    }
    let of = |kind: K| mean(advantages.iter().zip(kinds).filter(|(_, k)| **k == kind).map(|(a, _)| a));
    let means: BTreeMap<K, f64> = kinds.iter().collect::<BTreeSet<_>>().into_iter().map(|&kind| (kind, of(kind))).collect();
    scale_by_deviation(advantages, |i| means[&kinds[i]], whitening);
}

/// The mean over tokens; 0 of none.
fn mean<'a>(advantages: impl Iterator<Item = &'a Vec<f64>> + Clone) -> f64 {
    let n: usize = advantages.clone().map(Vec::len).sum();
    advantages.flatten().sum::<f64>() / n.max(1) as f64
}

/// Takes off answer i's mean, and divides by the deviation of what is left.
fn scale_by_deviation(advantages: &mut [Vec<f64>], mean_of: impl Fn(usize) -> f64, whitening: Whitening) {
    for (i, answer) in advantages.iter_mut().enumerate() {
        answer.iter_mut().for_each(|a| *a -= mean_of(i));
    }
    let n: usize = advantages.iter().map(Vec::len).sum();
    let squares: f64 = advantages.iter().flatten().map(|a| a.powi(2)).sum();
    let scale = match whitening {
        Whitening::Sample => 1.0 / (squares / (n.max(2) - 1) as f64 + 1e-8).sqrt(),
        _ => 1.0 / (squares / n.max(1) as f64).max(1e-8).sqrt(),
    };
    // f64::max drops a NaN: it is put back.
    let scale = if squares.is_nan() { f64::NAN } else { scale };
    advantages.iter_mut().flatten().for_each(|a| *a *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_vanish_and_deviations_become_one() {
        for (whitening, divisor) in [(Whitening::Sample, 3.0), (Whitening::Population, 4.0)] {
            let mut a = vec![vec![1.0, 2.0], vec![], vec![4.0, -5.0]];
            whiten(&mut a, whitening);
            let all: Vec<f64> = a.concat();
            assert!(all.iter().sum::<f64>().abs() < 1e-12);
            assert!((all.iter().map(|x| x * x).sum::<f64>() / divisor - 1.0).abs() < 1e-8);
        }
    }

    #[test]
    fn each_kind_has_its_mean_and_all_share_a_deviation() {
        let mut a = vec![vec![11.0, 9.0], vec![1.0], vec![1.0, 1.0]];
        whiten_within(&mut a, &["file", "edit", "edit"], Whitening::Population);
        let expected = 1.0 / 0.4f64.sqrt();
        assert_eq!(a, [vec![expected, -expected], vec![0.0], vec![0.0; 2]]);
        let (mut one, mut all) = (vec![vec![1.0, 2.0], vec![4.0]], vec![vec![1.0, 2.0], vec![4.0]]);
        whiten_within(&mut one, &[0, 0], Whitening::Sample);
        whiten(&mut all, Whitening::Sample);
        assert_eq!(one, all);
        let mut kept = vec![vec![3.0]];
        whiten_within(&mut kept, &[0], Whitening::None);
        assert_eq!(kept, [[3.0]]);
    }

    #[test]
    fn edges() {
        let mut one = vec![vec![3.0]];
        whiten(&mut one, Whitening::Sample);
        assert_eq!(one, [[0.0]]);
        whiten(&mut [], Whitening::Population);
        let mut kept = vec![vec![3.0, 1.0]];
        whiten(&mut kept, Whitening::None);
        assert_eq!(kept, [[3.0, 1.0]]);
        let mut bad = vec![vec![f64::INFINITY, 1.0]];
        whiten(&mut bad, Whitening::Population);
        assert!(bad[0].iter().all(|a| a.is_nan()));
    }
}
