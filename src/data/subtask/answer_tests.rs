use proptest::prelude::*;
use serde_json::json;

use super::*;

const TEXT: &str = "import x\n\nclass A:\n    def f(self):\n        return 1\n\n    def g(self):\n        return 2\n\ndef h():\n    pass\n";

fn task() -> Task {
    let patch = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -4,2 +4,3 @@\n     def f(self):\n-        return 1\n+        y = 1\n+        return y\n";
    Task::from_json(
        json!({ "files": { "a.py": TEXT, "src/b.py": "def k(): pass\n" }, "all_paths": ["a.py", "c.py", "src/b.py"], "patch": patch }),
    )
    .unwrap()
}

fn functions(answer: &str) -> (Vec<String>, bool) {
    let (found, reason) = parse_functions(answer, &Universe::new(&task(), None));
    (found.into_iter().map(|(p, n)| format!("{p} {n}")).collect(), reason.is_none())
}

#[test]
fn functions_by_qualified_name_class_or_ending() {
    for (answer, expected) in [
        ("```\na.py\nfunction: A.f\nclass: A\n```", &["a.py A.f", "a.py A"][..]),
        ("I think.\n```\n### ./a.py\nclass: A\nfunction: g\nmodule:\n```", &["a.py A", "a.py A.g", "a.py <module>"]),
        ("a.py\n- function: `f`\nfunction: h(self)\nvariable: x\nline: 3", &["a.py A.f", "a.py h"]),
        ("function: h\nFile: src/b.py\nfunction: k\nfunction: k", &["src/b.py k"]),
    ] {
        assert_eq!(functions(answer), (expected.iter().map(|s| (*s).to_owned()).collect(), true), "{answer}");
    }
    for answer in ["", "a.py", "a.py\nfunction: nope", "c.py\nmodule:", "gone.py\nfunction: f"] {
        assert!(!functions(answer).1, "{answer}");
    }
}

#[test]
fn names_may_be_copied_from_code_but_must_mean_one_definition() {
    for name in ["def f(self)", "def f(self):", "async def f(self) -> int:", "f()", "`f`:", "A::f", "A.f:"] {
        assert_eq!(functions(&format!("a.py\nfunction: {name}")), (vec!["a.py A.f".to_owned()], true), "{name}");
    }
    assert_eq!(functions("a.py\nclass: class A:").0, ["a.py A"]);
    let two = "class A:\n    def run(self): pass\nclass B:\n    def run(self): pass\n";
    let task = Task { files: BTreeMap::from([("a.py".to_owned(), two.to_owned())]), ..Task::default() };
    let read = |answer: &str| parse_functions(answer, &Universe::new(&task, None));
    assert_eq!(read("a.py\nfunction: run").1.as_deref(), Some("`run` in `a.py` is ambiguous: A.run or B.run"));
    assert_eq!(read("a.py\nclass: B\nfunction: run").0[1].1, "B.run");
    assert_eq!(read("a.py\nfunction: runs").1.as_deref(), Some("`runs` in `a.py` is not in the prompt"));
}

#[test]
fn lines_and_ranges() {
    let run = |answer: &str, prompt: Option<&str>| {
        let (found, reason) = parse_lines(answer, &Universe::new(&task(), prompt));
        (found.into_iter().map(|(_, n)| n).collect::<Vec<_>>(), reason.is_none())
    };
    assert_eq!(run("a.py\nfunction: A.f\nline: 5\nlines: 7-8, 5", None), (vec![5, 7, 8], true));
    for answer in ["a.py\nline: 0", "a.py\nline: 12", "a.py\nline: 1-99999999999", "a.py\nline: 5-4", "c.py\nline: 1", "line: 1", ""] {
        assert!(!run(answer, None).1, "{answer}");
    }
    let prompt = "Fix.\n\n### a.py\n```\n...\n 4|    def f(self):\n 5|        return 1\n...\n```\n";
    assert!(run("a.py\nline: 4-5", Some(prompt)).1 && !run("a.py\nline: 6", Some(prompt)).1 && !run("src/b.py\nline: 1", Some(prompt)).1);
}

#[test]
fn edits_must_be_in_the_code_shown() {
    let prompt = "### a.py\n```\n...\n    def f(self):\n        return 1\n...\n```\n";
    let edit = |search: &str| format!("<think>x</think>\n```python\n### a.py\n<<<<<<< SEARCH\n{search}\n=======\nz\n>>>>>>> REPLACE\n```");
    let valid = |search: &str, prompt| parse_edits(&edit(search), &Universe::new(&task(), prompt)).1.is_none();
    assert!(valid("        return 1", Some(prompt)) && valid("        return 2", None) && !valid("        return 2", Some(prompt)));
    assert!(!valid("return 1", None) && parse_edits("", &Universe::new(&task(), None)).1.is_some());
}

#[test]
fn skeletons_say_which_functions_may_be_named() {
    let universe = Universe::new(&task(), Some("### a.py\nclass A:\n    def f(self):\n        ...\n\nWhich?"));
    assert!(parse_functions("a.py\nfunction: A.f", &universe).1.is_none());
    assert!(parse_functions("a.py\nfunction: h", &universe).1.is_some() && parse_functions("src/b.py\nfunction: k", &universe).1.is_some());
}

#[test]
fn files_whose_contents_are_not_known_are_no_targets() {
    let mut task = task();
    task.patch.push_str("diff --git a/docs/x.md b/docs/x.md\n--- a/docs/x.md\n+++ b/docs/x.md\n@@ -1 +1 @@\n-a\n+b\n");
    assert_eq!(ground_truth::unknown_files(&task).unwrap(), BTreeSet::from(["docs/x.md".to_owned()]));
    for place in [Place::Function, Place::Line, Place::Edit] {
        let gold = Gold::new(&task, place).unwrap();
        let (score, reason) = gold.score(&gold.answer(&task).unwrap().unwrap(), &Universe::new(&task, None));
        assert_eq!((score.fbeta(3.0), reason), (1.0, None), "{place:?}");
    }
    task.files.remove("a.py");
    for place in [Place::Function, Place::Line, Place::Edit] {
        let error = Gold::new(&task, place).err().unwrap().to_string();
        assert!(error.contains("a.py: the patch changes this file, and its content is not known"), "{error}");
    }
}

#[test]
fn gold_answers_score_one() {
    let task = task();
    for place in [Place::Function, Place::Line, Place::Edit] {
        let gold = Gold::new(&task, place).unwrap();
        let answer = gold.answer(&task).unwrap().unwrap();
        let (score, reason) = gold.score(&format!("Because.\n{answer}"), &Universe::new(&task, None));
        assert_eq!((score.fbeta(3.0), reason), (1.0, None), "{answer}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in "(```\n?|</think>|a\\.py|src/|\n|function:|class: |line: |module:|[0-9]|-|,|é|\u{2013}|<<<<<<< SEARCH\n|=======\n|>>>>>>> REPLACE\n|### |\\.\\.\\.|[|]){0,30}") {
        for prompt in [None, Some(text.as_str())] {
            let universe = Universe::new(&task(), prompt);
            parse_functions(&text, &universe);
            parse_lines(&text, &universe);
            parse_edits(&text, &universe);
        }
    }
}
