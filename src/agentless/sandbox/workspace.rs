//! The tree that confined commands find: a folder of its own, changed between commands by its owner alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// A tree for confined commands, removed when it is dropped. Every command gets a copy of it, so commands do not see each other's changes,
/// and nothing that a command wrote is ever read here.
#[derive(Debug)]
pub struct Workspace {
    folder: tempfile::TempDir,
}

/// Whom a command of root runs as: `nobody`. Limits on processes do not hold for root.
pub(super) const NOBODY: u32 = 65_534;

impl Workspace {
    /// A workspace with an empty tree.
    pub fn empty() -> Result<Self> {
        let workspace = Self { folder: passable_folder()? };
        for path in [workspace.root(), workspace.tree()] {
            fs::create_dir(&path).and_then(|()| give(&path)).map_err(|e| Error::io("make", &path, e))?;
        }
        Ok(workspace)
    }

    /// A workspace with a copy of all files, folders and links below `from`. Links that lead out of it lead nowhere when confined.
    pub fn copy_of(from: &Path) -> Result<Self> {
        let workspace = Self::empty()?;
        copy(from, &workspace.tree())?;
        Ok(workspace)
    }

    /// The folder that holds the tree.
    pub fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// A file's text; none where there is no plain file, or one that is not UTF-8.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        let place = self.place(path)?;
        let mut folder = self.tree();
        for part in Path::new(path).components() {
            folder.push(part);
            // A link might lead out of the tree.
            if folder.symlink_metadata().map_or(true, |m| m.is_symlink()) {
                return Ok(None);
            }
        }
        let bytes = if place.is_file() { fs::read(&place).map_err(|e| Error::io("read", &place, e))? } else { return Ok(None) };
        Ok(String::from_utf8(bytes).ok())
    }

    /// Writes a file; its mode stays as it was.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let place = self.make_parents(path)?;
        if place.symlink_metadata().is_ok_and(|m| !m.is_file()) {
            return Err(Error::input("it is no plain file").at_file(&place));
        }
        fs::write(&place, content).and_then(|()| give(&place)).map_err(|e| Error::io("write", &place, e))
    }

    /// Makes a file executable.
    pub fn make_executable(&self, path: &str) -> Result<()> {
        let place = self.place(path)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).map_err(|e| Error::io("make executable", &place, e))
    }

    /// Makes a symbolic link.
    pub fn link(&self, path: &str, target: &Path) -> Result<()> {
        let place = self.make_parents(path)?;
        symlink(target, &place).and_then(|()| give(&place)).map_err(|e| Error::io("link", &place, e))
    }

    /// Removes a file or link, if it is there.
    pub fn remove(&self, path: &str) -> Result<()> {
        // Through `read`'s rule: nothing below a link.
        let place = self.make_parents(path)?;
        match fs::remove_file(&place) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &place, e)),
            _ => Ok(()),
        }
    }

    /// An empty folder, on which the command's file system is built.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Where a path of the tree is.
    fn place(&self, path: &str) -> Result<PathBuf> {
        let inside = Path::new(path).components().all(|c| matches!(c, Component::Normal(_))) && !path.is_empty();
        if inside { Ok(self.tree().join(path)) } else { Err(Error::input("expected a path inside of the tree").at(path)) }
    }

    /// Makes the folders above a path, following no link.
    fn make_parents(&self, path: &str) -> Result<PathBuf> {
        let place = self.place(path)?;
        let mut folder = self.tree();
        for part in Path::new(path).parent().unwrap_or(Path::new("")).components() {
            folder.push(part);
            match fs::create_dir(&folder) {
                Ok(()) => give(&folder).map_err(|e| Error::io("make", &folder, e))?,
                Err(_) if folder.symlink_metadata().is_ok_and(|m| m.is_dir()) => {}
                Err(e) => return Err(Error::io("make", &folder, e)),
            }
        }
        Ok(place)
    }
}

/// A temporary folder that `nobody` can get through, and need not see what is in it.
pub(super) fn passable_folder() -> Result<tempfile::TempDir> {
    let parent = std::env::temp_dir();
    let made = tempfile::Builder::new().prefix("sandbox-").tempdir();
    let made = made.and_then(|f| fs::set_permissions(f.path(), fs::Permissions::from_mode(0o711)).map(|()| f));
    made.map_err(|e| Error::io("make a folder in", &parent, e))
}

/// True where this program runs as root.
pub(super) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Makes a path the property of whom the commands run as.
fn give(path: &Path) -> std::io::Result<()> {
    if is_root() { lchown(path, Some(NOBODY), Some(NOBODY)) } else { Ok(()) }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |e| Error::io("copy", from, e);
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed)?;
        let failed = |e| Error::io("copy", &source, e);
        if kind.is_dir() {
            fs::create_dir(&target).map_err(failed)?;
            give(&target).map_err(failed)?;
            copy(&source, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source).map_err(failed)?, &target).and_then(|()| give(&target)).map_err(failed)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(failed)?;
            give(&target).map_err(failed)?;
        }
    }
    Ok(())
}
