//! The training loop: stages, steps, evaluations, checkpoints.
//!
//! A step of GRPO takes prompts from the stage's order, samples a group of answers for each, judges them, normalises the rewards within
//! each group, and updates the policy. The log-probabilities recorded while sampling are the old log-probabilities: sampling and training
//! run the same forward pass to the bit, so no second pass is made to get them, and the first ratio is exactly 1. A step of PPO also asks
//! the critic for its values and the reference for its log-probabilities before its updates. A step of supervised training takes gold
//! answers, or lines of ids, in the same way.
//!
//! All state lies between two steps: weights, moments, and the counters of [`State`]. Everything random follows from the seed and the
//! counters. So a run that was killed goes on from its last checkpoint to the same bytes.

mod after_step;
mod batch;
mod best;
pub mod data;
mod line;
mod measure;
mod ppo;
mod reference;
mod step;

pub use data::Examples;

use crate::error::{Error, Kind, Result};
use crate::model::optimizer::AdamW;
use crate::model::tokenizer::Tokenizer;
use crate::model::{Gradients, Transformer};
use crate::rl::checkpoint::{self, Checkpoint, State};
use crate::rl::config::{Algorithm, Config, Stage};
use crate::rl::critic::Critic;
use crate::rl::dataset::Dataset;
use crate::rl::evaluate::Evaluation;
use crate::rl::guard;
use crate::rl::objective::{Grpo, Objective, Sft};
use crate::rl::order::Order;
use crate::rl::rollout::Job;
use crate::rl::run_log::RunLog;
use crate::rl::watch::Watch;
use crate::tensor::cpu::allocator::{give_back, resident_bytes};
use line::first_epoch;
use reference::{Reference, needs_initial, needs_reference};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use step::{Learner, Settings, Update};

