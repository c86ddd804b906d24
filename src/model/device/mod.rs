//! The transformer on a CUDA device, or on the emulator that tests run the same launches on.
//!
//! The processor's network and the device's are two files of one shape (`model/block.rs`, `device/block.rs`). They are not one generic text,
//! because they fuse other things: the device adds the residual inside the norm that follows and a LoRA term inside its product, and works from
//! tables in device memory (`batch.rs`), while the processor works from the plan itself. What they share is all around: the plan, the list of
//! parameters and its gradients, the engine of generation, objectives, the optimizer's schedule. `Transformer`'s methods choose once, at the top.
//!
//! A block has a second forward pass, for few tokens of which nothing is saved (`decode_on`): a step of decoding is bound by the number of its launches, so
//! it makes one of what training, which keeps what lies between, launches one by one. The bits are the same.
//!
//! Weights are bf16 with an f32 master where they are trained (`numbers.rs`); activations are bf16, sums, gradients of weights and moments
//! f32. Logits are f32 and leave the device for an answer's first token, for
//! alternatives, and where too many tokens pass the filters.

mod batch;
mod block;
mod decode;
mod linear;
mod numbers;
mod trunk;

pub(crate) use decode::{Decoder, RECORDED_ROWS};
pub(crate) use numbers::DeviceNumbers;
pub(crate) use trunk::{Saved, SavedTrunk};
