//! Each op of `src/tensor/ops` against an f64 reference written here on its own, its backward pass against f64 gradients, and the bits
//! that `docs/exactness.md` promises; and the CUDA kernels on the emulator.
//!
//! Errors are measured by ||got - want|| / ||want|| over a whole tensor, with `want` in f64. The bounds are a few times what is measured,
//! so that an accidental loss of precision (a sum in the wrong order, a rounded intermediate) fails.

#[path = "../support/emulator.rs"]
mod emulator;
#[path = "../support/ptx/mod.rs"]
mod ptx;
#[path = "../support/resources.rs"]
mod resources;
mod support;
#[path = "../support/witness.rs"]
mod witness;

mod adamw;
mod adamw_8bit;
mod attention;
mod embedding;
mod isa;
mod matmul;
mod norm;
mod plan;
mod residual;
mod rmsnorm;
mod rope;
mod sample;
mod swiglu;
mod token_logprob;

mod cuda_attention;
mod cuda_attention_backward;
mod cuda_attention_mistakes;
mod cuda_checker;
mod cuda_checker_hopper;
mod cuda_conformance;
mod cuda_driver;
mod cuda_early;
mod cuda_elementwise;
mod cuda_few;
mod cuda_launch;
mod cuda_matmul;
mod cuda_matmul_hopper;
mod cuda_qkv;
mod cuda_rmsnorm;
mod cuda_sample;
mod cuda_token_logprob;
mod nvrtc;
mod ptx_hopper;
mod ptx_interpreter;
mod ptx_mistakes;
mod ptx_witness;
