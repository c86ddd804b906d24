//! The run folder and its logs.
//!
//! ```text
//! OUT/config.toml             the settings, complete
//!     metrics.jsonl           a line a step, and a line an evaluation
//!     timing.jsonl            all that a clock gave, and what is in memory after a step; nothing else holds a time
//!     rollouts/STEP.jsonl     every sampled answer with its reward and advantage
//!     evals/STEP.jsonl        every greedy answer of an evaluation
//!     not_finite/STEP.jsonl   the sample whose loss or gradient was not finite, of a step that was skipped
//!     tensorboard/            the same curves for TensorBoard
//!     checkpoints/STEP/       see `checkpoint`
//! ```
//!
//! `metrics.jsonl`, `rollouts/` and `evals/` have the same bytes in two runs of the same settings, and in a run that was killed and resumed:
//! what a checkpoint does not know of is cut when the run resumes from it.

pub mod tensorboard;

use crate::error::{Error, Result, json_message};
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard::EventWriter;

const METRICS: &str = "metrics.jsonl";
const TIMING: &str = "timing.jsonl";
/// Folders with one file a step.
const BY_STEP: [&str; 3] = ["rollouts", "evals", "not_finite"];

/// The open logs of a run.
#[derive(Debug)]
pub struct RunLog {
    dir: PathBuf,
    metrics: File,
    timing: File,
    events: EventWriter,
}

impl RunLog {
    /// Opens the logs of the run folder `dir` for a run that goes on after a step (`None`: from the start). What lies after is removed, and
    /// so is the evaluation after this step if it is not yet known to be done: it will be made again.
    pub fn open(dir: &Path, kept: Option<(u64, bool)>) -> Result<Self> {
        for name in [METRICS, TIMING] {
            let path = dir.join(name);
            // What a kill has left of an earlier cut; there is nothing to be done where it cannot be removed.
            let _ = fs::remove_file(path.with_extension("tmp"));
            cut_lines(&path, kept)?;
        }
        let step = kept.map(|(step, _)| step);
        for name in BY_STEP {
            cut_files(&dir.join(name), step)?;
        }
        let append = |name: &str| {
            let path = dir.join(name);
            OpenOptions::new().append(true).create(true).open(&path).map_err(|e| Error::io("open", &path, e))
        };
        let tensorboard = dir.join("tensorboard");
        let events =
            EventWriter::create(&tensorboard, now(), step.map_or(0, |s| s + 1)).map_err(|e| Error::io("write", &tensorboard, e))?;
        Ok(Self { dir: dir.to_owned(), metrics: append(METRICS)?, timing: append(TIMING)?, events })
    }

    /// Writes the metrics of a step: `line` begins with `step`. Numbers also go to TensorBoard.
    pub fn step(&mut self, step: u64, line: &Map<String, Value>) -> Result<()> {
        self.line(line)?;
        let mut scalars = Vec::new();
        collect_scalars("train", line, &mut scalars);
        self.scalars(step, &scalars)
    }

    /// Writes an evaluation: its numbers to `metrics.jsonl`, its answers to `evals/STEP.jsonl`.
    pub fn evaluation(&mut self, step: u64, numbers: &Map<String, Value>, answers: &[Value]) -> Result<()> {
        self.by_step("evals", step, answers)?;
        let line = Map::from_iter([("step".to_owned(), step.into()), ("eval".to_owned(), Value::Object(numbers.clone()))]);
        self.line(&line)?;
        let mut scalars = Vec::new();
        collect_scalars("eval", numbers, &mut scalars);
        self.scalars(step, &scalars)
    }

    /// Writes a step's sampled answers to `rollouts/STEP.jsonl`.
    pub fn rollouts(&self, step: u64, lines: &[Value]) -> Result<()> {
        self.by_step("rollouts", step, lines)
    }

    /// Writes the sample of a step that was not finite.
    pub fn not_finite(&self, step: u64, record: &Value) -> Result<()> {
        self.by_step("not_finite", step, std::slice::from_ref(record))
    }

