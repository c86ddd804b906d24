//! A step's batch: the next examples, and for sampled answers their rewards and advantages.

use super::{Event, Trainer};
use crate::error::{Error, Result};
use crate::model::generate::{self, SamplingParams, generate};
use crate::rl::config::Stage;
use crate::rl::dataset::{Dataset, Item};
use crate::rl::experience::Rule;
use crate::rl::rollout::{self, Job, Rollout};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// A batch, and what is logged of it beside the update.
pub(super) struct Batch {
    pub jobs: Vec<Job>,
    /// What the jobs are about: a task's id, or the number of an example.
    pub names: Vec<String>,
    pub taken: usize,
    pub extra: Map<String, Value>,
    pub generate_seconds: f64,
}

/// Questions and their judged answers; `kept` are those that are trained on.
#[derive(Default)]
struct Asked<'i> {
    items: Vec<&'i Item>,
    groups: Vec<Vec<Rollout>>,
    kept: Vec<usize>,
}

impl Trainer<'_> {
    /// The next examples of the stage's order, after `skip` of them.
    fn take(&mut self, skip: usize, n: usize) -> Vec<usize> {
        let cursor = self.state.cursor + skip as u64;
        self.order.as_mut().map_or(Vec::new(), |order| (0..n as u64).map(|i| order.at(cursor + i)).collect())
    }

    pub(super) fn supervised_batch(&mut self, stage: &Stage) -> Result<Batch> {
        let indices = self.take(0, stage.batch_prompts);
        let (jobs, names) = match &*self.datasets[self.state.stage] {
            Dataset::Items(items) => indices.iter().map(|&i| (Job::supervised(&items[i]), items[i].id.clone())).unzip(),
            Dataset::Sequences(lines) => {
                indices.iter().map(|&i| (Job::sequence(&lines[i].ids, &lines[i].targets), format!("example {}", i + 1))).unzip()
            }
        };
        Ok(Batch { jobs, names, taken: indices.len(), extra: Map::new(), generate_seconds: 0.0 })
    }

    /// Samples, judges and logs the answers of a step, and gives them their advantages.
    pub(super) fn rollout_batch(&mut self, stage: &Stage) -> Result<Batch> {
        let started = Instant::now();
        let dataset = self.datasets[self.state.stage].clone();
        let Dataset::Items(all) = &*dataset else {
            return Err(Error::input("sampling needs tasks").at("data.train"));
        };
        let rule = Rule::new(stage, self.kl_coef(stage));
        let Asked { items, mut groups, kept } = self.ask(stage, all, &rule)?;
        let generate_seconds = started.elapsed().as_secs_f64();
        let mut jobs: Vec<Job> = kept.iter().map(|&i| Job::group(items[i], &groups[i])).collect();
        self.experience(stage, &rule, &mut jobs)?;
        for (job, &i) in jobs.iter().zip(&kept) {
            job.targets.iter().zip(&mut groups[i]).for_each(|(t, rollout)| rollout.advantage = t.advantage);
        }
        let mut lines = rollout::lines(&items, &groups);
        let mut extra = rollout::summary(&items, &groups);
        if stage.sampling_rounds > 1 {
            for (line, i) in lines.iter_mut().zip(groups.iter().enumerate().flat_map(|(i, g)| std::iter::repeat_n(i, g.len()))) {
                line["kept"] = kept.contains(&i).into();
            }
            extra.insert("kept_groups".into(), json!(kept.len() as f64 / groups.len().max(1) as f64));
        }
        self.log.rollouts(self.state.step + 1, &lines)?;
        let names = kept.iter().map(|&i| items[i].id.clone()).collect();
        Ok(Batch { jobs, names, taken: items.len(), extra, generate_seconds })
    }

    /// Asks the step's questions. With several rounds (DAPO's dynamic sampling) those whose answers all earn the same are dropped, and as
    /// many new ones asked; if none at all is left, the last round is kept, to be measured.
    fn ask<'i>(&mut self, stage: &Stage, all: &'i [Item], rule: &Rule) -> Result<Asked<'i>> {
        let mut asked = Asked::default();
        for round in 1..=stage.sampling_rounds {
            let (first, missing) = (asked.items.len(), stage.batch_prompts - asked.kept.len());
            let items: Vec<&Item> = self.take(first, missing).into_iter().map(|i| &all[i]).collect();
            let mut groups = self.sample(stage, &items, rule)?;
            groups.iter_mut().flatten().for_each(|r| r.completion.prompt_index += first);
            let keep = |group: &[Rollout]| stage.sampling_rounds == 1 || !rollout::is_flat(group);
            asked.kept.extend((0..groups.len()).filter(|&i| keep(&groups[i])).map(|i| first + i));
            asked.items.extend(items);
            asked.groups.extend(groups);
            if asked.kept.len() == stage.batch_prompts {
                break;
            }
            if round == stage.sampling_rounds && asked.kept.is_empty() {
                asked.kept.extend(first..asked.items.len());
            }
        }
        Ok(asked)
    }

    fn sample(&mut self, stage: &Stage, items: &[&Item], rule: &Rule) -> Result<Vec<Vec<Rollout>>> {
        let prompts: Vec<Vec<u32>> = items.iter().map(|i| i.prompt.clone()).collect();
        let params = SamplingParams {
            n: stage.group_size,
            max_new_tokens: stage.max_new_tokens,
            temperature: stage.temperature,
            seed: self.config.seed,
            step: self.state.step + 1,
            ..SamplingParams::default()
        };
        let (stop, hooks, total) = (self.stop, &mut *self.hooks, items.len() * stage.group_size);
        let mut done = 0;
        let completions = generate(&self.model, self.tokenizer, &prompts, &params, self.config.rollout_batch, &mut |event| {
            match event {
                generate::Event::Done(_) => {
                    done += 1;
                    hooks.event(Event::Sampling(done, total));
                }
                generate::Event::Warning(text) => hooks.event(Event::Warning(text.to_owned())),
                _ => {}
            }
            !stop()
        })?;
        if self.stopped() {
            return Err(Error::interrupted());
        }
        rollout::judge(items, completions, stage.group_size, rule, self.tokenizer)
    }
}
