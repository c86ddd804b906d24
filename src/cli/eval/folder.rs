//! The folder of an evaluation: one for good, or one that goes with the command.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::agentless::files;
use crate::{Error, Result};

/// A folder, and `settings.json` in it.
pub(crate) enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

/// What a folder's `settings.json` says, for a command that goes on with it; none where there is no such file.
///
/// # Errors
///
/// A file that cannot be read, or was not written by such a command.
pub(super) fn recorded<T: serde::de::DeserializeOwned>(dir: &Path) -> Result<Option<T>> {
    let path = dir.join("settings.json");
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|e| Error::io("read", &path, e))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| Error::input(format!("not the settings of a run: {e}")).at_file(&path))
}

impl Folder {
    /// Makes the folder, or opens it where `goes_on`; then its settings must be `settings`, but for the `free` fields, which are put down anew.
    ///
    /// # Errors
    ///
    /// A folder that is there already; other settings, with the first that differs.
    pub(crate) fn open(out: Option<&Path>, goes_on: bool, settings: &Value, free: &[&str]) -> Result<Self> {
        let Some(dir) = out else {
            let failed = |e| Error::io("make a folder in", &std::env::temp_dir(), e);
            return tempfile::Builder::new().prefix("eval-").tempdir().map(Self::Temporary).map_err(failed);
        };
        let path = dir.join("settings.json");
        let there = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if there && !goes_on {
            let hint = "choose another --out, or go on with it by --resume";
            return Err(Error::usage("the folder is there already").at_file(dir).hint(hint));
        }
        if path.is_file() {
            let text = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
            let before: Value = serde_json::from_slice(&text).map_err(|e| Error::input(e.to_string()).at_file(&path))?;
            let fixed = |value: &Value| {
                let mut value = value.clone();
                free.iter().for_each(|name| drop(value.as_object_mut().and_then(|fields| fields.remove(*name))));
                value
            };
            if let Some((name, was, is)) = difference("", &fixed(&before), &fixed(settings)) {
                let message = format!("{name} is {is}, and the folder was made with {was}");
                return Err(Error::usage(message).at_file(&path).hint("give the options that the run was begun with, or another --out"));
            }
            if before == *settings {
                return Ok(Self::Kept(dir.to_owned()));
            }
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io("make", dir, e))?;
        let mut text = serde_json::to_vec_pretty(settings).map_err(|e| Error::input(e.to_string()))?;
        text.push(b'\n');
        files::replace(&path, &text)?;
        Ok(Self::Kept(dir.to_owned()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// The first place where two values differ, with what stands there in each.
fn difference(name: &str, a: &Value, b: &Value) -> Option<(String, Value, Value)> {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let inner = |key: &String| if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            let keys = x.keys().chain(y.keys().filter(|k| !x.contains_key(*k)));
            keys.into_iter().find_map(|k| difference(&inner(k), x.get(k).unwrap_or(&Value::Null), y.get(k).unwrap_or(&Value::Null)))
        }
        _ if a == b => None,
        _ => Some((name.to_owned(), a.clone(), b.clone())),
    }
}
