//! Numbers and devices: contiguous tensors, the execution plan of a batch, and one room per op under [`ops`].
//!
//! Conventions, once for all ops:
//!
//! * Tokens have one dimension: activations are `[T, D]`, row-major, packed, without padding or a batch dimension.
//! * A forward op returns fresh tensors; a backward op ADDS into parameter gradients (`+=`) and returns fresh input gradients.
//! * On the CPU everything is f32, but for the operands of products with weights in bf16 ([`cpu::bf16`]). The order of every sum is fixed by
//!   widths and absolute positions alone, so a token's numbers do not depend on the other rows, on the number of threads or on the instruction
//!   set (`docs/exactness.md`).

pub mod cpu;
pub mod cuda;
mod device;
pub mod ops;
pub mod philox;
pub mod plan;
#[allow(clippy::module_inception)]
mod tensor;

pub use device::Device;
pub use tensor::{Storage, Tensor};
