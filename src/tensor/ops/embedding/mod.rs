//! Token embedding: row `id` of the table. The table `[V, D]` is stored in panels, because a tied head multiplies by it.
//!
//! Its gradient adds the tokens one after another into a sparse sum of its own, which joins the dense gradient (the tied head's) at the
//! end of the optimizer batch: so the order of additions does not depend on how the batch was cut into micro-batches.

pub mod cuda;

use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::over_rows;
use crate::tensor::cpu::{PanelMatrix, Weight};
use std::collections::BTreeMap;

/// x `[T, D]`: the rows of `ids`, of a table in bf16 exactly as that holds them.
pub fn forward<'a>(table: impl Into<Weight<'a>>, ids: &[u32]) -> Tensor {
    let table = table.into();
    let width = table.k();
    let mut x = Tensor::zeros(&[ids.len(), width]);
    over_rows(x.data_mut(), width, |first, block| {
        for (row, &id) in block.chunks_exact_mut(width).zip(&ids[first..]) {
            table.copy_row(id as usize, row);
        }
    });
    x
}

/// The gradient of an embedding: rows of touched tokens only.
#[derive(Clone, Debug, Default)]
pub struct SparseRows {
    rows: BTreeMap<u32, Vec<f32>>,
}

impl SparseRows {
    /// Row `ids[t]` += dx `[t]`, for one token after another.
    pub fn add(&mut self, ids: &[u32], dx: &Tensor) {
        for (id, dx) in ids.iter().zip(dx.data().chunks_exact(dx.cols())) {
            let row = self.rows.entry(*id).or_insert_with(|| vec![0.0; dx.len()]);
            for (a, b) in row.iter_mut().zip(dx) {
                *a += b;
            }
        }
    }

    /// Adds all rows to a dense gradient and forgets them.
    pub fn drain_into(&mut self, dense: &mut PanelMatrix) {
        for (id, row) in std::mem::take(&mut self.rows) {
            dense.add_row(id as usize, &row);
        }
    }

    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }
}
