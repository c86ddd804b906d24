//! A weight matrix as products read it, and the products in the arithmetic that goes with it.

use crate::tensor::cpu::{Bf16Matrix, Bf16View, PanelMatrix, PanelView, bf16, gemm};
use std::ops::Range;
use std::str::FromStr;

/// What the processor's products of linear layers compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// f32.
    #[default]
    F32,
    /// Operands in bf16, sums in f32 ([`bf16`]): fast where the processor has AMX. All but the products stays f32.
    Bf16,
}

impl FromStr for Compute {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err("expected f32 or bf16"),
        }
    }
}

/// A weight matrix `[n, k]`, or some consecutive panels of one.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// To be multiplied in f32.
    F32(PanelView<'a>),
    /// To be multiplied in bf16.
    Bf16(Bf16View<'a>),
}

impl<'a> From<&'a PanelMatrix> for Weight<'a> {
    fn from(matrix: &'a PanelMatrix) -> Self {
        Self::F32(matrix.view())
    }
}

impl<'a> From<&'a Bf16Matrix> for Weight<'a> {
    fn from(matrix: &'a Bf16Matrix) -> Self {
        Self::Bf16(matrix.view())
    }
}

impl<'a> Weight<'a> {
    /// Output rows.
    pub fn n(&self) -> usize {
        match self {
            Self::F32(w) => w.n,
            Self::Bf16(w) => w.n,
        }
    }

    /// Input columns.
    pub fn k(&self) -> usize {
        match self {
            Self::F32(w) => w.k,
            Self::Bf16(w) => w.k,
        }
    }

    /// What its products compute in.
    pub fn compute(&self) -> Compute {
        match self {
            Self::F32(_) => Compute::F32,
            Self::Bf16(_) => Compute::Bf16,
        }
    }

    /// The panels of output rows `from..to`; `from` is a multiple of [`PANEL`](crate::tensor::cpu::panels::PANEL).
    pub fn rows(&self, from: usize, to: usize) -> Weight<'a> {
        match self {
            Self::F32(w) => Self::F32(w.rows(from, to)),
            Self::Bf16(w) => Self::Bf16(w.rows(from, to)),
        }
    }

    /// Copies output row `i` to `row`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn copy_row(&self, i: usize, row: &mut [f32]) {
        match self {
            Self::F32(w) => w.copy_row(i, row),
            Self::Bf16(w) => w.copy_row(i, row),
        }
    }

    /// `out [T, N] (+)= x [T, K] W'`.
    pub fn nt(&self, x: &[f32], out: &mut [f32], add: bool) {
        match self {
            Self::F32(w) => gemm::nt(x, *w, out, add),
            Self::Bf16(w) => bf16::nt(x, *w, out, add),
        }
    }

    /// `x W'` for several matrices that compute in the same, in one go.
    ///
    /// # Panics
    /// If some compute in f32 and some in bf16.
    pub fn nt_many<const N: usize>(x: &[f32], weights: [Self; N]) -> [Vec<f32>; N] {
        match weights.first() {
            Some(Self::Bf16(_)) => bf16::nt_many(
                x,
                weights.map(|w| match w {
                    Self::Bf16(w) => w,
                    Self::F32(_) => panic!("a matrix in f32 among those in bf16"),
                }),
            ),
            _ => gemm::nt_many(
                x,
                weights.map(|w| match w {
                    Self::F32(w) => w,
                    Self::Bf16(_) => panic!("a matrix in bf16 among those in f32"),
                }),
            ),
        }
    }

    /// `dx [T, K] = dy [T, N] W`.
    pub fn nn(&self, dy: &[f32]) -> Vec<f32> {
        match self {
            Self::F32(w) => gemm::nn(dy, *w),
            Self::Bf16(w) => bf16::nn(dy, *w),
        }
    }

    /// `dx += dy W`.
    pub fn nn_add(&self, dy: &[f32], dx: &mut [f32]) {
        match self {
            Self::F32(w) => gemm::nn_add(dy, *w, dx),
            Self::Bf16(w) => bf16::nn_add(dy, *w, dx),
        }
    }
}

impl Compute {
    /// `dW [N, K] += dy [T, N]' x [T, K]`, in panels of f32; tokens are summed over `chunks`, in order.
    pub fn tn(self, dy: &[f32], x: &[f32], (n, k): (usize, usize), chunks: &[Range<usize>], dw: &mut [f32]) {
        match self {
            Self::F32 => gemm::tn(dy, x, n, k, chunks, dw),
            Self::Bf16 => bf16::tn(dy, x, n, k, chunks, dw),
        }
    }
}