/// What the loop tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something the user should know of.
    Note(String),
    /// Something that may be wrong.
    Warning(String),
    /// A stage begins or goes on: its number from 1, how many there are, its settings.
    Stage(usize, usize, &'a Stage),
    /// Answers sampled so far of a step's.
    Sampling(usize, usize),
    /// A step is done: its number, of how many, and its line of `metrics.jsonl`.
    Step(u64, u64, &'a Map<String, Value>),
    /// An evaluation is done.
    Evaluation(u64, &'a Map<String, Value>),
    /// A checkpoint is written.
    Checkpoint(&'a Path),
}

/// What the loop needs of its caller.
pub trait Hooks {
    /// Takes note of an event.
    fn event(&mut self, event: Event<'_>);

    /// Evaluates the model after `step` steps; `None` where there is nothing to evaluate on. [`Error::interrupted`] if it was stopped.
    fn evaluate(&mut self, model: &Transformer, step: u64) -> Result<Option<Evaluation>>;

    /// Keeps the model after `step` steps, in place of one that was kept before: its evaluation is the best so far.
    fn keep(&mut self, model: &Transformer, step: u64) -> Result<()>;
}

/// A run of training.
pub struct Trainer<'a> {
    config: &'a Config,
    datasets: &'a [Arc<Dataset>],
    tokenizer: Option<&'a Tokenizer>,
    out: &'a Path,
    stop: &'a dyn Fn() -> bool,
    hooks: &'a mut dyn Hooks,
    model: Transformer,
    gradients: Gradients,
    /// Of the stage that runs.
    optimizer: Option<AdamW>,
    /// Of a PPO stage.
    critic: Option<Critic>,
    order: Option<Order>,
    reference: Option<Reference>,
    /// The policy that the run began with, as long as a stage needs it.
    initial: Option<Reference>,
    log: RunLog,
    watch: Watch,
    state: State,
    /// Moments of a checkpoint, until its stage is entered.
    resumed: Option<Checkpoint>,
}

/// What a run of training is made from.
pub struct Inputs<'a> {
    /// The settings.
    pub config: &'a Config,
    /// The examples of each stage.
    pub datasets: &'a [Arc<Dataset>],
    /// The model's tokenizer; supervised training on lines of ids needs none.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The run folder.
    pub out: &'a Path,
    /// Asked now and then whether to stop: then the step in progress is dropped and a checkpoint is written.
    pub stop: &'a dyn Fn() -> bool,
    /// The caller's part.
    pub hooks: &'a mut dyn Hooks,
}

impl<'a> Trainer<'a> {
    /// Prepares a run: from its newest whole checkpoint if `resume` is set and there is one, else from the start. `model` is as loaded, with
    /// its adapter, where it has one.
    pub fn new(inputs: Inputs<'a>, model: Transformer, resume: bool) -> Result<Self> {
        let Inputs { config, datasets, tokenizer, out, stop, hooks } = inputs;
        let found = match resume {
            true => Checkpoint::latest(&out.join("checkpoints"), &mut |w| hooks.event(Event::Warning(w)))?,
            false => None,
        };
        let state = found.as_ref().map(|c| c.state.clone()).unwrap_or_default();
        if state.stage >= config.stages.len() {
            return Err(
                Error::input(format!("is in stage {} of {}", state.stage + 1, config.stages.len())).at_file(&out.join("checkpoints"))
            );
        }
        let log = RunLog::open(out, found.as_ref().map(|c| (c.state.step, c.state.evaluated)))?;
        let watch = Watch::of_log(&log.metrics()?);
        let gradients = model.gradients()?;
        let mut trainer = Self {
            config,
            datasets,
            tokenizer,
            out,
            stop,
            hooks,
            model,
            gradients,
            optimizer: None,
            critic: None,
            order: None,
            reference: None,
            initial: None,
            log,
            watch,
            state,
            resumed: None,
        };
        let stages = config.stages.iter().enumerate().skip(trainer.state.stage);
        if stages.clone().any(|(i, s)| needs_initial(i, s)) {
            trainer.initial = Some(Reference::freeze(&trainer.model)?);
        }
        if let Some(checkpoint) = &found {
            // What a kill in the middle of pruning has left.
            checkpoint::prune(&out.join("checkpoints"), checkpoint.state.step, config.checkpoint_keep)?;
            for info in trainer.model.trainable() {
                trainer.model.import(&info.name, &checkpoint.read_weight(&info)?)?;
            }
            let note = format!("going on after step {} from {}", checkpoint.state.step, checkpoint.path.display());
            trainer.hooks.event(Event::Note(note));
        } else if resume {
            trainer.hooks.event(Event::Note("there is no checkpoint yet: from the start".into()));
        }
        trainer.resumed = found;
        Ok(trainer)
    }

    /// Steps done so far.
    pub fn steps_done(&self) -> u64 {
        self.state.step
    }

    /// Runs to the end and returns the trained model. When it is stopped, the last whole step is kept as a checkpoint, and the error is
    /// [`Error::interrupted`].
    pub fn run(mut self) -> Result<Transformer> {
        match self.stages() {
            // Before its stage is entered a resumed run has no moments, and its checkpoint is there.
            Err(e) if e.kind() == Kind::Interrupted && self.state.step > 0 && self.resumed.is_none() => {
                self.checkpoint()?;
                Err(e)
            }
            Err(e) => Err(e),
            Ok(()) => Ok(self.model),
        }
    }

    fn stages(&mut self) -> Result<()> {
        let interrupted = self.resumed.is_some() && !self.state.evaluated;
        self.evaluate_if_due()?;
        let mut made_up = interrupted && self.state.evaluated;
        loop {
            let stage = &self.config.stages[self.state.stage];
            self.enter_stage(stage)?;
            if std::mem::take(&mut made_up) {
                // The evaluation that the checkpoint lacked, so that it has the bytes of a run never interrupted.
                self.checkpoint()?;
            }
            while !self.is_over(stage) {
                self.step(stage)?;
            }
            self.tell_of_early_end(stage);
            if self.state.stage + 1 == self.config.stages.len() {
                return Ok(());
            }
            self.state = State {
                stage: self.state.stage + 1,
                stage_step: 0,
                cursor: 0,
                updates: 0,
                critic_updates: 0,
                kl_coef: None,
                skipped_in_row: 0,
                stale: 0,
                ..self.state.clone()
            };
        }
    }

    /// Sets up a stage's optimizer, order and reference: afresh at its start, from the checkpoint within it.
    fn enter_stage(&mut self, stage: &'a Stage) -> Result<()> {
        let index = self.state.stage;
        let dataset = &self.datasets[index];
        self.order = Some(dataset.order(stage, index, self.config.seed));
        // The last stage's moments give way before the next ones are made.
        self.optimizer = None;
        self.critic = None;
        let mut optimizer = AdamW::new(&self.model, stage.optim.clone())?.keyed(self.config.seed, self.part(0));
        let resumed = self.resumed.take();
        self.critic = self.make_critic(stage, resumed.as_ref())?;
        if let Some(checkpoint) = resumed {
            for info in self.model.trainable() {
                let (first, second) = checkpoint.read_moments(&info)?;
                optimizer.import(&info.name, &first, &second)?;
            }
        }
        self.optimizer = Some(optimizer);
        self.reference = None;
        if needs_reference(stage) && !self.is_over(stage) {
            self.reference = Some(self.make_reference(index, stage)?);
        }
        if !self.is_over(stage) {
            self.hooks.event(Event::Stage(index + 1, self.config.stages.len(), stage));
        }
        Ok(())
    }

    /// What names an optimizer's random numbers among those of the run: the stage, and whose it is (0 the policy's, 1 the critic's).
    fn part(&self, whose: u64) -> u64 {
        (self.state.stage as u64) << 1 | whose
    }

    fn stopped(&self) -> bool {
        (self.stop)()
    }

    /// One step: a batch, its updates, its line in the logs, and what is due after it.
    fn step(&mut self, stage: &'a Stage) -> Result<()> {
        if self.stopped() {
            return Err(Error::interrupted());
        }
        let started = Instant::now();
        let batch = match stage.algorithm {
            Algorithm::Sft => self.supervised_batch(stage)?,
            Algorithm::Grpo | Algorithm::Ppo => self.rollout_batch(stage)?,
        };
        let training = Instant::now();
        let lr = stage.schedule.at(self.state.stage_step + 1);
        let updates = self.updates(stage, &batch.jobs, lr)?;
        give_back();
        let resident = resident_bytes();
        let train_seconds = training.elapsed().as_secs_f64();
        let made = updates.iter().filter(|u| u.not_finite.is_none()).count() as u64;
        let skipped = made == 0;
        let (policy, critic) = (self.policy_learns(stage), self.critic.is_some());
        self.state = State {
            step: self.state.step + 1,
            stage_step: self.state.stage_step + 1,
            cursor: self.state.cursor + batch.taken as u64,
            updates: self.state.updates + if policy { made } else { 0 },
            critic_updates: self.state.critic_updates + if critic { made } else { 0 },
            skipped: self.state.skipped + u64::from(skipped),
            skipped_in_row: if skipped { self.state.skipped_in_row + 1 } else { 0 },
            evaluated: false,
            ..self.state.clone()
        };
        let step = self.state.step;
        let line = self.line(stage, &batch, &updates, lr);
        self.log.step(step, &line)?;
        // The line has the weight that this step used.
        let answers = batch.jobs.iter().map(|j| j.targets.len()).sum();
        self.state.kl_coef = self.next_kl_coef(stage, first_epoch(stage, batch.jobs.len(), &updates).kl(), answers);
        let seconds = started.elapsed().as_secs_f64();
        let tokens = batch.jobs.iter().map(|j| j.tree.num_tokens()).sum::<usize>();
        let timing = json!({"step": step, "seconds": seconds, "generate_seconds": batch.generate_seconds,
            "train_seconds": train_seconds, "train_tokens_per_second": tokens as f64 / train_seconds.max(1e-9), "resident_bytes": resident});
        self.log.timing(timing.as_object().unwrap_or(&Map::new()))?;
        self.hooks.event(Event::Step(step, self.config.total_steps(), &line));
        if let Some((what, tree)) = updates.iter().find_map(|u| u.not_finite.as_ref().map(|what| (what, u.culprit))) {
            let found = guard::describe(&self.model, step, what, tree, &batch.jobs, &batch.names)?;
            self.log.not_finite(step, &found.record)?;
            self.hooks.event(Event::Warning(found.message));
        }
        for warning in self.watch.observe(&line) {
            self.hooks.event(Event::Warning(format!("step {step}: {warning}")));
        }
        self.after_step(stage)
    }

    /// Whether the policy learns in the step that comes; while a critic warms up it does not.
    fn policy_learns(&self, stage: &Stage) -> bool {
        stage.algorithm != Algorithm::Ppo || self.state.stage_step >= stage.critic.warmup
    }

    /// Trains on a batch once, or as often as the stage asks; stops at the first update that is not finite.
    fn updates(&mut self, stage: &Stage, jobs: &[Job], lr: f64) -> Result<Vec<Update>> {
        let mut objective = objective(stage, self.kl_coef(stage));
        let (policy, minibatches) = (self.policy_learns(stage), self.minibatches(stage, jobs.len()));
        let optimizer = self.optimizer.as_mut().ok_or_else(|| Error::input("a step outside a stage"))?;
        let mut updates = Vec::new();
        for (i, indices) in (0u64..).zip(minibatches) {
            let settings = Settings {
                lr,
                update: self.state.updates + i + 1,
                policy,
                critic_lr: stage.critic.schedule.at(self.state.stage_step + 1),
                critic_update: self.state.critic_updates + i + 1,
                ..Settings::new(stage, self.reference.as_ref())
            };
            // A step is whole or not at all: once its first update is made, the others follow.
            let stop = self.stop;
            let mut keep_going = || i > 0 || !stop();
            let mut learner = Learner {
                model: &mut self.model,
                optimizer: &mut *optimizer,
                gradients: &mut self.gradients,
                critic: self.critic.as_mut(),
            };
            let jobs: Vec<&Job> = indices.into_iter().map(|j| &jobs[j]).collect();
            let update = step::update(&mut learner, &mut *objective, &jobs, &settings, &mut keep_going)?;
            let bad = update.not_finite.is_some();
            updates.push(update);
            if bad {
                break;
            }
        }
        Ok(updates)
    }
}

/// A stage's objective; `kl_coef` is the KL penalty's weight at this step.
pub(crate) fn objective(stage: &Stage, kl_coef: f64) -> Box<dyn Objective> {
    match stage.algorithm {
        Algorithm::Sft => Box::new(Sft::default()),
        Algorithm::Grpo | Algorithm::Ppo => Box::new(Grpo {
            clip: stage.clip,
            dual_clip: stage.dual_clip,
            ratio: stage.ratio,
            kl: stage.kl_estimator,
            kl_coef: if stage.kl_in_reward { 0.0 } else { kl_coef },
            entropy_coef: stage.entropy_coef,
            aggregation: stage.aggregation,
            ..Grpo::default()
        }),
    }
}
