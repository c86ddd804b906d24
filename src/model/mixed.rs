//! A weight matrix on the processor in two widths: what products in bf16 read, and the f32 that the optimizer changes.

use crate::tensor::cpu::{Bf16Matrix, PanelMatrix};

/// A weight matrix. All that a forward or backward pass reads is its bf16; the f32 master is there if the matrix is trained, or if bf16 does not
/// hold what was read, and the bf16 is always the master rounded.
#[derive(Clone, Debug)]
pub(crate) struct MixedMatrix {
    bf16: Bf16Matrix,
    master: Option<PanelMatrix>,
}

impl MixedMatrix {
    /// The matrix; its f32 are kept if bf16 does not hold them.
    pub fn new(matrix: PanelMatrix) -> Self {
        // A bf16 is the upper half of an f32.
        let exact = matrix.data().iter().all(|x| x.to_bits() & 0xffff == 0);
        Self { bf16: Bf16Matrix::rounded(&matrix), master: (!exact).then_some(matrix) }
    }

    /// What products read.
    pub fn bf16(&self) -> &Bf16Matrix {
        &self.bf16
    }

    /// Row-major numbers, at the best precision there is.
    pub fn to_rows(&self) -> Vec<f32> {
        self.master.as_ref().map_or_else(|| self.bf16.to_panels().to_rows(), PanelMatrix::to_rows)
    }

    /// Replaces the numbers by row-major ones, as many as there are.
    pub fn set_rows(&mut self, rows: &[f32]) {
        self.update(|master| master.set_rows(rows));
    }

    /// Changes the master, which is made at the first time, and rounds it anew.
    pub fn update(&mut self, change: impl FnOnce(&mut PanelMatrix)) {
        let master = self.master.get_or_insert_with(|| self.bf16.to_panels());
        change(master);
        self.bf16.round(master);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_f32_where_they_say_more() {
        let exact = MixedMatrix::new(PanelMatrix::from_rows(2, 2, &[1.0, 2.0, -0.5, 0.0]));
        assert!(exact.master.is_none());
        assert_eq!(exact.to_rows(), [1.0, 2.0, -0.5, 0.0]);
        let mut finer = MixedMatrix::new(PanelMatrix::from_rows(1, 2, &[1.001, 2.0]));
        assert_eq!((finer.to_rows(), finer.bf16.to_panels().to_rows()), (vec![1.001, 2.0], vec![1.0, 2.0]));
        // Steps that bf16 does not see add up in the master.
        for _ in 0..4 {
            finer.update(|master| master.data_mut()[0] += 0.001);
        }
        assert_eq!(finer.bf16.to_panels().to_rows(), [1.0078125, 2.0]);
    }
}
