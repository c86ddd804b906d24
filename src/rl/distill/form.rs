//! The form of an answer: words that stand, and holes that the teacher fills. A small model that does not keep to a form by itself reasons well
//! enough inside one.

use crate::error::{Error, Result};

/// Where the teacher writes.
const HOLE: &str = "{}";

/// Words and holes in turn, beginning with words (which may be none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// As it was given.
    pub text: String,
    /// What stands before the first hole.
    pub opening: String,
    /// The holes.
    pub holes: Vec<Hole>,
}

/// A hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// What ends it, beside the teacher's own end: the first line of the words that follow; where they follow on the same line, also that line's end.
    pub stop: Vec<String>,
    /// The words that follow.
    pub after: String,
}

impl Form {
    /// The form that `text` says, in which `{}` is a hole and `\n` the end of a line. A blank before a hole is left to the teacher, whose words mostly
    /// begin with one: behind a blank that stands already it would go on with what is no word's beginning.
    ///
    /// # Errors
    /// A form without holes, or with nothing between two of them.
    ///
    /// ```
    /// use sorft_native::rl::distill::form::Form;
    /// let form = Form::parse("<think>It seems that {}</think>\\n{}").unwrap();
    /// assert_eq!(form.opening, "<think>It seems that");
    /// assert_eq!((&form.holes[0].stop[..], &*form.holes[0].after), (&["</think>".to_owned(), "\n".into()][..], "</think>\n"));
    /// assert_eq!((form.holes[1].stop.len(), &*form.holes[1].after), (0, ""));
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.replace("\\n", "\n");
        let mut words = lines.split(HOLE).map(|words| words.trim_end_matches(' ').to_owned());
        let opening = words.next().unwrap_or_default();
        let after: Vec<String> = words.collect();
        let Some((_, inner)) = after.split_last() else {
            return Err(Error::input(format!("expected {HOLE} where the teacher is to write, found none")));
        };
        if inner.iter().any(String::is_empty) {
            return Err(Error::input(format!("expected words between {HOLE} and {HOLE}: nothing says where the first ends")));
        }
        Ok(Self { text: text.to_owned(), opening, holes: after.into_iter().map(Hole::before).collect() })
    }
}

impl Hole {
    fn before(after: String) -> Self {
        let first = after.trim_start_matches('\n').split('\n').next().unwrap_or_default();
        // A line of blanks is no sign of an end.
        let mut stop: Vec<String> = (!first.trim().is_empty()).then(|| first.to_owned()).into_iter().collect();
        if !after.is_empty() && !after.starts_with('\n') {
            stop.push("\n".into());
        }
        Self { stop, after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_ends_where_the_words_behind_it_begin() {
        let form = Form::parse("Because {}.\n```\n{}\n```").unwrap();
        assert_eq!(form.opening, "Because");
        assert_eq!(form.holes[0], Hole { stop: vec![".".into(), "\n".into()], after: ".\n```\n".into() });
        assert_eq!(form.holes[1], Hole { stop: vec!["```".into()], after: "\n```".into() });
        assert_eq!(Form::parse("{}").unwrap().holes, [Hole { stop: vec![], after: String::new() }]);
        assert_eq!(Form::parse("{}\n").unwrap().holes, [Hole { stop: vec![], after: "\n".into() }]);
        for (text, error) in [("no hole", "found none"), ("", "found none"), ("{}{}", "where the first ends")] {
            assert!(Form::parse(text).unwrap_err().to_string().contains(error), "{text}");
        }
    }
}
