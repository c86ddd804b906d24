//! File localisation as Agentless Mini asks for it (SWE-RL, arXiv 2502.18449, section 3 and its code's semantics): the issue and the tree of
//! the repository, which every sample sees in another order and with another indentation, so that samples differ by more than their
//! random numbers.

use std::collections::BTreeMap;

use minijinja::{Environment, UndefinedBehavior, context};

use super::budget::{clean_issue, fill_issue, longest_beginning};
use crate::data::Task;
use crate::data::lexical::{self, Ranking};
use crate::data::random::Keyed;
use crate::{Error, Result};

/// The prompt's template, in Jinja.
pub const TEMPLATE: &str = include_str!("templates/mini_files.jinja");

/// How a sample's tree is shown, and how many files it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// At most so many files.
    pub most: usize,
    /// Blanks a level.
    pub indent: usize,
    /// The key of the order of files and folders; none for the alphabetical one.
    pub shuffle: Option<u64>,
}

impl View {
    /// What a greedy answer sees: 5 files, 4 blanks, in order.
    pub const GREEDY: Self = Self { most: 5, indent: 4, shuffle: None };

    /// What sample `index` of an instance sees: 2 to 5 files, 2 or 4 blanks, an order of its own.
    pub fn sample(seed: u64, instance: &str, index: usize) -> Self {
        let mut random = Keyed::new(seed, &["view", instance]).with(index as u64);
        let (most, indent) = (2 + random.below(4), [2, 4][random.below(2)]);
        Self { most, indent, shuffle: Some(random.next_u64()) }
    }
}

/// A prompt and the paths in its tree.
#[derive(Clone, Debug)]
pub struct MiniPrompt {
    /// The text, without a chat template.
    pub text: String,
    /// What an answer may name.
    pub candidates: Vec<String>,
}

/// The prompt of an issue: as many of the `candidates` as fit into `max_tokens` beside `min_issue` tokens of the issue, the best lexical
/// matches before others; what is left over goes to the issue.
///
/// # Errors
///
/// No candidates; a budget that not even one path fits into.
pub fn prompt(
    task: &Task,
    candidates: &[String],
    view: View,
    (max_tokens, min_issue): (usize, usize),
    count_tokens: &dyn Fn(&str) -> usize,
) -> Result<MiniPrompt> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.add_template("mini", TEMPLATE).map_err(template_error)?;
    let render = |issue: &str, issue_cut: bool, paths: &[String]| -> Result<String> {
        let values = context! { issue, issue_cut, tree => tree(paths, view), most => view.most };
        env.get_template("mini").and_then(|t| t.render(values)).map_err(template_error)
    };
    let issue = clean_issue(&task.problem_statement);
    let whole = render(&issue, false, candidates)?;
    if !candidates.is_empty() && count_tokens(&whole) <= max_tokens {
        return Ok(MiniPrompt { text: whole, candidates: candidates.to_vec() });
    }
    let needed = count_tokens(longest_beginning(&issue, min_issue, count_tokens));
    let ranked = lexical::rank(task, candidates, Ranking::Fused);
    let kept = |n: usize| -> Vec<String> { candidates.iter().filter(|p| ranked[..n].contains(p)).cloned().collect() };
    let (mut fits, mut too_many, mut left) = (0, ranked.len() + 1, 0);
    while fits + 1 < too_many {
        let middle = (fits + too_many) / 2;
        match max_tokens.checked_sub(count_tokens(&render("", true, &kept(middle))?)).filter(|&room| room >= needed) {
            Some(room) => (fits, left) = (middle, room),
            None => too_many = middle,
        }
    }
    if fits == 0 {
        let message = format!("{max_tokens} tokens do not hold a prompt of one path and {needed} tokens of the issue");
        return Err(Error::input(message).at(&task.instance_id).hint("allow a prompt more tokens: max_prompt_tokens"));
    }
    let candidates = kept(fits);
    let (text, _) = fill_issue(&issue, max_tokens, left, &|part, cut| render(part, cut, &candidates), count_tokens)?;
    Ok(MiniPrompt { text, candidates })
}

/// A folder of a tree: what is in it, by name; a file has nothing in it.
#[derive(Default)]
struct Folder(BTreeMap<String, Folder>);

/// The paths drawn as a tree: one name a line, deeper ones indented.
fn tree(paths: &[String], view: View) -> String {
    let mut root = Folder::default();
    for path in paths {
        path.split('/').fold(&mut root, |folder, name| folder.0.entry(name.to_owned()).or_default());
    }
    let mut out = Vec::new();
    draw(&root, 0, view, &mut view.shuffle.map(|key| Keyed::new(key, &["tree"])), &mut out);
    out.join("\n")
}

fn draw(folder: &Folder, depth: usize, view: View, random: &mut Option<Keyed>, out: &mut Vec<String>) {
    let mut entries: Vec<(&String, &Folder)> = folder.0.iter().collect();
    if let Some(random) = random {
        random.shuffle(&mut entries);
    }
    for (name, inner) in entries {
        out.push(format!("{}{name}", " ".repeat(view.indent * depth)));
        draw(inner, depth + 1, view, random, out);
    }
}

fn template_error(e: minijinja::Error) -> Error {
    Error::input(e.to_string()).at("the template of file localisation")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn task() -> (Task, Vec<String>) {
        let paths: Vec<String> = ["a/b/one.py", "a/two.py", "c.py", "a/b/parser.py"].map(str::to_owned).to_vec();
        (Task { instance_id: "o__r-1".into(), problem_statement: "The parser\nis wrong here".into(), ..Task::default() }, paths)
    }

    #[test]
    fn trees_by_hand() {
        let (task, mut paths) = task();
        paths.sort();
        let shown = prompt(&task, &paths, View::GREEDY, (usize::MAX, 8), &words).unwrap();
        let tree = "--- BEGIN REPOSITORY ---\na\n    b\n        one.py\n        parser.py\n    two.py\nc.py\n--- END REPOSITORY ---";
        assert!(shown.text.contains(tree) && shown.text.contains("at most 5 files"), "{}", shown.text);
        let views: std::collections::BTreeSet<String> =
            (0..20).map(|i| prompt(&task, &paths, View::sample(0, "o__r-1", i), (usize::MAX, 8), &words).unwrap().text).collect();
        assert!(views.len() > 10, "samples see different trees");
        assert_eq!(View::sample(3, "x", 1), View::sample(3, "x", 1));
    }

    #[test]
    fn the_best_matches_stay_where_not_all_fit() {
        let (task, paths) = task();
        let all = words(&prompt(&task, &paths, View::GREEDY, (usize::MAX, 8), &words).unwrap().text);
        let shown = prompt(&task, &paths, View::GREEDY, (all - 2, 2), &words).unwrap();
        assert!(words(&shown.text) <= all - 2 && shown.candidates.contains(&"a/b/parser.py".to_owned()), "{}", shown.text);
        let error = prompt(&task, &paths, View::GREEDY, (20, 2), &words).unwrap_err().to_string();
        assert!(error.contains("20 tokens do not hold a prompt of one path"), "{error}");
        assert!(prompt(&task, &[], View::GREEDY, (usize::MAX, 2), &words).is_err());
    }
}
