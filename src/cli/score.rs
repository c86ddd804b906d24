//! `score`: log-probabilities of texts or token ids.

use crate::cli::common::ModelArgs;
use crate::cli::lines::{self, Arriving};
use crate::model::generate::MIN_TEMPERATURE;
use crate::model::transformer::{Adapter, Transformer};
use crate::model::weights::ModelFiles;
use crate::tensor::plan::{Plan, Tree};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Log-probabilities of given texts or token ids.
///
/// Reads lines {"ids": [...]} or {"text": "..."}; writes {"ids", "logprobs"}, where `logprobs[i] = log p(ids[i+1] | ids[..=i])`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// JSON lines [default: stdin]; lines that are there together are evaluated together, up to 2048 tokens
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Divide the logits by this first
    #[arg(long, default_value_t = 1.0, value_name = "T", allow_negative_numbers = true)]
    temperature: f32,
    /// Accepted for uniformity: the output is always JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    ids: Option<Vec<u32>>,
    text: Option<String>,
}

#[derive(Serialize)]
struct Scored<'a> {
    ids: &'a [u32],
    logprobs: &'a [f32],
}

/// Tokens evaluated in one pass (a longer line goes alone).
const BATCH_TOKENS: usize = 2048;

pub(crate) fn run(args: Args) -> Result<()> {
    if !(MIN_TEMPERATURE..=f32::MAX).contains(&args.temperature) {
        return Err(Error::usage("--temperature takes a number of at least 0.000001"));
    }
    let (model, files) = args.model.load()?;
    let mut out = lines::Output::new();
    let mut batch: Vec<(usize, Result<Vec<u32>>)> = Vec::new();
    let mut tokens = 0;
    let mut arriving = Arriving::new(lines::read(args.input.as_deref())?);
    loop {
        let next = arriving.next(&mut || {
            tokens = 0;
            flush(&model, args.temperature, &mut batch, &mut out)
        })?;
        let Some((number, line)) = next else { break };
        let ids = lines::parse(&line).and_then(|line| ids_of(line, &model, &files));
        let len = ids.as_ref().map_or(0, Vec::len);
        if tokens + len > BATCH_TOKENS {
            flush(&model, args.temperature, &mut batch, &mut out)?;
            tokens = 0;
        }
        tokens += len;
        batch.push((number, ids));
    }
    flush(&model, args.temperature, &mut batch, &mut out)?;
    out.finish()
}

/// The ids of a line, checked against the model.
fn ids_of(line: Line, model: &Transformer, files: &ModelFiles) -> Result<Vec<u32>> {
    let ids = match (line.ids, line.text) {
        (Some(ids), None) => ids,
        (None, Some(text)) => files.tokenizer()?.encode(&text, true)?,
        _ => return Err(Error::input("expected either \"ids\" or \"text\"")),
    };
    let (vocab, context) = (model.config().vocab_size, model.config().max_position_embeddings);
    if ids.is_empty() {
        return Err(Error::input("no tokens"));
    }
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
        return Err(Error::input(format!("ids[{i}] = {id} is outside the vocabulary of {vocab}")));
    }
    if ids.len() > context {
        return Err(Error::input(format!("{} tokens, more than the model's context of {context}", ids.len())));
    }
    Ok(ids)
}

/// Evaluates and writes the collected lines, in order.
fn flush(model: &Transformer, temperature: f32, batch: &mut Vec<(usize, Result<Vec<u32>>)>, out: &mut lines::Output) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let good = batch.iter().filter_map(|(_, ids)| ids.as_ref().ok());
    let trees: Vec<Tree> = good.map(|ids| Tree::sequence(ids, &vec![true; ids.len()])).collect();
    let plan = Plan::for_trees(&trees);
    let stats = model.evaluate(&plan, temperature, Adapter::On)?;
    let mut ranges = plan.trees.iter().map(|t| t.predictions.clone());
    for (number, ids) in batch.drain(..) {
        match ids {
            Ok(ids) => {
                let range = ranges.next().expect("a tree for each good line");
                out.write(&Scored { ids: &ids, logprobs: &stats.logprob[range] })?;
            }
            Err(error) => out.fail(number, &error)?,
        }
    }
    Ok(())
}
