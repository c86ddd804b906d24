use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(p, c)| (p.to_owned(), c.to_owned())).collect()
}

fn side<'a>(path: &'a str, text: &'a str) -> Side<'a> {
    Side { path, mode: 0o100644, id: "", text }
}

const MIXED: &str = "\
Some commit message\n---\n x | 2 +-\n
diff --git a/mod.py b/mod.py
index 1111111..2222222 100644
--- a/mod.py
+++ b/mod.py
@@ -1,3 +1,3 @@ def f():
 a
-b
+B
 c
@@ -10,0 +11 @@
+tail
diff --git a/new.py b/new.py
new file mode 100755
index 0000000..3333333
--- /dev/null
+++ b/new.py
@@ -0,0 +1 @@
+fresh
\\ No newline at end of file
diff --git a/gone.py b/gone.py
deleted file mode 100644
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
--- old
diff --git a/from name.py b/to name.py
similarity index 100%
rename from from name.py
rename to to name.py
diff --git a/run.sh b/run.sh
old mode 100644
new mode 100755
diff --git a/logo.png b/logo.png
index 1..2 100644
Binary files a/logo.png and b/logo.png differ
diff --git a/blob b/blob
index 1..2 100644
GIT binary patch
literal 3
Kcmb=

literal 0
HcmV?

diff --git \"a/\\303\\244.py\" \"b/\\303\\244.py\"
--- \"a/\\303\\244.py\"
+++ \"b/\\303\\244.py\"
@@ -1 +1 @@
-x
+y
diff --git a/src.py b/copy.py
copy from src.py
copy to copy.py
--\x20
2.40.0
";

#[test]
fn reads_every_kind_of_change() {
    let patch = Patch::parse(MIXED).unwrap();
    let kinds: Vec<_> = patch.files.iter().map(|f| (f.kind, f.path(), f.binary, f.hunks.len())).collect();
    assert_eq!(
        kinds,
        [
            (ChangeKind::Modified, "mod.py", false, 2),
            (ChangeKind::Added, "new.py", false, 1),
            (ChangeKind::Deleted, "gone.py", false, 1),
            (ChangeKind::Renamed, "to name.py", false, 0),
            (ChangeKind::Modified, "run.sh", false, 0),
            (ChangeKind::Modified, "logo.png", true, 0),
            (ChangeKind::Modified, "blob", true, 0),
            (ChangeKind::Modified, "ä.py", false, 1),
            (ChangeKind::Copied, "copy.py", false, 0),
        ]
    );
    assert_eq!(
        patch.base_paths().collect::<Vec<_>>(),
        ["mod.py", "gone.py", "from name.py", "run.sh", "logo.png", "blob", "ä.py"],
        "an added file and the source of a copy are not to be found"
    );
    assert_eq!(patch.changed_lines(), 7);
    assert_eq!(patch.files[0].hunks[0].section, "def f():");
    assert_eq!(patch.files[2].hunks[0].lines[0].text, "-- old");
    assert!(!patch.files[1].hunks[0].lines[0].newline);
    assert_eq!((patch.files[4].old_mode, patch.files[4].new_mode), (Some(0o100644), Some(0o100755)));
}

#[test]
fn reads_diffs_without_git_headers_and_with_carriage_returns() {
    let patch = Patch::parse("--- a/x.c\t2020-01-01\n+++ b/x.c\t2020-01-02\n@@ -1,2 +1,2 @@\n-a\r\n+b\r\n c\r\n").unwrap();
    assert_eq!(patch.base_paths().collect::<Vec<_>>(), ["x.c"]);
    let out = patch.apply(&files(&[("x.c", "a\r\nc\r\n")])).unwrap();
    assert_eq!(out["x.c"], "b\r\nc\r\n");
    let bare = Patch::parse("--- src/x.c\n+++ src/x.c\n@@ -1 +1 @@\n-a\n+b\n").unwrap();
    assert_eq!(bare.base_paths().collect::<Vec<_>>(), ["src/x.c"]);
}

#[test]
fn broken_hunks_name_their_line() {
    let error = |text: &str| Patch::parse(text).unwrap_err().to_string();
    let head = "diff --git a/x b/x\n--- a/x\n+++ b/x\n";
    assert!(error(&format!("{head}@@ -1,2 +1 @@\n-a\n")).contains("line 6 of the patch: the patch ends inside a hunk"));
    assert!(error(&format!("{head}@@ -1,2 +1 @@\n-a\n*b\n")).contains("line 6 of the patch: expected a line of the hunk"));
    assert!(error(&format!("{head}@@ -1 +1,9 @@\n-a\n-b\n")).contains("longer than its header"));
    assert!(error(&format!("{head}@@ -x +1 @@\n")).contains("not a hunk header"));
    assert!(error("diff --git a/one two b/three four\nindex 1..2\n").contains("line 1 of the patch: the file's name"));
    assert!(error("diff --git a/x b/x\n--- a/x\n").contains("expected `+++ `"));
    assert_eq!(Patch::parse("no diff at all\n").unwrap(), Patch::default());
}

