//! The prompts of function, line and edit subtasks, over made tasks in several languages.

use std::collections::{BTreeMap, BTreeSet};

use super::answer::{Gold, Place, Universe, parse_edits, parse_functions, parse_lines};
use super::edit::EditSubtask;
use super::function::FunctionSubtask;
use super::line::{LineSubtask, places};
use super::matches::MatchOptions;
use super::view::{PlacePrompt, ViewOptions};
use crate::Result;
use crate::data::Task;
use crate::data::patch::{Side, write_change};

/// Roughly what a tokenizer makes of code.
fn tokens(text: &str) -> usize {
    text.split([' ', '.', '(', '_']).count() + text.matches('\n').count()
}

/// A file of three functions and a class, in the language of the ending.
fn source(ending: &str, name: &str) -> String {
    let body = |n: usize| (0..n).map(|i| format!("        step_{i} = {i}\n")).collect::<String>();
    match ending {
        "py" => format!(
            "import os\n\nLIMIT = 3\n\n\nclass {name}:\n    kind = 1\n\n    def first(self):\n{}\n    @property\n    def second(self):\n        return 2\n\n\ndef {name}_free():\n    return 0\n",
            body(6)
        ),
        "rs" => format!(
            "use std::fmt;\n\npub struct {name} {{\n    kind: u8,\n}}\n\nimpl {name} {{\n    fn first(&self) {{\n{}    }}\n\n    #[inline]\n    fn second(&self) -> u8 {{\n        2\n    }}\n}}\n\nfn {name}_free() -> u8 {{\n    0\n}}\n",
            body(6)
        ),
        _ => format!(
            "package {name};\n\nclass {name} {{\n    int kind = 1;\n\n    void first() {{\n{}    }}\n\n    int second() {{\n        return 2;\n    }}\n}}\n",
            body(6)
        ),
    }
}

/// A task of five files whose patch changes the line `old` of one of them to `new`, and adds a line behind `after` where it is given.
fn task(id: &str, ending: &str, changed: usize, edits: &[(&str, &str)]) -> Task {
    let name = |i: usize| format!("src/part{i}.{ending}");
    let files: BTreeMap<String, String> = (0..5).map(|i| (name(i), source(ending, &format!("Part{i}")))).collect();
    let path = name(changed);
    let old = files[&path].clone();
    let new = edits.iter().fold(old.clone(), |text, (from, to)| text.replacen(from, to, 1));
    assert_ne!(old, new);
    let of = |text| Some(Side { path: &path, mode: 0o100644, id: "", text });
    let patch = write_change(of(&old), of(&new));
    Task {
        instance_id: id.to_owned(),
        problem_statement: "The second step is wrong\n\n".to_owned() + &"words of the issue ".repeat(30),
        patch,
        files,
        ..Task::default()
    }
}

fn tasks() -> Vec<Task> {
    let mut out = Vec::new();
    for (ending, second) in [("py", "return 2"), ("rs", "        2\n"), ("java", "return 2")] {
        let fixed = second.replace('2', "22");
        for changed in 0..5 {
            let id = format!("o__r-{ending}{changed}");
            out.push(task(&id, ending, changed, &[(second, &fixed)]));
            out.push(task(&format!("{id}b"), ending, changed, &[("step_3 = 3", "step_3 = 4"), (second, &fixed), ("kind", "sort")]));
            out.push(task(&format!("{id}c"), ending, changed, &[("        step_5 = 5\n", "        step_5 = 5\n        step_6 = 6\n")]));
        }
    }
    out
}

fn options(max_tokens: usize) -> ViewOptions {
    ViewOptions { max_tokens, min_issue_tokens: 8, ..ViewOptions::default() }
}

fn prompt(place: Place, task: &Task, options: ViewOptions) -> Result<PlacePrompt> {
    match place {
        Place::Function => FunctionSubtask::new(options)?.prompt(task, &tokens),
        Place::Line => LineSubtask::new(options)?.prompt(task, &tokens),
        Place::Edit => EditSubtask::new(options)?.prompt(task, &tokens),
    }
}

const PLACES: [Place; 3] = [Place::Function, Place::Line, Place::Edit];

