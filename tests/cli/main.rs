//! The real binary on real files. What a command writes is compared with a file under `tests/cli/golden/`; after a change that is
//! meant, `UPDATE_GOLDEN=1 cargo test --test cli` writes them anew.

mod data;
mod eval;
mod families;
mod reward;

use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// The program, without anything of the environment that could change what it writes.
fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sorft-native"))
}

/// A file of `tests/cli/golden/`.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden").join(name)
}

/// Compares a text with a golden file, or writes the file where `UPDATE_GOLDEN` is set.
fn assert_golden(name: &str, actual: &str) {
    let path = golden(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(expected == actual, "{name} differs\n---- expected\n{expected}\n---- actual\n{actual}");
}

/// Stdout of a run that ends with `status`.
fn stdout(command: &mut Command, status: i32) -> String {
    let out = command.output().expect("the program runs");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "stderr: {stderr}");
    String::from_utf8(out.stdout).expect("stdout is UTF-8")
}

/// Stderr of a run that ends with `status`.
fn stderr(command: &mut Command, status: i32) -> String {
    let out = command.output().expect("the program runs");
    let stderr = String::from_utf8(out.stderr).expect("stderr is UTF-8");
    assert_eq!(out.status.code(), Some(status), "stderr: {stderr}");
    stderr
}

#[test]
fn what_means_nothing_is_refused() {
    let model = ["--model", "nowhere"];
    assert!(
        stderr(program().args(["sample"]).args(model).args(["--prompt", "x", "--samples", "0"]), 2).contains("--samples takes a number")
    );
    let error = stderr(program().args(["sample"]).args(model).args(["--prompt", "x", "--temperature", "-1"]), 2);
    assert!(error.contains("--temperature: expected 0 for the likeliest token, or a number of at least 0.000001"), "{error}");
    assert!(stderr(program().args(["bench", "nosuch", "--seconds", "0.01"]), 2).contains("no benchmark has `nosuch` in its name"));
    let error = stderr(program().args(["bench", "nosuch", "--seconds", "0.01"]), 2);
    assert!(error.contains("there are: matmul, rmsnorm, swiglu, adamw, attention, token_logprob; with --model: "), "{error}");
    assert!(
        stderr(program().args(["doctor"]).env("SORFT_ISA", "sse"), 2).contains("SORFT_ISA=sse: expected portable, avx2, avx512 or amx")
    );
}
