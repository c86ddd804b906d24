//! A reward for every token of an answer.

/// `r_t = -kl_coef kl_t`, and the answer's score on top at the last token (Stiennon et al. 2020; TRL, verl and OpenRLHF alike). `kl` holds
/// an estimate a token.
pub fn token_rewards(score: f64, kl: &[f64], kl_coef: f64) -> Vec<f64> {
    let mut rewards: Vec<f64> = kl.iter().map(|k| -kl_coef * k).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    rewards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_stands_at_the_last_token() {
        assert_eq!(token_rewards(1.0, &[0.5, -0.25], 2.0), [-1.0, 1.5]);
        assert_eq!(token_rewards(1.0, &[0.0], 2.0), [1.0]);
        assert!(token_rewards(1.0, &[], 2.0).is_empty());
    }
}
