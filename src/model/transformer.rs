//! The transformer: forward with saved activations, and the backward pass that consumes them. No tape: each layer's backward is written.

use crate::model::block::{Block, Pass, Saved as SavedBlock};
use crate::model::build::Builder;
use crate::model::config::ModelConfig;
use crate::model::kv_cache::KvLayers;
use crate::model::lora::LoraConfig;
use crate::model::params::{ParamId, Params};
use crate::model::rope::inverse_frequencies;
use crate::model::saved::{SavedHead, SavedLayer, SavedOn, Trunk, download};
use crate::model::weights::ModelFiles;
use crate::tensor::cpu::{Compute, Weight};
use crate::tensor::cuda::{Buffer, DType};
use crate::tensor::ops::attention::{self, Heads, KvLayer};
use crate::tensor::ops::token_logprob::Keep;
use crate::tensor::ops::{embedding, residual, rmsnorm, rope, token_logprob};
use crate::tensor::plan::Plan;
use crate::tensor::{Device, Tensor};
use crate::{Error, Result};

pub use crate::model::gradients::Gradients;
pub use crate::model::linear::Adapter;
pub use crate::model::params::ParamInfo;
pub use crate::model::saved::{Saved, SavedTrunk};

/// Per prediction of a plan, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStats {
    /// The target's log softmax(logits / T).
    pub logprob: Vec<f32>,
    /// Entropy of softmax(logits / T), in nats.
    pub entropy: Vec<f32>,
}

/// Gives the numbers of a tensor, row-major.
pub type ReadTensor<'a> = dyn FnMut(&ParamInfo) -> Result<Vec<f32>> + 'a;

/// A decoder-only language model.
#[derive(Clone)]
pub struct Transformer {
    config: ModelConfig,
    inv_freq: Vec<f32>,
    pub(crate) params: Params,
    pub(crate) embedding: ParamId,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: ParamId,
    /// The embedding itself where the head is tied.
    pub(crate) head: ParamId,
    pub(crate) lora: Option<LoraConfig>,
}

impl Transformer {
    /// Reads the weights of an opened model. `compute` is for the processor's products alone: a device's are in bf16.
    pub fn load(files: &ModelFiles, device: &Device, compute: Compute) -> Result<Self> {
        let source = &*files.weights;
        let model = Self::build_in(device, compute, files.config.clone(), &mut |info| source.read(&info.name, &info.shape));
        source.release();
        model
    }

    /// Builds the model from a function that gives each tensor's numbers, row-major.
    pub fn build(config: ModelConfig, read: &mut ReadTensor<'_>) -> Result<Self> {
        Self::build_on(&Device::Cpu, config, read)
    }

    /// The same on a device.
    pub fn build_on(device: &Device, config: ModelConfig, read: &mut ReadTensor<'_>) -> Result<Self> {
        Self::build_in(device, Compute::F32, config, read)
    }

