//! The prompts of all subtasks over task files, with a real tokenizer: how many tasks fit, and whether every gold answer scores 1.
//!
//!     SORFT_MODEL=FOLDER SORFT_TASKS=A.jsonl,B.jsonl cargo test --test rl prompts -- --ignored --nocapture

use rayon::prelude::*;
use sorft_native::Error;
use sorft_native::data::Task;
use sorft_native::data::source::swe_bench;
use sorft_native::model::dialogue::Dialogue;
use sorft_native::model::generate::{Completion, FinishReason};
use sorft_native::model::weights;
use sorft_native::rl::config::{Config, SUBTASKS};
use sorft_native::rl::reward::{self, Reward, Subtask};
use std::collections::BTreeMap;
use std::path::Path;

fn answered(text: &str) -> Completion {
    let (ids, logprobs) = (vec![0], vec![0.0]);
    Completion { prompt_index: 0, index: 0, ids, logprobs, text: text.to_owned(), finish_reason: FinishReason::Eos }
}

struct Judged {
    tokens: usize,
    gold_tokens: usize,
    cut: bool,
    reward: Reward,
}

/// A prompt's gold answer, judged; or why there is no prompt, without the numbers.
fn judge(subtask: &dyn Subtask, task: &Task, count: &dyn Fn(&str) -> usize) -> Result<Judged, String> {
    let reason = |e: Error| {
        let text = e.to_string();
        let last = text.lines().next().and_then(|l| l.rsplit(": ").next()).unwrap_or_default().to_owned();
        last.chars().filter(|c| !c.is_ascii_digit()).collect::<String>()
    };
    let question = subtask.question(task, count).map_err(reason)?;
    Ok(Judged {
        tokens: count(question.text()),
        gold_tokens: count(question.gold_answer()),
        cut: question.cut().is_some(),
        reward: question.judge(&answered(question.gold_answer())),
    })
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
        let room = budget - dialogue.overhead(false).unwrap() - 2;
        for name in SUBTASKS {
            let subtask = reward::subtask(name, &config.prompt, room, 0, config.stages[0].score, 3.0).unwrap();
            let judged: Vec<_> = tasks.par_iter().map(|task| judge(&*subtask, task, &count)).collect();
            let (mut cut, mut reasons, mut gold_tokens) = (0, BTreeMap::<String, usize>::new(), Vec::new());
            for (task, judged) in tasks.iter().zip(judged) {
                match judged {
                    Ok(judged) => {
                        assert!(judged.tokens <= room, "{name} {budget} {}", task.instance_id);
                        cut += usize::from(judged.cut);
                        gold_tokens.push(judged.gold_tokens);
                        if judged.reward.value != 1.0 {
                            wrong += 1;
                            println!("{name} {budget} {}: {:?}", task.instance_id, judged.reward);
                        }
                    }
                    Err(why) => *reasons.entry(why).or_default() += 1,
                }
            }
            let made = gold_tokens.len();
            gold_tokens.sort_unstable();
            let median = gold_tokens.get(made / 2).copied().unwrap_or(0);
            println!(
                "{budget} tokens, {name}: {made} of {} tasks, {cut} of them cut; gold answers have {median} tokens (median); left out: {reasons:?}",
                tasks.len()
            );
        }
    }
    assert_eq!(wrong, 0);
}
