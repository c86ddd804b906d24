//! Files that are there as a whole or not at all: written under a temporary name, fsynced, renamed.

use crate::{Error, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `path` by `write`. Until the rename a reader sees the old file, or none; on an error the temporary file is removed.
pub(in crate::model) fn write_file(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    // A temporary file is its owner's alone by default; this one becomes an ordinary file, as far as the umask allows.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(|e| Error::io("create a file in", folder, e))?;
    let (file, name) = temporary.into_parts();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    let file = out.into_inner().map_err(|e| Error::io("write", path, e.into_error()))?;
    file.sync_all().map_err(|e| Error::io("write", path, e))?;
    name.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    sync_folder(folder)
}

/// [`write_file`] of bytes that are at hand.
pub(in crate::model) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |out| out.write_all(bytes).map_err(|e| Error::io("write", path, e)))
}

/// [`write_bytes`] of JSON as transformers writes it: two spaces of indent, a newline at the end.
pub(in crate::model) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::input(format!("cannot write JSON: {e}")).at_file(path))?;
    bytes.push(b'\n');
    write_bytes(path, &bytes)
}

/// Makes renames in a folder last through a crash.
fn sync_folder(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("write", folder, e))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let e = write_file(&path, |out| {
            out.write_all(b"half").unwrap();
            Err(Error::input("no more"))
        });
        assert_eq!(e.unwrap_err().to_string(), "no more");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
