//! Checkpoints: all state of a run between two steps, in one folder, written so that it is whole or not there.
//!
//! ```text
//! checkpoints/STEP/
//!   state.json            step, stage, data cursor, counters (all randomness follows from these)
//!   tensors.safetensors   per trained tensor: `weight/NAME`, `first/NAME`, `second/NAME` (AdamW's moments), f32; of moments in 8 bits
//!                         the codes, u8, in their place, and their scales, f32, as `first_scale/NAME` and `second_scale/NAME`; a
//!                         critic's NAMEs begin with `critic.`
//!   manifest.json         size and CRC-32 of the two
//! ```
//!
//! A checkpoint is written under a temporary name, every file and the folder are flushed to the disk, then it is renamed. The same state
//! gives the same bytes: nothing holds a time, and tensors stand in canonical order.

mod tensors;

pub use tensors::{Entry, Snapshot};

use crate::error::{Error, Result};
use crate::model::optimizer::{Moment, TensorState};
use crate::model::transformer::ParamInfo;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tensors::TensorFile;

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
const MANIFEST: &str = "manifest.json";
const TEMPORARY: &str = ".tmp-";

/// Where a run stands between two steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of the layout.
    pub format: u32,
    /// The program that wrote it.
    pub program: String,
    /// Steps done, over all stages.
    pub step: u64,
    /// The current stage, from 0.
    pub stage: usize,
    /// Steps done in it.
    pub stage_step: u64,
    /// Examples taken from the stage's order.
    pub cursor: u64,
    /// Optimizer updates made in the stage (AdamW's own step count).
    pub updates: u64,
    /// Steps skipped so far, for a loss or a gradient that was not finite.
    pub skipped: u64,
    /// Those of them without a good step since.
    pub skipped_in_row: u64,
    /// Whether the evaluation that belongs to this step, if one does, is in the log.
    pub evaluated: bool,
    /// Updates of the critic made in the stage.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub critic_updates: u64,
    /// The adaptive weight of the KL penalty, where it has moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_coef: Option<f64>,
    /// The best evaluation so far, where one is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    /// Evaluations in the stage since the last that was better than all before it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stale: u64,
}

/// An evaluation that no other one has been better than.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After how many steps.
    pub step: u64,
    /// Its number (`eval.best`).
    pub value: f64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    files: Vec<FileEntry>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileEntry {
    name: String,
    bytes: u64,
    crc32: u32,
}

/// A file that counts and checks what is written to it.
struct Summed {
    file: BufWriter<File>,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Summed {
    fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: BufWriter::with_capacity(1 << 20, File::create(path)?), crc: crc32fast::Hasher::new(), bytes: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn finish(self, name: &str) -> std::io::Result<FileEntry> {
        let file = self.file.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        Ok(FileEntry { name: name.to_owned(), bytes: self.bytes, crc32: self.crc.finalize() })
    }
}

/// Writes the checkpoint of `state.step` into `dir` (`OUT/checkpoints`), then removes all but the last `keep` (0: none). `data` gives a
/// trained tensor and its moments. If anything fails, older checkpoints are untouched.
pub fn save(
    dir: &Path,
    state: &State,
    entries: &[Entry],
    data: &mut dyn FnMut(&str) -> Result<TensorState>,
    keep: usize,
) -> Result<PathBuf> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    remove_leftovers(dir)?;
    let temporary = dir.join(format!("{TEMPORARY}{}", state.step));
    let written = write_folder(&temporary, state, entries, data);
    if written.is_err() {
        // Give the space back; the error of the write is the one to report.
        let _ = fs::remove_dir_all(&temporary);
    }
    written?;
    let place = dir.join(state.step.to_string());
    // A damaged or re-done checkpoint of the same step gives way; a kill between these two lines leaves the new one to `adopt`.
    remove(&place)?;
    fs::rename(&temporary, &place).map_err(|e| Error::io("rename to", &place, e))?;
    sync_dir(dir)?;
    prune(dir, state.step, keep)?;
    Ok(place)
}

/// Removes all checkpoints up to the whole one of `step` but the last `keep` of them (0: none).
pub fn prune(dir: &Path, step: u64, keep: usize) -> Result<()> {
    if keep > 0 {
        for (_, old) in list(dir)?.into_iter().rev().filter(|(at, _)| *at <= step).skip(keep) {
            remove(&old)?;
        }
    }
    Ok(())
}

fn write_folder(folder: &Path, state: &State, entries: &[Entry], data: &mut dyn FnMut(&str) -> Result<TensorState>) -> Result<()> {
    fs::create_dir(folder).map_err(|e| Error::io("create", folder, e))?;
    let state = State { format: FORMAT, program: concat!("sorft-native ", env!("CARGO_PKG_VERSION")).to_owned(), ..state.clone() };
    let files = vec![write_json(&folder.join(STATE), STATE, &state)?, tensors::write(&folder.join(TENSORS), entries, data)?];
    write_json(&folder.join(MANIFEST), MANIFEST, &Manifest { files })?;
    sync_dir(folder)
}

