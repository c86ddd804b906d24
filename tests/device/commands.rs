//! The commands themselves with `--device emulator`: the way that `--device cuda:0` takes, but for the driver.

use crate::{config, emulator, error, tiny};
use assert_cmd::Command;
use serde_json::{Value, json};
use sorft_native::model::config::{Family, ModelConfig};
use std::path::PathBuf;

/// A folder with a tiny Llama in bf16, and lines of ids.
struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    fn new() -> Self {
        let work = Self { dir: tempfile::tempdir().unwrap() };
        let c = ModelConfig { num_layers: 1, ..config(Family::Llama) };
        let model = tiny::model(c.clone(), 5);
        let text = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "rope_theta": c.rope_theta, "rms_norm_eps": c.rms_norm_eps,
            "max_position_embeddings": c.max_position_embeddings, "tie_word_embeddings": true, "eos_token_id": 0, "hidden_act": "silu",
            "torch_dtype": "bfloat16",
        });
        std::fs::create_dir(work.path("tiny")).unwrap();
        std::fs::write(work.path("tiny/config.json"), text.to_string()).unwrap();
        let bytes = |name: &str| model.export(name).unwrap().iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        let data: Vec<(String, Vec<usize>, Vec<u8>)> =
            model.base_params().into_iter().map(|p| (p.name.clone(), p.shape, bytes(&p.name))).collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &work.path("tiny/model.safetensors")).unwrap();
        let lines: String = (0..3).map(|i| json!({"ids": tiny::ids(5 + 30 * i, i as u64)}).to_string() + "\n").collect();
        std::fs::write(work.path("lines.jsonl"), lines).unwrap();
        let run = "model = \"tiny\"\ndata.train = \"lines.jsonl\"\nsteps = 2\nbatch_prompts = 2\noptim.lr = 1e-3\n";
        std::fs::write(work.path("run.toml"), run).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, device: &str, args: &[&str]) -> assert_cmd::assert::Assert {
        let mut command = Command::cargo_bin("sorft-native").unwrap();
        command.current_dir(self.dir.path()).env("SORFT_EMULATOR", emulator::all_kernels());
        command.args(args).args(["--device", device]).assert()
    }

    fn lines(&self, device: &str, args: &[&str]) -> Vec<Value> {
        let out = self.command(device, args).success().get_output().stdout.clone();
        String::from_utf8(out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn score_and_sample_run_and_agree() {
    let w = Workplace::new();
    let score = ["score", "--model", "tiny", "--input", "lines.jsonl"];
    let (cpu, device) = (w.lines("cpu", &score), w.lines("emulator", &score));
    assert_eq!((cpu.len(), device.len()), (3, 3));
    for (cpu, device) in cpu.iter().zip(&device) {
        assert!(error(&numbers(&device["logprobs"]), &numbers(&cpu["logprobs"])) < 1e-2);
    }
    let sample = ["sample", "--model", "tiny", "--json", "--input", "lines.jsonl", "--max-new-tokens", "3", "-n", "2"];
    let answers = w.lines("emulator", &sample);
    assert_eq!(answers.len(), 6);
    assert!(answers.iter().all(|a| numbers(&a["logprobs"]).iter().all(|l| *l <= 0.0)));
}

#[test]
fn train_runs_and_can_be_verified() {
    let w = Workplace::new();
    w.command("emulator", &["train", "run.toml", "--out", "a"]).success();
    let metrics = std::fs::read_to_string(w.path("a/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
    assert!(w.path("a/model/model.safetensors").exists());
    w.command("emulator", &["verify", "a", "--step", "2"]).success();
}

#[test]
fn a_device_that_is_not_there_is_a_clear_sentence() {
    let w = Workplace::new();
    let text = |assert: assert_cmd::assert::Assert| String::from_utf8(assert.failure().get_output().stderr.clone()).unwrap();
    let score = ["score", "--model", "tiny", "--input", "lines.jsonl"];
    let far = text(w.command("cuda:99", &score));
    assert!(far.contains("no CUDA driver") || far.contains("cuda:99"), "{far}");
    let mut without = Command::cargo_bin("sorft-native").unwrap();
    let without = without.current_dir(w.dir.path()).env_remove("SORFT_EMULATOR").args(score).args(["--device", "emulator"]);
    let without = text(without.assert());
    assert!(without.contains("SORFT_EMULATOR names no library"), "{without}");
}

/// The table that a GPU is judged by, and the microbenchmarks, on shapes that the emulator gets through.
#[test]
fn the_self_check_passes_and_a_kernel_is_timed() {
    let w = Workplace::new();
    let check = |args: &[&str]| {
        let mut command = Command::cargo_bin("sorft-native").unwrap();
        command.current_dir(w.dir.path()).env("SORFT_EMULATOR", emulator::all_kernels()).args(args).assert().success()
    };
    let table = check(&["doctor", "--check", "emulator", "--json"]);
    let rows = String::from_utf8(table.get_output().stdout.clone()).unwrap();
    assert!(rows.lines().count() > 50 && !rows.contains("\"ok\":false"), "{rows}");
    assert!(rows.contains("\"instruction wgmma beside mma.sync\"") && !rows.contains("\"skipped\""), "{rows}");
    let timed = check(&["bench", "rope", "--device", "emulator", "--seconds", "0.01", "--json"]);
    let rows = String::from_utf8(timed.get_output().stdout.clone()).unwrap();
    assert!(rows.contains("\"rope\"") && rows.contains("GB/s"), "{rows}");
    let timed = check(&["bench", "decoding", "--device", "emulator", "--seconds", "0.01", "--json"]);
    let rows = String::from_utf8(timed.get_output().stdout.clone()).unwrap();
    for name in ["q, k and v 1x", "q, k and v 64x", "swiglu 16x", "turns and pages 64"] {
        assert!(rows.contains(&format!("\"decoding {name}")), "{name}: {rows}");
    }
    let timed = check(&["bench", "model", "--device", "emulator", "--model", "tiny", "--seconds", "0.01", "--json"]);
    let rows = String::from_utf8(timed.get_output().stdout.clone()).unwrap();
    for name in ["decode alone", "decode at batch 2", "prefill 2x8", "training step 2x8", "GRPO step 2x2, 4+3", "LoRA training step 2x8"] {
        assert!(rows.contains(&format!("\"model {name}\"")), "{name}: {rows}");
    }
    let wrong = Command::cargo_bin("sorft-native").unwrap().args(["doctor", "--check", "cpu"]).assert().code(2);
    let text = String::from_utf8(wrong.get_output().stderr.clone()).unwrap();
    assert!(text.contains("--check cpu: expected cuda:N"), "{text}");
}
