//! What `train --plan` says of a GPU, against the most that the run's buffers hold at a time.

use crate::support::{Even, Recorder, config as settings, train};
use crate::{emulator, smallest, tiny, twins};
use rayon::prelude::*;
use sorft_native::model::config::ModelConfig;
use sorft_native::model::lora::LoraConfig;
use sorft_native::rl::dataset::{Dataset, Item, Sequence};
use sorft_native::rl::memory::{MemoryPlan, Place, Planned};
use sorft_native::rl::trainer::Examples;
use sorft_native::tensor::cuda::Emulation;
use std::sync::Arc;

/// Two blocks, and answers that do not end before they are full.
fn shape() -> ModelConfig {
    let smallest = smallest();
    ModelConfig {
        vocab_size: 512,
        hidden_size: 128,
        intermediate_size: 320,
        num_layers: 2,
        num_heads: 2,
        eos_token_ids: Vec::new(),
        ..smallest
    }
}

fn lines() -> Arc<Dataset> {
    Arc::new(Dataset::Sequences((0..2).map(|i| Sequence { ids: tiny::ids(90, i), targets: vec![true; 90] }).collect()))
}

fn tasks() -> Arc<Dataset> {
    let item = |i: usize| Item {
        subtask: "",
        id: format!("t{i}"),
        cluster: "r".into(),
        question: Box::new(Even),
        prompt: tiny::ids(70, i as u64),
        gold: tiny::ids(8, 50 + i as u64),
    };
    Arc::new(Dataset::Items((0..2).map(item).collect()))
}

#[test]
fn the_plan_is_within_a_tenth_of_what_buffers_hold() {
    let lora = || Some(LoraConfig { rank: 8, alpha: 16.0, targets: vec!["q_proj".into(), "down_proj".into()] });
    let grpo = "algorithm = \"grpo\"\ngroup_size = 4\nmax_new_tokens = 4\n";
    let ppo = "algorithm = \"ppo\"\ngroup_size = 4\nmax_new_tokens = 4\n";
    let cases = [
        ("sft", String::new(), lines(), None),
        ("sft, activations recomputed", "activation_checkpointing = true\n".into(), lines(), None),
        ("sft, moments in 8 bits", "optim.moments = \"8bit\"\n".into(), lines(), None),
        ("sft, LoRA", String::new(), lines(), lora()),
        ("grpo", grpo.into(), tasks(), None),
        ("ppo, a full critic", ppo.into(), tasks(), None),
        ("ppo, the same in 8 bits", format!("{ppo}optim.moments = \"8bit\"\n"), tasks(), None),
    ];
    // Side by side: each has a device of its own.
    let measure = |(name, more, data, lora): (&str, String, Arc<Dataset>, Option<LoraConfig>)| {
        let config = settings(&format!("batch_prompts = 2\nsteps = 2\neval.at_start = false\n{more}"));
        let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
        let (model, examples) = (shape(), Examples { stages: vec![data.clone()], heldout: Vec::new() });
        let run = Planned { place: Place::Gpu { exact: true }, config: &config, model: &model, lora: lora.as_ref(), examples: &examples };
        let plan = MemoryPlan::new(&run);
        let (_, mut device) = twins(&gpu, &model, 5);
        if let Some(lora) = &lora {
            device.add_lora(lora, 3).expect("an adapter");
        }
        let (dir, mut hooks) = (tempfile::tempdir().expect("a folder"), Recorder::default());
        drop(train(&config, &[data], device, dir.path(), false, &mut hooks).expect("two steps"));
        let peak = gpu.peak_bytes() as f64;
        assert_eq!(gpu.reset_peak(), 0, "{name}: everything is given back");
        let working = ["activations", "sampling"].map(|what| plan.rows.iter().find(|r| r.what == what).map_or(0, |r| r.bytes));
        let working = working[0].max(working[1]) as f64;
        let (ratio, of_working) = (peak / plan.total as f64, (peak - (plan.total as f64 - working)) / working);
        let line = format!(
            "{name:30} plan {:8.1} KiB, peak {:8.1} KiB, ratio {ratio:.3}; of what is worked on {of_working:.3}",
            plan.total as f64 / 1024.0,
            peak / 1024.0
        );
        (line, (0.9..=1.1).contains(&ratio) && (0.75..=1.25).contains(&of_working))
    };
    let found: Vec<(String, bool)> = cases.into_par_iter().map(measure).collect();
    found.iter().for_each(|(line, _)| println!("{line}"));
    assert!(found.iter().all(|(_, near)| *near), "cases further from the plan than they may be");
}
