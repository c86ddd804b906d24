//! How the work of a matrix product is divided: blocks of rows, parts of the contraction, units for the threads. None of it changes a number.

use crate::tensor::cpu::parallel::{SharedMut, over_units, written};
use std::ops::Range;

/// Rows cut into blocks, as equal as can be.
pub(super) struct Blocks {
    rows: usize,
    /// How many blocks there are.
    pub count: usize,
}

impl Blocks {
    /// `rows` in blocks of at most `largest`.
    pub fn new(rows: usize, largest: usize) -> Self {
        Self { rows, count: rows.div_ceil(largest) }
    }

    /// The first row of block `i`, and how many it has.
    pub fn get(&self, i: usize) -> (usize, usize) {
        let (from, to) = (self.rows * i / self.count, self.rows * (i + 1) / self.count);
        (from, to - from)
    }
}

/// Numbers of a row that are packed before the next row's.
const PIECE: usize = 128;

/// `out[block][k][row in block] = map(source[row * row_stride + k * k_stride])`: the left operand as a micro-kernel reads it.
pub(super) fn pack_left(
    blocks: &Blocks,
    k: usize,
    source: &[f32],
    row_stride: usize,
    k_stride: usize,
    map: impl Fn(f32) -> f32 + Sync,
) -> Vec<f32> {
    let pack = |out: SharedMut<f32>| {
        over_units(blocks.count, |b| {
            let (from, mr) = blocks.get(b);
            let block = out.pointer(from * k);
            if k_stride == 1 {
                // Piece by piece, so that what is written with a stride stays in the first cache.
                for j in (0..k).step_by(PIECE) {
                    for i in 0..mr {
                        let row = &source[(from + i) * row_stride..][j..k.min(j + PIECE)];
                        for (line, &x) in row.iter().enumerate() {
                            // SAFETY: the block is mr x k numbers from `from * k` on, and no other unit's.
                            unsafe { block.add((j + line) * mr + i).write(map(x)) };
                        }
                    }
                }
            } else {
                for j in 0..k {
                    let line = &source[from * row_stride + j * k_stride..][..mr];
                    for (i, &x) in line.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { block.add(j * mr + i).write(map(x)) };
                    }
                }
            }
        });
    };
    // SAFETY: the blocks cover all rows, and each is written whole.
    unsafe { written(blocks.rows * k, pack) }
}

/// `range` cut every `step`.
pub(super) fn cut(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |a| a..(a + step).min(end))
}

/// How many panels one work unit takes: enough units for every thread to have several, few enough for a unit to be worth its start.
pub(super) fn panels_per_unit(panels: usize) -> usize {
    panels.div_ceil(rayon::current_num_threads() * 8).max(1)
}

/// Into how many groups of row blocks a product is cut, beside `units` of columns: more than one only where a low-rank matrix has too few
/// columns to keep all threads busy. A group is worth the reading of its columns.
pub(super) fn row_groups(units: usize, blocks: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 || units >= threads * 2 { 1 } else { (threads * 4).div_ceil(units.max(1)).min(blocks.div_ceil(4)).max(1) }
}

/// The `g`-th of `groups` groups of `blocks` row blocks.
pub(super) fn group(blocks: usize, groups: usize, g: usize) -> Range<usize> {
    blocks * g / groups..blocks * (g + 1) / groups
}

/// How many rows of `k` numbers `x` has.
pub(super) fn rows_of(x: &[f32], k: usize) -> usize {
    let rows = x.len().checked_div(k).unwrap_or(0);
    assert_eq!(x.len(), rows * k, "x [{rows}, {k}]");
    rows
}
