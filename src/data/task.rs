//! A resolved issue with its fix: SWE-bench's field names, and what this project adds to them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::patch::Patch;
use crate::{Error, Result};

/// One resolved issue. The JSON form has the field names of SWE-bench (`FAIL_TO_PASS` and `PASS_TO_PASS` are read as a list or as a
/// string that holds a JSON list, as its releases differ); `files`, `all_paths` and the `gold_*` fields are this project's own and
/// optional. Fields that are not known are kept in [`Task::extra`] and written back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// A name that no other task of a file has, such as `owner__name-123`.
    pub instance_id: String,
    /// The repository, `owner/name`.
    pub repo: String,
    /// The commit that the issue was reported at and the patch applies to.
    pub base_commit: String,
    /// The commit that holds the fix, where known.
    pub fix_commit: Option<String>,
    /// When the fix was made (RFC 3339, or any of the forms that [`super::split::instant`] reads).
    pub created_at: Option<String>,
    /// The issue's title and text, or what stands for it (a commit message).
    pub problem_statement: String,
    /// Later discussion of the issue, which may tell the answer: never part of a prompt.
    pub hints_text: Option<String>,
    /// The gold patch: a git diff of the sources, tests left out.
    pub patch: String,
    /// The git diff of the tests that came with the fix (may be empty).
    pub test_patch: String,
    /// Tests that fail before the fix and pass after it.
    pub fail_to_pass: Option<Vec<String>>,
    /// Tests that pass before and after the fix.
    pub pass_to_pass: Option<Vec<String>>,
    /// Paths of the files that the patch changes and that are there at the base commit.
    pub gold_files: Option<Vec<String>>,
    /// Qualified names of the functions that the patch changes, by path.
    pub gold_functions: Option<BTreeMap<String, Vec<String>>>,
    /// 1-based numbers of the lines that the patch changes in the base file, by path.
    pub gold_lines: Option<BTreeMap<String, Vec<usize>>>,
    /// Contents at the base commit, by path: the gold files and some of their neighbours.
    pub files: BTreeMap<String, String>,
    /// Paths of the (non-test) source files at the base commit.
    pub all_paths: Vec<String>,
    /// All other fields, as they were read.
    pub extra: Map<String, Value>,
}

impl Task {
    /// Reads a task from its JSON form. Missing fields are empty (a caller that needs one calls [`Task::check`]); a field of the wrong
    /// type is an error that names it.
    pub fn from_json(value: Value) -> Result<Self> {
        let Value::Object(mut map) = value else {
            return Err(Error::input(format!("expected a task (a JSON object), found {}", type_name(&value))));
        };
        let task = Self {
            instance_id: text(&mut map, "instance_id")?.unwrap_or_default(),
            repo: text(&mut map, "repo")?.unwrap_or_default(),
            base_commit: text(&mut map, "base_commit")?.unwrap_or_default(),
            fix_commit: text(&mut map, "fix_commit")?,
            created_at: time(&mut map, "created_at")?,
            problem_statement: text(&mut map, "problem_statement")?.unwrap_or_default(),
            hints_text: text(&mut map, "hints_text")?,
            patch: text(&mut map, "patch")?.unwrap_or_default(),
            test_patch: text(&mut map, "test_patch")?.unwrap_or_default(),
            fail_to_pass: tests(&mut map, "FAIL_TO_PASS")?,
            pass_to_pass: tests(&mut map, "PASS_TO_PASS")?,
            gold_files: typed(&mut map, "gold_files", "a list of paths")?,
            gold_functions: typed(&mut map, "gold_functions", "an object from paths to lists of names")?,
            gold_lines: typed(&mut map, "gold_lines", "an object from paths to lists of line numbers")?,
            files: typed(&mut map, "files", "an object from paths to contents")?.unwrap_or_default(),
            all_paths: typed(&mut map, "all_paths", "a list of paths")?.unwrap_or_default(),
            extra: map,
        };
        Ok(task)
    }

