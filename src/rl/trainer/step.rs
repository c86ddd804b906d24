//! One optimizer batch: micro-batches forward, objective, backward, and the update.

use super::reference::Reference;
use crate::error::{Error, Result};
use crate::model::optimizer::AdamW;
use crate::model::transformer::Adapter;
use crate::model::{Gradients, TokenStats, Transformer};
use crate::rl::objective::{Advantage, BatchStats, Metrics, Objective, Output, Sample};
use crate::rl::rollout::{Job, microbatches};
use crate::tensor::plan::{Plan, Tree};

/// What an update needs beside the model.
pub struct Settings<'a> {
    /// Of the softmax.
    pub temperature: f32,
    /// Largest micro-batch.
    pub microbatch_tokens: usize,
    /// Recompute activations.
    pub checkpointing: bool,
    /// The reference policy, where the KL is measured.
    pub reference: Option<&'a Reference>,
    /// Learning rate.
    pub lr: f64,
    /// AdamW's step count, from 1.
    pub update: u64,
}

/// What an update did.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// The batch's sums.
    pub metrics: Metrics,
    /// The gradient's norm before clipping; NaN where it was not computed.
    pub grad_norm: f64,
    /// The gradient's checksum ([`Gradients::checksum`]); empty where there is no whole gradient.
    pub grad_sum: String,
    /// If the update was not made: what was not finite.
    pub not_finite: Option<String>,
    /// The tree of the batch that it comes from, where one alone gives it.
    pub culprit: Option<usize>,
}

/// Computes the gradient of a batch and makes one update. A loss or a gradient that is not finite changes nothing and is named.
/// `keep_going` is asked before every micro-batch; when it says no, nothing has changed.
///
/// Every sum over the batch runs over the trees in order, so the result does not depend on the micro-batches.
pub fn update(
    model: &mut Transformer,
    optimizer: &mut AdamW,
    gradients: &mut Gradients,
    objective: &mut dyn Objective,
    jobs: &[Job],
    settings: &Settings<'_>,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Update> {
    objective.prepare(BatchStats::count(jobs.iter().flat_map(|j| &j.targets).map(|t| t.tokens)));
    gradients.zero();
    // Trees whose gradient is exactly zero (a group of equal rewards) are only measured.
    let (active, idle): (Vec<usize>, Vec<usize>) = (0..jobs.len()).partition(|&i| objective.has_gradient(&jobs[i].advantages()));
    let mut metrics = vec![Metrics::default(); jobs.len()];
    for (indices, trained) in [(&active, true), (&idle, false)] {
        let tokens: Vec<usize> = indices.iter().map(|&i| jobs[i].tree.num_tokens()).collect();
        for range in microbatches(&tokens, settings.microbatch_tokens) {
            if !keep_going() {
                return Err(Error::interrupted());
            }
            let batch: Vec<(usize, &Job)> = indices[range].iter().map(|&i| (i, &jobs[i])).collect();
            microbatch(model, gradients, objective, &batch, settings, trained, &mut metrics)?;
        }
    }
    let mut total = Metrics::default();
    metrics.iter().for_each(|m| total.add(m));
    let mut update = Update { metrics: total, grad_norm: f64::NAN, grad_sum: String::new(), not_finite: None, culprit: None };
    if let Some(bad) = metrics.iter().position(|m| !m.loss.is_finite()) {
        update.not_finite = Some(format!("the loss of tree {bad} of the batch"));
        update.culprit = Some(bad);
        return Ok(update);
    }
    update.grad_sum = gradients.checksum();
    update.grad_norm = optimizer.step(model, gradients, settings.lr, settings.update)?;
    if !update.grad_norm.is_finite() {
        let name = gradients.first_non_finite().unwrap_or_else(|| "the norm over all tensors".into());
        update.not_finite = Some(format!("the gradient of {name}"));
        update.culprit = culprit(model, gradients, objective, jobs, &active, settings)?;
    }
    Ok(update)
}

/// The first tree whose gradient alone is not finite; `None` where only their sum is not. Done after the fact: it costs a pass a tree.
fn culprit(
    model: &mut Transformer,
    gradients: &mut Gradients,
    objective: &dyn Objective,
    jobs: &[Job],
    active: &[usize],
    settings: &Settings<'_>,
) -> Result<Option<usize>> {
    let mut metrics = vec![Metrics::default(); jobs.len()];
    for &i in active {
        gradients.zero();
        microbatch(model, gradients, objective, &[(i, &jobs[i])], settings, true, &mut metrics)?;
        if gradients.first_non_finite().is_some() {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

fn microbatch(
    model: &mut Transformer,
    gradients: &mut Gradients,
    objective: &dyn Objective,
    batch: &[(usize, &Job)],
    settings: &Settings<'_>,
    trained: bool,
    metrics: &mut [Metrics],
) -> Result<()> {
    let trees: Vec<Tree> = batch.iter().map(|(_, j)| j.tree.clone()).collect();
    let plan = Plan::for_trees(&trees);
    let reference = match settings.reference {
        Some(reference) => Some(reference.logprobs(model, &plan, settings.temperature)?),
        None => None,
    };
    let (stats, saved) = if trained {
        let (stats, saved) = model.forward(&plan, settings.temperature, settings.checkpointing)?;
        (stats, Some(saved))
    } else {
        (model.evaluate(&plan, settings.temperature, Adapter::On)?, None)
    };
    let mut d_logprob = Vec::with_capacity(stats.logprob.len());
    let mut d_entropy: Option<Vec<f32>> = None;
    let mut at = 0;
    for (i, job) in batch {
        let out = tree(objective, job, &stats, reference.as_deref(), at);
        at += job.num_targets();
        metrics[*i] = out.metrics;
        d_logprob.extend(out.d_logprob);
        if let Some(d) = out.d_entropy {
            d_entropy.get_or_insert_default().extend(d);
        }
    }
    match saved {
        Some(saved) => model.backward(&plan, saved, &d_logprob, d_entropy.as_deref(), gradients),
        None => Ok(()),
    }
}

/// Evaluates the objective on a tree whose predictions begin at `at`.
fn tree(objective: &dyn Objective, job: &Job, stats: &TokenStats, reference: Option<&[f32]>, mut at: usize) -> Output {
    let samples: Vec<Sample<'_>> = job
        .targets
        .iter()
        .map(|t| {
            let range = at..at + t.tokens;
            at = range.end;
            let logprob = &stats.logprob[range.clone()];
            Sample {
                logprob,
                old_logprob: if t.old_logprob.is_empty() { logprob } else { &t.old_logprob },
                ref_logprob: reference.map(|r| &r[range.clone()]),
                entropy: &stats.entropy[range],
                advantage: Advantage::Sequence(t.advantage),
            }
        })
        .collect();
    objective.evaluate(&samples)
}
