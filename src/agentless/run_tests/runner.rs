//! A task and a patch in, a report out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::environment::{Environment, Environments};
use super::log::{Status, parse};
use super::tree::{apply_both, at_base, test_files};
use super::verdict::{Report, establish, judge};
use crate::agentless::sandbox::{Limits, Outcome, Sandbox, Stopped, Workspace};
use crate::data::Task;
use crate::{Error, Result};

/// Runs tests of tasks, confined.
#[derive(Clone, Debug)]
pub struct Runner {
    sandbox: Sandbox,
    repos: PathBuf,
    environments: Environments,
    out: Option<PathBuf>,
}

/// What is handed in for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission<'a> {
    /// A patch. As with the harness, an empty one is none, and nothing is run.
    Patch(&'a str),
    /// No change at all, run nevertheless: what the tests say of the base commit.
    Nothing,
}

/// A run of tests.
pub(super) struct Run {
    pub results: BTreeMap<String, Status>,
    pub output: String,
    pub stopped: Option<Stopped>,
}

/// The two lists of a task, found by running its tests before and after its gold patch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Established {
    /// Tests that fail before and pass after.
    pub fail_to_pass: Vec<String>,
    /// Tests that pass before and after.
    pub pass_to_pass: Vec<String>,
}

impl Runner {
    /// A runner that finds clones below `repos`, and keeps reports and logs below `out`, if it is given.
    pub fn new(sandbox: Sandbox, repos: &Path, environments: Environments, out: Option<&Path>) -> Self {
        Self { sandbox, repos: repos.to_owned(), environments, out: out.map(Path::to_owned) }
    }

    /// What the tests of a task say of a patch. A report that is there already below `out`, of the same task, patch and environment, is
    /// not made again.
    ///
    /// # Errors
    ///
    /// The task has no tests or no lists, its repository or base commit is not there, its tests do not even start without the patch, the
    /// confinement cannot be had.
    pub fn report(&self, task: &Task, submission: Submission<'_>) -> Result<Report> {
        let patch = match submission {
            Submission::Patch(patch) if patch.trim().is_empty() => return Ok(Report { patch_is_none: true, ..Report::default() }),
            Submission::Patch(patch) => patch,
            Submission::Nothing => "",
        };
        let hint = "`run-tests --establish` finds them by running the tests before and after the gold patch";
        let lists = task.fail_to_pass.as_deref().filter(|l| !l.is_empty()).zip(task.pass_to_pass.as_deref());
        let (f2p, p2p) = lists.ok_or_else(|| Error::input("expected FAIL_TO_PASS and PASS_TO_PASS, found none").hint(hint))?;
        let environment = self.environments.of(task);
        let kept = self.folder(task, patch, &environment);
        if let Some(report) = known(kept.as_deref(), "report.json", &task.instance_id) {
            return Ok(report);
        }
        let mut report = Report { patch_exists: true, ..Report::default() };
        let mut output = String::new();
        match self.run(task, patch, &environment)? {
            Err(e) => report.note = Some(format!("the patch does not apply: {e}")),
            Ok(run) => {
                if run.results.is_empty() && run.stopped.is_none() {
                    // A patch can keep all tests from starting; so can an environment, which says nothing of the patch.
                    let base = self.run(task, "", &environment)?.map_err(|e| e.at("field `test_patch`"))?;
                    if base.results.is_empty() && base.stopped.is_none() {
                        return Err(no_test_ran(&base.output));
                    }
                    report.note = Some("no test was run with the patch".to_owned());
                }
                let (all, status) = judge(f2p, p2p, &run.results);
                report.patch_successfully_applied = true;
                report.resolved = all && run.stopped.is_none();
                report.tests_status = Some(status);
                report.note = run.stopped.map(note).or(report.note);
                output = run.output;
            }
        }
        if let Some(folder) = kept {
            let report = named(&task.instance_id, &report);
            keep(&folder, &[("patch.diff", patch), ("test_output.txt", &output), ("report.json", &report)])?;
        }
        Ok(report)
    }

    /// Where a run's report and logs are kept, if they are.
    fn folder(&self, task: &Task, patch: &str, environment: &Environment) -> Option<PathBuf> {
        let out = self.out.as_ref()?;
        Some(out.join(file_name(&task.instance_id)).join(key(task, patch, environment)))
    }

    /// Finds a task's two lists: runs its tests on the base commit with the test patch, and again with the gold patch. Lists that were
    /// found before, and are kept below `out`, are taken from there.
    ///
    /// # Errors
    ///
    /// As [`Runner::report`]; the gold patch does not apply; a run was stopped.
    pub fn establish(&self, task: &Task) -> Result<Established> {
        let environment = self.environments.of(task);
        let kept = self.folder(task, &task.patch, &environment);
        if let Some(lists) = known(kept.as_deref(), "established.json", &task.instance_id) {
            return Ok(lists);
        }
        let run = |patch: &str| -> Result<Run> {
            let run = self.run(task, patch, &environment)?.map_err(|e| e.at("field `patch`"))?;
            match run.stopped {
                Some(why) => Err(Error::input(note(why)).hint("give it more in the file of environments")),
                None => Ok(run),
            }
        };
        let (before, after) = (run("")?, run(&task.patch)?);
        if after.results.is_empty() {
            return Err(no_test_ran(&after.output));
        }
        let (fail_to_pass, pass_to_pass) = establish(&before.results, &after.results);
        let lists = Established { fail_to_pass, pass_to_pass };
        if let Some(folder) = kept {
            let found = named(&task.instance_id, &lists);
            keep(&folder, &[("before.txt", &before.output), ("after.txt", &after.output), ("established.json", &found)])?;
        }
        Ok(lists)
    }

