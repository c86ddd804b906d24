//! `report RUN...`: writes the report of each run folder, and sums up the runs together.

use super::output::to_stdout;
use crate::Result;
use crate::rl::report;
use std::path::{Path, PathBuf};

/// Write report.html of a run folder, and print its table
///
/// Several runs, of other folds or seeds, are taken together in one table.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The folders that `train` wrote
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let pages = args.runs.iter().map(|dir| report::write(dir)).collect::<Result<Vec<_>>>()?;
    let dirs: Vec<&Path> = args.runs.iter().map(PathBuf::as_path).collect();
    let summary = report::summary(&dirs)?;
    to_stdout(|out| {
        if !summary.is_empty() {
            writeln!(out, "{summary}\n")?;
        }
        pages.iter().try_for_each(|page| writeln!(out, "{}", page.display()))
    })
}
