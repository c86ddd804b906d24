//! SEARCH/REPLACE blocks: the form in which a model writes an edit. Reading them from an answer, applying them to files, and making
//! the blocks that turn one version of a file into another.
//!
//! ````text
//! ```python
//! ### path
//! <<<<<<< SEARCH
//! lines of the file
//! =======
//! the lines in their place
//! >>>>>>> REPLACE
//! ```
//! ````
//!
//! The two papers read the same blocks by different rules, and a reward is only theirs by their rule:
//!
//! | | [`agentless`] (SoRFT) | [`swe_rl`] |
//! |---|---|---|
//! | a block | its markers, a line each | a whole fence, matched by one pattern |
//! | a path | holds until the next one | in every block |
//! | SEARCH is found | as whole lines, of what the prompt shows | at the beginning of a line, may end within one |
//! | line ends | compared without carriage returns, kept | compared as bytes |
//! | an empty SEARCH | makes a new file | stands before every line |

pub mod agentless;
pub mod swe_rl;

/// The line before the text to be found.
pub const SEARCH: &str = "<<<<<<< SEARCH";
/// The line between both texts.
pub const DIVIDER: &str = "=======";
/// The line behind the text that takes its place.
pub const REPLACE: &str = ">>>>>>> REPLACE";

/// Edits may not make a file larger than this, or than four times what it was.
pub const MAX_FILE: usize = 4 << 20;

/// How many bytes a file of `len` bytes may have after its edits: every edit may double it, and a few lines of an answer could otherwise
/// fill the memory.
pub fn size_limit(len: usize) -> usize {
    MAX_FILE.max(len.saturating_mul(4))
}
