//! What a path is, told from its name alone: source, test, documentation, lock file, generated or other.

/// The part a file plays in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Code that a fix changes.
    Source,
    /// Code that tests it, and the data of tests.
    Test,
    /// Documentation and change logs.
    Doc,
    /// What a package manager writes down (`Cargo.lock`, `yarn.lock`, ...).
    Lock,
    /// Code that a tool wrote or that comes from elsewhere (`vendor/`, `*.min.js`, `*_pb2.py`, ...).
    Generated,
    /// Anything else: settings, data, images.
    Other,
}

/// File name endings that count as source code, by language.
pub const SOURCE_EXTENSIONS: &[(&str, &[&str])] = &[
    ("Python", &["py", "pyi", "pyx", "pxd"]),
    ("Rust", &["rs"]),
    ("JavaScript", &["js", "jsx", "mjs", "cjs", "vue", "svelte"]),
    ("TypeScript", &["ts", "tsx", "mts", "cts"]),
    ("Go", &["go"]),
    ("Java", &["java"]),
    ("Kotlin", &["kt", "kts"]),
    ("Scala", &["scala"]),
    ("C", &["c", "h"]),
    ("C++", &["cc", "cpp", "cxx", "hh", "hpp", "hxx", "cu", "cuh", "inl"]),
    ("C#", &["cs"]),
    ("Ruby", &["rb"]),
    ("PHP", &["php"]),
    ("Swift", &["swift"]),
    ("Objective-C", &["m", "mm"]),
    ("Lua", &["lua"]),
    ("Shell", &["sh", "bash"]),
    ("Perl", &["pl", "pm"]),
    ("Haskell", &["hs"]),
    ("OCaml", &["ml", "mli"]),
    ("Elixir", &["ex", "exs"]),
    ("Erlang", &["erl", "hrl"]),
    ("Clojure", &["clj", "cljs", "cljc"]),
    ("Dart", &["dart"]),
    ("Julia", &["jl"]),
    ("R", &["r"]),
    ("Zig", &["zig"]),
    ("Nim", &["nim"]),
];

const LOCKS: &[&str] = &[
    "cargo.lock",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "bun.lockb",
    "bun.lock",
    "poetry.lock",
    "pdm.lock",
    "uv.lock",
    "pipfile.lock",
    "go.sum",
    "composer.lock",
    "gemfile.lock",
    "mix.lock",
    "pubspec.lock",
    "flake.lock",
    "packages.lock.json",
    "podfile.lock",
];

const TEST_DIRS: &[&str] =
    &["test", "tests", "testing", "__tests__", "spec", "specs", "testdata", "test_data", "fixtures", "__snapshots__", "e2e"];
const GENERATED_DIRS: &[&str] = &["vendor", "node_modules", "third_party", "thirdparty", "dist", "_vendor", "_vendored"];
const DOC_DIRS: &[&str] = &["doc", "docs", "documentation"];
const DOC_EXTENSIONS: &[&str] = &["md", "rst", "txt", "adoc", "asciidoc", "mdx", "tex", "texi", "pod"];
const DOC_STEMS: &[&str] =
    &["readme", "changelog", "changes", "news", "history", "authors", "contributors", "license", "copying", "notice"];

/// The language of a source file, by its name's ending; none where it is not one of [`SOURCE_EXTENSIONS`].
pub fn language(path: &str) -> Option<&'static str> {
    let extension = extension(file_name(path));
    SOURCE_EXTENSIONS.iter().find(|(_, all)| all.contains(&extension.as_str())).map(|&(name, _)| name)
}

