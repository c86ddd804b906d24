//! `data split`: a part to learn from and a part held out.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::output::{json_line, table, to_stdout};
use crate::data::Task;
use crate::data::source::swe_bench;
use crate::data::split::{Split, by_repository, by_time};
use crate::{Error, Result};

/// Split task files into a part to learn from and a part held out, by repository or by time.
///
/// By repository, no repository is on both sides, whichever file its tasks are in. By time, the newest tasks are held out.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The files to split, as one
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What decides: `auto` is repository where there are enough of them, else time
    #[arg(long, value_enum, default_value_t = By::Auto)]
    by: By,
    /// How much is held out; by repository it is one of round(1 / fraction) folds
    #[arg(long, default_value_t = 0.2)]
    fraction: f64,
    /// Which fold is held out, counted from 0
    #[arg(long, default_value_t = 0)]
    fold: usize,
    /// The key by which repositories are dealt to folds
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the part to learn from goes [default: the first FILE's name with .train.jsonl]
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// Where the part held out goes [default: the first FILE's name with .heldout.jsonl]
    #[arg(long, value_name = "FILE")]
    heldout: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// Say what went where as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum By {
    /// By repository where there are enough of them, else by time
    Auto,
    /// Whole repositories are held out
    Repository,
    /// The newest tasks are held out
    Time,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let Some(first) = args.files.first() else { return Err(Error::usage("expected a file")) };
    let train = args.train.clone().unwrap_or_else(|| with_part(first, "train"));
    let heldout = args.heldout.clone().unwrap_or_else(|| with_part(first, "heldout"));
    if train == heldout {
        return Err(Error::usage("--train and --heldout are one file").at_file(&train));
    }
    for out in [&train, &heldout] {
        if args.files.iter().any(|file| is_same_file(file, out)) {
            return Err(Error::usage("this is also a file to be split, which it would overwrite").at_file(out).hint("choose another name"));
        }
        swe_bench::refuse_existing(out, args.force)?;
    }
    if args.by == By::Time && args.fold != 0 {
        return Err(Error::usage("--fold goes with --by repository: by time there is one split"));
    }
    if !(args.fraction > 0.0 && args.fraction < 1.0) {
        return Err(Error::usage(format!("--fraction {} is not between 0 and 1", args.fraction)).hint("for a fifth: --fraction 0.2"));
    }
    let tasks = read_all(&args.files, &mut |_| {})?;
    let (by, split) = split(&tasks, &args)?;
    let sides = [("train", &train, &split.train), ("heldout", &heldout, &split.heldout)];
    let mut prepared = Vec::new();
    for (_, path, indices) in sides {
        let side: Vec<Task> = indices.iter().map(|&i| tasks[i].clone()).collect();
        prepared.push(swe_bench::prepare(path, &side)?);
    }
    prepared.into_iter().try_for_each(|file| file.publish(args.force))?;
    let repos = |indices: &[usize]| indices.iter().map(|&i| tasks[i].repo_name()).collect::<std::collections::BTreeSet<_>>();
    if args.json {
        let side = |path: &Path, indices: &[usize]| json!({ "file": path.display().to_string(), "tasks": indices.len(), "repositories": repos(indices) });
        return json_line(&json!({ "by": by, "train": side(&train, &split.train), "heldout": side(&heldout, &split.heldout) }));
    }
    let mut rows = vec![vec![format!("split by {by}"), "tasks".to_owned(), "repositories".to_owned()]];
    rows.extend(sides.map(|(_, path, side)| vec![path.display().to_string(), side.len().to_string(), repos(side).len().to_string()]));
    to_stdout(|out| out.write_all(table(&rows).as_bytes()))
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn split(tasks: &[Task], args: &Args) -> Result<(&'static str, Split)> {
    let folds = ((1.0 / args.fraction).round() as usize).max(2);
    let repos = tasks.iter().map(Task::repo_key).collect::<std::collections::BTreeSet<_>>().len();
    let by_repo = args.by == By::Repository || (args.by == By::Auto && repos >= folds);
    if by_repo {
        return Ok(("repository", by_repository(tasks, folds, args.fold, args.seed)?));
    }
    Ok(("time", by_time(tasks, args.fraction)?))
}

/// The tasks of all files, `count` hearing how many each holds; a name that two files share is an error.
pub(super) fn read_all(files: &[PathBuf], count: &mut dyn FnMut(usize)) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut from: std::collections::HashMap<String, &Path> = std::collections::HashMap::new();
    for path in files {
        let read = swe_bench::read(path)?;
        count(read.len());
        for task in read {
            if let Some(other) = from.insert(task.instance_id.clone(), path) {
                let message = format!("instance_id `{}` is in {} as well", task.instance_id, other.display());
                return Err(Error::input(message).at_file(path).hint("every task needs a name of its own"));
            }
            tasks.push(task);
        }
    }
    Ok(tasks)
}

/// `dir/name.jsonl.gz` with `part`: `dir/name.part.jsonl`.
fn with_part(path: &Path, part: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = [".jsonl.gz", ".json.gz", ".jsonl", ".json", ".gz"].iter().find_map(|e| name.strip_suffix(e)).unwrap_or(&name);
    path.with_file_name(format!("{stem}.{part}.jsonl"))
}
