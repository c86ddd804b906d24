//! Tasks from a repository's own history: every suitable commit is a resolved issue, its message the text, its diff the gold
//! patch, its parent the base.
//!
//! What is mined is a function of the history, the options and the repository's name alone: no clock, no configuration of the user,
//! no order of a hash map. Each commit that is not taken is counted under the first [`Skip`] that holds for it.

mod candidates;
mod change;
mod message;
mod repository;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use serde_json::{Map, Value};

use self::change::{ChangedFile, Content, read_changes};
use self::repository::{Commit, Repository};
use crate::data::Task;
use crate::data::patch::Patch;
use crate::data::paths::{Role, role};
use crate::data::random::hash;
use crate::{Error, Result};

/// Which commits are taken and what goes into their tasks.
#[derive(Clone, Debug)]
pub struct MineOptions {
    /// The repository's name in the tasks; by default `owner/name` of the remote `origin`, else the folder's name.
    pub name: Option<String>,
    /// Walk the commits of merged branches too, not the first parents alone.
    pub all_parents: bool,
    /// Take at most this many tasks, the newest.
    pub max_tasks: usize,
    /// The most source files a commit may change.
    pub max_files: usize,
    /// The most lines a commit may delete and insert in source files.
    pub max_lines: usize,
    /// The most bytes of contents in a task. The gold files may take half of it, and so may any other file.
    pub max_bytes: usize,
    /// The fewest characters of a commit message, trailers taken off.
    pub min_message: usize,
    /// How many files beside the gold ones a task gets.
    pub distractors: usize,
    /// The most entries of `all_paths`.
    pub max_paths: usize,
    /// Take commits by bots.
    pub keep_bots: bool,
    /// Take reverts.
    pub keep_reverts: bool,
    /// Take releases and version bumps.
    pub keep_releases: bool,
    /// Count documentation as source.
    pub keep_docs: bool,
    /// The key of the random choice of files beside the gold ones.
    pub seed: u64,
}

impl Default for MineOptions {
    fn default() -> Self {
        Self {
            name: None,
            all_parents: false,
            max_tasks: usize::MAX,
            max_files: 5,
            max_lines: 200,
            max_bytes: 300_000,
            min_message: 20,
            distractors: 18,
            max_paths: 600,
            keep_bots: false,
            keep_reverts: false,
            keep_releases: false,
            keep_docs: false,
            seed: 0,
        }
    }
}

/// Why a commit gives no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// The first commit has no parent to be a base.
    Root,
    /// A merge has several parents and no change of its own.
    Merge,
    /// The parent is beyond the border of a shallow clone.
    Shallow,
    /// Written by a bot.
    Bot,
    /// The message is not UTF-8.
    MessageEncoding,
    /// Undoes another commit.
    Revert,
    /// A release or a change of version.
    Release,
    /// The message is too short to say what is wrong.
    ShortMessage,
    /// Nothing changes.
    Empty,
    /// More files change than a fix changes.
    Huge,
    /// Only lock files change.
    LockOnly,
    /// Only documentation changes.
    DocsOnly,
    /// Only tests change.
    TestsOnly,
    /// No source file changes (settings, data, generated code, submodules).
    NoSource,
    /// The changed sources are binary.
    Binary,
    /// Sources are only added: there is nothing at the base to be found.
    AddsOnly,
    /// Too many source files change.
    ManyFiles,
    /// A changed source, or a path, is not UTF-8.
    Encoding,
    /// The changed sources are too large.
    Large,
    /// No line of a source changes (a mode, or a move).
    NoLines,
    /// Too many lines change.
    ManyLines,
    /// There is no other source file to choose from.
    NoChoice,
    /// The same change as that of a commit taken before (a cherry-pick).
    Duplicate,
}

impl Skip {
    /// All reasons, in the order in which they are asked.
    pub const ALL: [Self; 23] = [
        Self::Root,
        Self::Merge,
        Self::Shallow,
        Self::Bot,
        Self::MessageEncoding,
        Self::Revert,
        Self::Release,
        Self::ShortMessage,
        Self::Empty,
        Self::Huge,
        Self::LockOnly,
        Self::DocsOnly,
        Self::TestsOnly,
        Self::NoSource,
        Self::Binary,
        Self::AddsOnly,
        Self::ManyFiles,
        Self::Encoding,
        Self::Large,
        Self::NoLines,
        Self::ManyLines,
        Self::NoChoice,
        Self::Duplicate,
    ];

