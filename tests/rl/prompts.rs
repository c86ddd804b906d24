//! The prompts of all subtasks over task files, with a real tokenizer: how many tasks fit, and whether every gold answer scores 1.
//!
//!     SORFT_MODEL=FOLDER SORFT_TASKS=A.jsonl,B.jsonl cargo test --test rl prompts -- --ignored --nocapture

use sorft_native::data::source::swe_bench;
use sorft_native::model::dialogue::Dialogue;
use sorft_native::model::generate::{Completion, FinishReason};
use sorft_native::model::weights;
use sorft_native::rl::config::{Config, SUBTASKS};
use sorft_native::rl::reward;
use std::path::Path;

fn answered(text: &str) -> Completion {
    let (ids, logprobs) = (vec![0], vec![0.0]);
    Completion { prompt_index: 0, index: 0, ids, logprobs, text: text.to_owned(), finish_reason: FinishReason::Eos }
}

#[test]
#[ignore = "needs SORFT_MODEL and SORFT_TASKS"]
fn every_gold_answer_scores_one() {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let files = weights::open(&env("SORFT_MODEL")).unwrap();
    let tasks: Vec<_> = env("SORFT_TASKS").split(',').flat_map(|path| swe_bench::read(Path::new(path)).unwrap()).collect();
    let config = Config::parse("model = \"m\"\ndata.train = \"x\"\n", Path::new("a.toml")).unwrap();
    let dialogue = Dialogue::new(&files, true).unwrap();
    let count = |text: &str| dialogue.count(text).unwrap();
    let mut wrong = 0;
    for budget in [512, 1024, 2048, 4096] {
        let room = budget - dialogue.overhead().unwrap() - 2;
        for name in SUBTASKS {
            let subtask = reward::subtask(name, &config.prompt, room, 0, config.stages[0].score, 3.0).unwrap();
            let (mut made, mut cut, mut over, mut gold_tokens) = (0, 0, 0, Vec::new());
            let mut reasons = std::collections::BTreeMap::<String, usize>::new();
            for task in &tasks {
                match subtask.question(task, &count) {
                    Ok(question) => {
                        made += 1;
                        cut += usize::from(question.cut().is_some());
                        over += usize::from(count(question.text()) > room);
                        gold_tokens.push(count(question.gold_answer()));
                        let reward = question.judge(&answered(question.gold_answer()));
                        if reward.value != 1.0 {
                            wrong += 1;
                            println!("{name} {budget} {}: {reward:?}", task.instance_id);
                        }
                    }
                    Err(e) => {
                        *reasons
                            .entry(e.to_string().split(": ").last().unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect())
                            .or_default() += 1
                    }
                }
            }
            gold_tokens.sort_unstable();
            let median = gold_tokens.get(made / 2).copied().unwrap_or(0);
            println!(
                "{budget} tokens, {name}: {made} of {} tasks, {cut} of them cut, {over} too long; gold answers have {median} tokens (median); left out: {reasons:?}",
                tasks.len()
            );
        }
    }
    assert_eq!(wrong, 0);
}
