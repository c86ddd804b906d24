//! Generation: continuous batching over a paged KV cache, the prompt shared by its samples.

use crate::Result;
use crate::model::tokenizer::Tokenizer;
use crate::model::transformer::Transformer;

/// How answers are sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Samples per prompt.
    pub n: usize,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Logits are divided by it; 0 means greedy.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens with at least this fraction of the most likely one's probability; 0 means all.
    pub min_p: f32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// All randomness follows from (seed, step, the prompt's ids, sample index, position).
    pub seed: u64,
    /// The training step, or 0.
    pub step: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { n: 1, max_new_tokens: 256, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, stop: Vec::new(), seed: 0, step: 0 }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token, which is the answer's last.
    Eos,
    /// A stop string.
    Stop,
    /// `max_new_tokens`, or the end of the context.
    Length,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Index of its prompt.
    pub prompt_index: usize,
    /// Index among the prompt's samples.
    pub index: usize,
    /// The generated tokens, the ending EOS included.
    pub ids: Vec<u32>,
    /// log softmax(logits / T) of each, before any filter: the old log-probabilities of training, bit for bit.
    pub logprobs: Vec<f32>,
    /// Without special tokens and without the stop string; empty when there is no tokenizer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What generation reports while it runs.
pub enum Event<'a> {
    /// A piece of text of the sample (prompt index, sample index).
    Text(usize, usize, &'a str),
    /// A finished answer (in order of completion).
    Done(&'a Completion),
    /// Tokens generated so far, over all samples.
    Progress(usize),
}

/// Samples `params.n` answers for each prompt; the result is ordered by (prompt_index, index). `max_batch`: how many answers are decoded
/// together (results do not depend on it). `on_event` returns false to stop early (the unfinished answers are dropped).
pub fn generate(
    _model: &Transformer,
    _tokenizer: Option<&Tokenizer>,
    _prompts: &[Vec<u32>],
    _params: &SamplingParams,
    _max_batch: usize,
    _on_event: &mut dyn FnMut(Event<'_>) -> bool,
) -> Result<Vec<Completion>> {
    todo!()
}
