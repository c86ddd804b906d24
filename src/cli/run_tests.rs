//! `run-tests`: whether patches resolve their tasks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::agentless::clones;
use crate::agentless::files::read_predictions;
use crate::agentless::run_tests::{Environments, Report, Runner, Submission};
use crate::agentless::sandbox::{Limits, Sandbox};
use crate::cli::interrupt;
use crate::cli::output::{json_line, say, table, to_stdout};
use crate::data::Task;
use crate::data::source::swe_bench;
use crate::{Error, Result};

/// Runs the tests of tasks on patched trees, confined, and says which patches resolve their task.
///
/// A patch resolves its task when all tests of FAIL_TO_PASS and PASS_TO_PASS pass, as in SWE-bench. Where commands cannot be confined,
/// nothing is run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A task file (see `data import`)
    #[arg(long, value_name = "FILE")]
    tasks: PathBuf,
    /// all_preds.jsonl, or `gold` (each task's own patch), or `empty` (no change: nothing should be resolved)
    #[arg(long, value_name = "FILE", required_unless_present = "establish")]
    predictions: Option<PathBuf>,
    /// Write the tasks that have tests which fail before the gold patch and pass after it, with these lists, to a new file
    #[arg(long, value_name = "FILE", conflicts_with = "predictions")]
    establish: Option<PathBuf>,
    /// The folder of clones: owner__name, owner/name or name
    #[arg(long, value_name = "DIR")]
    repos: PathBuf,
    /// What the tests need (environments.toml, or its folder) [default: python3 with pytest on the path]
    #[arg(long, value_name = "FILE")]
    environments: Option<PathBuf>,
    /// Keep reports and logs here, and do not run again what is here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many tasks run at one time
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers: usize,
    /// Overwrite the file that --establish writes
    #[arg(long)]
    force: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.workers == 0 {
        return Err(Error::usage("--workers takes a number of at least 1"));
    }
    let tasks = swe_bench::read(&args.tasks)?;
    clones::require(&args.repos)?;
    let environments = args.environments.as_deref().map(Environments::read).transpose()?.unwrap_or_default();
    environments.check(&tasks)?;
    let sandbox = Sandbox::new(Limits::default(), Vec::new())?;
    say!("confined: name spaces, seccomp, Landlock {}", sandbox.landlock());
    let runner = Runner::new(sandbox, &args.repos, environments, args.out.as_deref());
    interrupt::listen()?;
    match &args.establish {
        Some(path) => establish(&args, &runner, tasks, path),
        None => judge(&args, &runner, &tasks),
    }
}

/// Calls `f` for every one of `0..n` on some threads; what it gives, in order. Ctrl-C ends it before the next one.
pub(crate) fn on_workers<T: Send>(workers: usize, n: usize, f: impl Fn(usize) -> T + Sync) -> Result<Vec<T>> {
    let (next, out) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(n) {
            scope.spawn(|| {
                while !interrupt::pressed() {
                    let i = next.fetch_add(1, Ordering::SeqCst);
                    if i >= n {
                        return;
                    }
                    let value = f(i);
                    out.lock().unwrap_or_else(|e| e.into_inner()).insert(i, value);
                }
            });
        }
    });
    let out = out.into_inner().unwrap_or_else(|e| e.into_inner());
    if out.len() == n { Ok(out.into_values().collect()) } else { Err(Error::interrupted()) }
}

fn establish(args: &Args, runner: &Runner, tasks: Vec<Task>, path: &Path) -> Result<()> {
    swe_bench::refuse_existing(path, args.force)?;
    let found = on_workers(args.workers, tasks.len(), |i| {
        let found = runner.establish(&tasks[i]);
        match &found {
            Ok(lists) => say!("{}: {} to fix, {} to keep", tasks[i].instance_id, lists.fail_to_pass.len(), lists.pass_to_pass.len()),
            Err(e) => say!("{}: {e}", tasks[i].instance_id),
        }
        found
    })?;
    let (all, mut kept, mut failed, mut without) = (tasks.len(), Vec::new(), 0, 0);
    for (task, found) in tasks.into_iter().zip(found) {
        match found {
            Err(_) => failed += 1,
            Ok(lists) if lists.fail_to_pass.is_empty() => without += 1,
            Ok(lists) => {
                kept.push(Task { fail_to_pass: Some(lists.fail_to_pass), pass_to_pass: Some(lists.pass_to_pass), ..task });
            }
        }
    }
    if kept.is_empty() {
        let message = format!("no task has tests that the gold patch makes pass ({without} without, {failed} not run): nothing is written");
        return Err(Error::input(message).hint("what kept tests from running is said above, task by task"));
    }
    swe_bench::write(path, &kept, args.force)?;
    let counts =
        json!({"tasks": all, "kept": kept.len(), "no_failing_test": without, "not_run": failed, "file": path.display().to_string()});
    match args.json {
        true => json_line(&counts),
        false => to_stdout(|out| {
            writeln!(out, "{all} tasks: {} with tests that the gold patch makes pass, {without} without, {failed} not run", kept.len())
        }),
    }
}