    /// The reason's name in JSON, and in words.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Root => ("root", "has no parent"),
            Self::Merge => ("merge", "is a merge"),
            Self::Shallow => ("shallow", "has its parent beyond the border of the shallow clone"),
            Self::Bot => ("bot", "was written by a bot"),
            Self::MessageEncoding => ("message_encoding", "has a message that is not UTF-8"),
            Self::Revert => ("revert", "reverts another commit"),
            Self::Release => ("release", "makes a release or changes the version"),
            Self::ShortMessage => ("short_message", "has too short a message (--min-message)"),
            Self::Empty => ("empty", "changes nothing"),
            Self::Huge => ("huge", "changes hundreds of files"),
            Self::LockOnly => ("lock_only", "changes lock files only"),
            Self::DocsOnly => ("docs_only", "changes documentation only"),
            Self::TestsOnly => ("tests_only", "changes tests only"),
            Self::NoSource => ("no_source", "changes no source file"),
            Self::Binary => ("binary", "changes binary files"),
            Self::AddsOnly => ("adds_only", "adds files only: nothing at the base to be found"),
            Self::ManyFiles => ("many_files", "changes too many source files (--max-files)"),
            Self::Encoding => ("encoding", "changes a file that is not UTF-8"),
            Self::Large => ("large", "changes files that are too large (--max-bytes)"),
            Self::NoLines => ("no_lines", "changes no line of a source file"),
            Self::ManyLines => ("many_lines", "changes too many lines (--max-lines)"),
            Self::NoChoice => ("no_choice", "leaves no other source file to choose from"),
            Self::Duplicate => ("duplicate", "makes the change of another commit again"),
        }
    }
}

/// What came of the walk.
#[derive(Clone, Debug, Default)]
pub struct MineReport {
    /// The repository's name in the tasks.
    pub repo: String,
    /// The commit that the walk began at.
    pub head: String,
    /// How many commits were looked at.
    pub commits: usize,
    /// How many gave a task.
    pub taken: usize,
    /// How many were skipped, by reason.
    pub skipped: BTreeMap<Skip, usize>,
    /// True for a shallow clone: older history is not there.
    pub shallow: bool,
}

/// More changed paths than this are not even read: a reformatting, a vendored tree.
const HUGE: usize = 300;

/// Mines the repository at `path` (a work tree with its `.git`, or a bare repository) from HEAD: the tasks, oldest first, and what was
/// skipped. `progress` hears of every commit looked at: how many so far, and how many were taken.
///
/// A shallow clone is mined as far as it goes: [`MineReport::shallow`] says so.
///
/// # Errors
///
/// Not a git repository, one without a commit, objects that are missing or damaged.
pub fn mine(path: &Path, options: &MineOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<(Vec<Task>, MineReport)> {
    let repository = Repository::open(path)?;
    let repo = options.name.clone().unwrap_or_else(|| repository.name(path));
    let mut report = MineReport { repo, head: repository.head()?, shallow: repository.is_shallow(), ..MineReport::default() };
    let mut miner = Miner { repository, options, repo: report.repo.clone(), seen: HashSet::new() };
    let mut tasks = Vec::new();
    let mut walk = miner.repository.walk(options.all_parents)?;
    while tasks.len() < options.max_tasks
        && let Some(commit) = walk.next(&miner.repository)?
    {
        report.commits += 1;
        match miner.task(&commit)? {
            Ok(task) => tasks.push(task),
            Err(reason) => *report.skipped.entry(reason).or_default() += 1,
        }
        progress(report.commits, tasks.len());
    }
    report.taken = tasks.len();
    tasks.reverse();
    Ok((tasks, report))
}

struct Miner<'a> {
    repository: Repository,
    options: &'a MineOptions,
    repo: String,
    /// Hashes of the patches taken.
    seen: HashSet<u64>,
}

