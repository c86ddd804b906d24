//! Attention on a CUDA device: launches of `kernels/attention.cu`, `kernels/attention_bwd.cu`, `kernels/kv_pages.cu` and `kernels/qkv.cu`, which have the
//! equations, the shapes and the order of every sum.
//!
//! q, k, v, o are bf16, sums are f32; o is rounded once, and so are the exponentials before they meet the values. What a token attends to,
//! and in which order, is the processor's: the same pages, on the same grid of absolute positions. On the device the state is also merged
//! and begun afresh every [`work::SPLIT`] positions, so that a split of its own for each block gives the same bits.

mod backward;
mod forward;
mod keys;
mod kv;
pub mod work;

pub use backward::{BackwardWork, Passes, backward, most_sums};
pub use forward::forward;
pub use kv::{DeviceKv, HeadNorms, NOWHERE, PageCopies};
pub use work::{DecodeTables, Work};

use crate::tensor::ops::attention::Heads;
use crate::{Error, Result};

/// Widths of a head that the kernels are compiled for.
const HEAD_DIMS: [usize; 3] = [64, 96, 128];
/// Query heads that may share a kv head: the pairs that the narrowest of the blocks takes at a time.
const MAX_GROUP: usize = 32;

/// Whether the kernels know such heads.
///
/// # Errors
/// If they do not.
pub fn check(heads: Heads) -> Result<()> {
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    if !HEAD_DIMS.contains(&head_dim) {
        let message = format!("heads of {head_dim} numbers: the attention kernels know {HEAD_DIMS:?}");
        return Err(Error::device(message).hint("use --device cpu"));
    }
    if num_kv_heads == 0 || num_heads % num_kv_heads != 0 || heads.group() > MAX_GROUP {
        let message =
            format!("{num_heads} query heads on {num_kv_heads} key heads: the attention kernels take whole groups of at most {MAX_GROUP}");
        return Err(Error::device(message).hint("use --device cpu"));
    }
    Ok(())
}

/// The name of the width's own kernel.
fn by_width(head_dim: usize, names: [&'static str; 3]) -> &'static str {
    let i = HEAD_DIMS.iter().position(|d| *d == head_dim);
    names[i.expect("`check` has let the width pass")]
}
