//! Which settings would make a run fit.

use super::{MemoryPlan, Planned, Size};
use crate::error::{Error, Result};
use crate::model::lora::{LoraConfig, TARGETS};
use crate::model::optimizer::MomentFormat;
use crate::rl::config::{Config, CriticKind};

/// The least that a micro-batch or the answers sampled together are cut to.
const LEAST_TOKENS: usize = 128;

impl Planned<'_> {
    /// Settings that make the run fit into `available` bytes, as `key = value`, and their plan: those that cost time alone first (recomputed
    /// activations, smaller micro-batches, fewer answers at a time), then those that change what is learned (moments in 8 bits where that
    /// alone is enough, no KL measured, a critic on the trunk, an adapter of rank 16). `None` where not even all of them do.
    pub fn settings_that_fit(&self, available: u64) -> Option<(Vec<String>, MemoryPlan)> {
        let mut config = self.config.clone();
        let mut lora = self.lora.cloned();
        let mut changes: Vec<(&str, String)> = Vec::new();
        loop {
            let plan = MemoryPlan::new(&Planned { config: &config, lora: lora.as_ref(), ..*self });
            if plan.total <= available {
                return Some((changes.into_iter().map(|(key, value)| format!("{key} = {value}")).collect(), plan));
            }
            let (key, value) = match self.coded_moments(&config, lora.as_ref(), &plan, available) {
                Some(coded) => {
                    config = coded;
                    ("optim.moments", "\"8bit\"".to_owned())
                }
                None => next(&mut config, &mut lora, &plan, available)?,
            };
            changes.retain(|(k, _)| *k != key);
            changes.push((key, value));
        }
    }

    /// The configuration with moments in 8 bits, where what stands is too much and would then leave room for the rest, recomputed and cut.
    fn coded_moments(&self, config: &Config, lora: Option<&LoraConfig>, plan: &MemoryPlan, available: u64) -> Option<Config> {
        if plan.kept() < available || config.stages.iter().all(|s| s.optim.moments == MomentFormat::EightBit) {
            return None;
        }
        let mut coded = config.clone();
        coded.stages.iter_mut().for_each(|s| s.optim.moments = MomentFormat::EightBit);
        let mut least = coded.clone();
        least.rollout_batch = 1;
        least.stages.iter_mut().for_each(|s| (s.activation_checkpointing, s.microbatch_tokens) = (true, LEAST_TOKENS));
        (MemoryPlan::new(&Planned { config: &least, lora, ..*self }).total <= available).then_some(coded)
    }

    /// An error if the run cannot fit into `available` bytes, with the settings that would.
    pub fn check(&self, available: u64) -> Result<()> {
        let plan = MemoryPlan::new(self);
        if plan.total <= available {
            return Ok(());
        }
        let message = format!("the run needs {} of memory and {} are free", Size(plan.total), Size(available));
        Err(Error::input(message).hint(self.advice(available)))
    }

    /// What to change of a run that does not fit.
    pub fn advice(&self, available: u64) -> String {
        match self.settings_that_fit(available) {
            Some((changes, plan)) => format!("it would fit, with {}, by: {}", Size(plan.total), changes.join(", ")),
            None => "no settings would make it fit: train a smaller model".to_owned(),
        }
    }
}

impl MemoryPlan {
    /// Bytes that are worked on in training and in sampling.
    fn working(&self) -> (u64, u64) {
        let of = |what: &str| self.rows.iter().find(|r| r.what == what).map_or(0, |r| r.bytes);
        (of("activations"), of("KV cache").max(of("sampling")))
    }

    /// Bytes of what stands from the first step to the last.
    fn kept(&self) -> u64 {
        let (training, sampling) = self.working();
        self.total - training.max(sampling)
    }
}

/// Makes the next change: of what is worked on where the rest alone would fit, else of what stands.
fn next(config: &mut Config, lora: &mut Option<LoraConfig>, plan: &MemoryPlan, available: u64) -> Option<(&'static str, String)> {
    let (training, sampling) = plan.working();
    if plan.kept() < available {
        if sampling > training && config.rollout_batch > 1 {
            config.rollout_batch = config.rollout_batch.min(most_answers(config)).div_ceil(2);
            return Some(("rollout_batch", config.rollout_batch.to_string()));
        }
        if config.stages.iter().any(|s| !s.activation_checkpointing) {
            config.stages.iter_mut().for_each(|s| s.activation_checkpointing = true);
            return Some(("activation_checkpointing", "true".into()));
        }
        let most = config.stages.iter().map(|s| s.microbatch_tokens).max().unwrap_or(0);
        if most > LEAST_TOKENS && training >= sampling {
            let half = (most / 2).max(LEAST_TOKENS);
            config.stages.iter_mut().for_each(|s| s.microbatch_tokens = s.microbatch_tokens.min(half));
            return Some(("microbatch_tokens", half.to_string()));
        }
    }
    if plan.rows.iter().any(|r| r.what.starts_with("reference")) && config.stages.iter().all(|s| s.kl_coef == 0.0) {
        config.stages.iter_mut().for_each(|s| s.kl_measure = false);
        return Some(("kl.measure", "false".into()));
    }
    if plan.rows.iter().any(|r| r.what == "critic") && lora.is_none() {
        config.stages.iter_mut().for_each(|s| s.critic.kind = CriticKind::Trunk);
        return Some(("critic.kind", "\"trunk\"".into()));
    }
    if lora.is_none() {
        *lora = Some(LoraConfig { rank: 16, alpha: 16.0, targets: TARGETS.map(str::to_owned).to_vec() });
        return Some(("lora.rank", "16".into()));
    }
    None
}

/// How many answers any stage samples at a time.
fn most_answers(config: &Config) -> usize {
    config.stages.iter().map(|s| s.batch_prompts * s.group_size).max().unwrap_or(1).max(1)
}
