//! What several samples reach together: the scaling figure of repair (SWE-RL, arXiv 2502.18449, figure 3).

/// For each `k` of `1..=n`, the expected best of `k` values drawn without replacement from the `n` given:
/// `sum_i x_(i) C(i - 1, k - 1) / C(n, k)` over the values in ascending order. For values 0 and 1 with `c` ones this is the unbiased pass@k,
/// `1 - C(n - c, k) / C(n, k)` (Chen et al., arXiv 2107.03374). Empty for no values.
pub fn expected_best(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (1..=n)
        .map(|k| {
            // The share of draws whose largest is the i-th, from the largest down: k / n for i = n, and each next smaller one's by the
            // ratio of C(i - 2, k - 1) to C(i - 1, k - 1).
            let (mut share, mut sum) = (k as f64 / n as f64, 0.0);
            for i in (k..=n).rev() {
                sum += share * sorted[i - 1];
                share *= (i - k) as f64 / (i - 1).max(1) as f64;
            }
            sum
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_ones_give_pass_at_k() {
        let binomial = |n: usize, k: usize| (0..k).fold(1.0, |p, i| p * (n - i) as f64 / (i + 1) as f64);
        for (n, c) in [(1, 1), (5, 0), (5, 2), (6, 6), (10, 1)] {
            let values: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i < c))).collect();
            let curve = expected_best(&values);
            for k in 1..=n {
                let none = if n - c < k { 0.0 } else { binomial(n - c, k) / binomial(n, k) };
                assert!((curve[k - 1] - (1.0 - none)).abs() < 1e-12, "n {n} c {c} k {k}: {}", curve[k - 1]);
            }
        }
        assert!(expected_best(&[]).is_empty());
    }

    #[test]
    fn one_is_the_mean_and_all_the_maximum() {
        let curve = expected_best(&[0.25, 0.75, 0.5]);
        assert!((curve[0] - 0.5).abs() < 1e-12 && curve[2] == 0.75);
        // Pairs: (.25, .75) .75, (.25, .5) .5, (.75, .5) .75.
        assert!((curve[1] - 2.0 / 3.0).abs() < 1e-12);
    }
}
