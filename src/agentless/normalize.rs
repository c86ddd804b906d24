//! When two patches are the same change: both versions of every file without comments, docstrings, blank lines and layout, and the
//! difference between these (Agentless, arXiv 2407.01489, section 3.3; Agentless Mini of SWE-RL, arXiv 2502.18449).

use tree_sitter::{Node, Parser};

use crate::data::patch::{Side, write_change};
use crate::{Error, Result};

/// A file before and after a change; none where it is not there.
#[derive(Clone, Copy, Debug)]
pub struct Versions<'a> {
    /// The file's path.
    pub path: &'a str,
    /// Its text before.
    pub old: Option<&'a str>,
    /// Its text after.
    pub new: Option<&'a str>,
}

/// Why a patch counts as none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blank {
    /// A file of this path could be parsed before the change, or is new, and cannot be parsed after it.
    Syntax(String),
    /// Nothing but comments, docstrings, blank lines or layout changes.
    NothingChanges,
}

/// The normalised patch: a unified diff between normalised versions, in the order of the files. Where all that a file's change does is
/// add definitions, the context is left out: two patches that add the same function at different places are then the same.
///
/// # Errors
///
/// The outer error: the parser cannot be set up. The inner one: the patch counts as none.
pub fn normalize(files: &[Versions<'_>]) -> Result<Result<String, Blank>> {
    let mut out = String::new();
    for file in files {
        let (old, new) = match versions(file)? {
            Ok(versions) => versions,
            Err(blank) => return Ok(Err(blank)),
        };
        if old == new && file.old.is_some() == file.new.is_some() {
            continue;
        }
        let side = |text| Side { path: file.path, mode: 0o100_644, id: "", text };
        let diff = write_change(file.old.map(|_| side(old.as_str())), file.new.map(|_| side(new.as_str())));
        out.push_str(&if file.path.ends_with(".py") { without_context(&diff) } else { diff });
    }
    Ok(if out.is_empty() { Err(Blank::NothingChanges) } else { Ok(out) })
}

/// Both versions, normalised alike.
fn versions(file: &Versions<'_>) -> Result<Result<(String, String), Blank>> {
    let plain = || (lines(file.old.unwrap_or_default()), lines(file.new.unwrap_or_default()));
    if !file.path.ends_with(".py") {
        return Ok(Ok(plain()));
    }
    let (old, new) = (python(file.old.unwrap_or_default())?, python(file.new.unwrap_or_default())?);
    Ok(match (old, new) {
        (Some(old), Some(new)) => Ok((old, new)),
        (Some(_), None) => Err(Blank::Syntax(file.path.to_owned())),
        // Python 2, or a template: what could not be parsed before need not be after.
        (None, _) => Ok(plain()),
    })
}

/// The lines that hold more than white space, without the white space at their ends.
fn lines(text: &str) -> String {
    text.lines().map(str::trim_end).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect()
}

/// A diff that inserts definitions alone, without headers and context; any other as it is.
fn without_context(diff: &str) -> String {
    let body = || diff.lines().skip_while(|l| !l.starts_with("@@ ")).filter(|l| !l.starts_with("@@ "));
    let changed: Vec<&str> = body().filter(|l| l.starts_with(['+', '-'])).collect();
    let first = changed.first().map_or("", |l| l[1..].trim_start());
    let is_definition = ["def ", "async def ", "@"].iter().any(|start| first.starts_with(start));
    let depth = |line: &str| line.len() - line.trim_start().len();
    let least = changed.first().map_or(0, |l| depth(&l[1..]));
    // The first line is the definition's, and all others are in it or begin one of its like.
    let whole = changed.iter().all(|l| {
        let text = &l[1..];
        depth(text) > least || ["def ", "async def ", "@"].iter().any(|start| text.trim_start().starts_with(start))
    });
    if diff.contains("\nnew file mode") || !is_definition || !whole || changed.iter().any(|l| l.starts_with('-')) {
        return diff.to_owned();
    }
    let name = diff.lines().find(|l| l.starts_with("+++ ")).unwrap_or_default();
    format!("{name}\n{}\n", changed.join("\n"))
}

/// Python in one layout: a logical line each line, four blanks a level, one blank between words; without comments, docstrings, trailing
/// commas and the choice of quotes. None for a text that is not Python.
///
/// # Errors
///
/// The parser cannot be set up.
pub fn python(text: &str) -> Result<Option<String>> {
    let mut parser = Parser::new();
    let failed = |e: String| Error::device(format!("cannot set up the Python parser: {e}"));
    parser.set_language(&tree_sitter_python::LANGUAGE.into()).map_err(|e| failed(e.to_string()))?;
    let tree = parser.parse(text, None).ok_or_else(|| failed("it gave up".to_owned()))?;
    let root = tree.root_node();
    if root.has_error() {
        return Ok(None);
    }
    let mut printer = Printer { text, depth: 0, line: String::new(), out: String::new() };
    printer.block(root);
    Ok(Some(printer.out))
}

struct Printer<'a> {
    text: &'a str,
    depth: usize,
    line: String,
    out: String,
}

/// Parts of a compound statement that begin a line of their own at the statement's level.
const CLAUSES: [&str; 7] =
    ["elif_clause", "else_clause", "except_clause", "except_group_clause", "finally_clause", "decorator", "case_clause"];

/// How deep a tree may be: deeper ones (a generated list of lists) are printed as they stand.
const DEEPEST: usize = 400;

