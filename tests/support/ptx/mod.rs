//! An interpreter of PTX: it runs on the processor what NVRTC has made of a kernel, inline assembly included.
//!
//! * `text.rs`: the text of a module to statements with resolved names. `decode.rs`: statements to instructions. An opcode, a modifier or an
//!   operand that is not known is an error that names the line.
//! * `forms.rs`: the table of instructions that compute lane by lane, one line a form.
//! * `warp.rs`: a warp in lockstep at its lowest program counter. `access.rs`: loads, stores, copies. `exchange.rs`, `matrix.rs`: what its lanes do
//!   together. `operands.rs`: which registers an instruction touches.
//! * `memory.rs`: global and shared memory; every access is checked for bounds and alignment. `launch.rs`: blocks, one after another. `cluster.rs`: those of
//!   a cluster in turn. `block.rs`: the warps of a block in turn, each until it waits; who waits where nobody can go on is an error.
//! * `hopper.rs`: what only sm_90a has. `barrier.rs`: barriers in shared memory. `tma.rs`: tiles, which land as late as they may, in an order drawn at
//!   random. `leave.rs`: tiles the other way, as late. `warpgroup.rs`: products, done when they are waited for; their registers may not be touched before.
//!
//! It was written from the PTX manual, apart from the emulator in `kernels/emulator/`; `witness.rs` beside this folder runs each launch on both
//! and compares all memory. Where the manual leaves bits open (`ex2.approx`, `lg2.approx`, the sums of `mma.sync` and `wgmma`) it computes what
//! the emulator's twins say they do. It looks for no races: the emulator does.

mod access;
mod barrier;
mod block;
mod cluster;
mod decode;
mod exchange;
mod forms;
mod hopper;
mod launch;
mod leave;
mod matrix;
mod memory;
mod operands;
mod text;
mod tma;
mod warp;
mod warpgroup;

pub use launch::{Module, Shape};
pub use memory::Memory;

/// What went wrong, and in which line of the PTX.
pub type Result<T> = std::result::Result<T, String>;
