//! A weight matrix in bf16, in the layout that every product reads.

use super::round::{Chunk, unpair};
use super::{CHUNK, HALF, PAIRS, TERMS};
use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::panels::{PANEL, PanelMatrix};
use crate::tensor::cpu::parallel::{SharedMut, over_units};

/// A matrix `[n, k]` in bf16: `[ceil(n / 32)][ceil(k / 32)][2][16][16]` pairs. Each panel of 32 output rows is cut into chunks of 32 input
/// columns, and a chunk into two halves of 16 output rows: each a tile of AMX, 16 lines of 64 bytes, a line the pairs of two input columns
/// for 16 outputs side by side. What fills up the last panel and the last chunk is zero.
#[derive(Clone)]
pub struct Bf16Matrix {
    n: usize,
    k: usize,
    /// Two numbers in the room of an f32.
    data: AlignedVec,
}

/// Some consecutive panels of a [`Bf16Matrix`].
#[derive(Clone, Copy)]
pub struct Bf16View<'a> {
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// The panels.
    pub(super) pairs: &'a [u32],
}

impl std::fmt::Debug for Bf16Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bf16Matrix[{}, {}]", self.n, self.k)
    }
}

impl Bf16Matrix {
    /// The matrix rounded to the nearest bf16, ties to even.
    pub fn rounded(from: &PanelMatrix) -> Self {
        let (n, k) = (from.n(), from.k());
        let mut rounded = Self { n, k, data: AlignedVec::lasting(n.div_ceil(PANEL) * k.div_ceil(TERMS) * CHUNK) };
        rounded.round(from);
        rounded
    }

    /// Takes all numbers anew from a matrix of the same shape.
    ///
    /// # Panics
    /// If it has another shape.
    pub fn round(&mut self, from: &PanelMatrix) {
        let (n, k) = (self.n, self.k);
        assert_eq!((n, k), (from.n(), from.k()), "matrices of one shape");
        let out = SharedMut::new(bytemuck::cast_slice_mut::<f32, u32>(&mut self.data));
        over_units(n.div_ceil(PANEL), |p| {
            let panel = &from.data()[p * k * PANEL..][..k * PANEL];
            // SAFETY: each unit has its own panel.
            let own = unsafe { out.slice(p * k.div_ceil(TERMS) * CHUNK, k.div_ceil(TERMS) * CHUNK) };
            for (lines, chunk) in panel.chunks(TERMS * PANEL).zip(own.chunks_exact_mut(CHUNK)) {
                let lines = Chunk { source: lines, rows: PANEL, row_stride: 1, terms: lines.len() / PANEL, term_stride: PANEL };
                lines.rows_as_lanes(chunk);
            }
        });
    }

    /// The numbers in f32.
    pub fn to_panels(&self) -> PanelMatrix {
        let mut wide = PanelMatrix::zeros(self.n, self.k);
        let (k, view) = (self.k, self.view());
        for (p, panel) in wide.data_mut().chunks_exact_mut((k * PANEL).max(1)).take(self.n.div_ceil(PANEL)).enumerate() {
            for (i, x) in panel.iter_mut().enumerate() {
                *x = view.at(p * PANEL + i % PANEL, i / PANEL);
            }
        }
        wide
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// All panels.
    pub fn view(&self) -> Bf16View<'_> {
        let words = self.n.div_ceil(PANEL) * self.k.div_ceil(TERMS) * CHUNK;
        Bf16View { n: self.n, k: self.k, pairs: &bytemuck::cast_slice(&self.data)[..words] }
    }
}

impl<'a> Bf16View<'a> {
    /// The panels of output rows `from..to`; `from` is a multiple of [`PANEL`].
    pub fn rows(&self, from: usize, to: usize) -> Bf16View<'a> {
        assert!(from.is_multiple_of(PANEL) && to <= self.n);
        let stride = self.k.div_ceil(TERMS) * CHUNK;
        Bf16View { n: to - from, k: self.k, pairs: &self.pairs[from / PANEL * stride..to.div_ceil(PANEL) * stride] }
    }

    /// The chunks of panel `p`, one after another.
    pub(super) fn panel(&self, p: usize) -> &'a [u32] {
        let stride = self.k.div_ceil(TERMS) * CHUNK;
        &self.pairs[p * stride..(p + 1) * stride]
    }

    /// The number of an output row and an input column, those that fill up the last panel among them.
    fn at(&self, row: usize, column: usize) -> f32 {
        let chunk = &self.panel(row / PANEL)[column / TERMS * CHUNK..];
        unpair(chunk[row % PANEL / PAIRS * HALF + column % TERMS / 2 * PAIRS + row % PAIRS])[column % 2]
    }

    /// Copies output row `i` to `row`.
    ///
    /// # Panics
    /// If there is no such row: the last panel's padding is not one.
    pub fn copy_row(&self, i: usize, row: &mut [f32]) {
        assert!(i < self.n, "row {i} of {}", self.n);
        let lines = self.panel(i / PANEL)[i % PANEL / PAIRS * HALF..].chunks(CHUNK).flat_map(|half| half[..HALF].chunks_exact(PAIRS));
        for (numbers, line) in row.chunks_mut(2).zip(lines) {
            numbers.copy_from_slice(&unpair(line[i % PAIRS])[..numbers.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn packs_rounds_and_unpacks() {
        for (n, k) in [(45, 71), (3, 1), (64, 32)] {
            let rows: Vec<f32> = (0..n * k).map(|i| (i as f32).sin()).collect();
            let exact: Vec<f32> = rows.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
            let wide = PanelMatrix::from_rows(n, k, &rows);
            let mut matrix = Bf16Matrix::rounded(&wide);
            assert_eq!(matrix.to_panels().to_rows(), exact);
            let mut row = vec![0.0; k];
            matrix.view().copy_row(n - 1, &mut row);
            assert_eq!(row, exact[(n - 1) * k..]);
            matrix.round(&PanelMatrix::zeros(n, k));
            assert_eq!(matrix.to_panels().to_rows(), vec![0.0; n * k]);
        }
        let matrix = Bf16Matrix::rounded(&PanelMatrix::from_rows(45, 7, &vec![1.0; 315]));
        assert_eq!((matrix.view().rows(32, 45).n, matrix.view().rows(32, 45).pairs.len()), (13, CHUNK));
    }
}
