use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::evidence::Lexical;
use super::*;

/// Words and line ends, roughly what a tokenizer makes of a path-free text.
fn words(text: &str) -> usize {
    text.split([' ', '/']).count() + text.matches('\n').count()
}

fn paths() -> Vec<String> {
    ["src/a.py", "src/b.py", "src/core/c.py", "src/core/D_E.py", "lib/f.py", "setup.py"].map(str::to_owned).to_vec()
}

/// A task whose patch changes `gold`, by as many lines as their places in the list.
fn task(gold: &[&str]) -> Task {
    let section = |(n, path): (usize, &&str)| {
        let lines: String = (0..=n).map(|i| format!("+{i}\n")).collect();
        format!("diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -0,0 +1,{} @@\n{lines}", n + 1)
    };
    let files: BTreeMap<String, String> =
        paths().into_iter().map(|p| (p.clone(), format!("def name_of_{}(): pass\n", p.replace(['/', '.'], "_")))).collect();
    Task {
        instance_id: "o__r-1".to_owned(),
        repo: "o/r".to_owned(),
        problem_statement: "Core crashes\n\nwhen name of a is long ".to_owned() + &"word ".repeat(40),
        patch: gold.iter().enumerate().map(section).collect(),
        all_paths: paths().into_iter().chain(["tools/g.py".to_owned()]).collect(),
        files,
        ..Task::default()
    }
}

fn subtask(change: impl FnOnce(&mut FileOptions)) -> FileSubtask {
    let mut options = FileOptions { min_issue_tokens: 8, ..FileOptions::default() };
    change(&mut options);
    FileSubtask::new(options).unwrap()
}

#[test]
fn the_prompt_is_what_the_template_says() {
    let short = Task { problem_statement: "It breaks.\n".to_owned(), ..task(&["src/b.py", "lib/f.py"]) };
    let prompt = subtask(|_| {}).prompt(&short, &words).unwrap();
    assert_eq!(
        prompt.text,
        "Issue:\nIt breaks.\n\nFiles:\nlib/f.py\nsetup.py\nsrc/a.py\nsrc/b.py\nsrc/core/D_E.py\nsrc/core/c.py\n\n\
         Which of these files must be changed to resolve the issue? Answer with their paths, one a line."
    );
    assert_eq!(prompt.answer, "lib/f.py\nsrc/b.py", "the most changed file first");
    assert_eq!(prompt.cut, Cut { issue_bytes: (10, 10), paths: (0, 6), ..Cut::default() });
    assert_eq!(universe(&short, Some(&prompt.text)).into_iter().collect::<Vec<_>>(), prompt.candidates);
    let tree = subtask(|o| o.universe = Universe::Tree).prompt(&short, &words).unwrap();
    assert_eq!(tree.candidates.len(), 7);
}

#[test]
fn an_answer_of_a_fixed_length_goes_on_with_the_best_matches() {
    let one = task(&["lib/f.py"]);
    let prompt = subtask(|o| o.answers = 3).prompt(&one, &words).unwrap();
    let best = lexical::rank(&one, &prompt.candidates, Ranking::Bm25(Field::Content));
    let mut expected = vec!["lib/f.py".to_owned()];
    expected.extend(best.into_iter().filter(|p| p != "lib/f.py").take(2));
    assert_eq!(prompt.answer.lines().collect::<Vec<_>>(), expected);
    assert!(prompt.text.ends_with("Answer with the 3 most likely paths, the best first, one a line."), "{}", prompt.text);
    let many = subtask(|o| o.answers = 1).prompt(&task(&["src/b.py", "lib/f.py"]), &words).unwrap();
    assert_eq!(many.answer.lines().count(), 2, "gold paths are never cut");
}

