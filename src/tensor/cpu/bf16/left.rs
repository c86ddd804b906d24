//! The left operand of a product, rounded and packed for what multiplies it, and the units of work on it.

use super::amx::{Operands, SIDE, Tiles};
use super::kernel::{Step, kernel, max_rows};
use super::round::{Chunk, rounded};
use super::{CHUNK, Column, Engine};
use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::division::{Blocks, pack_left};
use crate::tensor::cpu::panels::PANEL;
use crate::tensor::cpu::parallel::{SharedMut, over_units};
use std::ops::Range;

/// A left operand `[rows, terms]`.
pub(super) struct Left<'a> {
    rows: usize,
    terms: usize,
    /// The chunks of its terms, at most 32 each.
    pub parts: &'a [Range<usize>],
    packed: Packed,
}

enum Packed {
    /// `[blocks of 32 rows][parts][2][16 rows][16]` pairs, two numbers in the room of an f32.
    Tiles(AlignedVec),
    /// `[blocks][terms][rows of the block]`.
    Rows(Vec<f32>, Blocks),
}

impl<'a> Left<'a> {
    /// The numbers `source[row * strides.0 + term * strides.1]`, one of the strides being 1, for an engine.
    pub fn new(engine: Engine, source: &[f32], rows: usize, terms: usize, strides: (usize, usize), parts: &'a [Range<usize>]) -> Self {
        let packed = match engine {
            Engine::Amx => Packed::Tiles(tiles(source, rows, strides, parts)),
            Engine::Vector => {
                let blocks = Blocks::new(rows, max_rows());
                Packed::Rows(pack_left(&blocks, terms, source, strides.0, strides.1, rounded), blocks)
            }
        };
        Self { rows, terms, parts, packed }
    }

    /// Blocks of rows.
    pub fn blocks(&self) -> usize {
        match &self.packed {
            Packed::Tiles(_) => self.rows.div_ceil(SIDE),
            Packed::Rows(_, blocks) => blocks.count,
        }
    }
}

/// The left operand as AMX reads it.
fn tiles(source: &[f32], rows: usize, (row_stride, term_stride): (usize, usize), parts: &[Range<usize>]) -> AlignedVec {
    let stride = parts.len() * CHUNK;
    let mut packed = AlignedVec::zeros(rows.div_ceil(SIDE) * stride);
    let out = SharedMut::new(bytemuck::cast_slice_mut::<f32, u32>(&mut packed));
    over_units(rows.div_ceil(SIDE), |block| {
        // SAFETY: each unit has its own block.
        let own = unsafe { out.slice(block * stride, stride) };
        let from = block * SIDE;
        for (part, to) in parts.iter().zip(own.chunks_exact_mut(CHUNK)) {
            let source = &source[from * row_stride + part.start * term_stride..];
            Chunk { source, rows: SIDE.min(rows - from), row_stride, terms: part.len(), term_stride }.terms_as_lanes(to);
        }
    });
    packed
}

/// A unit of work: what a thread has while it is on one.
pub(super) struct Unit<'a> {
    left: &'a Left<'a>,
    tiles: Option<Tiles>,
    /// Room for a right operand that has to be packed.
    scratch: AlignedVec,
}

/// Outputs of a block and a column, side by side.
#[repr(align(64))]
struct Corner([[f32; PANEL]; SIDE]);

impl<'a> Unit<'a> {
    /// Work on a left operand, on this thread.
    pub fn of(left: &'a Left<'a>) -> Self {
        let tiles = matches!(left.packed, Packed::Tiles(_)).then(Tiles::configure);
        Self { left, tiles, scratch: AlignedVec::default() }
    }

    /// The product of some blocks of rows with a column over some chunks; the first chunk of all replaces what is there unless
    /// `add`.
    pub fn times(&mut self, column: &Column<'_>, chunks: Range<usize>, blocks: Range<usize>, add: bool) {
        let right = column.right(chunks.clone(), &mut self.scratch);
        for block in blocks {
            match (&self.left.packed, &self.tiles) {
                (Packed::Rows(packed, blocks), _) => self.left.by_vectors(packed, blocks.get(block), column, chunks.clone(), right, add),
                (Packed::Tiles(packed), Some(tiles)) => {
                    let part = &bytemuck::cast_slice(packed)[(block * self.left.parts.len() + chunks.start) * CHUNK..];
                    let rows = block * SIDE..self.left.rows.min((block + 1) * SIDE);
                    by_tiles(tiles, part, rows, column, chunks.len(), right, add || chunks.start > 0);
                }
                (Packed::Tiles(_), None) => unreachable!("a unit on tiles has configured them"),
            }
        }
    }
}

impl Left<'_> {
    /// A block of `mr` rows from `from` on, chunk after chunk.
    fn by_vectors(&self, packed: &[f32], (from, mr): (usize, usize), column: &Column<'_>, chunks: Range<usize>, right: &[u32], add: bool) {
        let (block, run) = (&packed[from * self.terms..(from + mr) * self.terms], kernel(mr));
        // Rows of the output may be whole pages apart, which one set of the first cache does not hold for long.
        column.by_way_of_corner(from..from + mr, add || chunks.start > 0, |c| {
            for (i, b) in chunks.zip(right.chunks_exact(CHUNK)) {
                let part = &self.parts[i];
                let a = block[part.start * mr..part.end * mr].as_ptr();
                let step = Step { terms: part.len(), a, b: b.as_ptr(), c, ldc: PANEL, lanes: column.lanes, add: add || i > 0 };
                // SAFETY: `block` and `b` were sliced to the chunk, and a corner has room for the rows.
                unsafe { run(&step) };
            }
        });
    }
}

/// A block of up to 32 rows.
fn by_tiles(tiles: &Tiles, left: &[u32], rows: Range<usize>, column: &Column<'_>, chunks: usize, right: &[u32], add: bool) {
    let (left, right, height) = (&left[..chunks * CHUNK], &right[..chunks * CHUNK], rows.len());
    let run = |c: *mut f32, ldc: usize| {
        let operands = Operands { chunks, a: left.as_ptr(), b: right.as_ptr(), c, ldc, add };
        // SAFETY: both operands have whole chunks, and `c` is this block's part of the output, or a corner of 32 x 32.
        unsafe { if height > SIDE / 2 { tiles.multiply::<true>(operands) } else { tiles.multiply::<false>(operands) } }
    };
    if column.lanes == PANEL && (height == SIDE || height == SIDE / 2) {
        run(column.line(rows.start), column.ldc);
    } else {
        column.by_way_of_corner(rows, add, |c| run(c, PANEL));
    }
}

impl Column<'_> {
    /// Where a row's outputs begin.
    fn line(&self, row: usize) -> *mut f32 {
        self.out.pointer(self.start + row * self.ldc)
    }

    /// Calls `run` on a corner in place of some rows, at most 32; what is there is copied in if `keep`, and the result back.
    fn by_way_of_corner(&self, rows: Range<usize>, keep: bool, run: impl FnOnce(*mut f32)) {
        let mut corner = Corner([[0.0; PANEL]; SIDE]);
        if keep {
            for (row, to) in rows.clone().zip(&mut corner.0) {
                // SAFETY: rows x lanes lie in the output, and no other unit has these rows of these columns.
                unsafe { to.as_mut_ptr().copy_from_nonoverlapping(self.line(row), self.lanes) };
            }
        }
        run(corner.0.as_mut_ptr().cast());
        for (row, from) in rows.zip(&corner.0) {
            // SAFETY: as above.
            unsafe { self.line(row).copy_from_nonoverlapping(from.as_ptr(), self.lanes) };
        }
    }
}
