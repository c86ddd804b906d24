//! One optimizer batch: micro-batches forward, objective, backward, and the update; the critic's along with the policy's.

use super::reference::Reference;
use crate::error::{Error, Result};
use crate::model::optimizer::AdamW;
use crate::model::transformer::Adapter;
use crate::model::{Gradients, TokenStats, Transformer};
use crate::rl::config::Stage;
use crate::rl::critic::Critic;
use crate::rl::objective::{BatchStats, Metrics, Objective, Output, Sample, ValueMetrics};
use crate::rl::rollout::{Job, microbatches};
use crate::tensor::plan::{Plan, Tree};

/// What learns.
pub struct Learner<'a> {
    /// The policy.
    pub model: &'a mut Transformer,
    /// Its moments.
    pub optimizer: &'a mut AdamW,
    /// Its gradients.
    pub gradients: &'a mut Gradients,
    /// The critic, in PPO.
    pub critic: Option<&'a mut Critic>,
}

/// What an update needs beside the learner.
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
    /// Whether the policy learns; else it is only measured.
    pub policy: bool,
    /// The critic's learning rate.
    pub critic_lr: f64,
    /// The step count of the critic's AdamW, from 1.
    pub critic_update: u64,
}

impl<'a> Settings<'a> {
    /// A stage's settings for measuring; for an update the rates and counts are to be filled in.
    pub fn new(stage: &Stage, reference: Option<&'a Reference>) -> Self {
        Self {
            temperature: if stage.algorithm.samples() { stage.temperature } else { 1.0 },
            microbatch_tokens: stage.microbatch_tokens,
            checkpointing: stage.activation_checkpointing,
            reference,
            lr: 0.0,
            update: 0,
            policy: false,
            critic_lr: 0.0,
            critic_update: 0,
        }
    }
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
    /// The critic's sums and its gradient's norm before clipping.
    pub critic: Option<(ValueMetrics, f64)>,
    /// If the update was not made: what was not finite.
    pub not_finite: Option<String>,
    /// The tree of the batch that it comes from, where one alone gives it.
    pub culprit: Option<usize>,
}

/// A tree's share of both losses.
#[derive(Clone, Copy, Default)]
struct Share {
    policy: Metrics,
    value: ValueMetrics,
}

/// Computes the gradient of a batch and makes one update. A loss or a gradient that is not finite changes nothing and is named.
/// `keep_going` is asked before every micro-batch; when it says no, nothing has changed.
///
/// Every sum over the batch runs over the trees in order, so the result does not depend on the micro-batches.
pub fn update(
    learner: &mut Learner<'_>,
    objective: &mut dyn Objective,
    jobs: &[&Job],
    settings: &Settings<'_>,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<Update> {
    let stats = BatchStats::count(jobs.iter().flat_map(|j| &j.targets).map(|t| t.tokens));
    objective.prepare(stats);
    learner.gradients.zero()?;
    if let Some(critic) = &mut learner.critic {
        critic.begin(stats)?;
    }
    // Trees whose gradient is exactly zero (a group of equal rewards) are only measured.
    let moves_trunk = learner.critic.as_ref().is_some_and(|c| c.moves_trunk());
    let learns = |i: usize| settings.policy && (moves_trunk || objective.has_gradient(&jobs[i].advantages()));
    let (active, idle): (Vec<usize>, Vec<usize>) = (0..jobs.len()).partition(|&i| learns(i));
    let mut shares = vec![Share::default(); jobs.len()];
    for (indices, trained) in [(&active, true), (&idle, false)] {
        let tokens: Vec<usize> = indices.iter().map(|&i| jobs[i].tree.num_tokens()).collect();
        for range in microbatches(&tokens, settings.microbatch_tokens) {
            if !keep_going() {
                return Err(Error::interrupted());
            }
            let batch: Vec<&Job> = indices[range.clone()].iter().map(|&i| jobs[i]).collect();
            let found = microbatch(learner, objective, &batch, settings, trained)?;
            indices[range].iter().zip(found).for_each(|(&i, share)| shares[i] = share);
        }
    }
    let mut update = finish(learner, &shares, settings)?;
    if update.not_finite.is_some() && update.culprit.is_none() && settings.policy {
        update.culprit = culprit(learner, objective, jobs, &active, settings)?;
    }
    Ok(update)
}

