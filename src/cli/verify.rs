//! `verify`: a run's records against what they were made from.

use crate::cli::common::DeviceArgs;
use crate::cli::output::{json_line, plural, say, to_stdout};
use crate::cli::{interrupt, train};
use crate::model::weights;
use crate::rl::config::Config;
use crate::rl::trainer::Examples;
use crate::rl::verify::{Difference, Found, Replayed, Run, check_records, replay};
use crate::{Error, Result};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Recompute a run's rewards, advantages and losses from its recorded answers, and say where the first difference is.
///
/// With --step the step is run again from the checkpoint before it, and its answers, loss and gradient must be those recorded, to the bit.
/// The model and the data must be where the run's config.toml says. Nothing in the run folder is changed. Exit status 1 at a difference.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Run this step again, with those between it and the checkpoint before it
    #[arg(long, value_name = "N")]
    step: Option<u64>,
    /// Say as JSON what was compared and where the first difference is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let path = args.run.join("config.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| Error::io("read", &path, e).hint("verify takes the folder of a run: the one that `train --out` made"))?;
    let config = Config::parse(&text, &path)?;
    let device = args.device.open()?;
    let files = weights::open(&config.model)?;
    let examples = Examples::load(&config, &files, &mut |_| {})?;
    let run = Run::open(&args.run, &config, &examples.stages, files.tokenizer.as_ref())?;
    let found = check_records(&run)?;
    let replayed = match args.step {
        Some(step) if found.difference.is_none() => {
            interrupt::listen()?;
            let adapter = config.adapter.as_deref().map(weights::load_peft).transpose()?;
            let model = train::load_model(&config, &files, adapter, &device)?;
            let scratch = tempfile::tempdir().map_err(|e| Error::io("create", &std::env::temp_dir(), e))?;
            Some(replay(&run, model, step, scratch.path(), &interrupt::pressed)?)
        }
        _ => None,
    };
    if args.json {
        json_line(&json!({"records": found, "replay": replayed}))?;
    } else {
        to_stdout(|out| write!(out, "{}", summary(&found, replayed.as_ref())))?;
    }
    match found.difference.or(replayed.and_then(|r| r.difference)) {
        Some(difference) => Err(error(&args.run, &difference)),
        None => {
            say!("every record is as computed");
            Ok(())
        }
    }
}

/// What was compared, for people.
fn summary(found: &Found, replayed: Option<&Replayed>) -> String {
    let (steps, answers) = (plural(found.rollout_steps, "step"), plural(found.answers as u64, "answer"));
    let mut out = format!("{} of {} with {answers}: rewards and advantages compared\n", steps, found.steps);
    out += &format!("{}: the loss follows from the record and was compared\n", plural(found.losses, "step"));
    if let Some(r) = replayed {
        let from = if r.from == 0 { "the start".to_owned() } else { format!("the checkpoint after step {}", r.from) };
        let sum = r.grad_sum.as_str().unwrap_or("none");
        out += &format!("step {} run again from {from}: answers, loss and gradient ({sum}) compared\n", r.step);
    }
    out
}

fn error(run: &Path, d: &Difference) -> Error {
    let of = d.answer.as_ref().map_or(String::new(), |a| format!(" ({a})"));
    Error::input(format!("recorded {}, computed {}", d.recorded, d.computed)).at(&d.field).at(run.join(&d.place).display()).hint(format!(
        "this is the first difference, in step {}{of}: the record was changed, or the model, the data or the program is another",
        d.step
    ))
}
