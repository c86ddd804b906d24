//! One room per op: its contract (shapes, dtypes, rounding points, errors), its CPU code and its CUDA launch, side by side. An op's
//! kernel is `kernels/<op>.cu`, its test `tests/ops/<op>.rs`, its bench `benches/<op>.rs`.

pub mod rmsnorm_cuda;
