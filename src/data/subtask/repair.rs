//! Repair as SWE-RL asks for it (arXiv 2502.18449): the issue and whole files in, a thought and SEARCH/REPLACE edits out.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{Environment, UndefinedBehavior, context};

use super::budget::{clean_issue, fill_issue, longest_beginning};
use crate::data::Task;
use crate::data::edit_blocks::swe_rl::{make_blocks, render};
use crate::data::patch::Patch;
use crate::data::random::Keyed;
use crate::{Error, Result};

/// The prompt's template, in Jinja; [`RepairOptions::template`] replaces it.
pub const TEMPLATE: &str = include_str!("templates/repair.jinja");

/// The thought of a gold answer, which has none of its own: the format wants one.
const GOLD_THOUGHT: &str = "The issue is resolved by the following edits.";

/// How prompts are made.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// The most tokens that a prompt may have, as `count_tokens` counts them.
    pub max_tokens: usize,
    /// How many tokens of the issue are kept before a file is left out for it.
    pub min_issue_tokens: usize,
    /// The key of the files' order, and of which files stay.
    pub seed: u64,
    /// A template in place of [`TEMPLATE`].
    pub template: Option<String>,
}

/// The subtask, ready to make prompts.
pub struct RepairSubtask {
    options: RepairOptions,
    env: Environment<'static>,
    system: Option<String>,
}

/// A prompt with what its answers are judged by.
#[derive(Clone, Debug)]
pub struct RepairPrompt {
    /// The user's message; [`RepairSubtask::system`] goes before it.
    pub text: String,
    /// The paths of the files shown, in their order.
    pub shown: Vec<String>,
    /// How many of the task's files were left out, of how many.
    pub files_cut: (usize, usize),
    /// How many bytes of the issue are shown, of how many.
    pub issue_bytes: (usize, usize),
    /// The contents shown, by path.
    pub context: BTreeMap<String, String>,
    /// The gold contents of the files that the patch changes, by path.
    pub gold: BTreeMap<String, String>,
    /// The gold answer: a thought and the edits.
    pub answer: String,
}

/// A prompt about an issue whose fix is not known.
#[derive(Clone, Debug)]
pub struct RepairQuestion {
    /// The user's message; [`RepairSubtask::system`] goes before it.
    pub text: String,
    /// The paths of the files shown, in their order.
    pub shown: Vec<String>,
}

