//! What tests say of candidate patches when nobody knows the fix: the evidence of [`crate::agentless::rerank`].
//!
//! Regression tests are those that pass on the base commit. Reproduction tests are scripts, written by a model, that print `Issue
//! reproduced`, `Issue resolved` or `Other issues` (Agentless 1.5): one that does not print the first on the base commit tests something
//! else and is dropped; of the rest those count that most answers agree in ([`choose`]).

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::environment::Environment;
use super::runner::{Runner, digest, no_test_ran, note};
use super::tree::apply;
use crate::agentless::reproduction::{Chosen, Says, choose};
use crate::agentless::rerank::Candidate;
use crate::agentless::sandbox::Workspace;
use crate::data::Task;
use crate::data::subtask::reproduction::{OTHER, REPRODUCED, RESOLVED};
use crate::{Error, Result};

/// Where a reproduction script lies when it is run.
const SCRIPT: &str = "reproduce_issue_by_script.py";

/// What was found beside the evidence of each candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What each script says of the base commit.
    pub before: Vec<Says>,
    /// The scripts that were run on the candidates, in the order of [`Candidate::reproductions`].
    pub chosen: Vec<Chosen>,
}

/// Fills in what tests say of each candidate: how many of the regression tests fail, and which of the at most `most` chosen scripts say
/// that the issue is resolved. `patches` are the candidates' diffs. A patch that is empty or does not apply keeps no evidence, so a ranker
/// drops it; one with which the tests do not end fails all. What a runner with a folder found before is taken from there.
///
/// # Errors
///
/// The repository or base commit is not there, the confinement cannot be had, the regression tests do not run or end on the base commit.
pub fn gather(
    runner: &Runner,
    task: &Task,
    patches: &[&str],
    (scripts, most): (&[&str], usize),
    candidates: &mut [Candidate],
) -> Result<Found> {
    let environment = runner.environment(task);
    let bench = Bench { runner, task, environment: &environment, untouched: OnceCell::new() };
    let base = Tree { bench: &bench, patch: "", workspace: OnceCell::new() };
    let regressions = if environment.tests.is_empty() { BTreeSet::new() } else { base.passing()? };
    let mut known: HashMap<&str, Says> = HashMap::new();
    for script in scripts {
        if !known.contains_key(script) {
            known.insert(script, base.says(script)?);
        }
    }
    let before: Vec<Says> = scripts.iter().map(|script| known[script]).collect();
    let chosen = choose(scripts, &before, most)?;
    for (patch, candidate) in patches.iter().zip(candidates) {
        let tree = Tree { bench: &bench, patch, workspace: OnceCell::new() };
        if patch.trim().is_empty() || !tree.applies()? {
            continue;
        }
        if !regressions.is_empty() {
            candidate.failed_regressions = Some(regressions.difference(&tree.passing()?).count());
        }
        let results = chosen.iter().map(|c| Ok(tree.says(scripts[c.place])? == Says::Resolved)).collect::<Result<Vec<bool>>>()?;
        candidate.reproductions = (!results.is_empty()).then_some(results);
    }
    Ok(Found { before, chosen })
}

/// Where a task's trees are made.
struct Bench<'a> {
    runner: &'a Runner,
    task: &'a Task,
    environment: &'a Environment,
    /// The base commit, in which nothing is run.
    untouched: OnceCell<Workspace>,
}

/// A task's base commit with a patch, or without one. It is made when something is to be run in it.
struct Tree<'a> {
    bench: &'a Bench<'a>,
    patch: &'a str,
    workspace: OnceCell<Workspace>,
}

impl Bench<'_> {
    fn copy(&self) -> Result<Workspace> {
        if self.untouched.get().is_none() {
            let _ = self.untouched.set(self.runner.base(self.task, self.environment)?);
        }
        let untouched = self.untouched.get().ok_or_else(|| Error::input("there is no tree"))?;
        Workspace::copy_of(&untouched.tree())
    }
}

impl Tree<'_> {
    fn kept<T: Serialize + DeserializeOwned>(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        self.bench.runner.kept((self.bench.task, self.patch, self.bench.environment), name, make)
    }

    fn applies(&self) -> Result<bool> {
        self.kept("applies", || {
            let workspace = self.bench.copy()?;
            let applies = apply(self.patch, &workspace).is_ok();
            if applies {
                let _ = self.workspace.set(workspace);
            }
            Ok(applies)
        })
    }

    /// The tree, which is made now if it is not there.
    fn workspace(&self) -> Result<&Workspace> {
        if self.workspace.get().is_none() {
            let workspace = self.bench.copy()?;
            if !self.patch.is_empty() {
                apply(self.patch, &workspace)?;
            }
            let _ = self.workspace.set(workspace);
        }
        self.workspace.get().ok_or_else(|| Error::input("there is no tree"))
    }

    /// The regression tests that pass. With a patch none do where they do not end; without one that is an error, as it is that none runs.
    fn passing(&self) -> Result<BTreeSet<String>> {
        self.kept("regressions", || {
            let Bench { runner, environment, .. } = self.bench;
            let run = runner.tests(self.workspace()?, environment, &environment.tests)?;
            match run.stopped {
                Some(why) if self.patch.is_empty() => {
                    Err(Error::input(format!("on the base commit {}", note(why))).hint("give it more in the file of environments"))
                }
                None if self.patch.is_empty() && run.results.is_empty() => Err(no_test_ran(&run.output)),
                Some(_) => Ok(BTreeSet::new()),
                None => Ok(run.results.into_iter().filter(|(_, s)| s.passes()).map(|(name, _)| name).collect()),
            }
        })
    }

    fn says(&self, script: &str) -> Result<Says> {
        self.kept(&format!("script-{}", digest(script)), || {
            let workspace = self.workspace()?;
            workspace.write(SCRIPT, script)?;
            let Bench { runner, environment, .. } = self.bench;
            let command = [environment.python.to_string_lossy().into_owned(), SCRIPT.to_owned()];
            let outcome = runner.command(workspace, environment, &command);
            workspace.remove(SCRIPT)?;
            let outcome = outcome?;
            // A script that was stopped has told nothing, whatever it printed until then.
            Ok(if outcome.stopped.is_some() { Says::Other } else { said(&String::from_utf8_lossy(&outcome.stdout)) })
        })
    }
}

/// The one verdict among the lines; where there are several, none counts.
fn said(output: &str) -> Says {
    match (output.contains(REPRODUCED), output.contains(RESOLVED), output.contains(OTHER)) {
        (true, false, false) => Says::Reproduced,
        (false, true, false) => Says::Resolved,
        _ => Says::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_verdict_counts() {
        assert_eq!(said("warning\nIssue reproduced\n"), Says::Reproduced);
        assert_eq!(said("Issue resolved"), Says::Resolved);
        assert_eq!(said("Issue resolved\nIssue reproduced\n"), Says::Other);
        assert_eq!(said("Other issues: Issue resolved\n"), Says::Other);
        assert_eq!(said(""), Says::Other);
    }
}
