//! A stage's settings, and reading them from checked values.

use super::{Reader, missing};
use crate::data::metrics::ScoreKind;
use crate::error::{Error, Result};
use crate::model::optimizer::{AdamWConfig, MomentFormat};
use crate::rl::advantage::{Scale, Whitening};
use crate::rl::objective::{Aggregation, Clip, KlEstimator, Ratio};
use crate::rl::schedule::{Schedule, Shape};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What is trained in a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Supervised fine-tuning.
    Sft,
    /// A policy gradient without a critic: group relative policy optimisation and its kin.
    Grpo,
    /// Proximal policy optimisation with a critic.
    Ppo,
}

impl Algorithm {
    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sft => "sft",
            Algorithm::Grpo => "grpo",
            Algorithm::Ppo => "ppo",
        }
    }

    /// Whether it samples answers and learns from their rewards.
    pub fn samples(self) -> bool {
        self != Algorithm::Sft
    }
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdvantageKind {
    /// Normalised in the group.
    Grpo,
    /// Less the group's mean.
    DrGrpo,
    /// Less the mean of the group's others.
    Rloo,
    /// Returns, whitened over the batch.
    ReinforcePlusPlus,
    /// The same of rewards less the group's mean.
    ReinforcePlusPlusBaseline,
    /// Generalised advantage estimation with a critic.
    Gae,
}

/// What a critic is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CriticKind {
    /// A value head on the policy's trunk.
    Trunk,
    /// A model that shares the frozen base, with its own adapter.
    Lora,
    /// A full model.
    Full,
}

/// A critic's settings.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct CriticSettings {
    pub kind: CriticKind,
    pub schedule: Schedule,
    pub warmup: u64,
    pub clip: Option<f64>,
    pub coef: f64,
}

/// What the KL is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The policy at the start of the stage.
    Start,
    /// The model as it was loaded; with LoRA, the adapter off.
    Base,
}

/// Settings that may differ from stage to stage.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // documented, one by one, in `keys::KEYS`
pub struct Stage {
    pub algorithm: Algorithm,
    pub steps: u64,
    pub train: Vec<PathBuf>,
    pub shuffle: bool,
    pub batch_prompts: usize,
    pub group_size: usize,
    pub max_prompt_tokens: usize,
    pub max_new_tokens: usize,
    pub temperature: f32,
    pub microbatch_tokens: usize,
    /// Passes over a batch.
    pub epochs: u64,
    /// Updates in each pass.
    pub minibatches: usize,
    pub activation_checkpointing: bool,
    pub score: ScoreKind,
    /// Of a mixture: each subtask's weight.
    pub subtask_weights: BTreeMap<&'static str, f64>,
    pub optim: AdamWConfig,
    pub schedule: Schedule,
    pub kl_coef: f64,
    pub kl_estimator: KlEstimator,
    pub kl_in_reward: bool,
    pub kl_target: f64,
    pub kl_horizon: f64,
    pub kl_measure: bool,
    pub kl_reference: Reference,
    pub clip: Clip,
    pub dual_clip: Option<f64>,
    pub ratio: Ratio,
    pub aggregation: Aggregation,
    pub entropy_coef: f64,
    pub advantage: AdvantageKind,
    pub whitening: Whitening,
    pub center_subtasks: bool,
    pub gamma: f64,
    pub lambda: f64,
    pub advantage_scale: Scale,
    pub advantage_eps: f64,
    pub sampling_rounds: usize,
    pub overlong_buffer: usize,
    pub overlong_penalty: f64,
    pub critic: CriticSettings,
    pub max_skipped: u64,
}

