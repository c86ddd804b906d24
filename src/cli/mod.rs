//! The command line: one file a subcommand. The only place that prints or draws progress bars.
//!
//! Data goes to stdout, progress and warnings to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C.

mod data;
mod output;
mod reward;

use clap::{Parser, Subcommand};

/// Trains a code model to resolve issues from a repository's own history.
#[derive(Parser)]
#[command(name = "sorft-native", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Data(data::Args),
    Reward(reward::Args),
}

/// Runs the program and returns its exit status.
pub fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to stdout with status 0, mistakes to stderr with status 2; nothing can be done where printing fails.
            let _ = e.print();
            return u8::try_from(e.exit_code()).unwrap_or(2);
        }
    };
    let result = match cli.command {
        Command::Data(args) => data::run(args),
        Command::Reward(args) => reward::run(args),
    };
    match result {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("error: {e}");
            e.exit_code()
        }
    }
}
