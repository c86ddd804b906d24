//! `report RUN`: writes the report of a run folder.

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
    println!("{}", report::write(&args.run)?.display());
    Ok(())
}