#[test]
fn other_prefixes_than_a_and_b_are_no_renames() {
    let hunk = "@@ -1 +1 @@\n-a\n+b\n";
    let read = |head: &str| {
        let patch = Patch::parse(&format!("{head}{hunk}")).unwrap();
        (patch.files[0].kind, patch.files[0].path().to_owned(), patch.base_paths().map(str::to_owned).next())
    };
    let modified = (ChangeKind::Modified, "s/a.py".to_owned(), Some("s/a.py".to_owned()));
    for (old, new) in [("i", "w"), ("c", "i"), ("o", "w"), ("c", "w"), ("w", "i")] {
        let markers = format!("--- {old}/s/a.py\n+++ {new}/s/a.py\n");
        assert_eq!(read(&markers), modified);
        assert_eq!(read(&format!("diff --git {old}/s/a.py {new}/s/a.py\nindex 1..2 100644\n{markers}")), modified);
    }
    for markers in
        ["--- s/a.py.orig\n+++ s/a.py\n", "--- a/s/a.py\n+++ b/s/a.py~\n", "--- s/a.py\t(revision 1)\n+++ s/a.py\t(working copy)\n"]
    {
        assert_eq!(read(markers), modified, "{markers}");
    }
    let added = "diff --git i/n.py w/n.py\nnew file mode 100644\n--- /dev/null\n+++ w/n.py\n@@ -0,0 +1 @@\n+a\n";
    assert_eq!(Patch::parse(added).unwrap().files[0].new_path.as_deref(), Some("n.py"));
    let gone = "diff --git c/n.py w/n.py\ndeleted file mode 100644\n--- c/n.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n";
    assert_eq!(Patch::parse(gone).unwrap().base_paths().collect::<Vec<_>>(), ["n.py"]);
    let moved = "diff --git i/a.py w/b.py\nsimilarity index 90%\nrename from a.py\nrename to b.py\n--- i/a.py\n+++ w/b.py\n";
    assert_eq!(read(moved), (ChangeKind::Renamed, "b.py".to_owned(), Some("a.py".to_owned())));
}

#[test]
fn combined_diffs_are_refused() {
    let body = "--- a/a.py\n+++ b/a.py\n@@@ -1,2 -1,2 +1,2 @@@\n  a\n- b\n -c\n++d\n";
    for text in [format!("diff --cc a.py\nindex 1,2..3\n{body}"), body.to_owned()] {
        let error = Patch::parse(&text).unwrap_err().to_string();
        assert!(error.contains("combined diffs") && error.contains("against one parent"), "{error}");
    }
}

/// `git apply` takes `@@ -0,3 +0,3 @@` for `@@ -1,3 +1,3 @@`.
#[test]
fn a_range_of_lines_begins_at_1() {
    let patch = Patch::parse("--- a/x\n+++ b/x\n@@ -0,3 +0,3 @@\n a\n-b\n+B\n c\n").unwrap();
    let hunk = &patch.files[0].hunks[0];
    assert_eq!((hunk.old_start, hunk.new_start), (1, 1));
    assert_eq!(patch.apply(&files(&[("x", "a\nb\nc\n")])).unwrap()["x"], "a\nB\nc\n");
    let added = Patch::parse("--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+a\n").unwrap();
    assert_eq!((added.files[0].hunks[0].old_start, added.files[0].hunks[0].new_start), (0, 1));
}

#[test]
fn applying_checks_every_line() {
    let patch = Patch::parse("--- a/x\n+++ b/x\n@@ -2 +2 @@\n-b\n+B\n").unwrap();
    assert_eq!(patch.apply(&files(&[("x", "a\nb\nc\n")])).unwrap()["x"], "a\nB\nc\n");
    let error = |f: &[(&str, &str)]| patch.apply(&files(f)).unwrap_err().to_string();
    assert!(error(&[("x", "a\nq\n")]).contains("x: line 2 is not what the patch expects"));
    assert!(error(&[("x", "a\nb")]).contains("line 2 is not"), "the line feed is part of the line");
    assert!(error(&[("y", "")]).contains("not there"));
    let added = Patch::parse("--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+new\n").unwrap();
    assert!(added.apply(&files(&[("x", "")])).is_err());
    assert_eq!(added.apply(&files(&[])).unwrap()["x"], "new\n");
}

