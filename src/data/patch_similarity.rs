//! SWE-RL's reward (arXiv 2502.18449, section 2.2): how similar the patch of an answer is to the gold patch, by CPython's `difflib`.
//!
//! The reward is the mean, over the files that either patch changes, of `SequenceMatcher(None, pred, oracle, autojunk=False).ratio()` on
//! the characters of the two patches of the file (0 where one of them has none), and -1 for an answer that is not of the format. The mean
//! is summed in ascending order of the paths, where the reference's order is that of a Python set.

use std::collections::BTreeMap;

use memchr::memmem;

use super::difflib::{CharIndex, PyText, Scratch, splitlines, strip, unified_diff};
use super::edit_blocks::swe_rl;
use super::unidiff;

/// Contents by path.
pub type Files = BTreeMap<PyText, PyText>;

/// Texts of changes by path.
pub type Patches = BTreeMap<PyText, Vec<u8>>;

/// How patches are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// By similarity.
    #[default]
    Continuous,
    /// 1 where all patches are equal, else 0: the ablation of the paper's section 3.4.
    Discrete,
}

/// The gold patches, indexed once for all answers to a question.
pub struct Oracle {
    patches: BTreeMap<PyText, (Vec<u8>, CharIndex)>,
}

/// What a file of the union adds to the mean.
#[derive(Clone, Debug, PartialEq)]
pub struct FileSimilarity {
    /// The file.
    pub path: PyText,
    /// The answer's patch of it; empty where there is none.
    pub predicted: Vec<u8>,
    /// The gold patch of it; empty where there is none.
    pub oracle: Vec<u8>,
    /// Their similarity.
    pub similarity: f64,
}

/// A reward with what it was made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The reward: in `[0, 1]`, or -1 for a format error.
    pub reward: f64,
    /// The format error, in words.
    pub error: Option<String>,
    /// The text between the think tags.
    pub thought: PyText,
    /// The text between the solution tags.
    pub answer: PyText,
    /// The files of either patch, in ascending order of their paths.
    pub files: Vec<FileSimilarity>,
}

impl Oracle {
    /// The gold patches between two versions of files.
    pub fn from_contents(context: &Files, new: &Files) -> Self {
        Self::new(normalised_patches(context, new))
    }

    /// Given patches.
    pub fn new(patches: Patches) -> Self {
        let index = |(path, text): (PyText, Vec<u8>)| {
            let index = CharIndex::new(&text);
            (path, (text, index))
        };
        Self { patches: patches.into_iter().map(index).collect() }
    }

    /// The reward of patches, with the similarity of every file. Two empty sets of patches are equal.
    pub fn compare(&self, predicted: Patches, rule: Rule, scratch: &mut Scratch) -> Judgement {
        let equal =
            predicted.len() == self.patches.len() && predicted.iter().all(|(p, t)| self.patches.get(p).is_some_and(|(o, _)| o == t));
        let files = self.similarities(predicted, scratch);
        let reward = match rule {
            Rule::Discrete => f64::from(u8::from(equal)),
            Rule::Continuous if files.is_empty() => 1.0,
            Rule::Continuous => files.iter().map(|f| f.similarity).fold(0.0, |sum, x| sum + x) / files.len() as f64,
        };
        Judgement { reward, files, ..Judgement::default() }
    }

    fn similarities(&self, mut predicted: Patches, scratch: &mut Scratch) -> Vec<FileSimilarity> {
        let mut files: Vec<FileSimilarity> = self
            .patches
            .iter()
            .map(|(path, (oracle, index))| {
                let predicted = predicted.remove(path).unwrap_or_default();
                let missing = predicted.is_empty() || oracle.is_empty();
                let similarity = if missing { 0.0 } else { index.ratio(&predicted, scratch) };
                FileSimilarity { path: path.clone(), predicted, oracle: oracle.clone(), similarity }
            })
            .collect();
        let others = predicted.into_iter();
        files.extend(others.map(|(path, predicted)| FileSimilarity { path, predicted, oracle: Vec::new(), similarity: 0.0 }));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        files
    }

