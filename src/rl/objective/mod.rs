//! Objectives: pure vector maths, without any model.
//!
//! An objective takes the log-probabilities and entropies that the model gave for the answers' tokens and returns a loss, its metrics, and
//! the derivative of the loss by each of those numbers; the model's backward pass does the rest. Everything that depends on the whole
//! optimizer batch (token counts, the number of sequences) is fixed first by [`Objective::prepare`]; then the objective is evaluated tree
//! by tree, and the trees' results are added in canonical order. So neither the loss nor a derivative depends on the micro-batches.
//!
//! Inputs are f32, all arithmetic is f64, derivatives are rounded to f32 once.

pub mod grpo;
pub mod kl;
pub mod sft;
mod surrogate;
pub mod value;

pub use grpo::{Aggregation, Grpo, Ratio};
pub use kl::{KlEstimator, k3};
pub use sft::Sft;
pub use surrogate::Clip;
pub use value::{ValueLoss, ValueMetrics, ValueSample};

/// The largest |log ratio| that an objective takes at face value: beyond it the ratio is held (with a zero derivative), so that a loss, and
/// a gradient in f32, stay finite whatever the policy did.
pub const LOG_RATIO_LIMIT: f64 = 60.0;

/// How much better than expected an answer, or each token of it, was.
#[derive(Clone, Copy, Debug)]
pub enum Advantage<'a> {
    /// One number for the whole sequence (GRPO).
    Sequence(f32),
    /// One number a token (PPO with GAE).
    Token(&'a [f32]),
}

impl Advantage<'_> {
    /// The advantage of token `i`.
    pub fn at(&self, i: usize) -> f64 {
        match self {
            Advantage::Sequence(a) => f64::from(*a),
            Advantage::Token(a) => f64::from(a[i]),
        }
    }

    /// Whether it is zero for every token.
    pub fn is_zero(&self) -> bool {
        match self {
            Advantage::Sequence(a) => *a == 0.0,
            Advantage::Token(a) => a.iter().all(|&x| x == 0.0),
        }
    }
}

/// What an objective is told of one sequence; every slice holds one number a target token.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Log-probabilities under the policy that is trained.
    pub logprob: &'a [f32],
    /// Log-probabilities under the policy that sampled, as recorded while sampling. SFT does not look at them.
    pub old_logprob: &'a [f32],
    /// Log-probabilities under the reference policy, where there is one.
    pub ref_logprob: Option<&'a [f32]>,
    /// Entropies of the trained policy's distributions, in nats.
    pub entropy: &'a [f32],
    /// The advantage. SFT does not look at it.
    pub advantage: Advantage<'a>,
}

impl<'a> Sample<'a> {
    /// A sample for supervised training: log-probabilities and entropies alone.
    pub fn supervised(logprob: &'a [f32], entropy: &'a [f32]) -> Self {
        Self { logprob, old_logprob: logprob, ref_logprob: None, entropy, advantage: Advantage::Sequence(0.0) }
    }
}

/// Statistics over the whole optimizer batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchStats {
    /// Sequences, empty ones included.
    pub sequences: usize,
    /// Target tokens.
    pub tokens: usize,
}

impl BatchStats {
    /// Counts a batch from the number of target tokens of each sequence.
    pub fn count(lengths: impl IntoIterator<Item = usize>) -> Self {
        lengths.into_iter().fold(Self::default(), |s, n| Self { sequences: s.sequences + 1, tokens: s.tokens + n })
    }
}

/// Sums that become the batch's metrics; those of several trees are added in canonical order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Metrics {
    /// The share of the batch's loss.
    pub loss: f64,
    /// Target tokens.
    pub tokens: usize,
    /// Sum of the entropies.
    pub entropy_sum: f64,
    /// Sum of the estimates of KL(policy || reference), over `kl_tokens`.
    pub kl_sum: f64,
    /// Target tokens with a reference log-probability.
    pub kl_tokens: usize,
    /// The largest ratio new / old; 0 before any token.
    pub ratio_max: f64,
    /// Tokens whose clipped term was the one that counted, so that they gave no gradient.
    pub clipped: usize,
}

impl Metrics {
    /// Adds the metrics of the next tree.
    pub fn add(&mut self, next: &Metrics) {
        self.loss += next.loss;
        self.tokens += next.tokens;
        self.entropy_sum += next.entropy_sum;
        self.kl_sum += next.kl_sum;
        self.kl_tokens += next.kl_tokens;
        self.ratio_max = self.ratio_max.max(next.ratio_max);
        self.clipped += next.clipped;
    }

    /// Mean entropy of a target token's distribution, in nats; 0 without tokens.
    pub fn entropy(&self) -> f64 {
        mean(self.entropy_sum, self.tokens)
    }

    /// Mean estimate of KL(policy || reference); `None` where there was no reference.
    pub fn kl(&self) -> Option<f64> {
        (self.kl_tokens > 0).then(|| mean(self.kl_sum, self.kl_tokens))
    }

    /// The part of the tokens that was clipped.
    pub fn clip_fraction(&self) -> f64 {
        mean(self.clipped as f64, self.tokens)
    }
}

/// `sum / n`, or 0 for nothing.
fn mean(sum: f64, n: usize) -> f64 {
    if n == 0 { 0.0 } else { sum / n as f64 }
}

/// A tree's share of the loss, and its derivatives, one a target token in the order of the samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// The tree's sums; `metrics.loss` is its share of the batch's loss.
    pub metrics: Metrics,
    /// d loss / d logprob.
    pub d_logprob: Vec<f32>,
    /// d loss / d entropy, where the loss has an entropy term.
    pub d_entropy: Option<Vec<f32>>,
}

/// A loss as a function of log-probabilities and entropies.
pub trait Objective: Send {
    /// Fixes what depends on the whole optimizer batch.
    fn prepare(&mut self, batch: BatchStats);

    /// The share of the loss and the derivatives of one tree's sequences (any subset of the batch would do).
    fn evaluate(&self, samples: &[Sample<'_>]) -> Output;

    /// Whether [`Objective::evaluate`] may return anything but zero derivatives for sequences of these advantages. If not, the tree needs
    /// no backward pass: its gradient is exactly zero.
    fn has_gradient(&self, advantages: &[Advantage<'_>]) -> bool;

    /// Whether the loss itself needs the reference policy's log-probabilities.
    fn needs_reference(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_nothing_are_zero() {
        let m = Metrics::default();
        assert_eq!((m.entropy(), m.kl(), m.clip_fraction()), (0.0, None, 0.0));
    }
}
