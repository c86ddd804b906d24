//! `data mine`: tasks from a local git repository's history.

use std::fs::File;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::decontamination;
use crate::cli::interrupt;
use crate::cli::output::{json_line, plural, say, table_for_stderr, to_stdout};
use crate::data::source::git::{MineOptions, MineReport, Skip, mine_to_file};
use crate::data::source::issues::Issues;
use crate::{Error, Result};

/// Make tasks from the history of a local git repository: commit messages as issues, diffs as gold patches.
///
/// Walks from HEAD along the first parents. Merges, bots, reverts, releases, changes of lock files, documentation or tests alone,
/// additions alone, binary, huge and empty changes, and messages too short to say anything are skipped; a table on stderr says how many
/// for which reason. A shallow clone is mined as far as it goes, and of a partial clone the commits whose files are here, with a warning.
/// Nothing is fetched.
///
/// With --out, what was interrupted goes on where it was when the same command is given again (FILE.partial and FILE.state.json hold it),
/// and FILE.funnel.json keeps the table for `data stats`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The repository: a folder that holds `.git`, or a bare repository
    #[arg(long, value_name = "PATH")]
    repo: PathBuf,
    /// Where the tasks go, as JSON lines (gzipped if it ends in .gz) [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,
    /// Say as JSON how many commits were skipped for which reason (on stdout with --out, else on stderr)
    #[arg(long)]
    json: bool,
    /// The repository's name in the tasks [default: owner/name of the remote origin, else the folder's name]
    #[arg(long, value_name = "OWNER/NAME")]
    name: Option<String>,
    /// Walk the commits of merged branches too, not the first parents alone
    #[arg(long)]
    all_parents: bool,
    /// Take only the newest N tasks [default: all]
    #[arg(long, value_name = "N")]
    max_tasks: Option<usize>,
    /// Skip commits that change more source files
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().max_files)]
    max_files: usize,
    /// Skip commits that delete and insert more lines of sources
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().max_lines)]
    max_lines: usize,
    /// The most bytes of contents in a task; skip commits whose files take more than half of it
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().max_bytes)]
    max_bytes: usize,
    /// Skip commits whose message, without trailers, has fewer characters
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().min_message)]
    min_message: usize,
    /// How many files a task shows beside the gold ones
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().distractors)]
    distractors: usize,
    /// The most entries of all_paths; a keyed random choice where the tree has more
    #[arg(long, value_name = "N", default_value_t = MineOptions::default().max_paths)]
    max_paths: usize,
    /// Take what would be skipped
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    keep: Vec<Keep>,
    /// Take only commits that say so
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    require: Vec<Require>,
    /// The repository's issues and pull requests, as exported from GitHub's REST or GraphQL interface (a JSON list or JSON lines, gzipped
    /// or not): where a commit, or its pull request, resolves an issue (`fixes #12`), the issue's text becomes the task's
    #[arg(long, value_name = "FILE")]
    issues: Option<PathBuf>,
    /// Repositories that are not mined, because models are measured on them: a FILE of owner/name lines, `swe-bench` for those of its test
    /// split, or `none`. Forks and other spellings count
    #[arg(long, value_name = "FILE", default_value = "swe-bench")]
    decontaminate: String,
    /// Skip changes that are at least this much like one that was taken (the Jaccard index of runs of five words, by min-hash); with 1,
    /// exact repeats alone
    #[arg(long, value_name = "LIKENESS", default_value_t = MineOptions::default().near_duplicates)]
    near_duplicates: f64,
    /// The key of all random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Keep {
    /// Commits by bots
    Bots,
    /// Reverts
    Reverts,
    /// Releases and version bumps
    Releases,
    /// Changes of documentation: it counts as source
    Docs,
    /// Merges along the first parents, as one change each: for histories in which pull requests are merged by merge commits
    Merges,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Require {
    /// Commits whose message, or issue, speaks of a fix
    Fix,
    /// Commits that resolve an issue of --issues
    Issue,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let options = options(&args)?;
    interrupt::listen()?;
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    let mut show = |seen: usize, taken: usize| {
        bar.set_message(format!("{seen} commits, {taken} tasks"));
        bar.tick();
        if interrupt::pressed() { Err(Error::interrupted()) } else { Ok(()) }
    };
    // Without --out the file is a temporary one: stdout gets the oldest task first, which is found last.
    let folder = tempfile::tempdir().map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), e))?;
    let out = args.out.clone().unwrap_or_else(|| folder.path().join("tasks.jsonl"));
    let report = mine_to_file(&args.repo, &options, &out, args.force, &mut show);
    bar.finish_and_clear();
    let report = report?;
    if report.shallow {
        say!(
            "warning: {} is a shallow clone: its older history is not there\n  to have all of it: git -C {} fetch --unshallow",
            args.repo.display(),
            args.repo.display()
        );
    }
    let left_out = report.skipped.get(&Skip::LeftOut).copied().unwrap_or(0);
    if left_out > 0 {
        say!(
            "warning: {} is a partial clone, without the files of {}\n  to have all of them: git -C {} fetch --refetch --no-filter",
            args.repo.display(),
            plural(left_out as u64, "commit"),
            args.repo.display()
        );
    }
    let summary = summary(&report);
    let funnel = report.funnel(args.all_parents);
    if !args.json {
        say!("{}", table_for_stderr(&funnel.rows()).trim_end());
    }
    if report.taken == 0 {
        if args.json {
            say!("{summary}");
        }
        let hint = if left_out > 0 {
            "the files of its history are not here: fetch them, as said above"
        } else if report.skipped.get(&Skip::Merge) > Some(&0) && !args.all_parents {
            "most of this history may be in merged branches: try --all-parents, or --keep merges"
        } else {
            "see the table above for what was skipped, and data mine --help for the limits"
        };
        return Err(Error::input("no commit gives a task").at_file(&args.repo).hint(hint));
    }
    if args.out.is_some() {
        funnel.write(&out)?;
        return if args.json { json_line(&summary) } else { Ok(()) };
    }
    if args.json {
        say!("{summary}");
    }
    let mut file = File::open(&out).map_err(|e| Error::io("read", &out, e))?;
    to_stdout(|to| std::io::copy(&mut file, to).map(drop))
}

