//! A step's line of `metrics.jsonl`.

use super::Trainer;
use super::batch::Batch;
use super::step::Update;
use crate::rl::config::Stage;
use crate::rl::objective::Metrics;
use serde_json::{Map, Value, json};

impl Trainer<'_> {
    /// A step's line of `metrics.jsonl`.
    pub(super) fn line(&self, stage: &Stage, batch: &Batch, updates: &[Update], lr: f64) -> Map<String, Value> {
        let mean = |f: &dyn Fn(&Update) -> f64| updates.iter().map(f).sum::<f64>() / updates.len().max(1) as f64;
        let made = updates.iter().any(|u| u.not_finite.is_none());
        let first = first_epoch(stage, batch.jobs.len(), updates);
        let mut line = Map::new();
        line.insert("step".into(), self.state.step.into());
        line.insert("stage".into(), (self.state.stage + 1).into());
        line.insert("loss".into(), json!(mean(&|u| u.metrics.loss)));
        line.insert("grad_norm".into(), json!(mean(&|u| u.grad_norm)));
        let whole = updates.last().map(|u| &u.grad_sum).filter(|sum| !sum.is_empty());
        line.insert("grad_sum".into(), json!(whole));
        line.insert("lr".into(), json!(lr));
        line.insert("tokens".into(), batch.jobs.iter().map(|j| j.tree.num_tokens()).sum::<usize>().into());
        line.insert("targets".into(), first.tokens.into());
        line.insert("skipped".into(), (!made).into());
        if let Some(what) = updates.iter().find_map(|u| u.not_finite.as_ref()) {
            line.insert("not_finite".into(), json!(what));
        }
        line.insert("entropy".into(), json!(first.entropy()));
        if stage.algorithm.samples() {
            line.extend(batch.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
            line.insert("kl".into(), json!(first.kl()));
            line.insert("ratio_max".into(), json!(updates.iter().fold(0.0, |m, u| f64::max(m, u.metrics.ratio_max))));
            line.insert("clip_fraction".into(), json!(mean(&|u| Metrics::clip_fraction(&u.metrics))));
            line.extend(self.critic_line(stage, &batch.jobs, updates));
        }
        line
    }
}

/// The sums over a step's first pass over its batch.
pub(super) fn first_epoch(stage: &Stage, jobs: usize, updates: &[Update]) -> Metrics {
    let mut updates = updates.iter().take(stage.minibatches.clamp(1, jobs.max(1))).map(|u| u.metrics);
    let mut total = updates.next().unwrap_or_default();
    updates.for_each(|m| total.add(&m));
    total
}
