//! What tests say of candidate patches when nobody knows the fix: the evidence of [`crate::agentless::rerank`].
//!
//! Regression tests are those that pass on the base commit. Reproduction tests are scripts, written by a model, that print `Issue
//! reproduced`, `Issue resolved` or `Other issues` (Agentless 1.5): one that does not print the first on the base commit tests something
//! else and is dropped; of the rest those count that most answers agree in ([`choose`]).

use std::collections::{BTreeSet, HashMap};

use super::environment::Environment;
use super::runner::Runner;
use super::tree::apply;
use crate::Result;
use crate::agentless::reproduction::{Chosen, Says, choose};
use crate::agentless::rerank::Candidate;
use crate::agentless::sandbox::Workspace;
use crate::data::Task;
use crate::data::subtask::reproduction::{OTHER, REPRODUCED, RESOLVED};

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
/// drops it.
///
/// # Errors
///
/// The repository or base commit is not there, or the confinement cannot be had.
pub fn gather(
    runner: &Runner,
    task: &Task,
    patches: &[&str],
    (scripts, most): (&[&str], usize),
    candidates: &mut [Candidate],
) -> Result<Found> {
    let environment = runner.environment(task);
    let base = runner.base(task, &environment)?;
    let passing = |workspace: &Workspace| -> Result<BTreeSet<String>> {
        let run = runner.tests(workspace, &environment, &environment.tests)?;
        Ok(run.results.into_iter().filter(|(_, s)| s.passes()).map(|(name, _)| name).collect())
    };
    let regressions = if environment.tests.is_empty() { BTreeSet::new() } else { passing(&base)? };
    let mut known: HashMap<&str, Says> = HashMap::new();
    for script in scripts {
        if !known.contains_key(script) {
            known.insert(script, says(runner, &base, &environment, script)?);
        }
    }
    let before: Vec<Says> = scripts.iter().map(|script| known[script]).collect();
    let chosen = choose(scripts, &before, most)?;
    for (patch, candidate) in patches.iter().zip(candidates) {
        let workspace = Workspace::copy_of(&base.tree())?;
        if patch.trim().is_empty() || apply(patch, &workspace).is_err() {
            continue;
        }
        if !regressions.is_empty() {
            candidate.failed_regressions = Some(regressions.difference(&passing(&workspace)?).count());
        }
        let results = chosen.iter().map(|c| Ok(says(runner, &workspace, &environment, scripts[c.place])? == Says::Resolved));
        let results = results.collect::<Result<Vec<bool>>>()?;
        candidate.reproductions = (!results.is_empty()).then_some(results);
    }
    Ok(Found { before, chosen })
}

fn says(runner: &Runner, workspace: &Workspace, environment: &Environment, script: &str) -> Result<Says> {
    workspace.write(SCRIPT, script)?;
    let command = [environment.python.to_string_lossy().into_owned(), SCRIPT.to_owned()];
    let outcome = runner.command(workspace, environment, &command);
    workspace.remove(SCRIPT)?;
    let outcome = outcome?;
    // A script that was stopped has told nothing, whatever it printed until then.
    Ok(if outcome.stopped.is_some() { Says::Other } else { said(&String::from_utf8_lossy(&outcome.stdout)) })
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
