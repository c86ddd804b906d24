//! Multi-SWE-bench and Multi-SWE-RL: the same tasks under other names (`org`, `repo`, `number`, `base.sha`, `resolved_issues`,
//! `fix_patch`, maps of tests).

use serde_json::{Map, Value};

use crate::data::Task;
use crate::{Error, Result};

/// One task. The issue's text is that of the resolved issues, else the pull request's own; fields without a counterpart are kept.
pub(super) fn convert(value: Value) -> Result<Task> {
    let Value::Object(mut map) = value else {
        return Err(Error::input("expected a task (a JSON object)"));
    };
    let text = |map: &Map<String, Value>, field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (org, repo) = (text(&map, "org"), text(&map, "repo"));
    let number = map.get("number").cloned().unwrap_or_default();
    if org.is_empty() || repo.is_empty() || !number.is_u64() {
        return Err(Error::input("expected the fields `org`, `repo` and `number`").hint("for SWE-bench's fields: --format swe-bench"));
    }
    let issues = map.get("resolved_issues").and_then(Value::as_array).cloned().unwrap_or_default();
    let both = |v: &Map<String, Value>| format!("{}\n{}", text(v, "title"), text(v, "body")).trim().to_owned();
    let issues: Vec<String> = issues.iter().filter_map(Value::as_object).map(both).filter(|t| !t.is_empty()).collect();
    let statement = if issues.is_empty() { both(&map) } else { issues.join("\n\n") };
    let names = |map: &Map<String, Value>, field: &str| -> Option<Value> {
        map.get(field)?.as_object().map(|tests| tests.keys().map(|k| Value::from(k.as_str())).collect())
    };
    let (fail, pass) = (names(&map, "fixed_tests"), names(&map, "p2p_tests"));
    let base = map.get("base").and_then(|b| b.get("sha")).filter(|sha| sha.is_string()).cloned();
    let patch = map.shift_remove("fix_patch").filter(Value::is_string);
    for (field, found) in [("base.sha", &base), ("fix_patch", &patch)] {
        if found.is_none() {
            return Err(Error::input("expected a text, found none").at(format_args!("field `{field}`")));
        }
    }
    let mut out: Map<String, Value> = map;
    out.insert("instance_id".to_owned(), Value::from(format!("{org}__{repo}-{number}")));
    out.insert("repo".to_owned(), Value::from(format!("{org}/{repo}")));
    out.insert("problem_statement".to_owned(), Value::from(statement));
    let renamed = [("base_commit", base), ("patch", patch), ("FAIL_TO_PASS", fail), ("PASS_TO_PASS", pass)];
    out.extend(renamed.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Task::from_json(Value::Object(out))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_find_their_places() {
        let patch = "--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-a\n+b\n";
        let value = json!({
            "org": "o", "repo": "r", "number": 7, "title": "Fix", "body": null, "base": {"ref": "main", "sha": "abc"}, "lang": "c",
            "resolved_issues": [{"number": 5, "title": "It breaks", "body": "badly"}], "fix_patch": patch, "test_patch": "",
            "fixed_tests": {"t1": {"run": "FAIL"}}, "p2p_tests": {},
        });
        let task = convert(value.clone()).unwrap();
        task.check().unwrap();
        assert_eq!((task.instance_id.as_str(), task.repo.as_str(), task.base_commit.as_str()), ("o__r-7", "o/r", "abc"));
        assert_eq!(task.problem_statement, "It breaks\nbadly");
        assert_eq!((task.fail_to_pass, task.pass_to_pass), (Some(vec!["t1".to_owned()]), Some(vec![])));
        assert_eq!(task.extra["lang"], "c");
        let mut without = value;
        without["resolved_issues"] = json!([]);
        assert_eq!(convert(without.clone()).unwrap().problem_statement, "Fix");
        without["fix_patch"] = json!(null);
        assert!(convert(without).unwrap_err().to_string().contains("field `fix_patch`"));
        assert!(convert(json!({"instance_id": "x"})).unwrap_err().to_string().contains("`org`"));
    }
}
