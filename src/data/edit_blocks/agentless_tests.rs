use proptest::prelude::*;

use super::*;

fn apply(text: &str, old: &str) -> Result<String, Reason> {
    let files = BTreeMap::from([("a.py".to_owned(), old.to_owned())]);
    let all = apply_blocks(&parse_blocks(text)?, &files, &|_, _| true, &|_| false)?;
    Ok(all.get("a.py").map_or(old.to_owned(), |(_, new)| new.clone()))
}

fn block(search: &str, replace: &str) -> String {
    format!("```python\n### a.py\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n```\n")
}

#[test]
fn whole_lines_are_found_and_every_place_is_replaced() {
    let old = "x = 1\ny = 2\nx = 1\n";
    assert_eq!(apply(&block("x = 1\n", "x = 3\nz = 4\n"), old).unwrap(), "x = 3\nz = 4\ny = 2\nx = 3\nz = 4\n");
    assert_eq!(apply(&block("x = 1\ny = 2\n", ""), old).unwrap(), "x = 1\n");
    assert_eq!(apply(&block("...\nx = 1\ny = 2\n", "...\ny = 2\n"), old).unwrap(), "y = 2\nx = 1\n");
    assert_eq!(apply(&(block("y = 2\n", "y = 3\n") + &block("y = 3\n", "y = 4\n")), old).unwrap(), "x = 1\ny = 4\nx = 1\n");
    for missing in ["x = \n", " y = 2\n", "y = 2\ny = 2\n", ""] {
        assert!(apply(&block(missing, "z\n"), old).is_err(), "{missing:?}");
    }
    assert!(apply("### a.py\n<<<<<<< SEARCH\nx = 1\n", old).is_err());
    assert!(apply("<<<<<<< SEARCH\nx = 1\n=======\n>>>>>>> REPLACE\n", old).is_err());
}

#[test]
fn line_ends_are_kept() {
    assert_eq!(apply(&block("b\n", "c\nd\n"), "a\r\nb\r\n").unwrap(), "a\r\nc\r\nd\r\n");
    assert_eq!(apply(&block("b\n", "c\n"), "a\nb").unwrap(), "a\nc");
    assert_eq!(apply(&block("b\n\\ No newline at end of file\n", "b\n"), "a\nb").unwrap(), "a\nb\n");
    assert_eq!(apply(&block("b\n", "b\n\\ No newline at end of file\n"), "a\nb\n").unwrap(), "a\nb");
}

#[test]
fn three_dots_are_code_where_the_file_has_them() {
    let old = "class P:\n    def f(self):\n        ...\n\n    def g(self):\n        return 0\n";
    let search = "        ...\n\n    def g(self):\n";
    assert_eq!(apply(&block(search, "        return 1\n\n    def g(self):\n"), old).unwrap(), old.replace("...", "return 1"));
    assert_eq!(apply(&block("...\nx = 1\n", "...\nx = 2\n"), "...\nx = 1\nx = 1\n").unwrap(), "...\nx = 2\nx = 1\n");
    assert_eq!(apply(&block("...\nx = 1\n", "x = 2\n"), "x = 1\n").unwrap(), "x = 2\n");
    assert_eq!(apply(&block("...\nx = 1\n", "...\nx = 2\n"), "x = 1\n").unwrap(), "x = 2\n");
    for missing in ["    ...\nx = 1\n", "...\n\n", "...\n"] {
        assert!(apply(&block(missing, "z\n"), "x = 1\n\n").is_err(), "{missing:?}");
    }
}

#[test]
fn a_few_blocks_cannot_fill_the_memory() {
    let grow = |i: usize| block(&format!("a{i}\n"), &format!("a{}\n", i + 1).repeat(8));
    let error = apply(&(0..12).map(grow).collect::<String>(), "a0\n").unwrap_err();
    assert!(error.contains("make `a.py` larger than 4194304 bytes"), "{error}");
    assert_eq!(apply(&(0..3).map(grow).collect::<String>(), "a0\n").unwrap(), "a3\n".repeat(512));
}

#[test]
fn new_files_are_made_and_others_are_not_guessed() {
    let run = |text: &str, exists: bool| apply_blocks(&parse_blocks(text).unwrap(), &BTreeMap::new(), &|_, _| true, &|_| exists);
    let made = run(&block("", "x\n"), false).unwrap();
    assert_eq!(made["a.py"], (String::new(), "x\n".to_owned()));
    assert!(run(&block("", "x\n"), true).is_err() && run(&block("y\n", "x\n"), false).is_err());
}

proptest! {
    #[test]
    fn gold_blocks_give_the_new_file(old in "((a|b|c|)\n){0,8}(a|b)?", new in "((a|b|c|)\n){0,8}(a|b)?") {
        if let Some(blocks) = gold_blocks("a.py", &old, &new) {
            prop_assert_eq!(apply(&write_blocks(&blocks), &old).unwrap(), new);
        }
    }

    #[test]
    fn never_panics(text in "(```\n|### a.py\n|<<<<<<< SEARCH\n|=======\n|>>>>>>> REPLACE\n|a\n|b\n|\\.\\.\\.\n|\r|é|\\\\ No newline at end of file\n){0,20}", old in "((a|b)(\r\n|\n)){0,4}a?") {
        let _ = apply(&text, &old);
    }
}