    /// The lines of `metrics.jsonl` so far.
    pub fn metrics(&self) -> Result<Vec<Map<String, Value>>> {
        read_lines(&self.dir.join(METRICS))
    }

    /// Writes what a clock gave.
    pub fn timing(&mut self, line: &Map<String, Value>) -> Result<()> {
        let mut line = line.clone();
        line.insert("unix_time".into(), now().into());
        write_line(&mut self.timing, &line).map_err(|e| Error::io("write", &self.dir.join(TIMING), e))
    }

    /// Flushes the logs to the disk: done before a checkpoint, which relies on them.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync_all().map_err(|e| Error::io("flush", &self.dir.join(METRICS), e))
    }

    fn line(&mut self, line: &Map<String, Value>) -> Result<()> {
        write_line(&mut self.metrics, line).map_err(|e| Error::io("write", &self.dir.join(METRICS), e))
    }

    fn by_step(&self, folder: &str, step: u64, lines: &[Value]) -> Result<()> {
        let dir = self.dir.join(folder);
        fs::create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let mut text = String::new();
        for line in lines {
            text.push_str(&line.to_string());
            text.push('\n');
        }
        replace(&dir.join(format!("{step}.jsonl")), text.as_bytes())
    }

    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        self.events.scalars(now(), step, scalars).map_err(|e| Error::io("write", &self.dir.join("tensorboard"), e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// One line in one write, so that a kill leaves at most one torn line.
fn write_line(file: &mut File, line: &Map<String, Value>) -> std::io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

/// Makes the run folder with its `config.toml`. It appears with the file in it: a kill leaves none, or one that `--resume` takes.
pub fn begin(out: &Path, config: &str) -> Result<()> {
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
    let name = out.file_name().ok_or_else(|| Error::usage("expected a folder's name").at_file(out).at("--out"))?;
    let temporary = parent.join(format!(".{}.tmp", name.to_string_lossy()));
    // What a run that was killed in here has left.
    match fs::remove_dir_all(&temporary) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &temporary, e)),
        _ => {}
    }
    fs::create_dir(&temporary).map_err(|e| Error::io("create", out, e))?;
    replace(&temporary.join("config.toml"), config.as_bytes())?;
    fs::rename(&temporary, out).map_err(|e| Error::io("create", out, e))
}

/// Removes what a kill has left of files half saved in a folder: they may be as large as the model. Nothing depends on it, so what cannot be
/// removed stays.
pub fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".writing-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes a file whole or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, bytes).map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io("write", path, e)
    })?;
    fs::rename(&temporary, path).map_err(|e| Error::io("rename to", path, e))
}

/// All finite numbers of a line but the step, named `prefix/key` and `prefix/key/inner`.
fn collect_scalars(prefix: &str, line: &Map<String, Value>, out: &mut Vec<(String, f64)>) {
    for (key, value) in line {
        match value {
            Value::Object(inner) => collect_scalars(&format!("{prefix}/{key}"), inner, out),
            Value::Number(x) if key != "step" => out.extend(x.as_f64().map(|x| (format!("{prefix}/{key}"), x))),
            _ => {}
        }
    }
}

/// The objects of a file of JSON lines.
pub fn read_lines(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let parse = |(i, line): (usize, &str)| {
        let bad = |e: serde_json::Error| Error::input(format!("expected a JSON object: {}", json_message(&e))).at_line(path, i + 1);
        serde_json::from_str(line).map_err(bad)
    };
    text.lines().enumerate().map(parse).collect()
}

/// Keeps the lines of steps up to the one that is kept (`None`: no line), its evaluation only if it counts as done. A torn or unreadable
/// line and all after it go.
fn cut_lines(path: &Path, kept_step: Option<(u64, bool)>) -> Result<()> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let mut kept = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let value = serde_json::from_slice::<Value>(line).unwrap_or_default();
        let keep = kept_step
            .zip(value["step"].as_u64())
            .is_some_and(|((step, evaluated), of)| of < step || of == step && (evaluated || value.get("eval").is_none()));
        if !line.ends_with(b"\n") || !keep {
            break;
        }
        kept += line.len();
    }
    if kept < bytes.len() { replace(path, &bytes[..kept]) } else { Ok(()) }
}