    /// Runs a task's tests with a patch; the inner error says why the patch does not apply.
    fn run(&self, task: &Task, patch: &str, environment: &Environment) -> Result<Result<Run>> {
        let tests = test_files(&task.test_patch).map_err(|e| e.at("field `test_patch`"))?;
        if tests.is_empty() {
            return Err(Error::input("expected a diff of Python files with tests, found none").at("field `test_patch`"));
        }
        let workspace = self.base(task, environment)?;
        if let Err(e) = apply_both(patch, &task.test_patch, &workspace)? {
            return Ok(Err(e));
        }
        self.tests(&workspace, environment, &tests).map(Ok)
    }

    /// Whether the task's environment names tests that should go on passing.
    pub fn has_regression_tests(&self, task: &Task) -> bool {
        !self.environment(task).tests.is_empty()
    }

    /// The environment of a task.
    pub(super) fn environment(&self, task: &Task) -> Environment {
        self.environments.of(task)
    }

    /// What `make` finds of a task with a patch, kept below `out` in a file `name`.json beside the patch's report; what is there already is
    /// not made again.
    pub(super) fn kept<T: Serialize + DeserializeOwned>(
        &self,
        (task, patch, environment): (&Task, &str, &Environment),
        name: &str,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (folder, name) = (self.folder(task, patch, environment), format!("{name}.json"));
        if let Some(found) = known(folder.as_deref(), &name, &task.instance_id) {
            return Ok(found);
        }
        let made = make()?;
        if let Some(folder) = folder {
            keep(&folder, &[(&name, &named(&task.instance_id, &made))])?;
        }
        Ok(made)
    }

    /// The tree at the base commit, with the environment's own files.
    pub(super) fn base(&self, task: &Task, environment: &Environment) -> Result<Workspace> {
        let workspace = at_base(task, &self.repos)?;
        for (path, content) in &environment.files {
            workspace.write(path, content)?;
        }
        Ok(workspace)
    }

    /// Runs tests on a tree.
    pub(super) fn tests(&self, workspace: &Workspace, environment: &Environment, tests: &[String]) -> Result<Run> {
        let outcome = self.command(workspace, environment, &environment.command(tests))?;
        let output = String::from_utf8_lossy(&outcome.stdout).into_owned();
        Ok(Run { results: parse(&output), output: output + &String::from_utf8_lossy(&outcome.stderr), stopped: outcome.stopped })
    }

    /// Runs a command on a tree.
    pub(super) fn command(&self, workspace: &Workspace, environment: &Environment, command: &[String]) -> Result<Outcome> {
        let (time, memory) = (environment.time, environment.memory);
        let limits = Limits { time, memory, total: memory, ..self.sandbox.limits().clone() };
        let variables: Vec<(&str, &str)> = environment.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.sandbox.with(limits, environment.read_only.clone()).run(workspace, command, &variables)
    }
}

/// What decides over a report: the task's parts that a run reads, the patch, the environment.
fn key(task: &Task, patch: &str, environment: &Environment) -> String {
    // Paths need not be UTF-8.
    let environment = serde_json::to_value(environment).unwrap_or_else(|_| format!("{environment:?}").into());
    let parts = json!([task.base_commit, task.test_patch, task.fail_to_pass, task.pass_to_pass, patch, environment, task.files]);
    digest(&parts.to_string())
}

/// A short name for a text.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// A name for a folder: the instance's, without what would lead elsewhere.
fn file_name(instance: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-_+".contains(c) || c == '.' { c } else { '_' };
    let name: String = instance.chars().map(safe).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

pub(super) fn note(why: Stopped) -> String {
    match why {
        Stopped::Time => "the tests were stopped: their time was up".to_owned(),
        Stopped::Memory => "the tests were stopped: they used too much memory".to_owned(),
    }
}

/// What a file of a folder holds for an instance; none where it is not there, or not whole.
fn known<T: DeserializeOwned>(folder: Option<&Path>, name: &str, instance: &str) -> Option<T> {
    let text = std::fs::read_to_string(folder?.join(name)).ok()?;
    serde_json::from_str::<BTreeMap<String, T>>(&text).ok()?.remove(instance)
}

/// JSON with the instance's name before it, as the harness's reports have it.
fn named(instance: &str, value: &impl Serialize) -> String {
    serde_json::to_string_pretty(&BTreeMap::from([(instance, value)])).unwrap_or_default() + "\n"
}

/// Writes files, in their order: where the last is, all are.
fn keep(folder: &Path, files: &[(&str, &str)]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
    for (name, text) in files {
        let (path, part) = (folder.join(name), folder.join(format!(".{name}")));
        std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)).map_err(|e| Error::io("write", &path, e))?;
    }
    Ok(())
}

/// The error of tests that did not start: the last lines of what was printed instead of results.
pub(super) fn no_test_ran(output: &str) -> Error {
    let mut last: Vec<&str> = output.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    last.reverse();
    Error::input(format!("no test was run: {}", last.join(" | ")))
        .hint("an environment needs an interpreter that has pytest: see --environments (docs/run-tests.md)")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_stays_in_its_folder() {
        for (name, safe) in [("a__b-1.2", "a__b-1.2"), ("../x", "_.._x"), ("a/b", "a_b"), (".", "_.")] {
            assert_eq!(super::file_name(name), safe);
        }
    }
}
