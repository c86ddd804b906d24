//! Where tasks come from: files of the SWE-bench family, and git histories.

#[cfg(feature = "git")]
pub mod git;
pub mod multi_swe_bench;
pub mod swe_bench;