impl Stage {
    pub(super) fn read(r: &Reader<'_>) -> Result<Self> {
        let algorithm = match r.text("algorithm").as_str() {
            "grpo" => Algorithm::Grpo,
            "ppo" => Algorithm::Ppo,
            _ => Algorithm::Sft,
        };
        let train = r.paths("data.train");
        if train.is_empty() {
            return Err(missing("data.train", "data.train = \"tasks.jsonl\""));
        }
        let shape = match r.text("optim.schedule").as_str() {
            "linear" => Shape::Linear,
            "constant" => Shape::Constant,
            _ => Shape::Cosine,
        };
        let warmup = r.number("optim.warmup");
        if warmup > 1.0 && warmup.fract() != 0.0 {
            return Err(Error::input(format!("{warmup} is neither a number of steps nor a part of them (below 1)")).at("optim.warmup"));
        }
        let steps = r.size("steps") as u64;
        if r.number("kl.target") > 0.0 && r.number("kl.coef") == 0.0 {
            return Err(Error::input("an adaptive weight that begins at 0 stays there").at("kl.target").hint("set kl.coef"));
        }
        if algorithm.samples() && r.size("dapo.sampling_rounds") > 1 && r.size("group_size") == 1 {
            let message = "dynamic sampling compares the answers of a group: with group_size = 1 every group is dropped";
            return Err(Error::input(message).at("dapo.sampling_rounds").hint("raise group_size"));
        }
        let (clip_low, clip_high) = r.pair("clip");
        let schedule = |peak: f64| Schedule::new(peak, shape, warmup, steps);
        Ok(Self {
            algorithm,
            steps,
            train,
            shuffle: r.bool("data.shuffle"),
            batch_prompts: r.size("batch_prompts"),
            group_size: r.size("group_size"),
            max_prompt_tokens: r.size("max_prompt_tokens"),
            max_new_tokens: r.size("max_new_tokens"),
            temperature: r.number("temperature") as f32,
            microbatch_tokens: r.size("microbatch_tokens"),
            epochs: r.size(if algorithm == Algorithm::Ppo { "ppo.epochs" } else { "updates_per_batch" }) as u64,
            minibatches: if algorithm == Algorithm::Ppo { r.size("ppo.minibatches") } else { 1 },
            activation_checkpointing: r.bool("activation_checkpointing"),
            score: match r.text("reward.score").as_str() {
                "f1" => ScoreKind::F1,
                "exact" => ScoreKind::Exact,
                "hit" => ScoreKind::Hit,
                _ => ScoreKind::Fbeta,
            },
            subtask_weights: subtask_weights(r)?,
            optim: AdamWConfig {
                betas: r.pair("optim.betas"),
                eps: r.number("optim.eps"),
                weight_decay: r.number("optim.weight_decay"),
                decay_norms_and_biases: r.bool("optim.decay_norms_and_biases"),
                max_grad_norm: r.number("optim.max_grad_norm"),
                moments: if r.text("optim.moments") == "8bit" { MomentFormat::EightBit } else { MomentFormat::F32 },
            },
            schedule: schedule(r.number("optim.lr")),
            kl_coef: r.number("kl.coef"),
            kl_estimator: match r.text("kl.estimator").as_str() {
                "k1" => KlEstimator::K1,
                "k2" => KlEstimator::K2,
                _ => KlEstimator::K3,
            },
            kl_in_reward: r.text("kl.in") == "reward",
            kl_target: r.number("kl.target"),
            kl_horizon: r.number("kl.horizon"),
            kl_measure: r.bool("kl.measure"),
            kl_reference: if r.text("kl.reference") == "base" { Reference::Base } else { Reference::Start },
            clip: Clip { low: clip_low, high: clip_high },
            dual_clip: dual_clip(r)?,
            ratio: if r.text("loss.ratio") == "sequence" { Ratio::Sequence } else { Ratio::Token },
            aggregation: match r.text("loss.aggregation").as_str() {
                "sequence" => Aggregation::Sequence,
                "constant" => Aggregation::Constant(r.size("max_new_tokens")),
                _ => Aggregation::Token,
            },
            entropy_coef: r.number("entropy.coef"),
            advantage: advantage(r, algorithm)?,
            whitening: match r.text("advantage.whiten").as_str() {
                "none" => Whitening::None,
                "sample" => Whitening::Sample,
                _ => Whitening::Population,
            },
            center_subtasks: r.text("advantage.center") == "subtask",
            gamma: r.number("advantage.gamma"),
            lambda: r.number("advantage.lambda"),
            advantage_scale: match r.text("advantage.std").as_str() {
                "population" => Scale::Population,
                "none" => Scale::None,
                _ => Scale::Sample,
            },
            advantage_eps: r.number("advantage.eps"),
            sampling_rounds: r.size("dapo.sampling_rounds"),
            overlong_buffer: r.size("dapo.overlong_buffer"),
            overlong_penalty: r.number("dapo.overlong_penalty"),
            critic: CriticSettings {
                kind: match r.text("critic.kind").as_str() {
                    "trunk" => CriticKind::Trunk,
                    "lora" => CriticKind::Lora,
                    _ => CriticKind::Full,
                },
                schedule: schedule(r.number("critic.lr")),
                warmup: r.size("critic.warmup") as u64,
                clip: Some(r.number("critic.clip")).filter(|c| *c > 0.0),
                coef: r.number("critic.coef"),
            },
            max_skipped: r.size("max_skipped") as u64,
        })
    }
}

/// The weight of each subtask that is asked.
fn subtask_weights(r: &Reader<'_>) -> Result<BTreeMap<&'static str, f64>> {
    let weights: BTreeMap<&'static str, f64> =
        r.subtasks().into_iter().map(|name| (name, r.number(&format!("subtask_weights.{name}")))).collect();
    if weights.values().all(|w| *w == 0.0) {
        return Err(Error::input("every subtask has the weight 0").at("subtask_weights").hint("give one of them a share"));
    }
    Ok(weights)
}

/// The advantage's kind, which must go with the algorithm.
fn advantage(r: &Reader<'_>, algorithm: Algorithm) -> Result<AdvantageKind> {
    let kind = match r.text("advantage.kind").as_str() {
        "dr_grpo" => AdvantageKind::DrGrpo,
        "rloo" => AdvantageKind::Rloo,
        "reinforce++" => AdvantageKind::ReinforcePlusPlus,
        "reinforce++_baseline" => AdvantageKind::ReinforcePlusPlusBaseline,
        "gae" => AdvantageKind::Gae,
        _ => AdvantageKind::Grpo,
    };
    match (algorithm, kind) {
        (Algorithm::Ppo, AdvantageKind::Gae) | (Algorithm::Sft, _) => Ok(kind),
        (Algorithm::Grpo, AdvantageKind::Gae) => {
            Err(Error::input("\"gae\" needs a critic's values").at("advantage.kind").hint("write algorithm = \"ppo\""))
        }
        (Algorithm::Ppo, _) => Err(Error::input("ppo learns a critic, which only \"gae\" uses")
            .at("advantage.kind")
            .hint("leave it out, or write algorithm = \"grpo\" for the kinds without a critic")),
        (Algorithm::Grpo, _) => Ok(kind),
    }
}

/// The c of dual clipping; 0 stands for none.
fn dual_clip(r: &Reader<'_>) -> Result<Option<f64>> {
    match r.number("dual_clip") {
        0.0 => Ok(None),
        c if c > 1.0 => Ok(Some(c)),
        c => Err(Error::input(format!("{c} is neither 0 nor above 1")).at("dual_clip").hint("3 is usual")),
    }
}
