//! The names that a source file defines at its top level, by a scan of its lines: evidence for a prompt, not a parse.
//!
//! Python is read by its indentation, with strings and their line ends taken into account; other languages by the keywords that open a
//! definition at the start of a line (or, in the C family, by a name before a parenthesis there). A name that a macro or a condition
//! hides is missed, a line of a long comment that looks like a definition is taken: evidence may be wrong where a gold set may not.

use super::paths::language;

/// The names that the file defines at its top level, in the order of the file, each once. Empty for languages not known.
pub fn top_level_names(path: &str, text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut put = |name: &str| {
        if !name.is_empty() && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    };
    match language(path) {
        Some("Python") => python(text, &mut put),
        Some("C" | "C++" | "Objective-C") => text.lines().for_each(|l| c_family(l).into_iter().for_each(&mut put)),
        Some(language) => {
            let (skip, keywords) = grammar(language);
            text.lines().filter_map(|l| keyword_definition(l, skip, keywords)).for_each(put);
        }
        None => {}
    }
    names
}

/// What may stand before a definition's keyword, and the keywords that a name follows.
type Grammar = (&'static [&'static str], &'static [&'static str]);

fn grammar(language: &str) -> Grammar {
    match language {
        "Rust" => (
            &["pub", "pub(crate)", "pub(super)", "async", "unsafe", "const", "extern", "\"C\"", "default"],
            &["fn", "struct", "enum", "trait", "union", "type", "macro_rules!", "mod"],
        ),
        "JavaScript" | "TypeScript" => (
            &["export", "default", "async", "declare", "abstract"],
            &["function", "function*", "class", "interface", "enum", "type", "namespace", "const", "let", "var"],
        ),
        "Go" => (&[], &["func", "type"]),
        "Java" | "Kotlin" | "C#" | "Scala" | "Dart" | "Swift" => (
            &[
                "public",
                "private",
                "protected",
                "internal",
                "static",
                "final",
                "abstract",
                "sealed",
                "open",
                "data",
                "partial",
                "override",
                "inline",
                "suspend",
                "case",
                "implicit",
                "fileprivate",
                "indirect",
            ],
            &["class", "interface", "enum", "record", "object", "trait", "struct", "protocol", "extension", "fun", "func", "def", "mixin"],
        ),
        "Ruby" => (&[], &["class", "module", "def"]),
        "PHP" => (&["final", "abstract", "readonly"], &["class", "interface", "trait", "enum", "function"]),
        "Lua" => (&["local"], &["function"]),
        "Shell" => (&[], &["function"]),
        "Perl" => (&[], &["package", "sub"]),
        "Elixir" => (&[], &["defmodule", "defprotocol"]),
        "Julia" => (&["mutable", "abstract"], &["function", "struct", "module", "macro", "type"]),
        "Zig" => (&["pub", "export", "inline"], &["fn", "const", "var"]),
        "Nim" => (&[], &["proc", "func", "template", "macro", "iterator", "method"]),
        "Haskell" => (&[], &["data", "newtype", "class", "type", "module"]),
        "OCaml" => (&[], &["let", "type", "module", "class"]),
        "Clojure" => (&[], &["(defn", "(def", "(defmacro", "(defprotocol", "(defrecord"]),
        _ => (&[], &[]),
    }
}

/// The name of `skipped* keyword name` at the start of a line. Go's `func (r *T) Name` gives the name after the receiver.
fn keyword_definition<'a>(line: &'a str, skip: &[&str], keywords: &[&str]) -> Option<&'a str> {
    if line.starts_with(char::is_whitespace) {
        return None;
    }
    let mut rest = line;
    loop {
        let (word, after) = rest.split_once(char::is_whitespace)?;
        rest = after.trim_start();
        if keywords.contains(&word) {
            if word == "func" && rest.starts_with('(') {
                rest = rest.split_once(')')?.1.trim_start();
            }
            return Some(identifier(rest)).filter(|name| !name.is_empty());
        }
        if !skip.contains(&word) {
            return None;
        }
    }
}

/// The identifier that a text begins with (with `.` and `:` inside, as `A.b` and `ns::f`; none at the end).
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | ':'))).unwrap_or(text.len());
    text[..end].trim_end_matches(['.', ':'])
}

