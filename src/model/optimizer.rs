//! AdamW (Loshchilov and Hutter 2019), with global-norm clipping; moments in f32, or those of large matrices in 8-bit codes.

use crate::model::params::{Param, ParamData, Params};
use crate::model::transformer::{Gradients, Transformer};
use crate::tensor::ops::adamw::codes::{BLOCK, Coded, Rounding};
use crate::tensor::ops::adamw::{self, cuda, panels};
use crate::tensor::philox::Philox;
use crate::{Error, Result};

/// Random stream of the rounding of 8-bit moments.
const STREAM: u64 = 0x4d6f_6d38;

/// How moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MomentFormat {
    /// Two f32 a number.
    #[default]
    F32,
    /// Of matrices of 4096 numbers or more (in rows of at least 8) two bytes a number, and two f32 for every 256 columns of a row; all other
    /// moments stay f32: norms, biases and small matrices, which take no room and react most to an error.
    EightBit,
}

impl MomentFormat {
    /// Whether the moments of a tensor of this shape are coded.
    pub fn codes(self, shape: &[usize]) -> bool {
        const LEAST: usize = 4096;
        const LEAST_ROW: usize = 8;
        self == Self::EightBit && matches!(*shape, [rows, cols] if rows * cols >= LEAST && cols >= LEAST_ROW)
    }
}

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
    /// How moments are kept.
    pub moments: MomentFormat,
}

impl Default for AdamWConfig {
    /// PyTorch's, without weight decay, clipped at 1.
    fn default() -> Self {
        Self {
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
            decay_norms_and_biases: false,
            max_grad_norm: 1.0,
            moments: MomentFormat::F32,
        }
    }
}

/// A tensor's moments.
enum Moments {
    F32(ParamData, ParamData),
    Coded(panels::Moments),
    CodedOnDevice(cuda::Moments),
}

/// One moment of a tensor as it is saved.
#[derive(Clone, Debug, PartialEq)]
pub enum Moment {
    /// Row-major.
    F32(Vec<f32>),
    /// Of a matrix `[rows, cols]`.
    Coded(Coded),
}

impl Moment {
    /// The numbers that have to be finite: all of them, or the scales of which codes are parts.
    pub fn magnitudes(&self) -> &[f32] {
        match self {
            Self::F32(numbers) => numbers,
            Self::Coded(coded) => &coded.scales,
        }
    }
}

/// A trained tensor with its moments, as it is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorState {
    /// Its numbers, row-major.
    pub weight: Vec<f32>,
    /// The first moment.
    pub first: Moment,
    /// The second moment.
    pub second: Moment,
}

