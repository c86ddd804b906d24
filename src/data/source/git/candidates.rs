//! The files that a task shows beside the gold ones, and the list of all paths.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::MineOptions;
use super::imports::imported;
use super::repository::{Repository, SourceFile};
use crate::Result;
use crate::data::paths::parent;
use crate::data::random::Keyed;

/// A task's `files` and `all_paths`.
type Chosen = (BTreeMap<String, String>, Vec<String>);

/// Chooses a task's `files` and `all_paths` from the base tree's sources. None where there is nothing beside the gold files.
///
/// Of the files beside the gold ones, up to a quarter are `related` (files that changed together with the gold ones before, the most
/// frequent first), up to a quarter are imported by the gold files; the nearest in the tree of folders follow (a keyed random order
/// among equally near ones), and the last third or half is drawn from all the others: near ones alone would put the gold files in the
/// middle, far ones alone would make the task easy. A file that is not UTF-8, is too large, or does not fit into what is left of the
/// bytes gives its place to the next. Both results are in alphabetical order: an order must never tell the answer.
pub(super) fn choose(
    repository: &Repository,
    sources: &[SourceFile],
    gold: &BTreeSet<String>,
    related: &[&str],
    instance_id: &str,
    options: &MineOptions,
) -> Result<Option<Chosen>> {
    let mut chosen = Chooser { repository, sources, limit: options.max_bytes / 2, left: options.max_bytes, files: BTreeMap::new() };
    for path in gold {
        chosen.take(path)?;
    }
    if chosen.files.len() != gold.len() {
        // Cannot happen: gold files are sources of the base tree that have been read before. A task without them is none.
        return Ok(None);
    }
    let imports: BTreeSet<&str> =
        gold.iter().flat_map(|path| imported(path, &chosen.files[path], sources.iter().map(|s| &*s.path))).collect();
    let imports: Vec<&str> = imports.into_iter().collect();
    let quarter = options.distractors / 4;
    let linked = chosen.take_some(related, quarter)? + chosen.take_some(&imports, quarter)?;
    let wanted_near = (options.distractors.div_ceil(2) + linked / 2).saturating_sub(linked);
    let key = |what: &str| Keyed::new(options.seed, &[what, instance_id]);
    let (near, far, all) = (key("near"), key("far"), key("paths"));
    // Heaps, not sorted lists: a few of thousands are taken.
    let by_distance = |s: &SourceFile| (gold.iter().map(|g| distance(g, &s.path)).min(), near.with(s.hash).next_u64());
    let taken = linked + chosen.take_best(wanted_near, by_distance)?;
    let taken = taken + chosen.take_best(options.distractors - taken, |s| far.with(s.hash).next_u64())?;
    if taken == 0 {
        return Ok(None);
    }
    let files = chosen.files;
    let mut others: Vec<&SourceFile> = sources.iter().filter(|s| !files.contains_key(&*s.path)).collect();
    let room = options.max_paths.saturating_sub(files.len());
    if sources.len() > options.max_paths && room < others.len() {
        others.select_nth_unstable_by_key(room, |s| (all.with(s.hash).next_u64(), s.path.clone()));
        others.truncate(room);
    }
    let all_paths: BTreeSet<&str> = files.keys().map(String::as_str).chain(others.iter().map(|s| &*s.path)).collect();
    let all_paths = all_paths.into_iter().map(str::to_owned).collect();
    Ok(Some((files, all_paths)))
}

struct Chooser<'a> {
    repository: &'a Repository,
    /// In alphabetical order.
    sources: &'a [SourceFile],
    limit: usize,
    left: usize,
    files: BTreeMap<String, String>,
}

impl Chooser<'_> {
    /// Takes the file, if it is there, is text and fits.
    fn take(&mut self, path: &str) -> Result<bool> {
        match self.sources.binary_search_by(|s| (*s.path).cmp(path)) {
            Ok(at) => self.take_source(&self.sources[at]),
            Err(_) => Ok(false),
        }
    }

    fn take_source(&mut self, source: &SourceFile) -> Result<bool> {
        if self.files.contains_key(&*source.path) || self.repository.size(&source.blob)? > self.limit.min(self.left) {
            return Ok(false);
        }
        let Ok(text) = String::from_utf8(self.repository.content(&source.blob)?) else { return Ok(false) };
        if text.contains('\0') {
            return Ok(false);
        }
        self.left -= text.len();
        self.files.insert(source.path.to_string(), text);
        Ok(true)
    }

    /// Takes up to `most` of the paths, in their order: how many.
    fn take_some(&mut self, paths: &[&str], most: usize) -> Result<usize> {
        let mut taken = 0;
        for path in paths {
            if taken == most {
                break;
            }
            taken += usize::from(self.take(path)?);
        }
        Ok(taken)
    }

    /// Takes up to `most` of all sources, the least by `key` first: how many.
    fn take_best<K: Ord>(&mut self, most: usize, key: impl Fn(&SourceFile) -> K) -> Result<usize> {
        let keyed = self.sources.iter().enumerate().filter(|(_, s)| !self.files.contains_key(&*s.path));
        let mut heap: BinaryHeap<_> = keyed.map(|(i, s)| Reverse((key(s), i))).collect::<Vec<_>>().into();
        let mut taken = 0;
        while taken < most
            && let Some(Reverse((_, i))) = heap.pop()
        {
            taken += usize::from(self.take_source(&self.sources[i])?);
        }
        Ok(taken)
    }
}

/// How many folders lie between two files: up to the folder that holds both, and down again.
fn distance(a: &str, b: &str) -> usize {
    let parts = |p| parent(p).split('/').filter(|d: &&str| !d.is_empty());
    let common = parts(a).zip(parts(b)).take_while(|(x, y)| x == y).count();
    parts(a).count() + parts(b).count() - 2 * common
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
