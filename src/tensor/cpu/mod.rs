//! What the CPU sides of the ops share: the instruction set found at run time, vectorised arithmetic, panel-packed matrices, the matrix
//! product and fixed work units.
//!
//! Every number is a chain of correctly rounded f32 operations (fused multiply-adds among them) in an order that widths alone decide. The
//! vector width only says how many such chains run side by side, so AVX-512, AVX2 and the portable code give the same bits.

pub mod aligned;
pub mod allocator;
pub mod bf16;
mod division;
pub mod gemm;
mod isa;
pub(crate) mod kernel;
pub mod panels;
pub mod parallel;
pub mod vector;
mod weight;

pub use bf16::{Bf16Matrix, Bf16View};
pub(crate) use isa::vectorized;
pub use isa::{Isa, isa};
pub use panels::{PanelMatrix, PanelView};
pub use weight::{Compute, Weight};
