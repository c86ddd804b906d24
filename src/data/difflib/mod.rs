//! Python's `difflib`, number for number: the matching blocks, opcodes, unified diffs and ratios that CPython 3.11 gives, at speed.
//!
//! The similarity of SWE-RL (arXiv 2502.18449) is defined by `difflib.SequenceMatcher`, whose answers depend on its ties and its
//! heuristics, so nothing but the same algorithm gives the same reward. [`LineMatcher`] is that algorithm, with the `autojunk` heuristic,
//! for lines. [`CharIndex`] gives what it would give for characters without the heuristic, in far less time: the index is made once for
//! the second text and serves any number of first texts.
//!
//! A Python string is held as its code points in UTF-8, where a lone surrogate stands as its three bytes ([`PyText`]): finding,
//! splitting and replacing on bytes is then the same as on code points, and no string that JSON can carry is refused.

mod automaton;
mod block;
mod chars;
mod lines;
mod text;
mod unified;
mod wavelet;

pub use block::{Block, Opcode, Tag, grouped_opcodes, opcodes, ratio};
pub use chars::{CharIndex, Scratch};
pub use lines::LineMatcher;
pub use text::{PyText, code_points, json_string, splitlines, strip};
pub use unified::unified_diff;

#[cfg(test)]
mod tests;
