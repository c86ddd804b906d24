//! The catalogue of bad inputs: `catalogue/*.txt`, each case a line that says what is wrong, the commands that make it so (`  $ ...`),
//! and under each command everything that it says, with its exit status where that is not 0.
//!
//! Every case begins in a fresh copy of the same folder ([`Place::furnished`]). Commands are bash's; beside the usual ones there are
//! `poke FILE OFFSET HEX`, which overwrites bytes (an offset below 0 counts from the end), and `as_user`, which drops root's rights.
//! After a change of words that is meant, `UPDATE_GOLDEN=1 cargo test --test reliability` writes the files anew.

use crate::place::{PROGRAM, Place};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// One command of a case and what it is expected to say.
struct Step {
    command: String,
    expected: String,
}

struct Case {
    title: String,
    steps: Vec<Step>,
}

const TOOLS: &str = r#"
poke() { local at=$2; [ "$at" -ge 0 ] || at=$(($(stat -c %s "$1") + at)); printf "$(sed 's/../\\x&/g' <<<"$3")" | dd of="$1" bs=1 seek=$at conv=notrunc status=none; }
as_user() {
  if [ "$(id -u)" != 0 ]; then "$@"; return; fi
  # A copy: the build folder may be one that only root can read.
  local own status; own=$(mktemp -d); chmod 755 "$own"; cp "$(command -v "$1")" "$own/"
  PATH=$own:$PATH setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; status=$?
  rm -r "$own"; return $status
}
"#;

/// Comments at the head of the file, then its cases.
fn parse(text: &str) -> (String, Vec<Case>) {
    let (mut head, mut cases) = (String::new(), Vec::<Case>::new());
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            let _ = writeln!(head, "#{comment}");
        } else if let Some(command) = line.strip_prefix("  $ ") {
            let case = cases.last_mut().expect("a case begins with its title");
            case.steps.push(Step { command: command.to_owned(), expected: String::new() });
        } else if let Some(said) = line.strip_prefix("  ") {
            let step = cases.last_mut().and_then(|c| c.steps.last_mut()).expect("output follows a command");
            step.expected += &format!("{said}\n");
        } else if !line.is_empty() {
            cases.push(Case { title: line.to_owned(), steps: Vec::new() });
        }
    }
    (head, cases)
}

/// What a command says on stdout and stderr, the folder's own name left out, and its status.
fn run(place: &Place, command: &str) -> String {
    let folder = Path::new(PROGRAM).parent().expect("a folder").display();
    let script = format!("{TOOLS}export PATH={folder}:$PATH LC_ALL=C\nexec 2>&1\n{command}");
    let out = Command::new("bash").args(["-c", &script]).current_dir(place.path()).output().expect("bash");
    let root = place.path().display().to_string();
    let text = String::from_utf8_lossy(&out.stdout).replace(&format!("{root}/"), "").replace(&root, ".");
    let text: String = text.lines().map(|line| steady(line) + "\n").collect();
    match out.status.code() {
        Some(0) => text,
        code => text + &format!("[{}]\n", code.map_or("killed".to_owned(), |c| c.to_string())),
    }
}

/// A line without the numbers that other tests are about: a step's metrics, a damaged file's checksums.
fn steady(line: &str) -> String {
    match (line.split_once("  loss "), line.split_once("damaged: ")) {
        (Some((step, _)), _) if step.starts_with("step ") => step.to_owned(),
        (_, Some((before, after))) if after.contains(" bytes with checksum ") => format!("{before}damaged: ..."),
        _ => line.to_owned(),
    }
}

fn write(head: &str, cases: &[Case], said: &[Vec<String>]) -> String {
    let mut out = head.to_owned();
    for (case, said) in cases.iter().zip(said) {
        let _ = writeln!(out, "\n{}", case.title);
        for (step, said) in case.steps.iter().zip(said) {
            let _ = writeln!(out, "  $ {}", step.command);
            trimmed(said).lines().for_each(|line| {
                let _ = writeln!(out, "  {line}");
            });
        }
    }
    out
}

/// Every line without the blanks at its end, and no empty ones: the files do not keep them.
fn trimmed(text: &str) -> String {
    text.lines().map(str::trim_end).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect()
}

fn check(name: &str, fewest: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reliability/catalogue").join(name);
    let text = std::fs::read_to_string(&path).expect("the catalogue");
    let (head, cases) = parse(&text);
    assert!(cases.len() >= fewest, "{name} has {} cases", cases.len());
    let furnished = Place::furnished();
    let (mut said, mut wrong) = (Vec::new(), String::new());
    for case in &cases {
        let place = Place::empty();
        furnished.copy_to(place.path());
        let outputs: Vec<String> = case.steps.iter().map(|step| run(&place, &step.command)).collect();
        for (step, output) in case.steps.iter().zip(&outputs) {
            assert!(!output.contains("panicked"), "{}: {output}", case.title);
            if trimmed(output) != step.expected {
                let _ = writeln!(wrong, "{}\n$ {}\n--- expected\n{}--- said\n{output}", case.title, step.command, step.expected);
            }
        }
        said.push(outputs);
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, write(&head, &cases, &said)).expect("the catalogue can be written");
    } else {
        assert!(wrong.is_empty(), "{name}:\n{wrong}");
    }
}

#[test]
fn models() {
    check("models.txt", 35);
}

#[test]
fn settings() {
    check("settings.txt", 20);
}

#[test]
fn tasks() {
    check("tasks.txt", 15);
}

#[test]
fn lines() {
    check("lines.txt", 12);
}

#[test]
fn runs() {
    check("runs.txt", 12);
}
