//! The command line: one file a subcommand. The only place that prints or draws progress bars.
//!
//! Data goes to stdout, progress and warnings to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 130 after Ctrl-C.

mod bench;
mod common;
mod data;
#[cfg(feature = "distill")]
mod distill;
mod doctor;
mod eval;
mod fix;
mod interrupt;
mod lines;
mod output;
mod report;
mod reward;
#[cfg(unix)]
mod run_tests;
mod sample;
mod score;
#[cfg(feature = "serve")]
mod serve;
mod train;
mod verify;

use crate::Result;
use crate::cli::output::say;
use clap::{Parser, Subcommand};

/// Trains a code model to resolve issues from a repository's own history, and samples from it.
#[derive(Parser)]
#[command(name = "sorft-native", version, about, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Data(data::Args),
    Train(train::Args),
    Eval(eval::Args),
    Fix(fix::Args),
    Sample(sample::Args),
    Score(score::Args),
    Reward(reward::Args),
    #[cfg(unix)]
    RunTests(run_tests::Args),
    Report(report::Args),
    Verify(verify::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    #[cfg(feature = "distill")]
    Distill(distill::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
}

impl Command {
    fn run(self) -> Result<()> {
        match self {
            Command::Data(args) => data::run(args),
            Command::Train(args) => train::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Fix(args) => fix::run(args),
            Command::Sample(args) => sample::run(args),
            Command::Score(args) => score::run(args),
            Command::Reward(args) => reward::run(args),
            #[cfg(unix)]
            Command::RunTests(args) => run_tests::run(args),
            Command::Report(args) => report::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Doctor(args) => doctor::run(args),
            #[cfg(feature = "distill")]
            Command::Distill(args) => distill::run(args),
            #[cfg(feature = "serve")]
            Command::Serve(args) => serve::run(args),
        }
    }

    /// Where the command computes, if it does.
    fn device(&self) -> Option<&common::DeviceArgs> {
        match self {
            Command::Train(args) => Some(&args.device),
            Command::Verify(args) => Some(&args.device),
            Command::Eval(args) => Some(&args.place.device),
            Command::Fix(args) => Some(&args.place.device),
            Command::Sample(args) => Some(&args.model.place.device),
            Command::Score(args) => Some(&args.model.place.device),
            Command::Bench(args) => Some(&args.place.device),
            #[cfg(feature = "distill")]
            Command::Distill(args) => Some(&args.device),
            #[cfg(feature = "serve")]
            Command::Serve(args) => Some(&args.model.place.device),
            #[cfg(unix)]
            Command::RunTests(_) => None,
            Command::Data(_) | Command::Reward(_) | Command::Report(_) | Command::Doctor(_) => None,
        }
    }
}

/// Runs the program and returns its exit status.
pub fn run() -> u8 {
    crate::tensor::cpu::allocator::keep_freed_memory();
    if let Some(status) = common::inside_of_sandbox() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version go to stdout with status 0, mistakes to stderr with status 2; nothing can be done where printing fails.
            let _ = e.print();
            return u8::try_from(e.exit_code()).unwrap_or(2);
        }
    };
    let threads = match &cli.command {
        Command::Reward(args) => args.threads,
        command => command.device().and_then(|d| d.threads),
    };
    match common::check_environment().and_then(|()| common::on_workers(threads, || cli.command.run())) {
        Ok(()) => 0,
        Err(error) if lines::is_closed_pipe(&error) => 0,
        Err(error) => {
            say!("error: {error}");
            error.exit_code()
        }
    }
}
