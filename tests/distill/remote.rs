//! The endpoint's client.

use crate::endpoint::{Act, Teacher};
use serde_json::Value;
use sorft_native::Result;
use sorft_native::model::generate::Completion;
use sorft_native::rl::dataset::Item;
use sorft_native::rl::distill::endpoint::{Budget, Endpoint, Remote};
use sorft_native::rl::distill::{Sampling, Summary, distill};
use sorft_native::rl::reward::{Question, Reward};
use std::path::Path;
use std::time::{Duration, Instant};

/// A question whose gold answer is its own text.
struct Echo(String);

impl Question for Echo {
    fn text(&self) -> &str {
        &self.0
    }
    fn gold_answer(&self) -> &str {
        &self.0
    }
    fn judge(&self, completion: &Completion) -> Reward {
        let hit = f64::from(u8::from(completion.text.contains(&self.0)));
        let error = completion.text.is_empty().then(|| "nothing".to_owned());
        Reward { value: hit, parts: vec![("hit", hit)], error }
    }
    fn cut(&self) -> Option<String> {
        None
    }
}

fn items(n: usize) -> Vec<Item> {
    let item = |i: usize| Item {
        subtask: "",
        id: format!("t{i}"),
        cluster: "r".into(),
        question: Box::new(Echo(format!("question {i}"))),
        prompt: vec![1],
        gold: vec![2],
    };
    (0..n).map(item).collect()
}

fn endpoint(teacher: &Teacher) -> Endpoint {
    Endpoint {
        url: teacher.url(),
        model: "m".into(),
        key: Some("secret".into()),
        sampling: Sampling { n: 3, max_new_tokens: 50, temperature: 0.7, instruction: String::new(), form: None },
        parallel: 4,
        per_minute: 0,
        timeout: Duration::from_millis(700),
        retries: 6,
        first_pause: Duration::from_millis(1),
        budget: None,
    }
}

fn run(endpoint: Endpoint, items: &[Item], dir: &Path) -> Result<Summary> {
    let sampling = endpoint.sampling.clone();
    let remote = Remote { endpoint, stop: &|| false, log: &|line| println!("{line}") };
    distill(&items.iter().collect::<Vec<_>>(), &sampling, &remote, dir, &|_| {})
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn answer(question: &str) -> Act {
    Act::Answer(format!("I think: {question}"), "stop")
}

#[test]
fn failures_that_pass_cost_no_answer() {
    let teacher = Teacher::start(|number, question| match number {
        0 => Act::Status(429, "Retry-After: 0\r\n", "{\"error\": {\"message\": \"slow down\"}}"),
        1 => Act::Status(500, "", "oops"),
        2 => Act::Status(200, "", "<html>no JSON</html>"),
        3 => Act::Status(200, "", "{\"choices\": []}"),
        4 => Act::Silence(Duration::from_secs(2)),
        5 => Act::Silence(Duration::ZERO),
        6 => Act::Half,
        7 => Act::Status(503, "Retry-After: soon\r\n", ""),
        _ if question == "question 1" => Act::Answer("something else".into(), "stop"),
        _ if question == "question 2" => Act::Answer(question.into(), "length"),
        _ if question == "question 3" => Act::Answer(String::new(), "stop"),
        _ => answer(question),
    });
    let (items, dir) = (items(6), tempfile::tempdir().unwrap());
    let summary = run(endpoint(&teacher), &items, dir.path()).unwrap();
    assert_eq!((summary.wanted, summary.sampled, summary.kept, summary.questions), (18, 18, 9, 3));
    assert_eq!(summary.rejected.into_iter().collect::<Vec<_>>(), [("cut off", 3), ("malformed", 3), ("no overlap", 3)]);
    let seen = teacher.seen();
    assert_eq!(seen.len(), 18 + 8);
    assert!(seen.iter().all(|s| s.authorization.as_deref() == Some("Bearer secret")));
    let sent = &seen[0].body;
    assert_eq!((&sent["model"], &sent["max_tokens"], &sent["temperature"]), (&"m".into(), &50.into(), &0.7.into()));

    let sft = lines(&dir.path().join("sft.jsonl"));
    let places: Vec<_> = sft.iter().map(|l| (l["id"].as_str().unwrap(), l["index"].as_u64().unwrap())).collect();
    assert_eq!(places, ["t0", "t4", "t5"].iter().flat_map(|t| (0..3).map(move |i| (*t, i))).collect::<Vec<_>>());
    assert_eq!(sft[0]["messages"][0]["content"], "question 0");
    assert_eq!(sft[0]["answer"], "I think: question 0");
    let rejected = lines(&dir.path().join("rejected.jsonl"));
    assert_eq!(
        rejected.iter().map(|l| l["reason"].as_str().unwrap()).collect::<Vec<_>>()[..4],
        ["no overlap"; 3].iter().chain(&["cut off"]).copied().collect::<Vec<_>>()
    );
    assert_eq!(rejected[8]["detail"], "nothing");

    // Again: nothing is asked, the same files. With one sample removed, and with more wanted: only what is missing.
    let files = || ["samples.jsonl", "sft.jsonl", "rejected.jsonl"].map(|f| std::fs::read(dir.path().join(f)).unwrap());
    let before = files();
    run(endpoint(&teacher), &items, dir.path()).unwrap();
    assert_eq!((teacher.seen().len(), files()), (26, before.clone()));
    let text = String::from_utf8(before[0].clone()).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    std::fs::write(dir.path().join("samples.jsonl"), rest).unwrap();
    run(endpoint(&teacher), &items, dir.path()).unwrap();
    assert_eq!((teacher.seen().len(), &files()[1..]), (27, &before[1..]));
    let first: Value = serde_json::from_str(first).unwrap();
    assert_eq!(teacher.seen()[26].question, format!("question {}", &first["id"].as_str().unwrap()[1..]));
    let mut more = endpoint(&teacher);
    more.sampling.n = 4;
    assert_eq!(run(more, &items, dir.path()).unwrap().sampled, 24);
    assert_eq!(teacher.seen().len(), 27 + 6);
}

#[test]
fn a_server_is_left_alone_for_as_long_as_it_asks() {
    let teacher = Teacher::start(|number, question| match number {
        0 => Act::Status(429, "Retry-After: 1\r\n", ""),
        _ => answer(question),
    });
    let (items, dir) = (items(1), tempfile::tempdir().unwrap());
    let one = Endpoint { parallel: 1, ..endpoint(&teacher) };
    run(one, &items, dir.path()).unwrap();
    let seen = teacher.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_millis(990), "{:?}", seen[1].at - seen[0].at);
}

