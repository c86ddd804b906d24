//! RLOO's advantage (Ahmadian et al. 2024, "Back to Basics").

/// `A_i = r_i - mean of the other answers' rewards`, which is `n / (n - 1) (r_i - mean)`, over the rewards of one prompt's answers.
///
/// Equal rewards give exactly zero. An answer without others has no baseline: its advantage is its reward, as in verl.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let n = rewards.len();
    if n < 2 {
        return rewards.to_vec();
    }
    // The mean of equal numbers may be rounded; their difference is not.
    if rewards.windows(2).all(|w| w[0] == w[1]) {
        return vec![0.0; n];
    }
    let mean = rewards.iter().sum::<f64>() / n as f64;
    rewards.iter().map(|r| (r - mean) * n as f64 / (n - 1) as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_is_the_mean_of_the_others() {
        assert_eq!(leave_one_out(&[1.0, 0.0, 0.5]), [0.75, -0.75, 0.0]);
        assert_eq!(leave_one_out(&[0.1; 3]), [0.0; 3]);
        assert_eq!(leave_one_out(&[0.7]), [0.7]);
        assert!(leave_one_out(&[]).is_empty());
    }
}