/// Removes the files `N.jsonl` of steps after `step`, and leftovers of interrupted writes.
fn cut_files(dir: &Path, step: Option<u64>) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
        let of = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok());
        let leftover = path.extension().is_some_and(|e| e == "tmp");
        if of.is_some_and(|s| leftover || step.is_none_or(|keep| s > keep)) {
            fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    fn run(dir: &Path, from: u64, to: u64, log: &mut RunLog) {
        for step in from..=to {
            log.rollouts(step, &[json!({"prompt": "p", "reward": 1.0 / step as f64})]).unwrap();
            log.step(step, &object(json!({"step": step, "loss": 0.1 * step as f64, "parts": {"recall": 0.5}}))).unwrap();
            if step % 2 == 0 {
                log.evaluation(step, &object(json!({"fbeta": 0.25})), &[json!({"id": "a"})]).unwrap();
            }
            log.timing(&object(json!({"step": step, "seconds": 1.0}))).unwrap();
        }
        assert!(dir.join("metrics.jsonl").exists());
    }

    fn all(dir: &Path) -> Vec<(String, String)> {
        let mut out = vec![("metrics".to_owned(), fs::read_to_string(dir.join(METRICS)).unwrap())];
        for name in BY_STEP {
            let Ok(entries) = fs::read_dir(dir.join(name)) else { continue };
            let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
            files.sort();
            out.extend(files.iter().map(|f| (f.strip_prefix(dir).unwrap().display().to_string(), fs::read_to_string(f).unwrap())));
        }
        out
    }

    #[test]
    fn a_resumed_log_has_the_bytes_of_an_unbroken_one() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(whole.path(), 1, 6, &mut RunLog::open(whole.path(), None).unwrap());
        run(broken.path(), 1, 5, &mut RunLog::open(broken.path(), None).unwrap());
        // A kill tears a line and leaves a half-written file; the checkpoint is of step 3.
        fs::write(broken.path().join("rollouts/6.tmp"), "{").unwrap();
        let mut metrics = OpenOptions::new().append(true).open(broken.path().join(METRICS)).unwrap();
        metrics.write_all(b"{\"step\":6,\"lo").unwrap();
        run(broken.path(), 4, 6, &mut RunLog::open(broken.path(), Some((3, false))).unwrap());
        assert_eq!(all(whole.path()), all(broken.path()));
        let timing = fs::read_to_string(broken.path().join(TIMING)).unwrap();
        assert_eq!(timing.lines().count(), 6);
        // From the start: nothing is kept.
        RunLog::open(broken.path(), None).unwrap();
        assert_eq!(fs::read_to_string(broken.path().join(METRICS)).unwrap(), "");
    }

    #[test]
    fn an_evaluation_that_is_not_known_to_be_done_is_cut_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), 1, 2, &mut RunLog::open(dir.path(), None).unwrap());
        let whole = all(dir.path());
        // The checkpoint was written when the evaluation had been interrupted; the kill came after it was made.
        let mut log = RunLog::open(dir.path(), Some((2, false))).unwrap();
        log.evaluation(2, &object(json!({"fbeta": 0.25})), &[json!({"id": "a"})]).unwrap();
        assert_eq!(all(dir.path()), whole);
        RunLog::open(dir.path(), Some((2, true))).unwrap();
        assert_eq!(all(dir.path()), whole);
    }

    #[test]
    fn numbers_are_shortest_and_a_missing_one_is_null() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = RunLog::open(dir.path(), None).unwrap();
        log.step(1, &object(json!({"step": 1, "loss": f64::NAN, "lr": 1e-5, "kl": 0.1 + 0.2}))).unwrap();
        let text = fs::read_to_string(dir.path().join(METRICS)).unwrap();
        assert_eq!(text, "{\"step\":1,\"loss\":null,\"lr\":0.00001,\"kl\":0.30000000000000004}\n");
    }
}
