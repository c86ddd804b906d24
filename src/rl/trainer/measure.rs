//! What is measured of a batch before its first update: the reference's log-probabilities and the critic's values.

use super::reference::Reference;
use super::step::Settings;
use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::rl::critic::Critic;
use crate::rl::rollout::{Job, microbatches};
use crate::tensor::plan::{Plan, Tree};

/// Fills in the jobs' `ref_logprob` (where there is a reference) and `old_values` (where there is a critic). A critic's first values in the
/// update are these to the bit. `keep_going` is asked before every micro-batch.
pub fn measure(
    model: &mut Transformer,
    critic: Option<&Critic>,
    jobs: &mut [Job],
    reference: Option<&Reference>,
    settings: &Settings<'_>,
    keep_going: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let tokens: Vec<usize> = jobs.iter().map(|j| j.tree.num_tokens()).collect();
    for range in microbatches(&tokens, settings.microbatch_tokens) {
        if !keep_going() {
            return Err(Error::interrupted());
        }
        let batch = &mut jobs[range];
        let trees: Vec<Tree> = batch.iter().map(|j| j.tree.clone()).collect();
        let plan = Plan::for_trees(&trees);
        let reference = reference.map(|r| r.logprobs(model, &plan, settings.temperature)).transpose()?;
        let values = critic.map(|c| c.values(model, &plan)).transpose()?;
        let mut at = 0;
        for t in batch.iter_mut().flat_map(|j| &mut j.targets) {
            let range = at..at + t.tokens;
            at = range.end;
            if let Some(reference) = &reference {
                t.ref_logprob = reference[range.clone()].to_vec();
            }
            if let Some(values) = &values {
                t.old_values = values[range].to_vec();
            }
        }
    }
    Ok(())
}
