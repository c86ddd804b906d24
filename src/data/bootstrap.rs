//! Bootstrap intervals (Efron, "Bootstrap methods: another look at the jackknife", 1979), percentile method.

use std::collections::BTreeMap;

use serde::Serialize;

use super::random::Keyed;

/// A mean and the interval that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean of the values as they are.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// How intervals are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// How many resamples.
    pub resamples: usize,
    /// The share of resamples inside the interval.
    pub level: f64,
    /// The seed: equal values and seeds give equal intervals.
    pub seed: u64,
}

impl Default for Bootstrap {
    /// 95 % intervals from 2,000 resamples.
    fn default() -> Self {
        Self { resamples: 2000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The mean of `values` (not a number for none) with its interval. With `clusters` (one name a value), whole clusters are drawn
    /// with replacement and the mean is over all their values: the interval then speaks of other clusters too. Fewer than two clusters
    /// can say nothing of that, and are drawn value by value.
    pub fn mean(&self, values: &[f64], clusters: Option<&[&str]>) -> Interval {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        if values.is_empty() {
            return Interval { mean, low: mean, high: mean };
        }
        // A unit that is drawn whole, by its sum and its count.
        let mut units: Vec<(f64, usize)> = values.iter().map(|&v| (v, 1)).collect();
        if let Some(names) = clusters {
            let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
            for (&v, &name) in values.iter().zip(names) {
                let entry = sums.entry(name).or_default();
                *entry = (entry.0 + v, entry.1 + 1);
            }
            if sums.len() > 1 {
                units = sums.into_values().collect();
            }
        }
        let mut random = Keyed::new(self.seed, &["bootstrap"]);
        let mut means: Vec<f64> = (0..self.resamples.max(1))
            .map(|_| {
                let (sum, n) = (0..units.len()).fold((0.0, 0), |(sum, n), _| {
                    let (s, k) = units[random.below(units.len())];
                    (sum + s, n + k)
                });
                sum / n as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Interval { mean, low: quantile(&means, tail), high: quantile(&means, 1.0 - tail) }
    }

    /// The interval of the mean difference `after[i] - before[i]` of paired values.
    ///
    /// # Panics
    ///
    /// If the two are not of one length.
    pub fn paired(&self, before: &[f64], after: &[f64], clusters: Option<&[&str]>) -> Interval {
        assert_eq!(before.len(), after.len(), "paired values come in pairs");
        let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        self.mean(&differences, clusters)
    }
}

/// The quantile of sorted values, interpolated between the two around it.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_what_the_normal_law_says() {
        // 400 values, half 0 and half 1: the standard error of the mean is 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let i = Bootstrap { resamples: 10_000, ..Bootstrap::default() }.mean(&values, None);
        assert_eq!(i.mean, 0.5);
        assert!((i.low - (0.5 - 0.049)).abs() < 0.004 && (i.high - (0.5 + 0.049)).abs() < 0.004, "{i:?}");
    }

    #[test]
    fn clusters_widen_and_few_values_stay_honest() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i / 50)).collect();
        let names: Vec<String> = (0..100).map(|i| format!("r{}", i / 25)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let b = Bootstrap::default();
        let (plain, clustered) = (b.mean(&values, None), b.mean(&values, Some(&names)));
        assert!(clustered.high - clustered.low > 3.0 * (plain.high - plain.low), "{plain:?} {clustered:?}");
        assert_eq!(b.mean(&values, Some(&["one"; 100])), plain, "one cluster says nothing of others");
        assert!(b.mean(&[], None).mean.is_nan());
        assert_eq!(b.mean(&[0.3], None), Interval { mean: 0.3, low: 0.3, high: 0.3 });
    }

    #[test]
    fn pairs_cancel_what_they_share() {
        let before: Vec<f64> = (0..200).map(|i| f64::from(i % 10) / 10.0).collect();
        let after: Vec<f64> = before.iter().map(|v| v + 0.01).collect();
        let i = Bootstrap::default().paired(&before, &after, None);
        assert!(i.low > 0.0 && (i.mean - 0.01).abs() < 1e-9, "{i:?}");
    }
}