    /// Judges an answer about `context`. What is wrong with its format is a result.
    pub fn judge(&self, context: &Files, completion: &[u8], rule: Rule, scratch: &mut Scratch) -> Judgement {
        let judged = read_answer(completion).and_then(|(thought, answer)| {
            let new = new_contents(context, answer)?;
            let judgement = self.compare(normalised_patches(context, &new), rule, scratch);
            Ok(Judgement { thought: thought.into(), answer: answer.into(), ..judgement })
        });
        judged.unwrap_or_else(|error| Judgement { reward: -1.0, error: Some(error), ..Judgement::default() })
    }
}

/// The thought and the answer of a completion: each of the four tags stands in it exactly once, wherever. The texts are stripped as Python
/// strips them.
///
/// # Errors
///
/// A tag that is missing or repeated; an empty thought.
pub fn read_answer(completion: &[u8]) -> Result<(&[u8], &[u8]), String> {
    for tag in ["<think>", "</think>", "<solution>", "</solution>"] {
        let count = memmem::find_iter(completion, tag).count();
        if count != 1 {
            return Err(format!("the answer has {count} {tag} tags; it must have one"));
        }
    }
    let thought = strip(between(completion, "<think>", "</think>"));
    if thought.is_empty() {
        return Err("the thought is empty".into());
    }
    Ok((thought, strip(between(completion, "<solution>", "</solution>"))))
}

/// The text behind `open`, up to the next `close` or to the end.
fn between<'a>(text: &'a [u8], open: &str, close: &str) -> &'a [u8] {
    let start = memmem::find(text, open.as_bytes()).map_or(text.len(), |at| at + open.len());
    let rest = &text[start..];
    &rest[..memmem::find(rest, close.as_bytes()).unwrap_or(rest.len())]
}

/// The contents of the files that an answer edits, after its edits.
///
/// # Errors
///
/// No edit block, or one that cannot be applied.
pub fn new_contents(context: &Files, answer: &[u8]) -> Result<Files, String> {
    let edits = swe_rl::parse_blocks(answer);
    if edits.is_empty() {
        return Err("the solution has no edit block".into());
    }
    let mut by_path: BTreeMap<&PyText, Vec<&swe_rl::Edit>> = BTreeMap::new();
    edits.iter().for_each(|edit| by_path.entry(&edit.path).or_default().push(edit));
    let mut new = Files::new();
    for (path, edits) in by_path {
        let old = context.get(path).map_or(&[][..], PyText::as_bytes);
        new.insert(path.clone(), swe_rl::apply(old, edits)?.into());
    }
    Ok(new)
}

/// The patch of every file of `new` that differs from the one in `context` (empty for one that is not there): a unified diff of its lines
/// with three lines around each change, from the first hunk's header on.
pub fn normalised_patches(context: &Files, new: &Files) -> Patches {
    let patch = |(path, text): (&PyText, &PyText)| {
        let old = context.get(path).map_or(&[][..], PyText::as_bytes);
        let patch = unified_diff(&splitlines(old), &splitlines(text.as_bytes()), 3);
        (!patch.is_empty()).then(|| (path.clone(), patch))
    };
    new.iter().filter_map(patch).collect()
}

/// The changes that unified diffs make, file by file: what the reward for agents that answer with diffs compares. A text that `unidiff` does
/// not parse has none; of several changes of a path the last counts.
pub fn unidiff_changes<'a>(texts: impl IntoIterator<Item = &'a [u8]>) -> Patches {
    let mut changes = Patches::new();
    for file in texts.into_iter().flat_map(|text| unidiff::parse(text).unwrap_or_default()) {
        if file.binary {
            continue;
        }
        let (path, header) = if file.is_rename() {
            let source = file.source.strip_prefix(b"a/").unwrap_or(&file.source);
            let target = file.target.strip_prefix(b"b/").unwrap_or(&file.target);
            (source.to_vec(), [b"rename from ", source, b" to ", target].concat())
        } else {
            (file.path(), Vec::new())
        };
        let hunks: Vec<&[u8]> = file.hunks.iter().map(|h| strip(h)).collect();
        let text = [header, hunks.join(&b'\n')].join(&b'\n');
        changes.insert(path.into(), strip(&text).to_vec());
    }
    changes
}

#[cfg(test)]
#[path = "patch_similarity_tests.rs"]
mod tests;
