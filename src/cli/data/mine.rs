//! `data mine`: tasks from a local git repository's history.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::cli::output::{json_line, say, table, to_stdout};
use crate::data::source::git::{MineOptions, MineReport, Skip, mine};
use crate::data::source::swe_bench;
use crate::{Error, Result};

/// Make tasks from the history of a local git repository: commit messages as issues, diffs as gold patches.
///
/// Walks from HEAD along the first parents. Merges, bots, reverts, releases, changes of lock files, documentation or tests alone,
/// additions alone, binary, huge and empty changes, and messages too short to say anything are skipped; a table on stderr says how many
/// for which reason. A shallow clone is mined as far as it goes, with a warning.
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
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    if let Some(out) = &args.out {
        swe_bench::refuse_existing(out, args.force)?;
    }
    let keeps = |what| args.keep.contains(&what);
    let options = MineOptions {
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
        keep_docs: keeps(Keep::Docs),
        seed: args.seed,
    };
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    let (tasks, report) = mine(&args.repo, &options, &mut |seen, taken| {
        bar.set_message(format!("{seen} commits, {taken} tasks"));
        bar.tick();
    })?;
    bar.finish_and_clear();
    if report.shallow {
        say!(
            "warning: {} is a shallow clone: its older history is not there\n  to have all of it: git -C {} fetch --unshallow",
            args.repo.display(),
            args.repo.display()
        );
    }
    let summary = summary(&report);
    if !args.json {
        say!("{}", funnel(&report, args.all_parents).trim_end());
    }
    if tasks.is_empty() {
        if args.json {
            say!("{summary}");
        }
        let hint = if report.skipped.get(&Skip::Merge) > Some(&0) && !args.all_parents {
            "most of this history may be in merged branches: try --all-parents"
        } else {
            "see the table above for what was skipped, and data mine --help for the limits"
        };
        return Err(Error::input("no commit gives a task").at_file(&args.repo).hint(hint));
    }
    match &args.out {
        Some(out) => {
            swe_bench::write(out, &tasks, args.force)?;
            if args.json { json_line(&summary) } else { Ok(()) }
        }
        None => {
            if args.json {
                say!("{summary}");
            }
            to_stdout(|out| swe_bench::write_lines(out, &tasks))
        }
    }
}

fn summary(report: &MineReport) -> Value {
    let skipped: Map<String, Value> =
        Skip::ALL.iter().filter_map(|skip| report.skipped.get(skip).map(|&n| (skip.describe().0.to_owned(), Value::from(n)))).collect();
    json!({
        "repo": report.repo, "head": report.head, "commits": report.commits, "tasks": report.taken,
        "skipped": skipped, "shallow": report.shallow,
    })
}

/// The table of what became of the commits.
fn funnel(report: &MineReport, all_parents: bool) -> String {
    let which = if all_parents { "commits" } else { "commits along the first parents" };
    let mut rows = vec![vec![format!("{which} of {}", report.repo), report.commits.to_string()]];
    for skip in Skip::ALL {
        if let Some(n) = report.skipped.get(&skip) {
            rows.push(vec![format!("  - {}", skip.describe().1), format!("-{n}")]);
        }
    }
    rows.push(vec!["tasks".to_owned(), report.taken.to_string()]);
    table(&rows)
}
