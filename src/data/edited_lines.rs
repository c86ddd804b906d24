//! What an edit is scored by: the lines that it deletes and inserts.

use std::collections::BTreeSet;

use similar::{Algorithm, DiffTag, capture_diff_slices};

/// An element of the set that edits are scored by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A line of the old file (1-based) that is gone.
    Delete(String, usize),
    /// The text of a new line, without blanks at its end.
    Insert(String, String),
}

/// What the change of a file deletes and inserts, by Myers' algorithm over lines without their line ends. A change of line ends alone has
/// no elements.
pub fn edit_elements(path: &str, old: &str, new: &str) -> BTreeSet<Element> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut out = BTreeSet::new();
    for op in capture_diff_slices(Algorithm::Myers, &old, &new) {
        if op.tag() != DiffTag::Equal {
            out.extend(op.old_range().map(|i| Element::Delete(path.to_owned(), i + 1)));
            out.extend(op.new_range().map(|i| Element::Insert(path.to_owned(), new[i].trim_end().to_owned())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_by_hand() {
        let elements = edit_elements("a.py", "a\nb\nc\n", "a\nB  \nc\nd\n");
        let of = |n| Element::Delete("a.py".into(), n);
        let new = |t: &str| Element::Insert("a.py".into(), t.into());
        assert_eq!(elements, BTreeSet::from([of(2), new("B"), new("d")]));
        assert!(edit_elements("a.py", "a\nb", "a\r\nb\n").is_empty());
    }
}
