//! `eval --run-tests`: a task's tests rank the candidates and say whether the patch handed in resolves the task.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::agentless::records::{Ranked, Tests};
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
    #[arg(long, requires = "repos")]
    run_tests: bool,
    /// What the tests need (environments.toml, or its folder)
    #[arg(long, value_name = "FILE", requires = "run_tests")]
    environments: Option<PathBuf>,
    /// How many tasks' tests run at one time
    #[arg(long, default_value_t = 1, value_name = "N", requires = "run_tests")]
    workers: usize,
}

/// What runs tests, if any are to be run.
pub(super) struct TestRuns {
    runner: Option<Runner>,
    workers: usize,
}

impl TestArgs {
    /// Sets up the confinement, before anything is sampled: where it cannot be had, or a task has no tests to run, nothing is begun.
    pub(super) fn open(&self, tasks: &[Task], repos: Option<&Path>, out: Option<&Path>) -> Result<TestRuns> {
        let none = TestRuns { runner: None, workers: self.workers };
        let Some(repos) = repos.filter(|_| self.run_tests) else { return Ok(none) };
        if self.workers == 0 {
            return Err(Error::usage("--workers takes a number of at least 1"));
        }
        if let Some(task) = tasks.iter().find(|t| t.fail_to_pass.is_none()) {
            let hint = "`run-tests --establish FILE` finds the lists by running the tests before and after the gold patch";
            return Err(Error::input("the task has no FAIL_TO_PASS").at(&task.instance_id).hint(hint));
        }
        let environments = self.environments.as_deref().map(Environments::read).transpose()?.unwrap_or_default();
        let sandbox = Sandbox::new(Limits::default(), Vec::new())?;
        let runner = Runner::new(sandbox, repos, environments, out.map(|dir| dir.join("verdicts")).as_deref());
        Ok(TestRuns { runner: Some(runner), workers: self.workers })
    }
}

impl TestRuns {
    /// What the regression tests say of every task's different patches, by the task's name and the sample's number; nothing for tasks
    /// whose environment names no regression tests.
    pub(super) fn evidence(&self, tasks: &[Task], ranked: &[Ranked]) -> Result<BTreeMap<(String, usize), Tests>> {
        let Some(runner) = &self.runner else { return Ok(BTreeMap::new()) };
        let found = on_workers(self.workers, tasks.len(), |t| -> Result<Vec<(usize, Tests)>> {
            let (task, ranked) = (&tasks[t], &ranked[t]);
            if ranked.order.len() < 2 || !runner.has_regression_tests(task) {
                return Ok(Vec::new());
            }
            let patches: Vec<&str> = ranked.order.iter().map(|&i| ranked.built[i].patch.as_str()).collect();
            let mut candidates = vec![Candidate::default(); patches.len()];
            evidence::gather(runner, task, &patches, &[], &mut candidates).map_err(|e| e.at(&task.instance_id))?;
            let tests = candidates.into_iter().map(|c| Tests { failed_regressions: c.failed_regressions, reproductions: c.reproductions });
            Ok(ranked.order.iter().copied().zip(tests).collect())
        })?;
        let mut out = BTreeMap::new();
        for (task, found) in tasks.iter().zip(found) {
            out.extend(found?.into_iter().map(|(i, tests)| ((task.instance_id.clone(), i), tests)));
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

/// The command's end where some tests could not be run, after the numbers are shown.
pub(super) fn all_ran(failed: usize) -> Result<()> {
    match failed {
        0 => Ok(()),
        n => Err(Error::input(format!("tests that could not be run: those of {n} (see above), which count as not resolved"))),
    }
}
