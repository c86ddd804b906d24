//! `difflib.unified_diff`.

use super::block::{Tag, grouped_opcodes, opcodes};
use super::lines::LineMatcher;

/// The lines of `unified_diff(a, b, n=n, lineterm="")` after the two lines with the files' names, joined by line feeds; empty where a and b
/// are equal.
pub fn unified_diff(a: &[&[u8]], b: &[&[u8]], n: usize) -> Vec<u8> {
    let blocks = LineMatcher::new(a, b, true).matching_blocks();
    let mut out = Vec::new();
    let mut line = |prefix: &[u8], text: &[u8]| {
        if !out.is_empty() {
            out.push(b'\n');
        }
        out.extend_from_slice(prefix);
        out.extend_from_slice(text);
    };
    for group in grouped_opcodes(opcodes(&blocks, a.len(), b.len()), n) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
        let header = format!("@@ -{} +{} @@", range(first.a.0, last.a.1), range(first.b.0, last.b.1));
        line(b"", header.as_bytes());
        for code in &group {
            if code.tag == Tag::Equal {
                a[code.a.0..code.a.1].iter().for_each(|text| line(b" ", text));
                continue;
            }
            a[code.a.0..code.a.1].iter().for_each(|text| line(b"-", text));
            b[code.b.0..code.b.1].iter().for_each(|text| line(b"+", text));
        }
    }
    out
}

/// A range of lines as a hunk's header has it: from 1, the length left out where it is 1; an empty range is named after the line before.
fn range(start: usize, stop: usize) -> String {
    match stop - start {
        1 => format!("{}", start + 1),
        0 => format!("{start},0"),
        length => format!("{},{length}", start + 1),
    }
}
