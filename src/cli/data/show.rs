//! `data show`: one task, or the prompt that is made of it.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use crate::cli::output::{json_line, say, to_stdout};
use crate::data::Task;
use crate::data::source::swe_bench;
use crate::data::subtask::edit::EditSubtask;
use crate::data::subtask::evidence::Evidence;
use crate::data::subtask::file::{FileOptions, FileSubtask, Order, Universe};
use crate::data::subtask::function::FunctionSubtask;
use crate::data::subtask::line::LineSubtask;
use crate::data::subtask::matches::MatchOptions;
use crate::data::subtask::view::ViewOptions;
use crate::{Error, Result};

/// Show a task, or the prompt that is made of it (--prompt).
#[derive(clap::Args)]
pub(super) struct Args {
    /// The file that holds the task
    file: PathBuf,
    /// The task's instance_id
    id: String,
    /// Show the prompt of a subtask and its gold answer
    #[arg(long)]
    prompt: bool,
    /// Which subtask's
    #[arg(long, value_enum, default_value_t = Shown::File)]
    subtask: Shown,
    /// Which paths the prompt lists
    #[arg(long, value_enum, default_value_t = Paths::Files)]
    paths: Paths,
    /// In which order the candidates stand: alphabetical, shuffled, lexical, lexical_paths, or fused
    #[arg(long, default_value = "alphabetical")]
    order: Order,
    /// What the prompt says of each path: `paths` for nothing, or, with commas, `names` and one of `score`, `rank`, `words`
    #[arg(long, default_value = "paths")]
    evidence: Evidence,
    /// How many files (from a list: definitions) an answer is to name, as `prompt.answers`
    #[arg(long, value_name = "N", default_value_t = 0)]
    answers: usize,
    /// What is close to the best, as `prompt.close`
    #[arg(long, value_name = "PART", default_value_t = 0.0)]
    close: f64,
    /// How many definitions a function prompt lists, as `prompt.definitions`
    #[arg(long, value_name = "N", default_value_t = 0)]
    definitions: usize,
    /// The most tokens of the prompt, a token counted as four bytes
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// A template in place of the built-in one
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// The key of random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Show it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shown {
    /// Which files must be changed
    File,
    /// Which functions and classes
    Function,
    /// Which lines
    Line,
    /// The change itself
    Edit,
}

#[derive(Clone, Copy, ValueEnum)]
enum Paths {
    /// Those whose contents the task holds
    Files,
    /// The whole tree
    Tree,
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let tasks = swe_bench::read(&args.file)?;
    let Some(task) = tasks.iter().find(|t| t.instance_id == args.id) else {
        let nearest = tasks.iter().max_by(|a, b| likeness(a, &args.id).total_cmp(&likeness(b, &args.id)));
        let hint = nearest.map_or(String::new(), |t| format!("the nearest is `{}`", t.instance_id));
        return Err(Error::input(format!("no task has the instance_id `{}`", args.id)).at_file(&args.file).hint(hint));
    };
    if args.prompt {
        let template = match &args.template {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?),
            None => None,
        };
        return match args.subtask {
            Shown::File => show_prompt(task, &args, template),
            place => show_place_prompt(task, &args, place, template),
        };
    }
    if args.json {
        return json_line(&task.to_json());
    }
    let gold = task.gold()?;
    to_stdout(|out| {
        writeln!(out, "{}  {}  base {}  {}", task.instance_id, task.repo, task.base_commit, task.created_at.as_deref().unwrap_or(""))?;
        writeln!(out, "gold: {}", gold.iter().map(String::as_str).collect::<Vec<_>>().join(", "))?;
        writeln!(out, "{} files with contents, {} paths\n", task.files.len(), task.all_paths.len())?;
        writeln!(out, "{}\n\n{}", task.problem_statement.trim(), task.patch.trim_end())
    })
}

fn likeness(task: &Task, id: &str) -> f64 {
    strsim::jaro_winkler(&task.instance_id, id)
}

/// Tokens of a text, as far as they are known without a model.
fn count(text: &str) -> usize {
    text.len().div_ceil(4)
}

fn show_place_prompt(task: &Task, args: &Args, place: Shown, template: Option<String>) -> Result<()> {
    let matches = MatchOptions { listed: args.definitions, answers: args.answers, close: args.close };
    let max_tokens = args.max_tokens.unwrap_or(usize::MAX);
    let options = ViewOptions { max_tokens, seed: args.seed, template, matches, ..ViewOptions::default() };
    let prompt = match place {
        Shown::Line => LineSubtask::new(options)?.prompt(task, &count)?,
        Shown::Edit => EditSubtask::new(options)?.prompt(task, &count)?,
        Shown::File | Shown::Function => FunctionSubtask::new(options)?.prompt(task, &count)?,
    };
    let (asked, cut) = (&prompt.asked, prompt.asked.cut);
    if args.json {
        return json_line(&json!({
            "prompt": asked.text, "answer": prompt.answer, "tokens": asked.tokens,
            "cut": {"issue_bytes": [cut.issue_bytes.0, cut.issue_bytes.1], "units": [cut.units.0, cut.units.1], "piece_lines": cut.piece_lines},
        }));
    }
    to_stdout(|out| writeln!(out, "{}\n\n---- gold answer\n{}", asked.text, prompt.answer))?;
    let pieces = cut.piece_lines.map_or(String::new(), |n| format!("; definitions are cut into pieces of at most {n} lines"));
    say!(
        "about {} tokens; shown: {} of {} bytes of the issue; left out: {} of {} units of code{pieces}",
        asked.tokens,
        cut.issue_bytes.0,
        cut.issue_bytes.1,
        cut.units.0,
        cut.units.1
    );
    Ok(())
}

fn show_prompt(task: &Task, args: &Args, template: Option<String>) -> Result<()> {
    let options = FileOptions {
        universe: match args.paths {
            Paths::Files => Universe::Files,
            Paths::Tree => Universe::Tree,
        },
        order: args.order,
        evidence: args.evidence,
        answers: args.answers,
        close: args.close,
        max_tokens: args.max_tokens.unwrap_or(usize::MAX),
        seed: args.seed,
        template,
        ..FileOptions::default()
    };
    let prompt = FileSubtask::new(options)?.prompt(task, &count)?;
    let cut = prompt.cut;
    if args.json {
        return json_line(&json!({
            "prompt": prompt.text, "answer": prompt.answer, "candidates": prompt.candidates, "gold": prompt.gold, "tokens": prompt.tokens,
            "cut": {
                "issue_bytes": [cut.issue_bytes.0, cut.issue_bytes.1], "evidence": [cut.evidence.0, cut.evidence.1],
                "paths": [cut.paths.0, cut.paths.1], "gold_missing": cut.gold_missing,
            },
        }));
    }
    to_stdout(|out| writeln!(out, "{}\n\n---- gold answer\n{}", prompt.text, prompt.answer))?;
    say!(
        "about {} tokens; shown: {} of {} bytes of the issue; left out: {} of {} pieces of evidence, {} of {} paths; {} gold paths missing",
        prompt.tokens,
        cut.issue_bytes.0,
        cut.issue_bytes.1,
        cut.evidence.0,
        cut.evidence.1,
        cut.paths.0,
        cut.paths.1,
        cut.gold_missing
    );
    Ok(())
}