/// What `git apply` 2.47 makes of it.
#[test]
fn hunks_move_to_the_nearest_place_that_fits() {
    let patch = Patch::parse("--- a/x\n+++ b/x\n@@ -5,3 +5,3 @@\n k\n-b\n+B\n e\n@@ -9,3 +9,3 @@\n p\n-c\n+C\n q\n").unwrap();
    let apply = |text: &str| patch.apply(&files(&[("x", text)])).map(|f| f["x"].clone());
    let (first, second) = ("k\nb\ne\n", "p\nc\nq\n");
    let (done, done2) = ("k\nB\ne\n", "p\nC\nq\n");
    assert_eq!(
        apply(&format!("{first}3\n4\n5\n{first}{second}")).unwrap(),
        format!("{first}3\n4\n5\n{done}{done2}"),
        "2 below, not 4 above"
    );
    assert_eq!(apply(&format!("0\n{first}4\n5\n6\n{first}{second}")).unwrap(), format!("0\n{first}4\n5\n6\n{done}{done2}"), "below first");
    assert_eq!(apply(&format!("{first}{second}")).unwrap(), format!("{done}{done2}"), "a file far shorter than the header says");
    assert_eq!(apply(&format!("{second}{first}")).unwrap(), format!("{done2}{done}"), "in another order");
    let meeting = Patch::parse("--- a/x\n+++ b/x\n@@ -5,3 +5,3 @@\n k\n-b\n+B\n e\n@@ -7,3 +7,3 @@\n e\n-c\n+C\n q\n").unwrap();
    assert!(meeting.apply(&files(&[("x", "0\nk\nb\ne\nc\nq\n")])).is_err(), "no line is in two hunks");
    let far = Patch::parse("--- a/x\n+++ b/x\n@@ -4294967295,0 +1 @@\n+a\n").unwrap();
    assert!(far.apply(&files(&[("x", "1\n")])).is_err());
}

/// Without leading context at line 1, or without trailing context, a hunk of git's cannot be anywhere else; where the header says so all
/// the same, `patch` takes it, and so do we.
#[test]
fn hunks_at_an_end_of_the_file_stay_there() {
    let apply = |hunk: &str, text: &str| Patch::parse(&format!("--- a/x\n+++ b/x\n{hunk}")).unwrap().apply(&files(&[("x", text)]));
    let top = "@@ -1,2 +1,3 @@\n+z\n a\n b\n";
    assert_eq!(apply(top, "a\nb\nc\na\nb\n").unwrap()["x"], "z\na\nb\nc\na\nb\n", "at line 1, whatever the end");
    assert!(apply(top, "0\na\nb\n").is_err());
    let end = "@@ -3,2 +3,3 @@\n a\n b\n+z\n";
    assert_eq!(apply(end, "a\nb\n3\n4\na\nb\n").unwrap()["x"], "a\nb\n3\n4\na\nb\nz\n");
    assert!(apply(end, "0\n1\n2\na\nb\nc\n").is_err());
    assert_eq!(apply(end, "0\n1\na\nb\nc\n").unwrap()["x"], "0\n1\na\nb\nz\nc\n");
    let bare = "@@ -2 +2 @@\n-b\n+B\n";
    assert_eq!(apply(bare, "0\n1\na\nb\nc\n").unwrap()["x"], "0\n1\na\nB\nc\n");
}

#[test]
fn placed_hunks_have_the_numbers_of_the_file() {
    let text = "--- a/x\n+++ b/x\n@@ -1,3 +1,4 @@\n a\n-b\n+B\n+B2\n c\n@@ -5,2 +6,3 @@\n e\n+E\n f\n@@ -9,0 +10 @@\n+z\n";
    let starts = |text: &str, old: &str| -> Vec<usize> {
        let placed = Patch::parse(text).unwrap().placed(&files(&[("x", old)])).unwrap();
        placed.files[0].hunks.iter().map(|h| h.old_start).collect()
    };
    assert_eq!(starts(text, "a\nb\nc\nd\ne\nf\ng\nh\ni\n"), [1, 5, 9]);
    assert_eq!(starts(text, "a\nb\nc\nd\n\n\ne\nf\ng\nh\n"), [1, 7, 9]);
    let other = Patch::parse(text).unwrap();
    assert_eq!(other.placed(&files(&[("y", "")])).unwrap(), other);
    assert!(other.placed(&files(&[("x", "")])).unwrap_err().to_string().contains("x: line 1 is not what the patch expects"));
}

#[test]
fn two_files_can_swap_names() {
    let text = "diff --git a/a b/b\nrename from a\nrename to b\ndiff --git a/b b/a\nrename from b\nrename to a\n";
    let out = Patch::parse(text).unwrap().apply(&files(&[("a", "1"), ("b", "2")])).unwrap();
    assert_eq!((out["a"].as_str(), out["b"].as_str()), ("2", "1"));
}

