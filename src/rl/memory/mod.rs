//! How much memory a run will take, from its settings and the longest example, before the first step: on the processor (`cpu.rs`), on a GPU
//! (`gpu.rs`), and by which settings it would take less (`fit.rs`).

use crate::model::ModelConfig;
use crate::model::lora::LoraConfig;
use crate::model::optimizer::MomentFormat;
use crate::rl::config::{Algorithm, Config, CriticKind, Reference, Stage};
use crate::rl::dataset::Dataset;
use crate::rl::trainer::Examples;
use crate::tensor::cpu::panels::PANEL;
use crate::tensor::ops::adamw::codes::BLOCK;
use crate::tensor::plan::TILE;
use std::fmt;

mod cpu;
mod fit;
mod gpu;

/// Where a run's numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the machine's memory, all of them f32, or with `compute = "bf16"` the matrices bf16, with an f32 master of what is trained.
    Cpu {
        /// Whether bf16 holds the model's weights as they are read; where not, their f32 are kept beside.
        exact: bool,
    },
    /// In a GPU's: weights and activations bf16, with an f32 master of what is trained.
    Gpu {
        /// As on the processor.
        exact: bool,
    },
}

/// A run that is to be planned.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    /// Where its numbers lie.
    pub place: Place,
    /// Its settings.
    pub config: &'a Config,
    /// The model's shape.
    pub model: &'a ModelConfig,
    /// The adapter that is trained, fresh or loaded.
    pub lora: Option<&'a LoraConfig>,
    /// What it is trained on.
    pub examples: &'a Examples,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What takes the memory.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
    /// How that comes about.
    pub because: String,
    /// The setting that makes it smaller, where there is one.
    pub setting: &'static str,
}

/// The memory that a run takes at its fullest moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The parts. Activations and what sampling takes never stand at the same time; both are listed, the larger one counts.
    pub rows: Vec<Row>,
    /// The sum.
    pub total: u64,
}

/// The largest micro-batch of a stage.
struct Largest {
    tokens: usize,
    segments: usize,
    targets: usize,
}

impl MemoryPlan {
    /// The plan of a run.
    pub fn new(run: &Planned<'_>) -> Self {
        let &Planned { place, config, model, lora, examples } = run;
        let base = base_numbers(model);
        let trained = lora.map_or(base, |l| adapter_numbers(model, l));
        let padded = if matches!(place, Place::Cpu { .. }) { PANEL } else { 1 };
        let (matrices, adapter) = (base_matrices(model), lora.map(|l| adapter_matrices(model, l)));
        let coded = coded_moments(adapter.as_ref().unwrap_or(&matrices), trained, padded);
        let bf16 = [bf16_panels(&matrices), adapter.as_deref().map_or(0, bf16_panels)];
        let numbers = Numbers { base, trained, lora: lora.is_some(), coded, bf16 };
        let mut rows = match place {
            Place::Cpu { exact } => cpu::kept(config, &numbers, exact),
            Place::Gpu { exact } => gpu::kept(config, &numbers, exact),
        };
        let kept: u64 = rows.iter().map(|r| r.bytes).sum();
        let stages = || config.stages.iter().zip(&examples.stages);
        let training = stages().map(|(s, d)| match place {
            Place::Cpu { .. } => cpu::activations(model, s, d),
            Place::Gpu { .. } => gpu::activations(model, s, d, !numbers.lora),
        });
        let sampling = stages().filter_map(|(s, d)| match place {
            Place::Cpu { .. } => cpu::kv_cache(model, config, s, d),
            Place::Gpu { .. } => gpu::sampling(model, config, s, d),
        });
        let working: Vec<Row> = training.max_by_key(|r| r.bytes).into_iter().chain(sampling.max_by_key(|r| r.bytes)).collect();
        let larger = working.iter().map(|r| r.bytes).max().unwrap_or(0);
        rows.extend(working);
        Self { rows, total: kept + larger }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.what.len()).max().unwrap_or(0).max(6);
        for r in &self.rows {
            writeln!(f, "{:width$}  {:>10}  {}", r.what, Size(r.bytes).to_string(), r.because)?;
        }
        writeln!(
            f,
            "{:width$}  {:>10}  training and sampling never stand together: the larger counts",
            "total",
            Size(self.total).to_string()
        )
    }
}

