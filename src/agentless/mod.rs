//! From a model's answers to predictions: ranking candidate patches, running a repository's tests on them without letting them do harm,
//! and the files of Agentless, Agentless Mini and SWE-bench's harness. Knows models and data, not training.
//!
//! * [`generator`], [`journal`], [`session`]: what answers prompts, and the file of all answers. [`pipeline`]: the hops.
//! * [`normalize`]: when two patches are the same change. [`rerank`]: which of many patches is handed in.
//! * [`files`]: the JSON-lines files that these pipelines exchange. [`sandbox`]: commands on a tree, confined.

pub mod files;
pub mod generator;
pub mod journal;
pub mod normalize;
pub mod pipeline;
pub mod rerank;
#[cfg(unix)]
pub mod sandbox;
pub mod session;