#[test]
fn gold_answers_score_one_at_every_budget_that_holds_them() {
    for place in PLACES {
        let (mut made, mut cut) = (0, 0);
        for task in tasks() {
            for max in [usize::MAX, 600, 300, 200] {
                let Ok(prompt) = prompt(place, &task, options(max)) else { continue };
                assert!(prompt.asked.tokens <= max && prompt.asked.tokens == tokens(&prompt.asked.text));
                let (score, reason) = prompt.score(&format!("Because.\n{}", prompt.answer));
                assert_eq!((score.fbeta(3.0), reason), (1.0, None), "{}\n{}", prompt.asked.text, prompt.answer);
                // The command `reward` reads the universe from the prompt's text: it must find the gold answer there too.
                let read = prompt.gold.score(&prompt.answer, &Universe::new(&task, Some(&prompt.asked.text)));
                assert_eq!((read.0.fbeta(3.0), read.1), (1.0, None), "{}\n{}", prompt.asked.text, prompt.answer);
                made += 1;
                cut += usize::from(prompt.asked.cut.units.0 > 0);
            }
        }
        assert!(made > 140 && cut > 40, "{place:?}: {made} prompts, {cut} of them cut");
    }
}

#[test]
fn a_budget_that_does_not_hold_the_gold_target_is_an_error() {
    for place in PLACES {
        let error = prompt(place, &tasks()[0], options(60)).err().expect("too small").to_string();
        assert!(error.contains("60 tokens do not hold the code that must be shown and 8 tokens of the issue"), "{error}");
    }
}

#[test]
fn gold_files_stand_anywhere_among_others_of_about_as_many_units() {
    for place in PLACES {
        let (mut first, mut alone, mut rank_most) = (0, 0, 0);
        let tasks: Vec<Task> = (0..60).map(|i| task(&format!("o__r-{i}"), "py", i % 5, &[("return 2", "return 3")])).collect();
        for task in &tasks {
            let prompt = prompt(place, task, options(300)).unwrap();
            let shown: Vec<&str> = prompt.asked.text.lines().filter_map(|l| l.strip_prefix("### src/")).collect();
            let gold = task.gold().unwrap().into_iter().next().unwrap();
            first += usize::from(gold.ends_with(shown[0]));
            alone += usize::from(shown.len() < 2);
            // Units a file: the gold file must not be the one with the most of them as a rule.
            let parts: Vec<&str> = prompt.asked.text.split("### src/").skip(1).collect();
            let lines = |p: &&&str| p.split("\n```").next().unwrap_or_default().trim().lines().count();
            let most = parts.iter().max_by_key(lines).unwrap();
            rank_most += usize::from(gold.ends_with(most.lines().next().unwrap()));
        }
        assert!(
            (10..=35).contains(&first) && alone == 0 && rank_most <= 45,
            "{place:?}: {first} first, {alone} alone, {rank_most} with most lines"
        );
    }
}

#[test]
fn prompts_are_a_function_of_seed_and_task() {
    for place in PLACES {
        let texts = |seed| -> Vec<String> {
            let make = |t: &Task| prompt(place, t, ViewOptions { seed, ..options(260) }).map_or_else(|e| e.to_string(), |p| p.asked.text);
            tasks().iter().map(make).collect()
        };
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }
}