/// What a run's numbers are counted by.
struct Numbers {
    /// Of the model.
    base: u64,
    /// Of what is trained.
    trained: u64,
    /// Whether that is an adapter.
    lora: bool,
    /// Bytes of its moments in 8 bits.
    coded: u64,
    /// Bytes of the model's and of the adapter's matrices in the processor's bf16.
    bf16: [u64; 2],
}

impl Numbers {
    /// Bytes of the moments in the stage of these where they take most, and how that comes about.
    fn moments<'a>(&self, stages: impl Iterator<Item = &'a Stage>) -> (u64, &'static str) {
        let bytes = stages.map(|s| if s.optim.moments == MomentFormat::EightBit { self.coded } else { 8 * self.trained }).max();
        match bytes.unwrap_or(0) {
            bytes if bytes == 8 * self.trained => (bytes, "f32"),
            bytes => (bytes, "in 8 bits with a scale for every 256, but small tensors"),
        }
    }

    /// The same of a critic that is more than a head.
    fn critic_moments(&self, config: &Config) -> Option<(u64, &'static str)> {
        let own = |s: &&Stage| s.algorithm == Algorithm::Ppo && s.critic.kind != CriticKind::Trunk;
        config.stages.iter().find(own).map(|_| self.moments(config.stages.iter().filter(own)))
    }

    /// The stages with a frozen copy of all weights to measure the KL against. One copy at a time, but where some stage measures against the
    /// model as it was loaded: that copy stays.
    fn references(&self, config: &Config) -> Vec<usize> {
        let measures = |s: &Stage| s.algorithm.samples() && (s.kl_measure || s.kl_coef > 0.0);
        let stages = (0..config.stages.len()).filter(|&i| !self.lora && measures(&config.stages[i]));
        let most = if config.stages.iter().any(|s| s.kl_reference == Reference::Base) { 2 } else { 1 };
        stages.take(most).collect()
    }
}

/// Bytes for people.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / (1 << 20) as f64;
        if mib < 1024.0 { write!(f, "{mib:.1} MiB") } else { write!(f, "{:.2} GiB", mib / 1024.0) }
    }
}

fn row(what: &'static str, bytes: u64, because: String, setting: &'static str) -> Row {
    Row { what, bytes, because, setting }
}

/// Numbers of the base model.
fn base_numbers(c: &ModelConfig) -> u64 {
    let (d, ffn, q, kv) = widths(c);
    let biases = if c.qkv_bias { q + 2 * kv } else { 0 } + if c.o_bias { d } else { 0 } + if c.mlp_bias { 2 * ffn + d } else { 0 };
    let qk_norm = if c.qk_norm { 2 * c.head_dim } else { 0 };
    let block = 2 * d * q + 2 * d * kv + 3 * d * ffn + 2 * d + biases + qk_norm;
    let embeddings = c.vocab_size * d * if c.tie_word_embeddings { 1 } else { 2 };
    (embeddings + d + c.num_layers * block) as u64
}

/// Numbers of an adapter.
fn adapter_numbers(c: &ModelConfig, lora: &LoraConfig) -> u64 {
    adapter_matrices(c, lora).iter().map(|([rows, cols], times)| (rows * cols * times) as u64).sum()
}

/// An adapter's matrices: their shapes, and how many there are of each.
fn adapter_matrices(c: &ModelConfig, lora: &LoraConfig) -> Vec<([usize; 2], usize)> {
    let (d, ffn, q, kv) = widths(c);
    let of = |target: &String| {
        let (input, output) = match target.as_str() {
            "q_proj" => (d, q),
            "o_proj" => (q, d),
            "k_proj" | "v_proj" => (d, kv),
            "down_proj" => (ffn, d),
            _ => (d, ffn),
        };
        [([lora.rank, input], c.num_layers), ([output, lora.rank], c.num_layers)]
    };
    lora.targets.iter().flat_map(of).collect()
}

