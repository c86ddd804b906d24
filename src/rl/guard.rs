//! What was not finite, named: the tensor and its layer, the step, the example; and the example's record, to be looked at.

use crate::error::{Error, Result};
use crate::model::Transformer;
use crate::model::optimizer::TensorState;
use crate::rl::rollout::Job;
use serde_json::{Value, json};

/// A step that was skipped.
pub struct Finding {
    /// What happened, in words.
    pub message: String,
    /// The line of `not_finite/STEP.jsonl`: `step`, `what`, `weight` (the first weight that is not finite itself, if one is), `example`,
    /// and of the offending tree `prompt` (its first segment's ids) and `sequences` with their ids, advantage and recorded log-probabilities.
    pub record: Value,
}

/// Describes a loss or a gradient that was not finite; `tree` is the index of the tree of the batch that it comes from, where known.
pub fn describe(model: &Transformer, step: u64, what: &str, tree: Option<usize>, jobs: &[Job], names: &[String]) -> Result<Finding> {
    let weight = non_finite_weight(model)?;
    let example = tree.and_then(|i| names.get(i));
    let mut message = format!("step {step}: {what}");
    if let Some(name) = example {
        message += &format!(" ({name})");
    }
    message += " is not finite; the update was skipped";
    if let Some(name) = &weight {
        message += &format!("; the weight {name} is not finite itself");
    }
    message += &format!("; see not_finite/{step}.jsonl");
    let mut record = json!({"step": step, "what": what, "weight": weight, "example": example});
    if let Some(job) = tree.and_then(|i| jobs.get(i)) {
        record["tree"] = tree_record(job);
    }
    Ok(Finding { message, record })
}

fn tree_record(job: &Job) -> Value {
    let segments: Vec<&[u32]> = job.tree.segments.iter().map(|s| &s.ids[..]).collect();
    let targets = job.targets.iter().map(|t| json!({"targets": t.tokens, "advantage": t.advantage, "logprobs": t.old_logprob}));
    json!({"segments": segments, "sequences": targets.collect::<Vec<_>>()})
}

/// The name of the first trained tensor with a number that is not finite.
fn non_finite_weight(model: &Transformer) -> Result<Option<String>> {
    for info in model.trainable() {
        if !model.export(&info.name)?.iter().all(|x| x.is_finite()) {
            return Ok(Some(info.name));
        }
    }
    Ok(None)
}

/// Refuses to write a trained tensor's state (of moments in 8 bits, their scales) that is not finite: it would push out the last good one.
pub fn check_state(name: &str, state: &TensorState) -> Result<()> {
    let parts = [("weight", &state.weight[..]), ("first moment", state.first.magnitudes()), ("second moment", state.second.magnitudes())];
    for (part, numbers) in parts {
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            let message = format!("its {part} holds {} at index {i}: no checkpoint is written", numbers[i]);
            let hint = "the newest checkpoint is the last good state; lower optim.lr, or look at not_finite/ and the steps since";
            return Err(Error::input(message).at(name).hint(hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::optimizer::Moment;
    use crate::tensor::ops::adamw::codes::Coded;

    #[test]
    fn a_state_that_is_not_finite_is_named() {
        let state = |first: Moment| TensorState { weight: vec![1.0], first, second: Moment::F32(vec![0.0]) };
        assert!(check_state("a", &state(Moment::F32(vec![0.0]))).is_ok());
        let e = check_state("layers.1.w", &state(Moment::F32(vec![0.0, f32::INFINITY]))).unwrap_err().to_string();
        assert!(e.starts_with("layers.1.w: its first moment holds inf at index 1: no checkpoint is written"), "{e}");
        let coded = Coded { codes: vec![0; 9], scales: vec![f32::NAN] };
        assert!(check_state("a", &state(Moment::Coded(coded))).unwrap_err().to_string().contains("first moment holds NaN"));
    }
}
