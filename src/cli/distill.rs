//! `distill`: answers of a teacher, those that hit kept as data for supervised training.

use crate::cli::common::{DeviceArgs, load};
use crate::cli::interrupt;
use crate::cli::output::{json_line, plural, say};
use crate::model::dialogue::Dialogue;
use crate::model::weights::{self, ModelFiles};
use crate::rl::config::Config;
use crate::rl::dataset::{Dataset, Item};
use crate::rl::distill::endpoint::{Budget, Endpoint, Remote};
use crate::rl::distill::form::Form;
use crate::rl::distill::local::Local;
use crate::rl::distill::{REASON_FIRST, Said, Sampling, Summary, distill, gold};
use crate::rl::trainer::{Event, Examples};
use crate::{Error, Result};
use serde_json::json;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Make data for supervised training from a teacher's answers.
///
/// The questions are those that `train` would ask with the same configuration (data.train of all its stages). Answers that are well-formed
/// and hit the gold set go to DIR/sft.jsonl, which data.train of an sft stage reads; the others to DIR/rejected.jsonl, with the reason.
/// DIR/samples.jsonl keeps all that the teacher said; the same command again asks only for what is missing in it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The configuration [default: all settings from --set]
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Override a setting (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// gold (the gold answers), self (the configuration's model), the URL of an OpenAI-compatible endpoint, or another model
    #[arg(long, value_name = "TEACHER")]
    teacher: String,
    /// Where the files go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Answers to each question
    #[arg(short, long = "samples", default_value_t = 4, value_name = "N")]
    n: usize,
    /// Longest answer, in the teacher's tokens
    #[arg(long, default_value_t = 2048, value_name = "N")]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 1.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// What the teacher is told after each question, and the student is not; empty for nothing
    #[arg(long, default_value = REASON_FIRST, value_name = "TEXT")]
    instruction: String,
    /// Of a model on this machine: the form that its answers are given, with {} where it writes and \n for the end of a line, such as
    /// '<think>The cause is that {}</think>\n```\n{}\n```'
    #[arg(long, value_name = "TEXT")]
    form: Option<String>,
    /// Of an endpoint: the model's name there
    #[arg(long, value_name = "NAME")]
    teacher_model: Option<String>,
    /// Of an endpoint: the environment variable with its key
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// Of an endpoint: requests at a time
    #[arg(long, default_value_t = 4, value_name = "N")]
    parallel: usize,
    /// Of an endpoint: requests a minute; 0 for no limit
    #[arg(long, default_value_t = 0, value_name = "N")]
    per_minute: usize,
    /// Of an endpoint: seconds that an answer may take
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    timeout: u64,
    /// Of an endpoint: how often a request is sent again
    #[arg(long, default_value_t = 6, value_name = "N")]
    retries: u32,
    /// Of an endpoint: milliseconds before the first time again, twice as many before each further one
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    first_pause: u64,
    /// Of an endpoint: the prices of a million tokens, of prompts and of answers
    #[arg(long, value_name = "PROMPT,ANSWER", value_delimiter = ',', num_args = 1)]
    prices: Vec<f64>,
    /// Of an endpoint: stop once this call's answers have cost so much
    #[arg(long, value_name = "COST", requires = "prices")]
    max_cost: Option<f64>,
    /// The summary as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
}

