//! The names that a source file of a language without a grammar defines at its top level, by the keywords that open a definition at the
//! start of a line: evidence for a prompt, not a parse. A line of a long comment that looks like a definition is taken.

use crate::data::paths::language;

/// The names that the file defines at its top level, in the order of the file, each once. Empty for languages not known.
pub(super) fn top_level_names(path: &str, text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let Some(language) = language(path) else { return names };
    let (skip, keywords) = grammar(language);
    for name in text.lines().filter_map(|l| keyword_definition(l, skip, keywords)) {
        if !name.is_empty() && !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// What may stand before a definition's keyword, and the keywords that a name follows.
type Grammar = (&'static [&'static str], &'static [&'static str]);

fn grammar(language: &str) -> Grammar {
    match language {
        "Kotlin" | "C#" | "Scala" | "Dart" | "Swift" => (
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

/// The name of `skipped* keyword name` at the start of a line.
fn keyword_definition<'a>(line: &'a str, skip: &[&str], keywords: &[&str]) -> Option<&'a str> {
    if line.starts_with(char::is_whitespace) {
        return None;
    }
    let mut rest = line;
    loop {
        let (word, after) = rest.split_once(char::is_whitespace)?;
        rest = after.trim_start();
        if keywords.contains(&word) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn definitions_by_keyword() {
        let names = |path: &str, text: &str| top_level_names(path, text).join(" ");
        assert_eq!(names("a.kt", "public final class A {\n  fun f() {}\n}\ninterface B {}\nfun g() {}\n"), "A B g");
        assert_eq!(names("a.rb", "module M\nclass C < D\n  def inner\nend\ndef top(x)\n"), "M C top");
        assert_eq!(names("a.unknown", "def f(): pass\n"), "");
    }

    proptest! {
        #[test]
        fn never_panics(text in "(def |class |func \\(|\"|[a-zé (){}:;*]|\n){0,40}") {
            for path in ["a.rb", "a.kt", "a.clj"] {
                top_level_names(path, &text);
            }
        }
    }
}
