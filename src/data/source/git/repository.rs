//! Reading a git repository: commits in the order of the walk, trees and their differences, blobs.
//!
//! The repository is opened in isolation: no configuration of the user or the system has a say in what is mined.

use std::cell::{Cell, RefCell};
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gix::ObjectId;
use gix::objs::tree::EntryKind;

use super::change::{Blob, RawChange};
use super::git_error;
use crate::data::random::hash;
use crate::{Error, Result};

/// An open repository.
pub(super) struct Repository {
    repo: gix::Repository,
    path: PathBuf,
    border: HashSet<ObjectId>,
    listings: RefCell<Listings>,
    /// True for a partial clone: blobs, and trees, may be left out on purpose.
    partial: bool,
    /// Whether such a one was asked for.
    left_out: Cell<bool>,
}

/// Entries of a tree, with their names.
type Entries = Vec<(String, Blob)>;

/// A source file of a tree.
#[derive(Clone)]
pub(super) struct SourceFile {
    pub path: Arc<str>,
    /// The path's [`hash`], asked for often.
    pub hash: u64,
    pub blob: Blob,
}

/// The sources below trees, kept between commits: from one to the next most folders stay as they are.
#[derive(Default)]
struct Listings {
    by_tree: HashMap<(ObjectId, String), Arc<Vec<SourceFile>>>,
    entries: usize,
}

/// So many entries of listings are kept: some tens of megabytes.
const MOST_LISTED: usize = 400_000;

/// What is needed of a commit.
pub(super) struct Commit {
    pub id: ObjectId,
    pub parents: Vec<ObjectId>,
    pub tree: ObjectId,
    /// True where the parents are beyond the border of a shallow clone.
    pub at_border: bool,
    pub author: String,
    pub email: String,
    /// When it was committed, in RFC 3339 and the committer's own offset.
    pub time: String,
    /// The same as seconds since 1970.
    pub seconds: i64,
    pub message: Vec<u8>,
}

impl Repository {
    pub(super) fn open(path: &Path) -> Result<Self> {
        if let Err(e) = path.metadata() {
            return Err(Error::io("open", path, e));
        }
        let mut repo = gix::open_opts(path, gix::open::Options::isolated()).map_err(|e| {
            let hint = "give the folder that holds `.git`, or a bare repository; for one that is not here yet: git clone URL";
            git_error(path, "open it as a git repository", &e).hint(hint)
        })?;
        repo.object_cache_size_if_unset(32 << 20);
        let failed = |e: &dyn std::error::Error| git_error(path, "read the border of the shallow clone", e);
        let border = repo.shallow_commits().map_err(|e| failed(&e))?;
        let border = border.map(|c| c.iter().copied().collect()).unwrap_or_default();
        let partial = is_partial(&repo);
        if partial {
            // What was not there a moment ago is not looked for again on the disk, each time.
            repo.objects.refresh_never();
        }
        Ok(Self { repo, path: path.to_owned(), border, listings: RefCell::default(), partial, left_out: Cell::new(false) })
    }