#[test]
fn localised_views_show_what_they_are_told() {
    let mut task = Task { problem_statement: "Broken".to_owned(), ..tasks()[1].clone() };
    task.all_paths = vec!["src/elsewhere.py".to_owned()];
    let (task, files) = (&task, &task.files);
    let paths = ["src/part3.py".to_owned(), "gone.py".to_owned(), "src/part1.py".to_owned()];
    let asked = FunctionSubtask::new(options(usize::MAX)).unwrap().ask(task, &paths, &tokens).unwrap();
    assert!(asked.text.find("### src/part3.py").unwrap() < asked.text.find("### src/part1.py").unwrap());
    let named = parse_functions("src/part3.py\nfunction: Part3.second\nmodule:", &asked.universe);
    assert!(named.1.is_none(), "{named:?}");
    assert!(parse_functions("src/part2.py\nfunction: Part2.second", &asked.universe).1.is_some());

    let elements = [("src/part3.py".to_owned(), "Part3.second".to_owned()), ("src/part1.py".to_owned(), "<module>".to_owned())];
    assert_eq!(places(files, &elements[..1]), [("src/part3.py".to_owned(), 17, 19)]);
    let asked = LineSubtask::new(options(usize::MAX)).unwrap().ask(task, &elements, 1, &tokens).unwrap();
    assert!(
        asked.text.contains("### src/part3.py\n16|\n17|    @property\n18|    def second(self):\n19|        return 2\n20|\n"),
        "{}",
        asked.text
    );
    assert!(asked.text.contains("### src/part1.py\n1|import os\n") && !asked.text.contains("step_2"), "{}", asked.text);
    assert!(parse_lines("src/part3.py\nline: 19", &asked.universe).1.is_none());
    assert!(parse_lines("src/part3.py\nline: 9", &asked.universe).1.is_some());

    let locations = [("src/part3.py".to_owned(), 19, 19), ("src/part3.py".to_owned(), 10, 10)];
    let asked = EditSubtask::new(options(usize::MAX)).unwrap().ask(task, &locations, 1, &tokens).unwrap();
    assert!(
        asked.text.contains("        step_0 = 0\n        step_1 = 1\n...\n    def second(self):\n        return 2\n"),
        "{}",
        asked.text
    );
    let edit = |search: &str| format!("```\n### src/part3.py\n<<<<<<< SEARCH\n{search}\n=======\n        return 5\n>>>>>>> REPLACE\n```");
    let after = asked.universe.apply(&edit("        return 2")).unwrap();
    assert_eq!(after["src/part3.py"], files["src/part3.py"].replace("return 2", "return 5"));
    assert!(asked.universe.apply(&edit("        step_5 = 5")).is_err() && parse_edits(&edit("x"), &asked.universe).1.is_some());
    let new_file = |path: &str| format!("```\n### {path}\n<<<<<<< SEARCH\n=======\nx = 1\n>>>>>>> REPLACE\n```");
    assert!(asked.universe.apply(&new_file("src/new.py")).is_ok());
    for there in ["src/part0.py", "src/elsewhere.py"] {
        let error = asked.universe.apply(&new_file(there)).unwrap_err();
        assert!(error.contains("an empty SEARCH is for a new file"), "{error}");
    }
}

#[test]
fn function_prompts_list_the_best_matches_in_the_form_of_an_answer() {
    let issue = "The second step of part 2 is wrong: Part2.second";
    let with = |max_tokens, answers, close| {
        let matches = MatchOptions { listed: 4, answers, close };
        FunctionSubtask::new(ViewOptions { matches, ..options(max_tokens) }).unwrap()
    };
    let list_of = |text: &str| text.split("the best first:\n```\n").nth(1).unwrap().split("\n```").next().unwrap().to_owned();
    let lines = |text: &str| text.lines().filter(|l| l.contains(':')).count();
    let (mut beyond, mut ended) = (0, 0);
    for task in tasks().into_iter().map(|t| Task { problem_statement: issue.to_owned(), ..t }) {
        for max in [usize::MAX, 300, 240] {
            let prompt = with(max, 3, 0.7).prompt(&task, &tokens).unwrap();
            let list = list_of(&prompt.asked.text);
            let (close, rest) = list.split_once("\n--").unwrap();
            assert!(prompt.asked.tokens <= max && (1..=3).contains(&lines(close)) && lines(&list) <= 4 && lines(rest) > 0, "{list}");
            // All that is listed can be named, and what supervised training answers is right and says where it ends.
            let (named, reason) = parse_functions(&format!("```\n{list}\n```"), &prompt.asked.universe);
            assert_eq!((named.len(), reason), (lines(&list), None), "{}", prompt.asked.text);
            let (score, reason) = prompt.score(&prompt.answer);
            assert_eq!((score.recall(), reason), (1.0, None), "{}\n{}", prompt.asked.text, prompt.answer);
            assert!(prompt.answer.ends_with("\n--\n```") && score.answers <= 3.max(score.gold), "{}", prompt.answer);
            let read = prompt.gold.score(&prompt.answer, &Universe::new(&task, Some(&prompt.asked.text)));
            assert_eq!((read.0.recall(), read.1), (1.0, None), "{}\n{}", prompt.asked.text, prompt.answer);
            beyond += usize::from(!prompt.answer.contains(close));
            ended += usize::from(prompt.answer == format!("```\n{close}\n--\n```"));
        }
        // Without ends that are marked the gold answer is the gold set's alone.
        let prompt = with(300, 0, 0.0).prompt(&task, &tokens).unwrap();
        assert!(!prompt.answer.contains("--") && !list_of(&prompt.asked.text).contains("--"), "{}", prompt.asked.text);
        assert_eq!(prompt.score(&prompt.answer).0.fbeta(1.0), 1.0);
    }
    assert!(beyond > 0 && ended > 0, "{beyond} answers go beyond the close ones, {ended} are these");

    // Asked without a gold patch: the same list of the files that it is told, also where most of them does not fit.
    let task = Task { problem_statement: issue.to_owned(), ..tasks()[0].clone() };
    let paths = [1, 2, 3].map(|i| format!("src/part{i}.py"));
    for max in [usize::MAX, 150] {
        let asked = with(max, 3, 0.7).ask(&task, &paths, &tokens).unwrap();
        assert!(list_of(&asked.text).starts_with("src/part2.py\nfunction: Part2.second\n"), "{}", asked.text);
        assert!(asked.text.contains("def second(self):") && asked.tokens <= max, "{}", asked.text);
    }
}

