//! Choosing tokens from logits on a CUDA device. The choice itself is the processor's code, so it is the processor's token for the same
//! logits, and `u` is the same keyed number; the device keeps the logits and sends what the choice needs: the chunk sums that the head has
//! formed beside the logits, then the one chunk of each row that holds the token, or, where a row is filtered, the logits that its filters can
//! keep.

use super::{Choice, Draw, Pick, Scored, draw_by, draw_filtered, floor, merged};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Kernel, Launch, Source};
use crate::tensor::ops::token_logprob::ChunkSums;
use crate::tensor::ops::token_logprob::cuda::Logits;
use crate::tensor::plan::VOCAB_CHUNK;

/// Columns whose largest logit stands for them where top-k's floor is sought.
const PIECE: usize = 64;

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
    let kept = kept(logits, draws, vocab)?;
    let choose_row = |(row, draw): (usize, &Draw)| {
        let (sums, &Draw { temperature, filters, u }) = (&logits.sums[row], draw);
        if draw.is_plain() {
            let len = VOCAB_CHUNK.min(vocab - picks[row].chunk * VOCAB_CHUNK);
            return Ok(picks[row].finish(&chunks[row * VOCAB_CHUNK..][..len], draw.divisor()));
        }
        match &kept[row] {
            Some(scored) => Ok(draw_filtered(scored.iter().copied(), vocab, sums, temperature, filters, u)),
            None => Ok(draw_by(&logits.row(row)?, sums, temperature, filters, u)),
        }
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
    Launch::new(&gpu, kernel("sample_chunk_f32"), [rows, 2, 1], [256, 1, 1], 0)
        .output("out", &mut out, DType::F32, rows * VOCAB_CHUNK)
        .input("logits", logits, DType::F32, rows * vocab)
        .input("chunk", &chunk, DType::U32, rows)
        .dim("vocab", vocab)
        .run()?;
    out.to_f32()
}

fn kernel(name: &'static str) -> Kernel {
    Kernel { source: Source::SAMPLE, name }
}

/// Of each filtered row the tokens that its filters can keep, in the vocabulary's order; none for a row without filters, or where nothing
/// can be told beforehand.
fn kept(logits: &Logits, draws: &[Draw], vocab: usize) -> Result<Vec<Option<Vec<Scored>>>> {
    let floors = floors(logits, draws, vocab)?;
    let mut kept = vec![None; draws.len()];
    if floors.iter().all(|f| *f == f32::INFINITY) {
        return Ok(kept);
    }
    let gpu = logits.logits.gpu().clone();
    let (rows, chunks) = (draws.len(), vocab.div_ceil(VOCAB_CHUNK));
    let on_device = Buffer::from_f32(&gpu, DType::F32, &floors)?;
    let mut counts = Buffer::uninit(&gpu, DType::U32, rows * chunks)?;
    Launch::new(&gpu, kernel("sample_count_f32"), [rows, chunks, 1], [256, 1, 1], 0)
        .output("counts", &mut counts, DType::U32, rows * chunks)
        .input("logits", &logits.logits, DType::F32, rows * vocab)
        .input("floors", &on_device, DType::F32, rows)
        .dim("vocab", vocab)
        .run()?;
    let counts = counts.to_u32()?;
    let mut first = vec![0];
    counts.iter().for_each(|n| first.push(first[first.len() - 1] + n));
    let n = first.pop().unwrap_or(0) as usize;
    let first = Buffer::from_u32(&gpu, &first)?;
    let (mut ids, mut values) = (Buffer::uninit(&gpu, DType::U32, n)?, Buffer::uninit(&gpu, DType::F32, n)?);
    Launch::new(&gpu, kernel("sample_keep_f32"), [rows, chunks, 1], [256, 1, 1], 0)
        .output("ids", &mut ids, DType::U32, n)
        .output("values", &mut values, DType::F32, n)
        .input("logits", &logits.logits, DType::F32, rows * vocab)
        .input("floors", &on_device, DType::F32, rows)
        .input("first", &first, DType::U32, rows * chunks)
        .dim("vocab", vocab)
        .run()?;
    let mut scored = ids.to_u32()?.into_iter().zip(values.to_f32()?);
    for (row, counts) in counts.chunks(chunks).enumerate() {
        let of_row: Vec<Scored> = scored.by_ref().take(counts.iter().sum::<u32>() as usize).collect();
        kept[row] = (floors[row] < f32::INFINITY).then_some(of_row);
    }
    Ok(kept)
}

/// What a logit of each row must at least be for the row's filters to keep its token; infinite where no row's logits are asked for this way.
fn floors(logits: &Logits, draws: &[Draw], vocab: usize) -> Result<Vec<f32>> {
    let by_k = |d: &Draw| !d.is_plain() && d.filters.top_k > 0;
    let pieces = vocab.div_ceil(PIECE);
    let mut peaks = if draws.iter().any(by_k) { peaks(&logits.logits, draws.len(), vocab)? } else { Vec::new() };
    let of_row = |(row, draw): (usize, &Draw)| {
        if draw.is_plain() {
            return f32::INFINITY;
        }
        let mut least = below(floor(vocab, draw.temperature, draw.filters, &merged(&logits.sums[row])));
        if by_k(draw) && draw.filters.top_k <= pieces {
            let of_row = &mut peaks[row * pieces..][..pieces];
            let (_, kth, _) = of_row.select_nth_unstable_by(draw.filters.top_k - 1, |a, b| b.total_cmp(a));
            least = least.max(*kth);
        }
        // All would be kept: whole rows are shorter without their tokens.
        if least > f32::NEG_INFINITY { least } else { f32::INFINITY }
    };
    Ok(draws.iter().enumerate().map(of_row).collect())
}

/// The largest f32 that is not above `x`.
fn below(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) > x { near.next_down() } else { near }
}

/// The largest logit of each piece, `[rows, pieces]`.
fn peaks(logits: &Buffer, rows: usize, vocab: usize) -> Result<Vec<f32>> {
    let gpu = logits.gpu().clone();
    let pieces = vocab.div_ceil(PIECE);
    let mut out = Buffer::uninit(&gpu, DType::F32, rows * pieces)?;
    Launch::new(&gpu, kernel("sample_peaks_f32"), [rows, pieces.div_ceil(8), 1], [256, 1, 1], 0)
        .output("peaks", &mut out, DType::F32, rows * pieces)
        .input("logits", logits, DType::F32, rows * vocab)
        .dim("vocab", vocab)
        .dim("pieces", pieces)
        .run()?;
    out.to_f32()
}
