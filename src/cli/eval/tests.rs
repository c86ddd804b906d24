//! `eval --run-tests`: a task's tests rank the candidates and say whether the patch handed in resolves the task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tasks::shown;
use crate::agentless::pipeline::Settings;
use crate::agentless::records::{Ranked, Tests};
use crate::agentless::reproduction::{self, ChosenRecord};
use crate::agentless::rerank::Candidate;
use crate::agentless::run_tests::{Environments, Runner, Submission, evidence};
use crate::agentless::sandbox::{Limits, Sandbox};
use crate::cli::output::say;
use crate::cli::run_tests::on_workers;
use crate::data::Task;
use crate::{Error, Result};

/// Running tests.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Run the tests of the tasks, confined: they rank candidates, and %resolved says which patches make FAIL_TO_PASS and PASS_TO_PASS pass
    /// (needs --repos)
    #[arg(long)]
    run_tests: bool,
    /// What the tests need (environments.toml, or its folder)
    #[arg(long, value_name = "FILE")]
    environments: Option<PathBuf>,
    /// How many tasks' tests run at one time [default: 1]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Ask the model for N scripts a task that show whether its issue is there: those that do so before any patch rank candidates too
    /// [default: 0]
    #[arg(long, value_name = "N")]
    reproduction_tests: Option<usize>,
    /// How many of these rank: the ones that most answers agree in [default: 1; with --pipeline mini, 30]
    #[arg(long, value_name = "K")]
    top_tests: Option<usize>,
}

/// What `settings.json` says of the tests. Answers are no function of it: a run may go on with other tests.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub(super) struct Recorded {
    repos: Option<PathBuf>,
    environments: Option<PathBuf>,
    reproduction_tests: Option<usize>,
    top_tests: Option<usize>,
}

/// What runs tests, if any are to be run.
pub(super) struct TestRuns {
    runner: Option<Runner>,
    workers: usize,
}

/// What tests say of a run's candidates.
#[derive(Default)]
pub(super) struct Evidence {
    /// By the task's name and the sample's number.
    pub tests: BTreeMap<(String, usize), Tests>,
    /// The reproduction tests, where any were asked for.
    pub reproductions: Vec<reproduction::Record>,
}

/// What tests say of a task's candidates, by the sample's number, and its reproduction tests.
type OfTask = (Vec<(usize, Tests)>, Option<reproduction::Record>);

/// A task's scripts, one an answer.
pub(super) type Scripts = BTreeMap<String, Vec<Option<String>>>;

impl TestArgs {
    /// Fills in what a run that goes on was begun with, where nothing else is given, `repos` as well.
    pub(super) fn fill(&mut self, recorded: Recorded, repos: &mut Option<PathBuf>) {
        self.run_tests = true;
        *repos = repos.take().or(recorded.repos);
        self.environments = self.environments.take().or(recorded.environments);
        self.reproduction_tests = self.reproduction_tests.or(recorded.reproduction_tests);
        self.top_tests = self.top_tests.or(recorded.top_tests);
    }

    /// Refuses options that mean nothing without others; `patches` are made or not.
    pub(super) fn check(&self, repos: Option<&Path>, patches: bool) -> Result<()> {
        if self.run_tests && !patches {
            return Err(Error::usage("--run-tests is about patches, and --until ends before them"));
        }
        let needing = [
            ("--environments", self.environments.is_some()),
            ("--workers", self.workers.is_some()),
            ("--reproduction-tests", self.reproduction_tests.is_some()),
        ];
        if let Some((flag, _)) = needing.iter().find(|(_, given)| *given && !self.run_tests) {
            return Err(Error::usage(format!("{flag} is about tests, and none are run")).hint("run them: --run-tests --repos DIR"));
        }
        if self.top_tests.is_some() && self.reproduction_tests.is_none() {
            return Err(Error::usage("--top-tests chooses among reproduction tests").hint("ask for some: --reproduction-tests N"));
        }
        if self.run_tests && repos.is_none() {
            return Err(Error::usage("--run-tests needs the repositories").hint("give a folder of clones: --repos DIR"));
        }
        match (self.workers, self.top_tests) {
            (Some(0), _) => Err(Error::usage("--workers takes a number of at least 1")),
            (_, Some(0)) => Err(Error::usage("--top-tests takes a number of at least 1")),
            _ => Ok(()),
        }
    }

    /// What tests are run, as `settings.json` has it; null where none are.
    pub(super) fn describe(&self, repos: Option<&Path>) -> Value {
        match self.run_tests {
            true => json!({
                "repos": shown(repos),
                "environments": shown(self.environments.as_deref()),
                "reproduction_tests": self.reproduction_tests,
                "top_tests": self.top_tests,
            }),
            false => Value::Null,
        }
    }

    /// How many reproduction tests are asked for, and how many rank.
    pub(super) fn reproductions(&self, settings: &Settings) -> (usize, usize) {
        let asked = self.reproduction_tests.unwrap_or(0);
        let most = self.top_tests.unwrap_or_else(|| reproduction::usual_number(settings.pipeline));
        // Greedy answers are all the same.
        (if settings.greedy { asked.min(1) } else { asked }, most)
    }