    /// What `work` gives; none where it fails because a partial clone left out an object that it asked for.
    pub(super) fn unless_left_out<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
        self.left_out.set(false);
        match work() {
            Err(_) if self.left_out.get() => Ok(None),
            result => result.map(Some),
        }
    }

    pub(super) fn is_shallow(&self) -> bool {
        !self.border.is_empty()
    }

    /// `owner/name` from the address of the remote `origin`, else the name of the folder.
    pub(super) fn name(&self, path: &Path) -> String {
        let url = self.repo.config_snapshot().string("remote.origin.url").map(|u| u.to_string());
        if let Some(name) = url.as_deref().and_then(name_of_url) {
            return name;
        }
        let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = full.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.strip_suffix(".git").unwrap_or(&name);
        if name.is_empty() { "repository".to_owned() } else { name.to_owned() }
    }

    /// The commit that HEAD stands for.
    pub(super) fn head(&self) -> Result<String> {
        Ok(self.head_id()?.to_string())
    }

    fn head_id(&self) -> Result<ObjectId> {
        let head = self.repo.head().map_err(|e| git_error(&self.path, "read HEAD", &e))?;
        if head.is_unborn() {
            return Err(Error::input("the repository has no commit yet")
                .at_file(&self.path)
                .hint("there is nothing to mine before the first commit"));
        }
        Ok(self.repo.head_id().map_err(|e| git_error(&self.path, "read HEAD", &e))?.detach())
    }

    /// A missing or damaged object, and what to do about it.
    fn object_error(&self, id: ObjectId, what: &str, error: &dyn std::error::Error) -> Error {
        if self.partial && !self.repo.has_object(id) {
            self.left_out.set(true);
            return git_error(&self.path, what, error)
                .hint("a partial clone leaves objects out; to have them all: git fetch --refetch --no-filter");
        }
        git_error(&self.path, what, error).hint("objects are missing or damaged: see git fsck, or clone anew")
    }

    pub(super) fn commit(&self, id: ObjectId) -> Result<Commit> {
        let what = format!("read commit {id}");
        let failed = |e: &dyn std::error::Error| self.object_error(id, &what, e);
        let commit = self.repo.find_commit(id).map_err(|e| failed(&e))?;
        let author = commit.author().map_err(|e| failed(&e))?;
        let time = commit.time().map_err(|e| failed(&e))?;
        Ok(Commit {
            id,
            parents: commit.parent_ids().map(|p| p.detach()).collect(),
            tree: commit.tree_id().map_err(|e| failed(&e))?.detach(),
            at_border: self.border.contains(&id),
            author: author.name.to_string(),
            email: author.email.to_string(),
            time: time.format_or_unix(gix::date::time::format::ISO8601_STRICT),
            seconds: time.seconds,
            message: commit.message_raw().map_err(|e| failed(&e))?.to_vec(),
        })
    }

    /// A commit's tree.
    pub(super) fn tree_of(&self, id: ObjectId) -> Result<ObjectId> {
        let failed = |e: &dyn std::error::Error| self.object_error(id, &format!("read commit {id}"), e);
        let commit = self.repo.find_commit(id).map_err(|e| failed(&e))?;
        Ok(commit.tree_id().map_err(|e| failed(&e))?.detach())
    }

    /// A walk from HEAD: along the first parents, or over all commits that HEAD reaches, newest first.
    pub(super) fn walk(&self, all_parents: bool) -> Result<Walk> {
        let mut walk = Walk { all_parents, ready: BinaryHeap::new(), seen: HashSet::new() };
        walk.push(self, self.head_id()?)?;
        Ok(walk)
    }

    /// The changed paths between two trees, in alphabetical order; more than `limit` are not looked for.
    pub(super) fn diff(&self, old: ObjectId, new: ObjectId, limit: usize) -> Result<Vec<RawChange>> {
        let mut out = Vec::new();
        self.diff_into(Some(old), Some(new), "", limit, &mut out)?;
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(out)
    }

    fn diff_into(&self, old: Option<ObjectId>, new: Option<ObjectId>, prefix: &str, limit: usize, out: &mut Vec<RawChange>) -> Result<()> {
        let (old, new) = self.differing(old, new)?;
        let mut sides: Vec<(String, Option<Blob>, Option<Blob>)> = Vec::new();
        sides.extend(old.into_iter().map(|(name, blob)| (name, Some(blob), None)));
        for (name, blob) in new {
            match sides.iter_mut().find(|(n, _, _)| *n == name) {
                Some(side) => side.2 = Some(blob),
                None => sides.push((name, None, Some(blob))),
            }
        }
        for (name, old, new) in sides {
            if out.len() > limit {
                return Ok(());
            }
            let path = format!("{prefix}{name}");
            let tree = |side: Option<Blob>| side.filter(|e| e.kind == EntryKind::Tree).map(|e| e.id);
            let file = |side: Option<Blob>| side.filter(|e| e.kind != EntryKind::Tree);
            if tree(old).is_some() || tree(new).is_some() {
                self.diff_into(tree(old), tree(new), &format!("{path}/"), limit, out)?;
            }
            if file(old).is_some() || file(new).is_some() {
                out.push(RawChange { path, old: file(old), new: file(new) });
            }
        }
        Ok(())
    }

    /// The entries of two trees that are not the same in both. Both are in git's order, so equal ones meet; names are copied for those
    /// alone that differ.
    fn differing(&self, old: Option<ObjectId>, new: Option<ObjectId>) -> Result<(Entries, Entries)> {
        let failed = |id: ObjectId, e: &dyn std::error::Error| self.object_error(id, &format!("read tree {id}"), e);
        let find = |id: Option<ObjectId>| id.map(|id| self.repo.find_tree(id).map_err(|e| failed(id, &e))).transpose();
        let (old_tree, new_tree) = (find(old)?, find(new)?);
        let old_entries = match &old_tree {
            Some(t) => t.decode().map_err(|e| failed(t.id, &e))?.entries,
            None => Vec::new(),
        };
        let new_entries = match &new_tree {
            Some(t) => t.decode().map_err(|e| failed(t.id, &e))?.entries,
            None => Vec::new(),
        };
        let (mut i, mut j) = (0, 0);
        let (mut old_out, mut new_out) = (Vec::new(), Vec::new());
        while i < old_entries.len() || j < new_entries.len() {
            let order = match (old_entries.get(i), new_entries.get(j)) {
                (Some(a), Some(b)) => a.cmp(b),
                (Some(_), None) => std::cmp::Ordering::Less,
                _ => std::cmp::Ordering::Greater,
            };
            if order.is_eq() && old_entries[i].oid == new_entries[j].oid && old_entries[i].mode == new_entries[j].mode {
                (i, j) = (i + 1, j + 1);
                continue;
            }
            if order.is_le() {
                old_out.push(named(&old_entries[i]));
                i += 1;
            }
            if order.is_ge() {
                new_out.push(named(&new_entries[j]));
                j += 1;
            }
        }
        Ok((old_out, new_out))
    }

    /// All files of a tree (no links, no submodules) for whose paths `take` holds, in alphabetical order.
    pub(super) fn files(&self, tree: ObjectId, take: &dyn Fn(&str) -> bool) -> Result<Arc<Vec<SourceFile>>> {
        if self.listings.borrow().entries > MOST_LISTED {
            self.listings.take();
        }
        self.listing(tree, "", take)
    }

    fn listing(&self, id: ObjectId, prefix: &str, take: &dyn Fn(&str) -> bool) -> Result<Arc<Vec<SourceFile>>> {
        let key = (id, prefix.to_owned());
        if let Some(known) = self.listings.borrow().by_tree.get(&key) {
            return Ok(known.clone());
        }
        let what = format!("read tree {id}");
        let tree = self.repo.find_tree(id).map_err(|e| self.object_error(id, &what, &e))?;
        let decoded = tree.decode().map_err(|e| self.object_error(id, &what, &e))?;
        let mut out = Vec::new();
        // git's order of a tree's entries is the alphabetical one of the paths below them.
        for (name, blob) in decoded.entries.iter().map(named) {
            let path = format!("{prefix}{name}");
            match blob.kind {
                EntryKind::Tree => out.extend(self.listing(blob.id, &format!("{path}/"), take)?.iter().cloned()),
                EntryKind::Blob | EntryKind::BlobExecutable if take(&path) && !path.contains('\u{FFFD}') => {
                    out.push(SourceFile { hash: hash(path.as_bytes()), path: path.into(), blob });
                }
                _ => {}
            }
        }
        let out = Arc::new(out);
        // The root differs from commit to commit.
        if !prefix.is_empty() {
            let mut listings = self.listings.borrow_mut();
            listings.entries += out.len() + 1;
            listings.by_tree.insert(key, out.clone());
        }
        Ok(out)
    }

    /// A blob's size, without its content.
    pub(super) fn size(&self, blob: &Blob) -> Result<usize> {
        let header = self.repo.find_header(blob.id).map_err(|e| self.object_error(blob.id, &format!("read blob {}", blob.id), &e))?;
        Ok(usize::try_from(header.size()).unwrap_or(usize::MAX))
    }

    /// A blob's content.
    pub(super) fn content(&self, blob: &Blob) -> Result<Vec<u8>> {
        let mut object = self.repo.find_blob(blob.id).map_err(|e| self.object_error(blob.id, &format!("read blob {}", blob.id), &e))?;
        Ok(object.take_data())
    }
}

