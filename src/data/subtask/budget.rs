//! Fitting texts into a number of tokens.

use crate::Result;

/// The longest beginning of `text` that ends at a word's end and has at most `room` tokens, without the white space at its end.
///
/// Counts of beginnings hardly ever fall as the text grows; where one does, the result may be a word short, and never too long.
pub fn longest_beginning<'a>(text: &'a str, room: usize, count_tokens: &dyn Fn(&str) -> usize) -> &'a str {
    let text = text.trim_end();
    // A word longer than any budget needs no count: no token of the tokenizers in use stands for more than this many bytes of text.
    const MOST_BYTES_A_TOKEN: usize = 64;
    let limit = floor_boundary(text, room.saturating_mul(MOST_BYTES_A_TOKEN));
    if limit == text.len() && count_tokens(text) <= room {
        return text;
    }
    let ends = word_ends(&text[..limit]);
    let (mut fits, mut too_long) = (0, ends.len());
    while fits < too_long {
        let middle = (fits + too_long).div_ceil(2);
        if count_tokens(&text[..ends[middle - 1]]) <= room {
            fits = middle;
        } else {
            too_long = middle - 1;
        }
    }
    if fits == 0 { "" } else { &text[..ends[fits - 1]] }
}

/// Renders a prompt with as much of the issue as fits into `max` tokens, and says how many bytes of it that is. `room` is what the rest of
/// the prompt leaves; `render` takes the issue and whether it is cut.
pub fn fill_issue(
    issue: &str,
    max: usize,
    mut room: usize,
    render: &dyn Fn(&str, bool) -> Result<String>,
    count_tokens: &dyn Fn(&str) -> usize,
) -> Result<(String, usize)> {
    let whole = render(issue, false)?;
    if max == usize::MAX || count_tokens(&whole) <= max {
        return Ok((whole, issue.len()));
    }
    // Tokens may join or part where the texts meet, so what was counted apart is counted again as a whole.
    loop {
        let part = longest_beginning(issue, room, count_tokens);
        let text = render(part, true)?;
        let over = count_tokens(&text).saturating_sub(max);
        if over == 0 || part.is_empty() {
            return Ok((text, part.len()));
        }
        room = room.saturating_sub(over);
    }
}

/// The places where a word ends: before white space, and at the end of the text.
fn word_ends(text: &str) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut in_word = false;
    for (i, c) in text.char_indices() {
        if c.is_whitespace() && in_word {
            ends.push(i);
        }
        in_word = !c.is_whitespace();
    }
    if in_word {
        ends.push(text.len());
    }
    ends
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// An issue as a prompt shows it: line ends made equal, comments of HTML taken out (templates of issue trackers are full of them), no
/// white space at the ends of lines, and not more than one blank line in a row.
pub fn clean_issue(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(start) = rest.find("<!--") {
        let Some(end) = rest[start..].find("-->") else { break };
        kept.push_str(&rest[..start]);
        rest = &rest[start + end + 3..];
    }
    kept.push_str(rest);
    let mut out = String::with_capacity(kept.len());
    let mut blank = 0;
    for line in kept.trim().lines() {
        let line = line.trim_end();
        blank = if line.is_empty() { blank + 1 } else { 0 };
        if blank < 2 {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn cuts_at_words() {
        let text = "one two  three\nfour";
        for (room, expected) in [(0, ""), (1, "one"), (2, "one two"), (3, "one two  three"), (4, text), (99, text)] {
            assert_eq!(longest_beginning(text, room, &words), expected);
        }
        assert_eq!(longest_beginning("", 5, &words), "");
    }

    #[test]
    fn issues_are_cleaned() {
        let text = "\r\nTitle  \r\n<!-- hidden\n -->\n\n\n\nBody <!-- a --> b\n<!-- open\n";
        assert_eq!(clean_issue(text), "Title\n\nBody  b\n<!-- open");
        assert_eq!(clean_issue("<!-- a -->"), "");
    }

    proptest! {
        #[test]
        fn never_over_and_never_short(text in "[a é\n]{0,80}", room in 0usize..40) {
            let bytes = |t: &str| t.len();
            let cut = longest_beginning(&text, room, &bytes);
            prop_assert!(cut.len() <= room && text.starts_with(cut));
            let next = word_ends(text.trim_end()).into_iter().find(|&e| e > cut.len());
            prop_assert!(next.is_none_or(|e| e > room));
            clean_issue(&text);
        }
    }
}
