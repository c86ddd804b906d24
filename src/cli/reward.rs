//! `reward`: scores answers by rule, one JSON object a line in, one out.

mod similarity;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use self::similarity::Cases;
use super::output::{plural, say, to_stdout};
use crate::data::metrics::{BETA, ScoreKind, SetScore};
use crate::data::patch_similarity::Rule;
use crate::data::subtask::answer::{Gold, Place, Universe};
use crate::data::subtask::file;
use crate::data::{Task, ground_truth, lines};
use crate::{Error, Result};

/// Score answers by rule: JSON lines in, one line out for each.
///
/// A line is {"task": {...}, "completion": "...", "prompt": "..."}; the prompt is optional, and where it is given an answer may name what
/// it shows: paths, or code under lines `### path`. Without one it may name all paths of the task, or all code of its files. Out comes
/// {"reward", "parts": {"precision", "recall", "answers", "gold", "valid"}, "error"},
/// where error says why an answer earns nothing. A line that cannot be read gives {"error", "line"}, and status 1 at the end.
///
/// For --kind similarity a line is {"code_context": {path: text}, "oracle_new_content": {path: text}, "completion": "..."}, for --kind unidiff
/// {"oracle_patches": ["..."], "predicted_patches": ["..."]}; parts then has the similarity of each file. A completion of similarity is
/// <think> thoughts </think> <solution> edit blocks </solution>, each of the four tags exactly once, else it earns -1.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What the answers are
    #[arg(long, value_enum)]
    kind: Kind,
    /// Which number of an answer is its reward
    #[arg(long, value_enum, default_value_t = Score::Fbeta)]
    score: Score,
    /// How much more recall weighs than precision in F-beta
    #[arg(long, default_value_t = BETA, value_parser = beta, allow_negative_numbers = true)]
    beta: f64,
    /// For --kind similarity: 1 for the gold patches exactly, else 0
    #[arg(long)]
    discrete: bool,
    /// Where the lines come from; `-` is stdin, which is the default
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// Accepted on every command: the output is JSON with and without it
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// File localisation: paths, one a line
    File,
    /// Function localisation: `function: Class.method`, `class: Name` or `module:` after their path
    Function,
    /// Line localisation: `line: N` or `line: N-M` after their path
    Line,
    /// SEARCH/REPLACE blocks, a fence each
    Edit,
    /// SWE-RL's similarity of the answer's patch to the gold patch
    Similarity,
    /// The same for answers that are unified diffs
    Unidiff,
}

#[derive(Clone, Copy, ValueEnum)]
enum Score {
    /// F-beta of the answered set
    Fbeta,
    /// F-beta with beta 1
    F1,
    /// 1 for the gold set, else 0
    Exact,
    /// 1 for any gold element, else 0
    Hit,
}

impl From<Score> for ScoreKind {
    fn from(score: Score) -> Self {
        match score {
            Score::Fbeta => Self::Fbeta,
            Score::F1 => Self::F1,
            Score::Exact => Self::Exact,
            Score::Hit => Self::Hit,
        }
    }
}

fn beta(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|b: &f64| (0.0..=100.0).contains(b)).ok_or_else(|| "expected a number from 0 to 100".to_owned())
}

