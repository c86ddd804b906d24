//! The first look at a commit: what its message says, and which paths it changes.

use std::collections::BTreeSet;

use gix::ObjectId;

use super::change::RawChange;
use super::repository::{Commit, Repository};
use super::{HUGE, MineOptions, Skip, message};
use crate::Result;
use crate::data::paths::{Role, role};

/// A commit that was looked at once.
pub(super) struct Scanned {
    pub commit: Commit,
    /// The tree of its first parent.
    pub base: Option<ObjectId>,
    /// What the task says, or why there is none.
    pub verdict: Result<Statement, Skip>,
    /// The paths that change; empty where the verdict says that there is no task.
    pub changes: Vec<RawChange>,
    /// The sources that change and are at the base, where they are few enough to say that they belong together.
    pub together: Vec<String>,
}

/// What stands for the issue.
pub(super) struct Statement {
    pub text: String,
    /// The numbers of the issues whose text it is; empty for a commit message.
    pub issues: Vec<u64>,
}

/// A commit that changes more sources says nothing about which belong together.
const TOGETHER: usize = 20;

/// Looks at a commit: its message, and the paths that differ from its first parent.
pub(super) fn scan(repository: &Repository, commit: Commit, options: &MineOptions) -> Result<Scanned> {
    let verdict = statement(&commit, options);
    let mut scanned = Scanned { base: None, verdict, changes: Vec::new(), together: Vec::new(), commit };
    // With all parents walked, what a merge brings in is looked at where it was made.
    let looked_at_elsewhere = options.all_parents && scanned.commit.parents.len() > 1;
    let Some(parent) = scanned.commit.parents.first().filter(|_| !scanned.commit.at_border && !looked_at_elsewhere) else {
        return Ok(scanned);
    };
    let base = repository.tree_of(*parent)?;
    scanned.base = Some(base);
    let Some(changes) = repository.unless_left_out(|| repository.diff(base, scanned.commit.tree, HUGE))? else {
        scanned.verdict = scanned.verdict.and(Err(Skip::LeftOut));
        return Ok(scanned);
    };
    let sources = || changes.iter().filter(|c| c.old.is_some() && options.is_source(&c.path)).map(|c| c.path.clone());
    if sources().take(TOGETHER + 1).count() <= TOGETHER {
        scanned.together = sources().collect();
    }
    if scanned.verdict.is_ok() {
        match by_paths(&changes, options) {
            Some(skip) => scanned.verdict = Err(skip),
            None => scanned.changes = changes,
        }
    }
    Ok(scanned)
}

/// The commit's issue, or why the commit is skipped before its change is read.
fn statement(commit: &Commit, options: &MineOptions) -> Result<Statement, Skip> {
    match commit.parents.len() {
        0 => return Err(Skip::Root),
        1 => {}
        _ if options.keep_merges && !options.all_parents => {}
        _ => return Err(Skip::Merge),
    }
    if commit.at_border {
        return Err(Skip::Shallow);
    }
    if !options.keep_bots && message::is_bot(&commit.author, &commit.email) {
        return Err(Skip::Bot);
    }
    let whole = std::str::from_utf8(&commit.message).map_err(|_| Skip::MessageEncoding)?;
    let text = if commit.parents.len() > 1 { message::without_merge_line(whole) } else { whole };
    if !options.keep_reverts && message::is_revert(text) {
        return Err(Skip::Revert);
    }
    if !options.keep_releases && message::is_release(text) {
        return Err(Skip::Release);
    }
    let linked = options.issues.resolved_by(whole);
    if options.require_fix && !message::is_fix(text) && !linked.as_ref().is_some_and(|l| message::is_fix(&l.text)) {
        return Err(Skip::NotAFix);
    }
    if options.require_issue && linked.is_none() {
        return Err(Skip::NoIssue);
    }
    let statement = match linked {
        Some(linked) => Statement { text: linked.text, issues: linked.numbers },
        None => Statement { text: message::without_trailers(text), issues: Vec::new() },
    };
    if statement.text.chars().count() < options.min_message {
        return Err(Skip::ShortMessage);
    }
    Ok(statement)
}

/// Why a commit that changes these paths is no task.
fn by_paths(changes: &[RawChange], options: &MineOptions) -> Option<Skip> {
    if changes.is_empty() {
        return Some(Skip::Empty);
    }
    if changes.len() > HUGE {
        return Some(Skip::Huge);
    }
    let roles: BTreeSet<Role> = changes.iter().map(|c| role(&c.path)).collect();
    let source = roles.contains(&Role::Source) || (options.keep_docs && roles.contains(&Role::Doc));
    let only = |role| roles.len() == 1 && roles.contains(&role);
    match () {
        () if source => None,
        () if only(Role::Lock) => Some(Skip::LockOnly),
        () if only(Role::Doc) => Some(Skip::DocsOnly),
        () if only(Role::Test) => Some(Skip::TestsOnly),
        () => Some(Skip::NoSource),
    }
}
