//! What PPO adds to a step: a critic, what is measured before the first update, mini-batches, an adaptive KL, and their metrics.

use super::measure::measure;
use super::step::Update;
use super::{Settings, Trainer};
use crate::error::Result;
use crate::rl::checkpoint::Checkpoint;
use crate::rl::config::{Algorithm, Stage};
use crate::rl::critic::Critic;
use crate::rl::experience::{Rule, explained_variance};
use crate::rl::kl_control::adapt;
use crate::rl::objective::ValueMetrics;
use crate::rl::rollout::{Job, Targets};
use crate::tensor::philox::Philox;
use serde_json::{Map, Value, json};

/// Random stream of the mini-batches.
const STREAM: u64 = 0x4d69_6e69;

impl Trainer<'_> {
    /// A stage's critic: fresh at its start, from the checkpoint within it.
    pub(super) fn make_critic(&self, stage: &Stage, resumed: Option<&Checkpoint>) -> Result<Option<Critic>> {
        if stage.algorithm != Algorithm::Ppo {
            return Ok(None);
        }
        let mut critic = Critic::new(&self.model, &stage.critic, &stage.optim, (self.config.seed, self.part(1)))?;
        if let Some(checkpoint) = resumed {
            for info in critic.trainable() {
                critic.import(&info.name, &checkpoint.read(&info)?)?;
            }
        }
        Ok(Some(critic))
    }

    /// The weight of the KL penalty at this step.
    pub(super) fn kl_coef(&self, stage: &Stage) -> f64 {
        self.state.kl_coef.unwrap_or(stage.kl_coef)
    }

    /// The weight after a step of this KL and number of answers, where it is adaptive.
    pub(super) fn next_kl_coef(&self, stage: &Stage, kl: Option<f64>, answers: usize) -> Option<f64> {
        let adaptive = stage.algorithm.samples() && stage.kl_target > 0.0;
        adaptive.then(|| adapt(self.kl_coef(stage), kl.unwrap_or(f64::NAN), stage.kl_target, stage.kl_horizon, answers))
    }

    /// Gives the tokens of sampled answers their advantages, where the stage's rule gives each its own.
    pub(super) fn experience(&mut self, stage: &Stage, rule: &Rule, jobs: &mut [Job]) -> Result<()> {
        if !rule.by_token() {
            return Ok(());
        }
        let settings = Settings::new(stage, self.reference.as_ref());
        let reference = self.reference.as_ref().filter(|_| rule.needs_reference());
        let stop = self.stop;
        measure(&mut self.model, self.critic.as_ref(), jobs, reference, &settings, &mut || !stop())?;
        rule.assign(jobs);
        Ok(())
    }

    /// The jobs of each update of a step: the epochs' mini-batches, each in canonical order.
    pub(super) fn minibatches(&self, stage: &Stage, jobs: usize) -> Vec<Vec<usize>> {
        let parts = stage.minibatches.clamp(1, jobs.max(1));
        if parts == 1 {
            return vec![(0..jobs).collect(); stage.epochs as usize];
        }
        let random = Philox::new(self.config.seed, STREAM ^ (self.state.stage as u64) << 48);
        let epoch = |e: u64| {
            let order = random.permutation(self.state.stage_step * stage.epochs + e, jobs);
            (0..parts).map(move |p| {
                let mut part = order[p * jobs / parts..(p + 1) * jobs / parts].to_vec();
                part.sort_unstable();
                part
            })
        };
        (0..stage.epochs).flat_map(epoch).collect()
    }

    /// PPO's part of a step's line.
    pub(super) fn critic_line(&self, stage: &Stage, jobs: &[Job], updates: &[Update]) -> Map<String, Value> {
        let mut line = Map::new();
        if stage.algorithm == Algorithm::Ppo || stage.kl_target > 0.0 {
            line.insert("kl_coef".into(), json!(self.kl_coef(stage)));
        }
        if self.critic.is_none() {
            return line;
        }
        let found: Vec<(ValueMetrics, f64)> = updates.iter().filter_map(|u| u.critic).collect();
        let mean = |f: &dyn Fn(&(ValueMetrics, f64)) -> f64| found.iter().map(f).sum::<f64>() / found.len().max(1) as f64;
        line.insert("value_loss".into(), json!(mean(&|u| u.0.loss)));
        line.insert("value_clip_fraction".into(), json!(mean(&|u| u.0.clip_fraction())));
        line.insert("explained_variance".into(), json!(explained_variance(jobs)));
        line.insert("value_mean".into(), json!(mean_of(jobs, |t| &t.old_values)));
        line.insert("return_mean".into(), json!(mean_of(jobs, |t| &t.returns)));
        line.insert("critic_grad_norm".into(), json!(mean(&|u| u.1)));
        line.insert("critic_lr".into(), json!(stage.critic.schedule.at(self.state.stage_step)));
        line
    }
}

/// The mean of a number that every token of a batch has.
fn mean_of(jobs: &[Job], of: impl Fn(&Targets) -> &[f32]) -> f64 {
    let (mut sum, mut n) = (0.0, 0);
    for numbers in jobs.iter().flat_map(|j| &j.targets).map(of) {
        sum += numbers.iter().map(|x| f64::from(*x)).sum::<f64>();
        n += numbers.len();
    }
    sum / n.max(1) as f64
}