impl Miner<'_> {
    /// The commit's task, or why it gives none.
    fn task(&mut self, commit: &Commit) -> Result<Result<Task, Skip>> {
        let message = match self.message(commit) {
            Ok(message) => message,
            Err(skip) => return Ok(Err(skip)),
        };
        // `message` has made sure that there is one parent, and that it is here.
        let Some(parent) = commit.parents.first() else { return Ok(Err(Skip::Root)) };
        let base = self.repository.commit(*parent)?;
        let raw = self.repository.diff(base.tree, commit.tree, HUGE)?;
        if raw.is_empty() {
            return Ok(Err(Skip::Empty));
        }
        if raw.len() > HUGE {
            return Ok(Err(Skip::Huge));
        }
        if let Some(skip) = self.by_roles(&raw.iter().map(|c| role(&c.path)).collect()) {
            return Ok(Err(skip));
        }
        let (sources, others): (Vec<_>, Vec<_>) = raw.into_iter().partition(|c| self.is_source(&c.path) && c.is_file());
        let tests: Vec<_> = others.into_iter().filter(|c| role(&c.path) == Role::Test && c.is_file()).collect();
        let sources = match self.sources(&sources)? {
            Ok(sources) => sources,
            Err(skip) => return Ok(Err(skip)),
        };
        let patch = change::write_patch(&sources);
        if let Some(skip) = self.by_lines(&patch)? {
            return Ok(Err(skip));
        }
        let id = format!("{}-{}", self.repo.replace('/', "__"), &commit.id.to_string()[..10]);
        let gold: BTreeSet<String> = sources.iter().filter_map(ChangedFile::base_path).collect();
        let Some((files, all_paths)) = candidates::choose(&self.repository, base.tree, &gold, &id, self.options, |p| self.is_source(p))?
        else {
            return Ok(Err(Skip::NoChoice));
        };
        if !self.seen.insert(fingerprint(&patch)) {
            return Ok(Err(Skip::Duplicate));
        }
        let tests = read_changes(&self.repository, &tests, self.options.max_bytes / 2)?;
        let tests: Vec<_> = tests.into_iter().filter(|c| c.content() == Content::Text).collect();
        let extra: Map<String, Value> = [("problem_source".to_owned(), Value::from("commit message"))].into_iter().collect();
        Ok(Ok(Task {
            instance_id: id,
            repo: self.repo.clone(),
            base_commit: parent.to_string(),
            fix_commit: Some(commit.id.to_string()),
            created_at: Some(commit.time.clone()),
            problem_statement: message,
            test_patch: change::write_patch(&tests),
            patch,
            gold_files: Some(gold.into_iter().collect()),
            files,
            all_paths,
            extra,
            ..Task::default()
        }))
    }

    /// The commit's message as an issue's text, or why the commit is skipped before its change is read.
    fn message(&self, commit: &Commit) -> Result<String, Skip> {
        match commit.parents.len() {
            0 => return Err(Skip::Root),
            1 => {}
            _ => return Err(Skip::Merge),
        }
        if commit.at_border {
            return Err(Skip::Shallow);
        }
        if !self.options.keep_bots && message::is_bot(&commit.author, &commit.email) {
            return Err(Skip::Bot);
        }
        let text = std::str::from_utf8(&commit.message).map_err(|_| Skip::MessageEncoding)?;
        if !self.options.keep_reverts && message::is_revert(text) {
            return Err(Skip::Revert);
        }
        if !self.options.keep_releases && message::is_release(text) {
            return Err(Skip::Release);
        }
        let text = message::without_trailers(text);
        if text.chars().count() < self.options.min_message {
            return Err(Skip::ShortMessage);
        }
        Ok(text)
    }

    fn is_source(&self, path: &str) -> bool {
        match role(path) {
            Role::Source => true,
            Role::Doc => self.options.keep_docs,
            _ => false,
        }
    }

    /// Why a commit that changes files of these roles has no source among them.
    fn by_roles(&self, roles: &BTreeSet<Role>) -> Option<Skip> {
        let source = roles.contains(&Role::Source) || (self.options.keep_docs && roles.contains(&Role::Doc));
        let only = |role| roles.len() == 1 && roles.contains(&role);
        match () {
            () if source => None,
            () if only(Role::Lock) => Some(Skip::LockOnly),
            () if only(Role::Doc) => Some(Skip::DocsOnly),
            () if only(Role::Test) => Some(Skip::TestsOnly),
            () => Some(Skip::NoSource),
        }
    }

    /// The changed sources with their contents, or why they are no task.
    fn sources(&self, raw: &[change::RawChange]) -> Result<Result<Vec<ChangedFile>, Skip>> {
        let limit = self.options.max_bytes / 2;
        if raw.is_empty() {
            return Ok(Err(Skip::NoSource));
        }
        // A move is one file and two raw changes; what cannot get below the limit by moves is not read.
        if raw.len() > self.options.max_files.saturating_mul(2) {
            return Ok(Err(Skip::ManyFiles));
        }
        let sources = read_changes(&self.repository, raw, limit)?;
        let sources = change::find_moves(sources);
        let any = |content| sources.iter().any(|c| c.content() == content);
        let skip = if sources.iter().all(|c| c.content() == Content::Binary) || any(Content::Binary) {
            Some(Skip::Binary)
        } else if sources.iter().all(|c| c.base_path().is_none()) {
            Some(Skip::AddsOnly)
        } else if sources.len() > self.options.max_files {
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
    fn by_lines(&self, patch: &str) -> Result<Option<Skip>> {
        Ok(match Patch::parse(patch)?.changed_lines() {
            0 => Some(Skip::NoLines),
            n if n > self.options.max_lines => Some(Skip::ManyLines),
            _ => None,
        })
    }
}

/// A hash of a patch that does not see where in a file the change stands.
fn fingerprint(patch: &str) -> u64 {
    let lines: Vec<&str> = patch.lines().filter(|l| !l.starts_with("@@ ") && !l.starts_with("index ")).collect();
    hash(lines.join("\n").as_bytes())
}

/// An error of the library that reads the repository, with its causes.
fn git_error(path: &Path, what: &str, error: &dyn std::error::Error) -> Error {
    let mut message = format!("cannot {what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    Error::input(message).at_file(path)
}

#[cfg(test)]
mod tests;
