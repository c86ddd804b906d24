//! Tasks from a repository's own history: every suitable commit is a resolved issue, its message the issue's text, its diff the gold
//! patch, its parent the base.
//!
//! What is mined is a function of the history, the options and the repository's name alone: no clock, no configuration of the user,
//! no order of a hash map. Each commit that is not taken is counted under the first [`Skip`] that holds for it.

mod build;
mod candidates;
mod change;
mod imports;
mod message;
mod repository;
mod resume;
mod scan;
mod skip;
mod snapshot;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use self::build::build;
use self::repository::{Repository, Walk};
pub use self::resume::mine_to_file;
use self::scan::{Scanned, scan};
pub use self::skip::Skip;
pub use self::snapshot::{Entry, snapshot};
use super::decontaminate::Decontamination;
use super::funnel::Funnel;
use super::issues::Issues;
use crate::data::Task;
use crate::data::near_duplicates::{Repeat, Seen, Sketch, THRESHOLD};
use crate::data::paths::{Role, role};
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
    /// Take merges of the first-parent walk, with what they bring in as their change.
    pub keep_merges: bool,
    /// Count documentation as source.
    pub keep_docs: bool,
    /// Take only what its message or its issue tells to be a fix.
    pub require_fix: bool,
    /// Take only what resolves an issue of `issues`.
    pub require_issue: bool,
    /// The repository's issues: where a commit resolves some, their text is the task's, not the commit's message.
    pub issues: Issues,
    /// Repositories that are not mined.
    pub decontamination: Decontamination,
    /// From which likeness on a change is a near duplicate of one that was taken ([`Seen::new`]).
    pub near_duplicates: f64,
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
            keep_merges: false,
            keep_docs: false,
            require_fix: false,
            require_issue: false,
            issues: Issues::default(),
            decontamination: Decontamination::default(),
            near_duplicates: THRESHOLD,
            seed: 0,
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

impl MineOptions {
    fn is_source(&self, path: &str) -> bool {
        match role(path) {
            Role::Source => true,
            Role::Doc => self.keep_docs,
            _ => false,
        }
    }
}

impl MineReport {
    /// The report as a funnel.
    pub fn funnel(&self, all_parents: bool) -> Funnel {
        let unit = if all_parents { "commits" } else { "commits along the first parents" };
        let mut funnel =
            Funnel { from: self.repo.clone(), unit: unit.to_owned(), seen: self.commits, kept: self.taken, ..Funnel::default() };
        for skip in Skip::ALL {
            let (name, what) = skip.describe();
            funnel.drop(name, what, self.skipped.get(&skip).copied().unwrap_or(0));
        }
        funnel
    }
}

/// More changed paths than this are not even read: a reformatting, a vendored tree.
const HUGE: usize = 300;

/// So many commits are worked on at once.
const BATCH: usize = 128;

/// So many commits before a fix are asked which files changed together with those of the fix.
const HISTORY: usize = 512;

/// Mines the repository at `path` (a work tree with its `.git`, or a bare repository) from HEAD: the tasks, oldest first, and what was
/// skipped. `progress` hears how many commits were looked at, and how many were taken; an error of it ends the walk.
///
/// A shallow clone is mined as far as it goes: [`MineReport::shallow`] says so.
///
/// # Errors
///
/// Not a git repository, one without a commit, objects that are missing or damaged; a repository of the decontamination list.
pub fn mine(path: &Path, options: &MineOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<(Vec<Task>, MineReport)> {
    let mut mining = Mining::start(path, options)?;
    let mut tasks = Vec::new();
    while let Some(batch) = mining.batch()? {
        tasks.extend(batch);
        progress(mining.report.commits, mining.report.taken);
    }
    tasks.reverse();
    Ok((tasks, mining.report))
}

/// A walk under way. Memory does not grow with the history, but for the sketches of the patches taken and the names of the commits seen.
struct Mining<'a> {
    path: PathBuf,
    options: &'a MineOptions,
    repository: Repository,
    /// Each thread opens the repository for itself, once.
    pool: rayon::ThreadPool,
    walk: Walk,
    /// The commits scanned and not yet built, and behind them those of [`HISTORY`].
    window: VecDeque<Scanned>,
    /// The patches taken.
    seen: Seen,
    report: MineReport,
}