/// True where a remote promises the objects that are not here, as `git clone --filter` leaves it.
fn is_partial(repo: &gix::Repository) -> bool {
    let config = repo.config_snapshot();
    let promises = |name: &str| config.boolean(&*format!("remote.{name}.promisor")) == Some(true);
    config.string("extensions.partialClone").is_some() || repo.remote_names().iter().any(|name| promises(&name.to_string()))
}

/// An entry's name and what it is. A name that is not UTF-8 gets a replacement character, by which a commit that changes it is skipped.
fn named(e: &gix::objs::tree::EntryRef<'_>) -> (String, Blob) {
    (String::from_utf8_lossy(e.filename).into_owned(), Blob { kind: e.mode.kind(), id: e.oid.to_owned() })
}

/// The commits still to be looked at, the newest first.
pub(super) struct Walk {
    all_parents: bool,
    ready: BinaryHeap<(i64, ObjectId)>,
    seen: HashSet<ObjectId>,
}

impl Walk {
    fn push(&mut self, repository: &Repository, id: ObjectId) -> Result<()> {
        if self.seen.insert(id) {
            // The time is read only where it decides something.
            let seconds = if self.all_parents { repository.commit(id)?.seconds } else { 0 };
            self.ready.push((seconds, id));
        }
        Ok(())
    }

