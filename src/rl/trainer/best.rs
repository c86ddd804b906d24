//! The best evaluation of a run, whose model is kept, and the stage that ends because no evaluation has been better for a while.

use super::{Event, Trainer};
use crate::error::{Error, Result};
use crate::rl::checkpoint::Best;
use crate::rl::config::Stage;
use serde_json::{Map, Value};

impl Trainer<'_> {
    /// Holds an evaluation against the best one before it. The model of a better one is kept, but for that of the start, which is there
    /// already.
    pub(super) fn compare_with_best(&mut self, numbers: &Map<String, Value>) -> Result<()> {
        let Some(name) = &self.config.eval_best else { return Ok(()) };
        let (step, value) = (self.state.step, number(numbers, name)?);
        if self.state.best.is_some_and(|best| value <= best.value) {
            self.state.stale += 1;
            return Ok(());
        }
        if step > 0 {
            self.hooks.keep(&self.model, step)?;
            self.hooks.event(Event::Note(format!("the best evaluation so far, {name} {value:.4} after step {step}: its model is kept")));
        }
        (self.state.best, self.state.stale) = (Some(Best { step, value }), 0);
        Ok(())
    }

    /// Whether a stage has done its steps, or has gone `eval.patience` evaluations without a better one.
    pub(super) fn is_over(&self, stage: &Stage) -> bool {
        self.state.stage_step >= stage.steps || self.has_stalled()
    }

    /// Whether the last `eval.patience` evaluations of this stage were none of them better than the best before them.
    fn has_stalled(&self) -> bool {
        let patience = self.config.eval_patience;
        patience > 0 && self.state.stale >= patience
    }

    /// Says so where a stage ends before its last step.
    pub(super) fn tell_of_early_end(&mut self, stage: &Stage) {
        let (Some(best), true) = (self.state.best, self.state.stage_step < stage.steps) else { return };
        let (number, of, step, stale) = (self.state.stage + 1, self.config.stages.len(), self.state.step, self.state.stale);
        let name = self.config.eval_best.as_deref().unwrap_or_default();
        let what = format!("{stale} evaluations in a row were not better than {name} {:.4} after step {}", best.value, best.step);
        self.hooks.event(Event::Note(format!("stage {number} of {of} ends after step {step}: {what}")));
    }
}

/// The number of an evaluation that a name tells: `fbeta`, or of one subtask of a mixture `function/fbeta`.
fn number(numbers: &Map<String, Value>, name: &str) -> Result<f64> {
    let (of, key) = match name.split_once('/') {
        Some((subtask, key)) => (numbers.get(subtask).and_then(Value::as_object), key),
        None => (Some(numbers), name),
    };
    of.and_then(|numbers| numbers.get(key)).and_then(Value::as_f64).ok_or_else(|| {
        let names =
            |numbers: &Map<String, Value>| numbers.iter().filter(|(_, v)| v.is_number()).map(|(k, _)| k.clone()).collect::<Vec<_>>();
        let mut known = names(numbers);
        for (subtask, inner) in numbers.iter().filter_map(|(k, v)| Some((k, v.as_object()?))).filter(|(k, _)| *k != "interval") {
            known.extend(names(inner).into_iter().map(|key| format!("{subtask}/{key}")));
        }
        Error::input(format!("an evaluation has no number `{name}`; it has {}", known.join(", "))).at("eval.best")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_is_one_of_all_or_of_a_subtask() {
        let all = json!({"tasks": 3, "fbeta": 0.25, "interval": {"fbeta": [0.1, 0.4]}, "line": {"tasks": 2, "hit": 0.5, "interval": {}}});
        let all = all.as_object().unwrap();
        assert_eq!((number(all, "fbeta").unwrap(), number(all, "line/hit").unwrap()), (0.25, 0.5));
        for name in ["hit", "line/fbeta", "file/hit", "line"] {
            let error = number(all, name).unwrap_err().to_string();
            assert!(error.contains(&format!("no number `{name}`; it has ")) && error.contains("line/hit"), "{error}");
            assert!(!error.contains("interval"), "{error}");
        }
    }
}
