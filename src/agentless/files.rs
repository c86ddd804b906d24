//! The JSON-lines files of Agentless 1.5, of Agentless Mini, and of SWE-bench's harness: read with the fields that they do not name here
//! kept, and written back.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::json_message;
use crate::{Error, Result};

/// Files named for an instance: one list (Agentless), or one a sample (Agentless Mini).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Found {
    /// One list of paths, the most likely first.
    One(Vec<String>),
    /// One such list for every sample.
    Samples(Vec<Vec<String>>),
}

/// A line of `loc.jsonl`: the files that localisation names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// The instance.
    pub instance_id: String,
    /// The files.
    pub found_files: Found,
    /// Everything else: `file_traj`, `found_edit_locs`, ...
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A line of a repair step's `output.jsonl`: all samples of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Repair {
    /// The instance.
    pub instance_id: String,
    /// What the model wrote, a text a sample.
    pub raw_output: Vec<String>,
    /// The samples again, in lists by localisation.
    pub all_generations: Vec<Vec<String>>,
    /// The contents that each sample changes, in the order of `file_names`.
    #[serde(default)]
    pub prev_content: Value,
    /// The files that each sample changes.
    #[serde(default)]
    pub file_names: Value,
    /// Everything else: `traj`, `all_indices`, `all_found_files`, ...
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A line of `output_{i}_processed.jsonl` (and of `output_{i}_normalized.jsonl`): sample `i` of an instance as a patch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Processed {
    /// Who made it; may be left out.
    #[serde(default)]
    pub model_name_or_path: String,
    /// The instance.
    pub instance_id: String,
    /// The patch; empty where it counts as none.
    pub model_patch: String,
    /// The patch before it was looked at.
    #[serde(default)]
    pub raw_model_patch: String,
    /// The contents before, by file.
    #[serde(default)]
    pub original_file_content: Value,
    /// The files that it changes.
    #[serde(default)]
    pub edited_files: Value,
    /// The contents after, by file.
    #[serde(default)]
    pub new_file_content: Value,
    /// The patch as [`super::normalize`] has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub normalized_patch: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A line of `all_preds.jsonl`, which SWE-bench's harness evaluates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Who made it; may be left out.
    #[serde(default)]
    pub model_name_or_path: String,
    /// The instance.
    pub instance_id: String,
    /// The patch; empty for none, which may be written as null.
    #[serde(deserialize_with = "null_as_empty")]
    pub model_patch: String,
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(value: D) -> std::result::Result<String, D::Error> {
    Option::<String>::deserialize(value).map(Option::unwrap_or_default)
}

/// The name of a sample's file beside `output.jsonl`: `processed_name(3)` is `output_3_processed.jsonl`.
pub fn processed_name(sample: usize) -> String {
    format!("output_{sample}_processed.jsonl")
}

/// Reads a file of one JSON object a line.
///
/// # Errors
///
/// A line that is not JSON or lacks a field, named with its number.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let failed = |e| Error::io("read", path, e);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut out = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(failed)?;
        if !line.trim().is_empty() {
            out.push(serde_json::from_str(&line).map_err(|e| Error::input(json_message(&e)).at_line(path, i + 1))?);
        }
    }
    Ok(out)
}

/// Reads predictions as the harness does: JSON lines, a JSON list, or an object from instances to predictions (`.json`).
///
/// # Errors
///
/// As [`read`]; two predictions for one instance.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let predictions: Vec<Prediction> = if path.extension().is_some_and(|e| e == "json") {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let bad = |e: serde_json::Error| Error::input(format!("no predictions: {e}")).at_line(path, e.line());
        match serde_json::from_str(&text).map_err(bad)? {
            Value::Object(map) => map.into_iter().map(|(_, v)| serde_json::from_value(v)).collect::<Result<_, _>>().map_err(bad)?,
            list => serde_json::from_value(list).map_err(bad)?,
        }
    } else {
        read(path)?
    };
    let mut seen = std::collections::BTreeSet::new();
    match predictions.iter().find(|p| !seen.insert(&p.instance_id)) {
        Some(twice) => Err(Error::input(format!("instance {} has two predictions", twice.instance_id)).at_file(path)),
        None => Ok(predictions),
    }
}

