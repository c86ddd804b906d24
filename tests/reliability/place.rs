//! A folder with a tiny model and everything that commands can be given, and the real binary in it.

use crate::make;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sorft-native");

/// A temporary folder, open to other users: some cases run without root's rights.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty one.
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("sorft-").permissions(open_to_all()).tempdir().expect("a temporary folder");
        Self { dir }
    }

    /// One with a model (`m/`, `m.gguf`, `sharded/`, `adapter/`), tasks, lines of ids and configurations (`sft.toml`,
    /// `grpo.toml`, `ppo.toml`).
    pub fn furnished() -> Self {
        let place = Self::empty();
        models(place.path());
        fs::write(place.at("tasks.jsonl"), (0..4).map(task).collect::<String>()).expect("written");
        let lines = (0..6u32).map(|i| json!({"ids": (0..20 + 9 * i).map(|j| 1 + (j * 7 + i) % 90).collect::<Vec<_>>()}).to_string() + "\n");
        fs::write(place.at("lines.jsonl"), lines.collect::<String>()).expect("written");
        fs::write(place.at("short.jinja"), "{{ issue }}\nFiles:\n{% for f in candidates %}{{ f.path }}\n{% endfor %}\n").expect("written");
        fs::write(place.at("sft.toml"), SFT).expect("written");
        fs::write(place.at("grpo.toml"), format!("{SUPERVISED}{GRPO}")).expect("written");
        fs::write(place.at("ppo.toml"), format!("{SUPERVISED}{PPO}")).expect("written");
        place
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Copies everything into another folder.
    pub fn copy_to(&self, folder: &Path) {
        let status = Command::new("cp").arg("-r").arg(self.at(".")).arg(folder).status().expect("cp");
        assert!(status.success());
    }

    /// The program, in the folder, without anything of the environment that could change what it says.
    pub fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.current_dir(self.path()).args(args).env_remove("SORFT_ISA");
        command
    }

    /// Runs the program to its end: its status and what it wrote to stderr.
    pub fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let out = self.program(args).output().expect("the program runs");
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    }
}

/// What `scripts/soak` and `scripts/resident-memory` can train.
#[test]
#[ignore = "a tool: SORFT_PLACE=FOLDER cargo test --test reliability furnish -- --ignored"]
fn furnish() {
    let folder = PathBuf::from(std::env::var("SORFT_PLACE").expect("SORFT_PLACE names a folder"));
    fs::create_dir_all(&folder).expect("created");
    Place::furnished().copy_to(&folder);
    fs::write(folder.join("soak.toml"), format!("{SUPERVISED}{GRPO}\n{PPO}")).expect("written");
}

fn open_to_all() -> fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    fs::Permissions::from_mode(0o777)
}

/// Three steps on lines of ids, in file order, a checkpoint after each.
const SFT: &str = r#"model = "m"
data.train = "lines.jsonl"
data.shuffle = false
steps = 3
batch_prompts = 2
optim.lr = 1e-3
checkpoint.every = 1
"#;

/// Supervised steps until answers are worth something: what the runs with rewards begin with.
const SUPERVISED: &str = r#"model = "m"
data.train = "tasks.jsonl"
prompt.templates.file = "short.jinja"
prompt.chat = false
max_prompt_tokens = 120
max_new_tokens = 8
batch_prompts = 2
group_size = 4
checkpoint.every = 2
seed = 3

[[stage]]
algorithm = "sft"
steps = 8
optim.lr = 2e-2

"#;

/// GRPO with everything that has a state of its own.
const GRPO: &str = r#"[[stage]]
algorithm = "grpo"
steps = 6
optim.lr = 2e-3
kl.coef = 0.02
entropy.coef = 0.01
updates_per_batch = 2
"#;

/// PPO with everything that has a state of its own: a critic (full, where nothing else is set), mini-batches, a KL weight that adapts.
const PPO: &str = r#"[[stage]]
algorithm = "ppo"
steps = 6
batch_prompts = 2
group_size = 4
optim.lr = 2e-3
critic.lr = 2e-3
critic.warmup = 1
ppo.epochs = 2
ppo.minibatches = 2
entropy.coef = 0.01
kl.target = 0.01
kl.horizon = 50
"#;

/// A task whose gold file is `a` or `b`: names that a tiny model learns in a few steps.
fn task(i: usize) -> String {
    let (gold, word) = [("a", "left"), ("b", "right")][i % 2];
    let patch = format!("diff --git a/{gold} b/{gold}\n--- a/{gold}\n+++ b/{gold}\n@@ -1 +1 @@\n-x\n+y\n");
    let value = json!({
        "instance_id": format!("o__r-{i}"), "repo": "o/r", "base_commit": "c0ffee", "problem_statement": format!("{word} {i}"),
        "patch": patch, "files": {"a": "x\n", "b": "x\n"},
    });
    value.to_string() + "\n"
}

fn models(dir: &Path) {
    let mut config = make::config("llama");
    config["max_position_embeddings"] = json!(256);
    for name in ["m", "sharded"] {
        fs::create_dir(dir.join(name)).expect("created");
    }
    make::folder_without_weights(&dir.join("m"), "llama");
    make::write_json(&dir.join("m/config.json"), &config);
    // Matrices small enough for answers of some entropy.
    let mut tensors = make::tensors("llama");
    for (name, (shape, data)) in &mut tensors {
        let scale = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 0.1 };
        let shift = if name.contains("norm") { 1.0 } else { 0.0 };
        data.iter_mut().for_each(|x| *x = shift + scale * *x);
    }
    fs::write(dir.join("m/model.safetensors"), make::safetensors_file(&tensors, "F32")).expect("written");
    make::sharded_folder(&dir.join("sharded"), "llama");
    fs::write(dir.join("m.gguf"), make::gguf("llama").bytes()).expect("written");
    adapter(&dir.join("adapter"));
}

/// A PEFT adapter of rank 2 on q_proj.
fn adapter(dir: &Path) {
    fs::create_dir(dir).expect("created");
    let settings = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"});
    make::write_json(&dir.join("adapter_config.json"), &settings);
    let name = |layer: usize, which: char| format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{which}.weight");
    let mut tensors = make::Tensors::new();
    for layer in 0..2 {
        for (which, shape) in [('A', vec![2, 64]), ('B', vec![64, 2])] {
            let name = name(layer, which);
            let data = make::numbers(&name, 128);
            tensors.insert(name, (shape, data));
        }
    }
    fs::write(dir.join("adapter_model.safetensors"), make::safetensors_file(&tensors, "F32")).expect("written");
}