    /// The JSON form: known fields in a fixed order (absent ones left out), then the others as they were read.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(name.to_owned(), value);
            }
        };
        let string = |s: &String| Some(Value::from(s.as_str()));
        put("instance_id", string(&self.instance_id));
        put("repo", string(&self.repo));
        put("base_commit", string(&self.base_commit));
        put("fix_commit", self.fix_commit.as_ref().and_then(string));
        put("created_at", self.created_at.as_ref().and_then(string));
        put("problem_statement", string(&self.problem_statement));
        put("hints_text", self.hints_text.as_ref().and_then(string));
        put("patch", string(&self.patch));
        put("test_patch", string(&self.test_patch));
        put("FAIL_TO_PASS", self.fail_to_pass.clone().map(Value::from));
        put("PASS_TO_PASS", self.pass_to_pass.clone().map(Value::from));
        put("gold_files", self.gold_files.clone().map(Value::from));
        put("gold_functions", self.gold_functions.as_ref().map(|m| m.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect()));
        put("gold_lines", self.gold_lines.as_ref().map(|m| m.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect()));
        put("files", (!self.files.is_empty()).then(|| self.files.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect()));
        put("all_paths", (!self.all_paths.is_empty()).then(|| Value::from(self.all_paths.clone())));
        map.extend(self.extra.iter().map(|(k, v)| (k.clone(), v.clone())));
        Value::Object(map)
    }

    /// Checks what every use of a task needs: a name, an issue text, and a gold patch that parses.
    pub fn check(&self) -> Result<()> {
        for (field, value) in [("instance_id", &self.instance_id), ("problem_statement", &self.problem_statement)] {
            if value.trim().is_empty() {
                return Err(Error::input("expected a text, found nothing").at(format_args!("field `{field}`")).hint(FIELDS_HINT));
            }
        }
        if self.patch.trim().is_empty() && self.gold_files.as_ref().is_none_or(Vec::is_empty) {
            return Err(Error::input("expected a git diff, found nothing").at("field `patch`").hint(FIELDS_HINT));
        }
        if !self.patch.trim().is_empty() && self.parsed_patch()?.files.is_empty() {
            return Err(Error::input("expected a git diff, found a text without any").at("field `patch`").hint(FIELDS_HINT));
        }
        Ok(())
    }

    fn parsed_patch(&self) -> Result<Patch> {
        Patch::parse(&self.patch).map_err(|e| e.at("field `patch`"))
    }

    /// The gold set of file localisation: the paths that the gold patch modifies, deletes or renames, as they are named at the base
    /// commit ([`Patch::base_paths`]). A file that the patch adds is not there to be found, so it is no target. Without a patch,
    /// `gold_files` stand for it.
    pub fn gold(&self) -> Result<BTreeSet<String>> {
        if self.patch.trim().is_empty() {
            return Ok(self.gold_files.iter().flatten().cloned().collect());
        }
        Ok(self.parsed_patch()?.base_paths().map(str::to_owned).collect())
    }

    /// The paths that an answer may name where the prompt does not say: `all_paths`, else the keys of `files`, else nothing is known
    /// (an empty list). In alphabetical order: the order of a list must never tell the answer.
    pub fn known_paths(&self) -> Vec<String> {
        if self.all_paths.is_empty() {
            return self.files.keys().cloned().collect();
        }
        let set: BTreeSet<&String> = self.all_paths.iter().collect();
        set.into_iter().cloned().collect()
    }

    /// All paths that are known to be there at the base commit: those of `all_paths`, which may leave some out, and the keys of `files`.
    /// An edit cannot make these anew.
    pub fn base_paths(&self) -> BTreeSet<String> {
        self.all_paths.iter().chain(self.files.keys()).cloned().collect()
    }

    /// The paths whose contents are known, or where there are none all known ones: the short list of candidates.
    pub fn file_paths(&self) -> Vec<String> {
        if self.files.is_empty() { self.known_paths() } else { self.files.keys().cloned().collect() }
    }

    /// The repository, or the part of `instance_id` before the last `-` where it is not given: what splits and intervals cluster by.
    pub fn repo_name(&self) -> &str {
        match (self.repo.is_empty(), self.instance_id.rsplit_once('-')) {
            (false, _) => &self.repo,
            (true, Some((name, _))) => name,
            (true, None) => &self.instance_id,
        }
    }

    /// The task without what tells its answer: patches, gold sets, tests, later discussion, and the fields not known. Whoever answers a task
    /// gets this, so that nothing of the answer can leak into a prompt.
    pub fn without_answer(&self) -> Self {
        Self {
            instance_id: self.instance_id.clone(),
            repo: self.repo.clone(),
            base_commit: self.base_commit.clone(),
            problem_statement: self.problem_statement.clone(),
            files: self.files.clone(),
            all_paths: self.all_paths.clone(),
            ..Self::default()
        }
    }

    /// What tells repositories apart where none may be on two sides of a split: the name without its owner, in lower case, so that a
    /// fork (another owner, the same history), a repository that moved to another owner, and another spelling of the same name count
    /// as one. `owner/name`, `owner__name` and SWE-smith's `owner__name.commit` are known.
    pub fn repo_key(&self) -> String {
        repository_key(self.repo_name())
    }
}

