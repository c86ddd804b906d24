//! `data check`: whether the ground truth of a task file holds together.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde_json::json;

use super::split::read_all;
use crate::cli::output::{json_line, to_stdout};
use crate::data::check::{Finding, check};
use crate::{Error, Result};

/// Check that the gold sets extracted from each task agree with its gold_* fields, that each gold answer scores 1, and that the gold edit
/// gives the gold files. Disagreements are listed; the exit status is 1 if a gold answer fails.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The files to check
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Say it as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let tasks = read_all(&args.files, &mut |_| {})?;
    let results: Vec<Result<Vec<Finding>>> = tasks.par_iter().map(check).collect();
    let (mut counts, mut found) = (BTreeMap::<&str, usize>::new(), Vec::new());
    for (task, result) in tasks.iter().zip(results) {
        for (what, why) in result.unwrap_or_else(|e| vec![("task", e.to_string())]) {
            *counts.entry(what).or_default() += 1;
            found.push((task.instance_id.as_str(), what, why));
        }
    }
    let failed = found.iter().filter(|(_, what, _)| !what.starts_with("gold_")).count();
    if args.json {
        let list: Vec<_> = found.iter().map(|(id, what, why)| json!({ "instance_id": id, "check": what, "finding": why })).collect();
        json_line(&json!({ "tasks": tasks.len(), "counts": counts, "findings": list }))?;
    } else {
        to_stdout(|out| {
            found.iter().try_for_each(|(id, what, why)| writeln!(out, "{id}  {what}: {why}"))?;
            let said: Vec<String> = counts.iter().map(|(what, n)| format!("{what} {n}")).collect();
            writeln!(out, "{} tasks checked; findings: {}", tasks.len(), if said.is_empty() { "none".to_owned() } else { said.join(", ") })
        })?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Error::input(format!("{n} checks of gold answers failed"))),
    }
}
