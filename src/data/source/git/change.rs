//! The changed files of a commit: their contents, moves among them, and the patch that says it.

use gix::ObjectId;
use gix::objs::tree::EntryKind;

use super::repository::Repository;
use crate::Result;
use crate::data::patch::{Side, similarity, write_change};

/// An entry of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    pub kind: EntryKind,
    pub id: ObjectId,
}

impl Blob {
    fn mode(&self) -> u32 {
        match self.kind {
            EntryKind::BlobExecutable => 0o100755,
            EntryKind::Link => 0o120000,
            EntryKind::Commit => 0o160000,
            EntryKind::Tree => 0o040000,
            EntryKind::Blob => 0o100644,
        }
    }

    fn is_file(&self) -> bool {
        matches!(self.kind, EntryKind::Blob | EntryKind::BlobExecutable)
    }
}

/// A path with what stands there before and after.
#[derive(Clone, Debug)]
pub(super) struct RawChange {
    pub path: String,
    pub old: Option<Blob>,
    pub new: Option<Blob>,
}

impl RawChange {
    /// True if what changes is a file on every side where it is: no link, no submodule.
    pub(super) fn is_file(&self) -> bool {
        self.old.iter().chain(&self.new).all(Blob::is_file)
    }
}

/// What a changed file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    Text,
    OtherEncoding,
    TooLarge,
    Binary,
}

/// One side of a changed file.
#[derive(Clone, Debug)]
struct Version {
    path: String,
    blob: Blob,
    content: Content,
    text: String,
    len: usize,
}

/// A changed file with its contents.
#[derive(Clone, Debug)]
pub(super) struct ChangedFile {
    old: Option<Version>,
    new: Option<Version>,
}

impl ChangedFile {
    /// The path at the base, where it is there.
    pub(super) fn base_path(&self) -> Option<String> {
        self.old.as_ref().map(|v| v.path.clone())
    }

    /// How many bytes it holds at the base.
    pub(super) fn old_len(&self) -> usize {
        self.old.as_ref().map_or(0, |v| v.len)
    }

    /// True if only carriage returns before line feeds come or go.
    pub(super) fn changes_line_ends_alone(&self) -> bool {
        let (Some(old), Some(new)) = (&self.old, &self.new) else { return false };
        old.text != new.text && old.text.lines().eq(new.text.lines()) && old.text.ends_with('\n') == new.text.ends_with('\n')
    }

    /// What it holds: text only if both sides are.
    pub(super) fn content(&self) -> Content {
        self.old.iter().chain(&self.new).map(|v| v.content).max().unwrap_or(Content::Text)
    }
}

/// Reads the contents of changed files; those of more than `limit` bytes are left unread.
pub(super) fn read_changes(repository: &Repository, raw: &[RawChange], limit: usize) -> Result<Vec<ChangedFile>> {
    let read = |path: &str, blob: Option<Blob>| -> Result<Option<Version>> {
        let Some(blob) = blob else { return Ok(None) };
        let len = repository.size(&blob)?;
        let version = |content, text| Some(Version { path: path.to_owned(), blob, content, text, len });
        if len > limit {
            return Ok(version(Content::TooLarge, String::new()));
        }
        Ok(match String::from_utf8(repository.content(&blob)?) {
            Ok(text) if text.contains('\0') => version(Content::Binary, String::new()),
            Ok(text) => version(Content::Text, text),
            Err(e) if e.as_bytes().contains(&0) => version(Content::Binary, String::new()),
            Err(_) => version(Content::OtherEncoding, String::new()),
        })
    };
    raw.iter().map(|c| Ok(ChangedFile { old: read(&c.path, c.old)?, new: read(&c.path, c.new)? })).collect()
}

/// How many percent of its lines a file keeps when it counts as moved, as git has it.
const MOVED: usize = 50;

/// Joins a deleted and an added file into a moved one where they are alike: equal ones first, then the most similar, equal similarity
/// in alphabetical order.
pub(super) fn find_moves(changes: Vec<ChangedFile>) -> Vec<ChangedFile> {
    let (mut kept, mut gone, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        match (&change.old, &change.new) {
            (Some(_), None) => gone.push(change.old),
            (None, Some(_)) => new.push(change.new),
            _ => kept.push(change),
        }
    }
    let mut pairs = Vec::new();
    for (i, old) in gone.iter().enumerate() {
        for (j, added) in new.iter().enumerate() {
            if let (Some(old), Some(added)) = (old, added) {
                // Empty files are alike without being one.
                let alike = if old.text.is_empty() || added.text.is_empty() { 0 } else { similarity(&old.text, &added.text) };
                if alike >= MOVED {
                    pairs.push((std::cmp::Reverse(alike), i, j));
                }
            }
        }
    }
    pairs.sort_unstable();
    for (_, i, j) in pairs {
        if gone[i].is_some() && new[j].is_some() {
            kept.push(ChangedFile { old: gone[i].take(), new: new[j].take() });
        }
    }
    kept.extend(gone.into_iter().flatten().map(|v| ChangedFile { old: Some(v), new: None }));
    kept.extend(new.into_iter().flatten().map(|v| ChangedFile { old: None, new: Some(v) }));
    let path = |c: &ChangedFile| c.new.as_ref().or(c.old.as_ref()).map(|v| v.path.clone());
    kept.sort_by_key(path);
    kept
}

/// The patch of the changes, in the order of their paths.
pub(super) fn write_patch(changes: &[ChangedFile]) -> String {
    let id = |v: &Option<Version>| v.as_ref().map(|v| v.blob.id.to_string()[..10].to_owned()).unwrap_or_default();
    let mut out = String::new();
    for change in changes {
        let (old_id, new_id) = (id(&change.old), id(&change.new));
        let old = change.old.as_ref().map(|v| Side { path: &v.path, mode: v.blob.mode(), id: &old_id, text: &v.text });
        let new = change.new.as_ref().map(|v| Side { path: &v.path, mode: v.blob.mode(), id: &new_id, text: &v.text });
        out.push_str(&write_change(old, new));
    }
    out
}
