//! The families of task files: which fields each has, and how its rows become tasks.

use std::path::Path;

use serde_json::{Map, Value};

use super::{multi_swe_bench, swe_bench};
use crate::data::Task;
use crate::data::patch::{Patch, reverse};
use crate::{Error, Result};

/// A family of task files, named after the first that had its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// SWE-bench's fields, of which only a name, an issue's text and a patch are asked for; this project's own files are of it.
    SweBench,
    /// SWE-Gym: SWE-bench's fields, with the tests as lists.
    SweGym,
    /// SWE-rebench and SWE-bench-extra: SWE-bench's fields, lists of tests, and `meta`.
    SweRebench,
    /// SWE-smith: the patch makes the bug, so the fix is its reverse; the issue's text may be missing.
    SweSmith,
    /// Multi-SWE-bench and Multi-SWE-RL.
    MultiSweBench,
}

/// What a field has to be.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Tests,
    Object,
}

use Form::{Object, Tests, Text};

/// What [`read`] gives.
pub struct Imported {
    /// The tasks, in the order of the file.
    pub tasks: Vec<Task>,
    /// How many rows the file has.
    pub rows: usize,
    /// How many rows were left out because they have no issue's text (SWE-smith's alone may).
    pub without_issue: usize,
}

impl Family {
    /// The fields that every row of the family has.
    fn fields(self) -> &'static [(&'static str, Form)] {
        match self {
            Self::SweBench | Self::MultiSweBench => &[],
            Self::SweGym => &[
                ("instance_id", Text),
                ("repo", Text),
                ("base_commit", Text),
                ("patch", Text),
                ("test_patch", Text),
                ("problem_statement", Text),
                ("FAIL_TO_PASS", Tests),
                ("PASS_TO_PASS", Tests),
            ],
            Self::SweRebench => &[
                ("instance_id", Text),
                ("repo", Text),
                ("base_commit", Text),
                ("patch", Text),
                ("test_patch", Text),
                ("problem_statement", Text),
                ("FAIL_TO_PASS", Tests),
                ("PASS_TO_PASS", Tests),
                ("meta", Object),
            ],
            Self::SweSmith => &[
                ("instance_id", Text),
                ("repo", Text),
                ("patch", Text),
                ("FAIL_TO_PASS", Tests),
                ("PASS_TO_PASS", Tests),
                ("image_name", Text),
            ],
        }
    }
}

/// Reads a task file of `family`: JSON lines or a JSON list, gzipped or not, or parquet.
///
/// # Errors
///
/// As of [`swe_bench::read`]; a field of the family that is missing or of another type, named with its line or row.
pub fn read(path: &Path, family: Family) -> Result<Imported> {
    let (mut rows, mut without_issue) = (0, 0);
    let tasks = swe_bench::read_with(path, |value| {
        rows += 1;
        check_fields(&value, family.fields())?;
        match family {
            Family::MultiSweBench => multi_swe_bench::convert(value).map(Some),
            Family::SweSmith => {
                let task = turned(value)?;
                let has_issue = !task.problem_statement.trim().is_empty();
                without_issue += usize::from(!has_issue);
                Ok(has_issue.then_some(task))
            }
            _ => Task::from_json(value).map(Some),
        }
    })
    .map_err(|e| if without_issue > 0 && without_issue == rows { e.hint("no row has an issue's text (problem_statement)") } else { e })?;
    Ok(Imported { tasks, rows, without_issue })
}

fn check_fields(value: &Value, fields: &[(&str, Form)]) -> Result<()> {
    let none = Map::new();
    let map = value.as_object().unwrap_or(&none);
    for &(name, form) in fields {
        let found = map.get(name).unwrap_or(&Value::Null);
        let (fits, expected) = match form {
            Text => (found.is_string(), "a text"),
            // A few re-uploads hold the list as a string, as SWE-bench does; reading it checks what is inside.
            Tests => (found.is_array() || found.is_string(), "a list of test names"),
            Object => (found.is_object() || found.is_string(), "an object"),
        };
        if !fits {
            let what = if found.is_null() { "nothing".to_owned() } else { format!("`{}`", shortened(found)) };
            let hint = "is the file of this family? see --format in `data import --help`";
            return Err(Error::input(format!("expected {expected}, found {what}")).at(format_args!("field `{name}`")).hint(hint));
        }
    }
    Ok(())
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text }
}

/// A row of SWE-smith as a task: the gold patch is the reverse of the one that makes the bug, which is kept as `bug_patch`. The base of
/// the gold patch is `base_commit` with `bug_patch` applied.
fn turned(value: Value) -> Result<Task> {
    let mut task = Task::from_json(value)?;
    Patch::parse(&task.patch).map_err(|e| e.at("field `patch`"))?;
    let fix = reverse(&task.patch);
    task.extra.insert("bug_patch".to_owned(), Value::from(std::mem::replace(&mut task.patch, fix)));
    Ok(task)
}
