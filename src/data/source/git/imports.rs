//! Which files of a tree a source file imports, told from its text by the words of import lines: a guess that serves to pick related
//! files, not a resolver.

use std::collections::{BTreeSet, HashSet};

use crate::data::paths::parent;

/// The names that the import lines of `text` give, as paths without ending: `a/b/c` for `import a.b.c`, `from a.b import c`, `use
/// a::b::c`, `require 'a/b/c'`, `#include "a/b/c.h"`. A name that begins at the file's own folder is taken from there.
fn names(path: &str, text: &str) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let folder = parent(path);
    for line in text.lines().map(str::trim) {
        let quoted = || line.split(['"', '\'', '`']).nth(1).filter(|q| !q.is_empty());
        if let Some(rest) = line.strip_prefix("from ")
            && let Some((module, names)) = rest.split_once(" import ")
        {
            let base = relative(folder, module.trim());
            for name in names.split([',', '(', ')', ' ']).filter(|n| is_name(n) && *n != "as") {
                out.insert(join(&base, name));
            }
            out.insert(base);
        } else if line.starts_with("#include")
            || line.contains("require")
            || (line.starts_with("import") || line.contains(" from ")) && quoted().is_some()
        {
            if let Some(name) = quoted() {
                out.insert(resolve(folder, without_extension(name)));
            }
        } else if let Some(rest) = line.strip_prefix("import ") {
            for module in rest.split(',') {
                let module = module.split_whitespace().find(|w| *w != "static").unwrap_or_default();
                out.insert(module.trim_end_matches(';').replace('.', "/"));
            }
        } else if let Some(rest) = line.trim_start_matches("pub ").strip_prefix("use ") {
            let module = rest.split(['{', ';', ' ', '*']).next().unwrap_or_default().trim_end_matches("::");
            let module = module.trim_start_matches("crate::").trim_start_matches("super::").trim_start_matches("self::");
            out.insert(module.replace("::", "/").replace('\\', "/"));
        } else if let Some(rest) = line.trim_start_matches("pub ").strip_prefix("mod ")
            && let Some(name) = rest.strip_suffix(';')
        {
            out.insert(join(folder, name));
        }
    }
    out.remove("");
    out
}

/// The files among `paths` that `text`, which stands at `path`, imports: those whose path without ending is, or ends in, a name that it
/// imports (with its last part, or without it: what is imported may be in the file). In the order of `paths`.
pub(super) fn imported<'a>(path: &str, text: &str, paths: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let names = names(path, text);
    let mut wanted = HashSet::new();
    for name in &names {
        wanted.insert(name.as_str());
        wanted.extend(name.rsplit_once('/').map(|(module, _)| module).filter(|m| m.contains('/')));
    }
    let stems: HashSet<&str> = wanted.iter().map(|n| n.rsplit('/').next().unwrap_or(n)).collect();
    paths
        .filter(|p| *p != path)
        .filter(|p| {
            let module = module_of(p);
            let stem = module.rsplit('/').next().unwrap_or(module);
            stems.contains(stem) && suffixes(module).any(|s| wanted.contains(s))
        })
        .collect()
}

/// A path as a module's name: without its ending, and a package's file as the package.
fn module_of(path: &str) -> &str {
    let module = without_extension(path);
    ["/__init__", "/mod", "/index", "/lib"].iter().find_map(|end| module.strip_suffix(end)).unwrap_or(module)
}

/// `a/b/c`, `b/c`; a last part alone only where it is all there is.
fn suffixes(module: &str) -> impl Iterator<Item = &str> {
    let starts = std::iter::once(0).chain(module.match_indices('/').map(|(i, _)| i + 1));
    starts.map(move |i| &module[i..]).filter(move |s| s.len() == module.len() || s.contains('/'))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Python's `..a.b` from `folder`; without leading dots the name itself.
fn relative(folder: &str, module: &str) -> String {
    let dots = module.bytes().take_while(|&b| b == b'.').count();
    let name = module[dots..].replace('.', "/");
    if dots == 0 {
        return name;
    }
    let folder = (1..dots).fold(folder, |f, _| parent(f));
    if name.is_empty() { folder.to_owned() } else { join(folder, &name) }
}

/// `./a`, `../a` from `folder`; any other name itself.
fn resolve(folder: &str, name: &str) -> String {
    if !name.starts_with('.') {
        return name.to_owned();
    }
    let mut at: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(at.pop()),
            part => at.push(part),
        }
    }
    at.join("/")
}

fn without_extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    match name.rfind('.') {
        Some(at) if at > 0 && !path.ends_with('/') => &path[..path.len() - name.len() + at],
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::imported;

    const PATHS: [&str; 9] = [
        "src/app/core.py",
        "src/app/util/__init__.py",
        "src/app/util/text.py",
        "src/app/views.py",
        "web/a/b.ts",
        "web/a/index.ts",
        "web/c.ts",
        "rs/data/patch.rs",
        "core/x.h",
    ];

    #[test]
    fn imports_find_their_files() {
        let find = |path: &str, text: &str| imported(path, text, PATHS.into_iter());
        assert_eq!(find("src/app/views.py", "import os\nfrom app.core import Thing\nfrom . import util\n"), [PATHS[0], PATHS[1]]);
        assert_eq!(find("src/app/views.py", "from .util.text import (wrap,\n"), [PATHS[1], PATHS[2]]);
        assert_eq!(find("web/c.ts", "import { x } from './a/b';\nconst y = require('./a');\n"), [PATHS[4], PATHS[5]]);
        assert_eq!(find("rs/main.rs", "use crate::data::patch::Patch;\n"), [PATHS[7]]);
        assert_eq!(find("core/y.c", "#include \"core/x.h\"\n"), [PATHS[8]]);
        assert!(find("src/app/views.py", "import re, core\nx = 1\n").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(from |import |\\.|use |mod |;|#include|\"|'|/|a|ä|\n|require| ){0,40}") {
            imported("a/b.py", &text, PATHS.into_iter());
        }
    }
}
