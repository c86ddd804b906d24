//! SoRFT's subtasks: what the model is asked about an issue, and how its answer is read and scored.

pub mod answer;
pub mod budget;
mod code_view;
pub mod edit;
pub mod evidence;
pub mod file;
pub mod function;
pub mod line;
mod localised;
pub mod matches;
pub mod mini;
pub mod prompt_recipe;
pub mod repair;
pub mod reproduction;
mod shown;
pub mod tree;
pub mod view;

pub use localised::Location;

#[cfg(test)]
mod place_tests;

/// The part of a completion that holds the answer: what follows the last `</think>`, if there is one, and of that the last block
/// between ``` fences, if there is one (a block that the completion does not close runs to its end).
///
/// ```
/// use sorft_native::data::subtask::answer_text;
/// assert_eq!(answer_text("```\nold\n```<think>hm</think>It is:\n```text\na.py\n```\n").trim(), "a.py");
/// ```
pub fn answer_text(completion: &str) -> &str {
    let text = completion.rfind("</think>").map_or(completion, |at| &completion[at + "</think>".len()..]);
    let fences = fences(text);
    let blocks = fences.chunks(2).map(|pair| {
        let end = pair.get(1).map_or(text.len(), |close| close.start);
        (strip_info(&text[pair[0].end..end]), pair.len() == 2)
    });
    // A fence left over at the end opens a block only if something follows it.
    blocks.rev().find(|(body, closed)| *closed || !body.trim().is_empty()).map_or(text, |(body, _)| body)
}

/// Every run of three or more backticks.
fn fences(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find("```") {
        let start = at + found;
        at = start + text[start..].bytes().take_while(|&b| b == b'`').count();
        out.push(start..at);
    }
    out
}

/// A block without the rest of the fence's line, which names a language. A block of one line has no such thing.
fn strip_info(body: &str) -> &str {
    body.split_once('\n').map_or(body, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_block_after_the_last_thought_counts() {
        let cases = [
            ("a.py\nb.py", "a.py\nb.py"),
            ("<think>x</think>a.py", "a.py"),
            ("<think>```\nx\n```</think>\na.py", "a.py"),
            ("```\na.py\n```\nor\n```python\nb.py\n```\ndone", "b.py"),
            ("```\na.py\n```\n```\nb.py", "b.py"),
            ("```\na.py\n```\n```\n", "a.py"),
            ("so ```a.py``` it is", "a.py"),
            ("````\na.py\n````", "a.py"),
            ("```\n```", ""),
            ("text only </think>", ""),
            ("", ""),
        ];
        for (completion, expected) in cases {
            assert_eq!(answer_text(completion).trim(), expected, "{completion:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(```|`|</think>|\n|a|é){0,30}") {
            answer_text(&text);
        }
    }
}
