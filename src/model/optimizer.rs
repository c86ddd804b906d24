//! AdamW (Loshchilov and Hutter 2019), with global-norm clipping.

use crate::model::params::{Param, ParamData, Params};
use crate::model::transformer::{Gradients, Transformer};
use crate::tensor::ops::adamw;
use crate::{Error, Result};

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on matrices.
    pub weight_decay: f64,
    /// Also on norms and biases.
    pub decay_norms_and_biases: bool,
    /// Gradients are scaled down to this 2-norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

/// The optimizer with its moments, in the layout of the weights.
pub struct AdamW {
    config: AdamWConfig,
    /// Per tensor of the model: its first and second moment, if it is trained.
    moments: Vec<Option<(ParamData, ParamData)>>,
    names: Vec<String>,
}

impl AdamW {
    /// Moments of zero for everything the model trains.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn new(model: &Transformer, config: AdamWConfig) -> Result<Self> {
        Self::for_params(&model.params, config)
    }

    /// Moments of zero for the trained tensors of a list.
    pub(crate) fn for_params(params: &Params, config: AdamWConfig) -> Result<Self> {
        let list = params.all();
        let zeros = |p: &Param| Ok((p.data.zeros_like()?, p.data.zeros_like()?));
        Ok(Self {
            config,
            moments: list.iter().map(|p| p.trainable.then(|| zeros(p)).transpose()).collect::<Result<_>>()?,
            names: list.iter().map(|p| p.info.name.clone()).collect(),
        })
    }

    /// One step with learning rate `lr`; `step` counts from 1. Returns the gradient's norm before clipping. A gradient whose norm is not
    /// finite changes nothing; the caller sees it in the returned norm.
    pub fn step(&mut self, model: &mut Transformer, grads: &mut Gradients, lr: f64, step: u64) -> Result<f64> {
        let norm = grads.norm()?;
        if norm.is_finite() {
            self.apply(&mut model.params, grads, norm, lr, step)?;
        }
        Ok(norm)
    }

    /// One step clipped by a norm that the caller has; otherwise as [`AdamW::step`].
    pub fn step_by(&mut self, model: &mut Transformer, grads: &Gradients, norm: f64, lr: f64, step: u64) -> Result<()> {
        self.apply(&mut model.params, grads, norm, lr, step)
    }

    /// One step of the tensors of a list, clipped by a norm that the caller has: that of these gradients, or of more than these. The
    /// gradients are finished (see [`Gradients::finish`]).
    pub(crate) fn apply(&mut self, params: &mut Params, grads: &Gradients, norm: f64, lr: f64, step: u64) -> Result<()> {
        if step == 0 {
            return Err(Error::input("AdamW's bias correction counts steps from 1").at("step"));
        }
        let c = &self.config;
        // torch.nn.utils.clip_grad_norm_: the norm gets 1e-6 before the division.
        let clip = if c.max_grad_norm > 0.0 { (c.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let exponent = i32::try_from(step).map_err(|_| Error::input("more steps than AdamW's bias correction can count"))?;
        let (bias1, bias2) = (1.0 - c.betas.0.powi(exponent), 1.0 - c.betas.1.powi(exponent));
        for (id, param) in params.all_mut().iter_mut().enumerate() {
            let (Some(grad), Some((m, v))) = (grads.slot(id), &mut self.moments[id]) else { continue };
            let decay = param.info.decay || c.decay_norms_and_biases;
            let scalars = adamw::Step {
                decay: if decay { (1.0 - lr * c.weight_decay) as f32 } else { 1.0 },
                one_minus_beta1: (1.0 - c.betas.0) as f32,
                beta2: c.betas.1 as f32,
                one_minus_beta2: (1.0 - c.betas.1) as f32,
                eps: c.eps as f32,
                step_size: (lr / bias1) as f32,
                bias2_sqrt: bias2.sqrt() as f32,
                grad_scale: clip as f32,
            };
            match (param.data_mut()?, grad, m, v) {
                (ParamData::Device(p), ParamData::Device(g), ParamData::Device(m), ParamData::Device(v)) => p.adamw(g, (m, v), scalars)?,
                (p, g, m, v) => adamw::step(p.flat_mut(), g.flat(), m.flat_mut(), v.flat_mut(), scalars),
            }
        }
        Ok(())
    }

    /// First and second moment of a trained tensor, row-major.
    pub fn export(&self, name: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        let (m, v) = self.moments[self.find(name)?].as_ref().expect("found tensors are trained");
        Ok((m.to_rows()?, v.to_rows()?))
    }

    /// Replaces the moments of a trained tensor.
    pub fn import(&mut self, name: &str, first: &[f32], second: &[f32]) -> Result<()> {
        let id = self.find(name)?;
        let moments = self.moments[id].as_mut().expect("found tensors are trained");
        for (moment, data) in [(&mut moments.0, first), (&mut moments.1, second)] {
            if data.len() != moment.len() {
                return Err(Error::input(format!("a moment of {} numbers where {} are expected", data.len(), moment.len())).at(name));
            }
            moment.set_rows(data)?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.names.iter().zip(&self.moments).position(|(n, m)| n == name && m.is_some());
        found.ok_or_else(|| Error::input(format!("no trained tensor is named {name}")))
    }
}