/// The base model's matrices: their shapes, and how many there are of each.
fn base_matrices(c: &ModelConfig) -> Vec<([usize; 2], usize)> {
    let (d, ffn, q, kv) = widths(c);
    let embeddings = if c.tie_word_embeddings { 1 } else { 2 };
    let block = [([q, d], 1), ([kv, d], 2), ([d, q], 1), ([ffn, d], 2), ([d, ffn], 1)];
    block.into_iter().map(|(shape, times)| (shape, times * c.num_layers)).chain([([c.vocab_size, d], embeddings)]).collect()
}

/// Bytes of the moments of `trained` numbers in 8 bits, these matrices among them, whose rows are filled up to a multiple of `padded`.
fn coded_moments(matrices: &[([usize; 2], usize)], trained: u64, padded: usize) -> u64 {
    let coded = || matrices.iter().filter(|(shape, _)| MomentFormat::EightBit.codes(shape));
    let plain = trained - coded().map(|([rows, cols], times)| (rows * cols * times) as u64).sum::<u64>();
    let of = |&([rows, cols], times): &([usize; 2], usize)| times * rows.next_multiple_of(padded) * 2 * (cols + 4 * cols.div_ceil(BLOCK));
    8 * plain + coded().map(of).sum::<usize>() as u64
}

/// Bytes of matrices in the processor's bf16: whole panels of whole chunks.
fn bf16_panels(matrices: &[([usize; 2], usize)]) -> u64 {
    let numbers = |([rows, cols], times): &([usize; 2], usize)| times * rows.next_multiple_of(PANEL) * cols.next_multiple_of(PANEL);
    2 * matrices.iter().map(numbers).sum::<usize>() as u64
}

fn widths(c: &ModelConfig) -> (usize, usize, usize, usize) {
    (c.hidden_size, c.intermediate_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim)
}

/// The longest prompt and the longest tree of a dataset, as a stage uses it.
fn largest(stage: &Stage, dataset: &Dataset) -> Largest {
    let group = if stage.algorithm.samples() { stage.group_size } else { 1 };
    let tree = match dataset {
        Dataset::Sequences(lines) => {
            lines.iter().map(|l| Largest { tokens: l.ids.len(), segments: 1, targets: l.num_targets() }).max_by_key(|t| t.tokens)
        }
        Dataset::Items(items) => items
            .iter()
            .map(|i| {
                let targets = if stage.algorithm.samples() { group * stage.max_new_tokens } else { i.gold.len() };
                Largest { tokens: i.prompt.len() + targets, segments: 1 + group, targets }
            })
            .max_by_key(|t| t.tokens),
    };
    let tree = tree.unwrap_or(Largest { tokens: 0, segments: 0, targets: 0 });
    // As many whole trees as a micro-batch holds, at least one.
    let trees = (stage.microbatch_tokens / tree.tokens.max(1)).clamp(1, stage.batch_prompts);
    Largest { tokens: trees * tree.tokens, segments: trees * tree.segments, targets: trees * tree.targets }
}

/// How many answers are sampled together, on how many prompts, and the longest prompt.
fn sampled_together(config: &Config, stage: &Stage, dataset: &Dataset) -> Option<(usize, usize, usize)> {
    let Dataset::Items(items) = dataset else { return None };
    if !stage.algorithm.samples() {
        return None;
    }
    let answers = config.rollout_batch.min(stage.batch_prompts * stage.group_size);
    let prompts = answers.div_ceil(stage.group_size).min(stage.batch_prompts) + 1;
    Some((answers, prompts, items.iter().map(|i| i.prompt.len()).max().unwrap_or(0)))
}

/// Positions of the cache that they take.
fn positions(stage: &Stage, (answers, prompts, longest): (usize, usize, usize)) -> usize {
    prompts * longest.next_multiple_of(TILE) + answers * (stage.max_new_tokens + 2 * TILE)
}

