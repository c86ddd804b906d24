//! Reading and applying an answer in SWE-RL's format, and taking what can be used of one that is not quite of it.

use std::collections::BTreeMap;

use crate::data::edit_blocks::swe_rl::{self, Edit};
use crate::data::patch_similarity::read_answer;

/// Contents by path.
type Files = BTreeMap<String, String>;

/// The files that an answer changes, (before, after) by path, and why the answer would earn no reward, if it would not. Each edit that can
/// be applied is applied: edits of files that were not shown, and those whose SEARCH is not found, are dropped, as in Agentless.
pub(super) fn apply(answer: &str, files: &Files) -> (BTreeMap<String, (String, String)>, Option<String>) {
    let mut error = read_answer(answer.as_bytes()).err();
    let edits = swe_rl::parse_blocks(solution(answer).as_bytes());
    if edits.is_empty() {
        error.get_or_insert_with(|| "the answer has no edit block".to_owned());
    }
    let mut changed: BTreeMap<String, (String, String)> = BTreeMap::new();
    for edit in &edits {
        match apply_one(edit, files, &changed) {
            Ok((path, new)) => {
                let old = files[&path].clone();
                changed.insert(path, (old, new));
            }
            Err(reason) => drop(error.get_or_insert(reason)),
        }
    }
    changed.retain(|_, (old, new)| old != new);
    (changed, error)
}

fn apply_one(edit: &Edit, files: &Files, changed: &BTreeMap<String, (String, String)>) -> Result<(String, String), String> {
    let path = edit.path.to_text().trim_end().to_owned();
    let Some(old) = files.get(&path) else { return Err(format!("{path}: this file was not shown")) };
    let now = changed.get(&path).map_or(old, |(_, new)| new);
    let new = swe_rl::apply(now.as_bytes(), [edit])?;
    String::from_utf8(new).map(|new| (path.clone(), new)).map_err(|_| format!("{path}: the edit leaves no valid text"))
}

/// The part of an answer that holds its edits: between the solution tags where there are any, else what follows the thought, else all.
fn solution(answer: &str) -> &str {
    let rest = answer.rfind("</think>").map_or(answer, |at| &answer[at + "</think>".len()..]);
    let inside = rest.find("<solution>").map_or(rest, |at| &rest[at + "<solution>".len()..]);
    inside.find("</solution>").map_or(inside, |at| &inside[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(path: &str, search: &str, replace: &str) -> String {
        format!("```python\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```\n")
    }

    #[test]
    fn what_can_be_used_is_used() {
        let files = Files::from([("a.py".to_owned(), "x = 1\ny = 2\n".to_owned())]);
        let good = block("a.py", "x = 1", "x = 3");
        let (changed, error) = apply(&format!("<think>t</think>\n<solution>\n{good}</solution>"), &files);
        assert_eq!((changed["a.py"].1.as_str(), error), ("x = 3\ny = 2\n", None));
        let (changed, error) = apply(&format!("Sure:\n{good}{}{}", block("b.py", "x", "y"), block("a.py", "z = 1", "z = 2")), &files);
        assert_eq!(changed["a.py"].1, "x = 3\ny = 2\n");
        assert_eq!(error.unwrap(), "the answer has 0 <think> tags; it must have one");
        let (changed, error) = apply(&format!("<think>t</think><solution>{}</solution>", block("a.py", "z", "y")), &files);
        assert!(changed.is_empty() && error.unwrap().contains("SEARCH is not in the file"));
        let undone = format!("<think>t</think><solution>{good}{}</solution>", block("a.py", "x = 3", "x = 1"));
        assert!(apply(&undone, &files).0.is_empty());
        assert!(apply("", &files).1.is_some());
    }
}
