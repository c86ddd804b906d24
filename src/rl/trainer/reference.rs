//! The reference policy that the KL is measured against.

use crate::error::Result;
use crate::model::Transformer;
use crate::model::transformer::{Adapter, ParamInfo};
use crate::rl::checkpoint::Snapshot;
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