/// The part that the file at `path` plays. The first that fits: lock file, generated, test, documentation, source, other. A source whose
/// path is not one line is other: prompts list paths one a line, and so do answers.
pub fn role(path: &str) -> Role {
    let lower = path.to_ascii_lowercase();
    let name = file_name(&lower);
    let dirs = || lower.split('/').rev().skip(1);
    if LOCKS.contains(&name) {
        Role::Lock
    } else if dirs().any(|d| GENERATED_DIRS.contains(&d)) || is_generated(name) {
        Role::Generated
    } else if dirs().any(|d| TEST_DIRS.contains(&d)) || is_test_name(file_name(path)) {
        Role::Test
    } else if lower.split('/').next().is_some_and(|d| d != lower && DOC_DIRS.contains(&d)) || is_doc(name) {
        Role::Doc
    } else if language(path).is_some() && !path.contains(['\n', '\r']) {
        Role::Source
    } else {
        Role::Other
    }
}

/// The last part of a path.
pub fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Everything before the last part of a path; empty at the root.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn extension(name: &str) -> String {
    name.rsplit_once('.').map_or(String::new(), |(_, e)| e.to_ascii_lowercase())
}

fn is_generated(lower: &str) -> bool {
    [".min.js", ".min.css", "_pb2.py", "_pb2_grpc.py", ".pb.go", ".pb.h", ".pb.cc", ".g.dart", ".designer.cs"]
        .iter()
        .any(|ending| lower.ends_with(ending))
}

fn is_doc(lower: &str) -> bool {
    let stem = lower.split('.').next().unwrap_or(lower);
    DOC_EXTENSIONS.contains(&extension(lower).as_str()) || (DOC_STEMS.contains(&stem) && language(lower).is_none())
}

/// Names that test frameworks look for: `test_x.py`, `x_test.go`, `x.test.ts`, `x.spec.js`, `XTest.java`, `conftest.py`.
fn is_test_name(name: &str) -> bool {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let lower = stem.to_ascii_lowercase();
    let camel = ["Test", "Tests", "Spec", "Specs", "TestCase", "IT"];
    lower == "conftest"
        || lower == "test"
        || lower == "tests"
        || lower.starts_with("test_")
        || ["_test", "_tests", ".test", ".tests", ".spec", "_spec"].iter().any(|ending| lower.ends_with(ending))
        || (matches!(language(name), Some("Java" | "Kotlin" | "Scala" | "C#" | "Swift" | "PHP" | "Dart"))
            && camel.iter().any(|ending| stem.len() > ending.len() && stem.ends_with(ending)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name() {
        let cases = [
            ("src/click/core.py", Role::Source),
            ("src/lib.rs", Role::Source),
            ("web/App.TSX", Role::Source),
            ("include/x.hpp", Role::Source),
            ("examples/demo.py", Role::Source),
            ("contest.py", Role::Source),
            ("latest.py", Role::Source),
            ("src/history.rs", Role::Source),
            ("doc.py", Role::Source),
            ("tests/conftest.py", Role::Test),
            ("conftest.py", Role::Test),
            ("pkg/test_x.py", Role::Test),
            ("pkg/x_test.go", Role::Test),
            ("web/x.test.ts", Role::Test),
            ("src/FooTest.java", Role::Test),
            ("src/tests/data/x.json", Role::Test),
            ("spec/models/user_spec.rb", Role::Test),
            ("docs/conf.py", Role::Doc),
            ("README.md", Role::Doc),
            ("CHANGES", Role::Doc),
            ("CHANGES.rst", Role::Doc),
            ("Cargo.lock", Role::Lock),
            ("web/yarn.lock", Role::Lock),
            ("vendor/x/y.go", Role::Generated),
            ("api/x_pb2.py", Role::Generated),
            ("js/jquery.min.js", Role::Generated),
            ("Cargo.toml", Role::Other),
            ("Makefile", Role::Other),
            ("", Role::Other),
            ("src/two\nlines.py", Role::Other),
        ];
        for (path, expected) in cases {
            assert_eq!(role(path), expected, "{path}");
        }
    }

    #[test]
    fn parts_of_paths() {
        assert_eq!((file_name("a/b.c"), parent("a/b.c")), ("b.c", "a"));
        assert_eq!((file_name("b"), parent("b")), ("b", ""));
        assert_eq!((language("a/b.PYI"), language("py")), (Some("Python"), None));
    }
}
