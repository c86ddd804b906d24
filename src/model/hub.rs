//! Models from the Hugging Face hub, kept in a cache folder.

use crate::Result;
use std::path::PathBuf;

#[cfg(feature = "hub")]
mod download;

/// How far a download is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file's name.
    pub file: &'a str,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all, where the server says so.
    pub total: Option<u64>,
}

/// Where the program keeps what it can make or fetch again: `$SORFT_CACHE`, else `sorft-native` in the user's cache folder
/// (`$XDG_CACHE_HOME`, else `~/.cache`), else in the folder for temporary files.
pub fn cache_dir() -> PathBuf {
    cache_dir_by(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn cache_dir_by(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    if let Some(own) = variable("SORFT_CACHE") {
        return own;
    }
    // The XDG specification: a relative path in the variable is invalid and to be ignored.
    let user = variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()).or_else(|| Some(variable("HOME")?.join(".cache")));
    user.unwrap_or_else(std::env::temp_dir).join("sorft-native")
}

/// Whether a text has the form of a hub id: `owner/name`.
pub fn is_model_id(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.len() <= 96
            && !p.starts_with(['.', '-'])
            && !p.contains("..")
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// The folder with a model of the hub; what is not in the cache is downloaded first. `HF_ENDPOINT` and `HF_TOKEN` are honoured.
///
/// # Errors
/// If there is no such model, or the hub cannot be reached.
#[cfg(feature = "hub")]
pub fn fetch(id: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    download::Hub::from_env().fetch(id, progress)
}

/// The folder with a model of the hub: this build cannot download one.
///
/// # Errors
/// Always.
#[cfg(not(feature = "hub"))]
pub fn fetch(id: &str, _progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    Err(crate::Error::input("no such folder, and this program was built without the feature `hub`, which downloads models")
        .at(id)
        .hint(LOCAL_HINT))
}

/// What to do without the hub.
const LOCAL_HINT: &str = "or give a local model: --model FOLDER (config.json, tokenizer.json, model.safetensors) or --model FILE.gguf";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_folder_follows_the_environment() {
        let env = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| PathBuf::from(v))
        };
        assert_eq!(cache_dir_by(env(&[("SORFT_CACHE", "/c"), ("HOME", "/h")])), PathBuf::from("/c"));
        assert_eq!(cache_dir_by(env(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")])), PathBuf::from("/x/sorft-native"));
        assert_eq!(cache_dir_by(env(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")])), PathBuf::from("/h/.cache/sorft-native"));
        assert_eq!(cache_dir_by(env(&[])), std::env::temp_dir().join("sorft-native"));
    }

    #[test]
    fn model_ids_have_two_plain_parts() {
        for good in ["HuggingFaceTB/SmolLM2-135M-Instruct", "a/b", "Qwen/Qwen2.5-Coder-0.5B"] {
            assert!(is_model_id(good), "{good}");
        }
        for bad in ["a", "a/", "/b", "a/b/c", "./b", "../b", "a/..", "a b/c", "~/m", "a/b?x"] {
            assert!(!is_model_id(bad), "{bad}");
        }
    }
}
