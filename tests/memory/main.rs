//! What `train --plan` says against what a run takes, on the allocator's own count.
//!
//! One test: the count is the process's.

use sorft_native::model::config::{Family, ModelConfig};
use sorft_native::model::generate::Completion;
use sorft_native::model::lora::LoraConfig;
use sorft_native::rl::config::Config;
use sorft_native::rl::dataset::{Dataset, Item, Sequence};
use sorft_native::rl::evaluate::Evaluation;
use sorft_native::rl::memory::{MemoryPlan, Place, Planned};
use sorft_native::rl::reward::{Question, Reward};
use sorft_native::rl::trainer::{Event, Examples, Hooks, Inputs, Trainer};
use sorft_native::tensor::cpu::aligned::mapped_bytes;
use sorft_native::{Result, model::Transformer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[allow(dead_code)] // every model here says what its products compute in
#[path = "../support/tiny.rs"]
mod tiny;

/// The system's allocator with a count of what it holds, and of the most that was held at a time, mapped arrays included.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grew(by: usize) {
    let held = HELD.fetch_add(by, Ordering::Relaxed) + by;
    PEAK.fetch_max(held + mapped_bytes(), Ordering::Relaxed);
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rewards the length of an answer's first id, so that groups differ.
struct First;

impl Question for First {
    fn text(&self) -> &str {
        ""
    }
    fn gold_answer(&self) -> &str {
        ""
    }
    fn judge(&self, completion: &Completion) -> Reward {
        Reward { value: f64::from(completion.ids[0] % 7), parts: vec![("valid", 1.0)], error: None }
    }
    fn cut(&self) -> Option<String> {
        None
    }
}

struct Quiet;

impl Hooks for Quiet {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Warning(text) = event
            && text.contains("not finite")
        {
            panic!("{text}");
        }
    }
    fn evaluate(&mut self, _: &Transformer, _: u64) -> Result<Option<Evaluation>> {
        Ok(None)
    }
    fn keep(&mut self, _: &Transformer, _: u64) -> Result<()> {
        Ok(())
    }
}

/// Large enough for the small things, which the plan leaves out, to be a small part.
fn shape() -> ModelConfig {
    ModelConfig {
        vocab_size: 2048,
        hidden_size: 256,
        intermediate_size: 704,
        num_layers: 4,
        num_heads: 8,
        num_kv_heads: 4,
        head_dim: 32,
        max_position_embeddings: 1024,
        // No answer ends early.
        eos_token_ids: Vec::new(),
        ..tiny::config(Family::Llama)
    }
}

fn tasks(n: usize, prompt: usize) -> Dataset {
    let item = |i: usize| Item {
        subtask: "",
        id: format!("t{i}"),
        cluster: "r".into(),
        question: Box::new(First),
        prompt: tiny::ids(prompt, i as u64),
        gold: tiny::ids(32, 50 + i as u64),
    };
    Dataset::Items((0..n).map(item).collect())
}

fn lines(n: usize, len: usize) -> Dataset {
    Dataset::Sequences((0..n).map(|i| Sequence { ids: tiny::ids(len, i as u64), targets: vec![true; len] }).collect())
}

/// The plan's total and the most that was held, in bytes.
fn plan_and_peak(settings: &str, data: Dataset, lora: Option<LoraConfig>) -> (u64, u64) {
    let text = format!("model = \"m\"\ndata.train = \"x\"\nbatch_prompts = 4\nsteps = 2\neval.at_start = false\n{settings}");
    let config = Config::parse(&text, Path::new("test.toml")).expect("a configuration");
    let out = tempfile::tempdir().expect("a folder");
    let before = HELD.load(Ordering::Relaxed) + mapped_bytes();
    let data = Arc::new(data);
    let data = vec![data; config.stages.len()];
    let examples = Examples { stages: data.clone(), heldout: Vec::new() };
    let model = shape();
    let run = Planned { place: Place::Cpu { exact: false }, config: &config, model: &model, lora: lora.as_ref(), examples: &examples };
    let plan = MemoryPlan::new(&run).total;
    let mut model = tiny::model_in(config.compute, shape(), 3);
    if let Some(lora) = lora {
        model.add_lora(&lora, 1).expect("an adapter");
    }
    PEAK.store(0, Ordering::Relaxed);
    let inputs = Inputs { config: &config, datasets: &data, tokenizer: None, out: out.path(), stop: &|| false, hooks: &mut Quiet };
    drop(Trainer::new(inputs, model, false).and_then(Trainer::run).expect("a run"));
    (plan, (PEAK.load(Ordering::Relaxed) - before) as u64)
}

#[test]
fn the_plan_is_within_a_tenth_of_the_peak() {
    let adapter = || Some(LoraConfig { rank: 8, alpha: 16.0, targets: ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec() });
    let grpo = "algorithm = \"grpo\"\ngroup_size = 8\nmax_new_tokens = 32\n";
    let ppo = "algorithm = \"ppo\"\ngroup_size = 8\nmax_new_tokens = 32\n";
    let cases = [
        ("sft", String::new(), lines(4, 300), None),
        ("sft, activations recomputed", "activation_checkpointing = true\n".into(), lines(4, 300), None),
        ("sft, moments in 8 bits", "optim.moments = \"8bit\"\n".into(), lines(4, 300), None),
        ("sft, products in bf16", "compute = \"bf16\"\n".into(), lines(4, 300), None),
        ("sft, LoRA, products in bf16", "compute = \"bf16\"\n".into(), lines(4, 300), adapter()),
        ("sft on tasks", String::new(), tasks(4, 200), None),
        ("sft, LoRA", String::new(), lines(4, 300), adapter()),
        ("grpo", grpo.into(), tasks(4, 200), None),
        ("grpo, small micro-batches", format!("{grpo}microbatch_tokens = 500\n"), tasks(4, 200), None),
        ("grpo without a reference", format!("{grpo}kl.measure = false\n"), tasks(4, 200), None),
        ("grpo, LoRA", grpo.into(), tasks(4, 200), adapter()),
        ("ppo, a full critic", ppo.into(), tasks(4, 200), None),
        ("ppo, a full critic, products in bf16", format!("{ppo}compute = \"bf16\"\n"), tasks(4, 200), None),
        ("ppo, the same in 8 bits", format!("{ppo}optim.moments = \"8bit\"\n"), tasks(4, 200), None),
        ("ppo, a critic on the trunk", format!("{ppo}critic.kind = \"trunk\"\n"), tasks(4, 200), None),
        ("ppo, LoRA and its critic", format!("{ppo}lora.rank = 8\ncritic.kind = \"lora\"\n"), tasks(4, 200), adapter()),
        (
            "sft, then ppo, LoRA in 8 bits",
            format!(
                "lora.rank = 8\n[[stage]]\nsteps = 2\noptim.moments = \"8bit\"\n[[stage]]\n{ppo}critic.kind = \"lora\"\noptim.moments = \"8bit\"\n"
            ),
            tasks(4, 200),
            adapter(),
        ),
    ];
    let mut wrong = 0;
    for (name, settings, data, lora) in cases {
        let (plan, peak) = plan_and_peak(&settings, data, lora);
        let ratio = peak as f64 / plan as f64;
        println!("{name:30} plan {:7.1} MiB, peak {:7.1} MiB, ratio {ratio:.3}", plan as f64 / 1048576.0, peak as f64 / 1048576.0);
        wrong += usize::from(!(0.9..=1.1).contains(&ratio));
    }
    assert_eq!(wrong, 0, "cases further than a tenth from the plan");
}
