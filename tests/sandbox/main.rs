//! Confined commands, and tests of tasks run by them. Where nothing can be confined the tests say so and end; with `SORFT_STRICT` set,
//! that is a failure.

#![cfg(target_os = "linux")]

mod escapes;
mod verdicts;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sorft_native::agentless::sandbox::{Limits, Sandbox};

/// The program, which the sandbox starts inside.
fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sorft-native"))
}

/// None, with a word about it, where nothing can be confined.
fn sandbox_with(limits: Limits, read_only: Vec<PathBuf>) -> Option<Sandbox> {
    match Sandbox::with_helper(limits, read_only, program()) {
        Ok(sandbox) => Some(sandbox),
        Err(e) if std::env::var_os("SORFT_STRICT").is_none() => {
            eprintln!("SKIPPED: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// Limits that are soon reached.
fn quick() -> Limits {
    let mib = 1 << 20;
    Limits { time: Duration::from_secs(20), memory: 1024 * mib, processes: 32, temporary: 8 * mib, disk: 8 * mib, ..Limits::default() }
}
