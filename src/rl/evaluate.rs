//! Evaluation: greedy answers to held-out questions.

use crate::data::bootstrap::Bootstrap;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::generate::{Event, SamplingParams, generate};
use crate::model::tokenizer::Tokenizer;
use crate::rl::dataset::Item;
use crate::rl::reward::Reward;
use crate::rl::rollout::{common_parts, parts};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The result of an evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Means over the questions, by the names of the reward's parts; `tasks` (how many), and `interval` with the 95 % bootstrap interval
    /// of each mean, clustered by repository.
    pub numbers: Map<String, Value>,
    /// One record a question: its id, the answer, its reward and parts.
    pub answers: Vec<Value>,
}

/// Answers every question greedily and judges the answers. `keep_going` is asked now and then, with the number of answers so far.
///
/// # Errors
/// [`Error::interrupted`] once `keep_going` says no; whatever generation reports.
pub fn evaluate(
    model: &Transformer,
    tokenizer: &Tokenizer,
    items: &[Item],
    max_new_tokens: usize,
    max_batch: usize,
    keep_going: &mut dyn FnMut(usize) -> bool,
) -> Result<Evaluation> {
    let prompts: Vec<Vec<u32>> = items.iter().map(|i| i.prompt.clone()).collect();
    let params = SamplingParams { temperature: 0.0, max_new_tokens, ..SamplingParams::default() };
    let (mut done, mut going) = (0, true);
    let completions = generate(model, Some(tokenizer), &prompts, &params, max_batch, &mut |event| {
        done += usize::from(matches!(event, Event::Done(_)));
        going = going && keep_going(done);
        going
    })?;
    if !going {
        return Err(Error::interrupted());
    }
    let rewards: Vec<Reward> = completions.par_iter().map(|c| items[c.prompt_index].question.judge(c)).collect();
    let answers = completions.iter().zip(&rewards).map(|(c, r)| {
        let item = &items[c.prompt_index];
        let mut record = json!({
            "id": item.id, "cluster": item.cluster, "reward": r.value, "parts": parts(r), "error": r.error,
            "tokens": c.ids.len(), "finish_reason": c.finish_reason, "text": c.text, "gold": item.question.gold_answer(),
            "candidates": item.question.candidates(),
        });
        if !item.subtask.is_empty() {
            record["subtask"] = json!(item.subtask);
        }
        record
    });
    Ok(Evaluation { answers: answers.collect(), numbers: numbers(items, &rewards) })
}

/// The means over all questions, and in a mixture those of each subtask under its name.
fn numbers(items: &[Item], rewards: &[Reward]) -> Map<String, Value> {
    let pairs = || items.iter().zip(rewards);
    let mut out = means(&pairs().collect::<Vec<_>>());
    let subtasks: BTreeSet<&str> = items.iter().map(|i| i.subtask).filter(|s| !s.is_empty()).collect();
    for name in subtasks {
        let of_subtask: Vec<_> = pairs().filter(|(item, _)| item.subtask == name).collect();
        out.insert(name.to_owned(), Value::Object(means(&of_subtask)));
    }
    out
}

fn means(answered: &[(&Item, &Reward)]) -> Map<String, Value> {
    let clusters: Vec<&str> = answered.iter().map(|(item, _)| item.cluster.as_str()).collect();
    let bootstrap = Bootstrap::default();
    let mut out = Map::from_iter([("tasks".to_owned(), json!(answered.len()))]);
    let mut intervals = Map::new();
    for name in common_parts(answered.iter().map(|(_, reward)| *reward)) {
        let values: Vec<f64> = answered.iter().map(|(_, r)| r.part(name).unwrap_or(0.0)).collect();
        let interval = bootstrap.mean(&values, Some(&clusters));
        out.insert(name.to_owned(), json!(interval.mean));
        intervals.insert(name.to_owned(), json!([interval.low, interval.high]));
    }
    out.insert("interval".into(), Value::Object(intervals));
    out
}