/// See [`Task::repo_key`].
pub(crate) fn repository_key(name: &str) -> String {
    let name = name.trim_end_matches('/').to_ascii_lowercase();
    let last = name.rsplit('/').next().unwrap_or(&name);
    // No owner's name has two of these, a repository's may.
    let last = match last.split_once("__") {
        // Only mirrors carry a commit behind a dot (and their tasks' names more behind another); `next.js` is a name.
        Some((_, mirror)) => {
            let commit = mirror.match_indices('.').find(|(at, _)| mirror[at + 1..].split('.').next().is_some_and(is_commit));
            commit.map_or(mirror, |(at, _)| &mirror[..at])
        }
        None => last,
    };
    last.strip_suffix(".git").unwrap_or(last).to_owned()
}

/// True for (the beginning of) a commit's hash.
fn is_commit(text: &str) -> bool {
    text.len() >= 7 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

const FIELDS_HINT: &str = "a task needs at least instance_id, problem_statement and patch (SWE-bench's field names)";

/// What kind of JSON value this is, in words.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Takes a string out of the object; null counts as absent.
fn text(map: &mut Map<String, Value>, field: &str) -> Result<Option<String>> {
    match map.shift_remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(other) => Err(Error::input(format!("expected a string, found {}", type_name(&other))).at(format_args!("field `{field}`"))),
    }
}

/// As [`text`], but a number (seconds since 1970) is read as its text.
fn time(map: &mut Map<String, Value>, field: &str) -> Result<Option<String>> {
    if let Some(Value::Number(n)) = map.get(field) {
        let text = n.to_string();
        map.shift_remove(field);
        return Ok(Some(text));
    }
    text(map, field)
}

/// Takes a value of a known type out of the object; null counts as absent.
fn typed<T: serde::de::DeserializeOwned>(map: &mut Map<String, Value>, field: &str, expected: &str) -> Result<Option<T>> {
    match map.shift_remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|e| Error::input(format!("expected {expected}: {e}")).at(format_args!("field `{field}`"))),
    }
}

