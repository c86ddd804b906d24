//! Issues and pull requests of a repository from an export, and the references to them in commit messages.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::error::json_message;
use crate::{Error, Result};

/// An issue, or a pull request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Its title.
    pub title: String,
    /// Its text; empty where there is none.
    pub body: String,
    /// True for a pull request.
    pub is_pull_request: bool,
}

impl Issue {
    fn text(&self) -> String {
        format!("{}\n\n{}", self.title.trim(), self.body.trim()).trim().to_owned()
    }
}

/// The issues and pull requests of one repository, by number (GitHub gives both numbers from one count).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issues {
    by_number: BTreeMap<u64, Issue>,
}

/// The issues that a change resolves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// Their numbers, in the order in which they are named.
    pub numbers: Vec<u64>,
    /// Their titles and texts.
    pub text: String,
}

/// Of so many issues that one change names, all texts are taken; of more, the first ones.
const MOST: usize = 3;

impl Issues {
    /// Reads an export: a JSON list or JSON lines, gzipped or not, of objects as GitHub's REST interface has them (`number`, `title`,
    /// `body`, and `pull_request` for a pull request), or whole answers of the GraphQL interface, in which such objects stand
    /// somewhere (`__typename`, `mergedAt` or `headRefName` tell a pull request).
    ///
    /// # Errors
    ///
    /// Not JSON (with the line), an object with a `number` but no `title`, no issue at all.
    pub fn read(path: &Path) -> Result<Self> {
        let failed = |e| Error::io("read", path, e);
        let mut bytes = Vec::new();
        BufReader::new(File::open(path).map_err(failed)?).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut plain = Vec::new();
            MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).map_err(failed)?;
            bytes = plain;
        }
        let mut issues = Self::default();
        // One JSON value, or many one after another: lines are a case of it.
        let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
        loop {
            let end = values.byte_offset();
            let Some(value) = values.next() else { break };
            let value = value.map_err(|e| Error::input(format!("not JSON: {}", json_message(&e))).at_line(path, e.line()))?;
            issues.collect(&value).map_err(|e| e.at_line(path, line_after(&bytes, end)))?;
        }
        if issues.by_number.is_empty() {
            let hint = "expected objects with number, title and body, as GitHub's interfaces give them";
            return Err(Error::input("the file holds no issue").at_file(path).hint(hint));
        }
        Ok(issues)
    }

    /// Takes every object with a number and a title, however deep it stands. What stands inside of one (labels, milestones) is none.
    fn collect(&mut self, value: &Value) -> Result<()> {
        match value {
            Value::Array(list) => list.iter().try_for_each(|v| self.collect(v)),
            Value::Object(map) => {
                let Some(number) = map.get("number").and_then(Value::as_u64) else {
                    return map.values().filter(|v| v.is_object() || v.is_array()).try_for_each(|v| self.collect(v));
                };
                let Some(title) = map.get("title").and_then(Value::as_str) else {
                    return Err(Error::input("expected a text").at("field `title`").at(format_args!("issue {number}")));
                };
                let has = |field: &str| map.get(field).is_some_and(|v| !v.is_null());
                let is_pull_request = has("pull_request")
                    || has("merge_commit_sha")
                    || has("mergedAt")
                    || has("headRefName")
                    || map.get("__typename").and_then(Value::as_str) == Some("PullRequest");
                let body = map.get("body").and_then(Value::as_str).unwrap_or_default().replace("\r\n", "\n");
                self.by_number.insert(number, Issue { title: title.to_owned(), body, is_pull_request });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The issue or pull request of a number.
    pub fn get(&self, number: u64) -> Option<&Issue> {
        self.by_number.get(&number)
    }

    /// The issues that a commit with this message resolves: those that it says to fix; else those that the pull request it names says
    /// to fix; else those that it names. None where none of them is in the export as an issue.
    pub fn resolved_by(&self, message: &str) -> Option<Linked> {
        let own = references(message);
        let is_issue = |n: &u64| self.get(*n).is_some_and(|i| !i.is_pull_request);
        let pick = |numbers: Vec<u64>| Some(numbers.into_iter().filter(is_issue).collect::<Vec<_>>()).filter(|n| !n.is_empty());
        let numbers =
            |refs: &[Reference], closing: bool| refs.iter().filter(|r| r.closes || !closing).map(|r| r.number).collect::<Vec<_>>();
        let by_pull_request = || {
            let requests = own.iter().filter_map(|r| self.get(r.number)).filter(|i| i.is_pull_request);
            let refs: Vec<Reference> = requests.flat_map(|i| references(&format!("{}\n{}", i.title, i.body))).collect();
            pick(numbers(&refs, true))
        };
        let mut found = pick(numbers(&own, true)).or_else(by_pull_request).or_else(|| pick(numbers(&own, false)))?;
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|n| seen.insert(*n));
        found.truncate(MOST);
        let text = found.iter().filter_map(|n| self.get(*n)).map(Issue::text).collect::<Vec<_>>().join("\n\n");
        (!text.trim().is_empty()).then_some(Linked { numbers: found, text })
    }
}

/// The number of the line (1-based) of the first value that begins at `end` or after it.
fn line_after(bytes: &[u8], end: usize) -> usize {
    let start = end + bytes[end..].iter().take_while(|b| b.is_ascii_whitespace()).count();
    bytes[..start].iter().filter(|&&b| b == b'\n').count() + 1
}

/// A mention of an issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The issue's number.
    pub number: u64,
    /// True where the text says that it resolves the issue (`fixes #12`).
    pub closes: bool,
}

