//! The files that a task shows beside the gold ones, and the list of all paths.

use std::collections::{BTreeMap, BTreeSet};

use gix::ObjectId;

use super::MineOptions;
use super::change::Blob;
use super::repository::Repository;
use crate::Result;
use crate::data::paths::parent;
use crate::data::random::Keyed;

/// A task's `files` and `all_paths`.
type Chosen = (BTreeMap<String, String>, Vec<String>);

/// Chooses a task's `files` and `all_paths` from the base tree's sources. None where there is nothing beside the gold files.
///
/// Half of the files beside the gold ones are the nearest in the tree of folders (a keyed random order among equally near ones), half
/// are drawn from all the others: near ones alone would put the gold files in the middle, far ones alone would make the task easy.
/// A file that is not UTF-8, is too large, or does not fit into what is left of the bytes gives its place to the next. Both results are
/// in alphabetical order: an order must never tell the answer.
pub(super) fn choose(
    repository: &Repository,
    tree: ObjectId,
    gold: &BTreeSet<String>,
    instance_id: &str,
    options: &MineOptions,
    is_source: impl Fn(&str) -> bool,
) -> Result<Option<Chosen>> {
    let sources = repository.files(tree, &is_source)?;
    let mut chosen =
        Chooser { repository, sources: &sources, limit: options.max_bytes / 2, left: options.max_bytes, files: BTreeMap::new() };
    for path in gold {
        chosen.take(path)?;
    }
    if chosen.files.len() != gold.len() {
        // Cannot happen: gold files are sources of the base tree that have been read before. A task without them is none.
        return Ok(None);
    }
    let key = |what: &str, path: &str| Keyed::new(options.seed, &[what, instance_id, path]).next_u64();
    let mut near: Vec<&String> = sources.keys().filter(|p| !gold.contains(*p)).collect();
    near.sort_by_cached_key(|p| (gold.iter().map(|g| distance(g, p)).min(), key("near", p)));
    let wanted_near = options.distractors.div_ceil(2);
    let mut rest = Vec::new();
    let mut taken = 0;
    for path in near {
        if taken < wanted_near && chosen.take(path)? {
            taken += 1;
        } else {
            rest.push(path);
        }
    }
    rest.sort_by_cached_key(|p| key("far", p));
    for path in &rest {
        if taken == options.distractors {
            break;
        }
        taken += usize::from(chosen.take(path)?);
    }
    if taken == 0 {
        return Ok(None);
    }
    let files = chosen.files;
    let mut all: BTreeSet<&String> = files.keys().collect();
    let mut others: Vec<&String> = sources.keys().filter(|p| !files.contains_key(*p)).collect();
    if sources.len() > options.max_paths {
        others.sort_by_cached_key(|p| key("paths", p));
        others.truncate(options.max_paths.saturating_sub(files.len()));
    }
    all.extend(others);
    let all_paths = all.into_iter().cloned().collect();
    Ok(Some((files, all_paths)))
}

struct Chooser<'a> {
    repository: &'a Repository,
    sources: &'a BTreeMap<String, Blob>,
    limit: usize,
    left: usize,
    files: BTreeMap<String, String>,
}

impl Chooser<'_> {
    /// Takes the file, if it is text and fits.
    fn take(&mut self, path: &str) -> Result<bool> {
        let Some(blob) = self.sources.get(path) else { return Ok(false) };
        if self.files.contains_key(path) || self.repository.size(blob)? > self.limit.min(self.left) {
            return Ok(false);
        }
        let Ok(text) = String::from_utf8(self.repository.content(blob)?) else { return Ok(false) };
        if text.contains('\0') {
            return Ok(false);
        }
        self.left -= text.len();
        self.files.insert(path.to_owned(), text);
        Ok(true)
    }
}

/// How many folders lie between two files: up to the folder that holds both, and down again.
fn distance(a: &str, b: &str) -> usize {
    let parts = |p| -> Vec<String> {
        Some(parent(p)).filter(|d| !d.is_empty()).map(|d| d.split('/').map(str::to_owned).collect()).unwrap_or_default()
    };
    let (a, b): (Vec<String>, Vec<String>) = (parts(a), parts(b));
    let common = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    a.len() + b.len() - 2 * common
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances_count_folders() {
        assert_eq!(distance("a/b/x", "a/b/y"), 0);
        assert_eq!(distance("a/b/x", "a/y"), 1);
        assert_eq!(distance("a/b/x", "c/y"), 3);
        assert_eq!(distance("x", "y"), 0);
    }
}