#[test]
fn an_answer_goes_on_as_far_as_candidates_score_close_to_the_best() {
    let gold = task(&["lib/f.py"]);
    let make = |close: f64| {
        let options = |o: &mut FileOptions| (o.answers, o.close, o.evidence.lexical) = (3, close, Lexical::Score);
        subtask(options).prompt(&gold, &words).unwrap()
    };
    let ranked = lexical::ranked(&gold, &make(0.5).candidates, Ranking::Bm25(Field::Content));
    let part = |i: usize| ranked[i].1 / ranked[0].1;
    assert!(0.0 < part(2) && part(2) < part(1) && part(1) < 1.0, "{ranked:?}");
    let between = (part(1) + part(2)) / 2.0;
    let expected = |n: usize| {
        let named: Vec<&str> = ranked[..n].iter().map(|(path, _)| path.as_str()).chain(["lib/f.py"]).collect();
        let listed = make(0.5).candidates.into_iter().filter(|path| named.contains(&path.as_str()));
        listed.collect::<Vec<_>>().join("\n")
    };
    assert_ne!(ranked[0].0, "lib/f.py");
    assert_eq!(make(1.0).answer, expected(1), "the gold one and the best, in the prompt's order");
    assert_eq!(make(between).answer, expected(2));
    assert_eq!(make(part(2) * 0.99).answer.lines().count(), 3, "no more than `answers`");
    let text = make(between).text;
    assert!(text.ends_with("Answer with the most likely paths, at most 3, the best first, one a line."), "{text}");
    assert!(text.contains(&format!("{} | 9\n", ranked[0].0)), "the best one's mark: {text}");
    let listed =
        |close: f64| subtask(|o: &mut FileOptions| (o.answers, o.close, o.order) = (3, close, Order::Lexical)).prompt(&gold, &words);
    let places = [1.0, between, part(2) * 0.99].map(|close| listed(close).unwrap().text.lines().position(|l| l == "--").unwrap());
    assert_eq!(places.map(|p| p - places[0]), [0, 1, 2], "the line behind those that are close");
    let prompt = listed(between).unwrap();
    assert!(prompt.text.ends_with("one a line, and then a line --.") && prompt.answer.ends_with("\n--"), "{}", prompt.answer);
    assert_eq!(parse_answer(&prompt.answer, &prompt.candidates.iter().cloned().collect()).paths.len(), prompt.answer.lines().count() - 1);
    assert_eq!(universe(&gold, Some(&prompt.text)), prompt.candidates.into_iter().collect());
}

#[test]
fn the_gold_set_leaves_no_trace() {
    let evidences =
        [(false, Lexical::None), (true, Lexical::None), (false, Lexical::Score), (true, Lexical::Rank), (false, Lexical::Words)];
    for (names, lexical) in evidences {
        for order in [Order::Alphabetical, Order::Shuffled, Order::Lexical, Order::LexicalPaths, Order::Fused] {
            for max_tokens in [usize::MAX, 90, 70] {
                let make = subtask(|o| (o.evidence, o.order, o.max_tokens) = (Evidence { names, lexical }, order, max_tokens));
                let prompts: Vec<FilePrompt> = paths().iter().map(|p| make.prompt(&task(&[p]), &words).unwrap()).collect();
                assert!(prompts.iter().all(|p| p.cut.paths.0 == 0), "the budgets hold all paths");
                assert!(prompts.iter().all(|p| p.text == prompts[0].text), "{names} {lexical:?} {order:?} {max_tokens}");
            }
        }
    }
}

#[test]
fn shuffled_orders_differ_by_task_and_put_the_gold_file_anywhere() {
    let make = subtask(|o| o.order = Order::Shuffled);
    let mut places = [0usize; 6];
    for i in 0..600 {
        let task = Task { instance_id: format!("t{i}"), ..task(&["src/b.py"]) };
        let prompt = make.prompt(&task, &words).unwrap();
        places[prompt.candidates.iter().position(|c| c == "src/b.py").unwrap()] += 1;
    }
    assert!(places.iter().all(|&n| (60..140).contains(&n)), "{places:?}");
}

/// Which paths stay does not depend on the order: if the worst ranked went first, a gold one among them would always stand last.
#[test]
fn what_is_left_out_does_not_follow_the_order() {
    for gold in paths() {
        let mut left_out = 0;
        for max_tokens in 25..70 {
            let kept = |order| {
                let prompt = subtask(|o| (o.order, o.max_tokens) = (order, max_tokens)).prompt(&task(&[&gold]), &words).ok()?;
                Some((prompt.candidates.iter().cloned().collect::<BTreeSet<String>>(), prompt.cut.paths.0))
            };
            let alphabetical = kept(Order::Alphabetical);
            left_out += alphabetical.as_ref().map_or(0, |(_, out)| *out);
            for order in [Order::Shuffled, Order::Lexical, Order::LexicalPaths, Order::Fused] {
                assert_eq!(kept(order), alphabetical, "{gold} {order:?} {max_tokens}");
            }
        }
        assert!(left_out > 0, "some budget leaves paths out");
    }
}

