//! Where tasks come from: files of the SWE-bench family, and git histories.

pub mod decontaminate;
pub mod family;
pub mod funnel;
#[cfg(feature = "git")]
pub mod git;
pub mod issues;
pub mod multi_swe_bench;
#[cfg(feature = "parquet")]
mod parquet;
pub mod swe_bench;
