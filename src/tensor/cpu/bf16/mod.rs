//! The three products of a linear layer with operands in bf16 and sums in f32: y = x W', dx = dy W and dW += dy' x.
//!
//! What is computed is what AMX's `tdpbf16ps` computes. Both operands are rounded to the nearest bf16, ties to even. A contraction is cut into
//! chunks of 32 terms (of inputs or outputs; for dW of tokens, counted from the start of each of the plan's chunks; what is missing to a
//! whole chunk is zero), and an output is, in f32:
//!
//! ```text
//! c = 0, or what was there (y += x W', dW)
//! for each chunk:  even = 0;  for each even term t: even = fma(a[t], b[t], even)
//!                  odd  = 0;  for each odd  term t: odd  = fma(a[t], b[t], odd)
//!                  c = c + (even + odd)
//! ```
//!
//! Products of bf16 are exact in f32, so the vector units compute the same (`kernel.rs`), and a row's bits depend neither on how many rows there
//! are, nor on how the work was divided, nor on the instruction set. But for one thing: AMX takes numbers below 2^-126 for zero, in operands and
//! in sums, and the other kernels do not.
//!
//! Floor: the matrix unit's rate for many rows, 2 N K bytes of weights at the memory's rate for few.

mod amx;
mod kernel;
mod left;
mod matrix;
mod round;
#[cfg(test)]
mod tests;

pub use amx::available as has_amx;
pub use matrix::{Bf16Matrix, Bf16View};

use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::division::{cut, group, panels_per_unit, row_groups, rows_of};
use crate::tensor::cpu::panels::PANEL;
use crate::tensor::cpu::parallel::{SharedMut, over_units, written};
use left::{Left, Unit};
use round::{Chunk, exchange};
use std::ops::Range;

/// Terms of a chunk.
const TERMS: usize = 32;
/// Pairs of terms of a chunk; also the columns of a tile.
const PAIRS: usize = TERMS / 2;
/// Words of a tile: 16 lines of 16 pairs.
const HALF: usize = PAIRS * PAIRS;
/// Words of a chunk of 32 rows or columns: two tiles.
const CHUNK: usize = 2 * HALF;
/// Chunks that are worked on together, so that both operands' stay in the cache.
const TOGETHER: usize = 16;

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    /// The matrix unit.
    Amx,
    /// The vector units, or plain code: the twin.
    Vector,
}

impl Engine {
    /// The faster one of those that are here.
    fn best() -> Self {
        if amx::available() { Self::Amx } else { Self::Vector }
    }
}

/// 32 columns of a product's output: their right operand, and where they go.
struct Column<'a> {
    right: Right<'a>,
    out: SharedMut<f32>,
    /// Where the first row's are.
    start: usize,
    /// From one row to the next.
    ldc: usize,
    /// How many of the 32 there are.
    lanes: usize,
}

/// A right operand of 32 columns, `[chunks][2][16][16]` pairs.
enum Right<'a> {
    /// A panel of weights, as it is stored.
    Panel(&'a [u32]),
    /// 32 input columns of weights, with the outputs as terms.
    InputColumns(Bf16View<'a>, usize),
    /// Some outputs' gradients `dy [T, stride]`, from this output on, with the tokens of these chunks as terms.
    Gradients { dy: &'a [f32], stride: usize, from: usize, parts: &'a [Range<usize>] },
}

impl Column<'_> {
    /// The right operand of some chunks, at most [`TOGETHER`]; what is not stored as it is read is packed into `scratch`.
    fn right<'s>(&'s self, chunks: Range<usize>, scratch: &'s mut AlignedVec) -> &'s [u32] {
        if let Right::Panel(panel) = self.right {
            return &panel[chunks.start * CHUNK..chunks.end * CHUNK];
        }
        scratch.grow(TOGETHER * CHUNK);
        let scratch = bytemuck::cast_slice_mut(scratch);
        match &self.right {
            Right::Panel(_) => {}
            Right::InputColumns(w, column) => {
                for (p, to) in chunks.zip(scratch.chunks_exact_mut(CHUNK)) {
                    exchange(&w.panel(p)[column * CHUNK..][..CHUNK], to);
                }
            }
            Right::Gradients { dy, stride, from, parts } => {
                for (part, to) in parts[chunks].iter().zip(scratch.chunks_exact_mut(CHUNK)) {
                    let source = &dy[part.start * stride + from..];
                    Chunk { source, rows: self.lanes, row_stride: 1, terms: part.len(), term_stride: *stride }.rows_as_lanes(to);
                }
            }
        }
        scratch
    }
}

/// Up to how many blocks of rows a product is taken to wait for memory.
const STREAMED: usize = 2;

/// Writes the product of `left` with every column (adds to what is there if `add`).
fn multiply(left: &Left<'_>, columns: &[Column<'_>], add: bool) {
    let (blocks, chunks) = (left.blocks(), left.parts.len());
    let per_unit = panels_per_unit(columns.len());
    let units = columns.len().div_ceil(per_unit);
    let groups = row_groups(units, blocks);
    over_units(units * groups, |i| {
        let own = &columns[i / groups * per_unit..columns.len().min((i / groups + 1) * per_unit)];
        let (rows, mut unit) = (group(blocks, groups, i % groups), Unit::of(left));
        let mut part = |column: &Column<'_>, chunks: Range<usize>| unit.times(column, chunks, rows.clone(), add);
        if blocks <= STREAMED {
            // Few rows wait for memory: each panel is read from end to end.
            own.iter().for_each(|column| cut(0..chunks, TOGETHER).for_each(|chunks| part(column, chunks)));
        } else {
            // Many rows: a part of them stays in the second cache for all panels.
            cut(0..chunks, TOGETHER).for_each(|chunks| own.iter().for_each(|column| part(column, chunks.clone())));
        }
    });
}

