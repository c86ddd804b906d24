//! `report RUN`: writes the report of a run folder.

use super::output::to_stdout;
use crate::Result;
use crate::rl::report;
use std::path::PathBuf;

/// Write report.html of a run folder
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The folder that `train` wrote
    run: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let path = report::write(&args.run)?;
    let summary = report::summary(&args.run)?;
    to_stdout(|out| {
        if !summary.is_empty() {
            writeln!(out, "{summary}\n")?;
        }
        writeln!(out, "{}", path.display())
    })
}
