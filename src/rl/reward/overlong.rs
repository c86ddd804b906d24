//! DAPO's soft overlong punishment (Yu et al. 2025, equation 13): long answers lose reward before they are cut.

/// What is added to the reward of an answer of `tokens`: 0 up to `longest - buffer`, then a straight line down to -1 at `longest`. A buffer
/// of 0 punishes nothing.
pub fn soft_overlong(tokens: usize, longest: usize, buffer: usize) -> f64 {
    let over = (tokens + buffer).saturating_sub(longest);
    if buffer == 0 { 0.0 } else { -(over.min(buffer) as f64 / buffer as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn falls_in_a_straight_line_over_the_buffer() {
        let found: Vec<f64> = [0, 80, 81, 90, 100, 120].iter().map(|&n| soft_overlong(n, 100, 20)).collect();
        assert_eq!(found, [0.0, 0.0, -0.05, -0.5, -1.0, -1.0]);
        assert_eq!(soft_overlong(100, 100, 0), 0.0);
        // A buffer longer than the answers: the line begins before the first token.
        assert_eq!(soft_overlong(5, 10, 20), -0.75);
    }
}
