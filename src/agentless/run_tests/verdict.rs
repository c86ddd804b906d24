//! SWE-bench's verdict over a run, and its `report.json` (grading.py of the harness).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::log::Status;

/// Tests of a list, by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tests {
    /// Those that pass.
    pub success: Vec<String>,
    /// Those that fail, or did not run at all.
    pub failure: Vec<String>,
}

/// The four lists of the harness; it fills the first two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub struct TestsStatus {
    /// Tests that fail before the fix and have to pass.
    pub fail_to_pass: Tests,
    /// Tests that pass before the fix and have to go on.
    pub pass_to_pass: Tests,
    /// Not considered.
    pub fail_to_fail: Tests,
    /// Not considered.
    pub pass_to_fail: Tests,
}

/// What an instance's `report.json` says of a patch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// No patch was handed in.
    #[serde(rename = "patch_is_None")]
    pub patch_is_none: bool,
    /// There is a patch.
    pub patch_exists: bool,
    /// It fits the base commit.
    pub patch_successfully_applied: bool,
    /// All tests of both lists pass.
    pub resolved: bool,
    /// What became of the tests; none where they were not run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tests_status: Option<TestsStatus>,
    /// Why the patch was not applied, or the run was stopped (not a field of the harness).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// Judges a run by a task's two lists. A skipped test has failed: the harness names it by its place in the file, so never finds it.
pub fn judge(fail_to_pass: &[String], pass_to_pass: &[String], results: &BTreeMap<String, Status>) -> (bool, TestsStatus) {
    let sort = |tests: &[String]| {
        let passes = |t: &&String| results.get(*t).is_some_and(|s| s.passes());
        let (success, failure) = tests.iter().partition::<Vec<_>, _>(passes);
        Tests { success: success.into_iter().cloned().collect(), failure: failure.into_iter().cloned().collect() }
    };
    let status = TestsStatus { fail_to_pass: sort(fail_to_pass), pass_to_pass: sort(pass_to_pass), ..TestsStatus::default() };
    (status.fail_to_pass.failure.is_empty() && status.pass_to_pass.failure.is_empty(), status)
}

/// A task's two lists from runs before and after its gold patch: the tests that pass after it, by whether they do before.
pub fn establish(before: &BTreeMap<String, Status>, after: &BTreeMap<String, Status>) -> (Vec<String>, Vec<String>) {
    let passing = after.iter().filter(|(_, s)| s.passes()).map(|(name, _)| name.clone());
    passing.partition(|name| !before.get(name).is_some_and(|s| s.passes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_both_lists_have_to_pass() {
        let run = |rows: &[(&str, Status)]| -> BTreeMap<String, Status> { rows.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect() };
        let before = run(&[("a", Status::Failed), ("c", Status::Passed), ("d", Status::Passed), ("x", Status::ExpectedFailure)]);
        let after =
            run(&[("a", Status::Passed), ("b", Status::Passed), ("c", Status::Passed), ("d", Status::Failed), ("x", Status::Passed)]);
        let (f2p, p2p) = establish(&before, &after);
        assert_eq!((f2p.join(" "), p2p.join(" ")), ("a b".to_owned(), "c x".to_owned()), "b was not there before");
        assert!(judge(&f2p, &p2p, &after).0);
        let (resolved, status) = judge(&f2p, &p2p, &before);
        assert!(!resolved && status.fail_to_pass.success.is_empty() && status.pass_to_pass.failure.is_empty());
        let (resolved, status) = judge(&f2p, &p2p, &run(&[("a", Status::Passed), ("b", Status::Passed), ("c", Status::Skipped)]));
        assert!(!resolved && status.pass_to_pass.failure == ["c", "x"]);
    }
}
