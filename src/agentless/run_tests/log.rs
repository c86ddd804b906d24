//! Results of tests in what pytest prints with `-rA`, read as SWE-bench's harness reads them (`parse_log_pytest`).

use std::collections::BTreeMap;

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// Something around it failed.
    Error,
    /// It was not run.
    Skipped,
    /// It failed, as it is known to.
    ExpectedFailure,
}

impl Status {
    /// Whether the harness counts it as passed.
    pub fn passes(self) -> bool {
        matches!(self, Self::Passed | Self::ExpectedFailure)
    }
}

const WORDS: [(&str, Status); 5] = [
    ("FAILED", Status::Failed),
    ("PASSED", Status::Passed),
    ("SKIPPED", Status::Skipped),
    ("ERROR", Status::Error),
    ("XFAIL", Status::ExpectedFailure),
];

/// The tests of an output with their results. A test's name ends at its first blank, and of several lines for one name the last holds:
/// so the harness has it, and so its lists name tests. Unlike there, lines before the last summary do not count where there is one: a
/// test that prints `PASSED ...` has passed nothing.
pub fn parse(output: &str) -> BTreeMap<String, Status> {
    let is_summary = |line: &str| line.starts_with('=') && line.trim_matches('=').trim() == "short test summary info";
    let lines: Vec<&str> = output.lines().collect();
    let start = lines.iter().rposition(|l| is_summary(l)).map_or(0, |i| i + 1);
    let mut out = BTreeMap::new();
    for line in &lines[start..] {
        let Some(&(_, status)) = WORDS.iter().find(|(word, _)| line.starts_with(word)) else { continue };
        if let Some(name) = line.split_whitespace().nth(1) {
            out.insert(name.to_owned(), status);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_and_nothing_before_it() {
        let output = "PASSED t.py::forged\n____ test ____\nFAILED t.py::b\n=========== short test summary info ===========\n\
                      PASSED t.py::a[x y]\nPASSED t.py::b\nSKIPPED [1] t.py:3: no\nXFAIL t.py::c - known\nXPASS t.py::d\n\
                      ERROR t.py::e - fixture\nFAILED t.py::a[x z] - assert 1 == 2\nFAILED t.py::f\n==== 2 failed, 2 passed in 0.02s ====\n";
        let found = parse(output);
        let names: Vec<(&str, Status)> = found.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        let expected = [
            ("[1]", Status::Skipped),
            ("t.py::a[x", Status::Failed),
            ("t.py::b", Status::Passed),
            ("t.py::c", Status::ExpectedFailure),
            ("t.py::e", Status::Error),
            ("t.py::f", Status::Failed),
        ];
        assert_eq!(names, expected);
        assert_eq!(parse("PASSED one\nFAILED two\n").len(), 2, "another program's output has no summary");
        assert!(parse("PASSED\n\nno tests ran\n").is_empty());
    }
}
