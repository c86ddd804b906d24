//! The critic's loss: squared error to the returns, clipped around the values that the batch was sampled with (Schulman et al.'s PPO code;
//! TRL, verl and OpenRLHF alike).

use super::BatchStats;

/// What the value loss is told of one sequence; every slice holds one number a target token.
#[derive(Clone, Copy, Debug)]
pub struct ValueSample<'a> {
    /// The critic's values.
    pub value: &'a [f32],
    /// Its values when the batch was sampled.
    pub old_value: &'a [f32],
    /// What they should be.
    pub returns: &'a [f32],
}

/// Sums that become the batch's metrics; those of several trees are added in canonical order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueMetrics {
    /// The share of the batch's loss.
    pub loss: f64,
    /// Target tokens.
    pub tokens: usize,
    /// Tokens whose clipped term was the larger one.
    pub clipped: usize,
}

impl ValueMetrics {
    /// Adds the metrics of the next tree.
    pub fn add(&mut self, next: &ValueMetrics) {
        self.loss += next.loss;
        self.tokens += next.tokens;
        self.clipped += next.clipped;
    }

    /// The part of the tokens that was clipped.
    pub fn clip_fraction(&self) -> f64 {
        super::mean(self.clipped as f64, self.tokens)
    }
}

/// ```text
/// l_t = 1/2 max((V_t - R_t)^2, (held_t - R_t)^2)      held_t = clip(V_t, old_t - clip, old_t + clip)
/// ```
///
/// and the mean over all tokens of the optimizer batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValueLoss {
    /// How far a value may move from the old one before it stops giving gradient; `None`: any distance.
    pub clip: Option<f64>,
    batch: BatchStats,
}

impl ValueLoss {
    /// The loss with this clip, for a batch of these counts.
    pub fn new(clip: Option<f64>, batch: BatchStats) -> Self {
        Self { clip, batch }
    }

    /// The share of the loss of one tree's sequences, and the derivative by each value, in the order of the samples.
    pub fn evaluate(&self, samples: &[ValueSample<'_>]) -> (ValueMetrics, Vec<f32>) {
        let weight = 1.0 / self.batch.tokens.max(1) as f64;
        let mut metrics = ValueMetrics::default();
        let mut slopes = Vec::new();
        for s in samples {
            debug_assert!(s.value.len() == s.old_value.len() && s.value.len() == s.returns.len());
            for ((&value, &old), &target) in s.value.iter().zip(s.old_value).zip(s.returns) {
                let (loss, slope, clipped) = self.token(f64::from(value), f64::from(old), f64::from(target));
                metrics.add(&ValueMetrics { loss: weight * loss, tokens: 1, clipped: usize::from(clipped) });
                slopes.push((weight * slope) as f32);
            }
        }
        (metrics, slopes)
    }

    /// One token's loss, its derivative, and whether the clipped term was the larger one.
    fn token(&self, value: f64, old: f64, target: f64) -> (f64, f64, bool) {
        let error = value - target;
        let held = self.clip.map_or(value, |c| value.clamp(old - c, old + c));
        let clipped_error = held - target;
        if clipped_error.powi(2) > error.powi(2) {
            return (0.5 * clipped_error.powi(2), 0.0, true);
        }
        (0.5 * error.powi(2), error, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loss(clip: Option<f64>, tokens: usize) -> ValueLoss {
        ValueLoss::new(clip, BatchStats { sequences: 1, tokens })
    }

    #[test]
    fn clipping_stops_a_value_that_runs_ahead() {
        let at = |v: f32| loss(Some(0.2), 1).evaluate(&[ValueSample { value: &[v], old_value: &[0.0], returns: &[1.0] }]);
        // Moved by 0.5 towards the return: held at 0.2, whose error is larger.
        let (m, slope) = at(0.5);
        assert!((m.loss - 0.32).abs() < 1e-12 && m.clipped == 1);
        assert_eq!(slope, [0.0]);
        // Moved away from it: the free error is the larger one.
        let (m, slope) = at(-0.5);
        assert_eq!((m.loss, m.clipped, &slope[..]), (1.125, 0, &[-1.5][..]));
    }

    proptest! {
        #[test]
        fn equals_the_slow_mean_of_maxima(
            tokens in prop::collection::vec((-2.0f32..2.0, -2.0f32..2.0, -2.0f32..2.0), 1..30),
            clip in 0.0f64..1.0,
        ) {
            let n = tokens.len() as f64;
            let (mut expected, mut slopes) = (0.0, Vec::new());
            for &(v, o, r) in &tokens {
                let (v, o, r) = (f64::from(v), f64::from(o), f64::from(r));
                let held = if v > o + clip { o + clip } else if v < o - clip { o - clip } else { v };
                expected += f64::max((v - r) * (v - r), (held - r) * (held - r)) / 2.0 / n;
                slopes.push(if (held - r).abs() > (v - r).abs() { 0.0 } else { (v - r) / n });
            }
            let value: Vec<f32> = tokens.iter().map(|t| t.0).collect();
            let old: Vec<f32> = tokens.iter().map(|t| t.1).collect();
            let returns: Vec<f32> = tokens.iter().map(|t| t.2).collect();
            let sample = ValueSample { value: &value, old_value: &old, returns: &returns };
            let (m, found) = loss(Some(clip), tokens.len()).evaluate(&[sample]);
            prop_assert!((m.loss - expected).abs() <= 1e-12 * expected.max(1.0));
            for (f, e) in found.iter().zip(slopes) {
                prop_assert!((f64::from(*f) - e).abs() <= 1e-6);
            }
        }
    }
}
