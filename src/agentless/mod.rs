//! From a model's answers to predictions: ranking candidate patches, running a repository's tests on them without letting them do harm,
//! and the files of Agentless, Agentless Mini and SWE-bench's harness. Knows models and data, not training.
//!
//! * [`normalize`]: when two patches are the same change. [`rerank`]: which of many patches is handed in.
//! * [`files`]: the JSON-lines files that these pipelines exchange. [`sandbox`]: commands on a tree, confined.
//! * [`run_tests`]: whether a patch resolves a task, by its tests.

pub mod files;
pub mod normalize;
pub mod rerank;
#[cfg(unix)]
pub mod run_tests;
#[cfg(unix)]
pub mod sandbox;
