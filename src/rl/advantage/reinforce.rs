//! REINFORCE++ (Hu 2025) and its variant with a group baseline.

/// The return of every token: `G_t = r_t + gamma G_{t+1}` over the token rewards of one answer.
pub fn to_go(rewards: &[f64], gamma: f64) -> Vec<f64> {
    let mut out = rewards.to_vec();
    for t in (0..out.len().saturating_sub(1)).rev() {
        out[t] += gamma * out[t + 1];
    }
    out
}

/// `r_i - mean(r)` over the rewards of one prompt's answers: the score that REINFORCE++ with a baseline begins with.
///
/// Equal rewards give exactly zero. An answer without others has no baseline: its score is its reward, as in verl.
pub fn group_baseline(rewards: &[f64]) -> Vec<f64> {
    match rewards {
        [_] => rewards.to_vec(),
        _ if rewards.windows(2).all(|w| w[0] == w[1]) => vec![0.0; rewards.len()],
        _ => {
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            rewards.iter().map(|r| r - mean).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_are_discounted_sums_of_what_follows() {
        assert_eq!(to_go(&[1.0, 2.0, 4.0], 0.5), [3.0, 4.0, 4.0]);
        assert_eq!(to_go(&[3.0], 0.5), [3.0]);
        assert!(to_go(&[], 1.0).is_empty());
    }

    #[test]
    fn a_group_of_equal_rewards_scores_zero() {
        assert_eq!(group_baseline(&[0.1; 3]), [0.0; 3]);
        assert_eq!(group_baseline(&[1.0, 0.0]), [0.5, -0.5]);
        assert_eq!(group_baseline(&[0.25]), [0.25]);
    }
}
