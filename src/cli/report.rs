//! `report RUN...`: writes the report of each run folder, and sums up the runs together.

use super::output::{json_line, to_stdout};
use crate::Result;
use crate::rl::report::{self, Summary};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write report.html of a run folder, and print its table
///
/// Several runs, of other folds or seeds, are taken together in one table.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The folders that `train` wrote
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Print the numbers of every evaluation and the paths as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let pages = args.runs.iter().map(|dir| report::write(dir)).collect::<Result<Vec<_>>>()?;
    let dirs: Vec<&Path> = args.runs.iter().map(PathBuf::as_path).collect();
    let summary = Summary::new(&dirs)?;
    if args.json {
        let pages: Vec<String> = pages.iter().map(|page| page.display().to_string()).collect();
        return json_line(&json!({ "subtasks": summary.json()?, "reports": pages }));
    }
    let text = summary.text();
    to_stdout(|out| {
        if !text.is_empty() {
            writeln!(out, "{text}\n")?;
        }
        pages.iter().try_for_each(|page| writeln!(out, "{}", page.display()))
    })
}