    /// Sets up the confinement, before anything is sampled: where it cannot be had, or a task has no tests to run, nothing is begun.
    pub(super) fn open(&self, tasks: &[Task], repos: Option<&Path>, out: Option<&Path>) -> Result<TestRuns> {
        let workers = self.workers.unwrap_or(1);
        let Some(repos) = repos.filter(|_| self.run_tests) else { return Ok(TestRuns { runner: None, workers }) };
        if let Some(task) = tasks.iter().find(|t| t.fail_to_pass.is_none()) {
            let hint = "`run-tests --establish FILE` finds the lists by running the tests before and after the gold patch";
            return Err(Error::input("the task has no FAIL_TO_PASS").at(&task.instance_id).hint(hint));
        }
        let environments = self.environments.as_deref().map(Environments::read).transpose()?.unwrap_or_default();
        environments.check(tasks)?;
        let sandbox = Sandbox::new(Limits::default(), Vec::new())?;
        let runner = Runner::new(sandbox, repos, environments, out.map(|dir| dir.join("verdicts")).as_deref());
        Ok(TestRuns { runner: Some(runner), workers })
    }
}

impl TestRuns {
    /// What regression tests, and the at most `most` best of a task's `scripts`, say of every task's different patches. Nothing for tasks
    /// that have neither, or no two patches to choose from, or whose tests cannot be run, which is said aloud.
    pub(super) fn evidence(&self, tasks: &[Task], ranked: &[Ranked], scripts: &Scripts, most: usize) -> Result<Evidence> {
        let Some(runner) = &self.runner else { return Ok(Evidence::default()) };
        let found = on_workers(self.workers, tasks.len(), |t| {
            let of_task = scripts.get(&tasks[t].instance_id).map_or(&[] as &[_], Vec::as_slice);
            one_task(runner, &tasks[t], &ranked[t], of_task, most).unwrap_or_else(|e| {
                say!("warning: {}: its candidates are ranked without tests, since these cannot be run: {e}", tasks[t].instance_id);
                (Vec::new(), None)
            })
        })?;
        let mut out = Evidence::default();
        for (task, (tests, record)) in tasks.iter().zip(found) {
            out.tests.extend(tests.into_iter().map(|(i, tests)| ((task.instance_id.clone(), i), tests)));
            out.reproductions.extend(record);
        }
        Ok(out)
    }

    /// Whether the tasks' patches resolve them, and the number of tasks whose tests cannot be run: these are said aloud, and not resolved.
    /// Nothing where no tests are run.
    pub(super) fn resolved(&self, tasks: &[Task], patches: &BTreeMap<&str, &str>) -> Result<(BTreeMap<String, bool>, usize)> {
        let Some(runner) = &self.runner else { return Ok((BTreeMap::new(), 0)) };
        let verdicts = on_workers(self.workers, tasks.len(), |t| {
            let task = &tasks[t];
            let patch = patches.get(task.instance_id.as_str()).copied().unwrap_or("");
            match runner.report(task, Submission::Patch(patch)) {
                Ok(report) => Some(report.resolved),
                Err(e) => {
                    say!("warning: {}: not resolved, since its tests cannot be run: {e}", task.instance_id);
                    None
                }
            }
        })?;
        let failed = verdicts.iter().filter(|v| v.is_none()).count();
        let resolved = verdicts.into_iter().map(|v| v.unwrap_or(false));
        Ok((tasks.iter().map(|t| t.instance_id.clone()).zip(resolved).collect(), failed))
    }
}

/// Runs what there is of a task's tests.
fn one_task(runner: &Runner, task: &Task, ranked: &Ranked, answers: &[Option<String>], most: usize) -> Result<OfTask> {
    let places: Vec<usize> = (0..answers.len()).filter(|&i| answers[i].is_some()).collect();
    let scripts: Vec<&str> = answers.iter().flatten().map(String::as_str).collect();
    if ranked.order.len() < 2 || (scripts.is_empty() && !runner.has_regression_tests(task)) {
        return Ok((Vec::new(), None));
    }
    let patches: Vec<&str> = ranked.order.iter().map(|&i| ranked.built[i].patch.as_str()).collect();
    let mut candidates = vec![Candidate::default(); patches.len()];
    let found = evidence::gather(runner, task, &patches, (&scripts, most), &mut candidates)?;
    let mut tests = Vec::new();
    for (&first, candidate) in ranked.order.iter().zip(candidates) {
        // What holds of a patch holds of every sample that has it: each has its vote.
        let same = (0..ranked.built.len()).filter(|&i| ranked.built[i].normalized == ranked.built[first].normalized);
        let known = Tests { failed_regressions: candidate.failed_regressions, reproductions: candidate.reproductions };
        tests.extend(same.map(|i| (i, known.clone())));
    }
    tests.sort_by_key(|(i, _)| *i);
    let passes = |t: usize| {
        let passing = tests.iter().filter(|(_, known)| known.reproductions.as_ref().is_some_and(|r| r[t]));
        passing.map(|(i, _)| *i).collect()
    };
    let chosen = found.chosen.iter().enumerate();
    let mut record = reproduction::Record {
        instance_id: task.instance_id.clone(),
        answers: vec![None; answers.len()],
        chosen: chosen.map(|(t, c)| ChosenRecord { answer: places[c.place], votes: c.votes, passes: passes(t) }).collect(),
    };
    for ((place, script), says) in places.iter().zip(&scripts).zip(found.before) {
        record.answers[*place] = Some(((*script).to_owned(), says));
    }
    Ok((tests, (!answers.is_empty()).then_some(record)))
}

/// The command's end where some tests could not be run, after the numbers are shown.
pub(super) fn all_ran(failed: usize) -> Result<()> {
    match failed {
        0 => Ok(()),
        n => Err(Error::input(format!("tests that could not be run: those of {n} (see above), which count as not resolved"))),
    }
}