/// What is handed in for each task; none where the file has nothing for it.
fn submissions<'a>(path: &Path, tasks: &'a [Task], read: &'a mut BTreeMap<String, String>) -> Result<Vec<Option<Submission<'a>>>> {
    match path.to_str() {
        Some("gold") => return Ok(tasks.iter().map(|t| Some(Submission::Patch(&t.patch))).collect()),
        Some("empty") => return Ok(tasks.iter().map(|_| Some(Submission::Nothing)).collect()),
        _ => {}
    }
    read.extend(read_predictions(path)?.into_iter().map(|p| (p.instance_id, p.model_patch)));
    let known: std::collections::BTreeSet<&str> = tasks.iter().map(|t| t.instance_id.as_str()).collect();
    if let Some(id) = read.keys().find(|id| !known.contains(id.as_str())) {
        say!("warning: {}: no task is named {id} (and perhaps more)", path.display());
    }
    Ok(tasks.iter().map(|t| read.get(&t.instance_id).map(|patch| Submission::Patch(patch))).collect())
}

fn judge(args: &Args, runner: &Runner, tasks: &[Task]) -> Result<()> {
    let path = args.predictions.as_deref().unwrap_or(Path::new("empty"));
    let mut read = BTreeMap::new();
    let submissions = submissions(path, tasks, &mut read)?;
    let reports = on_workers(args.workers, tasks.len(), |i| {
        let report = submissions[i].map(|submission| runner.report(&tasks[i], submission)).transpose();
        match &report {
            Ok(None) => say!("{}: no prediction", tasks[i].instance_id),
            Ok(Some(report)) => say!("{}: {}", tasks[i].instance_id, in_words(report)),
            Err(e) => say!("{}: {e}", tasks[i].instance_id),
        }
        report
    })?;
    let failed = reports.iter().filter(|r| r.is_err()).count();
    match args.json {
        true => json_line(&summary_json(tasks, &reports))?,
        false => to_stdout(|out| out.write_all(summary(tasks, &reports).as_bytes()))?,
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::input(format!("the tests of {n} tasks could not be run (see above); they count as not resolved"))),
    }
}

fn in_words(report: &Report) -> String {
    let counts = report.tests_status.as_ref().map_or(String::new(), |s| {
        let of = |t: &crate::agentless::run_tests::verdict::Tests| format!("{}/{}", t.success.len(), t.success.len() + t.failure.len());
        format!(" (to fix {}, to keep {})", of(&s.fail_to_pass), of(&s.pass_to_pass))
    });
    let note = report.note.as_ref().map_or(String::new(), |n| format!(": {n}"));
    format!("{}{counts}{note}", if report.resolved { "resolved" } else { "not resolved" })
}

/// Tasks, applied, resolved.
fn counts<'a>(reports: impl Iterator<Item = &'a Result<Option<Report>>>) -> [usize; 3] {
    reports.fold([0; 3], |[n, applied, resolved], r| {
        let report = r.as_ref().ok().and_then(Option::as_ref);
        let is = |f: fn(&Report) -> bool| usize::from(report.is_some_and(f));
        [n + 1, applied + is(|r| r.patch_successfully_applied), resolved + is(|r| r.resolved)]
    })
}

fn percent(part: usize, all: usize) -> f64 {
    100.0 * part as f64 / all.max(1) as f64
}

fn summary(tasks: &[Task], reports: &[Result<Option<Report>>]) -> String {
    let mut repos: Vec<&str> = tasks.iter().map(|t| t.repo.as_str()).collect();
    repos.sort_unstable();
    repos.dedup();
    let row = |name: &str, [n, applied, resolved]: [usize; 3]| {
        vec![name.to_owned(), n.to_string(), applied.to_string(), resolved.to_string(), format!("{:.1}", percent(resolved, n))]
    };
    let mut rows = vec![["repository", "tasks", "applied", "resolved", "%resolved"].map(str::to_owned).to_vec()];
    for repo in repos {
        rows.push(row(repo, counts(tasks.iter().zip(reports).filter(|(t, _)| t.repo == repo).map(|(_, r)| r))));
    }
    rows.push(row("all", counts(reports.iter())));
    table(&rows)
}

fn summary_json(tasks: &[Task], reports: &[Result<Option<Report>>]) -> serde_json::Value {
    let [n, applied, resolved] = counts(reports.iter());
    let one = |report: &Result<Option<Report>>| match report {
        Ok(report) => json!(report),
        Err(e) => json!({"error": e.to_string()}),
    };
    let instances: serde_json::Map<_, _> = tasks.iter().zip(reports).map(|(t, r)| (t.instance_id.clone(), one(r))).collect();
    json!({"tasks": n, "applied": applied, "resolved": resolved, "resolved_percent": percent(resolved, n), "instances": instances})
}
