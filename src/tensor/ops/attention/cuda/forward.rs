//! Attention forward on a CUDA device.

use super::{DeviceKv, Work, by_width};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::attention::Heads;
use crate::tensor::plan::TILE;
use std::f32::consts::LOG2_E;
use std::sync::Arc;

const WHOLE: [&str; 3] = ["attention_whole_d64", "attention_whole_d96", "attention_whole_d128"];
const HOPPER: [&str; 3] = ["attention_hopper_d64", "attention_hopper_d96", "attention_hopper_d128"];
const SPLIT: [&str; 3] = ["attention_split_d64", "attention_split_d96", "attention_split_d128"];

/// o `[T, H * d]` bf16 and the logs of the sums of exponentials `[T, H]` f32, for q `[T, H * d]` bf16 (rotated) of the tokens of `work`, whose
/// keys and values (their own included) stand in `kv`.
///
/// # Errors
/// If a buffer does not fit the shapes, or the device failed.
///
/// # Panics
/// If the work speaks of other heads or of pages that `kv` does not have.
pub fn forward(gpu: &Arc<Gpu>, q: &Buffer, kv: &DeviceKv, work: &Work, scale: f32) -> Result<(Buffer, Buffer)> {
    let Heads { num_heads, head_dim, .. } = kv.heads;
    assert_eq!(work.group, kv.heads.group(), "the work was cut for such heads");
    assert!(work.page_limit <= kv.pages, "the pages that the work reads exist");
    let mut o = Buffer::uninit(gpu, DType::Bf16, work.tokens * num_heads * head_dim)?;
    let mut lse = Buffer::uninit(gpu, DType::F32, work.tokens * num_heads)?;
    if work.tokens == 0 {
        return Ok((o, lse));
    }
    if work.hopper {
        hopper(gpu, [&mut o, &mut lse], q, kv, work, scale).run()?;
        return Ok((o, lse));
    }
    let Some(merge) = &work.merge else {
        let launch = launch(gpu, by_width(head_dim, WHOLE), kv, work)
            .output("o", &mut o, DType::Bf16, work.tokens * num_heads * head_dim)
            .output("lse", &mut lse, DType::F32, work.tokens * num_heads);
        inputs(launch, q, kv, work, scale).run()?;
        return Ok((o, lse));
    };
    let entries = work.rows.len();
    let mut parts = Buffer::uninit(gpu, DType::F32, entries * num_heads * head_dim)?;
    let mut states = Buffer::uninit(gpu, DType::F32, entries * num_heads * 2)?;
    let launch = launch(gpu, by_width(head_dim, SPLIT), kv, work)
        .output("parts", &mut parts, DType::F32, entries * num_heads * head_dim)
        .output("states", &mut states, DType::F32, entries * num_heads * 2);
    inputs(launch, q, kv, work, scale).waits().run()?;
    let kernel = Kernel { source: Source::ATTENTION, name: "attention_merge" };
    Launch::new(gpu, kernel, [work.tokens, num_heads, 1], [head_dim / 2, 1, 1], 0)
        .waits()
        .output("o", &mut o, DType::Bf16, work.tokens * num_heads * head_dim)
        .output("lse", &mut lse, DType::F32, work.tokens * num_heads)
        .input("parts", &parts, DType::F32, entries * num_heads * head_dim)
        .input("states", &states, DType::F32, entries * num_heads * 2)
        .input("order", &merge.order, DType::U32, entries)
        .input("starts", &merge.starts, DType::U32, work.tokens + 1)
        .dim("heads", num_heads)
        .f32(scale * LOG2_E)
        .run()?;
    Ok((o, lse))
}

/// The launch of `kernels/attention_hopper.cu`, which has the layout of its shared memory.
fn hopper<'a>(gpu: &'a Gpu, [o, lse]: [&mut Buffer; 2], q: &Buffer, kv: &DeviceKv, work: &Work, scale: f32) -> Launch<'a> {
    let Heads { num_heads, num_kv_heads, head_dim } = kv.heads;
    let tile = head_dim.next_multiple_of(64) * TILE * DType::Bf16.size();
    let stages = if head_dim == 64 { 4 } else { 2 };
    let shared = (2 + 2 * stages) * tile + 2 * TILE * head_dim * DType::F32.size();
    let kernel = Kernel { source: Source::ATTENTION_HOPPER, name: by_width(head_dim, HOPPER) };
    let slots = kv.pages * num_kv_heads * TILE;
    let launch = Launch::new(gpu, kernel, [work.num_items(), num_kv_heads, 1], [384, 1, 1], shared)
        .output("o", o, DType::Bf16, work.tokens * num_heads * head_dim)
        .output("lse", lse, DType::F32, work.tokens * num_heads)
        .input("q", q, DType::Bf16, work.tokens * num_heads * head_dim)
        .matrix("keys", Some(&kv.keys), slots, head_dim, TILE)
        .matrix("values", Some(&kv.values), slots, head_dim, TILE);
    tables(launch, kv, work, scale)
}

/// A block for each item and kv head. Shared memory: the queries in twice their room, which earlier splits take over, and two stages of a
/// page's keys and values.
fn launch<'a>(gpu: &'a Gpu, name: &'static str, kv: &DeviceKv, work: &Work) -> Launch<'a> {
    let shared = 6 * TILE * kv.heads.head_dim * DType::Bf16.size();
    Launch::new(gpu, Kernel { source: Source::ATTENTION, name }, [work.num_items(), kv.heads.num_kv_heads, 1], [128, 1, 1], shared)
}

/// The arguments that both kernels take after their outputs.
fn inputs<'a>(launch: Launch<'a>, q: &Buffer, kv: &DeviceKv, work: &Work, scale: f32) -> Launch<'a> {
    let Heads { num_heads, head_dim, .. } = kv.heads;
    let launch = launch
        .input("q", q, DType::Bf16, work.tokens * num_heads * head_dim)
        .input("keys", &kv.keys, DType::Bf16, kv.len())
        .input("values", &kv.values, DType::Bf16, kv.len());
    tables(launch, kv, work, scale)
}

/// The arguments behind the operands.
fn tables<'a>(launch: Launch<'a>, kv: &DeviceKv, work: &Work, scale: f32) -> Launch<'a> {
    launch
        .input("positions", &work.positions, DType::U32, work.tokens)
        .input("items", &work.items, DType::U32, 5 * work.num_items())
        .input("rows", &work.rows, DType::U32, work.rows.len())
        .input("pages", &work.pages, DType::U32, work.pages.len())
        .dim("heads", kv.heads.num_heads)
        .dim("kv_heads", kv.heads.num_kv_heads)
        .f32(scale * LOG2_E)
}