impl Printer<'_> {
    /// The statements of a module or block, its docstring left out.
    fn block(&mut self, block: Node<'_>) {
        let mut cursor = block.walk();
        let statements = block.named_children(&mut cursor).filter(|n| n.kind() != "comment");
        for (i, statement) in statements.enumerate() {
            if i > 0 || !is_docstring(statement) {
                self.node(statement, 0);
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.out.push_str(&"    ".repeat(self.depth));
            self.out.push_str(&std::mem::take(&mut self.line));
            self.out.push('\n');
        }
    }

    fn node(&mut self, node: Node<'_>, level: usize) {
        let source = &self.text[node.byte_range()];
        match node.kind() {
            "comment" | ";" | "line_continuation" => return,
            "string" => return self.word(&requoted(source)),
            "block" => {
                self.flush();
                self.depth += 1;
                self.block(node);
                self.depth -= 1;
                return;
            }
            kind if CLAUSES.contains(&kind) => self.flush(),
            _ => {}
        }
        if node.child_count() == 0 || level > DEEPEST {
            return self.word(source);
        }
        let mut cursor = node.walk();
        let children: Vec<Node<'_>> = node.children(&mut cursor).filter(|n| n.kind() != "comment").collect();
        for (i, child) in children.iter().enumerate() {
            let closes = children.get(i + 1).is_some_and(|next| [")", "]", "}"].contains(&next.kind()));
            // `(x,)` is a tuple by its comma; any other last comma is layout.
            if child.kind() == "," && closes && !(node.kind() == "tuple" && node.named_child_count() == 1) {
                continue;
            }
            self.node(*child, level + 1);
        }
        if CLAUSES.contains(&node.kind()) {
            self.flush();
        }
    }

    fn word(&mut self, word: &str) {
        if word.is_empty() {
            return;
        }
        if !self.line.is_empty() {
            self.line.push(' ');
        }
        self.line.push_str(word);
    }
}

fn is_docstring(node: Node<'_>) -> bool {
    let text = |n: Node<'_>| ["string", "concatenated_string"].contains(&n.kind());
    node.kind() == "expression_statement" && node.named_child_count() == 1 && node.named_child(0).is_some_and(text)
}

/// A string in single quotes where it is in simple double ones and holds neither quotes nor backslashes.
fn requoted(source: &str) -> String {
    let Some(at) = source.find(['"', '\'']) else { return source.to_owned() };
    let (prefix, rest) = source.split_at(at);
    match rest.strip_prefix('"').and_then(|r| r.strip_suffix('"')) {
        Some(inner) if !inner.contains(['"', '\'', '\\', '\n']) => format!("{prefix}'{inner}'"),
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "\"\"\"About.\"\"\"\nimport os  # used\n\n\ndef f(a, b=\"x\"):\n    '''Doc.'''\n\n    # say\n    if a: return g(a,\n        b)\n    return {\n        'k': 1,\n    }\n";
    const B: &str = "import os\ndef f(a,b='x',):\n  if a:\n    return g(a, b)\n  return {\"k\": 1}\n";

    fn patch(old: &str, new: &str) -> Result<String, Blank> {
        normalize(&[Versions { path: "m.py", old: Some(old), new: Some(new) }]).unwrap()
    }

    #[test]
    fn layout_does_not_count() {
        let a = python(A).unwrap().unwrap();
        assert_eq!(a, python(B).unwrap().unwrap());
        assert_eq!(a, "import os\ndef f ( a , b = 'x' ) :\n    if a :\n        return g ( a , b )\n    return { 'k' : 1 }\n");
        assert_ne!(python("x = (1,)\n").unwrap(), python("x = (1)\n").unwrap());
        assert_ne!(python("x = 'a'\n").unwrap(), python("x = 'b'\n").unwrap());
        assert_eq!(python("x = 1; y = 2\n").unwrap(), python("x = 1\ny = 2\n").unwrap());
        assert_eq!(python("try: a()\nexcept E: b()\nelse: c()\n").unwrap().unwrap().lines().count(), 6);
    }

    #[test]
    fn patches_that_say_the_same_are_the_same() {
        let base = "def f(x):\n    return x\n";
        let one = patch(base, "def f(x):\n    # more\n    return x + 1\n").unwrap();
        assert_eq!(one, patch(base, "def f(x):\n\n    return (  # one\n        x + 1)\n").unwrap().replace("( x + 1 )", "x + 1"));
        assert_ne!(one, patch(base, "def f(x):\n    return x + 2\n").unwrap());
        assert_eq!(patch(base, "# new\ndef f(x):\n    'doc'\n    return x\n\n"), Err(Blank::NothingChanges));
        assert_eq!(patch(base, "def f(x:\n    return x\n"), Err(Blank::Syntax("m.py".to_owned())));
        assert!(patch("print 'a' if\n", "print 'b' if\n").is_ok(), "what was no Python need not become any");
        let text = [Versions { path: "a.txt", old: Some("a\n"), new: Some("a  \n\n") }];
        assert_eq!(normalize(&text).unwrap(), Err(Blank::NothingChanges));
    }

    #[test]
    fn a_function_is_the_same_wherever_it_is_added() {
        let base = "def f():\n    return 1\n\n\ndef g():\n    return 2\n";
        let added = "def h():\n    return 3\n\n\n";
        let (first, last) = (patch(base, &format!("{added}{base}")).unwrap(), patch(base, &format!("{base}\n\n{added}")).unwrap());
        assert_eq!(first, last);
        assert_eq!(first, "+++ b/m.py\n+def h ( ) :\n+    return 3\n");
        assert!(patch(base, &format!("x = 1\n{base}")).unwrap().contains("@@ "));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(def f\\(|if |:|\n|    |\"|'|\"\"\"|,|\\)|\\[|x|ä|#|;|@|\\\\){0,40}") {
            python(&text).unwrap();
            patch("x = 1\n", &text).ok();
        }
    }
}
