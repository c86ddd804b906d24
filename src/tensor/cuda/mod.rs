//! The launch path of the CUDA kernels: a [`Gpu`] runs them on the driver or, in tests, on the emulator; a [`Buffer`] is its memory.
//!
//! * `gpu.rs`: the device handle, and what its two backends have in common. `buffer.rs`: device memory with a dtype.
//! * `launch.rs`: one kernel launch, checked against the op's shapes; the only place where arguments become raw pointers. `graph.rs`: launches
//!   recorded once and queued again and again.
//! * `driver.rs` (what is there before a device is open), `context.rs` (an open device), `module.rs` and `nvrtc.rs` (kernel sources to machine
//!   code, cached on disk), `probe.rs` (for `doctor`), `staging.rs` (uploads on their way), `tensor_map.rs` (what TMA is told).
//! * `conformance/`: every instruction of `kernels/ptx.cuh` and `kernels/hopper.cuh` by itself, for a new kind of device.
//! * `emulator.rs`: loads the library that tests build from `kernels/emulator/`. The program itself carries no emulator.
//!
//! Nothing here is linked against CUDA: the driver and the compiler are looked for at run time, and where they are missing, too old, or
//! have no device, there is an [`Error`](crate::Error) that says so.

mod buffer;
pub mod conformance;
mod context;
mod driver;
mod emulator;
mod gpu;
mod graph;
mod launch;
mod module;
mod nvrtc;
mod probe;
mod staging;
mod tensor_map;

pub use buffer::{Buffer, DType};
pub use emulator::{Emulation, EmulationStats, Schedule};
pub use gpu::{Backend, Counts, Gpu, GpuInfo};
pub use graph::{Arena, Graph};
pub use launch::{Call, Geometry, Kernel, Launch};
pub use module::{Compiled, Source, compile};
pub use nvrtc::Nvrtc;
pub use probe::{CudaVersion, GpuReport, Probe, probe};
pub use tensor_map::{Boxes, Planes, TensorMap};
