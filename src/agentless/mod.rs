//! From a model's answers to predictions: ranking candidate patches, running a repository's tests on them without letting them do harm,
//! and the files of Agentless, Agentless Mini and SWE-bench's harness. Knows models and data, not training.
//!
//! * [`generator`], [`journal`], [`session`]: what answers prompts, and the file of all answers. [`pipeline`]: the hops.
//! * [`normalize`]: when two patches are the same change. [`rerank`]: which of many patches is handed in.
//! * [`reproduction`]: tests that the model writes, by which patches are ranked.
//! * [`patch`]: from changed files to patches. [`records`]: a run's products as files. [`evaluate`]: how good they are. [`run`]: all of it.
//! * [`repository`], [`fix`]: an issue of a repository at hand. [`clones`]: a repository at a commit.
//! * [`files`]: the JSON-lines files that these pipelines exchange. [`sandbox`]: commands on a tree, confined.
//! * [`run_tests`]: whether a patch resolves a task, by its tests.

pub mod clones;
pub mod evaluate;
pub mod files;
pub mod fix;
pub mod generator;
pub mod journal;
pub mod normalize;
pub mod patch;
pub mod pipeline;
pub mod records;
pub mod repository;
pub mod reproduction;
pub mod rerank;
pub mod run;
#[cfg(unix)]
pub mod run_tests;
#[cfg(unix)]
pub mod sandbox;
pub mod session;
