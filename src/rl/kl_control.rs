//! The adaptive weight of the KL penalty (Ziegler et al. 2019, section 2.2).

/// The weight after a step: `coef (1 + clip(kl / target - 1, -0.2, 0.2) answers / horizon)`, for a step of this mean KL and number of
/// answers. A KL that is not finite changes nothing.
pub fn adapt(coef: f64, kl: f64, target: f64, horizon: f64, answers: usize) -> f64 {
    let error = (kl / target - 1.0).clamp(-0.2, 0.2);
    if error.is_nan() { coef } else { coef * (1.0 + error * answers as f64 / horizon) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_towards_the_target_and_never_fast() {
        assert_eq!(adapt(0.1, 6.0, 6.0, 1e4, 64), 0.1);
        assert!((adapt(0.1, 6.6, 6.0, 1e4, 100) - 0.1 * 1.001).abs() < 1e-12);
        assert!((adapt(0.1, 1e9, 6.0, 1e4, 1000) - 0.1 * 1.02).abs() < 1e-12);
        assert!((adapt(0.1, -3.0, 6.0, 1e4, 1000) - 0.1 * 0.98).abs() < 1e-12);
        assert_eq!(adapt(0.1, f64::NAN, 6.0, 1e4, 64), 0.1);
    }
}