/// Runs the command.
pub(super) fn run(args: Args) -> Result<()> {
    let rule = if args.discrete { Rule::Discrete } else { Rule::Continuous };
    let cases = match args.kind {
        Kind::Similarity => Some(Cases::Answers(rule)),
        _ if args.discrete => return Err(Error::usage("--discrete goes with --kind similarity")),
        Kind::Unidiff => Some(Cases::Diffs),
        Kind::File | Kind::Function | Kind::Line | Kind::Edit => None,
    };
    let input: Box<dyn Read> = match args.input.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => Box::new(File::open(path).map_err(|e| Error::io("read", path, e))?),
        None => Box::new(io::stdin()),
    };
    let place = args.input.as_deref().unwrap_or(Path::new("stdin"));
    // A line that cannot be read must not cost the others: failures are counted, and told at the end.
    let (mut failed, mut first, mut broken_input) = (0usize, None, None);
    // Lines whose gold sets are not whole, and the first of them with a file that is missing.
    let (mut partial, mut missing) = (0usize, None);
    let mut failure = |number: usize, e: Error| {
        failed += 1;
        first.get_or_insert(number);
        json!({ "error": e.to_string().replace("\n  ", "; "), "line": number })
    };
    to_stdout(|out| {
        let input_error = match cases {
            Some(cases) => similarity::judge_lines(input, cases, &mut |result| match result {
                Some((_, Ok(line))) => writeln!(out, "{line}"),
                Some((number, Err(e))) => writeln!(out, "{}", failure(number, e)),
                // Whoever feeds lines one by one waits for each answer.
                None => out.flush(),
            }),
            None => score_lines(Box::new(BufReader::new(input)), out, &mut |number, line| {
                let (value, unknown) = match reward(line, args.kind, args.score.into(), args.beta) {
                    Ok(scored) => scored,
                    Err(e) => (failure(number, e), None),
                };
                if let Some(path) = unknown {
                    partial += 1;
                    missing.get_or_insert((number, path));
                }
                value
            }),
        };
        input_error.map(|input_error| broken_input = input_error)
    })?;
    if let Some((line, path)) = missing {
        let tasks = plural(partial as u64, "line");
        say!("{tasks} with changed files that `files` lacks, which are left out of the gold set; the first is line {line}: {path}");
    }
    match (broken_input, first) {
        (Some(e), _) => Err(Error::io("read", place, e)),
        (None, Some(line)) => {
            Err(Error::input(format!("{} could not be read, the first of them line {line}", plural(failed as u64, "line"))).at_file(place))
        }
        (None, None) => Ok(()),
    }
}

/// Writes `score(number, line)` for each line that is not empty. What goes wrong with the input is given back, what goes wrong with the
/// output is the error.
fn score_lines(
    mut input: Box<dyn BufRead>,
    out: &mut dyn Write,
    score: &mut dyn FnMut(usize, &[u8]) -> Value,
) -> io::Result<Option<io::Error>> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        match input.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.trim_ascii().is_empty() => {}
            Ok(_) => {
                writeln!(out, "{}", score(number, &line))?;
                // Whoever feeds lines one by one waits for each answer.
                out.flush()?;
            }
            Err(e) => return Ok(Some(e)),
        }
    }
    Ok(None)
}

fn score_files(task: &Task, prompt: Option<&str>, completion: &str) -> Result<(SetScore, Option<String>)> {
    let gold = task.gold().map_err(|e| e.at("field `task`"))?;
    if gold.is_empty() {
        return Err(Error::input("the task has no gold file: its patch changes none that is there at the base").at("field `task`"));
    }
    Ok(file::score(completion, &file::universe(task, prompt), &gold))
}

fn score_places(task: &Task, place: Place, prompt: Option<&str>, completion: &str) -> Result<(SetScore, Option<String>)> {
    let gold = Gold::new(task, place).map_err(|e| e.at("field `task`"))?;
    Ok(gold.score(completion, &Universe::new(task, prompt)))
}

/// Scores one case. Beside it: a file that is left out of the gold set, as its content is not known.
fn reward(line: &[u8], kind: Kind, score_kind: ScoreKind, beta: f64) -> Result<(Value, Option<String>)> {
    let mut case: Map<String, Value> = lines::object(line)?;
    let task = case.shift_remove("task").ok_or_else(|| Error::input("expected a task, found nothing").at("field `task`"))?;
    let task = Task::from_json(task).map_err(|e| e.at("field `task`"))?;
    let text = |field: &str| match case.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.as_str())),
        Some(_) => Err(Error::input("expected a string").at(format_args!("field `{field}`"))),
    };
    let completion = text("completion")?.ok_or_else(|| Error::input("expected a string, found nothing").at("field `completion`"))?;
    let prompt = text("prompt")?;
    let (score, reason) = match kind {
        Kind::Function => score_places(&task, Place::Function, prompt, completion)?,
        Kind::Line => score_places(&task, Place::Line, prompt, completion)?,
        Kind::Edit => score_places(&task, Place::Edit, prompt, completion)?,
        Kind::File | Kind::Similarity | Kind::Unidiff => score_files(&task, prompt, completion)?,
    };
    let unknown = match kind {
        Kind::Function | Kind::Line | Kind::Edit => ground_truth::unknown_files(&task)?.pop_first(),
        Kind::File | Kind::Similarity | Kind::Unidiff => None,
    };
    let value = json!({
        "reward": score.reward(score_kind, beta),
        "parts": {
            "precision": score.precision(),
            "recall": score.recall(),
            "answers": score.answers,
            "gold": score.gold,
            "valid": score.valid,
        },
        "error": reason,
    });
    Ok((value, unknown))
}
