//! The second look at a commit: its contents, and the task that they make.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::change::{self, ChangedFile, Content, RawChange, read_changes};
use super::repository::Repository;
use super::scan::Scanned;
use super::{MineOptions, Skip, candidates};
use crate::Result;
use crate::data::Task;
use crate::data::patch::Patch;
use crate::data::paths::{Role, role};

/// The commit's task, or why it gives none. `history` are the commits before it in the walk, the newest first.
pub(super) fn build(
    repository: &Repository,
    scanned: &Scanned,
    history: &[Scanned],
    repo: &str,
    options: &MineOptions,
) -> Result<Result<Task, Skip>> {
    let commit = &scanned.commit;
    let statement = match &scanned.verdict {
        Ok(statement) => statement,
        Err(skip) => return Ok(Err(*skip)),
    };
    // `scan` has made sure of both.
    let (Some(parent), Some(base)) = (commit.parents.first(), scanned.base) else { return Ok(Err(Skip::Root)) };
    let (sources, others): (Vec<_>, Vec<_>) = scanned.changes.iter().cloned().partition(|c| options.is_source(&c.path) && c.is_file());
    let sources = match read_sources(repository, &sources, options)? {
        Ok(sources) => sources,
        Err(skip) => return Ok(Err(skip)),
    };
    if sources.iter().all(ChangedFile::changes_line_ends_alone) {
        return Ok(Err(Skip::NoLines));
    }
    let patch = change::write_patch(&sources);
    if let Some(skip) = by_lines(&patch, options.max_lines)? {
        return Ok(Err(skip));
    }
    let id = format!("{}-{}", repo.replace('/', "__"), &commit.id.to_string()[..10]);
    let gold: BTreeSet<String> = sources.iter().filter_map(ChangedFile::base_path).collect();
    let listing = repository.files(base, &|p| options.is_source(p))?;
    let related = changed_together(&gold, history);
    let Some((files, all_paths)) = candidates::choose(repository, &listing, &gold, &related, &id, options)? else {
        return Ok(Err(Skip::NoChoice));
    };
    let tests: Vec<_> = others.into_iter().filter(|c| role(&c.path) == Role::Test && c.is_file()).collect();
    let tests = read_changes(repository, &tests, options.max_bytes / 2)?;
    let tests: Vec<_> = tests.into_iter().filter(|c| c.content() == Content::Text).collect();
    let mut extra = Map::new();
    let source = if statement.issues.is_empty() { "commit message" } else { "issue" };
    extra.insert("problem_source".to_owned(), Value::from(source));
    if !statement.issues.is_empty() {
        extra.insert("issue_numbers".to_owned(), Value::from(statement.issues.clone()));
    }
    Ok(Ok(Task {
        instance_id: id,
        repo: repo.to_owned(),
        base_commit: parent.to_string(),
        fix_commit: Some(commit.id.to_string()),
        created_at: Some(commit.time.clone()),
        problem_statement: statement.text.clone(),
        test_patch: change::write_patch(&tests),
        patch,
        gold_files: Some(gold.into_iter().collect()),
        files,
        all_paths,
        extra,
        ..Task::default()
    }))
}

/// The changed sources with their contents, or why they are no task.
fn read_sources(repository: &Repository, raw: &[RawChange], options: &MineOptions) -> Result<Result<Vec<ChangedFile>, Skip>> {
    let limit = options.max_bytes / 2;
    if raw.is_empty() {
        return Ok(Err(Skip::NoSource));
    }
    // A move is one file and two raw changes; what cannot get below the limit by moves is not read.
    if raw.len() > options.max_files.saturating_mul(2) {
        return Ok(Err(Skip::ManyFiles));
    }
    let sources = change::find_moves(read_changes(repository, raw, limit)?);
    let any = |content| sources.iter().any(|c| c.content() == content);
    let skip = if any(Content::Binary) {
        Some(Skip::Binary)
    } else if sources.iter().all(|c| c.base_path().is_none()) {
        Some(Skip::AddsOnly)
    } else if sources.len() > options.max_files {
        Some(Skip::ManyFiles)
    } else if any(Content::OtherEncoding) || raw.iter().any(|c| c.path.contains('\u{FFFD}')) {
        Some(Skip::Encoding)
    } else if any(Content::TooLarge) || sources.iter().map(ChangedFile::old_len).sum::<usize>() > limit {
        Some(Skip::Large)
    } else {
        None
    };
    Ok(skip.map_or(Ok(sources), Err))
}

/// Why a patch of so many lines is no task.
fn by_lines(patch: &str, most: usize) -> Result<Option<Skip>> {
    Ok(match Patch::parse(patch)?.changed_lines() {
        0 => Some(Skip::NoLines),
        n if n > most => Some(Skip::ManyLines),
        _ => None,
    })
}

/// The files that changed together with one of `gold` in earlier commits: the most often first, equal ones in alphabetical order.
fn changed_together<'a>(gold: &BTreeSet<String>, history: &'a [Scanned]) -> Vec<&'a str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for commit in history.iter().filter(|c| c.together.iter().any(|p| gold.contains(p))) {
        for path in commit.together.iter().filter(|p| !gold.contains(*p)) {
            *counts.entry(path).or_default() += 1;
        }
    }
    let mut paths: Vec<&str> = counts.keys().copied().collect();
    paths.sort_by_key(|p| Reverse(counts[p]));
    paths
}
