//! `data import`: task files of others into this project's form.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::decontamination;
use crate::cli::output::{json_line, say, table_for_stderr, to_stdout};
use crate::data::near_duplicates;
use crate::data::source::family::{self, Family};
use crate::data::source::funnel::Funnel;
use crate::data::source::swe_bench;
use crate::{Error, Result};

/// Read a task file of the SWE-bench family and write it in this project's form.
///
/// Reads JSON lines or a JSON list, gzipped or not, or parquet. Checks every task, turns test lists that are strings into lists, adds gold_files,
/// and keeps the fields it does not know.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file to read
    file: PathBuf,
    /// Where the tasks go, as JSON lines (gzipped if it ends in .gz) [default: stdout]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The form of the file
    #[arg(long, value_enum, default_value_t = Format::SweBench)]
    format: Format,
    /// Leave out what comes from the repositories of a list, one owner/name a line: a FILE, `swe-bench` for those of SWE-bench's test
    /// split, or `none`
    #[arg(long, value_name = "FILE", default_value = "none")]
    decontaminate: String,
    /// Leave out tasks whose patch is at least this much like that of an earlier row (the Jaccard index of runs of five words, by min-hash);
    /// 1 leaves out exact repeats alone [default: none is left out]
    #[arg(long, value_name = "LIKENESS")]
    near_duplicates: Option<f64>,
    /// Replace the file of --out if it is there
    #[arg(long)]
    force: bool,
    /// With --out, say as JSON what was read
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// SWE-bench's field names: its own files, this project's, and others of which no more is asked
    SweBench,
    /// SWE-Gym
    SweGym,
    /// SWE-rebench and SWE-bench-extra
    SweRebench,
    /// SWE-smith: the patch makes the bug, its reverse is the fix; rows without an issue's text are left out
    SweSmith,
    /// Multi-SWE-bench and Multi-SWE-RL
    MultiSweBench,
}

impl Format {
    fn family(self) -> Family {
        match self {
            Self::SweBench => Family::SweBench,
            Self::SweGym => Family::SweGym,
            Self::SweRebench => Family::SweRebench,
            Self::SweSmith => Family::SweSmith,
            Self::MultiSweBench => Family::MultiSweBench,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    if let Some(out) = &args.out {
        swe_bench::refuse_existing(out, args.force)?;
    }
    let list = decontamination(&args.decontaminate)?;
    let imported = family::read(&args.file, args.format.family()).map_err(|e| {
        if args.format.family() == Family::SweBench && e.to_string().contains("field `instance_id`") {
            e.hint("for Multi-SWE-bench's fields: --format multi-swe-bench")
        } else {
            e
        }
    })?;
    let mut tasks = imported.tasks;
    let contaminated = list.apply(&mut tasks);
    let (again, nearly) = match args.near_duplicates {
        Some(threshold) => near_duplicates::leave_out(&mut tasks, threshold)?,
        None => (0, 0),
    };
    let mut funnel = Funnel {
        from: args.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        unit: "rows".to_owned(),
        seen: imported.rows,
        ..Funnel::default()
    };
    funnel.drop("without_issue", "has no issue's text", imported.without_issue);
    funnel.drop("contaminated", "is from a repository of the list of --decontaminate", contaminated);
    funnel.drop("duplicate", "makes the change of an earlier row again", again);
    funnel.drop("near_duplicate", "makes nearly the change of an earlier row (--near-duplicates)", nearly);
    funnel.kept = tasks.len();
    if tasks.is_empty() {
        return Err(Error::input("every task is from a repository of the list of --decontaminate").at_file(&args.file));
    }
    let mut nothing_to_find = 0;
    for task in &mut tasks {
        let gold = task.gold().map_err(|e| e.at(&task.instance_id))?;
        nothing_to_find += usize::from(gold.is_empty());
        task.gold_files = Some(gold.into_iter().collect());
        task.all_paths.sort();
        task.all_paths.dedup();
    }
    if nothing_to_find == tasks.len() {
        return Err(Error::input("no task changes a file that is there at its base").at_file(&args.file));
    }
    if nothing_to_find > 0 {
        say!("warning: {nothing_to_find} of {} tasks only add files: file localisation has nothing to find in them", tasks.len());
    }
    match &args.out {
        Some(out) => {
            swe_bench::write(out, &tasks, args.force)?;
            funnel.write(out)?;
            let with_files = tasks.iter().filter(|t| !t.files.is_empty()).count();
            if args.json {
                let dropped: BTreeMap<&str, usize> = funnel.dropped.iter().map(|d| (d.filter.as_str(), d.count)).collect();
                return json_line(
                    &json!({ "tasks": tasks.len(), "with_files": with_files, "only_adding": nothing_to_find, "dropped": dropped }),
                );
            }
            say_dropped(&funnel);
            say!("{} tasks, {with_files} of them with contents", tasks.len());
            Ok(())
        }
        None => {
            say_dropped(&funnel);
            to_stdout(|out| swe_bench::write_lines(out, &tasks))
        }
    }
}

/// What the filters dropped, if any did.
fn say_dropped(funnel: &Funnel) {
    if !funnel.dropped.is_empty() {
        say!("{}", table_for_stderr(&funnel.rows()).trim_end());
    }
}
