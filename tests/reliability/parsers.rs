//! Every parser on anything at all: the bodies of the fuzz targets on random bytes, and on good input that was cut, changed or doubled.

use crate::make;
use crate::place::Place;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::fs;
use std::path::Path;

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// A good input for each target.
fn seed(place: &Place, target: &str) -> Vec<u8> {
    let read = |name: &str| fs::read(place.at(name)).expect("a file");
    match target {
        "safetensors" => read("adapter/adapter_model.safetensors"),
        "gguf" => make::gguf("llama").bytes(),
        "peft" => read("adapter/adapter_config.json"),
        "model_config" => read("m/config.json"),
        "tokenizer" => read("m/tokenizer.json"),
        "chat_template" => b"{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}".to_vec(),
        "tasks" => read("tasks.jsonl"),
        "parquet" => include_bytes!("../cli/fixtures/swe_smith.parquet").to_vec(),
        "issues" => br#"[{"number": 1, "title": "t", "body": "b"}, {"number": 2, "title": "u", "body": null, "pull_request": {}}]"#.to_vec(),
        "places" => b"### a.py\nclass: C\nfunction: C.f\nline: 5\n```\n### a.py\n<<<<<<< SEARCH\n        return 1\n=======\n        return 2\n>>>>>>> REPLACE\n```\n".to_vec(),
        "search_replace" => b"```python\n### a.py\n<<<<<<< SEARCH\n    return 1\n=======\n    return 2\n>>>>>>> REPLACE\n```\n".to_vec(),
        "predictions" => b"{\"instance_id\": \"a\", \"model_patch\": null}\n{\"instance_id\": \"b\", \"model_patch\": \"x\"}\n".to_vec(),
        "sequences" => read("lines.jsonl"),
        "patch" => b"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n x\n-y\n+z\n".to_vec(),
        "answer" => b"<think>x</think>\n```\n- `./src/a.py`\n2. b.py\n```\nFiles:\na b.py\n\n".to_vec(),
        "run_config" => read("grpo.toml"),
        "checkpoint" => b"{\"files\": [{\"name\": \"state.json\", \"bytes\": 10, \"crc32\": 7}], \"format\": 1}".to_vec(),
        "run_log" => b"{\"step\": 1, \"loss\": 0.5}\n{\"step\": 2, \"loss\": null}\n".to_vec(),
        "step" => vec![0, 2, 69, 63, 2, 1, 19, 4],
        other => panic!("no seed for {other}"),
    }
}

/// One change of an input: where (a part of its length) and what.
#[derive(Clone, Debug)]
enum Change {
    Set(f64, u8),
    Cut(f64),
    Remove(f64, usize),
    Insert(f64, Vec<u8>),
    Double(f64, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = 0.0..1.0f64;
    let change = prop_oneof![
        4 => (place.clone(), any::<u8>()).prop_map(|(at, b)| Change::Set(at, b)),
        1 => place.clone().prop_map(Change::Cut),
        1 => (place.clone(), 1..40usize).prop_map(|(at, n)| Change::Remove(at, n)),
        2 => (place.clone(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, b)| Change::Insert(at, b)),
        1 => (place, 1..60usize).prop_map(|(at, n)| Change::Double(at, n)),
    ];
    prop::collection::vec(change, 1..4)
}

fn changed(mut data: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        // Half of all places lie in the first kilobyte, where headers are.
        let at = |x: &f64| {
            ((if *x < 0.5 { 2.0 * x * data.len().min(1024) as f64 } else { (2.0 * x - 1.0) * data.len() as f64 }) as usize).min(data.len())
        };
        match change {
            Change::Set(x, b) => {
                let at = at(x);
                if let Some(byte) = data.get_mut(at) {
                    *byte = *b;
                }
            }
            Change::Cut(x) => data.truncate(at(x)),
            Change::Remove(x, n) => {
                let at = at(x);
                data.drain(at..(at + n).min(data.len()));
            }
            Change::Insert(x, bytes) => {
                let at = at(x);
                data.splice(at..at, bytes.iter().copied());
            }
            Change::Double(x, n) => {
                let at = at(x);
                let part = data[at..(at + n).min(data.len())].to_vec();
                data.splice(at..at, part);
            }
        }
    }
    data
}

/// What fuzzing found worth keeping, `fuzz/corpus/TARGET`: each input once more.
#[test]
fn the_kept_corpus_is_taken() {
    for (name, body) in bodies::BODIES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let inputs = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        inputs.for_each(|input| body(&fs::read(input.expect("an entry").path()).expect("a file")));
    }
}

/// The good inputs, for fuzzing to begin with.
#[test]
#[ignore = "a tool, of scripts/fuzz"]
fn write_seeds() {
    let folder = Path::new(&std::env::var("SORFT_SEEDS").expect("SORFT_SEEDS names a folder")).to_owned();
    let place = Place::furnished();
    for (name, _) in bodies::BODIES {
        fs::create_dir_all(folder.join(name)).expect("created");
        fs::write(folder.join(name).join("good"), seed(&place, name)).expect("written");
    }
}

#[test]
fn every_fuzz_target_is_listed_and_takes_anything() {
    let place = Place::furnished();
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml")).expect("fuzz/Cargo.toml");
    for (name, body) in bodies::BODIES {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name} has no target");
        let good = seed(&place, name);
        body(&good);
        // A step takes longer than any parser.
        let cases = match good.len() {
            _ if *name == "step" => 5,
            20_000.. => 60,
            _ => 200,
        };
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let random = prop::collection::vec(any::<u8>(), 0..200);
        let input = prop_oneof![1 => random, 5 => changes().prop_map(move |c| changed(good.clone(), &c))];
        runner
            .run(&input, |data| {
                body(&data);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}