    /// The same, its products on the processor computing in `compute`.
    pub fn build_in(device: &Device, compute: Compute, config: ModelConfig, read: &mut ReadTensor<'_>) -> Result<Self> {
        let heads = Heads { num_heads: config.num_heads, num_kv_heads: config.num_kv_heads, head_dim: config.head_dim };
        if !device.is_cpu() {
            attention::cuda::check(heads)?;
        }
        let mut builder = Builder { params: Params::on(device, compute), read };
        let (d, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = builder.tensor("model.embed_tokens.weight", &[vocab, d])?;
        let blocks = (0..config.num_layers).map(|i| builder.block(&config, i)).collect::<Result<Vec<_>>>()?;
        let final_norm = builder.tensor("model.norm.weight", &[d])?;
        let head = if config.tie_word_embeddings { embedding } else { builder.tensor("lm_head.weight", &[vocab, d])? };
        let params = builder.params;
        Ok(Self { inv_freq: inverse_frequencies(&config), config, params, embedding, blocks, final_norm, head, lora: None })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What products on the processor compute in.
    pub fn compute(&self) -> Compute {
        self.params.compute()
    }

    /// How the model's heads share keys.
    pub fn heads(&self) -> Heads {
        let c = &self.config;
        Heads { num_heads: c.num_heads, num_kv_heads: c.num_kv_heads, head_dim: c.head_dim }
    }

    /// The adapter's settings, where there is one.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// The tensors that are trained, in canonical order: the adapter's, or all.
    pub fn trainable(&self) -> Vec<ParamInfo> {
        self.params.all().iter().filter(|p| p.trainable).map(|p| p.info.clone()).collect()
    }

    /// All base tensors, in canonical order (a tied head is the embedding and is not listed).
    pub fn base_params(&self) -> Vec<ParamInfo> {
        self.params.all().iter().filter(|p| !is_adapter(&p.info.name)).map(|p| p.info.clone()).collect()
    }

    /// The adapter's tensors, in canonical order.
    pub fn adapter_params(&self) -> Vec<ParamInfo> {
        self.params.all().iter().filter(|p| is_adapter(&p.info.name)).map(|p| p.info.clone()).collect()
    }

    /// The numbers of a tensor (base or adapter), row-major.
    pub fn export(&self, name: &str) -> Result<Vec<f32>> {
        self.params.all()[self.find(name)?].data.to_rows()
    }

    /// Replaces the numbers of a tensor.
    pub fn import(&mut self, name: &str, data: &[f32]) -> Result<()> {
        let id = self.find(name)?;
        let shape = self.params.all()[id].info.shape.clone();
        let expected = shape.iter().product::<usize>();
        if data.len() != expected {
            return Err(Error::input(format!("{} numbers where the shape {shape:?} asks for {expected}", data.len())).at(name));
        }
        self.params.all_mut()[id].data = self.params.numbers(&shape, data)?;
        Ok(())
    }

    fn find(&self, name: &str) -> Result<ParamId> {
        self.params.find(name).ok_or_else(|| Error::input(format!("the model has no tensor named {name}")))
    }

    /// Frequencies of the rotary embedding, `[head_dim / 2]`.
    pub(crate) fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// Zeroed gradients for everything in [`Transformer::trainable`].
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn gradients(&self) -> Result<Gradients> {
        Gradients::new(&self.params, Some(self.embedding))
    }

    fn pass<'a>(&'a self, plan: &'a Plan, adapter: Adapter) -> Pass<'a> {
        Pass {
            params: &self.params,
            plan,
            angles: rope::Angles::new(&plan.positions, &self.inv_freq),
            heads: self.heads(),
            eps: self.config.rms_norm_eps as f32,
            adapter,
        }
    }

    pub(super) fn head_matrix(&self) -> Weight<'_> {
        self.params.weight(self.head)
    }

    fn check_temperature(temperature: f32) -> Result<()> {
        if temperature > 0.0 && temperature.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!("log-probabilities at temperature {temperature}: expected a number above 0")).at("temperature"))
    }

    pub(super) fn check(&self, plan: &Plan) -> Result<()> {
        if let Some(id) = plan.ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::input(format!("token id {id} is outside the model's vocabulary of {}", self.config.vocab_size)));
        }
        let longest = plan.positions.iter().max().map_or(0, |p| *p as usize + 1);
        if longest > self.config.max_position_embeddings {
            let limit = self.config.max_position_embeddings;
            return Err(Error::input(format!("a sequence of {longest} tokens is longer than the model's context of {limit}")));
        }
        Ok(())
    }

    /// Final hidden states (normed) of the packed rows `rows`, `[rows, D]`, of a plan whose keys and values live in `kv`, one layer each.
    /// This is the pass of prefill and decode; it is [`Transformer::forward`]'s, nothing saved.
    pub(crate) fn hidden(&self, plan: &Plan, kv: &mut KvLayers, rows: &[u32], adapter: Adapter) -> Result<Tensor> {
        self.check(plan)?;
        let kv = match (kv, self.params.gpu()) {
            (KvLayers::Cpu(layers), None) => layers,
            (KvLayers::Device(layers), Some(gpu)) => return self.hidden_on(gpu, plan, layers, rows, adapter),
            _ => return Err(Error::device("the cache is not where the model is")),
        };
        let pass = self.pass(plan, adapter);
        let mut x = embedding::forward(self.params.weight(self.embedding), &plan.ids);
        for (block, kv) in self.blocks.iter().zip(kv) {
            x = block.forward(&pass, &x, kv)?.0;
        }
        let x = gather(&x, rows);
        Ok(rmsnorm::forward(&x, self.params.vector(self.final_norm), pass.eps)?.0)
    }

    /// The final hidden states (normed) that predict, `[predictions, D]`, nothing saved: what the head, or a value head, reads.
    pub fn predicting(&self, plan: &Plan, adapter: Adapter) -> Result<Tensor> {
        self.check(plan)?;
        if let Some(gpu) = self.params.gpu() {
            return download(&self.predicting_on(gpu, plan, adapter)?, self.config.hidden_size);
        }
        let pass = self.pass(plan, adapter);
        let mut x = embedding::forward(self.params.weight(self.embedding), &plan.ids);
        for block in &self.blocks {
            x = block.forward(&pass, &x, &mut KvLayer::new(pass.heads, plan.num_pages))?.0;
        }
        let h = rmsnorm::forward(&x, self.params.vector(self.final_norm), pass.eps)?.0;
        Ok(gather(&h, &predictions(plan).0))
    }

    /// Log-probabilities and entropies of a plan's predictions, nothing saved. Equal bit for bit to [`Transformer::forward`]'s.
    pub fn evaluate(&self, plan: &Plan, temperature: f32, adapter: Adapter) -> Result<TokenStats> {
        Self::check_temperature(temperature)?;
        if let Some(gpu) = self.params.gpu() {
            self.check(plan)?;
            return self.evaluate_on(gpu, plan, temperature, adapter);
        }
        let h = self.predicting(plan, adapter)?;
        let (logprob, entropy, _) = token_logprob::forward(&h, self.head_matrix(), &predictions(plan).1, temperature, Keep::Nothing);
        Ok(TokenStats { logprob, entropy })
    }

    /// The same, with what the backward pass needs. `checkpointing`: save only each block's input and compute the rest again.
    pub fn forward(&self, plan: &Plan, temperature: f32, checkpointing: bool) -> Result<(TokenStats, Saved)> {
        Self::check_temperature(temperature)?;
        self.check(plan)?;
        if let Some(gpu) = self.params.gpu() {
            let (stats, saved) = self.forward_on(gpu, plan, temperature, checkpointing)?;
            return Ok((stats, Saved(SavedOn::Device(saved))));
        }
        let trunk = self.trunk(plan, checkpointing)?;
        let targets = predictions(plan).1;
        let (logprob, entropy, head) =
            token_logprob::forward(&trunk.predicting, self.head_matrix(), &targets, temperature, Keep::ForBackward);
        Ok((TokenStats { logprob, entropy }, Saved(SavedOn::Cpu(SavedHead { trunk, head, temperature }))))
    }

    /// The pass below the head, with what its backward pass needs: all that a critic computes.
    pub fn forward_trunk(&self, plan: &Plan, checkpointing: bool) -> Result<SavedTrunk> {
        self.check(plan)?;
        Ok(SavedTrunk(match self.params.gpu() {
            None => SavedOn::Cpu(self.trunk(plan, checkpointing)?),
            Some(gpu) => SavedOn::Device(self.forward_trunk_on(gpu, plan, checkpointing)?),
        }))
    }

    fn trunk(&self, plan: &Plan, checkpointing: bool) -> Result<Trunk> {
        let pass = self.pass(plan, Adapter::On);
        let mut x = embedding::forward(self.params.weight(self.embedding), &plan.ids);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let mut kv = KvLayer::new(pass.heads, plan.num_pages);
            let (out, forward) = block.forward(&pass, &x, &mut kv)?;
            let input = std::mem::replace(&mut x, out);
            blocks.push(match checkpointing {
                true => SavedLayer::Input(input),
                false => SavedLayer::Full(Box::new(SavedBlock { x: input, kv, forward })),
            });
        }
        let (h, rstd) = rmsnorm::forward(&x, self.params.vector(self.final_norm), pass.eps)?;
        let predicting = gather(&h, &predictions(plan).0);
        Ok(Trunk { blocks, last: x, rstd, predicting })
    }

    /// Adds the gradient of a loss with the given d loss / d logprob and d loss / d entropy (per prediction) to `grads`.
    pub fn backward(&self, plan: &Plan, saved: Saved, d_logprob: &[f32], d_entropy: Option<&[f32]>, grads: &mut Gradients) -> Result<()> {
        self.backward_with(plan, saved, d_logprob, d_entropy, None, grads)
    }

    /// The same for a loss that also reads the hidden states that predict, through a value head: `d_predicting` is its gradient by them.
    pub fn backward_with(
        &self,
        plan: &Plan,
        saved: Saved,
        d_logprob: &[f32],
        d_entropy: Option<&[f32]>,
        d_predicting: Option<&Tensor>,
        grads: &mut Gradients,
    ) -> Result<()> {
        let targets = predictions(plan).1;
        if d_logprob.len() != targets.len() || d_entropy.is_some_and(|d| d.len() != targets.len()) {
            return Err(Error::input(format!("{} gradients for {} predictions", d_logprob.len(), targets.len())));
        }
        let saved = match (saved.0, self.params.gpu()) {
            (SavedOn::Cpu(saved), _) => saved,
            (SavedOn::Device(saved), Some(gpu)) => {
                return self.backward_on(gpu, plan, saved, d_logprob, d_entropy, d_predicting, grads);
            }
            (SavedOn::Device(_), None) => return Err(Error::device("activations of a device for a model of the processor")),
        };
        let (w, head) = (self.head_matrix(), grads.matrix_mut(self.head));
        let (h, t) = (&saved.trunk.predicting, saved.temperature);
        let mut d_hidden = token_logprob::backward(h, w, &targets, t, saved.head, d_logprob, d_entropy, &plan.head_chunks, head);
        if let Some(d) = d_predicting {
            residual::add_to(&mut d_hidden, d);
        }
        self.trunk_backward(plan, saved.trunk, &d_hidden, grads)
    }

    /// Adds the gradient of a loss with the given gradient by the hidden states that predict, `[predictions, D]`, to `grads`.
    pub fn backward_trunk(&self, plan: &Plan, saved: SavedTrunk, d_predicting: &Tensor, grads: &mut Gradients) -> Result<()> {
        match (saved.0, self.params.gpu()) {
            (SavedOn::Cpu(saved), _) => self.trunk_backward(plan, saved, d_predicting, grads),
            (SavedOn::Device(saved), Some(gpu)) => {
                let d_predicting = Buffer::from_f32(gpu, DType::Bf16, d_predicting.data())?;
                self.backward_trunk_on(gpu, plan, saved, &d_predicting, grads)
            }
            (SavedOn::Device(_), None) => Err(Error::device("activations of a device for a model of the processor")),
        }
    }

    fn trunk_backward(&self, plan: &Plan, saved: Trunk, d_predicting: &Tensor, grads: &mut Gradients) -> Result<()> {
        let pass = self.pass(plan, Adapter::On);
        let d_hidden = scatter(d_predicting, &predictions(plan).0, plan.num_tokens());
        let norm = self.params.vector(self.final_norm);
        let mut dx = rmsnorm::backward(&d_hidden, &saved.last, norm, &saved.rstd, &plan.grad_chunks, grads.vector_mut(self.final_norm))?;
        for (block, saved) in self.blocks.iter().zip(saved.blocks).rev() {
            let saved = match saved {
                SavedLayer::Full(saved) => *saved,
                SavedLayer::Input(x) => {
                    let mut kv = KvLayer::new(pass.heads, plan.num_pages);
                    let (_, forward) = block.forward(&pass, &x, &mut kv)?;
                    SavedBlock { x, kv, forward }
                }
            };
            dx = block.backward(&pass, saved, dx, grads)?;
        }
        if grads.is_trained(self.embedding) {
            grads.add_embedding(&plan.ids, &dx);
        }
        Ok(())
    }
}

/// Rows of `x` by index.
fn gather(x: &Tensor, rows: &[u32]) -> Tensor {
    let mut out = Vec::with_capacity(rows.len() * x.cols());
    for &r in rows {
        out.extend_from_slice(x.row(r as usize));
    }
    Tensor::from_vec(&[rows.len(), x.cols()], out)
}

/// The gradient of [`gather`]: rows are added to where they came from, one after another.
fn scatter(dy: &Tensor, rows: &[u32], total: usize) -> Tensor {
    let width = dy.cols();
    let mut dx = Tensor::zeros(&[total, width]);
    for (i, &r) in rows.iter().enumerate() {
        let to = &mut dx.data_mut()[r as usize * width..][..width];
        to.iter_mut().zip(dy.row(i)).for_each(|(a, b)| *a += b);
    }
    dx
}

fn predictions(plan: &Plan) -> (Vec<u32>, Vec<u32>) {
    plan.predictions.iter().map(|p| (p.source, p.target)).unzip()
}

/// Whether a tensor's name is an adapter's.
pub(crate) fn is_adapter(name: &str) -> bool {
    name.contains(".lora_")
}
