//! `train` as a command: the real binary on a tiny model folder.

use crate::tiny;
use assert_cmd::Command;
use serde_json::json;
use sorft_native::model::config::Family;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A folder with a tiny Llama, lines of ids, and a configuration that trains on them.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Self {
        let work = Self { dir: tempfile::tempdir().unwrap() };
        let model = tiny::model(tiny::config(Family::Llama), 5);
        let c = model.config();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "rope_theta": c.rope_theta, "rms_norm_eps": c.rms_norm_eps,
            "max_position_embeddings": c.max_position_embeddings, "tie_word_embeddings": true, "eos_token_id": 0, "hidden_act": "silu",
            "torch_dtype": "float32",
        });
        std::fs::create_dir(work.path("tiny")).unwrap();
        std::fs::write(work.path("tiny/config.json"), config.to_string()).unwrap();
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = model
            .base_params()
            .into_iter()
            .map(|p| (p.name.clone(), p.shape, model.export(&p.name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &work.path("tiny/model.safetensors")).unwrap();
        let lines: String = (0..5).map(|i| json!({"ids": tiny::ids(40 + 30 * i, i as u64)}).to_string() + "\n").collect();
        std::fs::write(work.path("lines.jsonl"), lines).unwrap();
        let text = "model = \"tiny\"\ndata.train = \"lines.jsonl\"\nsteps = 6\nbatch_prompts = 2\noptim.lr = 1e-3\ncheckpoint.every = 2\n";
        std::fs::write(work.path("run.toml"), text).unwrap();
        let stage = "[[stage]]\nalgorithm = \"sft\"\nsteps = 3\noptim.lr = 1e-4\n";
        let base = "model = \"tiny\"\ndata.train = \"lines.jsonl\"\n";
        std::fs::write(work.path("staged.toml"), format!("{base}{stage}{stage}")).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The exit status and what went to stderr.
    fn train(&self, args: &[&str]) -> (i32, String) {
        let out = Command::cargo_bin("sorft-native").unwrap().current_dir(self.dir.path()).arg("train").args(args).output().unwrap();
        (out.status.code().unwrap_or(-1), String::from_utf8(out.stderr).unwrap())
    }
}

#[test]
fn a_run_leaves_its_folder_and_refuses_what_the_contract_refuses() {
    let w = Workplace::new();
    let (code, err) = w.train(&["run.toml", "--out", "a", "--threads", "2"]);
    assert_eq!(code, 0, "{err}");
    for name in ["config.toml", "metrics.jsonl", "timing.jsonl", "checkpoints/6", "tensorboard", "report.html", "model/config.json"] {
        assert!(w.path("a").join(name).exists(), "{name}");
    }
    assert!(!w.path("a/model/prompts.json").exists(), "lines of ids say nothing of prompts");
    let metrics = std::fs::read_to_string(w.path("a/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 6);
    for (args, status, message) in [
        (&["run.toml", "--out", "a"][..], 2, "--out: a: this folder exists"),
        (&["run.toml", "--out", "a", "--resume"], 2, "cannot be used with"),
        (&["--set", "steps=3", "--out", "a", "--resume"], 2, "cannot be used with"),
        (&["--resume"], 2, "--out"),
        (&[], 2, "expected a configuration"),
        (&["run.toml", "--set", "step=3", "--out", "b"], 2, "unknown setting `step`\n  the nearest known one is `steps`"),
        (&["none.toml", "--out", "b"], 1, "none.toml: cannot read"),
        (&["--resume", "--out", "none"], 1, "config.toml: cannot read"),
        (&["staged.toml", "--set", "optim.lr=1e-3", "--out", "b"], 2, "every stage sets `optim.lr` itself"),
        (&["run.toml", "--set", "data.train=none.jsonl", "--out", "b"], 1, "none.jsonl: cannot read"),
        (&["run.toml", "--set", "algorithm=grpo", "--out", "b"], 1, "it needs tasks, not lines of ids"),
        (&["run.toml", "--set", "algorithm=ppo", "--out", "b"], 1, "ppo samples and judges answers, so it needs tasks"),
    ] {
        let (code, err) = w.train(args);
        assert_eq!(code, status, "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
        assert!(!w.path("b").exists(), "{args:?} left a folder");
    }
    // Going on with a run that is done changes nothing.
    let before = std::fs::read(w.path("a/model/model.safetensors")).unwrap();
    assert_eq!(w.train(&["--resume", "--out", "a"]).0, 0);
    assert_eq!(std::fs::read_to_string(w.path("a/metrics.jsonl")).unwrap(), metrics);
    assert_eq!(std::fs::read(w.path("a/model/model.safetensors")).unwrap(), before);
}

#[test]
fn the_plan_is_printed_and_nothing_is_written() {
    let w = Workplace::new();
    let plan = |option: &str| {
        let mut command = Command::cargo_bin("sorft-native").unwrap();
        let out = command.current_dir(w.dir.path()).args(["train", "run.toml", option]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap();
        (out.status.success(), text)
    };
    let (right, text) = plan("--plan");
    assert!(right && text.contains("activations") && text.contains("total"), "{text}");
    let (right, text) = plan("--plan=24GiB");
    assert!(right && text.contains("bf16 with an f32 master") && text.contains("it fits into 24.00 GiB"), "{text}");
    let (right, text) = plan("--plan=0.1MiB");
    assert!(right && text.contains("it does not fit into 0.1 MiB"), "{text}");
    let (right, text) = plan("--plan=much");
    assert!(!right && text.contains("expected a size like 24GiB"), "{text}");
    assert!(!w.path("runs").exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_last_whole_step() {
    let w = Workplace::new();
    assert_eq!(w.train(&["run.toml", "--set", "steps=40", "--out", "whole"]).0, 0);
    let child = std::process::Command::new(assert_cmd::cargo::cargo_bin("sorft-native"))
        .current_dir(w.dir.path())
        .args(["train", "run.toml", "--set", "steps=40", "--out", "cut"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = w.path("cut/metrics.jsonl");
    let begun = Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count()) < 3 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no step was made");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    // A fast machine may be done before the signal comes.
    if out.status.code() != Some(0) {
        assert_eq!(out.status.code(), Some(130), "{err}");
        assert!(err.contains("--resume --out cut"), "{err}");
        let done = std::fs::read_to_string(&metrics).unwrap().lines().count();
        assert!(w.path("cut/checkpoints").join(done.to_string()).is_dir(), "the last whole step, {done}, has a checkpoint");
        assert_eq!(w.train(&["--resume", "--out", "cut"]).0, 0);
    }
    let read = |run: &str, name: &str| std::fs::read(w.path(run).join(name)).unwrap();
    for name in ["metrics.jsonl", "model/model.safetensors", "checkpoints/40/tensors.safetensors", "checkpoints/40/state.json"] {
        assert!(read("whole", name) == read("cut", name), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_keeps_the_last_checkpoint() {
    let w = Workplace::new();
    assert_eq!(w.train(&["run.toml", "--set", "steps=2", "--out", "a"]).0, 0);
    let text = std::fs::read_to_string(w.path("a/config.toml")).unwrap().replace("steps = 2", "steps = 4");
    std::fs::write(w.path("a/config.toml"), text).unwrap();
    // A limit on the size of files stands for the disk: the tensors' file fails in the middle of being written.
    let binary = assert_cmd::cargo::cargo_bin("sorft-native");
    let command = format!("trap '' XFSZ; ulimit -f 400; exec {} train --resume --out a", binary.display());
    let out = std::process::Command::new("bash").current_dir(w.dir.path()).args(["-c", &command]).output().unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{err}");
    assert!(err.contains("tensors.safetensors: cannot write: "), "{err}");
    let left: Vec<_> = std::fs::read_dir(w.path("a/checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["2"], "nothing half-written is left");
    assert_eq!(w.train(&["--resume", "--out", "a"]).0, 0);
    assert!(w.path("a/checkpoints/4").is_dir());
}
