//! From sampled answers to what is trained on: groups of answers with rewards and advantages, and the batch of trees.

use crate::error::{Error, Result};
use crate::model::generate::{Completion, FinishReason};
use crate::model::tokenizer::Tokenizer;
use crate::rl::advantage::mean_and_std;
use crate::rl::dataset::Item;
use crate::rl::experience::Rule;
use crate::rl::objective::Advantage;
use crate::rl::reward::Reward;
use crate::tensor::plan::Tree;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// One sequence of a [`Job`]'s tree: the targets of one segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// How many.
    pub tokens: usize,
    /// Their log-probabilities as recorded while sampling; empty where nothing was sampled (SFT).
    pub old_logprob: Vec<f32>,
    /// Their log-probabilities under the reference policy, where they were measured before the update; else empty.
    pub ref_logprob: Vec<f32>,
    /// What the answer scored (see [`crate::rl::experience::Rule::scores`]).
    pub score: f64,
    /// The sequence's advantage; the mean of the tokens' where each has its own.
    pub advantage: f32,
    /// An advantage for each token; empty where the sequence's holds for all.
    pub token_advantages: Vec<f32>,
    /// The critic's values when the batch was sampled; empty where there is no critic.
    pub old_values: Vec<f32>,
    /// What the critic is to learn.
    pub returns: Vec<f32>,
}

impl Targets {
    /// The advantage as an objective takes it.
    pub fn advantage(&self) -> Advantage<'_> {
        if self.token_advantages.is_empty() { Advantage::Sequence(self.advantage) } else { Advantage::Token(&self.token_advantages) }
    }
}

/// A tree to be trained on, with what the objective is told of its sequences.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// The prompt and its answers, or a single sequence.
    pub tree: Tree,
    /// In a mixture the subtask's name, else empty.
    pub subtask: &'static str,
    /// The sequences, in the order of the tree's predictions.
    pub targets: Vec<Targets>,
}

impl Job {
    /// A single sequence with a mask of targets.
    pub fn sequence(ids: &[u32], targets: &[bool]) -> Self {
        let tokens = targets.iter().skip(1).filter(|&&t| t).count();
        Self { tree: Tree::sequence(ids, targets), subtask: "", targets: vec![Targets { tokens, ..Targets::default() }] }
    }

    /// A prompt with its gold answer.
    pub fn supervised(item: &Item) -> Self {
        let tree = Tree::prompt_with_answers(&item.prompt, std::slice::from_ref(&item.gold));
        Self { tree, subtask: item.subtask, targets: vec![Targets { tokens: item.gold.len(), ..Targets::default() }] }
    }

    /// A prompt with its sampled answers.
    pub fn group(item: &Item, rollouts: &[Rollout]) -> Self {
        let answers: Vec<Vec<u32>> = rollouts.iter().map(|r| r.completion.ids.clone()).collect();
        let targets = rollouts.iter().map(|r| Targets {
            tokens: r.completion.ids.len(),
            old_logprob: r.completion.logprobs.clone(),
            score: r.score,
            advantage: r.advantage,
            ..Targets::default()
        });
        Self { tree: Tree::prompt_with_answers(&item.prompt, &answers), subtask: item.subtask, targets: targets.collect() }
    }

    /// Target tokens of all its sequences.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().map(|t| t.tokens).sum()
    }

    /// The advantages of its sequences.
    pub fn advantages(&self) -> Vec<Advantage<'_>> {
        self.targets.iter().map(Targets::advantage).collect()
    }
}

/// A sampled answer, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// The answer with the log-probabilities that were recorded while sampling it.
    pub completion: Completion,
    /// What it earned.
    pub reward: Reward,
    /// How many of its tokens are its thought: up to the end of the last `</think>`; 0 without one.
    pub thought_tokens: usize,
    /// What it scored: its reward as the advantage's kind has it.
    pub score: f64,
    /// How much better than expected it is; where each token has an advantage of its own, their mean.
    pub advantage: f32,
}

