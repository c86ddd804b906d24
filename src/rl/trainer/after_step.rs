//! What follows a step: the evaluation and the checkpoint that are due.

use super::{Event, Trainer};
use crate::error::{Error, Result};
use crate::model::optimizer::TensorState;
use crate::model::transformer::ParamInfo;
use crate::rl::checkpoint::{self, Entry};
use crate::rl::config::Stage;
use crate::rl::critic::Critic;
use crate::rl::guard;
use std::path::PathBuf;

impl Trainer<'_> {
    /// The evaluation and the checkpoint that are due, and the stop after too many skipped steps.
    pub(super) fn after_step(&mut self, stage: &Stage) -> Result<()> {
        if self.state.skipped_in_row >= stage.max_skipped {
            // The weights are those of the last good step.
            self.checkpoint()?;
            let message = format!("{} steps in a row had a loss or a gradient that is not finite", self.state.skipped_in_row);
            return Err(Error::input(message)
                .at_file(self.out)
                .hint("the last good state is in the newest checkpoint; lower optim.lr, or look at the data of these steps"));
        }
        // Before the checkpoint, which then stands for all lines up to its step.
        self.evaluate_if_due()?;
        if self.is_over(stage) || self.state.step.is_multiple_of(self.config.checkpoint_every) {
            self.checkpoint()?;
        }
        Ok(())
    }

    pub(super) fn evaluate_if_due(&mut self) -> Result<()> {
        let (step, config) = (self.state.step, self.config);
        let due = match step {
            0 => config.eval_at_start,
            _ => {
                let stage_ends = self.state.stage_step == config.stages[self.state.stage].steps;
                stage_ends || config.eval_every > 0 && step.is_multiple_of(config.eval_every)
            }
        };
        if !due || self.state.evaluated {
            return Ok(());
        }
        if let Some(found) = self.hooks.evaluate(&self.model, step)? {
            self.log.evaluation(step, &found.numbers, &found.answers)?;
            self.hooks.event(Event::Evaluation(step, &found.numbers));
            self.compare_with_best(&found.numbers)?;
        }
        self.state.evaluated = true;
        Ok(())
    }

    pub(super) fn checkpoint(&mut self) -> Result<()> {
        // Of a replay: it leaves none behind.
        if self.config.checkpoint_every == 0 {
            return Ok(());
        }
        let (model, Some(optimizer)) = (&self.model, &self.optimizer) else {
            // Stopped before the stage was entered: the checkpoint that the run went on from still stands.
            return Ok(());
        };
        self.log.sync()?;
        let critic = &self.critic;
        let params: Vec<ParamInfo> = model.trainable().into_iter().chain(critic.iter().flat_map(Critic::trainable)).collect();
        let critic_of = |name: &str| critic.as_ref().filter(|_| Critic::owns(name));
        let entry = |info: ParamInfo| {
            let coded = critic_of(&info.name).map_or_else(|| optimizer.is_coded(&info.name), |critic| critic.is_coded(&info.name))?;
            Ok(Entry { info, coded })
        };
        let entries: Vec<Entry> = params.into_iter().map(entry).collect::<Result<_>>()?;
        let mut data = |name: &str| {
            if let Some(critic) = critic_of(name) {
                return critic.export(name);
            }
            let (first, second) = optimizer.export(name)?;
            let state = TensorState { weight: model.export(name)?, first, second };
            guard::check_state(name, &state)?;
            Ok(state)
        };
        let dir: PathBuf = self.out.join("checkpoints");
        let path = checkpoint::save(&dir, &self.state, &entries, &mut data, self.config.checkpoint_keep)?;
        self.hooks.event(Event::Checkpoint(&path));
        Ok(())
    }
}
