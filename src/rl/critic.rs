//! PPO's critic: for every token of an answer, what the rest of the answer is expected to earn.
//!
//! The value of a token is read off the hidden state that predicts it, that is, before the token is known. The critic is a value head on
//! the policy's own trunk, or on a model of its own. That model begins as a clone of the policy, which shares its numbers until one of
//! the two writes them: with LoRA only the adapter is ever written, so the critic costs an adapter; without, it becomes a full model.

use crate::error::{Error, Result};
use crate::model::optimizer::{AdamW, AdamWConfig, TensorState};
use crate::model::transformer::{Adapter, ParamInfo};
use crate::model::{Gradients, Transformer, ValueHead};
use crate::rl::config::{CriticKind, CriticSettings};
use crate::rl::objective::{BatchStats, ValueLoss, ValueMetrics, ValueSample};
use crate::rl::rollout::Job;
use crate::tensor::Tensor;
use crate::tensor::plan::Plan;

/// What the names of its tensors begin with in a checkpoint.
const PREFIX: &str = "critic.";

/// A model of the critic's own.
struct Own {
    model: Transformer,
    gradients: Gradients,
    optimizer: AdamW,
}

/// The critic with its gradients and moments.
pub struct Critic {
    head: ValueHead,
    own: Option<Own>,
    clip: Option<f64>,
    coef: f64,
    loss: ValueLoss,
}

impl Critic {
    /// A fresh critic for a policy: a head of zeros on the policy's trunk, or on a clone of it. `seed` and `part` key the rounding of 8-bit
    /// moments ([`AdamW::keyed`]).
    pub fn new(policy: &Transformer, settings: &CriticSettings, optim: &AdamWConfig, (seed, part): (u64, u64)) -> Result<Self> {
        let bad = |message: &str, hint: &str| Err(Error::input(message).at("critic.kind").hint(hint));
        let own = match (settings.kind, policy.lora().is_some()) {
            (CriticKind::Trunk, _) => None,
            (CriticKind::Lora, false) => return bad("the policy has no adapter, so no base is frozen", "set lora.rank, or use \"full\""),
            (CriticKind::Full, true) => return bad("the policy's base is frozen under its adapter", "use \"lora\" or \"trunk\""),
            _ => {
                let model = policy.clone();
                Some(Own { gradients: model.gradients()?, optimizer: AdamW::new(&model, optim.clone())?.keyed(seed, part), model })
            }
        };
        let head = ValueHead::new(policy.config().hidden_size, optim.clone())?;
        Ok(Self { head, own, clip: settings.clip, coef: settings.coef, loss: ValueLoss::default() })
    }

    /// Whether its head stands on the policy's trunk.
    pub fn shares_trunk(&self) -> bool {
        self.own.is_none()
    }

    /// Whether its loss reaches the policy's trunk.
    pub fn moves_trunk(&self) -> bool {
        self.own.is_none() && self.coef != 0.0
    }

    /// The values of a plan's predictions, in their order.
    pub fn values(&self, policy: &Transformer, plan: &Plan) -> Result<Vec<f32>> {
        let model = self.own.as_ref().map_or(policy, |own| &own.model);
        Ok(self.head.forward(&model.predicting(plan, Adapter::On)?))
    }

    /// Begins an optimizer batch of these counts.
    pub fn begin(&mut self, batch: BatchStats) -> Result<()> {
        self.loss = ValueLoss::new(self.clip, batch);
        self.head.zero_gradients()?;
        if let Some(own) = &mut self.own {
            own.gradients.zero()?;
        }
        Ok(())
    }

