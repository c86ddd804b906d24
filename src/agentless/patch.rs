//! From changed files to a patch that may be handed in (Agentless, arXiv 2407.01489, section 3.2; Agentless Mini, arXiv 2502.18449).

use std::collections::BTreeMap;

use super::normalize::{Versions, normalize};
use crate::Result;
use crate::data::patch::{Side, write_change};
use crate::data::symbols::syntax_errors;

/// Changed files: (before, after) by path.
pub type Changed = BTreeMap<String, (String, String)>;

/// A candidate as a patch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// The unified diff, as `git apply` takes it, whatever it says.
    pub raw: String,
    /// The same, or empty where the candidate counts as none.
    pub patch: String,
    /// What votes are counted by ([`normalize`]); empty for a candidate without a vote.
    pub normalized: String,
    /// Why the candidate counts as none, or has no vote.
    pub blank: Option<String>,
}

/// The patch of changed files. `is_new` tells paths that are not there before the change. It counts as none where nothing but blank lines
/// changes, and where a file has more places that its grammar cannot make sense of than before. A patch that changes comments, docstrings or
/// layout alone is one, but has no vote.
///
/// The mark `\ No newline at end of file` stays, unlike in Agentless: `git apply` refuses patches without it.
///
/// # Errors
///
/// The parsers cannot be set up.
pub fn build(changed: &Changed, is_new: &dyn Fn(&str) -> bool) -> Result<Built> {
    let mut raw = String::new();
    for (path, (old, new)) in changed.iter().filter(|(_, (old, new))| old != new) {
        let side = |text| Side { path, mode: 0o100_644, id: "", text };
        raw.push_str(&write_change((!is_new(path)).then(|| side(old.as_str())), Some(side(new.as_str()))));
    }
    let none = |raw: String, why: String| Ok(Built { raw, blank: Some(why), ..Built::default() });
    if changed.iter().all(|(_, (old, new))| full_lines(old).eq(full_lines(new))) {
        return none(raw, "nothing changes".to_owned());
    }
    if let Some((path, _)) = changed.iter().find(|(path, (old, new))| breaks(path, old, new)) {
        return none(raw, format!("{path} cannot be parsed any more"));
    }
    let versions: Vec<Versions<'_>> = changed
        .iter()
        .map(|(path, (old, new))| Versions { path, old: (!is_new(path)).then_some(old.as_str()), new: Some(new.as_str()) })
        .collect();
    let (normalized, blank) = match normalize(&versions)? {
        Ok(text) => (text, None),
        Err(super::normalize::Blank::NothingChanges) => (String::new(), Some("only comments or layout change".to_owned())),
        Err(super::normalize::Blank::Syntax(path)) => return none(raw, format!("{path} cannot be parsed any more")),
    };
    Ok(Built { patch: raw.clone(), raw, normalized, blank })
}

fn full_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|l| !l.trim().is_empty())
}

fn breaks(path: &str, old: &str, new: &str) -> bool {
    old != new && matches!((syntax_errors(path, old), syntax_errors(path, new)), (Some(before), Some(after)) if after > before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(path: &str, old: &str, new: &str) -> Built {
        build(&Changed::from([(path.to_owned(), (old.to_owned(), new.to_owned()))]), &|_| old.is_empty()).unwrap()
    }

    #[test]
    fn what_counts_as_a_patch() {
        let base = "def f(x):\n    return x\n";
        let good = built("m.py", base, "def f(x):\n    return x + 1\n");
        assert_eq!(
            good.patch,
            "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n def f(x):\n-    return x\n+    return x + 1\n"
        );
        assert!(good.blank.is_none() && !good.normalized.is_empty());
        let blank = built("m.py", base, "def f(x):\n\n    return x\n");
        assert_eq!((blank.patch.as_str(), blank.blank.as_deref()), ("", Some("nothing changes")));
        let comment = built("m.py", base, "def f(x):\n    # why\n    return x\n");
        assert!(!comment.patch.is_empty() && comment.normalized.is_empty());
        let broken = built("m.py", base, "def f(x:\n    return x\n");
        assert_eq!((broken.patch.as_str(), broken.blank.as_deref()), ("", Some("m.py cannot be parsed any more")));
        assert!(!broken.raw.is_empty());
        assert!(!built("m.py", "print 'a' if\n", "print 'b' if\n").patch.is_empty(), "what was no Python need not become any");
        assert!(built("new.py", "", "x = 1\n").patch.contains("new file mode 100644"));
        assert_eq!(build(&Changed::new(), &|_| false).unwrap().blank.as_deref(), Some("nothing changes"));
    }

    #[cfg(feature = "grammars")]
    #[test]
    fn other_languages_are_checked_too() {
        assert!(built("m.rs", "fn f() -> u8 { 1 }\n", "fn f() -> u8 { 1 \n").patch.is_empty());
        assert!(!built("m.rs", "fn f() -> u8 { 1 }\n", "fn f() -> u8 { 2 }\n").patch.is_empty());
    }
}
