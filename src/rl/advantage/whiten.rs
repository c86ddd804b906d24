//! Whitening: advantages of mean 0 and deviation 1 over all tokens of a batch.

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
    let n: usize = advantages.iter().map(Vec::len).sum();
    let sum: f64 = advantages.iter().flatten().sum();
    let mean = sum / n.max(1) as f64;
    let squares: f64 = advantages.iter().flatten().map(|a| (a - mean).powi(2)).sum();
    let scale = match whitening {
        Whitening::Sample => 1.0 / (squares / (n.max(2) - 1) as f64 + 1e-8).sqrt(),
        _ => 1.0 / (squares / n.max(1) as f64).max(1e-8).sqrt(),
    };
    // f64::max drops a NaN: it is put back.
    let scale = if squares.is_nan() { f64::NAN } else { scale };
    advantages.iter_mut().flatten().for_each(|a| *a = (*a - mean) * scale);
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