impl<'a> Mining<'a> {
    fn start(path: &Path, options: &'a MineOptions) -> Result<Self> {
        let repository = Repository::open(path)?;
        let repo = options.name.clone().unwrap_or_else(|| repository.name(path));
        if options.decontamination.meets(&repo) {
            let hint = "its tasks must not be learnt from; to mine it all the same: --decontaminate none";
            return Err(Error::input(format!("{repo} is, or is named as, a repository that is held out")).at_file(path).hint(hint));
        }
        let report = MineReport { repo, head: repository.head()?, shallow: repository.is_shallow(), ..MineReport::default() };
        let walk = repository.walk(options.all_parents)?;
        let pool = rayon::ThreadPoolBuilder::new().build().map_err(|e| Error::device(format!("cannot start threads: {e}")))?;
        let (window, seen) = (VecDeque::new(), Seen::new(options.near_duplicates)?);
        Ok(Self { path: path.to_owned(), options, repository, pool, walk, window, seen, report })
    }

    /// The tasks of the next commits, the newest first; none at the end of the walk.
    fn batch(&mut self) -> Result<Option<Vec<Task>>> {
        self.fill()?;
        if self.window.is_empty() || self.report.taken >= self.options.max_tasks {
            return Ok(None);
        }
        let (path, options, repo, window) = (&self.path, self.options, &self.report.repo, self.window.make_contiguous());
        let window = &*window;
        let n = window.len().min(BATCH);
        let built: Vec<_> = self.pool.install(|| {
            let one = |i: usize| {
                let history = &window[i + 1..window.len().min(i + 1 + HISTORY)];
                let built = with_repository(path, |r| r.unless_left_out(|| build(r, &window[i], history, repo, options)))?;
                Ok(built.unwrap_or(Err(Skip::LeftOut)).map(|task| (Sketch::of(&task.patch), task)))
            };
            (0..n).into_par_iter().map(one).collect::<Result<_>>()
        })?;
        let mut tasks = Vec::new();
        for built in built {
            if self.report.taken >= self.options.max_tasks {
                break;
            }
            self.report.commits += 1;
            let skip = match built.map(|(sketch, task)| (self.seen.keep(&sketch), task)) {
                Ok((Ok(()), task)) => {
                    self.report.taken += 1;
                    tasks.push(task);
                    continue;
                }
                Ok((Err(Repeat::Exact), _)) => Skip::Duplicate,
                Ok((Err(Repeat::Near), _)) => Skip::NearDuplicate,
                Err(skip) => skip,
            };
            *self.report.skipped.entry(skip).or_default() += 1;
        }
        self.window.drain(..n);
        Ok(Some(tasks))
    }

    /// Scans commits until the window holds a batch and the history of its last commit.
    fn fill(&mut self) -> Result<()> {
        while self.window.len() < BATCH + HISTORY {
            let mut commits = Vec::new();
            while commits.len() < BATCH
                && let Some(commit) = self.walk.next(&self.repository)?
            {
                commits.push(commit);
            }
            if commits.is_empty() {
                break;
            }
            let (path, options) = (&self.path, self.options);
            let scanned: Result<Vec<Scanned>> =
                self.pool.install(|| commits.into_par_iter().map(|c| with_repository(path, |r| scan(r, c, options))).collect());
            self.window.extend(scanned?);
        }
        Ok(())
    }
}

/// Runs `work` with this thread's handle of the repository: handles cannot be shared, and each has caches that are worth keeping.
fn with_repository<T>(path: &Path, work: impl FnOnce(&Repository) -> Result<T>) -> Result<T> {
    thread_local! {
        static OPEN: std::cell::RefCell<Option<Repository>> = const { std::cell::RefCell::new(None) };
    }
    OPEN.with_borrow_mut(|open| {
        let repository = match open.take() {
            Some(repository) => repository,
            None => Repository::open(path)?,
        };
        work(open.insert(repository))
    })
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
