//! Whether a patch resolves a task: its tests run on the patched tree, confined ([`super::sandbox`]), and judged as SWE-bench's harness
//! does (arXiv 2310.06770).
//!
//! * [`environment`]: what a repository's tests need. `tree`: the tree of a task's base commit, and patches applied to it.
//! * [`log`]: results of tests, read from what the run printed. [`verdict`]: the harness's report.
//! * [`runner`]: a task and a patch in, a report out; the lists of a task that has none; what is kept so that nothing is run twice.
//! * [`evidence`]: regression and reproduction tests of candidate patches, for [`super::rerank`].

pub mod environment;
pub mod evidence;
pub mod log;
pub mod runner;
mod tree;
pub mod verdict;

pub use environment::Environments;
pub use runner::{Established, Runner, Submission};
pub use verdict::Report;
