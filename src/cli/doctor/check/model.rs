//! A small random model, whole: scoring, gradients, sampling with the cache.

use super::{Check, random};
use crate::Result;
use crate::model::config::{Family, ModelConfig, RopeScaling};
use crate::model::generate::{SamplingParams, generate};
use crate::model::transformer::{Adapter, Transformer};
use crate::tensor::Device;
use crate::tensor::plan::{Plan, Tree};

/// Of log-probabilities behind a few blocks in bf16, and of their gradients: PyTorch's own bf16 is off by 5e-3 and by up to 6e-2 in such a model.
const LOGPROB: f64 = 1e-2;
const GRADIENT: f64 = 6e-2;

fn config(check: &Check) -> ModelConfig {
    ModelConfig {
        family: Family::Qwen2,
        vocab_size: check.size(4000, 304),
        hidden_size: check.size(512, 128),
        intermediate_size: check.size(1024, 136),
        num_layers: check.size(4, 1),
        num_heads: check.size(8, 2),
        num_kv_heads: check.size(2, 1),
        head_dim: 64,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 2048,
        tie_word_embeddings: true,
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        eos_token_ids: vec![0],
        bos_token_id: None,
    }
}

fn build(check: &Check, device: &Device) -> Result<Transformer> {
    let mut stream = 20;
    Transformer::build_on(device, config(check), &mut |info| {
        stream += 1;
        let scale = if info.shape.len() == 2 { 1.7 / (info.shape[1] as f32).sqrt() } else { 0.3 };
        let shift = if info.name.contains("norm") { 1.0 } else { 0.0 };
        Ok(random(info.shape.iter().product(), stream).into_iter().map(|x| super::round(shift + scale * x)).collect())
    })
}

fn ids(n: usize, from: usize) -> Vec<u32> {
    (0..n).map(|i| ((i + from) * 7919 % 300 + 1) as u32).collect()
}

pub(super) fn run(check: &mut Check) -> Result<()> {
    let (cpu, device) = (build(check, &Device::Cpu)?, build(check, &Device::Cuda(check.gpu.clone()))?);
    let trees = [Tree::prompt_with_answers(&ids(check.size(200, 66), 1), &[ids(check.size(90, 4), 2), ids(3, 3)])];
    let plan = Plan::for_trees(&trees);
    let seeds: Vec<f32> = (0..plan.predictions.len()).map(|i| if i % 3 == 0 { -0.2 } else { 0.1 }).collect();
    let mut results = Vec::new();
    for model in [&cpu, &device] {
        let mut grads = model.gradients()?;
        let (stats, saved) = model.forward(&plan, 1.0, false)?;
        model.backward(&plan, saved, &seeds, None, &mut grads)?;
        results.push((stats, grads));
    }
    let [(want, want_grads), (got, grads)] = &mut results[..] else { unreachable!("two models") };
    check.close("model logprobs", &got.logprob, &want.logprob, LOGPROB)?;
    for info in device.trainable().iter().filter(|p| p.name.contains("layers.0.") || !p.name.contains("layers.")) {
        let (got, want) = (grads.export(&info.name)?.unwrap_or_default(), want_grads.export(&info.name)?.unwrap_or_default());
        check.close(&format!("d {}", info.name.trim_start_matches("model.")), &got, &want, GRADIENT)?;
    }
    let params = SamplingParams { n: 3, max_new_tokens: check.size(40, 4), ignore_eos: true, ..Default::default() };
    let prompt = ids(check.size(190, 61), 4);
    let answers = generate(&device, None, std::slice::from_ref(&prompt), &params, 3, &mut |_| true)?;
    let alone = generate(&device, None, std::slice::from_ref(&prompt), &params, 1, &mut |_| true)?;
    let recorded: Vec<f32> = answers.iter().flat_map(|a| a.logprobs.clone()).collect();
    check.same("answers one by one as together", &alone.iter().flat_map(|a| a.logprobs.clone()).collect::<Vec<_>>(), &recorded)?;
    let tree = Tree::prompt_with_answers(&prompt, &answers.iter().map(|a| a.ids.clone()).collect::<Vec<_>>());
    let trained = device.evaluate(&Plan::for_trees(&[tree]), 1.0, Adapter::On)?.logprob;
    check.same("recorded logprobs as training's", &recorded, &trained)
}