/// Judges the answers of each prompt, and scores them within their group. `items[i]` is prompt i of the completions, which are ordered by
/// (prompt, sample). Without a tokenizer thoughts have no tokens.
pub fn judge(
    items: &[&Item],
    completions: Vec<Completion>,
    group_size: usize,
    rule: &Rule,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Vec<Rollout>>> {
    if completions.len() != items.len() * group_size {
        let message = format!("{} answers were sampled where {} prompts ask for {group_size} each", completions.len(), items.len());
        return Err(Error::input(message));
    }
    let judgement = |c: &Completion| {
        let thought = tokenizer.map_or(Ok(0), |t| thought_tokens(c, |ids| t.decode(ids, true)))?;
        Ok((items[c.prompt_index].question.judge(c), thought))
    };
    let judgements: Vec<(Reward, usize)> = completions.par_iter().map(judgement).collect::<Result<_>>()?;
    let mut judged = completions.into_iter().zip(judgements);
    Ok(items
        .iter()
        .map(|_| {
            let group: Vec<_> = judged.by_ref().take(group_size).collect();
            let values: Vec<f64> = group.iter().map(|(c, (r, _))| rule.shaped(r.value, c.ids.len())).collect();
            let rollouts = group.into_iter().zip(rule.scores(&values));
            let rollout = |((completion, (reward, thought_tokens)), score)| {
                let advantage = score as f32;
                Rollout { completion, reward, thought_tokens, score, advantage }
            };
            rollouts.map(rollout).collect()
        })
        .collect())
}

/// The fewest first tokens of an answer whose text, by `decode`, has its last `</think>`; 0 if it has none.
fn thought_tokens(completion: &Completion, decode: impl Fn(&[u32]) -> Result<String>) -> Result<usize> {
    let ends = |text: &str| text.matches("</think>").count();
    let all = ends(&completion.text);
    let (mut low, mut high) = (0, if all == 0 { 0 } else { completion.ids.len() });
    while low < high {
        let middle = low.midpoint(high);
        match ends(&decode(&completion.ids[..middle])?) < all {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    Ok(low)
}

/// The lines of `rollouts/STEP.jsonl`.
pub fn lines(items: &[&Item], groups: &[Vec<Rollout>]) -> Vec<Value> {
    let line = |item: &Item, r: &Rollout| {
        let c = &r.completion;
        let mut line = json!({
            "id": item.id, "prompt_index": c.prompt_index, "index": c.index, "finish_reason": c.finish_reason,
            "reward": r.reward.value, "advantage": r.advantage, "parts": parts(&r.reward), "error": r.reward.error,
            "text": c.text, "ids": c.ids, "logprobs": c.logprobs,
        });
        if !item.subtask.is_empty() {
            line["subtask"] = json!(item.subtask);
        }
        line
    };
    items.iter().zip(groups).flat_map(|(item, group)| group.iter().map(|r| line(item, r))).collect()
}

/// A reward's parts as JSON.
pub fn parts(reward: &Reward) -> Map<String, Value> {
    reward.parts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

/// The means that `metrics.jsonl` has of a step's answers; of a mixture also those of each subtask that the step asks, in `subtasks`.
pub fn summary(items: &[&Item], groups: &[Vec<Rollout>]) -> Map<String, Value> {
    let mut out = means(&groups.iter().collect::<Vec<_>>());
    let mut by_subtask: BTreeMap<&str, Vec<&Vec<Rollout>>> = BTreeMap::new();
    for (item, group) in items.iter().zip(groups).filter(|(item, _)| !item.subtask.is_empty()) {
        by_subtask.entry(item.subtask).or_default().push(group);
    }
    if !by_subtask.is_empty() {
        let each = by_subtask.into_iter().map(|(name, groups)| (name.to_owned(), Value::Object(means(&groups))));
        out.insert("subtasks".into(), Value::Object(each.collect()));
    }
    out
}

fn means(groups: &[&Vec<Rollout>]) -> Map<String, Value> {
    let all: Vec<&Rollout> = groups.iter().flat_map(|g| g.iter()).collect();
    let mean = |f: &dyn Fn(&Rollout) -> f64| mean_and_std(&all.iter().map(|r| f(r)).collect::<Vec<_>>()).0;
    let (reward_mean, reward_std) = mean_and_std(&all.iter().map(|r| r.reward.value).collect::<Vec<_>>());
    let flat = groups.iter().filter(|g| is_flat(g)).count();
    let mut out = Map::new();
    out.insert("reward_mean".into(), json!(reward_mean));
    out.insert("reward_std".into(), json!(reward_std));
    out.insert("valid".into(), json!(mean(&|r| r.reward.part("valid").unwrap_or(f64::from(u8::from(r.reward.error.is_none()))))));
    out.insert("answer_tokens_mean".into(), json!(mean(&|r| r.completion.ids.len() as f64)));
    out.insert("thought_tokens_mean".into(), json!(mean(&|r| r.thought_tokens as f64)));
    out.insert("truncated".into(), json!(mean(&|r| f64::from(u8::from(r.completion.finish_reason == FinishReason::Length)))));
    out.insert("duplicates".into(), json!(duplicates(groups)));
    out.insert("flat_groups".into(), json!(flat as f64 / groups.len().max(1) as f64));
    let names = common_parts(all.iter().map(|r| &r.reward));
    let means = names.into_iter().map(|name| (name.to_owned(), json!(mean(&|r| r.reward.part(name).unwrap_or(0.0)))));
    out.insert("parts".into(), Value::Object(means.collect()));
    out
}

/// The names of the parts that all rewards have, in the order of the first: those of different subtasks differ.
pub fn common_parts<'r>(mut rewards: impl Iterator<Item = &'r Reward>) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = rewards.next().map(|r| r.parts.iter().map(|(n, _)| *n).collect()).unwrap_or_default();
    rewards.for_each(|r| names.retain(|name| r.part(name).is_some()));
    names
}

/// The part of the answers, beside the first of each group, that equal an earlier one of their group: 0 if all differ, 1 if none does.
fn duplicates(groups: &[&Vec<Rollout>]) -> f64 {
    let repeated = |group: &[Rollout]| {
        let mut seen = HashSet::new();
        group.iter().filter(|r| !seen.insert(&r.completion.ids)).count()
    };
    let others: usize = groups.iter().map(|g| g.len().saturating_sub(1)).sum();
    groups.iter().map(|g| repeated(g)).sum::<usize>() as f64 / others.max(1) as f64
}

/// Whether all answers of a group earn the same, so that nothing can be learned from comparing them.
pub fn is_flat(group: &[Rollout]) -> bool {
    group.windows(2).all(|w| w[0].reward.value == w[1].reward.value)
}

/// Cuts jobs into micro-batches: runs of whole trees of at most `max_tokens` together (a tree that is larger stands alone), in order.
pub fn microbatches(tokens: &[usize], max_tokens: usize) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut sum = 0;
    for (i, &n) in tokens.iter().enumerate() {
        match out.last_mut() {
            Some(last) if sum + n <= max_tokens => {
                last.end = i + 1;
                sum += n;
            }
            _ => {
                out.push(i..i + 1);
                sum = n;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::config::Config;
    use crate::rl::reward::Question;
    use crate::tensor::plan::Plan;
    use std::path::Path;

    /// Earns its number of letters `a`, at most 1.
    struct LettersA;

    impl Question for LettersA {
        fn text(&self) -> &str {
            "write an a"
        }
        fn gold_answer(&self) -> &str {
            "a"
        }
        fn judge(&self, completion: &Completion) -> Reward {
            let valid = f64::from(u8::from(!completion.text.is_empty()));
            Reward { value: completion.text.matches('a').count().min(1) as f64, parts: vec![("valid", valid)], error: None }
        }
        fn cut(&self) -> Option<String> {
            None
        }
    }

    fn rule(std: &str) -> Rule {
        let text = format!("model = \"a/b\"\ndata.train = \"x\"\nalgorithm = \"grpo\"\nadvantage.eps = 0\nadvantage.std = \"{std}\"\n");
        Rule::new(&Config::parse(&text, Path::new("a.toml")).unwrap().stages[0], 0.0)
    }

    fn item(id: &str) -> Item {
        Item { id: id.into(), subtask: "", cluster: "r".into(), question: Box::new(LettersA), prompt: vec![1, 2, 3], gold: vec![4] }
    }

    fn completion(prompt_index: usize, index: usize, text: &str) -> Completion {
        let n = text.len() + 1;
        Completion {
            prompt_index,
            index,
            ids: vec![7; n],
            logprobs: vec![-0.5; n],
            text: text.into(),
            finish_reason: if text.len() > 2 { FinishReason::Length } else { FinishReason::Eos },
        }
    }

    #[test]
    fn groups_are_judged_and_normalised_by_themselves() {
        let (a, b) = (item("a"), item("b"));
        let answers = vec![completion(0, 0, "a"), completion(0, 1, "bbb"), completion(1, 0, "a"), completion(1, 1, "a")];
        let groups = judge(&[&a, &b], answers, 2, &rule("sample"), None).unwrap();
        let advantages: Vec<Vec<f32>> = groups.iter().map(|g| g.iter().map(|r| r.advantage).collect()).collect();
        assert_eq!(advantages, [[0.5f32.sqrt(), -(0.5f32.sqrt())], [0.0, 0.0]]);
        let summary = summary(&[&a, &b], &groups);
        assert_eq!(summary["reward_mean"], json!(0.75));
        assert_eq!(summary["flat_groups"], json!(0.5));
        assert_eq!(summary["duplicates"], json!(0.5));
        assert_eq!(summary["truncated"], json!(0.25));
        assert_eq!(summary["answer_tokens_mean"], json!(2.5));
        assert_eq!(summary["parts"]["valid"], json!(1.0));
        let lines = lines(&[&a, &b], &groups);
        assert_eq!(lines.len(), 4);
        assert_eq!((&lines[1]["id"], &lines[1]["index"], &lines[1]["finish_reason"]), (&json!("a"), &json!(1), &json!("length")));
        assert!(judge(&[&a], vec![], 2, &rule("sample"), None).is_err());
    }

    #[test]
    fn a_thought_ends_with_the_token_that_ends_its_last_tag() {
        // A token a character but for the tag, which has two.
        const TOKENS: [&str; 6] = ["a", "</thi", "nk>", "nk>\n", "b", "é"];
        let decode = |ids: &[u32]| Ok(ids.iter().map(|&i| TOKENS[i as usize]).collect::<String>());
        for (ids, thought) in
            [(vec![0, 4], 0), (vec![0, 1, 2, 4], 3), (vec![5, 1, 3, 4, 0], 3), (vec![1, 2, 0, 1, 2], 5), (vec![1, 2, 1], 2), (vec![], 0)]
        {
            let text = decode(&ids).unwrap();
            let completion = Completion { text, ids, ..completion(0, 0, "") };
            assert_eq!(thought_tokens(&completion, decode).unwrap(), thought, "{}", completion.text);
        }
    }

    #[test]
    fn jobs_count_the_predictions_of_their_plans() {
        let a = item("a");
        let group = judge(&[&a], vec![completion(0, 0, "a"), completion(0, 1, "")], 2, &rule("none"), None).unwrap();
        let mut jobs = vec![Job::group(&a, &group[0]), Job::supervised(&a)];
        jobs.push(Job::sequence(&[1, 2, 3], &[true, false, true]));
        // An answer of no tokens is a sequence of no targets.
        let mut empty = group[0].clone();
        empty[0].completion.ids.clear();
        empty[0].completion.logprobs.clear();
        jobs.push(Job::group(&a, &empty));
        for job in jobs {
            let plan = Plan::for_trees(std::slice::from_ref(&job.tree));
            assert_eq!(plan.predictions.len(), job.num_targets());
        }
    }

    #[test]
    fn microbatches_hold_whole_trees() {
        assert_eq!(microbatches(&[3, 3, 3, 10, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(microbatches(&[3, 3], 100), vec![0..2; 1]);
        assert!(microbatches(&[], 5).is_empty());
    }
}
