//! `samples.jsonl`: every answer that was sampled, a line each, appended as it comes. Everything else that an evaluation writes is a
//! function of this file, the tasks and the settings, so a run that was killed goes on from it, and ranking and metrics can be done again
//! without sampling.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files;
use super::generator::Answer;
use crate::error::json_message;
use crate::{Error, Result};

/// A line.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    instance_id: String,
    hop: String,
    /// [`digest`] of the prompt.
    prompt: String,
    index: usize,
    #[serde(flatten)]
    answer: Answer,
}

/// What an answer belongs to: an instance, a hop, the digest of a prompt.
type Key = (String, String, String);

/// The file, and what is in it.
pub struct Journal {
    path: PathBuf,
    file: File,
    answers: BTreeMap<Key, BTreeMap<usize, Answer>>,
}

/// The first 128 bits of a text's SHA-256, in hexadecimal.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

impl Journal {
    /// Opens the file and reads what is there. The last line may be torn: the run was killed while it wrote it.
    ///
    /// # Errors
    ///
    /// Another line that cannot be read, named with its number.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("open", path, e);
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("read", path, e)),
        };
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let mut answers: BTreeMap<Key, BTreeMap<usize, Answer>> = BTreeMap::new();
        for (i, line) in text[..whole].split(|&b| b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
            let line: Line = serde_json::from_slice(line).map_err(|e| Error::input(json_message(&e)).at_line(path, i + 1))?;
            answers.entry((line.instance_id, line.hop, line.prompt)).or_default().insert(line.index, line.answer);
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        if whole < text.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        Ok(Self { path: path.to_owned(), file, answers })
    }

    /// How many answers it holds.
    pub fn len(&self) -> usize {
        self.answers.values().map(BTreeMap::len).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Answer `index` to the prompt with this digest, if it was sampled.
    pub fn get(&self, instance: &str, hop: &str, prompt: &str, index: usize) -> Option<&Answer> {
        self.answers.get(&(instance.to_owned(), hop.to_owned(), prompt.to_owned()))?.get(&index)
    }

    /// Adds an answer; one that is there stays as it is.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn add(&mut self, instance: &str, hop: &str, prompt: &str, index: usize, answer: Answer) -> Result<()> {
        let of_prompt = self.answers.entry((instance.to_owned(), hop.to_owned(), prompt.to_owned())).or_default();
        if of_prompt.contains_key(&index) {
            return Ok(());
        }
        let line = Line { instance_id: instance.to_owned(), hop: hop.to_owned(), prompt: prompt.to_owned(), index, answer: answer.clone() };
        let failed = |e| Error::io("write", &self.path, e);
        let mut text = serde_json::to_vec(&line).map_err(|e| failed(e.into()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(failed)?;
        of_prompt.insert(index, answer);
        Ok(())
    }

    /// Writes the file anew in the order of its keys: answers came in an order that depends on what else was in the batch, and on where a
    /// run was interrupted.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn sort(self) -> Result<()> {
        let lines = self.answers.iter().flat_map(|((instance, hop, prompt), answers)| {
            answers.iter().map(move |(&index, answer)| Line {
                instance_id: instance.clone(),
                hop: hop.clone(),
                prompt: prompt.clone(),
                index,
                answer: answer.clone(),
            })
        });
        files::write(&self.path, &lines.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::generate::FinishReason;

    fn answer(text: &str) -> Answer {
        Answer { text: text.to_owned(), finish_reason: FinishReason::Eos, prompt_tokens: 3, tokens: 1 }
    }

    #[test]
    fn a_torn_line_is_dropped_and_a_broken_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal.add("b", "file", "p", 1, answer("two")).unwrap();
        journal.add("a", "file", "p", 0, answer("one")).unwrap();
        journal.add("a", "file", "p", 0, answer("other")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let journal = Journal::open(&path).unwrap();
            assert_eq!(journal.len(), whole[..cut].iter().filter(|&&b| b == b'\n').count());
            let mut again = journal;
            again.add("a", "file", "p", 0, answer("one")).unwrap();
            again.add("b", "file", "p", 1, answer("two")).unwrap();
            again.sort().unwrap();
            let lines = std::fs::read_to_string(&path).unwrap();
            assert!(lines.starts_with("{\"instance_id\":\"a\",\"hop\":\"file\",\"prompt\":\"p\",\"index\":0,\"text\":\"one\""), "{lines}");
            assert_eq!(lines.lines().count(), 2);
        }
        std::fs::write(&path, "{}\n{\n").unwrap();
        assert!(Journal::open(&path).err().unwrap().to_string().contains("samples.jsonl:1: missing field"));
    }
}