    /// Adds the head's gradient on the hidden states that predict, and returns the trees' metrics and the loss's gradient by the hidden
    /// states.
    fn read(&mut self, hidden: &Tensor, plan: &Plan, jobs: &[&Job]) -> (Vec<ValueMetrics>, Tensor) {
        let values = self.head.forward(hidden);
        let (mut metrics, mut d_value, mut at) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(values.len()), 0);
        for job in jobs {
            let samples: Vec<ValueSample<'_>> = job
                .targets
                .iter()
                .map(|t| {
                    let value = &values[at..at + t.tokens];
                    at += t.tokens;
                    ValueSample { value, old_value: &t.old_values, returns: &t.returns }
                })
                .collect();
            let (tree, slopes) = self.loss.evaluate(&samples);
            metrics.push(tree);
            d_value.extend(slopes);
        }
        let d_hidden = self.head.backward(hidden, &d_value, &plan.head_chunks);
        (metrics, d_hidden)
    }

    /// A micro-batch on the policy's trunk, whose hidden states are given: the trees' metrics, and what the trunk's gradient gets by them.
    pub fn on_trunk(&mut self, hidden: &Tensor, plan: &Plan, jobs: &[&Job]) -> (Vec<ValueMetrics>, Option<Tensor>) {
        let (metrics, mut d_hidden) = self.read(hidden, plan, jobs);
        let coef = self.coef as f32;
        d_hidden.data_mut().iter_mut().for_each(|d| *d *= coef);
        (metrics, self.moves_trunk().then_some(d_hidden))
    }

    /// A micro-batch on its own model, forward and backward; nothing where it has none.
    pub fn on_own(&mut self, plan: &Plan, jobs: &[&Job], checkpointing: bool) -> Result<Vec<ValueMetrics>> {
        let Some(mut own) = self.own.take() else { return Ok(Vec::new()) };
        let result = own.model.forward_trunk(plan, checkpointing).and_then(|saved| {
            let (metrics, d_hidden) = self.read(&*saved.predicting()?, plan, jobs);
            own.model.backward_trunk(plan, saved, &d_hidden, &mut own.gradients)?;
            Ok(metrics)
        });
        self.own = Some(own);
        result
    }

    /// The 2-norm over the gradients of all that is the critic's alone.
    ///
    /// # Errors
    /// If the device failed.
    pub fn gradient_norm(&mut self) -> Result<f64> {
        let own = self.own.as_mut().map_or(Ok(0.0), |own| own.gradients.norm())?;
        Ok(self.head.gradient_norm()?.hypot(own))
    }

    /// One step of AdamW, clipped by `norm`; `step` counts from 1.
    pub fn step(&mut self, norm: f64, lr: f64, step: u64) -> Result<()> {
        if let Some(own) = &mut self.own {
            own.optimizer.step_by(&mut own.model, &own.gradients, norm, lr, step)?;
        }
        self.head.step(norm, lr, step)
    }

    /// Its tensors, in canonical order, named as in a checkpoint.
    pub fn trainable(&self) -> Vec<ParamInfo> {
        let own = self.own.iter().flat_map(|own| own.model.trainable());
        own.chain(self.head.trainable()).map(|p| ParamInfo { name: format!("{PREFIX}{}", p.name), ..p }).collect()
    }

    /// Whether a name in a checkpoint is one of a critic's.
    pub fn owns(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    /// A tensor and its moments, by its name in a checkpoint.
    pub fn export(&self, name: &str) -> Result<TensorState> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        match &self.own {
            Some(own) if !self.is_head(name) => {
                let (first, second) = own.optimizer.export(name)?;
                Ok(TensorState { weight: own.model.export(name)?, first, second })
            }
            _ => self.head.export(name),
        }
    }

    /// Whether a tensor's moments are coded, by its name in a checkpoint.
    pub fn is_coded(&self, name: &str) -> Result<bool> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        match &self.own {
            Some(own) if !self.is_head(name) => own.optimizer.is_coded(name),
            _ => Ok(false),
        }
    }

    /// Replaces a tensor and its moments, by its name in a checkpoint.
    pub fn import(&mut self, name: &str, state: &TensorState) -> Result<()> {
        let name = name.strip_prefix(PREFIX).unwrap_or(name);
        let is_head = self.is_head(name);
        match &mut self.own {
            Some(own) if !is_head => {
                own.model.import(name, &state.weight)?;
                own.optimizer.import(name, &state.first, &state.second)
            }
            _ => self.head.import(name, state),
        }
    }

    fn is_head(&self, name: &str) -> bool {
        self.head.trainable().iter().any(|p| p.name == name)
    }
}
