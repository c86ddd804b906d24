//! The transformer: forward with saved activations, and the backward pass that consumes them.

use crate::Result;
use crate::model::config::ModelConfig;
use crate::model::lora::LoraConfig;
use crate::model::weights::ModelFiles;
use crate::tensor::Device;
use crate::tensor::plan::Plan;

/// Per prediction of a plan, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStats {
    /// log softmax(logits / T)[target].
    pub logprob: Vec<f32>,
    /// Entropy of softmax(logits / T), in nats.
    pub entropy: Vec<f32>,
}

/// Which policy a forward pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapter {
    /// With the LoRA adapter, where there is one.
    On,
    /// The base model alone: with LoRA, the reference policy.
    Off,
}

/// A decoder-only language model.
pub struct Transformer {
    config: ModelConfig,
}

/// Activations that a backward pass needs.
pub struct Saved {}

/// Gradients of everything that is trained.
pub struct Gradients {}

impl Gradients {
    /// Sets every gradient to zero.
    pub fn zero(&mut self) {
        todo!()
    }
    /// The 2-norm over all gradients (f64 accumulation, fixed order).
    pub fn norm(&self) -> f64 {
        todo!()
    }
    /// Name of the first tensor with a non-finite gradient.
    pub fn first_non_finite(&self) -> Option<String> {
        todo!()
    }
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Hugging Face's name, or PEFT's for an adapter's.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether weight decay applies by default (matrices: yes; norms and biases: no).
    pub decay: bool,
}

impl Transformer {
    /// Reads the weights.
    pub fn load(_files: &ModelFiles, _device: &Device) -> Result<Self> {
        todo!()
    }
    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// Adds a fresh adapter (A uniform as PEFT's Kaiming initialisation, B zero) and freezes the base.
    pub fn add_lora(&mut self, _lora: &LoraConfig, _seed: u64) -> Result<()> {
        todo!()
    }
    /// The adapter's settings, where there is one.
    pub fn lora(&self) -> Option<&LoraConfig> {
        todo!()
    }
    /// The tensors that are trained, in canonical order: the adapter's, or all.
    pub fn trainable(&self) -> Vec<ParamInfo> {
        todo!()
    }
    /// All base tensors, in canonical order.
    pub fn base_params(&self) -> Vec<ParamInfo> {
        todo!()
    }
    /// The numbers of a tensor (base or adapter), row-major.
    pub fn export(&self, _name: &str) -> Result<Vec<f32>> {
        todo!()
    }
    /// Replaces the numbers of a tensor.
    pub fn import(&mut self, _name: &str, _data: &[f32]) -> Result<()> {
        todo!()
    }
    /// Zeroed gradients for everything in [`Transformer::trainable`].
    pub fn gradients(&self) -> Gradients {
        todo!()
    }
    /// Log-probabilities and entropies of a plan's predictions, nothing saved. Equal bit for bit to [`Transformer::forward`]'s.
    pub fn evaluate(&self, _plan: &Plan, _temperature: f32, _adapter: Adapter) -> Result<TokenStats> {
        todo!()
    }
    /// The same, with what the backward pass needs. `checkpointing`: save only each block's input and recompute the rest.
    pub fn forward(&self, _plan: &Plan, _temperature: f32, _checkpointing: bool) -> Result<(TokenStats, Saved)> {
        todo!()
    }
    /// Adds the gradient of a loss with the given d loss / d logprob and d loss / d entropy (per prediction) to `grads`.
    pub fn backward(
        &self,
        _plan: &Plan,
        _saved: Saved,
        _d_logprob: &[f32],
        _d_entropy: Option<&[f32]>,
        _grads: &mut Gradients,
    ) -> Result<()> {
        todo!()
    }
}
