//! Learning-rate schedules.

use std::f64::consts::PI;

/// The shape after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Half a cosine from the full rate to zero.
    #[default]
    Cosine,
    /// A straight line to zero.
    Linear,
    /// The full rate.
    Constant,
}

/// A learning rate as a function of the step of its stage.
///
/// With `w` warm-up steps of `n`, step `t` (from 1) has `peak * t / (w + 1)` while `t <= w`, then `peak * shape(p)` with
/// `p = (t - 1 - w) / (n - w)`: the first step after the warm-up has the full rate, no step has a rate of zero. Without a warm-up this is,
/// step for step, what transformers' `get_cosine_schedule_with_warmup` and `get_linear_schedule_with_warmup` give; with one, theirs gives a
/// rate of zero to the first step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The full rate.
    pub peak: f64,
    /// The shape after the warm-up.
    pub shape: Shape,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Steps of the stage.
    pub steps: u64,
}

impl Schedule {
    /// A schedule whose warm-up is a number of steps (1 or more) or a part of all steps (below 1, rounded up).
    pub fn new(peak: f64, shape: Shape, warmup: f64, steps: u64) -> Self {
        let warmup = if warmup < 1.0 { (warmup * steps as f64).ceil() as u64 } else { warmup as u64 };
        Self { peak, shape, warmup: warmup.min(steps), steps }
    }

    /// The rate of step `t`, counted from 1.
    pub fn at(&self, t: u64) -> f64 {
        if t <= self.warmup {
            return self.peak * t as f64 / (self.warmup + 1) as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let p = ((t - 1 - self.warmup) as f64 / span).min(1.0);
        self.peak
            * match self.shape {
                Shape::Cosine => 0.5 * (1.0 + (PI * p).cos()),
                Shape::Linear => 1.0 - p,
                Shape::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_decays() {
        let s = Schedule::new(1.0, Shape::Linear, 4.0, 14);
        let rates: Vec<f64> = (1..=14).map(|t| s.at(t)).collect();
        assert_eq!(rates[..5], [0.2, 0.4, 0.6, 0.8, 1.0]);
        assert!((rates[13] - 0.1).abs() < 1e-12);
        assert!(rates[4..].windows(2).all(|w| w[1] < w[0]));
        assert_eq!(Schedule::new(2.0, Shape::Constant, 0.0, 3).at(3), 2.0);
        assert_eq!(Schedule::new(1.0, Shape::Cosine, 0.0, 2).at(2), 0.5);
    }

    #[test]
    fn a_part_of_the_steps_is_rounded_up() {
        assert_eq!(Schedule::new(1.0, Shape::Cosine, 0.03, 100).warmup, 3);
        assert_eq!(Schedule::new(1.0, Shape::Cosine, 0.03, 10).warmup, 1);
        assert_eq!(Schedule::new(1.0, Shape::Cosine, 50.0, 10).warmup, 10);
        assert!(Schedule::new(1.0, Shape::Cosine, 50.0, 10).at(10) > 0.0);
    }
}