/// Adds up the trees and makes the update, if all is finite.
fn finish(learner: &mut Learner<'_>, shares: &[Share], settings: &Settings<'_>) -> Result<Update> {
    let mut total = Share::default();
    for share in shares {
        total.policy.add(&share.policy);
        total.value.add(&share.value);
    }
    let nothing =
        Update { metrics: total.policy, grad_norm: f64::NAN, grad_sum: String::new(), critic: None, not_finite: None, culprit: None };
    let mut update = nothing;
    let bad = |s: &Share| !(s.policy.loss.is_finite() && s.value.loss.is_finite());
    if let Some(bad) = shares.iter().position(bad) {
        update.not_finite = Some(format!("the loss of tree {bad} of the batch"));
        update.culprit = Some(bad);
        return Ok(update);
    }
    update.grad_sum = learner.gradients.checksum()?;
    update.grad_norm = learner.gradients.norm()?;
    update.critic = learner.critic.as_mut().map(|critic| Ok::<_, Error>((total.value, critic.gradient_norm()?))).transpose()?;
    if !update.grad_norm.is_finite() {
        let name = learner.gradients.first_non_finite()?.unwrap_or_else(|| "the norm over all tensors".into());
        update.not_finite = Some(format!("the gradient of {name}"));
    } else if update.critic.is_some_and(|(_, norm)| !norm.is_finite()) {
        update.not_finite = Some("the critic's gradient".into());
    }
    if update.not_finite.is_some() {
        return Ok(update);
    }
    if settings.policy {
        learner.optimizer.step_by(learner.model, learner.gradients, update.grad_norm, settings.lr, settings.update)?;
    }
    if let (Some(critic), Some((_, norm))) = (&mut learner.critic, update.critic) {
        critic.step(norm, settings.critic_lr, settings.critic_update)?;
    }
    Ok(update)
}

/// The first tree whose gradient alone is not finite; `None` where only their sum is not. Done after the fact: it costs a pass a tree.
fn culprit(
    learner: &mut Learner<'_>,
    objective: &dyn Objective,
    jobs: &[&Job],
    active: &[usize],
    settings: &Settings<'_>,
) -> Result<Option<usize>> {
    for &i in active {
        learner.gradients.zero()?;
        microbatch(learner, objective, &[jobs[i]], settings, true)?;
        if learner.gradients.first_non_finite()?.is_some() {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

fn microbatch(
    learner: &mut Learner<'_>,
    objective: &dyn Objective,
    batch: &[&Job],
    settings: &Settings<'_>,
    trained: bool,
) -> Result<Vec<Share>> {
    let trees: Vec<Tree> = batch.iter().map(|j| j.tree.clone()).collect();
    let plan = Plan::for_trees(&trees);
    let measured = batch.iter().flat_map(|j| &j.targets).all(|t| t.ref_logprob.len() == t.tokens);
    let reference = match settings.reference {
        Some(reference) if !measured => Some(reference.logprobs(learner.model, &plan, settings.temperature)?),
        _ => None,
    };
    let (stats, saved) = if trained {
        let (stats, saved) = learner.model.forward(&plan, settings.temperature, settings.checkpointing)?;
        (stats, Some(saved))
    } else {
        (learner.model.evaluate(&plan, settings.temperature, Adapter::On)?, None)
    };
    let mut d_logprob = Vec::with_capacity(stats.logprob.len());
    let mut d_entropy: Option<Vec<f32>> = None;
    let mut shares = Vec::with_capacity(batch.len());
    let mut at = 0;
    for job in batch {
        let out = tree(objective, job, &stats, reference.as_deref(), at);
        at += job.num_targets();
        shares.push(Share { policy: out.metrics, ..Share::default() });
        d_logprob.extend(out.d_logprob);
        if let Some(d) = out.d_entropy {
            d_entropy.get_or_insert_default().extend(d);
        }
    }
    let mut values = Vec::new();
    let mut d_predicting = None;
    if let Some(critic) = learner.critic.as_mut().filter(|c| c.shares_trunk()) {
        (values, d_predicting) = match &saved {
            Some(saved) => critic.on_trunk(&*saved.predicting()?, &plan, batch),
            None => critic.on_trunk(&learner.model.predicting(&plan, Adapter::On)?, &plan, batch),
        };
    }
    if let Some(saved) = saved {
        learner.model.backward_with(&plan, saved, &d_logprob, d_entropy.as_deref(), d_predicting.as_ref(), learner.gradients)?;
    }
    // After the policy's activations are gone.
    if let Some(critic) = learner.critic.as_mut().filter(|c| !c.shares_trunk()) {
        values = critic.on_own(&plan, batch, settings.checkpointing)?;
    }
    shares.iter_mut().zip(values).for_each(|(share, value)| share.value = value);
    Ok(shares)
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
            let measured = (!t.ref_logprob.is_empty()).then_some(&t.ref_logprob[..]);
            Sample {
                logprob,
                old_logprob: if t.old_logprob.is_empty() { logprob } else { &t.old_logprob },
                ref_logprob: reference.map(|r| &r[range.clone()]).or(measured),
                entropy: &stats.entropy[range],
                advantage: t.advantage(),
            }
        })
        .collect();
    objective.evaluate(&samples)
}