#[test]
fn localised_views_keep_what_matches_the_issue_where_not_all_fits() {
    let mut files = BTreeMap::from([("a.py".to_owned(), (0..60).map(|i| format!("def f{i}():\n    return {i}\n\n")).collect::<String>())]);
    files.get_mut("a.py").unwrap().push_str("def zebra():\n    return 'zebra'\n");
    let task = Task { problem_statement: "The zebra is wrong".to_owned(), files, ..Task::default() };
    let asked = FunctionSubtask::new(options(160)).unwrap().ask(&task, &["a.py".to_owned()], &tokens).unwrap();
    assert!(asked.text.contains("def zebra():") && asked.cut.units.0 > 0 && asked.tokens <= 160, "{}", asked.text);
    let asked = LineSubtask::new(options(160)).unwrap();
    let elements = ["<module>", "zebra"].map(|name| ("a.py".to_owned(), name.to_owned()));
    let asked = asked.ask(&task, &elements, 0, &tokens).unwrap();
    assert!(asked.text.contains("|def zebra():") && asked.tokens <= 160, "{}", asked.text);
    let none = LineSubtask::new(options(160)).unwrap().ask(&task, &[("b.py".to_owned(), "f".to_owned())], 0, &tokens);
    assert!(none.err().unwrap().to_string().contains("none of the places"));
}

#[test]
fn changes_that_cannot_be_shown_or_said_are_left_out_by_name() {
    let mut unknown = tasks()[0].clone();
    unknown.files.remove("src/part0.py");
    for place in [Place::Function, Place::Line] {
        let error = prompt(place, &unknown, options(usize::MAX)).err().unwrap().to_string();
        assert!(error.contains("src/part0.py") && error.contains("not known"), "{error}");
    }
    let mut partly = tasks()[0].clone();
    partly.patch.push_str("diff --git a/gone.py b/gone.py\n--- a/gone.py\n+++ b/gone.py\n@@ -1 +1 @@\n-x\n+y\n");
    for place in PLACES {
        let prompt = prompt(place, &partly, options(usize::MAX)).unwrap();
        assert_eq!((prompt.asked.cut.unknown_files, prompt.score(&prompt.answer).0.fbeta(3.0)), (1, 1.0));
    }
    let added = "diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x\n";
    let added = Task { patch: added.to_owned(), ..tasks()[0].clone() };
    assert!(prompt(Place::Edit, &added, options(usize::MAX)).err().unwrap().to_string().contains("only adds files"));
    assert!(Gold::new(&added, Place::Line).is_err());
}

#[test]
fn an_added_file_beside_a_change_is_part_of_the_gold_edits() {
    let mut both = tasks()[0].clone();
    both.patch.push_str("diff --git a/new.py b/new.py\nnew file mode 100644\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+x\n");
    let prompt = prompt(Place::Edit, &both, options(usize::MAX)).unwrap();
    let (score, reason) = prompt.score(&prompt.answer);
    assert_eq!((score.fbeta(3.0), reason), (1.0, None), "{}", prompt.answer);
    let paths: BTreeSet<String> = prompt.asked.universe.apply(&prompt.answer).unwrap().into_keys().collect();
    assert!(paths.contains("new.py"));
}
