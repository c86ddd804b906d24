//! Estimates of KL(policy || reference) from samples of the policy (Schulman 2020, "Approximating KL divergence").

use super::LOG_RATIO_LIMIT;

/// Which estimate. With `d = ref - new`, the log-probabilities' difference at a sampled token:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KlEstimator {
    /// `-d`: unbiased, of either sign. In a loss its derivative is 1 for every token, 0 in the mean; it is meant for rewards.
    K1,
    /// `d^2 / 2`: biased, of low variance; its derivative in a loss is that of the KL in the mean.
    K2,
    /// `exp(d) - d - 1`: unbiased, never negative.
    #[default]
    K3,
}

impl KlEstimator {
    /// The estimate of one token, and its derivative by the new log-probability. Differences beyond [`LOG_RATIO_LIMIT`] are held, with a
    /// derivative of zero.
    pub fn estimate(self, logprob: f32, ref_logprob: f32) -> (f64, f64) {
        if self == KlEstimator::K3 {
            return k3(logprob, ref_logprob);
        }
        let d = f64::from(ref_logprob) - f64::from(logprob);
        let held = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
        let (value, slope) = if self == KlEstimator::K1 { (-held, 1.0) } else { (0.5 * held * held, -held) };
        (value, if held == d { slope } else { 0.0 })
    }
}

/// Schulman's k3, `exp(d) - d - 1` with `d = ref - new`, and its derivative by the new log-probability, `1 - exp(d)`.
pub fn k3(logprob: f32, ref_logprob: f32) -> (f64, f64) {
    let d = f64::from(ref_logprob) - f64::from(logprob);
    let held = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    // exp_m1 keeps the digits where d is small, which is where the estimate lives.
    let value = held.exp_m1() - held;
    (value, if held == d { -held.exp_m1() } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIRS: [(f32, f32); 5] = [(-1.0, -1.0001), (-3.0, -0.5), (-0.1, -9.0), (-1e4, -1.0), (-1.0, -1e4)];

    #[test]
    fn estimates_are_zero_at_equality_and_k2_and_k3_never_negative() {
        for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
            assert_eq!(estimator.estimate(-1.25, -1.25).0, 0.0);
            for (new, reference) in PAIRS {
                let (value, slope) = estimator.estimate(new, reference);
                assert!(value.is_finite() && slope.is_finite(), "{estimator:?} {new} {reference}: {value} {slope}");
                assert!(value >= 0.0 || estimator == KlEstimator::K1, "{estimator:?} {new} {reference}: {value}");
            }
        }
        assert_eq!(k3(-1.25, -1.25), (0.0, 0.0));
        assert_eq!(KlEstimator::K1.estimate(-1.0, -2.5), (1.5, 1.0));
        assert_eq!(KlEstimator::K2.estimate(-1.0, -3.0), (2.0, 2.0));
    }
}
