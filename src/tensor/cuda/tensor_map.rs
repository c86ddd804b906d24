//! What TMA is told of a matrix in device memory.

/// A bf16 matrix in device memory, rows one after another, or planes of such matrices, and the boxes of 64 columns that TMA copies from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boxes {
    /// Of its first number.
    pub address: u64,
    /// Its planes, where it is more than a matrix.
    pub planes: Option<Planes>,
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// Rows of a box.
    pub box_rows: usize,
}

/// Matrices one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// How many.
    pub count: usize,
    /// How many a box has.
    pub of_box: usize,
}

/// The 128 bytes that tell TMA of a matrix (`TensorMap` of `kernels/hopper.cuh`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);
