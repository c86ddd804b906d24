//! Evaluation: greedy answers to held-out questions.

use crate::data::bootstrap::Bootstrap;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::generate::{Event, SamplingParams, generate};
use crate::model::tokenizer::Tokenizer;
use crate::rl::dataset::Item;
use crate::rl::reward::Reward;
use crate::rl::rollout::parts;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

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
        json!({
            "id": item.id, "cluster": item.cluster, "reward": r.value, "parts": parts(r), "error": r.error,
            "tokens": c.ids.len(), "finish_reason": c.finish_reason, "text": c.text, "gold": item.question.gold_answer(),
        })
    });
    Ok(Evaluation { answers: answers.collect(), numbers: numbers(items, &rewards) })
}

fn numbers(items: &[Item], rewards: &[Reward]) -> Map<String, Value> {
    let clusters: Vec<&str> = items.iter().map(|i| i.cluster.as_str()).collect();
    let bootstrap = Bootstrap::default();
    let mut out = Map::from_iter([("tasks".to_owned(), json!(items.len()))]);
    let mut intervals = Map::new();
    let names = rewards.first().map(|r| r.parts.iter().map(|(n, _)| *n).collect::<Vec<_>>()).unwrap_or_default();
    for name in names {
        let values: Vec<f64> = rewards.iter().map(|r| r.part(name).unwrap_or(0.0)).collect();
        let interval = bootstrap.mean(&values, Some(&clusters));
        out.insert(name.to_owned(), json!(interval.mean));
        intervals.insert(name.to_owned(), json!([interval.low, interval.high]));
    }
    out.insert("interval".into(), Value::Object(intervals));
    out
}
