//! The clipped policy loss. With one advantage a sequence it is group relative policy optimisation (Shao et al. 2024, DeepSeekMath), with one
//! a token PPO's (Schulman et al. 2017). Its settings make of it DAPO (token-level aggregation and separate clip bounds, Yu et al. 2025),
//! Dr. GRPO (a constant divisor, Liu et al. 2025) and GSPO (a ratio for each sequence, Zheng et al. 2025). The KL penalty in the loss is
//! optional.

use super::surrogate::{Clip, Surrogate};
use super::{Advantage, BatchStats, KlEstimator, Metrics, Objective, Output, Sample};

/// How the tokens' losses become the batch's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// The mean over all tokens of the optimizer batch (DAPO; TRL's `dapo`, verl's `token-mean`).
    #[default]
    Token,
    /// The mean over sequences of each sequence's token mean (the GRPO paper; TRL's `grpo`). An empty sequence counts, with a mean of 0.
    Sequence,
    /// The sum over all tokens divided by the number of sequences times this constant (Dr. GRPO: the longest answer allowed; TRL's
    /// `dr_grpo`, verl's `seq-mean-token-sum-norm`): the length of an answer does not weigh its tokens.
    Constant(usize),
}

/// What the ratio of the surrogate is taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ratio {
    /// Each token: `r_t = exp(logprob_t - old_logprob_t)`.
    #[default]
    Token,
    /// The sequence: `s = exp(mean_t(logprob_t - old_logprob_t))` for all its tokens (GSPO). With one advantage a token its derivative is
    /// GSPO-token's: each token answers for its own advantage.
    Sequence,
}

/// ```text
/// l_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t) + kl_coef kl_t - entropy_coef H_t
/// r_t = exp(logprob_t - old_logprob_t)      kl_t: KlEstimator
/// ```
///
/// aggregated over tokens ([`Aggregation`]). While a batch is used for a single update the old log-probabilities, recorded while sampling,
/// equal the new ones to the bit, and every ratio is exactly 1.
#[derive(Clone, Debug, Default)]
pub struct Grpo {
    /// Bounds of the ratio.
    pub clip: Clip,
    /// The c > 1 of dual clipping: the loss of a token of negative advantage is held at `c |A|`.
    pub dual_clip: Option<f64>,
    /// Of each token, or of the sequence.
    pub ratio: Ratio,
    /// The KL's estimate, in the loss and in the metrics.
    pub kl: KlEstimator,
    /// Weight of the KL penalty.
    pub kl_coef: f64,
    /// Weight of the entropy bonus.
    pub entropy_coef: f64,
    /// How tokens weigh.
    pub aggregation: Aggregation,
    /// Fixed by [`Objective::prepare`].
    pub batch: BatchStats,
}

impl Grpo {
    /// What one token of a sequence of `length` tokens weighs in the loss.
    fn weight(&self, length: usize) -> f64 {
        match self.aggregation {
            Aggregation::Token => 1.0 / self.batch.tokens.max(1) as f64,
            Aggregation::Sequence => 1.0 / (self.batch.sequences.max(1) as f64 * length.max(1) as f64),
            Aggregation::Constant(longest) => 1.0 / (self.batch.sequences.max(1) as f64 * longest.max(1) as f64),
        }
    }

    fn sample(&self, s: &Sample<'_>, out: &mut Output) {
        let n = s.logprob.len();
        debug_assert!(s.old_logprob.len() == n && s.entropy.len() == n && s.ref_logprob.is_none_or(|r| r.len() == n));
        let weight = self.weight(n);
        let mut m = Metrics { tokens: n, ..Metrics::default() };
        let mut loss = 0.0;
        let sequence = (self.ratio == Ratio::Sequence).then(|| mean_log_ratio(s));
        for i in 0..n {
            let d = sequence.unwrap_or_else(|| f64::from(s.logprob[i]) - f64::from(s.old_logprob[i]));
            let token = Surrogate::new(d, s.advantage.at(i), self.clip, self.dual_clip);
            let (mut value, mut slope) = (token.loss, token.slope);
            if let Some(reference) = s.ref_logprob {
                let (kl, kl_slope) = self.kl.estimate(s.logprob[i], reference[i]);
                value += self.kl_coef * kl;
                slope += self.kl_coef * kl_slope;
                m.kl_sum += kl;
                m.kl_tokens += 1;
            }
            let entropy = f64::from(s.entropy[i]);
            loss += value - self.entropy_coef * entropy;
            m.entropy_sum += entropy;
            m.ratio_max = m.ratio_max.max(token.ratio);
            m.clipped += usize::from(token.clipped);
            out.d_logprob.push((weight * slope) as f32);
        }
        m.loss = weight * loss;
        if let Some(d) = &mut out.d_entropy {
            d.resize(d.len() + n, (-weight * self.entropy_coef) as f32);
        }
        out.metrics.add(&m);
    }
}

