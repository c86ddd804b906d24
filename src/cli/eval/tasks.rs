//! The tasks of `eval`: their files are in the task file, or in clones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::agentless::clones::{self, AtCommit};
use crate::cli::output::{plural, say};
use crate::data::Task;
use crate::data::source::swe_bench;
use crate::{Error, Result};

/// Which tasks, and where their files are.
#[derive(clap::Args)]
pub(crate) struct TaskArgs {
    /// Tasks with SWE-bench's fields, as JSON lines (.gz too)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["compare", "resume", "rerank_only"])]
    tasks: Option<PathBuf>,
    /// Take the first N tasks only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// A folder of clones: owner__name, owner/name or name. Tasks without `files` are read from them at their base_commit; --run-tests runs
    /// tests on them
    #[arg(long, value_name = "DIR")]
    pub repos: Option<PathBuf>,
    /// Read all tasks from the clones, also those that have `files`
    #[arg(long, requires = "repos")]
    whole_repository: bool,
    /// How many files of a clone localisation chooses from: those that match the issue best (with --universe tree, all) [default: 100]
    #[arg(long, value_name = "N")]
    candidates: Option<usize>,
}

/// What `settings.json` says of the tasks.
#[derive(Clone, Debug, Default, serde::Deserialize)]
pub(super) struct Recorded {
    tasks: Option<PathBuf>,
    limit: Option<usize>,
    clones: Option<RecordedClones>,
}

#[derive(Clone, Debug, serde::Deserialize)]
struct RecordedClones {
    repos: PathBuf,
    candidates: usize,
    whole_repository: bool,
}

/// The patches that are to be judged, by task.
pub(super) type PatchesOf<'a> = dyn Fn(&[Task]) -> Result<BTreeMap<String, String>> + 'a;

/// The tasks as they are asked, and as answers are judged.
pub(super) struct Tasks {
    /// With the files that a patch changes.
    pub judged: Vec<Task>,
    /// Where it is not the same.
    asked: Option<Vec<Task>>,
}

impl Tasks {
    /// What a model is asked about.
    pub(super) fn asked(&self) -> &[Task] {
        self.asked.as_ref().unwrap_or(&self.judged)
    }
}

impl TaskArgs {
    fn candidates(&self) -> usize {
        self.candidates.unwrap_or(100)
    }

    /// Whether any are named.
    pub(super) fn given(&self) -> bool {
        self.tasks.is_some()
    }

    /// Fills in what a run that goes on was begun with, where nothing else is given.
    pub(super) fn fill(&mut self, recorded: Recorded) {
        self.tasks = self.tasks.take().or(recorded.tasks);
        self.limit = self.limit.or(recorded.limit);
        if let Some(clones) = recorded.clones {
            self.repos = self.repos.take().or(Some(clones.repos));
            self.candidates = self.candidates.or(Some(clones.candidates));
            self.whole_repository |= clones.whole_repository;
        }
    }

    /// The tasks of the file; those without files get them from a clone, `tree` all of them. `patches` are to be judged, by task.
    pub(super) fn read(&self, tree: bool, patches: &PatchesOf<'_>) -> Result<Tasks> {
        let path = self.tasks.as_deref().ok_or_else(|| Error::usage("expected --tasks"))?;
        match self.candidates {
            Some(0) => return Err(Error::usage("--candidates takes a number of at least 1")),
            Some(_) if self.repos.is_none() => {
                return Err(Error::usage("--candidates is about files of clones").hint("give a folder of clones: --repos DIR"));
            }
            _ => {}
        }
        if let Some(repos) = &self.repos {
            clones::require(repos)?;
        }
        let mut tasks = swe_bench::read(path)?;
        tasks.truncate(self.limit.unwrap_or(usize::MAX));
        if tasks.is_empty() {
            return Err(Error::usage("--limit takes a number of at least 1"));
        }
        let from_clone = |task: &Task| self.whole_repository || task.files.is_empty();
        let Some(first) = tasks.iter().find(|task| from_clone(task)) else { return Ok(Tasks { judged: tasks, asked: None }) };
        let Some(repos) = &self.repos else {
            let hint = "`data mine` writes tasks with the contents of their files; or give a folder of clones: --repos DIR";
            let message = "the task has no `files`: nothing can be shown or patched";
            return Err(Error::input(message).at(&first.instance_id).at_file(path).hint(hint));
        };
        let n = tasks.iter().filter(|task| from_clone(task)).count();
        say!("reading {} from the clones in {}", plural(n as u64, "task"), repos.display());
        let patches = patches(&tasks)?;
        let most = (!tree).then_some(self.candidates());
        let read = |task: Task| -> Result<AtCommit> {
            if !from_clone(&task) {
                return Ok(AtCommit { asked: task.clone(), judged: task });
            }
            clones::at_commit(&task, repos, most, patches.get(&task.instance_id).map_or("", String::as_str))
        };
        let read: Vec<AtCommit> = tasks.into_par_iter().map(read).collect::<Result<_>>()?;
        let (asked, judged) = read.into_iter().map(|t| (t.asked, t.judged)).unzip();
        Ok(Tasks { judged, asked: Some(asked) })
    }

    /// What decides over the tasks, as `settings.json` has it; what is read from clones only where anything is.
    pub(super) fn describe(&self, tasks: &Tasks) -> Value {
        let mut out = json!({"tasks": shown(self.tasks.as_deref()), "limit": self.limit});
        if tasks.asked.is_some() {
            out["clones"] = json!({
                "repos": shown(self.repos.as_deref()), "candidates": self.candidates(), "whole_repository": self.whole_repository,
            });
        }
        out
    }
}

/// A path as JSON; what is not UTF-8 in it by replacement characters.
pub(super) fn shown(path: Option<&Path>) -> Value {
    path.map(|p| p.to_string_lossy().into_owned()).into()
}