    pub(super) fn next(&mut self, repository: &Repository) -> Result<Option<Commit>> {
        let Some((_, id)) = self.ready.pop() else { return Ok(None) };
        let commit = repository.commit(id)?;
        if !commit.at_border {
            let parents = if self.all_parents { commit.parents.len() } else { commit.parents.len().min(1) };
            for parent in &commit.parents[..parents] {
                self.push(repository, *parent)?;
            }
        }
        Ok(Some(commit))
    }
}

/// `owner/name` of `https://host/owner/name.git`, `git@host:owner/name`, ...; none for a path on this machine.
fn name_of_url(url: &str) -> Option<String> {
    let path = match url.split_once("://") {
        Some(("file", _)) => return None,
        Some((_, rest)) => rest.split_once('/')?.1,
        None => url.split_once(':').filter(|(host, _)| host.len() > 1 && !host.contains('/'))?.1,
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    let mut parts = path.rsplit('/').filter(|p| !p.is_empty());
    let (name, owner) = (parts.next()?, parts.next()?);
    Some(format!("{owner}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::name_of_url;

    #[test]
    fn names_come_from_addresses() {
        let name = |url| name_of_url(url);
        for url in
            ["https://host.example/o/r.git", "git@host.example:o/r", "ssh://git@host.example:22/o/r/", "https://u:p@host.example/g/o/r"]
        {
            assert_eq!(name(url).as_deref(), Some("o/r"), "{url}");
        }
        for url in ["/srv/o/r.git", "../o/r", "file:///srv/o/r", "C:\\o\\r", "https://host.example/r"] {
            assert_eq!(name(url), None, "{url}");
        }
    }
}
