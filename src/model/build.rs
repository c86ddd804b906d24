//! A model's tensors, read in canonical order.

use crate::Result;
use crate::model::block::Block;
use crate::model::config::ModelConfig;
use crate::model::linear::Linear;
use crate::model::params::{Param, ParamId, Params};
use crate::model::transformer::ParamInfo;

/// Reads tensors in canonical order.
pub(crate) struct Builder<'a> {
    pub params: Params,
    pub read: &'a mut dyn FnMut(&ParamInfo) -> Result<Vec<f32>>,
}

impl Builder<'_> {
    pub fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<ParamId> {
        let info = ParamInfo { name: name.to_owned(), shape: shape.to_vec(), decay: shape.len() > 1 };
        let rows = (self.read)(&info)?;
        let data = self.params.numbers(shape, &rows)?;
        Ok(self.params.push(Param { data, info, trainable: true }))
    }

    fn linear(&mut self, name: &str, n: usize, k: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[n, k])?;
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[n])).transpose()?;
        Ok(Linear { weight, bias, lora: None })
    }

    pub fn block(&mut self, c: &ModelConfig, i: usize) -> Result<Block> {
        let name = |s: &str| format!("model.layers.{i}.{s}");
        let (d, f, q, kv) = (c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim);
        let input_norm = self.tensor(&name("input_layernorm.weight"), &[d])?;
        let (q, k, v) = (
            self.linear(&name("self_attn.q_proj"), q, d, c.qkv_bias)?,
            self.linear(&name("self_attn.k_proj"), kv, d, c.qkv_bias)?,
            self.linear(&name("self_attn.v_proj"), kv, d, c.qkv_bias)?,
        );
        let qk_norm = match c.qk_norm {
            true => Some((
                self.tensor(&name("self_attn.q_norm.weight"), &[c.head_dim])?,
                self.tensor(&name("self_attn.k_norm.weight"), &[c.head_dim])?,
            )),
            false => None,
        };
        Ok(Block {
            input_norm,
            q,
            k,
            v,
            o: self.linear(&name("self_attn.o_proj"), d, c.num_heads * c.head_dim, c.o_bias)?,
            qk_norm,
            post_norm: self.tensor(&name("post_attention_layernorm.weight"), &[d])?,
            gate: self.linear(&name("mlp.gate_proj"), f, d, c.mlp_bias)?,
            up: self.linear(&name("mlp.up_proj"), f, d, c.mlp_bias)?,
            down: self.linear(&name("mlp.down_proj"), d, f, c.mlp_bias)?,
        })
    }
}