/// Takes a list of test names out of the object: a list, or a string that holds a JSON list.
fn tests(map: &mut Map<String, Value>, field: &str) -> Result<Option<Vec<String>>> {
    let expected = "a list of test names, or a string that holds one as JSON";
    if let Some(Value::String(s)) = map.get(field) {
        if s.trim().is_empty() {
            map.shift_remove(field);
            return Ok(None);
        }
        let list = serde_json::from_str(s);
        map.shift_remove(field);
        return list.map(Some).map_err(|e| Error::input(format!("expected {expected}: {e}")).at(format_args!("field `{field}`")));
    }
    typed(map, field, expected)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATCH: &str = "diff --git a/b.py b/b.py\n--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n-x\n+y\n";

    #[test]
    fn test_lists_are_read_from_lists_and_from_strings() {
        let read = |v: Value| Task::from_json(json!({ "FAIL_TO_PASS": v })).map(|t| t.fail_to_pass);
        assert_eq!(read(json!(["a", "b"])).unwrap(), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(read(json!("[\"a\", \"b\"]")).unwrap(), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(read(json!("")).unwrap(), None);
        assert_eq!(read(Value::Null).unwrap(), None);
        assert!(read(json!("[1")).unwrap_err().to_string().contains("field `FAIL_TO_PASS`"));
        assert!(read(json!([1])).unwrap_err().to_string().contains("expected a list of test names"));
    }

    #[test]
    fn repositories_have_one_key_under_many_names() {
        let names = [
            "oauthlib/oauthlib",
            "Fork/OAuthlib.git",
            "swesmith/oauthlib__oauthlib.1fd52536",
            "oauthlib__oauthlib.1fd52536.combine_file__w7bgfdbo",
            "https://github.com/oauthlib/oauthlib/",
        ];
        assert_eq!(names.map(repository_key), ["oauthlib"; 5]);
        assert_eq!(["vercel/next.js", "vercel__next.js", "vercel__next.js.0123abc"].map(repository_key), ["next.js"; 3]);
        let named = Task { instance_id: "oauthlib__oauthlib.1fd52536.func_basic__3o7gvt5r".into(), ..Task::default() };
        assert_eq!(named.repo_key(), "oauthlib");
    }

    #[test]
    fn unknown_fields_survive_the_round_trip() {
        let value = json!({
            "instance_id": "o__r-1", "repo": "o/r", "base_commit": "c0ffee", "created_at": "2024-01-01T00:00:00Z",
            "problem_statement": "broken", "patch": PATCH, "test_patch": "", "FAIL_TO_PASS": ["t"],
            "gold_files": ["b.py"], "gold_functions": {"b.py": ["C.f"]}, "gold_lines": {"b.py": [1]},
            "files": {"a.py": "", "b.py": "x\n"}, "all_paths": ["a.py", "b.py"], "difficulty": "1-4 hours", "image": {"tag": [1, 2.5]},
        });
        let task = Task::from_json(value.clone()).unwrap();
        task.check().unwrap();
        assert_eq!(task.to_json(), value);
        assert_eq!(task.gold().unwrap().into_iter().collect::<Vec<_>>(), ["b.py"]);
    }

    #[test]
    fn wrong_types_and_missing_fields_are_named() {
        let error = |v: Value| Task::from_json(v).and_then(|t| t.check()).unwrap_err().to_string();
        assert!(error(json!([1])).contains("expected a task (a JSON object), found a list"));
        assert!(error(json!({"patch": ["x"]})).contains("field `patch`: expected a string, found a list"));
        assert!(error(json!({"instance_id": "x", "problem_statement": "x", "patch": "no diff"})).contains("a text without any"));
        assert_eq!(Task::from_json(json!({"created_at": 1700000000})).unwrap().created_at.as_deref(), Some("1700000000"));
        assert!(error(json!({"files": {"a": 1}})).contains("field `files`"));
        assert!(error(json!({"problem_statement": "x", "patch": PATCH})).contains("field `instance_id`"));
        assert!(error(json!({"instance_id": "x", "problem_statement": "x"})).contains("field `patch`"));
    }

    #[test]
    fn gold_files_stand_in_for_a_missing_patch_and_known_paths_are_sorted() {
        let task = Task::from_json(json!({"gold_files": ["b"], "files": {"z": "", "b": ""}})).unwrap();
        assert_eq!(task.gold().unwrap().into_iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(task.known_paths(), ["b", "z"]);
        let task = Task { all_paths: vec!["z".into(), "b".into(), "z".into()], ..task };
        assert_eq!(task.known_paths(), ["b", "z"]);
    }
}
