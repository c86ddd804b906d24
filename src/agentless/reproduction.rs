//! Reproduction tests written by the model: asked for as the pipeline's hops are, and recorded with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::normalize::python;
use super::pipeline::{Pipeline, Settings};
use super::session::{Ask, Session};
use crate::Result;
use crate::data::Task;
use crate::data::subtask::reproduction::{prompt, read_script};

/// The hop's name in `samples.jsonl`.
pub const HOP: &str = "reproduction";

/// The scripts of every task, one for each of `n` answers; none where an answer holds no script that could tell.
///
/// # Errors
///
/// What the session reports; a prompt that does not fit.
pub fn ask(tasks: &[&Task], n: usize, settings: &Settings, session: &mut Session<'_>) -> Result<Vec<Vec<Option<String>>>> {
    let mut asks = Vec::with_capacity(tasks.len() * n);
    for task in tasks {
        let budget = (settings.max_prompt_tokens, settings.min_issue_tokens);
        let text: Arc<str> = prompt(&task.without_answer(), budget, &|text| session.count(text))?.into();
        asks.extend((0..n).map(|_| Ask { instance: &task.instance_id, system: None, prompt: text.clone() }));
    }
    let mut scripts = session.ask(HOP, &asks)?.into_iter().map(|answer| read_script(&answer.text));
    Ok(tasks.iter().map(|_| scripts.by_ref().take(n).collect()).collect())
}

/// How many different tests rank candidates where nothing else is said: Agentless takes the one that most answers agree in, Agentless Mini
/// up to 30 (SWE-RL, arXiv 2502.18449, section 3).
pub fn usual_number(pipeline: Pipeline) -> usize {
    match pipeline {
        Pipeline::Sorft => 1,
        Pipeline::Mini => 30,
    }
}

/// What a script says of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    /// The issue is there.
    Reproduced,
    /// It is not.
    Resolved,
    /// Neither, or several things at once.
    Other,
}

/// A reproduction test that candidates are ranked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The place of the first answer that has it.
    pub place: usize,
    /// How many answers have it, but for comments and layout.
    pub votes: usize,
}

/// The tests that candidates are ranked by: of the scripts that say before any patch that the issue is there, the at most `most` that the
/// most answers agree in, comments and layout aside; ties by first appearance. A script that says anything else there tests something
/// else, and has no vote.
pub fn choose(scripts: &[&str], before: &[Says], most: usize) -> Result<Vec<Chosen>> {
    let mut groups: BTreeMap<String, Chosen> = BTreeMap::new();
    for (place, script) in scripts.iter().enumerate().filter(|(i, _)| before[*i] == Says::Reproduced) {
        let text = python(script)?.unwrap_or_else(|| (*script).to_owned());
        groups.entry(text).or_insert(Chosen { place, votes: 0 }).votes += 1;
    }
    let mut chosen: Vec<Chosen> = groups.into_values().collect();
    chosen.sort_by_key(|c| (std::cmp::Reverse(c.votes), c.place));
    chosen.truncate(most);
    Ok(chosen)
}

/// A task's reproduction tests and what came of them, a line of `reproductions.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The task.
    pub instance_id: String,
    /// The script of each answer, and what it says before any patch; none where the answer holds none.
    pub answers: Vec<Option<(String, Says)>>,
    /// The tests that candidates were ranked by.
    pub chosen: Vec<ChosenRecord>,
}

/// A test that candidates were ranked by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenRecord {
    /// The first answer that has it.
    pub answer: usize,
    /// How many answers have it, but for comments and layout.
    pub votes: usize,
    /// The samples whose patches it passes with.
    pub passes: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_answers_decide_among_those_that_fail_as_they_should() {
        let scripts = ["a()  # one\n", "b()\n", "# two\nb( )\n", "a()\n", "c()\n", "a()\n", "b()\n", "not python (\n"];
        let says = |other: &[usize]| -> Vec<Says> {
            (0..scripts.len()).map(|i| if other.contains(&i) { Says::Other } else { Says::Reproduced }).collect()
        };
        let of = |before: &[Says], most| -> Vec<(usize, usize)> {
            choose(&scripts, before, most).unwrap().iter().map(|c| (c.place, c.votes)).collect()
        };
        assert_eq!(of(&says(&[]), 9), [(0, 3), (1, 3), (4, 1), (7, 1)], "equal votes: the first seen");
        assert_eq!(of(&says(&[]), 1), [(0, 3)]);
        assert_eq!(of(&says(&[3, 5]), 2), [(1, 3), (0, 1)], "what reproduces nothing has no vote");
        let mut resolved = says(&[]);
        resolved.fill(Says::Resolved);
        assert!(of(&resolved, 9).is_empty());
    }
}
