//! A weight matrix in the layout that every product reads: panels of 32 output rows.
//!
//! `W [N, K]` (Hugging Face's `[out, in]`) is stored as `[ceil(N / 32)][K][32]`: for each input column, 32 output rows side by side (the
//! last panel is filled up with zeros). The lanes of a vector are then 32 different outputs, so a product needs no horizontal sum, reads
//! the matrix once from front to back, and its gradient accumulates in the very same layout. This is the only copy of the weights; rows in
//! Hugging Face's order are made when a model is saved.

use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::parallel::{SharedMut, over_units};

/// Output rows in a panel.
pub const PANEL: usize = 32;

/// A matrix `[n, k]` in panels.
#[derive(Clone)]
pub struct PanelMatrix {
    n: usize,
    k: usize,
    data: AlignedVec,
}

/// Some consecutive panels of a [`PanelMatrix`].
#[derive(Clone, Copy)]
pub struct PanelView<'a> {
    /// Output rows.
    pub n: usize,
    /// Input columns.
    pub k: usize,
    /// `[ceil(n / 32)][k][32]`.
    pub data: &'a [f32],
}

impl std::fmt::Debug for PanelMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PanelMatrix[{}, {}]", self.n, self.k)
    }
}

impl PanelMatrix {
    /// A matrix of zeros.
    pub fn zeros(n: usize, k: usize) -> Self {
        Self { n, k, data: AlignedVec::lasting(n.div_ceil(PANEL) * k * PANEL) }
    }

    /// Packs a row-major matrix.
    ///
    /// # Panics
    /// If `rows` does not hold `n * k` numbers.
    pub fn from_rows(n: usize, k: usize, rows: &[f32]) -> Self {
        let mut m = Self::zeros(n, k);
        m.set_rows(rows);
        m
    }

    /// Replaces all numbers by those of a row-major matrix.
    ///
    /// # Panics
    /// If `rows` does not hold `n * k` numbers.
    pub fn set_rows(&mut self, rows: &[f32]) {
        let (n, k) = (self.n, self.k);
        assert_eq!(rows.len(), n * k, "a [{n}, {k}] matrix");
        let out = SharedMut::new(self.data_mut());
        over_units(n.div_ceil(PANEL), |p| {
            // SAFETY: each unit has its own panel.
            let panel = unsafe { out.slice(p * k * PANEL, k * PANEL) };
            for (lane, row) in rows[p * PANEL * k..].chunks_exact(k.max(1)).take(PANEL).enumerate() {
                for (j, &x) in row.iter().enumerate() {
                    panel[j * PANEL + lane] = x;
                }
            }
        });
    }

    /// The matrix, row-major.
    pub fn to_rows(&self) -> Vec<f32> {
        let mut rows = vec![0.0; self.n * self.k];
        for (i, row) in rows.chunks_exact_mut(self.k.max(1)).enumerate() {
            self.copy_row(i, row);
        }
        rows
    }

    /// Copies output row `i` to `row`.
    ///
    /// # Panics
    /// If there is no such row: the last panel's padding is not one.
    pub fn copy_row(&self, i: usize, row: &mut [f32]) {
        self.view().copy_row(i, row);
    }

    /// Adds `row` to output row `i`.
    ///
    /// # Panics
    /// If there is no such row: the last panel's padding is not one.
    pub fn add_row(&mut self, i: usize, row: &[f32]) {
        assert!(i < self.n, "row {i} of {}", self.n);
        let k = self.k;
        let panel = &mut self.data_mut()[i / PANEL * k * PANEL..][..k * PANEL];
        for (line, x) in panel.chunks_exact_mut(PANEL).zip(row) {
            line[i % PANEL] += x;
        }
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input columns.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The panels, padding included.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The panels, to be changed (the padding must stay zero).
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// All panels.
    pub fn view(&self) -> PanelView<'_> {
        PanelView { n: self.n, k: self.k, data: self.data() }
    }

    /// The panels of output rows `from..to`, to be changed; `from` is a multiple of [`PANEL`].
    pub fn rows_mut(&mut self, from: usize, to: usize) -> &mut [f32] {
        assert!(from.is_multiple_of(PANEL) && to <= self.n);
        let stride = self.k * PANEL;
        &mut self.data_mut()[from / PANEL * stride..to.div_ceil(PANEL) * stride]
    }

    /// The panels of output rows `from..to`; `from` is a multiple of [`PANEL`].
    pub fn rows_view(&self, from: usize, to: usize) -> PanelView<'_> {
        self.view().rows(from, to)
    }
}

impl<'a> PanelView<'a> {
    /// The panels of output rows `from..to`; `from` is a multiple of [`PANEL`].
    pub fn rows(&self, from: usize, to: usize) -> PanelView<'a> {
        assert!(from.is_multiple_of(PANEL) && to <= self.n);
        let stride = self.k * PANEL;
        PanelView { n: to - from, k: self.k, data: &self.data[from / PANEL * stride..to.div_ceil(PANEL) * stride] }
    }

    /// Copies output row `i` to `row`.
    ///
    /// # Panics
    /// If there is no such row: the last panel's padding is not one.
    pub fn copy_row(&self, i: usize, row: &mut [f32]) {
        assert!(i < self.n, "row {i} of {}", self.n);
        let panel = &self.data[i / PANEL * self.k * PANEL..][..self.k * PANEL];
        for (x, line) in row.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *x = line[i % PANEL];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        let rows: Vec<f32> = (0..45 * 7).map(|i| i as f32).collect();
        let mut m = PanelMatrix::from_rows(45, 7, &rows);
        assert_eq!(m.to_rows(), rows);
        let mut row = vec![0.0; 7];
        m.copy_row(40, &mut row);
        assert_eq!(row, rows[280..287]);
        m.add_row(40, &[1.0; 7]);
        assert_eq!(m.to_rows()[280], 281.0);
        assert_eq!(m.rows_view(32, 45).data.len(), 7 * 32);
        assert_eq!(m.data()[7 * 32 + 13], 0.0);
    }
}
