//! Low-rank adapters (Hu et al. 2021): y = x W' + (alpha / rank) (x A') B', beside frozen base weights.

use crate::model::block::Block;
use crate::model::linear::{Linear, LoraLayer};
use crate::model::params::Param;
use crate::model::transformer::{ParamInfo, Transformer};
use crate::model::weights::AdapterTensor;
use crate::tensor::philox::Philox;
use crate::{Error, Result};

/// The settings of an adapter.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The scale is `alpha / rank`.
    pub alpha: f32,
    /// Module names that get an adapter: of [`TARGETS`].
    pub targets: Vec<String>,
}

impl LoraConfig {
    /// # Errors
    ///
    /// A rank of 0; no module, one that is not of [`TARGETS`], or one named twice.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::input("the rank of an adapter is at least 1").at("lora.rank"));
        }
        let refused = |what: String| Err(Error::input(what).at("lora.targets").hint(format!("one of {}", TARGETS.join(", "))));
        for (i, target) in self.targets.iter().enumerate() {
            if !TARGETS.contains(&target.as_str()) {
                return refused(format!("unknown module {target}"));
            }
            if self.targets[..i].contains(target) {
                return refused(format!("{target} is named twice"));
            }
        }
        if self.targets.is_empty() { refused("an adapter needs at least one target module".to_owned()) } else { Ok(()) }
    }
}

/// The modules that can have an adapter, in a block's order.
pub const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Random stream of the initialisation of A.
const STREAM: u64 = 0x4c6f_5241;

impl Transformer {
    /// Adds a fresh adapter and freezes the base. A is uniform in +-1/sqrt(in) (PEFT's Kaiming initialisation with a = sqrt 5), B is zero.
    pub fn add_lora(&mut self, lora: &LoraConfig, seed: u64) -> Result<()> {
        if self.lora.is_some() {
            return Err(Error::input("the model already has an adapter"));
        }
        lora.check()?;
        self.params.all_mut().iter_mut().for_each(|p| p.trainable = false);
        let mut blocks = std::mem::take(&mut self.blocks);
        for (layer, block) in blocks.iter_mut().enumerate() {
            for (name, module, linear) in modules(block) {
                if lora.targets.iter().any(|t| t == name) {
                    linear.lora = Some(self.add_layer(lora, linear, &format!("layers.{layer}.{module}.{name}"), seed)?);
                }
            }
        }
        self.blocks = blocks;
        self.lora = Some(lora.clone());
        Ok(())
    }

    fn add_layer(&mut self, lora: &LoraConfig, linear: &Linear, name: &str, seed: u64) -> Result<LoraLayer> {
        let [out, input] = self.params.all()[linear.weight].info.shape[..] else { unreachable!("a layer's weight is a matrix") };
        let bound = 1.0 / (input as f64).sqrt();
        let (random, key) = (Philox::new(seed, STREAM), linear.weight as u64);
        let a: Vec<f32> = (0..lora.rank * input).map(|i| ((random.uniform(key, i as u64) * 2.0 - 1.0) * bound) as f32).collect();
        let mut add = |part: &str, shape: [usize; 2], rows: &[f32]| {
            let info = ParamInfo { name: format!("base_model.model.model.{name}.{part}.weight"), shape: shape.to_vec(), decay: true };
            let data = self.params.numbers(&shape, rows)?;
            Ok::<_, Error>(self.params.push(Param { info, data, trainable: true }))
        };
        let a = add("lora_A", [lora.rank, input], &a)?;
        let b = add("lora_B", [out, lora.rank], &vec![0.0; out * lora.rank])?;
        Ok(LoraLayer { a, b, scale: lora.alpha / lora.rank as f32 })
    }

    /// Adds an adapter read from a PEFT folder: its settings and its tensors by PEFT's names.
    pub fn add_saved_lora(&mut self, lora: &LoraConfig, tensors: &[AdapterTensor]) -> Result<()> {
        self.add_lora(lora, 0)?;
        let mut missing: std::collections::BTreeSet<String> = self.adapter_params().into_iter().map(|p| p.name).collect();
        for AdapterTensor { name, shape, data } in tensors {
            if !missing.remove(name) {
                return Err(Error::input("the adapter has a tensor that its settings do not ask for").at(name));
            }
            let want = self.adapter_params().into_iter().find(|p| &p.name == name).map(|p| p.shape).unwrap_or_default();
            if &want != shape {
                return Err(Error::input(format!("shape {shape:?} where the model asks for {want:?}")).at(name));
            }
            self.import(name, data)?;
        }
        match missing.first() {
            Some(name) => Err(Error::input(format!("the adapter lacks {} tensors, the first is {name}", missing.len()))),
            None => Ok(()),
        }
    }
}

/// A block's linear layers: (name, the module they stand in, the layer).
fn modules(block: &mut Block) -> [(&'static str, &'static str, &mut Linear); 7] {
    let Block { q, k, v, o, gate, up, down, .. } = block;
    let [a, b, c, d, e, f, g] = TARGETS;
    let (attention, mlp) = ("self_attn", "mlp");
    [(a, attention, q), (b, attention, k), (c, attention, v), (d, attention, o), (e, mlp, gate), (f, mlp, up), (g, mlp, down)]
}
