//! The reference policy that the KL is measured against.

use super::Trainer;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::transformer::{Adapter, ParamInfo};
use crate::rl::checkpoint::Snapshot;
use crate::rl::config::{self, Stage};
use crate::tensor::plan::Plan;
use std::sync::Arc;

/// The reference policy, in the form that costs least.
#[derive(Clone)]
pub enum Reference {
    /// The same model with its adapter off.
    AdapterOff,
    /// The same base with another adapter: its tensors take the place of the trained ones for the reference's forward pass.
    OtherAdapter(Vec<(ParamInfo, Vec<f32>)>),
    /// A frozen copy of all weights.
    Copy(Arc<Transformer>),
}

impl Reference {
    /// The policy that `model` is now.
    pub fn freeze(model: &Transformer) -> Result<Self> {
        if model.lora().is_none() {
            return Ok(Reference::Copy(Arc::new(model.clone())));
        }
        // An adapter whose every B is zero adds nothing: off is the same, and needs no swapping.
        let mut tensors = Vec::new();
        let mut adds_nothing = true;
        for info in model.adapter_params() {
            let data = model.export(&info.name)?;
            adds_nothing &= !info.name.contains(".lora_B") || data.iter().all(|&x| x == 0.0);
            tensors.push((info, data));
        }
        Ok(if adds_nothing { Reference::AdapterOff } else { Reference::OtherAdapter(tensors) })
    }

    /// The policy whose trained tensors a snapshot holds; the rest is as in `model`.
    pub fn restore(model: &Transformer, snapshot: &Snapshot) -> Result<Self> {
        let mut frozen = model.clone();
        for info in model.trainable() {
            frozen.import(&info.name, &snapshot.read(&info)?)?;
        }
        Self::freeze(&frozen)
    }

    /// Log-probabilities of a plan's predictions under the reference. `model` is as before afterwards, to the bit.
    pub fn logprobs(&self, model: &mut Transformer, plan: &Plan, temperature: f32) -> Result<Vec<f32>> {
        match self {
            Reference::AdapterOff => Ok(model.evaluate(plan, temperature, Adapter::Off)?.logprob),
            Reference::Copy(copy) => Ok(copy.evaluate(plan, temperature, Adapter::On)?.logprob),
            Reference::OtherAdapter(tensors) => {
                let mut own = Vec::with_capacity(tensors.len());
                for (info, data) in tensors {
                    own.push(model.export(&info.name)?);
                    model.import(&info.name, data)?;
                }
                let stats = model.evaluate(plan, temperature, Adapter::On);
                for ((info, _), data) in tensors.iter().zip(own) {
                    model.import(&info.name, &data)?;
                }
                Ok(stats?.logprob)
            }
        }
    }
}

impl Trainer<'_> {
    /// The reference of a stage that looks at one.
    pub(super) fn make_reference(&mut self, index: usize, stage: &Stage) -> Result<Reference> {
        if stage.kl_reference == config::Reference::Base && self.model.lora().is_some() {
            return Ok(Reference::AdapterOff);
        }
        if needs_initial(index, stage) {
            let needed_later = self.config.stages.iter().enumerate().skip(index + 1).any(|(i, s)| needs_initial(i, s));
            let initial = if needed_later { self.initial.clone() } else { self.initial.take() };
            return initial.ok_or_else(|| Error::input("the policy that the run began with was not kept").at("kl.reference"));
        }
        let path = self.out.join("reference").join(format!("stage-{}.safetensors", index + 1));
        if self.state.stage_step > 0 {
            return Reference::restore(&self.model, &Snapshot::open(&path)?);
        }
        let model = &self.model;
        Snapshot::save(&path, &model.trainable(), &mut |name| model.export(name))?;
        Reference::freeze(model)
    }
}

/// Whether a stage looks at a reference policy.
pub(super) fn needs_reference(stage: &Stage) -> bool {
    stage.algorithm.samples() && (stage.kl_coef > 0.0 || stage.kl_measure)
}

/// Whether a stage's reference is the policy that the run began with.
pub(super) fn needs_initial(index: usize, stage: &Stage) -> bool {
    needs_reference(stage) && (index == 0 || stage.kl_reference == config::Reference::Base)
}
