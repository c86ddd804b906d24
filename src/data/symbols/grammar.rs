//! Which nodes of a language's syntax tree define something, and how the definition's name is found.

use tree_sitter::{Language, Node};

use super::Kind;
use crate::data::paths::language;

/// A language: its tree-sitter grammar and the kinds of nodes that matter.
pub(super) struct Grammar {
    /// The parser's tables.
    pub language: Language,
    /// Nodes that define a class, or what other definitions stand in.
    classes: &'static [&'static str],
    /// Nodes that define a function or method.
    functions: &'static [&'static str],
    /// Nodes around a definition that belong to it: a decorator's, an export's, a template's.
    pub wrappers: &'static [&'static str],
    /// Nodes before a definition that belong to it: attributes, decorators.
    pub prefixes: &'static [&'static str],
}

/// The grammar for a path, by its name's ending; none for other languages, and without the feature `grammars` for all but Python.
pub(super) fn grammar(path: &str) -> Option<Grammar> {
    match language(path)? {
        "Python" => Some(Grammar {
            language: tree_sitter_python::LANGUAGE.into(),
            classes: &["class_definition"],
            functions: &["function_definition"],
            wrappers: &["decorated_definition"],
            prefixes: &[],
        }),
        #[cfg(feature = "grammars")]
        name => others(name, path),
        #[cfg(not(feature = "grammars"))]
        _ => None,
    }
}

#[cfg(feature = "grammars")]
fn others(name: &str, path: &str) -> Option<Grammar> {
    const SCRIPT_CLASSES: &[&str] = &[
        "class_declaration",
        "abstract_class_declaration",
        "interface_declaration",
        "enum_declaration",
        "type_alias_declaration",
        "internal_module",
    ];
    const SCRIPT_FUNCTIONS: &[&str] = &[
        "function_declaration",
        "generator_function_declaration",
        "method_definition",
        "function_signature",
        "method_signature",
        "abstract_method_signature",
        "variable_declarator",
        "field_definition",
        "public_field_definition",
        "pair",
    ];
    let script = |language| Grammar {
        language,
        classes: SCRIPT_CLASSES,
        functions: SCRIPT_FUNCTIONS,
        wrappers: &["export_statement", "lexical_declaration", "variable_declaration"],
        prefixes: &["decorator"],
    };
    // A header may hold either language; the larger one reads both.
    let c_plus = name == "C++" || path.to_ascii_lowercase().ends_with(".h");
    Some(match name {
        "Rust" => Grammar {
            language: tree_sitter_rust::LANGUAGE.into(),
            classes: &["struct_item", "enum_item", "union_item", "trait_item", "impl_item", "mod_item", "type_item"],
            functions: &["function_item", "function_signature_item", "macro_definition"],
            wrappers: &[],
            prefixes: &["attribute_item"],
        },
        "JavaScript" if [".vue", ".svelte"].iter().any(|e| path.ends_with(e)) => return None,
        "JavaScript" => script(tree_sitter_javascript::LANGUAGE.into()),
        "TypeScript" if path.to_ascii_lowercase().ends_with(".tsx") => script(tree_sitter_typescript::LANGUAGE_TSX.into()),
        "TypeScript" => script(tree_sitter_typescript::LANGUAGE_TYPESCRIPT.into()),
        "Go" => Grammar {
            language: tree_sitter_go::LANGUAGE.into(),
            classes: &["type_spec"],
            functions: &["function_declaration", "method_declaration"],
            wrappers: &["type_declaration"],
            prefixes: &[],
        },
        "Java" => Grammar {
            language: tree_sitter_java::LANGUAGE.into(),
            classes: &[
                "class_declaration",
                "interface_declaration",
                "enum_declaration",
                "record_declaration",
                "annotation_type_declaration",
            ],
            functions: &["method_declaration", "constructor_declaration", "compact_constructor_declaration"],
            wrappers: &[],
            prefixes: &[],
        },
        "C" | "C++" => Grammar {
            language: if c_plus { tree_sitter_cpp::LANGUAGE.into() } else { tree_sitter_c::LANGUAGE.into() },
            classes: &["struct_specifier", "union_specifier", "enum_specifier", "class_specifier", "namespace_definition"],
            functions: &["function_definition", "preproc_function_def"],
            wrappers: &["template_declaration"],
            prefixes: &[],
        },
        _ => return None,
    })
}

impl Grammar {
    /// What the node defines, and its own name with `.` between its parts; none where it defines nothing that has a name.
    pub fn definition(&self, node: Node<'_>, text: &str) -> Option<(Kind, String)> {
        let class = self.classes.contains(&node.kind());
        if !class && !self.functions.contains(&node.kind()) {
            return None;
        }
        let field = |name| node.child_by_field_name(name);
        let name = match node.kind() {
            // A value that is no function defines no function.
            "variable_declarator" | "field_definition" | "public_field_definition" | "pair" => {
                let value = field("value").filter(|v| is_function(v.kind()))?;
                debug_assert!(value.end_byte() <= text.len());
                field("name").or_else(|| field("property")).or_else(|| field("key"))?
            }
            "impl_item" => plain_type(field("type")?),
            // Without a body these name a type, they do not define it.
            "struct_specifier" | "union_specifier" | "enum_specifier" | "class_specifier" => {
                field("body")?;
                field("name")?
            }
            "function_definition" if field("declarator").is_some() => declared_name(field("declarator")?)?,
            _ => field("name")?,
        };
        let mut own = clean(slice(text, name));
        if let Some(receiver) = field("receiver").and_then(receiver_type) {
            own = format!("{}.{own}", clean(slice(text, receiver)));
        }
        (!own.is_empty()).then_some((if class { Kind::Class } else { Kind::Function }, own))
    }
}

fn is_function(kind: &str) -> bool {
    matches!(kind, "arrow_function" | "function_expression" | "generator_function" | "function")
}

fn slice<'a>(text: &'a str, node: Node<'_>) -> &'a str {
    text.get(node.byte_range()).unwrap_or_default()
}

/// A name as answers write it: one line, no blanks, `.` for `::`, without the arguments of a template.
fn clean(name: &str) -> String {
    let plain = name.split('<').next().filter(|n| !n.trim().is_empty()).unwrap_or(name);
    plain.replace("::", ".").split_whitespace().collect::<String>().trim_matches(['"', '\'', '.']).to_owned()
}

/// The type's name without its arguments and references.
fn plain_type(node: Node<'_>) -> Node<'_> {
    node.child_by_field_name("type").map_or(node, plain_type)
}

/// The name inside a declarator of C: that of the innermost one.
fn declared_name(node: Node<'_>) -> Option<Node<'_>> {
    let mut node = node;
    loop {
        let inner = node
            .child_by_field_name("declarator")
            .or_else(|| matches!(node.kind(), "reference_declarator" | "parenthesized_declarator").then(|| node.named_child(0)).flatten());
        match inner {
            Some(inner) => node = inner,
            None => return Some(node),
        }
    }
}

/// The type in a receiver of Go: the first type identifier in it.
fn receiver_type(node: Node<'_>) -> Option<Node<'_>> {
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        if node.kind() == "type_identifier" {
            return Some(node);
        }
        stack.extend((0..node.named_child_count()).rev().filter_map(|i| node.named_child(i as u32)));
    }
    None
}
