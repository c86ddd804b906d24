//! The edge cases of SWE-RL's reward, with the values that CPython 3.11 gives.

use super::*;

const CONTEXT: &str = "x = 1\ny = 2\nx = 1\nz = 3";

fn files(all: &[(&str, &str)]) -> Files {
    all.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect()
}

fn block(path: &str, search: &str, replace: &str) -> String {
    format!("```python\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```\n")
}

fn wrapped(solution: &str) -> String {
    format!("<think>\nso it is\n</think>\n<solution>\n{solution}</solution>")
}

fn judged(new: &str, completion: &str) -> Judgement {
    let context = files(&[("a.py", CONTEXT)]);
    let oracle = Oracle::from_contents(&context, &files(&[("a.py", new)]));
    oracle.judge(&context, completion.as_bytes(), Rule::Continuous, &mut Scratch::default())
}

fn reward(new: &str, completion: &str) -> f64 {
    judged(new, completion).reward
}

#[test]
fn the_table_of_edge_cases() {
    let both = CONTEXT.replace("x = 1", "x = 5");
    assert_eq!(reward(&both, &wrapped(&block("a.py", "x = 1", "x = 5"))), 1.0);
    assert_eq!(reward(&CONTEXT.replace("y = 2", "w = 2"), &wrapped(&block("a.py", "y", "w"))), 1.0);
    assert_eq!(reward(&both, &wrapped(&block("a.py", "= 1", "= 5"))), -1.0);
    assert_eq!(reward(&both, &wrapped(&block("a.py", "x = 1", "x = 1"))), -1.0);
    assert_eq!(reward(&both, &wrapped(&block("b.py", "", "new"))), 0.0);
    assert_eq!(reward(&CONTEXT.replace("y = 2", ""), &wrapped(&block("a.py", "y = 2", ""))), 1.0);
    let good = block("a.py", "x = 1", "x = 5");
    assert_eq!(reward(&both, &wrapped(&(good.clone() + &block("b.py", "", "new")))), 0.5);
    let cancels = block("a.py", "z = 3", "z = 4") + &block("a.py", "z = 4", "z = 3");
    assert_eq!(reward(CONTEXT, &wrapped(&cancels)), 1.0);
    assert_eq!(reward(&both, &wrapped(&cancels)), 0.0);
    // A different change of the same line.
    let near = judged(&both, &wrapped(&block("a.py", "x = 1", "x = 6")));
    assert_eq!(near.files[0].predicted, b"@@ -1,4 +1,4 @@\n-x = 1\n+x = 6\n y = 2\n-x = 1\n+x = 6\n z = 3");
    assert_eq!(near.reward, 2.0 * 55.0 / 114.0);
}

#[test]
fn tags_are_counted_and_nothing_else() {
    let both = CONTEXT.replace("x = 1", "x = 5");
    let good = block("a.py", "x = 1", "x = 5");
    let reversed = format!("<solution>{good}</solution> and <think>why</think>");
    assert_eq!(reward(&both, &reversed), 1.0);
    // A closing tag before its opening one: the text runs to the end.
    let late = format!("</think><solution>{good}</solution><think>why");
    assert_eq!((reward(&both, &late), judged(&both, &late).thought.to_text()), (1.0, "why".into()));
    for (broken, error) in [
        (wrapped(&good).replace("</think>", ""), "0 </think> tags"),
        (wrapped(&good) + "<think>", "2 <think> tags"),
        (wrapped(&good).replace("so it is", " \u{1c}\u{3000}"), "the thought is empty"),
        (wrapped("nothing"), "no edit block"),
        (wrapped(&block("a.py", "= 1", "= 5")), "SEARCH is not in the file"),
    ] {
        let judgement = judged(&both, &broken);
        assert_eq!(judgement.reward, -1.0);
        assert!(judgement.error.as_deref().is_some_and(|e| e.contains(error)), "{:?}", judgement.error);
    }
}

#[test]
fn the_discrete_rule_wants_every_patch() {
    let context = files(&[("a.py", CONTEXT), ("b.py", "1\n")]);
    let oracle = Oracle::from_contents(&context, &files(&[("a.py", "x = 0"), ("b.py", "2\n")]));
    let rule = |completion: String| oracle.judge(&context, completion.as_bytes(), Rule::Discrete, &mut Scratch::default()).reward;
    let (a, b) = (block("a.py", CONTEXT, "x = 0"), block("b.py", "1", "2"));
    assert_eq!(rule(wrapped(&format!("{a}{b}"))), 1.0);
    assert_eq!(rule(wrapped(&a)), 0.0);
    assert_eq!(rule(wrapped(&format!("{a}{}", block("b.py", "1", "3")))), 0.0);
    assert_eq!(rule(wrapped(&format!("{a}{b}{}", block("c.py", "", "x")))), 0.0);
    assert_eq!(rule(a), -1.0);
}

#[test]
fn line_ends_alone_are_no_change() {
    let context = files(&[("a.py", "a\nb\n")]);
    assert!(normalised_patches(&context, &files(&[("a.py", "a\r\nb")])).is_empty());
    assert_eq!(normalised_patches(&context, &files(&[("a.py", "a\u{2028}c")]))[&"a.py".into()], b"@@ -1,2 +1,2 @@\n a\n-b\n+c");
}

#[test]
fn diffs_are_compared_file_by_file() {
    let change = |name: &str, line: &str| format!("--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-a\n+{line}\n");
    let value = |oracle: &[String], predicted: &[String]| {
        let changes = |texts: &[String]| unidiff_changes(texts.iter().map(|t| t.as_bytes()));
        Oracle::new(changes(oracle)).compare(changes(predicted), Rule::Continuous, &mut Scratch::default()).reward
    };
    let (x, y) = (change("x", "b"), change("y", "b"));
    assert_eq!(value(std::slice::from_ref(&x), std::slice::from_ref(&x)), 1.0);
    assert_eq!(value(&[x.clone(), y.clone()], &[format!("{x}{y}")]), 1.0);
    assert_eq!(value(&[x.clone(), y.clone()], std::slice::from_ref(&x)), 0.5);
    assert_eq!(value(std::slice::from_ref(&x), &["@@ -1 +1 @@".into()]), 0.0);
    assert_eq!(value(&[], &["@@ -1 +1 @@".into()]), 1.0);
    assert_eq!(value(std::slice::from_ref(&x), &[change("x", "c"), x.clone()]), 1.0);
    let renamed = "diff --git a/x b/z\nrename from x\nrename to z\n".to_owned();
    assert_eq!(unidiff_changes([renamed.as_bytes()]), Patches::from([("x".into(), b"rename from x to z".to_vec())]));
}
