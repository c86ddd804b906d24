use serde_json::json;

use super::*;

fn task(files: serde_json::Value, patch: &str) -> Task {
    Task::from_json(json!({ "files": files, "patch": patch })).unwrap()
}

fn names(task: &Task) -> Vec<String> {
    functions(task).unwrap().into_iter().map(|(p, n)| format!("{p} {n}")).collect()
}

fn numbers(task: &Task) -> Vec<usize> {
    lines(task).unwrap().into_iter().map(|(_, n)| n).collect()
}

const HEAD: &str = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n";

#[test]
fn lines_in_original_numbering_and_their_definitions() {
    let text = "import x\n\nclass A:\n    y = 1\n    def f(self):\n        return 1\n";
    let t = task(
        json!({ "a.py": text }),
        &format!(
            "{HEAD}@@ -1,6 +1,7 @@\n+import y\n import x\n \n class A:\n-    y = 1\n     def f(self):\n         return 1\n+    z = 2\n"
        ),
    );
    assert_eq!(numbers(&t), [1, 4, 6]);
    assert_eq!(names(&t), ["a.py <module>", "a.py A", "a.py A.f"]);
    let insert = |t: &str| Element::Insert("a.py".into(), t.into());
    assert_eq!(edits(&t).unwrap(), BTreeSet::from([Element::Delete("a.py".into(), 4), insert("import y"), insert("    z = 2")]));
}

#[test]
fn added_deleted_renamed_and_binary_files() {
    let added = "diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1 @@\n+x\n";
    let t = task(json!({ "a.py": "x\n" }), added);
    assert!(names(&t).is_empty() && numbers(&t).is_empty() && t.gold().unwrap().is_empty());
    assert_eq!(edits(&t).unwrap().len(), 1);
    let deleted = "diff --git a/a.py b/a.py\ndeleted file mode 100644\n--- a/a.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-def f():\n-    pass\n";
    let t = task(json!({ "a.py": "def f():\n    pass\n" }), deleted);
    assert_eq!((names(&t), numbers(&t), edits(&t).unwrap().len()), (vec!["a.py f".to_owned()], vec![1, 2], 2));
    let renamed = "diff --git a/a.py b/b.py\nsimilarity index 50%\nrename from a.py\nrename to b.py\n--- a/a.py\n+++ b/b.py\n@@ -1,2 +1,2 @@\n x\n-y\n+z\n";
    let t = task(json!({ "a.py": "x\ny\n" }), renamed);
    assert_eq!((names(&t), numbers(&t), edits(&t).unwrap().len()), (vec!["a.py <module>".to_owned()], vec![2], 2));
    let pure = "diff --git a/a.py b/b.py\nsimilarity index 100%\nrename from a.py\nrename to b.py\n";
    let t = task(json!({ "a.py": "x\n" }), pure);
    assert!(t.gold().unwrap().contains("a.py") && numbers(&t).is_empty() && edits(&t).unwrap().is_empty());
    let binary = "diff --git a/a.bin b/a.bin\nindex 1..2 100644\nBinary files a/a.bin and b/a.bin differ\n";
    let t = task(json!({ "a.py": "x\n" }), binary);
    assert!(t.gold().unwrap().contains("a.bin") && names(&t).is_empty() && edits(&t).unwrap().is_empty());
}

#[test]
fn line_ends_other_bytes_and_files_that_are_not_code() {
    let t = task(json!({ "a.py": "def f():\r\n    x\r\n" }), &format!("{HEAD}@@ -1,2 +1,2 @@\n def f():\r\n-    x\r\n+    y\r\n"));
    assert_eq!((names(&t), numbers(&t), edits(&t).unwrap().len()), (vec!["a.py f".to_owned()], vec![2], 2));
    let open = format!("{HEAD}@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n");
    let t = task(json!({ "a.py": "a\nb" }), &open);
    assert_eq!((numbers(&t), contents(&t).unwrap()["a.py"].1.as_str()), (vec![2], "a\nb\n"));
    // Bytes that are not UTF-8 come as U+FFFD, or not at all: then hunks and `gold_functions` are all there is.
    let t = task(json!({ "a.py": "# \u{fffd}\nx\n" }), &format!("{HEAD}@@ -1,2 +1,2 @@\n # \u{fffd}\n-x\n+y\n"));
    assert_eq!((names(&t), numbers(&t)), (vec!["a.py <module>".to_owned()], vec![2]));
    let mut t = task(json!({}), &format!("{HEAD}@@ -3 +3 @@\n-x\n+y\n"));
    t.gold_functions = Some(BTreeMap::from([("a.py".to_owned(), vec!["f".to_owned()])]));
    assert_eq!((names(&t), numbers(&t), edits(&t).unwrap().len()), (vec!["a.py f".to_owned()], vec![3], 0));
}

#[test]
fn a_hunk_header_that_counts_from_0_is_no_panic() {
    let t = task(json!({ "a.py": "a\nb\nc\n" }), &format!("{HEAD}@@ -0,3 +0,4 @@\n+z\n a\n-b\n+B\n c\n"));
    assert_eq!(numbers(&t), [1, 2]);
}

#[test]
fn lines_are_where_the_hunk_stands_not_where_its_header_says() {
    let line = |i: usize| if i < 12 { format!("l{i}\n") } else { format!("    l{i}\n") };
    let text: String = (1..30).map(|i| if i == 12 { "def f():\n".to_owned() } else { line(i) }).collect();
    let t = task(json!({ "a.py": text }), &format!("{HEAD}@@ -3,3 +3,3 @@\n def f():\n-    l13\n+    X\n     l14\n"));
    assert_eq!((numbers(&t), names(&t)), (vec![13], vec!["a.py f".to_owned()]));
    assert!(edits(&t).unwrap().contains(&Element::Delete("a.py".into(), 13)), "the edits agree");
    let misfit = task(json!({ "a.py": "x\n" }), &format!("{HEAD}@@ -1 +1 @@\n-y\n+z\n"));
    assert!(lines(&misfit).unwrap_err().to_string().contains("field `patch`: a.py: line 1 is not what the patch expects"));
}
