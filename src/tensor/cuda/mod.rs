//! The launch path of the CUDA kernels: a [`Gpu`] runs them on the driver or, in tests, on the emulator; a [`Buffer`] is its memory.

/// A device that runs the kernels.
#[derive(Debug)]
pub struct Gpu {}

/// Memory of a [`Gpu`].
#[derive(Debug)]
pub struct Buffer {}
