//! All files of a commit, as a checkout has them.

use std::path::Path;

use gix::ObjectId;
use gix::objs::tree::EntryKind;

use super::git_error;
use crate::{Error, Result};

/// What stands at a path of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// A file's bytes, and whether it is executable.
    File(&'a [u8], bool),
    /// Where a symbolic link leads.
    Link(&'a [u8]),
}

/// Hands every file and link of a commit of the repository at `path` that is `wanted` to `take`, with its path, in git's order. Submodules
/// are left out, and nothing is converted: no line ends, no filters.
///
/// # Errors
///
/// No repository there; it lacks the commit or one of its objects; a name that is not UTF-8; what `take` says.
pub fn snapshot(
    path: &Path,
    commit: &str,
    wanted: &dyn Fn(&str) -> bool,
    take: &mut dyn FnMut(&str, Entry<'_>) -> Result<()>,
) -> Result<()> {
    if let Err(e) = path.metadata() {
        return Err(Error::io("open", path, e));
    }
    let mut repo = gix::open_opts(path, gix::open::Options::isolated()).map_err(|e| git_error(path, "open it as a git repository", &e))?;
    repo.object_cache_size_if_unset(32 << 20);
    let what = format!("read commit {commit}");
    let failed = |e: &dyn std::error::Error| git_error(path, &what, e).hint("fetch it: git fetch origin COMMIT, or clone without --depth");
    let id = ObjectId::from_hex(commit.as_bytes()).map_err(|e| failed(&e))?;
    let tree = repo.find_commit(id).map_err(|e| failed(&e))?.tree_id().map_err(|e| failed(&e))?.detach();
    walk(&repo, path, tree, "", wanted, take)
}

fn walk(
    repo: &gix::Repository,
    place: &Path,
    id: ObjectId,
    prefix: &str,
    wanted: &dyn Fn(&str) -> bool,
    take: &mut dyn FnMut(&str, Entry<'_>) -> Result<()>,
) -> Result<()> {
    let hint = "if this is a partial clone, fetch what it left out: git fetch --refetch --no-filter";
    let failed = |e: &dyn std::error::Error| git_error(place, &format!("read {prefix} ({id})"), e).hint(hint);
    let tree = repo.find_tree(id).map_err(|e| failed(&e))?;
    for entry in &tree.decode().map_err(|e| failed(&e))?.entries {
        let name = std::str::from_utf8(entry.filename).map_err(|e| failed(&e))?;
        let path = format!("{prefix}{name}");
        let kind = entry.mode.kind();
        match kind {
            EntryKind::Tree => walk(repo, place, entry.oid.to_owned(), &format!("{path}/"), wanted, take)?,
            EntryKind::Commit => {}
            _ if !wanted(&path) => {}
            _ => {
                let blob = repo.find_object(entry.oid).map_err(|e| failed(&e))?;
                let entry = match kind {
                    EntryKind::Link => Entry::Link(&blob.data),
                    _ => Entry::File(&blob.data, kind == EntryKind::BlobExecutable),
                };
                take(&path, entry)?;
            }
        }
    }
    Ok(())
}
