//! The clipped surrogate of one token, which PPO, GRPO, DAPO and GSPO share.

use super::LOG_RATIO_LIMIT;

/// How far the ratio may move before a token stops giving gradient: the ratio is held in `[1 - low, 1 + high]`. A `high` above `low` is
/// DAPO's clip-higher (Yu et al. 2025).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Below 1.
    pub low: f64,
    /// Above 1.
    pub high: f64,
}

impl Default for Clip {
    fn default() -> Self {
        Self { low: 0.2, high: 0.2 }
    }
}

/// One token's surrogate.
pub(super) struct Surrogate {
    /// `-min(r A, clip(r) A)`, or with a dual clip at most `c |A|` where A < 0.
    pub loss: f64,
    /// The derivative by the new log-probability.
    pub slope: f64,
    /// r.
    pub ratio: f64,
    /// Whether a clipped term counted, so that the token gives no gradient.
    pub clipped: bool,
}

impl Surrogate {
    /// The surrogate for a log ratio `d`. `dual` is the c > 1 of dual clipping (Ye et al. 2020): the loss of a bad token is held at
    /// `c |A|`, however likely the policy makes it.
    pub fn new(d: f64, advantage: f64, clip: Clip, dual: Option<f64>) -> Self {
        let held = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
        let ratio = held.exp();
        let free = ratio * advantage;
        let bounded = ratio.clamp(1.0 - clip.low, 1.0 + clip.high) * advantage;
        let clipped = bounded < free;
        if let Some(c) = dual
            && advantage < 0.0
            && free < c * advantage
        {
            return Self { loss: -c * advantage, slope: 0.0, ratio, clipped: true };
        }
        let slope = if clipped || held != d { 0.0 } else { -free };
        Self { loss: -free.min(bounded), slope, ratio, clipped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dual_clip_bounds_the_loss_of_bad_tokens_only() {
        let at = |ratio: f64, a: f64| Surrogate::new(ratio.ln(), a, Clip::default(), Some(3.0));
        let bad = at(5.0, -2.0);
        assert_eq!((bad.loss, bad.slope, bad.clipped), (6.0, 0.0, true));
        let fair = at(2.0, -2.0);
        assert!((fair.loss - 4.0).abs() < 1e-12 && (fair.slope - 4.0).abs() < 1e-12 && !fair.clipped);
        let good = at(5.0, 2.0);
        assert!((good.loss + 2.4).abs() < 1e-12 && good.slope == 0.0 && good.clipped);
    }
}
