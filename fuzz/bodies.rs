//! What each fuzz target does with its bytes. `tests/reliability/parsers.rs` runs the same functions on random and on mutated input.
//!
//! A body may do anything but panic, hang or take memory out of proportion. Where two functions are inverse to each other, it says so.

use sorft_native::agentless::files::read_predictions;
use sorft_native::agentless::run_tests::log;
use sorft_native::data::edit_blocks::swe_rl;
use sorft_native::data::patch::Patch;
use sorft_native::data::patch_similarity::read_answer;
use sorft_native::data::source::issues::Issues;
use sorft_native::data::source::swe_bench;
use sorft_native::data::subtask::answer::{Universe, parse_edits, parse_functions, parse_lines};
use sorft_native::data::subtask::file::parse_answer;
use sorft_native::data::subtask::reproduction::read_script;
use sorft_native::data::subtask::tree::shown_paths;
use sorft_native::data::{Task, ground_truth, unidiff};
use sorft_native::model::chat::{ChatTemplate, Message};
use sorft_native::model::config::ModelConfig;
use sorft_native::model::tokenizer::Tokenizer;
use sorft_native::model::weights::{self, gguf::Gguf, safetensors::Safetensors};
use sorft_native::rl::checkpoint::Checkpoint;
use sorft_native::rl::config::Config;
use sorft_native::rl::dataset;
use sorft_native::rl::run_log::read_lines;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[path = "step.rs"]
mod training;
pub use training::step;

/// What a target does with its bytes.
pub type Body = fn(&[u8]);

/// All of them, by the name of their target.
pub const BODIES: &[(&str, Body)] = &[
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("peft", peft),
    ("model_config", model_config),
    ("tokenizer", tokenizer),
    ("chat_template", chat_template),
    ("tasks", tasks),
    ("parquet", parquet),
    ("issues", issues),
    ("sequences", sequences),
    ("patch", patch),
    ("answer", answer),
    ("places", places),
    ("search_replace", search_replace),
    ("predictions", predictions),
    ("run_config", run_config),
    ("checkpoint", checkpoint),
    ("run_log", run_log),
    ("step", step),
];

/// Writes the bytes as a file of this name in a folder of this thread's own.
fn in_folder(name: &str, data: &[u8], f: impl FnOnce(&Path)) {
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().expect("a temporary folder"));
    DIR.with(|dir| {
        let path: PathBuf = dir.path().join(name);
        std::fs::write(&path, data).expect("the file can be written");
        f(&path);
    });
}

/// A weight file: every tensor that the header names can be read or is refused.
pub fn safetensors(data: &[u8]) {
    in_folder("a.safetensors", data, |path| {
        use sorft_native::model::weights::WeightSource;
        let Ok(file) = Safetensors::open(path) else { return };
        for name in file.names() {
            let shape = file.shape(&name).unwrap_or_default();
            let _ = file.read(&name, &shape);
        }
    });
}

/// A GGUF file, and the whole model in it.
pub fn gguf(data: &[u8]) {
    in_folder("a.gguf", data, |path| {
        if let Ok(file) = Gguf::open(path) {
            assert!(file.tensor_names().all(|n| file.tensor_type(n).is_some()));
        }
        if let Some(path) = path.to_str() {
            let _ = weights::open(path);
        }
    });
}

/// An adapter's configuration beside weights of none, and an adapter's weights.
pub fn peft(data: &[u8]) {
    in_folder("adapter_config.json", data, |path| {
        let dir = path.parent().expect("a folder");
        let _ = std::fs::write(dir.join("adapter_model.safetensors"), data);
        let _ = weights::load_peft(dir);
        let _ = std::fs::write(
            dir.join("adapter_config.json"),
            r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}"#,
        );
        let _ = weights::load_peft(dir);
    });
}

/// `config.json`.
pub fn model_config(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice(data)
        && let Ok(mut config) = ModelConfig::from_hf(&value)
    {
        let _ = config.add_generation_config(&value, &value);
    }
}

/// `tokenizer.json`.
pub fn tokenizer(data: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json(data.to_vec()) {
        let _ = tokenizer.encode("a text", true).map(|ids| tokenizer.decode(&ids, false));
    }
}

/// A chat template's source.
pub fn chat_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    // A template's instructions are limited; what they may take of memory is bounded by the program's own allocator (src/ceiling.rs), which ends
    // the program and is not here. So none of what makes much of little.
    if source.contains("range") || source.contains('*') {
        return;
    }
    if let Ok(template) = ChatTemplate::new(source, &serde_json::json!({"bos_token": "<s>"})) {
        let _ = template.render(&[Message { role: "user".into(), content: "hello".into() }], true);
    }
}

