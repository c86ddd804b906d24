//! The functions and classes that a source file defines, by its syntax tree (tree-sitter): what function localisation asks for, and
//! evidence for prompts. Files of languages without a grammar are scanned for keywords (`keywords.rs`): evidence only.

mod grammar;
mod keywords;

use grammar::{Grammar, grammar};
use tree_sitter::{Node, Parser, Tree};

/// The target that stands for code outside every definition.
pub const MODULE: &str = "<module>";

/// What is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A class, or what takes its place: a type, a trait, an implementation, a namespace.
    Class,
    /// A function or method.
    Function,
}

/// A definition and its lines (1-based, both ends included), decorators and attributes among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// The qualified name: the names of the definitions around it and its own, with `.` between them.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// How many definitions are around it.
    pub depth: usize,
    /// Its first line.
    pub first: usize,
    /// The last line before its body.
    pub head_last: usize,
    /// Its last line.
    pub last: usize,
}

/// The definitions of a file in its order, an outer one before those in it; none where there is no grammar for the path. A file that
/// does not parse gives what the parser makes of it.
pub fn definitions(path: &str, text: &str) -> Option<Vec<Definition>> {
    let grammar = grammar(path)?;
    let tree = parse(&grammar, text)?;
    let mut out: Vec<Definition> = Vec::new();
    // An explicit stack: nesting in a file must not overflow ours. (node, the definition around it, where a wrapper began)
    let mut stack: Vec<(Node<'_>, Option<usize>, Option<usize>)> = vec![(tree.root_node(), None, None)];
    while let Some((node, outer, wrapped)) = stack.pop() {
        let mut inside = outer;
        let mut start = None;
        if grammar.wrappers.contains(&node.kind()) && node.named_child_count() > 0 {
            start = Some(wrapped.unwrap_or_else(|| first_line(node, &grammar)));
        }
        if let Some((kind, own)) = grammar.definition(node, text) {
            let around = outer.map(|i| &out[i]);
            let name = around.map_or(own.clone(), |d| format!("{}.{own}", d.name));
            let depth = around.map_or(0, |d| d.depth + 1);
            let first = wrapped.unwrap_or_else(|| first_line(node, &grammar));
            let last = last_line(node).max(first);
            let head_last = head_end(node).clamp(first, last);
            inside = Some(out.len());
            out.push(Definition { name, kind, depth, first, head_last, last });
        }
        for i in (0..node.child_count()).rev() {
            if let Some(child) = node.child(i as u32).filter(|c| c.is_named()) {
                stack.push((child, inside, start));
            }
        }
    }
    Some(out)
}

/// The innermost definition that holds the line, or [`MODULE`].
pub fn target_of_line(definitions: &[Definition], line: usize) -> &str {
    let holds = definitions.iter().filter(|d| (d.first..=d.last).contains(&line));
    holds.reduce(|best, d| if d.first >= best.first { d } else { best }).map_or(MODULE, |d| &d.name)
}

/// The names that the file defines at its top level, in the order of the file, each once. Empty for languages not known.
pub fn top_level_names(path: &str, text: &str) -> Vec<String> {
    let Some(all) = definitions(path, text) else { return keywords::top_level_names(path, text) };
    let mut names: Vec<String> = Vec::new();
    for definition in all.into_iter().filter(|d| d.depth == 0) {
        if !names.contains(&definition.name) {
            names.push(definition.name);
        }
    }
    names
}

/// The names of all functions and classes that the file defines, without those around them, in the order of the file; for languages
/// without a grammar the top level's alone.
pub fn defined_names(path: &str, text: &str) -> Vec<String> {
    let own = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
    definitions(path, text).map_or_else(|| keywords::top_level_names(path, text), |all| all.iter().map(|d| own(&d.name)).collect())
}

/// How many places of a file its grammar cannot make sense of (`ERROR` nodes and missing ones); none where there is no grammar for the path.
pub fn syntax_errors(path: &str, text: &str) -> Option<usize> {
    let tree = parse(&grammar(path)?, text)?;
    let (mut count, mut stack) = (0, vec![tree.root_node()]);
    while let Some(node) = stack.pop() {
        count += usize::from(node.is_error() || node.is_missing());
        if node.has_error() {
            stack.extend((0..node.child_count()).filter_map(|i| node.child(i as u32)));
        }
    }
    Some(count)
}

fn parse(grammar: &Grammar, text: &str) -> Option<Tree> {
    let mut parser = Parser::new();
    parser.set_language(&grammar.language).ok()?;
    parser.parse(text, None)
}

/// The node's first line, with the attributes or decorators before it.
fn first_line(node: Node<'_>, grammar: &Grammar) -> usize {
    let mut first = node;
    while let Some(before) = first.prev_sibling().filter(|n| grammar.prefixes.contains(&n.kind())) {
        first = before;
    }
    first.start_position().row + 1
}

/// The line of the node's last byte.
fn last_line(node: Node<'_>) -> usize {
    let end = node.end_position();
    if end.column == 0 { end.row.max(1) } else { end.row + 1 }
}

/// The line on which what stands before the node's body ends; comments between them do not count.
fn head_end(node: Node<'_>) -> usize {
    let Some(body) = node.child_by_field_name("body") else { return last_line(node) };
    let mut before = body.prev_sibling();
    while let Some(n) = before.filter(|n| n.kind().contains("comment")) {
        before = n.prev_sibling();
    }
    before.map_or(node.start_position().row + 1, last_line)
}

#[cfg(test)]
mod tests;
