//! A run of training on a tiny model, without files beside the run folder.

use crate::tiny;
use serde_json::{Map, Value, json};
use sorft_native::model::Transformer;
use sorft_native::model::config::Family;
use sorft_native::model::generate::Completion;
use sorft_native::rl::config::Config;
use sorft_native::rl::dataset::{Dataset, Item, Sequence};
use sorft_native::rl::evaluate::Evaluation;
use sorft_native::rl::reward::{Question, Reward};
use sorft_native::rl::trainer::{Event, Hooks, Inputs, Trainer};
use sorft_native::tensor::plan::{Plan, Tree};
use sorft_native::{Result, error::Error};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rewards even token ids: the part of the answer's tokens that are even.
pub struct Even;

impl Question for Even {
    fn text(&self) -> &str {
        ""
    }
    fn gold_answer(&self) -> &str {
        ""
    }
    fn judge(&self, completion: &Completion) -> Reward {
        let even = completion.ids.iter().filter(|id| *id % 2 == 0).count();
        let value = even as f64 / completion.ids.len().max(1) as f64;
        Reward { value, parts: vec![("valid", 1.0), ("answers", completion.ids.len() as f64)], error: None }
    }
    fn cut(&self) -> Option<String> {
        None
    }
}

/// `n` questions with prompts of different lengths.
pub fn items(n: usize) -> Arc<Dataset> {
    mixture(&[("", n)])
}

/// Questions of several subtasks, `n` of each.
pub fn mixture(parts: &[(&'static str, usize)]) -> Arc<Dataset> {
    let item = |(i, subtask): (usize, &'static str)| Item {
        id: format!("t{i}"),
        subtask,
        cluster: "r".into(),
        question: Box::new(Even),
        prompt: tiny::ids(50 + 17 * i, i as u64),
        gold: vec![2 * i as u32 + 2, 8, 0],
    };
    let subtasks = parts.iter().flat_map(|&(name, n)| (0..n).map(move |i| (i, name)));
    Arc::new(Dataset::Items(subtasks.map(item).collect()))
}

/// `n` lines of ids, every other token a target.
pub fn sequences(n: usize) -> Arc<Dataset> {
    let line = |i: usize| Sequence { ids: tiny::ids(30 + 40 * i, 100 + i as u64), targets: (0..30 + 40 * i).map(|j| j % 2 == 1).collect() };
    Arc::new(Dataset::Sequences((0..n).map(line).collect()))
}

/// A tiny model; weights small enough for answers to be of some entropy.
pub fn model() -> Transformer {
    tiny::model(tiny::config(Family::Llama), 5)
}

/// The same, computing as a configuration says.
pub fn model_for(config: &Config) -> Transformer {
    tiny::model_in(config.compute, tiny::config(Family::Llama), 5)
}

/// A configuration from its lines; model and data are given by the tests.
pub fn config(text: &str) -> Config {
    Config::parse(&format!("model = \"m\"\ndata.train = \"x\"\n{text}"), Path::new("test.toml")).expect("a configuration")
}

/// Trained tensors, by name.
pub type Weights = Vec<(String, Vec<f32>)>;

/// Records events; stops the run after some number of steps or sampled answers.
#[derive(Default)]
pub struct Recorder {
    pub stop_after_step: Option<u64>,
    pub stop_after_answers: Option<(u64, usize)>,
    pub stop_in_evaluation: bool,
    /// At the first note, which says that a run goes on.
    pub stop_when_resumed: bool,
    pub warnings: Vec<String>,
    pub lines: Vec<Map<String, Value>>,
    pub stop: std::rc::Rc<Cell<bool>>,
    pub steps: u64,
    pub notes: Vec<String>,
    /// Steps whose model was kept as the best, with its weights.
    pub kept: Vec<(u64, Weights)>,
}

impl Hooks for Recorder {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Warning(text) => self.warnings.push(text),
            Event::Note(text) => {
                self.stop.set(self.stop.get() || self.stop_when_resumed);
                self.notes.push(text);
            }
            Event::Step(step, _, line) => {
                self.steps = step;
                self.lines.push(line.clone());
                self.stop.set(self.stop.get() || self.stop_after_step == Some(step));
            }
            Event::Sampling(done, _) if self.stop_after_answers == Some((self.steps + 1, done)) => self.stop.set(true),
            _ => {}
        }
    }

    /// Something that depends on every weight the model uses.
    fn evaluate(&mut self, model: &Transformer, _step: u64) -> Result<Option<Evaluation>> {
        if self.stop.get() || self.stop_in_evaluation {
            return Err(Error::interrupted());
        }
        let ids = tiny::ids(40, 9);
        let plan = Plan::for_trees(&[Tree::sequence(&ids, &vec![true; ids.len()])]);
        let stats = model.evaluate(&plan, 1.0, sorft_native::model::transformer::Adapter::On)?;
        let sum: f32 = stats.logprob.iter().sum();
        Ok(Some(Evaluation { numbers: Map::from_iter([("sum".to_owned(), json!(sum))]), answers: vec![json!({"id": "a", "sum": sum})] }))
    }

    fn keep(&mut self, model: &Transformer, step: u64) -> Result<()> {
        self.kept.push((step, weights(model)));
        Ok(())
    }
}

/// Trains in `out`.
pub fn train(
    config: &Config,
    data: &[Arc<Dataset>],
    model: Transformer,
    out: &Path,
    resume: bool,
    hooks: &mut Recorder,
) -> Result<Transformer> {
    let flag = hooks.stop.clone();
    flag.set(false);
    let stop = move || flag.get();
    let inputs = Inputs { config, datasets: data, tokenizer: None, out, stop: &stop, hooks };
    Trainer::new(inputs, model, resume)?.run()
}

/// Every file of a run that two equal runs share, by name: metrics, answers, the newest checkpoint.
pub fn files(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut add = |path: PathBuf| {
        let name = path.strip_prefix(out).expect("inside").display().to_string();
        found.insert(name, std::fs::read(&path).expect("a file"));
    };
    add(out.join("metrics.jsonl"));
    for dir in ["rollouts", "evals"] {
        if let Ok(entries) = std::fs::read_dir(out.join(dir)) {
            entries.for_each(|e| add(e.expect("an entry").path()));
        }
    }
    let checkpoints = sorft_native::rl::checkpoint::list(&out.join("checkpoints")).expect("checkpoints");
    let (_, newest) = checkpoints.last().expect("a checkpoint");
    std::fs::read_dir(newest).expect("files").for_each(|e| add(e.expect("an entry").path()));
    found
}

/// All trained numbers of a model.
pub fn weights(model: &Transformer) -> Weights {
    model.trainable().into_iter().map(|p| (p.name.clone(), model.export(&p.name).expect("a tensor"))).collect()
}