impl Args {
    fn sampling(&self) -> Result<Sampling> {
        for (flag, value) in [("--samples", self.n), ("--max-new-tokens", self.max_new_tokens), ("--parallel", self.parallel)] {
            if value == 0 {
                return Err(Error::usage(format!("{flag} takes a number of at least 1")));
            }
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::usage("--temperature takes a number of at least 0"));
        }
        if self.form.is_some() && (self.is_endpoint() || self.teacher == "gold") {
            return Err(
                Error::usage("--form is for a model on this machine").hint("an endpoint writes its answers whole; use --instruction")
            );
        }
        let form = self.form.as_deref().map(Form::parse).transpose();
        Ok(Sampling {
            n: self.n,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            instruction: self.instruction.clone(),
            form: form.map_err(|e| Error::usage(format!("--form: {e}")))?,
        })
    }

    /// The prices and the limit, where prices are given.
    fn budget(&self) -> Result<Option<Budget>> {
        match self.prices[..] {
            [] => Ok(None),
            [prompt_price, completion_price] if prompt_price >= 0.0 && completion_price >= 0.0 => {
                Ok(Some(Budget { prompt_price, completion_price, limit: self.max_cost.unwrap_or(f64::INFINITY) }))
            }
            _ => Err(Error::usage("--prices takes two numbers of at least 0, such as 3,15")),
        }
    }

    fn is_endpoint(&self) -> bool {
        self.teacher.starts_with("http://") || self.teacher.starts_with("https://")
    }

    fn endpoint(&self, sampling: &Sampling) -> Result<Endpoint> {
        let Some(model) = self.teacher_model.clone() else {
            return Err(Error::usage("--teacher URL needs --teacher-model, the model's name there"));
        };
        let key = match &self.api_key_env {
            None => None,
            Some(name) => match std::env::var(name) {
                Ok(key) if !key.is_empty() => Some(key),
                _ => return Err(Error::usage(format!("--api-key-env {name}: the environment variable is not set, or empty"))),
            },
        };
        Ok(Endpoint {
            url: self.teacher.trim_end_matches('/').to_owned(),
            model,
            key,
            sampling: sampling.clone(),
            parallel: self.parallel,
            per_minute: self.per_minute,
            timeout: Duration::from_secs(self.timeout),
            retries: self.retries,
            first_pause: Duration::from_millis(self.first_pause),
            budget: self.budget()?,
        })
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let sampling = args.sampling()?;
    let endpoint = if args.is_endpoint() { Some(args.endpoint(&sampling)?) } else { None };
    if args.config.is_none() && args.set.is_empty() {
        return Err(Error::usage("expected a configuration").hint("give CONFIG.toml, or --set key=value"));
    }
    let config = Config::load(args.config.as_deref(), &args.set)?;
    let files = weights::open(&config.model)?;
    interrupt::listen()?;
    let examples = Examples::load(&config, &files, &mut |event| match event {
        Event::Note(text) => say!("{text}"),
        Event::Warning(text) => say!("warning: {text}"),
        _ => {}
    })?;
    let items = items(&examples)?;
    let total = Mutex::new(Spent::default());
    let on_sample = |said: &Said| {
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.add(said);
        if total.answers.is_multiple_of(50) {
            say!("{}", total.line(endpoint.as_ref().and_then(|e| e.budget).as_ref()));
        }
    };
    let summary = if args.teacher == "gold" {
        gold(&items, &args.out)
    } else if let Some(endpoint) = endpoint.clone() {
        let remote = Remote { endpoint, stop: &interrupt::pressed, log: &|line| say!("{line}") };
        distill(&items, &sampling, &remote, &args.out, &on_sample)
    } else {
        ask_local(&args, &config, &files, &items, &sampling, &on_sample)
    };
    let spent = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    if spent.answers > 0 {
        say!("{}", spent.line(endpoint.as_ref().and_then(|e| e.budget).as_ref()));
    }
    let summary = summary.map_err(|e| if e.exit_code() == 130 { e.hint("the answers are stored; the same command goes on") } else { e })?;
    show(&args, items.len(), &summary)
}

/// The questions of all stages, each once.
fn items(examples: &Examples) -> Result<Vec<&Item>> {
    let mut seen = std::collections::HashSet::new();
    let mut out: Vec<&Item> = Vec::new();
    for dataset in &examples.stages {
        if let Dataset::Items(items) = &**dataset {
            out.extend(items.iter().filter(|item| seen.insert((item.id.clone(), item.question.text().to_owned()))));
        }
    }
    if out.is_empty() {
        return Err(Error::input("expected tasks, found none")
            .at("data.train")
            .hint("a teacher is asked about tasks, not about lines of ids"));
    }
    Ok(out)
}

/// A model on this machine as the teacher.
fn ask_local(
    args: &Args,
    config: &Config,
    files: &ModelFiles,
    items: &[&Item],
    sampling: &Sampling,
    on_sample: &(dyn Fn(&Said) + Sync),
) -> Result<Summary> {
    let itself = args.teacher == "self";
    let other = if itself { None } else { Some(weights::open(&args.teacher)?) };
    let files = other.as_ref().unwrap_or(files);
    let adapter = config.adapter.as_deref().filter(|_| itself);
    let model = load(files, adapter, &args.device.open()?, config.compute)?;
    let adapter = adapter.map_or(String::new(), |dir| format!(" adapter={}", dir.display()));
    let local = Local {
        name: format!("{}{adapter}", if itself { &config.model } else { &args.teacher }),
        model: &model,
        dialogue: Dialogue::new(files, config.prompt.chat)?,
        sampling: sampling.clone(),
        seed: config.seed,
        max_batch: config.rollout_batch,
        stop: &interrupt::pressed,
    };
    distill(items, sampling, &local, &args.out, on_sample)
}

/// What this call's answers came to.
#[derive(Default)]
struct Spent {
    answers: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Spent {
    fn add(&mut self, said: &Said) {
        self.answers += 1;
        self.prompt_tokens += said.prompt_tokens;
        self.completion_tokens += said.completion_tokens;
    }

    fn line(&self, budget: Option<&Budget>) -> String {
        let cost = budget.map_or(String::new(), |b| format!(", cost {:.4}", b.cost(self.prompt_tokens, self.completion_tokens)));
        let (answers, prompt, completion) = (plural(self.answers as u64, "answer"), self.prompt_tokens, self.completion_tokens);
        format!("{answers} sampled: {prompt} tokens of prompts, {completion} of answers{cost}")
    }
}

fn show(args: &Args, questions: usize, summary: &Summary) -> Result<()> {
    let Summary { wanted, sampled, kept, rejected, questions: hit } = summary;
    if args.json {
        return json_line(&json!({"questions": questions, "wanted": wanted, "sampled": sampled, "kept": kept, "rejected": rejected,
            "questions_kept": hit, "sft": args.out.join("sft.jsonl").display().to_string()}));
    }
    let reasons: Vec<String> = rejected.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
    say!("{kept} of {sampled} answers kept{reasons}; {hit} of {questions} questions have one\n{}", args.out.join("sft.jsonl").display());
    Ok(())
}
