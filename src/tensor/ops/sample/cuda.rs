//! Choosing tokens from logits on a CUDA device. The choice itself is the processor's code, so it is the processor's token for the same
//! logits, and `u` is the same keyed number; the device keeps the logits and sends what the choice needs: the chunk sums that the head has
//! formed beside the logits, then the one chunk of each row that holds the token. Filters need the whole row.

use super::{Choice, Draw, Pick, draw_by};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Kernel, Launch, Source};
use crate::tensor::ops::token_logprob::ChunkSums;
use crate::tensor::ops::token_logprob::cuda::Logits;
use crate::tensor::plan::VOCAB_CHUNK;

/// One token for each row. The logits' chunk sums are at each row's [`Draw::divisor`].
///
/// # Errors
/// If the device failed.
///
/// # Panics
/// If there is not one draw a row.
pub fn choose(logits: &Logits, draws: &[Draw]) -> Result<Vec<Choice>> {
    let rows = logits.sums.len();
    assert_eq!(rows, draws.len(), "one draw a row");
    if rows == 0 {
        return Ok(Vec::new());
    }
    let picks: Vec<Pick> = draws.iter().zip(&logits.sums).map(|(d, sums)| pick(d, sums)).collect();
    let vocab = logits.logits.len() / rows;
    let chunks = picked_chunks(&logits.logits, &picks, vocab)?;
    let choose_row = |(row, draw): (usize, &Draw)| {
        if draw.is_plain() {
            let len = VOCAB_CHUNK.min(vocab - picks[row].chunk * VOCAB_CHUNK);
            return Ok(picks[row].finish(&chunks[row * VOCAB_CHUNK..][..len], draw.divisor()));
        }
        let whole = logits.row(row)?;
        Ok(draw_by(&whole, &logits.sums[row], draw.temperature, draw.filters, draw.u))
    };
    draws.iter().enumerate().map(choose_row).collect()
}

fn pick(draw: &Draw, sums: &[ChunkSums]) -> Pick {
    if draw.temperature == 0.0 { Pick::greedy(sums) } else { Pick::draw(sums, draw.u) }
}

/// The picked chunk of each row, `[rows, 2048]`.
fn picked_chunks(logits: &Buffer, picks: &[Pick], vocab: usize) -> Result<Vec<f32>> {
    let gpu = logits.gpu().clone();
    let rows = picks.len();
    let chunk: Vec<u32> = picks.iter().map(|p| p.chunk as u32).collect();
    let chunk = Buffer::from_u32(&gpu, &chunk)?;
    let mut out = Buffer::uninit(&gpu, DType::F32, rows * VOCAB_CHUNK)?;
    let kernel = Kernel { source: Source::HEAD, name: "head_chunk_f32" };
    Launch::new(&gpu, kernel, [rows, 2, 1], [256, 1, 1], 0)
        .output("out", &mut out, DType::F32, rows * VOCAB_CHUNK)
        .input("logits", logits, DType::F32, rows * vocab)
        .input("chunk", &chunk, DType::U32, rows)
        .dim("vocab", vocab)
        .run()?;
    out.to_f32()
}
