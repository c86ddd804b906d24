//! `reward --kind similarity` and `--kind unidiff`: SWE-RL's rewards.
//!
//! Lines are read as they come, as many at a time as are there, and judged in parallel; what is written keeps their order. Lines of a
//! batch with the same gold side (a group of answers to one question) share its index.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::io::{self, BufRead, Read};

use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::data::difflib::{PyText, Scratch, json_string};
use crate::data::lines;
use crate::data::patch_similarity::{Files, Judgement, Oracle, Rule, unidiff_changes};
use crate::error::json_message;
use crate::{Error, Result};

/// The most lines of a batch.
const BATCH: usize = 256;

/// What the lines hold.
#[derive(Clone, Copy)]
pub(super) enum Cases {
    /// Answers with edit blocks, and the contents that they are about.
    Answers(Rule),
    /// Unified diffs.
    Diffs,
}

#[derive(Deserialize)]
struct AnswerCase {
    code_context: Files,
    oracle_new_content: Files,
    completion: PyText,
}

#[derive(Deserialize)]
struct DiffCase {
    oracle_patches: Vec<PyText>,
    predicted_patches: Vec<PyText>,
}

/// The gold side of a case.
#[derive(PartialEq, Eq, Hash)]
enum Gold {
    Contents(Files, Files),
    Diffs(Vec<PyText>),
}

/// A case as it was read: its gold side, and what is judged by it.
struct Case {
    gold: Gold,
    predicted: Predicted,
}

enum Predicted {
    Completion(PyText),
    Diffs(Vec<PyText>),
}

impl Cases {
    fn read(self, line: &[u8]) -> Result<Case> {
        Ok(match self {
            Cases::Answers(_) => {
                let case: AnswerCase = parse(line)?;
                let gold = Gold::Contents(case.code_context, case.oracle_new_content);
                Case { gold, predicted: Predicted::Completion(case.completion) }
            }
            Cases::Diffs => {
                let case: DiffCase = parse(line)?;
                Case { gold: Gold::Diffs(case.oracle_patches), predicted: Predicted::Diffs(case.predicted_patches) }
            }
        })
    }

    fn judge(self, gold: &Gold, oracle: &Oracle, predicted: &Predicted, scratch: &mut Scratch) -> Judgement {
        match (self, gold, predicted) {
            (Cases::Answers(rule), Gold::Contents(context, _), Predicted::Completion(text)) => {
                oracle.judge(context, text.as_bytes(), rule, scratch)
            }
            (_, _, Predicted::Diffs(texts)) => oracle.compare(changes(texts), Rule::Continuous, scratch),
            // A case is read with both sides of one kind.
            (_, _, Predicted::Completion(_)) => Judgement::default(),
        }
    }
}

impl Gold {
    fn oracle(&self) -> Oracle {
        match self {
            Gold::Contents(context, new) => Oracle::from_contents(context, new),
            Gold::Diffs(texts) => Oracle::new(changes(texts)),
        }
    }
}

fn changes(texts: &[PyText]) -> BTreeMap<PyText, Vec<u8>> {
    unidiff_changes(texts.iter().map(PyText::as_bytes))
}

/// Reads a line as Python's `json` would: lone surrogates are allowed, control characters in strings are not. (A key that is there twice
/// is refused.)
fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    let wrong = |e: serde_json::Error| Error::input(format!("expected a JSON object: {}", json_message(&e)));
    let line = lines::trim(line);
    std::str::from_utf8(line).map_err(|e| Error::input(format!("not UTF-8 from byte {} on", e.valid_up_to())))?;
    serde_json::from_slice::<IgnoredAny>(line).map_err(wrong)?;
    lines::object(line)
}

/// Judges all lines; `write(number, result)` gets each result, in order, and a flush with `None` after each batch. What goes wrong with the
/// input is given back, what goes wrong with the output is the error.
pub(super) fn judge_lines(
    input: Box<dyn Read>,
    cases: Cases,
    write: &mut dyn FnMut(Option<(usize, Result<String>)>) -> io::Result<()>,
) -> io::Result<Option<io::Error>> {
    let mut input = io::BufReader::with_capacity(1 << 20, input);
    let mut number = 0;
    loop {
        let (lines, error) = read_batch(&mut input, &mut number);
        if !lines.is_empty() {
            for (number, result) in judge_batch(&lines, cases) {
                write(Some((number, result)))?;
            }
            write(None)?;
        }
        if error.is_some() || lines.is_empty() {
            return Ok(error);
        }
    }
}

/// The next lines that are not empty, with their numbers: at least one unless the input ends, and then those that need no waiting.
fn read_batch(input: &mut io::BufReader<Box<dyn Read>>, number: &mut usize) -> (Vec<(usize, Vec<u8>)>, Option<io::Error>) {
    let mut lines = Vec::new();
    while lines.is_empty() || (lines.len() < BATCH && input.buffer().contains(&b'\n')) {
        let mut line = Vec::new();
        match input.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => *number += 1,
            Err(e) => return (lines, Some(e)),
        }
        if !line.trim_ascii().is_empty() {
            lines.push((*number, line));
        }
    }
    (lines, None)
}

fn judge_batch(lines: &[(usize, Vec<u8>)], cases: Cases) -> Vec<(usize, Result<String>)> {
    let read: Vec<Result<Case>> = lines.par_iter().map(|(_, line)| cases.read(line.trim_ascii())).collect();
    // Which gold side each case has, as an index into those that differ.
    let (mut golds, mut seen) = (Vec::new(), HashMap::new());
    for case in read.iter().flatten() {
        if let Entry::Vacant(entry) = seen.entry(&case.gold) {
            entry.insert(golds.len());
            golds.push(&case.gold);
        }
    }
    let oracles: Vec<Oracle> = golds.par_iter().map(|gold| gold.oracle()).collect();
    let judge = |scratch: &mut Scratch, case: &Case| {
        let oracle = &oracles[seen[&case.gold]];
        to_json(&cases.judge(&case.gold, oracle, &case.predicted, scratch))
    };
    let judged: Vec<Option<String>> =
        read.par_iter().map_init(Scratch::default, |scratch, case| case.as_ref().ok().map(|case| judge(scratch, case))).collect();
    let results = read.into_iter().zip(judged).map(|(read, judged)| read.map(|_| judged.unwrap_or_default()));
    lines.iter().map(|(number, _)| *number).zip(results).collect()
}

/// The result's line. Written by hand, since a text may hold lone surrogates, which serde_json has no way to write.
fn to_json(judgement: &Judgement) -> String {
    let files = judgement.files.iter().map(|f| {
        let (path, predicted, oracle) = (json_string(f.path.as_bytes()), json_string(&f.predicted), json_string(&f.oracle));
        let similarity = json!(f.similarity);
        format!(r#"{{"path":{path},"similarity":{similarity},"pred_change":{predicted},"oracle_change":{oracle}}}"#)
    });
    let mut parts = Vec::new();
    if judgement.error.is_none() {
        parts.push(format!(r#""similarities":[{}]"#, files.collect::<Vec<_>>().join(",")));
    }
    for (name, text) in [("thought", &judgement.thought), ("answer", &judgement.answer)] {
        if !text.as_bytes().is_empty() {
            parts.push(format!(r#""{name}":{}"#, json_string(text.as_bytes())));
        }
    }
    format!(r#"{{"reward":{},"parts":{{{}}},"error":{}}}"#, json!(judgement.reward), parts.join(","), json!(judgement.error))
}