/// Bytes of memory that are free on this machine and allowed to this process, where the system says so.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let free = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    match (read("memory.max"), read("memory.current")) {
        (Some(max), Some(current)) => Some(free.min(max.saturating_sub(current))),
        _ => Some(free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::{Family, RopeScaling};
    use crate::rl::dataset::Sequence;
    use std::path::Path;
    use std::sync::Arc;

    fn smollm2() -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            rope_theta: 1e5,
            rope_scaling: RopeScaling::None,
            rms_norm_eps: 1e-5,
            max_position_embeddings: 8192,
            tie_word_embeddings: true,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            eos_token_ids: vec![2],
            bos_token_id: None,
        }
    }

    #[test]
    fn counts_the_parameters_of_a_known_model() {
        assert_eq!(base_numbers(&smollm2()), 134_515_008);
        let lora = LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "v_proj".into()] };
        assert_eq!(adapter_numbers(&smollm2(), &lora), 30 * 8 * (576 + 576 + 576 + 192));
    }

    /// Every matrix of this model is large; its 61 norms of 576 numbers stay f32. Rows of 576 have three blocks, of 1536 six.
    #[test]
    fn counts_moments_in_8_bits() {
        let (wide, deep) = (49152 + 30 * (576 + 192 + 192 + 576 + 1536 + 1536), 30 * 576);
        let expected = 2 * (134_515_008 - 61 * 576) + 8 * (3 * wide + 6 * deep) + 8 * 61 * 576;
        assert_eq!(coded_moments(&base_matrices(&smollm2()), 134_515_008, 1), expected);
        // A's rows have 576, 576 and 576, 576 numbers; B's, of 576 and 192 rows, 8: the latter has less than 4096.
        let lora = LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "v_proj".into()] };
        let expected = 30 * (2 * 2 * 8 * (576 + 4 * 3) + 2 * 576 * (8 + 4) + 8 * 192 * 8);
        assert_eq!(coded_moments(&adapter_matrices(&smollm2(), &lora), adapter_numbers(&smollm2(), &lora), 1), expected);
    }

    #[test]
    fn says_what_does_not_fit() {
        let text = "model = \"a/b\"\ndata.train = \"x\"\nbatch_prompts = 4\nmicrobatch_tokens = 200\n";
        let config = Config::parse(text, Path::new("a.toml")).unwrap();
        let lines = vec![Sequence { ids: vec![1; 100], targets: vec![true; 100] }];
        let examples = Examples { stages: vec![Arc::new(Dataset::Sequences(lines))], heldout: Vec::new() };
        let model = smollm2();
        let run = Planned { place: Place::Cpu { exact: false }, config: &config, model: &model, lora: None, examples: &examples };
        let plan = MemoryPlan::new(&run);
        assert!(plan.to_string().contains("200 tokens in the largest micro-batch"), "{plan}");
        let weights = 134_515_008 * 16;
        assert!(plan.total > weights && plan.total < weights + (400 << 20), "{plan}");
        assert!(run.check(plan.total).is_ok());
        let e = run.check(plan.total - 1).unwrap_err().to_string();
        assert!(e.starts_with("the run needs 2.") && e.contains("activation_checkpointing = true"), "{e}");
        let e = run.check(1 << 30).unwrap_err().to_string();
        assert!(e.contains("lora.rank = 16"), "{e}");
        let cases = [
            (1500 << 20, &["optim.moments = \"8bit\""][..]),
            (1 << 30, &["lora.rank = 16"]),
            (650 << 20, &["lora.rank = 16", "activation_checkpointing = true"]),
        ];
        for (free, expected) in cases {
            let (changes, fits) = run.settings_that_fit(free).unwrap();
            assert!(fits.total <= free && changes == expected, "{changes:?}");
        }
        assert!(run.check(1 << 20).unwrap_err().to_string().contains("a smaller model"));
        let gpu = MemoryPlan::new(&Planned { place: Place::Gpu { exact: true }, ..run });
        assert!(gpu.total > 134_515_008 * 18 && gpu.total < 134_515_008 * 18 + (200 << 20), "{gpu}");
    }
}
