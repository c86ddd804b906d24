//! `data`: task files: mined, read, split, counted, shown.

mod check;
mod import;
#[cfg(feature = "git")]
mod mine;
mod show;
mod split;
mod stats;

use clap::Subcommand;

use crate::Result;
use crate::data::source::decontaminate::Decontamination;

/// Make, read, split, count and show task files.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "git")]
    Mine(mine::Args),
    Check(check::Args),
    Import(import::Args),
    Split(split::Args),
    Stats(stats::Args),
    Show(show::Args),
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    match args.command {
        #[cfg(feature = "git")]
        Command::Mine(args) => mine::run(args),
        Command::Check(args) => check::run(args),
        Command::Import(args) => import::run(args),
        Command::Split(args) => split::run(args),
        Command::Stats(args) => stats::run(args),
        Command::Show(args) => show::run(args),
    }
}

/// The list that `--decontaminate` names: `swe-bench`, `none` or a file.
fn decontamination(name: &str) -> Result<Decontamination> {
    match name {
        "none" => Ok(Decontamination::default()),
        "swe-bench" => Decontamination::swe_bench(),
        file => Decontamination::read(std::path::Path::new(file)),
    }
}