/// Words after which GitHub closes an issue.
const CLOSING: [&str; 9] = ["close", "closes", "closed", "fix", "fixes", "fixed", "resolve", "resolves", "resolved"];

/// The references of a text, in its order: `#12`, `gh-12`, `owner/name#12`, `.../issues/12`, `.../pull/12`, each closing where a word as
/// `fixes` stands before it, a colon or the word `issue` between them or not.
pub fn references(text: &str) -> Vec<Reference> {
    let mut out = Vec::new();
    let mut closing = false;
    for word in text.split_whitespace() {
        let bare = word.trim_matches(|c: char| "()[]{}<>,.;:!?\"'`*".contains(c));
        let found = numbers_of(bare);
        let is_last = word.ends_with(['.', ';', '!', '?']);
        if !found.is_empty() {
            out.extend(found.iter().map(|&number| Reference { number, closes: closing }));
            closing = closing && !is_last;
            continue;
        }
        let lower = bare.to_ascii_lowercase();
        closing = CLOSING.contains(&lower.as_str())
            || (closing && ["issue", "issues", "bug", "and", "ticket", "&", ""].contains(&lower.as_str()));
    }
    out
}

/// The numbers that one word names: `#1`, `#1,#2`, `gh-1`, `o/r#1`, an address.
fn numbers_of(word: &str) -> Vec<u64> {
    let digits = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit())).filter(|n| *n > 0);
    let one = |part: &str| {
        let part = part.trim_matches(|c: char| "()[].:;".contains(c));
        let lower = part.to_ascii_lowercase();
        if let Some(rest) = lower.strip_prefix("gh-").or_else(|| lower.strip_prefix("gh#")) {
            return digits(rest);
        }
        if let Some((before, rest)) = part.split_once('#')
            && (before.is_empty() || before.contains('/') && !before.contains("://"))
        {
            return digits(rest);
        }
        let address = part.split_once("/issues/").or_else(|| part.split_once("/pull/"))?;
        digits(address.1.split(['#', '?', '/']).next().unwrap_or_default())
    };
    word.split(',').filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refs(text: &str) -> Vec<(u64, bool)> {
        references(text).into_iter().map(|r| (r.number, r.closes)).collect()
    }

    #[test]
    fn references_in_their_forms() {
        assert_eq!(refs("Fixes #12"), [(12, true)]);
        assert_eq!(refs("Stop it (#7)\n\nfix: gh-12, closes o/r#3."), [(7, false), (12, true), (3, true)]);
        assert_eq!(refs("Resolved issue https://github.com/o/r/issues/5#note and #6; see #9"), [(5, true), (6, true), (9, false)]);
        assert_eq!(refs("fixes #1,#2"), [(1, true), (2, true)]);
        assert_eq!(refs("fixes a crash in #4"), [(4, false)]);
        assert_eq!(refs("C# 5, #x, gh-, #0, a#3, https://x/y#2"), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}", parts in "(fixes|#|gh-|/issues/|[0-9]{1,30}|,| |ä){0,30}") {
            references(&text);
            references(&parts);
        }
    }

    fn read(text: &str) -> Result<Issues> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Issues::read(file.path())
    }

    const LINES: &str = r##"{"number": 3, "title": "It breaks", "body": "when\r\npressed", "labels": [{"number": 8}]}
{"number": 4, "title": "Mend it", "body": "Closes #3, see #5", "pull_request": {"url": "u"}}

{"number": 5, "title": "Other", "body": null}
"##;

    #[test]
    fn a_commit_finds_its_issue() {
        let issues = read(LINES).unwrap();
        let found = |message: &str| issues.resolved_by(message).map(|l| l.numbers);
        assert_eq!(issues.resolved_by("Fix #3").unwrap().text, "It breaks\n\nwhen\npressed");
        assert_eq!(found("Mend the thing (#4)"), Some(vec![3]), "through the pull request");
        assert_eq!(found("Speaks of #5 and of #3, fixes #3"), Some(vec![3]));
        assert_eq!(found("Speaks of #5 and of #3"), Some(vec![5, 3]));
        assert_eq!(found("Fixes #77"), None);
        assert_eq!(found("nothing"), None);
    }

    #[test]
    fn lists_answers_and_errors() {
        let list = format!("[{}]", LINES.trim().lines().filter(|l| !l.is_empty()).collect::<Vec<_>>().join(","));
        assert_eq!(read(&list).unwrap(), read(LINES).unwrap());
        let answer = r#"{"data": {"repository": {"issues": {"nodes": [{"number": 3, "title": "t", "body": "b"}]},
            "pullRequests": {"nodes": [{"number": 4, "title": "p", "body": "", "mergedAt": "2024-01-01T00:00:00Z"}]}}}}"#;
        let issues = read(answer).unwrap();
        assert!(!issues.get(3).unwrap().is_pull_request && issues.get(4).unwrap().is_pull_request);
        let error = |text: &str| read(text).unwrap_err().to_string();
        assert!(error(&format!("{LINES}{{oops")).contains(":5: not JSON"), "{}", error(&format!("{LINES}{{oops")));
        let untitled = error(&format!("{LINES}\n{{\"number\": 9}}\n"));
        assert!(untitled.contains(":6: issue 9: field `title`"), "{untitled}");
        assert!(error("[]").contains("holds no issue"));
    }
}
