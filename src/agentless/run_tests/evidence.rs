//! What tests say of candidate patches when nobody knows the fix: the evidence of [`crate::agentless::rerank`].
//!
//! Regression tests are those that pass on the base commit. Reproduction tests are scripts, written by a model, that print `Issue
//! reproduced`, `Issue resolved` or `Other issues` (Agentless 1.5): one that does not print the first on the base commit tests something
//! else and is dropped.

use std::collections::BTreeSet;

use super::environment::Environment;
use super::runner::Runner;
use super::tree::apply;
use crate::Result;
use crate::agentless::rerank::Candidate;
use crate::agentless::sandbox::Workspace;
use crate::data::Task;

/// Where a reproduction script lies when it is run.
const SCRIPT: &str = "reproduce_issue_by_script.py";

/// What a script says of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Reproduced,
    Resolved,
    Other,
}

/// Fills in what tests say of each candidate: how many of the regression tests fail, and which of the kept scripts say that the issue is
/// resolved. `patches` are the candidates' diffs. A patch that is empty or does not apply keeps no evidence, so a ranker drops it.
/// Gives the places of the scripts that were kept.
///
/// # Errors
///
/// The repository or base commit is not there, or the confinement cannot be had.
pub fn gather(runner: &Runner, task: &Task, patches: &[&str], scripts: &[&str], candidates: &mut [Candidate]) -> Result<Vec<usize>> {
    let environment = runner.environment(task);
    let base = runner.base(task, &environment)?;
    let passing = |workspace: &Workspace| -> Result<BTreeSet<String>> {
        let run = runner.tests(workspace, &environment, &environment.tests)?;
        Ok(run.results.into_iter().filter(|(_, s)| s.passes()).map(|(name, _)| name).collect())
    };
    let regressions = passing(&base)?;
    let mut kept = Vec::new();
    for (i, script) in scripts.iter().enumerate() {
        if says(runner, &base, &environment, script)? == Says::Reproduced {
            kept.push(i);
        }
    }
    for (patch, candidate) in patches.iter().zip(candidates) {
        let workspace = Workspace::copy_of(&base.tree())?;
        if patch.trim().is_empty() || apply(patch, &workspace).is_err() {
            continue;
        }
        if !regressions.is_empty() {
            candidate.failed_regressions = Some(regressions.difference(&passing(&workspace)?).count());
        }
        let results = kept.iter().map(|&i| Ok(says(runner, &workspace, &environment, scripts[i])? == Says::Resolved));
        let results = results.collect::<Result<Vec<bool>>>()?;
        candidate.reproductions = (!results.is_empty()).then_some(results);
    }
    Ok(kept)
}

fn says(runner: &Runner, workspace: &Workspace, environment: &Environment, script: &str) -> Result<Says> {
    workspace.write(SCRIPT, script)?;
    let command = [environment.python.to_string_lossy().into_owned(), SCRIPT.to_owned()];
    let outcome = runner.command(workspace, environment, &command);
    workspace.remove(SCRIPT)?;
    Ok(said(&String::from_utf8_lossy(&outcome?.stdout)))
}

/// The one verdict among the lines; where there are several, none counts.
fn said(output: &str) -> Says {
    let (reproduced, resolved) = (output.contains("Issue reproduced"), output.contains("Issue resolved"));
    match (reproduced, resolved, output.contains("Other issues")) {
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