impl RepairSubtask {
    /// Prepares the template.
    ///
    /// # Errors
    ///
    /// A template that is not Jinja, with the line.
    pub fn new(options: RepairOptions) -> Result<Self> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        let source = options.template.clone().unwrap_or_else(|| TEMPLATE.to_owned());
        env.add_template_owned("repair", source).map_err(template_error)?;
        let system = system_message(&env).map_err(template_error)?;
        Ok(Self { options, env, system })
    }

    /// The system's message that goes before every prompt: what the template sets as `system`, if it does.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// The tokens that the user's message may have: those of the budget which the system's message leaves.
    fn room(&self, count_tokens: &dyn Fn(&str) -> usize) -> usize {
        self.options.max_tokens.saturating_sub(self.system().map_or(0, count_tokens))
    }

    /// The prompt of a task. The files that the patch changes are always shown, whole; of the others as many as there is room for, in a
    /// keyed random choice; all of them in a keyed random order, so that no place tells the answer. The issue gets the room that is left,
    /// at least `min_issue_tokens`.
    ///
    /// # Errors
    ///
    /// A patch that cannot be applied to the task's files, or that no edits can say (deleted or renamed files); a budget that the changed
    /// files do not fit into; a template that fails.
    pub fn prompt(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<RepairPrompt> {
        let (gold, answer) = gold(task).map_err(|e| e.at(&task.instance_id))?;
        let mut paths: Vec<&String> = task.files.keys().collect();
        Keyed::new(self.options.seed, &["repair", &task.instance_id]).shuffle(&mut paths);
        let issue = clean_issue(&task.problem_statement);
        let needed = count_tokens(longest_beginning(&issue, self.options.min_issue_tokens, count_tokens));
        let (shown, text, issue_len) = self.fit(task, &paths, &gold, &issue, needed, count_tokens).map_err(|e| e.at(&task.instance_id))?;
        Ok(RepairPrompt {
            text,
            files_cut: (paths.len() - shown.len(), paths.len()),
            issue_bytes: (issue_len, issue.len()),
            context: shown.iter().map(|p| ((*p).clone(), task.files[*p].clone())).collect(),
            shown: shown.into_iter().cloned().collect(),
            gold,
            answer,
        })
    }

    /// The prompt of an issue whose fix is not known: of `paths`, the most likely first, those whose contents are known and that fit, one
    /// after another (one that does not fit is passed over), shown in an order keyed by the seed and `key`. None where none fits.
    ///
    /// # Errors
    ///
    /// A template that fails.
    pub fn ask(&self, task: &Task, paths: &[String], key: &str, count_tokens: &dyn Fn(&str) -> usize) -> Result<Option<RepairQuestion>> {
        let task = task.without_answer();
        let issue = clean_issue(&task.problem_statement);
        let needed = count_tokens(longest_beginning(&issue, self.options.min_issue_tokens, count_tokens));
        let max = self.room(count_tokens);
        let mut shown: Vec<&String> = Vec::new();
        let mut left = 0;
        for path in paths.iter().filter(|p| task.files.contains_key(*p)) {
            // Hardly any token stands for more than eight bytes: what is far too long needs no count.
            if task.files[path].len() / 8 > max || shown.contains(&path) {
                continue;
            }
            shown.push(path);
            match max.checked_sub(count_tokens(&self.render(&task, &shown, "", true)?)).filter(|&room| room >= needed) {
                Some(room) => left = room,
                None => drop(shown.pop()),
            }
        }
        if shown.is_empty() {
            return Ok(None);
        }
        Keyed::new(self.options.seed, &["repair asks", &task.instance_id, key]).shuffle(&mut shown);
        let render = |issue: &str, cut: bool| self.render(&task, &shown, issue, cut);
        let (text, _) = fill_issue(&issue, max, left, &render, count_tokens)?;
        Ok(Some(RepairQuestion { text, shown: shown.into_iter().cloned().collect() }))
    }

    /// The files that fit, the text, and how many bytes of the issue it shows.
    fn fit<'a>(
        &self,
        task: &Task,
        paths: &[&'a String],
        gold: &BTreeMap<String, String>,
        issue: &str,
        needed: usize,
        count_tokens: &dyn Fn(&str) -> usize,
    ) -> Result<(Vec<&'a String>, String, usize)> {
        let max = self.room(count_tokens);
        let room = |shown: &BTreeSet<&String>| -> Result<Option<usize>> {
            let order: Vec<&String> = paths.iter().copied().filter(|p| shown.contains(p)).collect();
            Ok(max.checked_sub(count_tokens(&self.render(task, &order, "", true)?)).filter(|&left| left >= needed))
        };
        let mut shown: BTreeSet<&String> = paths.iter().copied().filter(|p| gold.contains_key(*p)).collect();
        let mut left = room(&shown)?.ok_or_else(|| {
            let message = format!(
                "{} tokens do not hold the {} files that the patch changes and {needed} tokens of the issue",
                self.options.max_tokens,
                shown.len()
            );
            Error::input(message).hint("allow a prompt more tokens: max_prompt_tokens")
        })?;
        // The order in which files are tried must not be that in which they are shown: what is cut would then always be the end.
        let mut others: Vec<&String> = paths.iter().copied().filter(|p| !gold.contains_key(*p)).collect();
        others.sort_unstable();
        Keyed::new(self.options.seed, &["repair keeps", &task.instance_id]).shuffle(&mut others);
        for path in others {
            // Hardly any token stands for more than eight bytes: what is far too long needs no count.
            if task.files[path].len() / 8 > left {
                continue;
            }
            shown.insert(path);
            match room(&shown)? {
                Some(room) => left = room,
                None => drop(shown.remove(path)),
            }
        }
        let order: Vec<&String> = paths.iter().copied().filter(|p| shown.contains(p)).collect();
        let render = |issue: &str, cut: bool| self.render(task, &order, issue, cut);
        let (text, issue_len) = fill_issue(issue, max, left, &render, count_tokens)?;
        Ok((order, text, issue_len))
    }

    fn render(&self, task: &Task, order: &[&String], issue: &str, issue_cut: bool) -> Result<String> {
        let file = |path: &&String| context! { path => path.as_str(), content => task.files[*path].as_str() };
        let values = context! { issue, issue_cut, files => order.iter().map(file).collect::<Vec<_>>() };
        self.env.get_template("repair").and_then(|t| t.render(values)).map_err(template_error)
    }
}

/// What a template sets as `system`.
fn system_message(env: &Environment<'_>) -> std::result::Result<Option<String>, minijinja::Error> {
    let values = context! { issue => "", issue_cut => false, files => Vec::<String>::new() };
    let rendered = env.get_template("repair")?.render_captured(values)?;
    Ok(rendered.state().lookup("system").map(|v| v.to_string()).filter(|text| !text.trim().is_empty()))
}

