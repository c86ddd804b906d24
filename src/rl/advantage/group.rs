//! GRPO's advantage: how much better an answer was than the group's others.

/// What a group's deviations are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// The sample standard deviation (divisor n - 1, Bessel's correction), as TRL, verl and OpenRLHF have it.
    #[default]
    Sample,
    /// The population standard deviation (divisor n).
    Population,
    /// Nothing: the deviation itself (Dr. GRPO, Liu et al. 2025: dividing by the deviation weighs easy and hard prompts up).
    None,
}

/// `A_i = (r_i - mean) / (std + eps)` over the rewards of one prompt's answers (Shao et al. 2024), f64 throughout and rounded once.
///
/// A group whose rewards are all equal, or of one answer, has advantages of exactly zero. A reward that is not finite makes the whole group
/// NaN, which the trainer reports and skips.
pub fn group_normalised(rewards: &[f64], scale: Scale, eps: f64) -> Vec<f32> {
    let n = rewards.len();
    // Equal rewards need no arithmetic: their rounded mean may differ from them in the last bit, which 1/eps would blow up.
    if rewards.windows(2).all(|w| w[0] == w[1]) && rewards.iter().all(|r| r.is_finite()) {
        return vec![0.0; n];
    }
    let mean = rewards.iter().sum::<f64>() / n as f64;
    let squares: f64 = rewards.iter().map(|r| (r - mean).powi(2)).sum();
    let divisor = match scale {
        Scale::Sample => (squares / (n.max(2) - 1) as f64).sqrt() + eps,
        Scale::Population => (squares / n as f64).sqrt() + eps,
        Scale::None => 1.0,
    };
    rewards.iter().map(|r| ((r - mean) / divisor) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_by_the_sample_deviation() {
        // mean 0.25, squares 0.75, sample std 0.5.
        let a = group_normalised(&[1.0, 0.0, 0.0, 0.0], Scale::Sample, 1e-4);
        let expected = [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001];
        for (a, e) in a.iter().zip(expected) {
            assert!((f64::from(*a) - e).abs() < 1e-6, "{a} {e}");
        }
        let p = group_normalised(&[1.0, 0.0, 0.0, 0.0], Scale::Population, 0.0);
        assert!((f64::from(p[0]) - 0.75 / 0.1875f64.sqrt()).abs() < 1e-6);
        assert_eq!(group_normalised(&[1.0, 0.0, 0.0, 0.0], Scale::None, 1e-4), [0.75, -0.25, -0.25, -0.25]);
    }

    #[test]
    fn equal_rewards_and_single_answers_have_none() {
        assert_eq!(group_normalised(&[0.1; 3], Scale::Sample, 1e-4), [0.0; 3]);
        assert_eq!(group_normalised(&[0.7], Scale::Sample, 1e-4), [0.0]);
        assert_eq!(group_normalised(&[], Scale::Sample, 1e-4), [0f32; 0]);
        assert!(group_normalised(&[f64::NAN], Scale::Sample, 1e-4)[0].is_nan());
    }
}