/// A contraction of `k` terms in chunks.
fn chunks_of(k: usize) -> Vec<Range<usize>> {
    cut(0..k, TERMS).collect()
}

/// `out [T, N] (+)= x [T, K] W'`.
///
/// # Panics
/// If the sizes do not fit.
pub fn nt(x: &[f32], w: Bf16View<'_>, out: &mut [f32], add: bool) {
    let rows = rows_of(x, w.k);
    assert_eq!(out.len(), rows * w.n, "x [{rows}, {}], W [{}, {}]", w.k, w.n, w.k);
    nt_by(Engine::best(), x, rows, &[(w, SharedMut::new(out))], add);
}

/// `x W'` for several matrices, in one go: x is packed once, and the panels are shared out among the threads together.
///
/// # Panics
/// If the sizes do not fit.
pub fn nt_many<const N: usize>(x: &[f32], weights: [Bf16View<'_>; N]) -> [Vec<f32>; N] {
    let rows = weights.first().map_or(0, |w| rows_of(x, w.k));
    let mut out = weights.map(|w| Vec::with_capacity(rows * w.n));
    let products: Vec<_> = weights.iter().zip(&mut out).map(|(w, y)| (*w, SharedMut::spare(y))).collect();
    nt_by(Engine::best(), x, rows, &products, false);
    for (w, y) in weights.iter().zip(&mut out) {
        // SAFETY: the product has written all of its rows x n outputs.
        unsafe { y.set_len(rows * w.n) };
    }
    out
}

/// Writes every output of every product (adds to it if `add`).
fn nt_by(engine: Engine, x: &[f32], rows: usize, products: &[(Bf16View<'_>, SharedMut<f32>)], add: bool) {
    let k = products.first().map_or(0, |(w, _)| w.k);
    assert!(products.iter().all(|(w, _)| w.k == k), "matrices of one width");
    if rows == 0 {
        return;
    }
    let parts = chunks_of(k);
    let left = Left::new(engine, x, rows, k, (k, 1), &parts);
    let columns: Vec<Column<'_>> = products
        .iter()
        .flat_map(|&(w, out)| {
            (0..w.n.div_ceil(PANEL)).map(move |p| {
                let (start, lanes) = (p * PANEL, PANEL.min(w.n - p * PANEL));
                Column { right: Right::Panel(w.panel(p)), out, start, ldc: w.n, lanes }
            })
        })
        .collect();
    multiply(&left, &columns, add);
}

/// `dx [T, K] += dy [T, N] W`.
///
/// # Panics
/// If the sizes do not fit.
pub fn nn_add(dy: &[f32], w: Bf16View<'_>, dx: &mut [f32]) {
    let rows = rows_of(dy, w.n);
    assert_eq!(dx.len(), rows * w.k, "dy [{rows}, {}], W [{}, {}]", w.n, w.n, w.k);
    nn_by(Engine::best(), dy, rows, w, SharedMut::new(dx), true);
}

/// `dy [T, N] W`.
///
/// # Panics
/// If the sizes do not fit.
pub fn nn(dy: &[f32], w: Bf16View<'_>) -> Vec<f32> {
    let rows = rows_of(dy, w.n);
    // SAFETY: the product writes all of its rows x k outputs.
    unsafe { written(rows * w.k, |dx| nn_by(Engine::best(), dy, rows, w, dx, false)) }
}

/// Writes every output (adds to it if `add`).
fn nn_by(engine: Engine, dy: &[f32], rows: usize, w: Bf16View<'_>, out: SharedMut<f32>, add: bool) {
    if rows == 0 {
        return;
    }
    let parts = chunks_of(w.n);
    let left = Left::new(engine, dy, rows, w.n, (w.n, 1), &parts);
    let column = |c: usize| {
        let (start, lanes) = (c * PANEL, PANEL.min(w.k - c * PANEL));
        Column { right: Right::InputColumns(w, c), out, start, ldc: w.k, lanes }
    };
    multiply(&left, &(0..w.k.div_ceil(PANEL)).map(column).collect::<Vec<_>>(), add);
}

/// `dW [N, K] += dy [T, N]' x [T, K]`, `dW` in panels of f32 (`dw`: the panels of `n` output rows); tokens are summed over `chunks`, in order.
///
/// # Panics
/// If the sizes do not fit.
pub fn tn(dy: &[f32], x: &[f32], n: usize, k: usize, chunks: &[Range<usize>], dw: &mut [f32]) {
    tn_by(Engine::best(), (dy, x), (n, k), chunks, dw);
}

fn tn_by(engine: Engine, (dy, x): (&[f32], &[f32]), (n, k): (usize, usize), chunks: &[Range<usize>], dw: &mut [f32]) {
    let rows = dy.len().checked_div(n).unwrap_or(0);
    assert_eq!((dy.len(), x.len(), dw.len()), (rows * n, rows * k, n.div_ceil(PANEL) * PANEL * k), "dy [{rows}, {n}], x [{rows}, {k}]");
    if rows == 0 || k == 0 {
        return;
    }
    let parts: Vec<_> = chunks.iter().flat_map(|chunk| cut(chunk.clone(), TERMS)).collect();
    let left = Left::new(engine, x, k, rows, (1, k), &parts);
    let out = SharedMut::new(dw);
    let column = |p: usize| {
        let (from, lanes) = (p * PANEL, PANEL.min(n - p * PANEL));
        Column { right: Right::Gradients { dy, stride: n, from, parts: &parts }, out, start: p * k * PANEL, ldc: PANEL, lanes }
    };
    multiply(&left, &(0..n.div_ceil(PANEL)).map(column).collect::<Vec<_>>(), true);
}
