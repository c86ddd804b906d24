//! Generalised advantage estimation (Schulman et al. 2016).

/// What GAE gives for one answer, a number a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gae {
    /// A_t.
    pub advantages: Vec<f64>,
    /// `A_t + V_t`: what the critic learns.
    pub returns: Vec<f64>,
}

/// ```text
/// delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lambda A_{t+1}        return_t = A_t + V_t
/// ```
///
/// over the token rewards and values of one answer. `V_t` is the value before token t was written; after the last token an answer has
/// ended, and its value is 0 (also where it was cut at its longest, as TRL, verl and OpenRLHF have it).
///
/// # Panics
/// If there is not one value a reward.
pub fn gae(rewards: &[f64], values: &[f32], gamma: f64, lambda: f64) -> Gae {
    assert_eq!(rewards.len(), values.len(), "one value a token");
    let n = rewards.len();
    let mut out = Gae { advantages: vec![0.0; n], returns: vec![0.0; n] };
    let (mut next_advantage, mut next_value) = (0.0, 0.0);
    for t in (0..n).rev() {
        let value = f64::from(values[t]);
        next_advantage = rewards[t] + gamma * next_value - value + gamma * lambda * next_advantage;
        next_value = value;
        out.advantages[t] = next_advantage;
        out.returns[t] = next_advantage + value;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum of the definition, term by term: `A_t = sum_k (gamma lambda)^k delta_{t+k}`.
    fn slow(rewards: &[f64], values: &[f32], gamma: f64, lambda: f64) -> Vec<f64> {
        let n = rewards.len();
        let value = |t: usize| if t < n { f64::from(values[t]) } else { 0.0 };
        let delta = |t: usize| rewards[t] + gamma * value(t + 1) - value(t);
        (0..n).map(|t| (t..n).map(|s| (gamma * lambda).powi((s - t) as i32) * delta(s)).sum()).collect()
    }

    proptest! {
        #[test]
        fn equals_the_sum_of_the_definition(
            tokens in prop::collection::vec((-3.0f64..3.0, -2.0f32..2.0), 0..40),
            gamma in 0.0f64..=1.0,
            lambda in 0.0f64..=1.0,
        ) {
            let (rewards, values): (Vec<f64>, Vec<f32>) = tokens.into_iter().unzip();
            let found = gae(&rewards, &values, gamma, lambda);
            for (i, expected) in slow(&rewards, &values, gamma, lambda).into_iter().enumerate() {
                prop_assert!((found.advantages[i] - expected).abs() <= 1e-9 * expected.abs().max(1.0));
                prop_assert!((found.returns[i] - expected - f64::from(values[i])).abs() <= 1e-9 * expected.abs().max(1.0));
            }
        }
    }

    #[test]
    fn with_lambda_1_the_returns_are_the_rewards_to_go() {
        let g = gae(&[0.5, -1.0, 2.0], &[0.25, 7.0, -3.0], 1.0, 1.0);
        assert_eq!(g.returns, [1.5, 1.0, 2.0]);
    }

    #[test]
    fn with_lambda_0_the_advantage_is_one_step_ahead() {
        let g = gae(&[0.5, 2.0], &[0.25, 1.0], 0.5, 0.0);
        assert_eq!(g.advantages, [0.5 + 0.5 - 0.25, 1.0]);
    }
}