#[test]
fn the_rate_is_kept() {
    let teacher = Teacher::start(|_, question| answer(question));
    let (items, dir) = (items(2), tempfile::tempdir().unwrap());
    let start = Instant::now();
    run(Endpoint { per_minute: 600, ..endpoint(&teacher) }, &items, dir.path()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(490), "six requests, 100 ms apart");
}

#[test]
fn what_cannot_pass_ends_the_run_and_keeps_what_is_there() {
    let teacher = Teacher::start(|number, question| match number {
        0..4 => answer(question),
        _ => Act::Status(401, "", "{\"error\": {\"message\": \"the key has expired\"}}"),
    });
    let (items, dir) = (items(5), tempfile::tempdir().unwrap());
    let error = run(Endpoint { parallel: 1, ..endpoint(&teacher) }, &items, dir.path()).unwrap_err().to_string();
    assert!(error.contains("status 401: the key has expired") && error.contains("--api-key-env"), "{error}");
    assert_eq!(teacher.seen().len(), 5);
    assert_eq!(lines(&dir.path().join("samples.jsonl")).len(), 4);
    assert_eq!(lines(&dir.path().join("sft.jsonl")).len(), 4);
}

#[test]
fn a_refused_question_is_passed_over() {
    let teacher = Teacher::start(|_, question| match question {
        "question 1" => Act::Status(400, "", "{\"error\": {\"message\": \"too long\"}}"),
        _ => answer(question),
    });
    let (items, dir) = (items(3), tempfile::tempdir().unwrap());
    let error = run(endpoint(&teacher), &items, dir.path()).unwrap_err().to_string();
    assert!(error.contains("3 answers could not be had"), "{error}");
    assert_eq!((teacher.seen().len(), lines(&dir.path().join("sft.jsonl")).len()), (9, 6));
}

#[test]
fn retries_end_some_time() {
    let teacher = Teacher::start(|_, _| Act::Status(500, "", ""));
    let (items, dir) = (items(1), tempfile::tempdir().unwrap());
    let error = run(Endpoint { retries: 2, ..endpoint(&teacher) }, &items, dir.path()).unwrap_err().to_string();
    assert!(error.contains("3 answers could not be had"), "{error}");
    assert_eq!(teacher.seen().len(), 9);
}

#[test]
fn no_more_is_spent_than_allowed() {
    let teacher = Teacher::start(|_, question| answer(question));
    let (items, dir) = (items(10), tempfile::tempdir().unwrap());
    // 100 tokens of prompt and 10 of answer: 0.0013 each.
    let budget = Some(Budget { prompt_price: 10.0, completion_price: 30.0, limit: 0.006 });
    let error = run(Endpoint { parallel: 1, budget, ..endpoint(&teacher) }, &items, dir.path()).unwrap_err().to_string();
    assert!(error.contains("the answers cost 0.01, the limit is 0.01"), "{error}");
    assert_eq!(lines(&dir.path().join("samples.jsonl")).len(), 5);
    run(Endpoint { budget: None, ..endpoint(&teacher) }, &items, dir.path()).unwrap();
    assert_eq!(teacher.seen().len(), 30);
}

#[test]
fn a_limit_needs_a_server_that_counts() {
    let said = "{\"choices\": [{\"message\": {\"content\": \"b.py\"}, \"finish_reason\": \"stop\"}]}";
    let teacher = Teacher::start(|_, _| Act::Status(200, "", said));
    let (items, dir) = (items(4), tempfile::tempdir().unwrap());
    let budget = |limit| Some(Budget { prompt_price: 10.0, completion_price: 30.0, limit });
    let error = run(Endpoint { parallel: 1, budget: budget(5.0), ..endpoint(&teacher) }, &items, dir.path()).unwrap_err().to_string();
    assert!(error.contains("does not say how many tokens an answer took"), "{error}");
    assert_eq!(lines(&dir.path().join("samples.jsonl")).len(), 1, "what was answered is kept");
    run(Endpoint { budget: budget(f64::INFINITY), ..endpoint(&teacher) }, &items, dir.path()).unwrap();
}