fn template_error(e: minijinja::Error) -> Error {
    let line = e.line().map_or(String::new(), |l| format!("line {l}: "));
    Error::input(format!("{line}{e}")).at("the template of the repair subtask")
}

/// The contents that the gold patch gives the files it changes or adds, and the answer that says so.
fn gold(task: &Task) -> Result<(BTreeMap<String, String>, String)> {
    let patch = Patch::parse(&task.patch).map_err(|e| e.at("field `patch`"))?;
    let after = patch.apply(&task.files)?;
    if let Some(lost) = task.files.keys().find(|p| !after.contains_key(*p)) {
        return Err(Error::input("the patch deletes or renames this file, which edits cannot say").at(lost));
    }
    let mut blocks = Vec::new();
    let mut gold = BTreeMap::new();
    for (path, new) in after {
        let old = task.files.get(&path).map_or("", String::as_str);
        if old == new {
            continue;
        }
        let edits = make_blocks(&path, old, &new).ok_or_else(|| Error::input("no edits can say this change").at(&path))?;
        blocks.extend(edits.iter().map(render));
        gold.insert(path, new);
    }
    if blocks.is_empty() {
        return Err(Error::input("the patch changes no text"));
    }
    Ok((gold, format!("<think>\n{GOLD_THOUGHT}\n</think>\n<solution>\n{}\n</solution>", blocks.join("\n\n"))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task() -> Task {
        let files: BTreeMap<String, String> = (0..6).map(|i| (format!("p/f{i}.py"), format!("def f{i}():\n    return {i}\n"))).collect();
        let patch =
            "diff --git a/p/f3.py b/p/f3.py\n--- a/p/f3.py\n+++ b/p/f3.py\n@@ -1,2 +1,2 @@\n def f3():\n-    return 3\n+    return 4\n";
        Task::from_json(
            json!({"instance_id": "o__r-1", "problem_statement": "f3 gives 3\n\nbut 4 is right", "patch": patch, "files": files}),
        )
        .unwrap()
    }

    fn subtask(max_tokens: usize, seed: u64) -> RepairSubtask {
        RepairSubtask::new(RepairOptions { max_tokens, min_issue_tokens: 4, seed, template: None }).unwrap()
    }

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    #[test]
    fn the_prompt_shows_whole_files_and_the_answer_the_edits() {
        let prompt = subtask(usize::MAX, 0).prompt(&task(), &words).unwrap();
        assert_eq!((prompt.shown.len(), prompt.files_cut), (6, (0, 6)));
        let system = subtask(usize::MAX, 0).system().map(str::to_owned).unwrap();
        assert!(system.starts_with("You repair bugs.") && system.ends_with("</solution>") && !prompt.text.contains("You repair bugs"));
        assert!(prompt.text.contains("--- BEGIN ISSUE ---\nf3 gives 3\n\nbut 4 is right\n--- END ISSUE ---"));
        assert!(prompt.text.contains("### p/f3.py\ndef f3():\n    return 3\n"));
        let edit = "```python\n### p/f3.py\n<<<<<<< SEARCH\n    return 3\n=======\n    return 4\n>>>>>>> REPLACE\n```";
        assert_eq!(prompt.answer, format!("<think>\n{GOLD_THOUGHT}\n</think>\n<solution>\n{edit}\n</solution>"));
        assert_eq!(prompt.gold["p/f3.py"], "def f3():\n    return 4\n");
    }

    #[test]
    fn changed_files_stay_and_their_place_does_not_tell() {
        let whole = subtask(usize::MAX, 0);
        let all = words(&whole.prompt(&task(), &words).unwrap().text) + words(whole.system().unwrap());
        let mut places = BTreeSet::new();
        for seed in 0..40 {
            let prompt = subtask(all - 9, seed).prompt(&task(), &words).unwrap();
            assert!(words(&prompt.text) + words(whole.system().unwrap()) <= all - 9);
            assert_eq!((prompt.shown.len(), prompt.files_cut), (4, (2, 6)));
            places.insert(prompt.shown.iter().position(|p| p == "p/f3.py").expect("the changed file is shown"));
        }
        assert_eq!(places.len(), 4);
        let error = subtask(60, 0).prompt(&task(), &words).unwrap_err().to_string();
        assert!(error.contains("60 tokens do not hold the 1 files that the patch changes"), "{error}");
    }
}
