//! `distill` as a command: the real binary, killed half-way; and `train` on what it wrote.

use crate::endpoint::{Act, Teacher};
use crate::{bytes, tiny};
use assert_cmd::Command;
use serde_json::{Value, json};
use sorft_native::model::config::Family;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A folder with a tiny model that has a tokenizer, and a configuration.
struct Workplace(tempfile::TempDir);

impl Workplace {
    fn new() -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        let mut config = tiny::config(Family::Llama);
        (config.max_position_embeddings, config.eos_token_ids) = (4096, vec![256]);
        let model = tiny::model(config, 5);
        let c = model.config();
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "rope_theta": c.rope_theta, "rms_norm_eps": c.rms_norm_eps,
            "max_position_embeddings": c.max_position_embeddings, "tie_word_embeddings": true, "eos_token_id": 256, "hidden_act": "silu",
        });
        std::fs::create_dir(work.path("tiny")).unwrap();
        std::fs::write(work.path("tiny/config.json"), config.to_string()).unwrap();
        std::fs::write(work.path("tiny/tokenizer.json"), bytes::tokenizer_json().to_string()).unwrap();
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = model
            .base_params()
            .into_iter()
            .map(|p| (p.name.clone(), p.shape, model.export(&p.name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = data.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &work.path("tiny/model.safetensors")).unwrap();
        let tasks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden/tasks.jsonl");
        std::fs::copy(tasks, work.path("tasks.jsonl")).unwrap();
        let text =
            "model = \"tiny\"\ndata.train = \"tasks.jsonl\"\nalgorithm = \"sft\"\nmax_prompt_tokens = 3000\nsteps = 1\nbatch_prompts = 5\n";
        std::fs::write(work.path("run.toml"), text).unwrap();
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<Value> {
        std::fs::read_to_string(self.path(name)).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Stdout as JSON, where there is any, of a command that ends with `status`; else stderr.
    fn run(&self, args: &[&str], status: i32) -> Value {
        let out = Command::new(env!("CARGO_BIN_EXE_sorft-native")).current_dir(self.0.path()).args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(status), "{stderr}");
        serde_json::from_slice(&out.stdout).unwrap_or(Value::String(stderr))
    }
}

#[test]
fn train_reads_what_distill_writes() {
    let work = Workplace::new();
    let summary = work.run(&["distill", "run.toml", "--teacher", "gold", "--out", "gold", "--json"], 0);
    assert_eq!((&summary["kept"], &summary["questions"]), (&json!(5), &json!(5)));
    let first = &work.lines("gold/sft.jsonl")[0];
    assert!(first["answer"].as_str().unwrap().contains("src/c.py"), "{first}");
    // The gold answers, learnt from the tasks and from what was made of them, are the same tokens.
    work.run(&["train", "run.toml", "--out", "a"], 0);
    work.run(&["train", "run.toml", "--out", "b", "--set", "data.train=gold/sft.jsonl"], 0);
    let loss = |run: &str| work.lines(&format!("{run}/metrics.jsonl"))[0]["loss"].as_f64().unwrap();
    assert!((loss("a") - loss("b")).abs() < 1e-6, "{} {}", loss("a"), loss("b"));
    // What was distilled from a task still is about it.
    let sets = ["--set", "data.train=gold/sft.jsonl", "--set", "data.heldout=[tasks.jsonl]"];
    let error = work.run(&[&["train", "run.toml", "--out", "d"], &sets[..]].concat(), 1);
    assert!(error.as_str().unwrap().contains("is also trained on"), "{error}");
    std::fs::write(
        work.path("bad.jsonl"),
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"answer\": \"b\"}\n{\"messages\": []}\n",
    )
    .unwrap();
    let error = work.run(&["train", "run.toml", "--out", "c", "--set", "data.train=bad.jsonl"], 1);
    assert!(error.as_str().unwrap().contains("bad.jsonl:2: expected a JSON object: missing field `answer`"), "{error}");
}

/// (Here, because an evaluation wants a model with a tokenizer.)
#[test]
fn train_keeps_the_best_model() {
    let work = Workplace::new();
    let tasks = std::fs::read_to_string(work.path("tasks.jsonl")).unwrap();
    let (heldout, trained): (Vec<&str>, Vec<&str>) = tasks.lines().partition(|l| l.contains("\"p__three-5\""));
    std::fs::write(work.path("heldout.jsonl"), heldout.join("\n")).unwrap();
    std::fs::write(work.path("tasks.jsonl"), trained.join("\n")).unwrap();
    let sets = ["data.heldout=[heldout.jsonl]", "eval.best=fbeta", "eval.every=1", "eval.at_start=false", "steps=3", "max_new_tokens=8"];
    let sets: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    let said = work.run(&[&["train", "run.toml", "--out", "run"], &sets[..]].concat(), 0);
    // It knows nothing before and after: the first evaluation stays the best.
    assert!(said.as_str().unwrap().contains("the best evaluation so far, fbeta 0.0000 after step 1: its model is kept"), "{said}");
    let bytes = |name: &str| std::fs::read(work.path("run").join(name)).unwrap();
    assert_eq!(bytes("best/prompts.json"), bytes("model/prompts.json"));
    assert_ne!(bytes("best/model.safetensors"), bytes("model/model.safetensors"), "two more steps");
    assert!(!work.path("run/.best").exists());
    assert!(String::from_utf8(bytes("report.html")).unwrap().contains("Best held-out fbeta"));
    let line = format!("{}\n", json!({"ids": [1, 2, 3]}));
    std::fs::write(work.path("lines.jsonl"), line).unwrap();
    assert!(work.run(&["score", "--model", "run/best", "--input", "lines.jsonl"], 0)["logprobs"].is_array());
}

#[test]
fn a_model_can_teach_itself() {
    let work = Workplace::new();
    let distill = ["distill", "run.toml", "--teacher", "self", "--out", "self", "-n", "2", "--max-new-tokens", "6", "--json"];
    let summary = work.run(&distill, 0);
    assert_eq!((&summary["wanted"], &summary["sampled"]), (&json!(10), &json!(10)));
    let files = || ["samples.jsonl", "sft.jsonl", "rejected.jsonl"].map(|f| std::fs::read_to_string(work.path("self").join(f)).unwrap());
    let before = files();
    assert_eq!(before[0].lines().count(), 10);
    assert_eq!(before[1].lines().count() + before[2].lines().count(), 10);
    work.run(&distill, 0);
    assert_eq!(files(), before);
    // A lost sample comes again as it was.
    let (rest, lost) = before[0].trim_end().rsplit_once('\n').unwrap();
    std::fs::write(work.path("self/samples.jsonl"), format!("{rest}\n")).unwrap();
    work.run(&distill, 0);
    assert_eq!(files()[0], format!("{rest}\n{lost}\n"));
}

#[test]
fn a_model_on_this_machine_keeps_to_a_form() {
    let work = Workplace::new();
    let form = "<think>It seems that {} so</think>\\n{}";
    let distill = |out: &str, more: &[&str]| {
        let asked = [
            "distill",
            "run.toml",
            "--teacher",
            "tiny",
            "--out",
            out,
            "-n",
            "2",
            "--max-new-tokens",
            "900",
            "--json",
            "--form",
            form,
            "--temperature",
            "3",
        ];
        work.run(&[&asked[..], more].concat(), 0);
        let mut samples = work.lines(&format!("{out}/samples.jsonl"));
        samples.sort_by_key(|s| (s["id"].to_string(), s["index"].as_u64()));
        samples
    };
    let samples = distill("one", &[]);
    assert_eq!(samples.len(), 10);
    let whole: Vec<&Value> = samples.iter().filter(|s| s["cut_off"] == json!(false)).collect();
    // A model that knows nothing writes any byte: most first holes end with a line, most second ones with the token that ends an answer.
    assert!(whole.len() >= 3, "{samples:?}");
    for sample in &whole {
        let text = sample["text"].as_str().unwrap();
        let (thought, answer) = text.strip_prefix("<think>It seems that").unwrap().split_once(" so</think>\n").unwrap();
        assert!(!thought.contains('\n') && !answer.is_empty(), "{text:?}");
        assert!(sample["completion_tokens"].as_u64().unwrap() > 30, "the form's own words count");
    }
    let distinct = |of: &dyn Fn(&Value) -> String| samples.iter().map(of).collect::<std::collections::BTreeSet<_>>().len();
    let questions = distinct(&|s| s["prompt"].to_string());
    assert!(questions > 1 && distinct(&|s| s["text"].to_string()) == 2 * questions, "no two answers are alike");
    // Whatever is decoded together.
    assert!(distill("two", &["--set", "rollout_batch=3"]).iter().zip(&samples).all(|(a, b)| a["text"] == b["text"]));
    let refused = |more: &[&str], status: i32| {
        work.run(&[&["distill", "run.toml", "--out", "no"], more].concat(), status).as_str().unwrap().to_owned()
    };
    assert!(refused(&["--teacher", "tiny", "--form", "none"], 2).contains("--form: expected {} where the teacher is to write"));
    let endpoint = ["--teacher", "http://127.0.0.1:1/v1", "--teacher-model", "m", "--form", "{}"];
    assert!(refused(&endpoint, 2).contains("--form is for a model on this machine"));
    let short = ["--teacher", "tiny", "--form", "a long opening {}", "--max-new-tokens", "5"];
    assert!(refused(&short, 1).contains("the form's opening has 14 tokens, and an answer at most 5"));
}

#[test]
fn a_killed_run_pays_only_for_what_is_missing() {
    let work = Workplace::new();
    let teacher = Teacher::start(|_, _| {
        std::thread::sleep(Duration::from_millis(40));
        Act::Answer("<think>It is the parser of c.</think>\n\nsrc/c.py".into(), "stop")
    });
    let url = teacher.url();
    let distill = ["distill", "run.toml", "--teacher", &url, "--teacher-model", "m", "--out", "out", "-n", "6", "--parallel", "3"];
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_sorft-native"))
        .current_dir(work.0.path())
        .args(distill)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (samples, start) = (work.path("out/samples.jsonl"), Instant::now());
    let stored = || std::fs::read(&samples).map_or(0, |b| b.iter().filter(|b| **b == b'\n').count());
    while stored() < 9 {
        assert!(start.elapsed() < Duration::from_secs(30), "{} samples", stored());
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let (kept, asked) = (stored(), teacher.seen().len());
    assert!(asked - kept <= 3, "only what was under way is lost: {asked} asked, {kept} stored");
    let prices = ["--prices", "1,2", "--api-key-env", "DISTILL_TEST_NO_KEY"];
    let error = work.run(&[&distill[..], &prices].concat(), 2);
    assert!(error.as_str().unwrap().contains("DISTILL_TEST_NO_KEY: the environment variable is not set"), "{error}");
    let shown = work.run(&[&distill[..], &prices[..2]].concat(), 0);
    assert_eq!(teacher.seen().len() - asked, 30 - kept, "the rest, and nothing twice");
    assert_eq!(work.lines("out/samples.jsonl").len(), 30);
    assert_eq!(work.lines("out/sft.jsonl").len() + work.lines("out/rejected.jsonl").len(), 30);
    let kept_lines = work.lines("out/sft.jsonl");
    let question = kept_lines[0]["messages"][0]["content"].as_str().unwrap();
    assert!(question.contains("Which of these files") && !question.contains("<think>"), "the student is not told to reason");
    assert!(teacher.seen().iter().all(|s| s.question.contains("Which of these files") && s.question.contains("<think>")));
    let cost = format!("cost {:.4}", (30 - kept) as f64 * (100.0 + 2.0 * 10.0) / 1e6);
    assert!(shown.as_str().unwrap().contains(&cost), "{cost}: {shown}");
}
