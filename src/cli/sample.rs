//! `sample`: answers from a model, streamed to the terminal or as JSON lines.

use crate::cli::common::ModelArgs;
use crate::cli::output::say;
use crate::cli::{interrupt, lines};

use crate::model::generate::{Completion, Event, FinishReason, SamplingParams, generate};
use crate::model::transformer::Transformer;
use crate::model::weights::ModelFiles;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// Sample answers from a model.
///
/// Without --json the prompt is one text and the answer streams to the terminal; with --json the input is JSON lines
/// {"ids"}, {"text"} or {"messages"}, and each answer is a line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// The prompt [default: read from stdin]
    #[arg(long, conflicts_with_all = ["prompt_file", "input"], value_name = "TEXT")]
    prompt: Option<String>,
    /// A file that holds the prompt
    #[arg(long, conflicts_with = "input", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// With --json: JSON lines [default: stdin]
    #[arg(long, value_name = "FILE", requires = "json")]
    input: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long)]
    chat: bool,
    /// Samples per prompt
    #[arg(short, long = "samples", default_value_t = 1, value_name = "N")]
    n: usize,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_new_tokens: usize,
    /// 0 is greedy
    #[arg(long, default_value_t = 1.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Only the most likely tokens that together have probability P
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Only tokens with at least P times the largest probability
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// A text that ends an answer (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// All randomness follows from the seed and the prompt
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// JSON lines in and out
    #[arg(long)]
    json: bool,
    /// Answers decoded together (changes speed and memory, never the answers)
    #[arg(long, default_value_t = 32, value_name = "N")]
    max_batch: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ids: Option<Vec<u32>>,
    text: Option<String>,
    /// As transformers takes them: with `role`, and whatever else the chat template reads.
    messages: Option<Vec<Value>>,
}

#[derive(Serialize)]
struct Answer<'a> {
    prompt_index: usize,
    index: usize,
    ids: &'a [u32],
    logprobs: &'a [f32],
    text: &'a str,
    finish_reason: FinishReason,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let params = SamplingParams {
        n: args.n,
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        stop: args.stop.clone(),
        seed: args.seed,
        ..SamplingParams::default()
    };
    params.check().map_err(|e| Error::usage(format!("--{}", e.to_string().replace('_', "-"))))?;
    for (flag, value) in [("--samples", args.n), ("--max-batch", args.max_batch)] {
        if value == 0 {
            return Err(Error::usage(format!("{flag} takes a number of at least 1")));
        }
    }
    let (model, files) = args.model.load()?;
    if let Some(penalty) = files.generation_json.as_ref().and_then(|g| g.get("repetition_penalty")?.as_f64()).filter(|p| *p != 1.0) {
        say!("note: generation_config.json asks for a repetition penalty of {penalty}, which is not applied");
    }
    match args.json {
        true => sample_lines(&args, &model, &files, &params),
        false => sample_text(&args, &model, &files, &params),
    }
}

/// The prompt given on the command line, if there is one.
fn given_prompt(args: &Args) -> Result<Option<String>> {
    match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(path)) => std::fs::read_to_string(path).map(Some).map_err(|e| Error::io("read", path, e)),
        (None, None) => Ok(None),
    }
}

/// The token ids of one input.
fn encode(line: Line, args: &Args, model: &Transformer, files: &ModelFiles) -> Result<Vec<u32>> {
    let chat = |messages: Vec<Value>| {
        if let Some(i) = messages.iter().position(|m| m.get("role").and_then(Value::as_str).is_none()) {
            return Err(Error::input("expected an object with a role").at(format_args!("messages[{i}]")));
        }
        if let Some(i) = messages.iter().position(|m| m.get("content").is_none() && m.get("tool_calls").is_none()) {
            return Err(Error::input("expected content, or tool_calls").at(format_args!("messages[{i}]")));
        }
        let template = files
            .chat_template
            .as_ref()
            .ok_or_else(|| Error::input("the model has no chat template").hint("leave out --chat, or give \"text\""))?;
        files.tokenizer()?.encode(&template.render_json(&Value::Array(messages), &Value::Null, true)?, false)
    };
    let ids = match (line.ids, line.text, line.messages) {
        (Some(ids), None, None) => ids,
        (None, Some(text), None) if args.chat => chat(vec![json!({ "role": "user", "content": text })])?,
        (None, Some(text), None) => files.tokenizer()?.encode(&text, true)?,
        (None, None, Some(messages)) => chat(messages)?,
        _ => return Err(Error::input("expected one of \"ids\", \"text\" and \"messages\"")),
    };
    let (vocab, context) = (model.config().vocab_size, model.config().max_position_embeddings);
    if ids.is_empty() {
        let hint = if args.json { "give at least one id, or a text" } else { "give --prompt, --prompt-file, or a text on stdin" };
        return Err(Error::input("the prompt has no tokens").hint(hint));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(Error::input(format!("token id {id} is outside the model's vocabulary of {vocab}")));
    }
    if ids.len() > context {
        return Err(Error::input(format!("the prompt has {} tokens, the model's context {context}", ids.len())).hint("shorten the prompt"));
    }
    Ok(ids)
}

