//! Tasks, patches, prompts, answers, and how well answers hit. Knows nothing of tensors or models: where a token budget is needed it
//! comes in as a `count_tokens` function.
//!
//! * [`task`]: a resolved issue, in SWE-bench's field names; [`source`] reads tasks from files and mines them from git histories.
//! * [`patch`]: unified git diffs: parse, apply, write. [`paths`]: which paths are sources, tests, documentation.
//! * [`subtask`]: what the model is asked and how its answer is read; [`symbols`] and [`lexical`] give the prompt its evidence.
//! * [`difflib`]: Python's, exactly and fast, for SWE-RL's similarity of patches ([`patch_similarity`]).
//! * [`edit_blocks`]: SEARCH/REPLACE blocks, read, applied and made, by either paper's rule. [`unidiff`]: patches as Python's package of that name reads them.
//! * [`ground_truth`]: the gold sets of the subtasks; [`edited_lines`]: what edits are scored by; [`check`]: whether a task holds together.
//! * [`metrics`], [`bootstrap`]: how well answers hit, with intervals. [`coverage`]: what several samples reach together. [`split`]: what is held out. [`random`]: keyed randomness.
//! * [`near_duplicates`]: changes that are made again, or nearly.

pub mod bootstrap;
pub mod check;
pub mod coverage;
pub mod difflib;
pub mod edit_blocks;
pub mod edited_lines;
pub mod ground_truth;
pub mod lexical;
pub mod lines;
pub mod metrics;
pub mod near_duplicates;
pub mod patch;
pub mod patch_similarity;
pub mod paths;
pub mod random;
pub mod source;
pub mod split;
pub mod subtask;
pub mod symbols;
pub mod task;
pub mod unidiff;

pub use task::Task;
