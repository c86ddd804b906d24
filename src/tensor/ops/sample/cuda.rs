//! Choosing tokens from logits on a CUDA device: launches of `kernels/sample.cu`, which has the algorithm and the order of every sum. The token is
//! the processor's for the same logits, and `u` is the same keyed number. A row leaves the device only where more than 2048 of its tokens pass
//! its filters: there the processor chooses.

use super::{Choice, Draw, choose_by};
use crate::tensor::cuda::{Buffer, DType, Kernel, Launch, Source};
use crate::tensor::ops::token_logprob::Softmax;
use crate::tensor::ops::token_logprob::cuda::Logits;
use crate::tensor::plan::VOCAB_CHUNK;
use crate::{Error, Result};

/// Words of a row in a table of draws.
pub const WORDS: usize = 6;
/// The most chunks of a vocabulary (`CHUNKS` of the kernel): a thread has one.
const MOST_CHUNKS: usize = 256;
/// Numbers of a row's pick: the largest z, the sum, the token's z, the token.
const NUMBERS: usize = 4;

/// The rows of a table of draws `[rows, 6]`.
pub fn words(draws: &[Draw]) -> Vec<u32> {
    let of_row = |d: &Draw| {
        let u = d.u.to_bits();
        let top_k = u32::try_from(d.filters.top_k).unwrap_or(u32::MAX);
        [d.temperature.to_bits(), top_k, d.filters.top_p.to_bits(), d.filters.min_p.to_bits(), u as u32, (u >> 32) as u32]
    };
    draws.iter().flat_map(of_row).collect()
}

/// Whether one of the draws has filters, which is a launch of its own.
pub fn any_filtered(draws: &[Draw]) -> bool {
    draws.iter().any(|d| !d.is_plain())
}

/// One token for each row. The logits' chunk sums are at each row's [`Draw::divisor`].
///
/// # Errors
/// As [`queue`].
///
/// # Panics
/// If there is not one draw a row.
pub fn choose(logits: &Logits, draws: &[Draw]) -> Result<Vec<Choice>> {
    assert_eq!(logits.rows(), draws.len(), "one draw a row");
    if draws.is_empty() {
        return Ok(Vec::new());
    }
    let table = Buffer::from_u32(logits.logits().gpu(), &words(draws))?;
    queue(logits, &table, any_filtered(draws))?.finish(logits, draws)
}

/// What the device has chosen.
#[derive(Debug)]
pub struct Picks(Buffer);

/// The launches of [`choose`], with the table of draws on the device; nothing is waited for. Rows with filters are chosen from only if `filtered`.
///
/// # Errors
/// If the vocabulary has more than 524,288 tokens, or the device failed.
pub fn queue(logits: &Logits, draws: &Buffer, filtered: bool) -> Result<Picks> {
    let (gpu, rows, vocab) = (logits.logits().gpu().clone(), logits.rows(), logits.vocab());
    let chunks = vocab.div_ceil(VOCAB_CHUNK);
    if chunks > MOST_CHUNKS {
        let message = format!("a vocabulary of {vocab} tokens: the kernels choose among {}", MOST_CHUNKS * VOCAB_CHUNK);
        return Err(Error::device(message).hint("use --device cpu"));
    }
    let mut picks = Buffer::uninit(&gpu, DType::F64, rows * NUMBERS)?;
    for name in ["sample_f32", "sample_filtered_f32"].into_iter().take(1 + usize::from(filtered)) {
        Launch::new(&gpu, Kernel { source: Source::SAMPLE, name }, [rows, 1, 1], [256, 1, 1], 0)
            .waits()
            .output("picks", &mut picks, DType::F64, rows * NUMBERS)
            .input("logits", logits.logits(), DType::F32, rows * vocab)
            .input("sums", logits.sums(), DType::F32, rows * chunks * 3)
            .input("draws", draws, DType::U32, rows * WORDS)
            .dim("vocab", vocab)
            .dim("chunks", chunks)
            .run()?;
    }
    Ok(Picks(picks))
}

impl Picks {
    /// Waits for the tokens of the first rows, one a draw.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If there are fewer rows than draws.
    pub fn finish(&self, logits: &Logits, draws: &[Draw]) -> Result<Vec<Choice>> {
        let picks = self.0.part(DType::F64, 0, draws.len() * NUMBERS).to_f64()?;
        let choose_row = |(row, draw): (usize, &Draw)| {
            let &[max, sum, z, id] = &picks[row * NUMBERS..][..NUMBERS] else { unreachable!("numbers of a pick") };
            if id < 0.0 {
                let (row, sums) = logits.row(row)?;
                return Ok(choose_by(&row, &sums, draw));
            }
            Ok(Choice { id: id as u32, logprob: Softmax { max, sum, weighted: 0.0 }.logprob(z as f32) })
        };
        draws.iter().enumerate().map(choose_row).collect()
    }
}