fn sample_text(args: &Args, model: &Transformer, files: &ModelFiles, params: &SamplingParams) -> Result<()> {
    let text = match given_prompt(args)? {
        Some(text) => text,
        None => {
            if std::io::stdin().is_terminal() {
                say!("reading the prompt from the terminal; end it with Ctrl-D");
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io("read", std::path::Path::new("stdin"), e))?;
            // The newline of `echo`, which nobody means as part of the prompt.
            text.truncate(text.strip_suffix('\n').map_or(text.len(), str::len));
            text
        }
    };
    interrupt::listen()?;
    let tokenizer = Some(files.tokenizer()?);
    let ids = encode(Line { ids: None, text: Some(text), messages: None }, args, model, files)?;
    let mut out = lines::Output::new();
    let mut failure = None;
    let alone = params.n == 1;
    let answers = generate(model, tokenizer, &[ids], params, args.max_batch, &mut |event| {
        match event {
            Event::Text(_, _, piece) if alone => failure = out.text(piece).err(),
            Event::Warning(text) => say!("warning: {text}"),
            _ => {}
        }
        failure.is_none() && !interrupt::pressed()
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    if alone {
        out.text("\n")?;
    }
    for answer in answers.iter().filter(|_| !alone) {
        out.text(&format!("--- {} of {}\n{}\n", answer.index + 1, params.n, answer.text))?;
    }
    if interrupt::pressed() { Err(Error::interrupted()) } else { Ok(()) }
}

fn sample_lines(args: &Args, model: &Transformer, files: &ModelFiles, params: &SamplingParams) -> Result<()> {
    let mut prompts = Vec::new();
    // For each input, in order: the index of its prompt, or what is wrong with its line.
    let mut inputs: Vec<std::result::Result<usize, (usize, Error)>> = Vec::new();
    let mut take = |number: usize, line: Result<Line>| match line.and_then(|line| encode(line, args, model, files)) {
        Ok(ids) => {
            inputs.push(Ok(prompts.len()));
            prompts.push(ids);
        }
        Err(error) => inputs.push(Err((number, error))),
    };
    match given_prompt(args)? {
        Some(text) => take(1, Ok(Line { ids: None, text: Some(text), messages: None })),
        None => {
            for line in lines::read(args.input.as_deref())? {
                let (number, line) = line?;
                take(number, lines::parse(&line));
            }
        }
    }
    interrupt::listen()?;
    let mut writer = InOrder { inputs, next: (0, 0), n: params.n, done: BTreeMap::new(), out: lines::Output::new() };
    let mut failure = writer.flush().err();
    let tokenizer = files.tokenizer.as_ref();
    generate(model, tokenizer, &prompts, params, args.max_batch, &mut |event| {
        match event {
            Event::Done(completion) => {
                writer.done.insert((completion.prompt_index, completion.index), completion.clone());
                failure = failure.take().or(writer.flush().err());
            }
            Event::Warning(text) => say!("warning: {text}"),
            _ => {}
        }
        failure.is_none() && !interrupt::pressed()
    })?;
    match failure {
        Some(error) => Err(error),
        None if interrupt::pressed() => Err(Error::interrupted()),
        None => writer.out.finish(),
    }
}

/// Writes answers in the order of their inputs, as soon as all before them are written.
struct InOrder {
    inputs: Vec<std::result::Result<usize, (usize, Error)>>,
    /// The input and the sample to be written next.
    next: (usize, usize),
    n: usize,
    done: BTreeMap<(usize, usize), Completion>,
    out: lines::Output,
}

impl InOrder {
    fn flush(&mut self) -> Result<()> {
        while let Some(input) = self.inputs.get(self.next.0) {
            match input {
                Err((number, error)) => {
                    self.out.fail(*number, error)?;
                    self.next = (self.next.0 + 1, 0);
                }
                Ok(_) if self.next.1 == self.n => self.next = (self.next.0 + 1, 0),
                Ok(prompt) => {
                    let Some(c) = self.done.remove(&(*prompt, self.next.1)) else { return Ok(()) };
                    let answer = Answer {
                        prompt_index: self.next.0,
                        index: c.index,
                        ids: &c.ids,
                        logprobs: &c.logprobs,
                        text: &c.text,
                        finish_reason: c.finish_reason,
                    };
                    self.out.write(&answer)?;
                    self.next.1 += 1;
                }
            }
        }
        Ok(())
    }
}
