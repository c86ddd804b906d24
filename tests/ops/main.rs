//! Each op against a reference in f64; the CUDA kernels on the emulator.

#[path = "../support/emulator.rs"]
mod emulator;

mod cuda_checker;
mod cuda_driver;
mod cuda_launch;
mod cuda_rmsnorm;
mod nvrtc;
