//! What was paid for: a file that only grows, each line on the disk before its answer is used.

use super::{Missing, Said, prompt_hash};
use crate::error::{Error, Result, json_message};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A teacher's answer, a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The task's name.
    pub id: String,
    /// Which question: [`prompt_hash`].
    pub prompt: String,
    /// Which of the question's answers.
    pub index: usize,
    /// [`super::Teacher::name`].
    pub teacher: String,
    /// The answer.
    pub text: String,
    /// Whether it was cut off at the longest length.
    pub cut_off: bool,
    /// As the teacher counts them.
    pub prompt_tokens: u64,
    /// As the teacher counts them.
    pub completion_tokens: u64,
}

impl Sample {
    pub(super) fn new(missing: &Missing<'_>, teacher: &str, said: Said) -> Self {
        Self {
            id: missing.item.id.clone(),
            prompt: prompt_hash(missing.item),
            index: missing.index,
            teacher: teacher.to_owned(),
            text: said.text,
            cut_off: said.cut_off,
            prompt_tokens: said.prompt_tokens,
            completion_tokens: said.completion_tokens,
        }
    }

    /// What it answers.
    pub(super) fn key(self) -> (String, String, usize) {
        (self.id, self.prompt, self.index)
    }
}

/// The open file and what it holds.
pub struct Samples {
    path: PathBuf,
    inner: Mutex<(File, Vec<Sample>)>,
}

impl Samples {
    /// Opens the file, or makes it. A last line without its end, which a death in the middle of a write leaves, is cut off.
    ///
    /// # Errors
    /// A line that is no sample; the file cannot be read or written, or another process has it open.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |what, e| Error::io(what, path, e);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(|e| fail("open", e))?;
        if let Err(e) = file.try_lock() {
            return Err(Error::input(format!("cannot be locked: {e}")).at_file(path).hint("is another distill writing to this folder?"));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| fail("read", e))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(|e| fail("write", e))?;
        }
        let mut samples = Vec::new();
        for (i, line) in bytes[..whole].split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
            let sample = serde_json::from_slice(line).map_err(|e| {
                Error::input(format!("expected a sample: {}", json_message(&e)))
                    .at_line(path, i + 1)
                    .hint("mend or remove the line; whatever is removed is asked for again")
            })?;
            samples.push(sample);
        }
        Ok(Self { path: path.to_owned(), inner: Mutex::new((file, samples)) })
    }

    /// Adds a sample; it is on the disk when this returns.
    ///
    /// # Errors
    /// If it cannot be written; the sample itself is in the error then, since it may have cost money.
    pub fn append(&self, sample: Sample) -> Result<()> {
        let mut line = serde_json::to_string(&sample).map_err(|e| Error::input(format!("cannot write JSON: {e}")))?;
        line.push('\n');
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, samples) = &mut *inner;
        let start = file.metadata().map_or(0, |m| m.len());
        if let Err(e) = file.write_all(line.as_bytes()).and_then(|()| file.sync_data()) {
            // Half a line would spoil the next one.
            let _ = file.set_len(start);
            return Err(Error::io("write", &self.path, e).hint(format!("the answer that could not be stored:\n{line}")));
        }
        samples.push(sample);
        Ok(())
    }

    /// All samples, in the file's order.
    pub fn all(&self) -> Vec<Sample> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(index: usize) -> Sample {
        let (id, prompt, teacher, text) = ("t".into(), "p".into(), "x".into(), "a\nb\u{2028}".into());
        Sample { id, prompt, index, teacher, text, cut_off: false, prompt_tokens: 3, completion_tokens: 4 }
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        for i in 0..3 {
            Samples::open(&path).unwrap().append(sample(i)).unwrap();
        }
        let whole = std::fs::read(&path).unwrap();
        for cut in [1, 20, 60] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let samples = Samples::open(&path).unwrap();
            assert_eq!(samples.all(), [sample(0), sample(1)]);
            samples.append(sample(2)).unwrap();
            drop(samples);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_line_that_is_no_sample_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, "\n{\"id\": 3}\n").unwrap();
        let error = Samples::open(&path).err().unwrap().to_string();
        assert!(error.contains("samples.jsonl:2: expected a sample"), "{error}");
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let _first = Samples::open(&path).unwrap();
        assert!(Samples::open(&path).err().unwrap().to_string().contains("cannot be locked"));
    }
}
