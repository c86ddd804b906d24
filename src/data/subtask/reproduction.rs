//! Reproduction tests: scripts by which a model shows whether an issue is there (Agentless 1.5, arXiv 2407.01489, section 3.3). No training
//! subtask: candidate patches are ranked by them.

use minijinja::{Environment, UndefinedBehavior, context};

use super::answer_text;
use super::budget::{clean_issue, fill_issue, longest_beginning};
use crate::data::Task;
use crate::{Error, Result};

/// The prompt's template, in Jinja.
pub const TEMPLATE: &str = include_str!("templates/reproduction.jinja");

/// What a script prints where the issue is there.
pub const REPRODUCED: &str = "Issue reproduced";
/// What it prints where the issue is not there, or no more.
pub const RESOLVED: &str = "Issue resolved";
/// What it prints where it cannot tell.
pub const OTHER: &str = "Other issues";

/// The prompt for a script: the issue, or its beginning where `max_tokens` hold no more.
///
/// # Errors
///
/// A budget that does not hold `min_issue` tokens of the issue.
pub fn prompt(task: &Task, (max_tokens, min_issue): (usize, usize), count_tokens: &dyn Fn(&str) -> usize) -> Result<String> {
    let template_error = |e: minijinja::Error| Error::input(e.to_string()).at("the template of reproduction tests");
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_template("reproduction", TEMPLATE).map_err(template_error)?;
    let render = |issue: &str, issue_cut: bool| -> Result<String> {
        let values = context! { issue, issue_cut, reproduced => REPRODUCED, resolved => RESOLVED, other => OTHER };
        env.get_template("reproduction").and_then(|t| t.render(values)).map_err(template_error)
    };
    let issue = clean_issue(&task.problem_statement);
    let needed = count_tokens(longest_beginning(&issue, min_issue, count_tokens));
    let room = max_tokens.saturating_sub(count_tokens(&render("", true)?));
    if room < needed {
        let message = format!("{max_tokens} tokens do not hold a prompt with {needed} tokens of the issue");
        return Err(Error::input(message).at(&task.instance_id).hint("allow a prompt more tokens: max_prompt_tokens"));
    }
    Ok(fill_issue(&issue, max_tokens, room, &render, count_tokens)?.0)
}

/// The script of an answer: its last block after the last thought. None where it can never print that the issue is there, and that it is
/// not: such a script decides nothing.
pub fn read_script(answer: &str) -> Option<String> {
    let script = answer_text(answer).trim_matches('\n').trim_end();
    let says = |word: &str| script.contains(word);
    (says(REPRODUCED) && says(RESOLVED)).then(|| format!("{script}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn the_prompt_holds_the_issue_and_the_protocol() {
        let task = Task {
            instance_id: "o__r-1".into(),
            problem_statement: "add(1, 2) gives -1".into(),
            patch: "secret".into(),
            ..Task::default()
        };
        let whole = prompt(&task, (usize::MAX, 8), &words).unwrap();
        for part in ["--- BEGIN ISSUE ---\nadd(1, 2) gives -1\n--- END", "\nIssue reproduced\n", "\nIssue resolved\n", "\nOther issues\n"] {
            assert!(whole.contains(part), "{part}");
        }
        assert!(!whole.contains("secret"));
        let task = Task { problem_statement: "word ".repeat(500), ..task };
        let cut = prompt(&task, (300, 8), &words).unwrap();
        assert!(words(&cut) <= 300 && cut.contains("word [...]\n---"), "{cut}");
        let error = prompt(&task, (60, 8), &words).unwrap_err().to_string();
        assert!(error.contains("60 tokens do not hold a prompt with 8 tokens of the issue") && error.contains("max_prompt_tokens"));
    }

    #[test]
    fn a_script_can_say_both() {
        let script = "print('Issue reproduced' if f() else 'Issue resolved')";
        assert_eq!(read_script(&format!("So.\n```python\n{script}\n```\n")).as_deref(), Some(&*format!("{script}\n")));
        assert_eq!(read_script(&format!("<think>```\nx\n```</think>\n{script}")).as_deref(), Some(&*format!("{script}\n")));
        assert_eq!(read_script("```python\nprint('Issue reproduced')\n```"), None);
        assert_eq!(read_script(""), None);
    }
}