/// Writes one JSON object a line. The file appears under its name when it is complete; one that is there already is replaced.
pub fn write<T: Serialize>(path: &Path, items: &[T]) -> Result<()> {
    let mut text = Vec::new();
    for item in items {
        serde_json::to_writer(&mut text, item).map_err(|e| Error::io("write", path, e.into()))?;
        text.push(b'\n');
    }
    replace(path, &text)
}

/// Writes a file under a temporary name and renames it: it is there as a whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e| Error::io("write", path, e);
    let folder = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".lines-").tempfile_in(folder).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    file.persist(path).map(drop).map_err(|e| failed(e.error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn round_trip<T: Serialize + DeserializeOwned>(value: Value) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.jsonl");
        std::fs::write(&path, format!("{value}\n\n")).unwrap();
        let items: Vec<T> = read(&path).unwrap();
        write(&path, &items).unwrap();
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
    }

    #[test]
    fn every_file_comes_back_as_it_was() {
        let loc = json!({"instance_id": "a-1", "found_files": [["x.py", "y.py"], []], "file_traj": {"usage": {"tokens": 3}}});
        assert_eq!(round_trip::<Location>(loc.clone()), loc);
        let loc = json!({"instance_id": "a-1", "found_files": ["x.py"], "found_edit_locs": {"x.py": ["line: 3"]}});
        assert_eq!(round_trip::<Location>(loc.clone()), loc);
        let repair = json!({
            "instance_id": "a-1", "raw_output": ["s"], "all_generations": [["s"]], "prev_content": [["old"]], "file_names": [["x.py"]],
            "traj": [], "all_indices": [0], "all_found_files": [["x.py"]],
        });
        assert_eq!(round_trip::<Repair>(repair.clone()), repair);
        let processed = json!({
            "model_name_or_path": "agentless", "instance_id": "a-1", "model_patch": "", "raw_model_patch": "d",
            "original_file_content": ["a"], "edited_files": ["x.py"], "new_file_content": ["b"], "normalized_patch": "n",
        });
        assert_eq!(round_trip::<Processed>(processed.clone()), processed);
        let prediction = json!({"model_name_or_path": "agentless", "instance_id": "a-1", "model_patch": "d"});
        assert_eq!(round_trip::<Prediction>(prediction.clone()), prediction);
        assert_eq!(processed_name(3), "output_3_processed.jsonl");
    }

    /// `tests/agentless/check_predictions.py` has SWE-bench's harness read these bytes.
    #[test]
    fn predictions_are_written_as_the_harness_reads_them() {
        let with = |id: &str, patch: &str| Prediction {
            model_name_or_path: "agentless".to_owned(),
            instance_id: id.to_owned(),
            model_patch: patch.to_owned(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all_preds.jsonl");
        let patch = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-one\n+üne\n";
        write(&path, &[with("made__up-1", patch), with("made__up-2", "")]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), include_str!("../../tests/agentless/all_preds.jsonl"));
    }

    #[test]
    fn predictions_in_three_forms_and_their_errors() {
        let dir = tempfile::tempdir().unwrap();
        let one = |id: &str| json!({"model_name_or_path": "m", "instance_id": id, "model_patch": "d"});
        let with = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            read_predictions(&path).map(|p| p.into_iter().map(|p| p.instance_id).collect::<Vec<_>>()).map_err(|e| e.to_string())
        };
        assert_eq!(with("a.jsonl", format!("{}\n{}\n", one("x"), one("y"))).unwrap(), ["x", "y"]);
        assert_eq!(with("a.json", json!([one("x"), one("y")]).to_string()).unwrap(), ["x", "y"]);
        assert_eq!(with("b.json", json!({"x": one("x"), "y": one("y")}).to_string()).unwrap(), ["x", "y"]);
        assert_eq!(with("a.jsonl", json!({"instance_id": "x", "model_patch": null}).to_string()).unwrap(), ["x"]);
        assert!(with("a.jsonl", json!({"instance_id": "x"}).to_string()).is_err(), "a patch that is not there at all");
        assert!(with("a.jsonl", format!("{}\n{}\n", one("x"), one("x"))).unwrap_err().contains("instance x has two predictions"));
        assert!(with("a.jsonl", format!("{}\n{{\"instance_id\": 1}}\n", one("x"))).unwrap_err().contains("a.jsonl:2: "));
        assert!(with("b.json", "{".to_owned()).unwrap_err().contains("b.json:1: no predictions"));
    }
}