#[test]
fn what_does_not_fit_is_cut_in_order_and_counted() {
    let long = task(&["src/b.py", "lib/f.py"]);
    let evidence = Evidence { names: true, lexical: Lexical::Score };
    let make = |max_tokens| subtask(|o| (o.evidence, o.max_tokens) = (evidence, max_tokens)).prompt(&long, &words);
    let whole = make(usize::MAX).unwrap();
    assert_eq!((whole.cut.issue, whole.cut.evidence.0, whole.cut.paths), (false, 0, (0, 6)));
    let (mut last, mut stages) = (whole.cut, [0; 3]);
    for max in (25..whole.tokens).rev() {
        let Ok(prompt) = make(max) else { break };
        let cut = prompt.cut;
        assert!(prompt.tokens <= max && prompt.tokens == words(&prompt.text), "{max}");
        assert!(cut.issue && prompt.text.contains(" [...]\n"));
        assert!(prompt.gold.iter().all(|g| prompt.candidates.contains(g)), "gold paths stay");
        assert!(cut.evidence.0 >= last.evidence.0 && cut.paths.0 >= last.paths.0, "{max}: {last:?} {cut:?}");
        assert!(cut.paths.0 == 0 || cut.evidence.0 == cut.evidence.1, "evidence goes before paths");
        stages[usize::from(cut.evidence.0 > 0) + usize::from(cut.paths.0 > 0)] += 1;
        last = cut;
    }
    assert!(stages.iter().all(|&n| n > 0), "{stages:?}");
    let error = make(20).unwrap_err().to_string();
    assert!(error.contains("o__r-1: 20 tokens do not hold a prompt of its 2 gold paths"), "{error}");
}

#[test]
fn tasks_without_a_target_and_bad_templates_are_errors() {
    let none = Task { files: BTreeMap::from([("x.py".to_owned(), String::new())]), ..task(&["src/b.py"]) };
    assert!(subtask(|_| {}).prompt(&none, &words).unwrap_err().to_string().contains("o__r-1: no file that the patch changes"));
    let some = Task {
        files: none.files.clone().into_iter().chain([("src/b.py".to_owned(), String::new())]).collect(),
        ..task(&["src/b.py", "lib/f.py"])
    };
    assert_eq!(subtask(|_| {}).prompt(&some, &words).unwrap().cut.gold_missing, 1);
    let bad = FileOptions { template: Some("a\n{% if %}".to_owned()), ..FileOptions::default() };
    assert!(FileSubtask::new(bad).err().unwrap().to_string().contains("line 2"));
    let unknown = subtask(|o| o.template = Some("{{ isue }}".to_owned()));
    assert!(unknown.prompt(&some, &words).is_err());
    let own = subtask(|o| o.template = Some("{{ repo }}: {{ candidates | length }}".to_owned()));
    assert_eq!(own.prompt(&some, &words).unwrap().text, "o/r: 2");
}

#[test]
fn answers_are_read_as_the_contract_says() {
    let universe: BTreeSet<String> = paths().into_iter().chain(["1. notes/x.py".to_owned()]).collect();
    let read = |text: &str| {
        let answer = parse_answer(text, &universe);
        (answer.paths.join(" "), answer.outside)
    };
    let ok = |text: &str| read(text).0;
    assert_eq!(read("src/a.py\n\n  src/b.py\r\n"), ("src/a.py src/b.py".into(), None));
    assert_eq!(
        ok("<think>src/b.py</think>\n```\n1. `./src/a.py`\n- src/a.py\n* lib/f.py\n2) setup.py\n```\nbye"),
        "src/a.py lib/f.py setup.py"
    );
    assert_eq!(ok("1. notes/x.py"), "1. notes/x.py");
    assert_eq!(read("src/a.py\nsrc/z.py"), ("src/a.py src/z.py".into(), Some("src/z.py".into())));
    assert_eq!(read("The file is src/a.py").1, Some("The file is src/a.py".into()));
    assert_eq!(ok(""), "");
    assert_eq!(parse_answer("any/thing.py", &BTreeSet::new()).outside, None);
}

#[test]
fn scores_and_their_reasons() {
    let prompt = subtask(|_| {}).prompt(&task(&["src/b.py", "lib/f.py"]), &words).unwrap();
    let (s, reason) = prompt.score(&prompt.answer);
    assert_eq!((s.fbeta(3.0), s.valid, s.first, reason), (1.0, true, true, None));
    let (s, reason) = prompt.score("src/b.py\nsrc/a.py");
    assert_eq!((s.precision(), s.recall(), reason), (0.5, 0.5, None));
    let (s, reason) = prompt.score("src/b.py\nnot/here.py");
    assert_eq!((s.fbeta(3.0), s.valid, reason.as_deref()), (0.0, false, Some("`not/here.py` is not among the paths of the prompt")));
    let (s, reason) = prompt.score("```\n```");
    assert_eq!((s.answers, s.valid, reason.as_deref()), (0, false, Some("the answer names no path")));
}

proptest! {
    #[test]
    fn reading_never_panics(text in "(```|`|</think>|- |1\\. |\\./|src/a\\.py|é|\n| ){0,30}") {
        let universe: BTreeSet<String> = paths().into_iter().collect();
        let (s, reason) = score(&text, &universe, &universe);
        prop_assert_eq!(s.valid, reason.is_none());
        prop_assert!(s.fbeta(3.0) <= 1.0);
    }
}