fn options(args: &Args) -> Result<MineOptions> {
    let keeps = |what| args.keep.contains(&what);
    let requires = |what| args.require.contains(&what);
    if requires(Require::Issue) && args.issues.is_none() {
        return Err(Error::usage("--require issue needs the issues").hint("give an export of them: --issues FILE"));
    }
    if keeps(Keep::Merges) && args.all_parents {
        return Err(Error::usage("--keep merges goes without --all-parents, which takes the commits of the merged branches one by one"));
    }
    Ok(MineOptions {
        name: args.name.clone(),
        all_parents: args.all_parents,
        max_tasks: args.max_tasks.unwrap_or(usize::MAX),
        max_files: args.max_files,
        max_lines: args.max_lines,
        max_bytes: args.max_bytes,
        min_message: args.min_message,
        distractors: args.distractors,
        max_paths: args.max_paths,
        keep_bots: keeps(Keep::Bots),
        keep_reverts: keeps(Keep::Reverts),
        keep_releases: keeps(Keep::Releases),
        keep_merges: keeps(Keep::Merges),
        keep_docs: keeps(Keep::Docs),
        require_fix: requires(Require::Fix),
        require_issue: requires(Require::Issue),
        issues: args.issues.as_deref().map(Issues::read).transpose()?.unwrap_or_default(),
        decontamination: decontamination(&args.decontaminate)?,
        near_duplicates: args.near_duplicates,
        seed: args.seed,
    })
}

fn summary(report: &MineReport) -> Value {
    let skipped: Map<String, Value> =
        Skip::ALL.iter().filter_map(|skip| report.skipped.get(skip).map(|&n| (skip.describe().0.to_owned(), Value::from(n)))).collect();
    json!({
        "repo": report.repo, "head": report.head, "commits": report.commits, "tasks": report.taken,
        "skipped": skipped, "shallow": report.shallow,
    })
}