fn write_json(path: &Path, name: &str, value: &impl Serialize) -> Result<FileEntry> {
    let io = |e| Error::io("write", path, e);
    let text = serde_json::to_string_pretty(value).map_err(|e| io(e.into()))? + "\n";
    let mut out = Summed::create(path).map_err(io)?;
    out.write(text.as_bytes()).map_err(io)?;
    out.finish(name).map_err(io)
}

/// Flushes a folder's entries to the disk.
fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("flush", dir, e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes what a killed run was writing: a large half of a checkpoint that nobody will finish.
fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, e))? {
        let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
        if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(TEMPORARY)) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Puts checkpoints in their place that were written whole but not renamed before a kill, where that place holds none that is whole.
fn adopt(dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(TEMPORARY)).and_then(|n| n.parse::<u64>().ok());
        let Some(place) = step.map(|step| dir.join(step.to_string())) else { continue };
        if Checkpoint::open(&path).is_ok() && Checkpoint::open(&place).is_err() {
            remove(&place)?;
            fs::rename(&path, &place).map_err(|e| Error::io("rename to", &place, e))?;
            sync_dir(dir)?;
        }
    }
    Ok(())
}

/// The checkpoints in a folder by step, the oldest first; a missing folder has none.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", dir, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("read", dir, e))?.path();
        if let Some(step) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// A checkpoint that was found whole.
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: State,
    tensors: TensorFile,
}

impl Checkpoint {
    /// Opens a checkpoint and checks every byte of it.
    pub fn open(path: &Path) -> Result<Self> {
        let manifest: Manifest = read_json(&path.join(MANIFEST))?;
        for name in [STATE, TENSORS] {
            let file = path.join(name);
            let expected = manifest.files.iter().find(|f| f.name == name);
            let expected = expected.ok_or_else(|| Error::input(format!("does not list {name}")).at_file(&path.join(MANIFEST)))?;
            let found = sum_file(&file)?;
            if (found.bytes, found.crc32) != (expected.bytes, expected.crc32) {
                let message = format!(
                    "damaged: {} bytes with checksum {:08x}, expected {} with {:08x}",
                    found.bytes, found.crc32, expected.bytes, expected.crc32
                );
                return Err(Error::input(message).at_file(&file));
            }
        }
        let state: State = read_json(&path.join(STATE))?;
        if state.format != FORMAT {
            let message = format!("layout version {}; this program reads {FORMAT}", state.format);
            return Err(Error::input(message).at_file(&path.join(STATE)).hint(format!("it was written by {}", state.program)));
        }
        Ok(Self { path: path.to_owned(), state, tensors: TensorFile::open(&path.join(TENSORS))? })
    }

    /// Opens the newest checkpoint in `dir` that is whole. Damaged ones are told to `warn`; if there are only damaged ones, it is an error.
    pub fn latest(dir: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Self>> {
        adopt(dir)?;
        let all = list(dir)?;
        let mut first_error = None;
        for (step, path) in all.iter().rev() {
            match Self::open(path) {
                Ok(found) => return Ok(Some(found)),
                Err(e) => {
                    warn(format!("checkpoint {step} cannot be used, trying the one before it: {e}"));
                    first_error.get_or_insert(e);
                }
            }
        }
        match first_error {
            None => Ok(None),
            Some(e) => {
                Err(e.hint("no checkpoint of this run can be used: begin anew with another --out, or go on with the program that wrote it"))
            }
        }
    }

    /// A trained tensor's numbers.
    pub fn read_weight(&self, param: &ParamInfo) -> Result<Vec<f32>> {
        self.tensors.weight(param)
    }

    /// A trained tensor's first and second moment, in the format in which they were saved.
    pub fn read_moments(&self, param: &ParamInfo) -> Result<(Moment, Moment)> {
        self.tensors.moments(param)
    }

    /// A trained tensor and its moments.
    pub fn read(&self, param: &ParamInfo) -> Result<TensorState> {
        let (first, second) = self.read_moments(param)?;
        Ok(TensorState { weight: self.read_weight(param)?, first, second })
    }
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::input(format!("damaged: {e}")).at_file(path))
}

fn sum_file(path: &Path) -> Result<FileEntry> {
    let io = |e| Error::io("read", path, e);
    let mut file = File::open(path).map_err(io)?;
    let mut crc = crc32fast::Hasher::new();
    let (mut bytes, mut buffer) = (0u64, vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(FileEntry { name: String::new(), bytes, crc32: crc.finalize() }),
            Ok(n) => {
                crc.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io(e)),
        }
    }
}

#[cfg(test)]
mod tests;
