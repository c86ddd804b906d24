//! The pipeline from issues to patches, driven by a script in place of a model: what is merged, what is written, what is measured; runs that
//! are cut off and go on.

mod command;
mod hops;
mod numbers;
#[cfg(target_os = "linux")]
mod reproduction;
mod resume;
mod script;

#[path = "../weights/make.rs"]
#[allow(dead_code)] // the parts that only the tests of weights use
mod make;
