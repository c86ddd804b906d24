//! Supervised fine-tuning: the mean negative log-likelihood over all targets of the optimizer's batch.

use super::{Advantage, BatchStats, Metrics, Objective, Output, Sample};

/// `L = -1/N sum_t logprob_t`, N being the number of targets in the whole optimizer batch (not the mean of the sequences' means: a token
/// weighs the same in a short sequence as in a long one). Without any target the loss is 0.
#[derive(Clone, Debug, Default)]
pub struct Sft {
    batch: BatchStats,
}

impl Objective for Sft {
    fn prepare(&mut self, batch: BatchStats) {
        self.batch = batch;
    }

    fn evaluate(&self, samples: &[Sample<'_>]) -> Output {
        let weight = 1.0 / self.batch.tokens.max(1) as f64;
        let mut out = Output::default();
        for s in samples {
            let sum: f64 = s.logprob.iter().map(|&x| f64::from(x)).sum();
            out.metrics.add(&Metrics {
                loss: -sum * weight,
                tokens: s.logprob.len(),
                entropy_sum: s.entropy.iter().map(|&x| f64::from(x)).sum(),
                ..Metrics::default()
            });
            out.d_logprob.resize(out.d_logprob.len() + s.logprob.len(), -weight as f32);
        }
        out
    }

    fn has_gradient(&self, _advantages: &[Advantage<'_>]) -> bool {
        true
    }

    fn needs_reference(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_mean_over_all_targets_of_the_batch() {
        let (a, b) = ([-1.0f32, -2.0, -3.0], [-10.0f32]);
        let mut sft = Sft::default();
        sft.prepare(BatchStats::count([3, 0, 1]));
        let whole = sft.evaluate(&[Sample::supervised(&a, &[0.5; 3]), Sample::supervised(&[], &[]), Sample::supervised(&b, &[0.1])]);
        assert_eq!(whole.metrics.loss, 4.0);
        assert_eq!(whole.d_logprob, [-0.25; 4]);
        // Tree by tree gives the same.
        let mut parts = sft.evaluate(&[Sample::supervised(&a, &[0.5; 3])]).metrics;
        parts.add(&sft.evaluate(&[Sample::supervised(&b, &[0.1])]).metrics);
        assert_eq!(parts, whole.metrics);
    }

    #[test]
    fn a_batch_without_targets_has_a_loss_of_zero() {
        let mut sft = Sft::default();
        sft.prepare(BatchStats::count([0]));
        assert_eq!(sft.evaluate(&[Sample::supervised(&[], &[])]).metrics.loss, 0.0);
    }
}
