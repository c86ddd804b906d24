//! The logits of a step, where the model is, and the tokens that are drawn from them.

use crate::Result;
use crate::model::device;
use crate::model::kv_cache::KvLayers;
use crate::model::linear::Adapter;
use crate::model::transformer::Transformer;
use crate::tensor::Tensor;
use crate::tensor::ops::sample::{self, Choice, Draw};
use crate::tensor::ops::token_logprob::{self, ChunkSums, cuda};
use crate::tensor::plan::Plan;
use rayon::prelude::*;

/// Logits of several rows.
pub(crate) enum Logits {
    /// `[rows, V]`.
    Cpu(Tensor),
    /// The same on a device, with each row's chunk sums.
    Device(cuda::Logits),
}

/// One row's logits on the processor, and, where a device has formed them, its chunk sums at the temperature it is sampled at.
pub(crate) struct Row {
    logits: Vec<f32>,
    sums: Option<Vec<ChunkSums>>,
}

impl Logits {
    /// The next token of each row.
    pub fn choose(&self, draws: &[Draw]) -> Result<Vec<Choice>> {
        match self {
            Logits::Cpu(logits) => Ok(draws.par_iter().enumerate().map(|(i, draw)| sample::choose(logits.row(i), draw)).collect()),
            Logits::Device(logits) => sample::cuda::choose(logits, draws),
        }
    }

    /// A row by itself.
    pub fn row(&self, i: usize) -> Result<Row> {
        match self {
            Logits::Cpu(logits) => Ok(Row { logits: logits.row(i).to_vec(), sums: None }),
            Logits::Device(logits) => logits.row(i).map(|(logits, sums)| Row { logits, sums: Some(sums) }),
        }
    }
}

impl Transformer {
    /// Logits `[rows, V]` of final hidden states, each row to be sampled as its draw says.
    pub(crate) fn logits(&self, hidden: &Tensor, draws: &[Draw]) -> Result<Logits> {
        match self.params.gpu() {
            None => Ok(Logits::Cpu(token_logprob::logits(hidden, self.head_matrix()))),
            Some(gpu) => Ok(Logits::Device(self.logits_on(gpu, hidden, &draws.iter().map(Draw::divisor).collect::<Vec<_>>())?)),
        }
    }

    /// One more token of each sequence of a plan whose segments have a token each, and the logits that it is drawn from, as
    /// [`Transformer::hidden`] and [`Transformer::logits`] give them. These are good until the decoder's next step.
    pub(crate) fn decode(
        &self,
        plan: &Plan,
        kv: &mut KvLayers,
        decoder: &mut device::Decoder,
        draws: &[Draw],
    ) -> Result<(Vec<Choice>, Logits)> {
        let recorded = (1..=device::RECORDED_ROWS).contains(&plan.num_tokens());
        if let (true, KvLayers::Device(layers), Some(gpu)) = (recorded, &mut *kv, self.params.gpu()) {
            self.check(plan)?;
            let (choices, logits) = self.decode_on(gpu, plan, layers, decoder, draws)?;
            return Ok((choices, Logits::Device(logits)));
        }
        let rows: Vec<u32> = (0..plan.num_tokens() as u32).collect();
        let hidden = self.hidden(plan, kv, &rows, Adapter::On)?;
        let logits = self.logits(&hidden, draws)?;
        Ok((logits.choose(draws)?, logits))
    }
}

impl Row {
    /// The next token. The draw's temperature is that of the row's sums.
    pub fn choose(&self, draw: &Draw) -> Choice {
        match &self.sums {
            None => sample::choose(&self.logits, draw),
            Some(sums) => sample::choose_by(&self.logits, sums, draw),
        }
    }

    /// The `k` likeliest tokens, at the temperature that the row is sampled at.
    pub fn likeliest(&self, temperature: f32, k: usize) -> Vec<Choice> {
        let divisor = if temperature == 0.0 { 1.0 } else { temperature };
        match &self.sums {
            _ if k == 0 => Vec::new(),
            None => sample::likeliest(&self.logits, temperature, k),
            Some(sums) => sample::likeliest_by(&self.logits, sums, divisor, k),
        }
    }
}