/// What a line at the left margin of a C or C++ file defines: a type by its keyword, a macro, or a function by the name before its
/// first parenthesis.
fn c_family(line: &str) -> Option<&str> {
    if let Some(macro_name) = line.strip_prefix("#define ") {
        return Some(identifier(macro_name.trim_start())).filter(|n| line.contains(&format!("{n}(")));
    }
    if !line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || line.trim_end().ends_with(';') {
        return None;
    }
    for keyword in ["class ", "struct ", "enum class ", "enum ", "union ", "namespace ", "@interface ", "@implementation "] {
        let rest = line.strip_prefix("typedef ").unwrap_or(line);
        if let Some(rest) = rest.strip_prefix(keyword)
            && !rest.contains('(')
        {
            return Some(identifier(rest.trim_start())).filter(|n| !n.is_empty());
        }
    }
    let head = line.split_once('(')?.0.trim_end();
    let name = head.rsplit(|c: char| c.is_whitespace() || c == '*' || c == '&').next()?;
    // A name alone is a call of a macro, not a definition: something must stand before it.
    let defines = name.len() < head.len() && !head.contains(['=', '{']) && !head.starts_with("return ") && !head.starts_with("else");
    Some(identifier(name)).filter(|n| defines && !n.is_empty())
}

/// The classes and functions of a Python file's top level.
fn python(text: &str, put: &mut impl FnMut(&str)) {
    let mut open_string = None;
    for line in text.lines() {
        if open_string.is_none() {
            let head = line.strip_prefix("async ").unwrap_or(line);
            for keyword in ["def ", "class ", "cdef class ", "cpdef "] {
                if let Some(rest) = head.strip_prefix(keyword) {
                    put(identifier(rest.trim_start()).trim_end_matches(':'));
                }
            }
        }
        open_string = string_state(line, open_string);
    }
}

/// Which triple-quoted string is open after a line of Python, if any.
fn string_state(line: &str, mut open: Option<&'static str>) -> Option<&'static str> {
    let mut rest = line;
    loop {
        if let Some(quotes) = open {
            let Some(end) = rest.find(quotes) else { return open };
            rest = &rest[end + 3..];
            open = None;
            continue;
        }
        let at = rest.find(['"', '\'', '#', '\\']);
        let Some(at) = at else { return None };
        let tail = &rest[at..];
        if tail.starts_with('#') {
            return None;
        }
        if tail.starts_with('\\') {
            rest = tail.get(2..).unwrap_or_default();
        } else if let Some(quotes) = ["\"\"\"", "'''"].into_iter().find(|q| tail.starts_with(q)) {
            open = Some(quotes);
            rest = &tail[3..];
        } else {
            // A string of one line: skip to its closing quote, over escaped ones.
            let quote = tail.as_bytes()[0];
            let mut i = 1;
            while i < tail.len() && tail.as_bytes()[i] != quote {
                i += if tail.as_bytes()[i] == b'\\' { 2 } else { 1 };
            }
            rest = tail.get(i + 1..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn python_names_outside_strings() {
        let text = "import x\n\"\"\"Doc\ndef not_me(): pass\n\"\"\"\nclass A(B):\n    def inner(self): pass\n\nasync def run():\n    pass\n\
            X = '''a'''; Y = \"# \\\" '''\"\ndef last[T](x): pass\ndef last(x): pass\nclass C:\n    pass\n";
        assert_eq!(top_level_names("a.py", text), ["A", "run", "last", "C"]);
    }

    #[test]
    fn other_languages_by_keyword() {
        let names = |path: &str, text: &str| top_level_names(path, text).join(" ");
        let rust = "pub fn one<T>() {}\npub(crate) struct Two;\n    fn inner() {}\nimpl Two {}\npub enum Three {}\n";
        assert_eq!(names("a.rs", rust), "one Two Three");
        let js = "export default class A {}\nexport async function f() {}\nconst g = () => 1\nreturn x\n";
        assert_eq!(names("a.ts", js), "A f g");
        assert_eq!(names("a.go", "func Run(x int) {}\nfunc (t *T) Close() {}\ntype T struct {}\n"), "Run Close T");
        assert_eq!(names("A.java", "public final class A {\n  void f() {}\n}\ninterface B {}\n"), "A B");
        let c = "#define MAX(a, b) x\n#define N 3\nstatic int *add(int a)\n{\n  return f(a);\n}\nstruct point {\nint g(void);\nCALL(x)\n";
        assert_eq!(names("a.c", c), "MAX add point");
        assert_eq!(names("a.cpp", "void Foo::bar(int x) {\nnamespace ns {\nclass A : public B {\n"), "Foo::bar ns A");
        assert_eq!(names("a.rb", "module M\nclass C < D\n  def inner\nend\ndef top(x)\n"), "M C top");
        assert_eq!(names("a.unknown", "def f(): pass\n"), "");
    }

    proptest! {
        #[test]
        fn never_panics(text in "(def |class |func \\(|\"\"\"|'|\"|\\\\|#define |[a-zé (){}:;*]|\n){0,40}") {
            for path in ["a.py", "a.rs", "a.c", "a.go", "a.rb", "a.clj"] {
                top_level_names(path, &text);
            }
        }
    }
}
