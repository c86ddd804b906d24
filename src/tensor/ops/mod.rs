//! One room per op: its contract (shapes, dtypes, rounding points, errors), its CPU code and its CUDA launch, side by side. An op's
//! kernel is `kernels/<op>.cu`, its test `tests/ops/<op>.rs`, its bench `benches/<op>.rs`.

pub mod adamw;
pub mod attention;
pub mod embedding;
pub mod matmul;
pub mod norm;
pub mod residual;
pub mod rmsnorm;
pub mod rope;
pub mod sample;
pub mod swiglu;
pub mod token_logprob;