#[test]
fn writes_what_git_writes() {
    let old = "fn one() {\n    1\n}\n\nfn two() {\n    a\n    b\n    c\n    d\n    e\n}\n";
    let new = old.replace("    d\n", "    D\n");
    let id = |s: &'static str| s;
    let text = write_change(
        Some(Side { path: "src/a.rs", mode: 0o100644, id: id("1111111111"), text: old }),
        Some(Side { path: "src/a.rs", mode: 0o100644, id: id("2222222222"), text: &new }),
    );
    let expected = "diff --git a/src/a.rs b/src/a.rs\nindex 1111111111..2222222222 100644\n--- a/src/a.rs\n+++ b/src/a.rs\n\
        @@ -6,6 +6,6 @@ fn two() {\n     a\n     b\n     c\n-    d\n+    D\n     e\n }\n";
    assert_eq!(text, expected);
    assert_eq!(write_change(Some(side("x", "a")), Some(side("x", "a"))), "");
    let added = write_change(None, Some(side("a b.py", "x")));
    assert_eq!(
        added,
        "diff --git a/a b.py b/a b.py\nnew file mode 100644\n--- /dev/null\n+++ b/a b.py\t\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"
    );
    assert_eq!(write_change(None, Some(side("e", ""))), "diff --git a/e b/e\nnew file mode 100644\n");
    let moved = write_change(Some(side("ä", "1\n2\n3\n")), Some(side("b", "1\n2\n4\n")));
    assert!(moved.starts_with("diff --git \"a/\\303\\244\" b/b\nsimilarity index 66%\nrename from \"\\303\\244\"\nrename to b\n--- "));
}

/// Texts of short lines, with every line ending and with or without one at the end.
fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["[ab]{0,2}", "[-+ @\\\\]{1,4}[ab]", Just("\r".to_owned()), Just("é".to_owned())], 0..24)
        .prop_flat_map(|lines| any::<bool>().prop_map(move |end| lines.join("\n") + if end { "\n" } else { "" }))
}

proptest! {
    #[test]
    fn written_diffs_parse_and_apply(old in text(), new in text(), path in "[ a-z\"\\\\é/.]{1,12}", to in "[ a-z.]{1,8}") {
        prop_assume!(path != to && old != new);
        for target in [&path, &to] {
            let diff = write_change(Some(side(&path, &old)), Some(side(target, &new)));
            let patch = Patch::parse(&diff).unwrap();
            prop_assert_eq!(patch.base_paths().collect::<Vec<_>>(), vec![path.as_str()], "{}", diff);
            prop_assert_eq!(patch.apply(&files(&[(&path, &old)])).unwrap(), files(&[(target, &new)]), "{}", diff);
        }
        let added = Patch::parse(&write_change(None, Some(side(&path, &new)))).unwrap();
        prop_assert_eq!(added.apply(&files(&[])).unwrap(), files(&[(&path, &new)]));
        let gone = Patch::parse(&write_change(Some(side(&path, &old)), None)).unwrap();
        prop_assert_eq!(gone.apply(&files(&[(&path, &old)])).unwrap(), files(&[]));
    }

    #[test]
    fn never_panics(text in "(diff --git |--- |\\+\\+\\+ |@@ -1,2 \\+1 @@|rename from |GIT binary patch|a/x|\"|\\\\3|[-+ ab\\\\\r]|\n){0,60}") {
        if let Ok(patch) = Patch::parse(&text) {
            let _ = patch.apply(&files(&[("x", "a\nb\n")]));
        }
    }

    #[test]
    fn cut_patches_never_panic(cut in 0..MIXED.len(), with in any::<char>()) {
        let cut = (0..=cut).rev().find(|&i| MIXED.is_char_boundary(i)).unwrap_or(0);
        let _ = Patch::parse(&MIXED[..cut]);
        let _ = Patch::parse(&format!("{}{with}{}", &MIXED[..cut], &MIXED[cut..]));
    }
}

/// What `patch --fuzz=5 -p1` (GNU patch 2.7.6) makes of it.
#[test]
fn with_fuzz_a_hunk_gives_up_its_outer_context() {
    let diff = "--- a/x\n+++ b/x\n@@ -1,7 +1,7 @@\n a\n b\n c\n-d\n+D\n e\n f\n g\n";
    let patch = Patch::parse(diff).unwrap();
    let with = |text: &str| BTreeMap::from([("x".to_owned(), text.to_owned())]);
    let moved = with("0\nA\nB\nc\nd\ne\nF\nG\n");
    assert!(patch.apply(&moved).is_err() && patch.apply_with_fuzz(&moved, 1).is_err());
    assert_eq!(patch.apply_with_fuzz(&moved, 5).unwrap(), with("0\nA\nB\nc\nD\ne\nF\nG\n"));
    assert!(patch.apply_with_fuzz(&with("a\nb\nc\nx\ne\nf\ng\n"), 5).is_err(), "the deleted line has to be there");
}
