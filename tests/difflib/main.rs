//! Rewards that CPython 3.11 gives (`compare.py --fixture` wrote them), to the last bit.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// The rewards that the program writes for lines of one kind.
fn rewards(args: &[&str], lines: &[String]) -> Vec<f64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sorft-native"))
        .arg("reward")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let text = lines.join("\n");
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let out = child.wait_with_output().expect("the program ends");
    writer.join().expect("the writer ends").expect("the program reads");
    assert!(out.status.success());
    // Cut out as text: a line may hold lone surrogates, which serde_json's `Value` refuses.
    let reward = |line: &str| line.strip_prefix("{\"reward\":")?.split_once(',')?.0.parse().ok();
    let out = String::from_utf8(out.stdout).expect("stdout is UTF-8");
    out.lines().map(|line| reward(line).unwrap_or_else(|| panic!("a reward first in {line}"))).collect()
}

#[test]
fn rewards_are_cpythons() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/difflib/fixture.jsonl");
    let fixture = std::fs::read_to_string(path).expect("the fixture is there");
    for (kind, args) in [
        ("similarity", vec!["--kind", "similarity"]),
        ("discrete", vec!["--kind", "similarity", "--discrete"]),
        ("unidiff", vec!["--kind", "unidiff"]),
    ] {
        // A case is cut out of its line as text, since it may hold lone surrogates, which a `Value` cannot.
        let of_kind = format!("{{\"kind\": \"{kind}\", \"case\": ");
        let parts = fixture.lines().filter_map(|l| l.strip_prefix(&of_kind)?.rsplit_once(", \"reward\": "));
        let (cases, expected): (Vec<String>, Vec<&str>) = parts.map(|(case, reward)| (case.to_owned(), reward)).unzip();
        assert!(cases.len() >= 20, "{kind}: {} cases", cases.len());
        let found = rewards(&args, &cases);
        assert_eq!(found.len(), cases.len());
        for ((expected, found), case) in expected.iter().zip(&found).zip(&cases) {
            let (reward, _) = expected.split_once(',').expect("similarities follow");
            assert_eq!(Some(*found), reward.parse().ok(), "{kind}: {case}");
        }
    }
}
