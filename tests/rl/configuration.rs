//! `docs/configuration.md` holds the table of settings that the program itself has, and the recipes are configurations.

use sorft_native::rl::config::{Config, keys};
use std::path::Path;

const BEGIN: &str = "<!-- settings: written by `UPDATE_DOCS=1 cargo test --test rl` -->\n";
const END: &str = "<!-- end of settings -->";

#[test]
fn the_documented_settings_are_the_programs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the table");
    let (_, after) = rest.split_once(END).expect("the mark after the table");
    let expected = format!("{before}{BEGIN}{}{END}{after}", keys::markdown());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).expect("write docs/configuration.md");
    } else {
        assert!(text == expected, "docs/configuration.md is behind: run `UPDATE_DOCS=1 cargo test --test rl`");
    }
}

/// What `docs/recipes` offers is a configuration of this version.
#[test]
fn recipes_are_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipes");
    let files: Vec<_> = std::fs::read_dir(dir).expect("docs/recipes").map(|entry| entry.expect("an entry").path()).collect();
    assert!(files.len() >= 2);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a recipe");
        Config::parse(&text, &file).unwrap_or_else(|e| panic!("{e}"));
    }
}