/// The mean over a sequence's tokens of `logprob - old_logprob`.
fn mean_log_ratio(s: &Sample<'_>) -> f64 {
    let differences = s.logprob.iter().zip(s.old_logprob).map(|(new, old)| f64::from(*new) - f64::from(*old));
    differences.sum::<f64>() / s.logprob.len().max(1) as f64
}

impl Objective for Grpo {
    fn prepare(&mut self, batch: BatchStats) {
        self.batch = batch;
    }

    fn evaluate(&self, samples: &[Sample<'_>]) -> Output {
        let mut out = Output { d_entropy: (self.entropy_coef != 0.0).then(Vec::new), ..Output::default() };
        for s in samples {
            self.sample(s, &mut out);
        }
        out
    }

    fn has_gradient(&self, advantages: &[Advantage<'_>]) -> bool {
        self.kl_coef != 0.0 || self.entropy_coef != 0.0 || advantages.iter().any(|a| !a.is_zero())
    }

    fn needs_reference(&self) -> bool {
        self.kl_coef != 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample<'a>(new: &'a [f32], old: &'a [f32], entropy: &'a [f32], a: f32) -> Sample<'a> {
        Sample { logprob: new, old_logprob: old, ref_logprob: None, entropy, advantage: Advantage::Sequence(a) }
    }

    fn grpo(aggregation: Aggregation, lengths: &[usize]) -> Grpo {
        let mut g = Grpo { aggregation, ..Grpo::default() };
        g.prepare(BatchStats::count(lengths.iter().copied()));
        g
    }

    #[test]
    fn on_policy_the_ratio_is_exactly_one() {
        let lp = [-0.3f32, -7.125, -0.000_012_3];
        let out = grpo(Aggregation::Token, &[3]).evaluate(&[sample(&lp, &lp, &[1.0; 3], 1.5)]);
        assert_eq!(out.metrics.ratio_max, 1.0);
        assert_eq!(out.metrics.loss, -1.5);
        assert_eq!(out.d_logprob, [-0.5; 3]);
        assert_eq!(out.d_entropy, None);
    }

    #[test]
    fn aggregations_weigh_tokens_and_sequences() {
        let (a, b) = ([-1.0f32; 3], [-1.0f32; 1]);
        let samples = [sample(&a, &a, &a, 1.0), sample(&b, &b, &b, -2.0), sample(&[], &[], &[], 5.0)];
        let token = grpo(Aggregation::Token, &[3, 1, 0]).evaluate(&samples);
        assert!((token.metrics.loss - (-3.0 + 2.0) / 4.0).abs() < 1e-12);
        let sequence = grpo(Aggregation::Sequence, &[3, 1, 0]).evaluate(&samples);
        assert!((sequence.metrics.loss - (-1.0 + 2.0) / 3.0).abs() < 1e-12);
    }

    #[test]
    fn clipping_stops_the_gradient_on_the_gaining_side_only() {
        let (new, old) = ([-1.0f32, -1.0], [-2.0f32, -2.0]);
        let g = grpo(Aggregation::Token, &[2]);
        let up = g.evaluate(&[sample(&new, &old, &[0.0; 2], 1.0)]);
        assert_eq!((up.metrics.clipped, up.metrics.loss), (2, -1.2));
        assert_eq!(up.d_logprob, [0.0; 2]);
        let down = g.evaluate(&[sample(&new, &old, &[0.0; 2], -1.0)]);
        assert_eq!(down.metrics.clipped, 0);
        assert!((down.metrics.loss - 1f64.exp()).abs() < 1e-12);
        assert!((f64::from(down.d_logprob[0]) - 1f64.exp() / 2.0).abs() < 1e-6);
    }

    #[test]
    fn huge_ratios_stay_finite() {
        let (new, old, reference) = ([-0.0f32, -1e30], [-1e30f32, 0.0], [-1e30f32, 0.0]);
        let mut g = grpo(Aggregation::Token, &[2]);
        g.kl_coef = 1.0;
        for a in [-1.0, 1.0] {
            let out = g.evaluate(&[Sample { ref_logprob: Some(&reference), ..sample(&new, &old, &[0.0; 2], a) }]);
            assert!(out.metrics.loss.is_finite() && out.metrics.ratio_max.is_finite());
            assert!(out.d_logprob.iter().all(|d| d.is_finite()));
        }
    }

    #[test]
    fn a_zero_advantage_gives_no_gradient() {
        let g = grpo(Aggregation::Token, &[2]);
        assert!(!g.has_gradient(&[Advantage::Sequence(0.0), Advantage::Token(&[0.0, 0.0])]));
        let out = g.evaluate(&[sample(&[-1.0, -2.0], &[-1.0, -2.0], &[0.0; 2], 0.0)]);
        assert!(out.d_logprob.iter().all(|&d| d == 0.0));
        assert!(Grpo { kl_coef: 0.1, ..g }.has_gradient(&[Advantage::Sequence(0.0)]));
    }

    /// PPO's loss and slope of one token, by cases.
    fn slow(new: f32, old: f32, a: f64, low: f64, high: f64, dual: Option<f64>) -> (f64, f64) {
        let r = (f64::from(new) - f64::from(old)).exp();
        if a >= 0.0 {
            return if r > 1.0 + high { (-(1.0 + high) * a, 0.0) } else { (-r * a, -r * a) };
        }
        let (loss, slope) = if r < 1.0 - low { (-(1.0 - low) * a, 0.0) } else { (-r * a, -r * a) };
        match dual {
            Some(c) if loss > -c * a => (-c * a, 0.0),
            _ => (loss, slope),
        }
    }

    proptest! {
        #[test]
        fn equals_the_slow_loss_by_cases(
            answers in prop::collection::vec(prop::collection::vec((-6.0f32..0.0, -2.0f32..2.0, -3.0f32..3.0), 0..12), 1..5),
            low in 0.01f64..0.5,
            high in 0.01f64..0.5,
            dual in prop::option::of(1.5f64..4.0),
            aggregation in prop::sample::select(vec![Aggregation::Token, Aggregation::Sequence, Aggregation::Constant(16)]),
        ) {
            let mut g = grpo(aggregation, &answers.iter().map(Vec::len).collect::<Vec<_>>());
            (g.clip, g.dual_clip) = (Clip { low, high }, dual);
            let tokens: usize = answers.iter().map(Vec::len).sum();
            let (mut loss, mut slopes, mut found) = (0.0, Vec::new(), Output::default());
            for answer in &answers {
                let weight = match aggregation {
                    Aggregation::Token => 1.0 / tokens.max(1) as f64,
                    Aggregation::Sequence => 1.0 / answers.len() as f64 / answer.len().max(1) as f64,
                    Aggregation::Constant(n) => 1.0 / answers.len() as f64 / n as f64,
                };
                let new: Vec<f32> = answer.iter().map(|t| t.0).collect();
                let old: Vec<f32> = answer.iter().map(|t| t.0 - t.1).collect();
                let advantage: Vec<f32> = answer.iter().map(|t| t.2).collect();
                for i in 0..answer.len() {
                    let (l, s) = slow(new[i], old[i], f64::from(advantage[i]), low, high, dual);
                    loss += weight * l;
                    slopes.push(weight * s);
                }
                let part = g.evaluate(&[Sample { advantage: Advantage::Token(&advantage), ..sample(&new, &old, &new, 0.0) }]);
                found.metrics.add(&part.metrics);
                found.d_logprob.extend(part.d_logprob);
            }
            prop_assert!((found.metrics.loss - loss).abs() <= 1e-9 * loss.abs().max(1.0), "{} {loss}", found.metrics.loss);
            for (f, e) in found.d_logprob.iter().zip(slopes) {
                prop_assert!((f64::from(*f) - e).abs() <= 1e-6 * e.abs().max(1.0), "{f} {e}");
            }
        }
    }
}