/// A file of tasks. What is read, is written and read to the same.
pub fn tasks(data: &[u8]) {
    in_folder("tasks.jsonl", data, |path| {
        let Ok(tasks) = swe_bench::read(path) else { return };
        for task in &tasks {
            let _ = task.gold();
            assert_eq!(Task::from_json(task.to_json()).map(|t| t.to_json()).ok(), Some(task.to_json()));
        }
    });
}

/// A parquet file of tasks.
pub fn parquet(data: &[u8]) {
    in_folder("tasks.parquet", data, |path| drop(swe_bench::read(path)));
}

/// An export of issues.
pub fn issues(data: &[u8]) {
    in_folder("issues.json", data, |path| {
        if let Ok(issues) = Issues::read(path) {
            let _ = issues.resolved_by("Fixes #1, closes #2");
        }
    });
}

/// A file of token lines.
pub fn sequences(data: &[u8]) {
    in_folder("lines.jsonl", data, |path| {
        if dataset::holds_sequences(path).is_ok_and(|yes| yes)
            && let Ok(lines) = dataset::read_sequences(path, 1000, 4096)
        {
            assert!(lines.iter().all(|l| l.ids.len() == l.targets.len() && !l.targets[0]));
        }
    });
}

/// A patch, applied to files of the names that it changes, the gold sets that it gives, and as SWE-RL reads it.
pub fn patch(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(patch) = Patch::parse(&text) {
        let files: BTreeMap<String, String> = patch.base_paths().map(|p| (p.to_owned(), "x\ny\n".to_owned())).collect();
        let _ = patch.apply(&files);
        let task = Task { patch: text.into_owned(), files, ..Task::default() };
        let _ = (ground_truth::lines(&task), ground_truth::functions(&task), ground_truth::edits(&task));
    }
    if let Ok(files) = unidiff::parse(data) {
        files.iter().for_each(|f| drop(f.path()));
    }
}

/// A model's answer, a prompt's list of paths, and what a test under a model's patch prints.
pub fn answer(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = (read_script(&text), log::parse(&text));
    let universe: BTreeSet<String> = ["src/a.py", "b.py", "a b.py"].map(str::to_owned).into();
    let _ = parse_answer(&text, &universe);
    let _ = shown_paths(&text, &universe);
    let files = [("src/a.py".to_owned(), "def f():\n    ...\n".to_owned()), ("b.py".to_owned(), "x\n\n7|y\n".to_owned())].into();
    let shown = Universe::new(&Task { files, ..Task::default() }, Some(&text));
    let _ = (parse_functions(&text, &shown), parse_lines(&text, &shown), parse_edits(&text, &shown));
}

/// A model's answer that names functions, lines or edits of a file.
pub fn places(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let file = "import os\n\nclass C:\n    def f(self):\n        return 1\n\ndef g():\n    pass\n";
    let files = BTreeMap::from([("a.py".to_owned(), file.to_owned())]);
    let lines = BTreeMap::from([("a.py".to_owned(), (1..6).collect())]);
    let universe = Universe::of_lines(files, ["a.py", "b.py"].map(str::to_owned).into(), lines);
    let _ = parse_functions(&text, &universe);
    let _ = parse_lines(&text, &universe);
    let _ = parse_edits(&text, &universe);
    let _ = universe.apply(&text);
}

/// An answer with SWE-RL's blocks. What is read, is written and read to the same.
pub fn search_replace(data: &[u8]) {
    let edits = swe_rl::parse_blocks(data);
    let _ = read_answer(data);
    if std::str::from_utf8(data).is_ok() {
        for edit in &edits {
            assert_eq!(swe_rl::parse_blocks(swe_rl::render(edit).as_bytes()), std::slice::from_ref(edit));
        }
    }
    let _ = swe_rl::apply(b"import os\n\ndef f():\n    return 1\n", &edits);
}

/// A file of predictions, as lines and as one value.
pub fn predictions(data: &[u8]) {
    in_folder("all_preds.jsonl", data, |path| drop(read_predictions(path)));
    in_folder("preds.json", data, |path| drop(read_predictions(path)));
}

/// A run's configuration. What is resolved, resolves to the same.
pub fn run_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(config) = Config::parse(text, Path::new("/a/run.toml")) {
        let again = Config::parse(&config.resolved, Path::new("/b/config.toml")).expect("a resolved configuration is a configuration");
        assert_eq!(again.resolved, config.resolved);
    }
}

/// A checkpoint whose files are all these bytes.
pub fn checkpoint(data: &[u8]) {
    in_folder("state.json", data, |path| {
        let dir = path.parent().expect("a folder");
        for name in ["manifest.json", "tensors.safetensors"] {
            let _ = std::fs::write(dir.join(name), data);
        }
        let _ = Checkpoint::open(dir);
    });
}

/// A log of JSON lines.
pub fn run_log(data: &[u8]) {
    in_folder("metrics.jsonl", data, |path| drop(read_lines(path)));
}