/// The optimizer with its moments, in the layout of the weights.
pub struct AdamW {
    config: AdamWConfig,
    /// Per tensor of the model, if it is trained.
    moments: Vec<Option<Moments>>,
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    random: Philox,
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
        let zeros = |p: &Param| {
            if !config.moments.codes(&p.info.shape) {
                return Ok(Moments::F32(p.data.zeros_like()?, p.data.zeros_like()?));
            }
            let (rows, cols) = (p.info.shape[0], p.info.shape[1]);
            Ok(match &*p.data {
                ParamData::Device(d) => Moments::CodedOnDevice(cuda::Moments::zeros(d.gpu(), rows, cols)?),
                _ => Moments::Coded(panels::Moments::zeros(rows, cols)),
            })
        };
        Ok(Self {
            moments: list.iter().map(|p| p.trainable.then(|| zeros(p)).transpose()).collect::<Result<_>>()?,
            config,
            names: list.iter().map(|p| p.info.name.clone()).collect(),
            shapes: list.iter().map(|p| p.info.shape.clone()).collect(),
            random: Philox::new(0, STREAM),
        })
    }

    /// The same with random numbers of its own, by the run's seed and what it optimizes (`part`), for the rounding of 8-bit moments.
    pub fn keyed(self, seed: u64, part: u64) -> Self {
        Self { random: Philox::new(seed, STREAM ^ part << 32), ..self }
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
            let (Some(grad), Some(moments)) = (grads.slot(id), &mut self.moments[id]) else { continue };
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
            let rounding = Rounding { key: self.random.key(), step: exponent as u32, tensor: id as u32 };
            moments.step(param.data_mut()?, grad, scalars, rounding)?;
        }
        Ok(())
    }

    /// Whether a trained tensor's moments are coded.
    pub fn is_coded(&self, name: &str) -> Result<bool> {
        Ok(self.config.moments.codes(&self.shapes[self.find(name)?]))
    }

    /// First and second moment of a trained tensor.
    pub fn export(&self, name: &str) -> Result<(Moment, Moment)> {
        let coded = |(first, second)| (Moment::Coded(first), Moment::Coded(second));
        Ok(match self.moments[self.find(name)?].as_ref().expect("found tensors are trained") {
            Moments::F32(m, v) => (Moment::F32(m.to_rows()?), Moment::F32(v.to_rows()?)),
            Moments::Coded(moments) => coded(moments.export()),
            Moments::CodedOnDevice(moments) => coded(moments.export()?),
        })
    }

    /// Replaces the moments of a trained tensor.
    ///
    /// # Errors
    /// If there is no such tensor, or its moments have another size or are kept in another format.
    pub fn import(&mut self, name: &str, first: &Moment, second: &Moment) -> Result<()> {
        let id = self.find(name)?;
        let shape = &self.shapes[id];
        let bad = |message: String| Err(Error::input(message).at(name));
        match (self.moments[id].as_mut().expect("found tensors are trained"), first, second) {
            (Moments::F32(m, v), Moment::F32(first), Moment::F32(second)) => {
                for (moment, data) in [(m, first), (v, second)] {
                    if data.len() != moment.len() {
                        return bad(format!("a moment of {} numbers where {} are expected", data.len(), moment.len()));
                    }
                    moment.set_rows(data)?;
                }
            }
            (Moments::Coded(_) | Moments::CodedOnDevice(_), Moment::F32(_), _) => {
                return bad("moments in f32 where 8-bit ones are expected (optim.moments)".into());
            }
            (moments, Moment::Coded(first), Moment::Coded(second)) => {
                let expected = (shape.iter().product::<usize>(), shape[0] * shape.last().map_or(0, |cols| cols.div_ceil(BLOCK)));
                for coded in [first, second] {
                    let found = (coded.codes.len(), coded.scales.len());
                    if found != expected {
                        return bad(format!("a moment of {found:?} codes and scales where {expected:?} are expected"));
                    }
                }
                match moments {
                    Moments::F32(..) => return bad("8-bit moments where f32 ones are expected (optim.moments)".into()),
                    Moments::Coded(moments) => moments.import(first, second),
                    Moments::CodedOnDevice(moments) => moments.import(first, second)?,
                }
            }
            _ => return bad("a moment in f32 and one in 8 bits".into()),
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<usize> {
        let found = self.names.iter().zip(&self.moments).position(|(n, m)| n == name && m.is_some());
        found.ok_or_else(|| Error::input(format!("no trained tensor is named {name}")))
    }
}

impl Moments {
    /// A step of a tensor.
    fn step(&mut self, data: &mut ParamData, gradient: &ParamData, step: adamw::Step, rounding: Rounding) -> Result<()> {
        match (data, gradient, self) {
            (ParamData::Device(p), ParamData::Device(g), Self::F32(ParamData::Device(m), ParamData::Device(v))) => p.adamw(g, (m, v), step),
            (ParamData::Device(p), ParamData::Device(g), Self::CodedOnDevice(moments)) => p.adamw_8bit(g, moments, step, rounding),
            (ParamData::Matrix(p), ParamData::Matrix(g), Self::Coded(moments)) => {
                panels::step(p, g, moments, step, rounding);
                Ok(())
            }
            (ParamData::Mixed(p), ParamData::Matrix(g), Self::Coded(moments)) => {
                p.update(|master| panels::step(master, g, moments, step, rounding));
                Ok(())
            }
            (ParamData::Mixed(p), g, Self::F32(m, v)) => {
                p.update(|master| adamw::step(master.data_mut(), g.flat(), m.flat_mut(), v.flat_mut(), step));
                Ok(())
            }
            (p, g, Self::F32(m, v)) => {
                adamw::step(p.flat_mut(), g.flat(), m.flat_mut(), v.flat_mut(), step);
                Ok(())
            }
            _ => unreachable!("moments lie where their tensor does"),
        }
    }
}
