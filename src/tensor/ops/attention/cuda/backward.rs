//! Attention backward on a CUDA device: launches of `kernels/attention_bwd.cu`, or on Hopper of `kernels/attention_bwd_hopper.cu`, or there in two passes of
//! `kernels/attention_bwd_q_hopper.cu` and `kernels/attention_bwd_kv_hopper.cu`.

use super::keys::{Cuts, KeyTables, PageTables};
use super::work::{Cut, HOPPER_PAIRS, PAIRS};
use super::{DeviceKv, Work, by_width};
use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Planes, Source};
use crate::tensor::ops::attention::Heads;
use crate::tensor::plan::{Plan, Segment, TILE};
use std::sync::Arc;

const QUERIES: [&str; 3] = ["attention_bwd_q_d64", "attention_bwd_q_d96", "attention_bwd_q_d128"];
const PAGES: [&str; 3] = ["attention_bwd_kv_d64", "attention_bwd_kv_d96", "attention_bwd_kv_d128"];
const HOPPER_QUERIES: [&str; 3] = ["attention_bwd_q_hopper_d64", "attention_bwd_q_hopper_d96", "attention_bwd_q_hopper_d128"];
const HOPPER_PAGES: [&str; 3] = ["attention_bwd_kv_hopper_d64", "attention_bwd_kv_hopper_d96", "attention_bwd_kv_hopper_d128"];
const HOPPER: [&str; 3] = ["attention_bwd_hopper_d64", "attention_bwd_hopper_d96", "attention_bwd_hopper_d128"];

/// In how many passes over the keys that each query sees the gradients are formed. The bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// All at once, in turns for dq; for Hopper alone.
    One,
    /// dq, then dk and dv.
    Two,
}

/// Pairs of a run of queries for a page (`PAIRS` of the kernels): fewer where a block's sums leave fewer registers.
fn pairs_of_run(head_dim: usize) -> usize {
    if head_dim == 64 { PAIRS } else { PAIRS / 2 }
}

/// How the queries are cut that meet keys in the backward pass: a tile has 64 pairs.
fn cuts(heads: Heads) -> Cuts {
    let pairs = pairs_of_run(heads.head_dim);
    Cuts { rows: pairs / heads.group(), runs: PAIRS / pairs }
}

/// Numbers (f32) of the sums of queries' gradients under way in one pass, for so many tiles.
fn num_sums(heads: Heads, tiles: usize) -> usize {
    tiles * heads.num_kv_heads * PAIRS * heads.head_dim.next_multiple_of(64)
}

/// The most of them that a batch of so many tokens takes, in so many segments.
pub fn most_sums(heads: Heads, tokens: usize, segments: usize) -> usize {
    let Cuts { rows, runs } = cuts(heads);
    num_sums(heads, tokens.div_ceil(rows * runs) + segments)
}

/// Bytes of 64 rows of a head in the shared memory of the kernels for Hopper.
fn hopper_tile(head_dim: usize) -> usize {
    head_dim.next_multiple_of(64) * TILE * DType::Bf16.size()
}

/// The tables of a batch's backward pass, on the device; made once a batch.
#[derive(Debug)]
pub struct BackwardWork {
    tokens: usize,
    group: usize,
    positions: Buffer,
    num_pages: usize,
    keys: Keys,
    slots: Buffer,
    trees: usize,
    copies: Buffer,
    copy_starts: Buffer,
}

/// Which keys meet which queries, on the device.
#[derive(Debug)]
enum Keys {
    OnePass { blocks: Buffer, tiles: Buffer, starts: Buffer, num_tiles: usize },
    TwoPasses { queries: Box<Work>, pages: Buffer, runs: Buffer, starts: Buffer },
}

impl Keys {
    fn new(gpu: &Arc<Gpu>, plan: &Plan, heads: Heads, passes: Passes) -> Result<Self> {
        let upload = |numbers: &[u32]| Buffer::from_u32(gpu, numbers);
        match passes {
            Passes::One => {
                let tables = KeyTables::new(plan, cuts(heads));
                let (blocks, tiles, starts) = (upload(&tables.blocks)?, upload(&tables.tiles)?, upload(&tables.starts)?);
                Ok(Self::OnePass { blocks, tiles, starts, num_tiles: tables.num_tiles })
            }
            Passes::Two => {
                let queries = Box::new(Work::with_tables(gpu, &plan.segments, heads, Cut::Whole, gpu.is_hopper())?);
                let tables = PageTables::new(plan, cuts(heads));
                Ok(Self::TwoPasses { queries, pages: upload(&tables.pages)?, runs: upload(&tables.runs)?, starts: upload(&tables.starts)? })
            }
        }
    }
}

impl BackwardWork {
    /// The work of a plan that owns its pages, in one pass where the device can.
    ///
    /// # Errors
    /// If the kernels do not know such heads, or the device is out of memory or failed.
    pub fn new(gpu: &Arc<Gpu>, plan: &Plan, heads: Heads) -> Result<Self> {
        Self::in_passes(gpu, plan, heads, if gpu.is_hopper() { Passes::One } else { Passes::Two })
    }

    /// The same in a given number of passes.
    ///
    /// # Errors
    /// As [`BackwardWork::new`].
    ///
    /// # Panics
    /// If one pass is asked of a device that is no Hopper.
    pub fn in_passes(gpu: &Arc<Gpu>, plan: &Plan, heads: Heads, passes: Passes) -> Result<Self> {
        assert!(passes == Passes::Two || gpu.is_hopper(), "one pass is for Hopper");
        super::check(heads)?;
        let upload = |numbers: &[u32]| Buffer::from_u32(gpu, numbers);
        let copies: Vec<u32> = plan.copies.iter().flat_map(|c| [c.from, c.to, c.slots]).collect();
        let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
        Ok(Self {
            tokens: plan.num_tokens(),
            group: heads.group(),
            positions: upload(&plan.positions)?,
            num_pages: plan.num_pages,
            keys: Keys::new(gpu, plan, heads, passes)?,
            slots: upload(&slots)?,
            trees: plan.trees.len(),
            copies: upload(&copies)?,
            copy_starts: upload(&copy_starts(plan))?,
        })
    }
}

/// Where each tree's page copies begin in the plan's.
fn copy_starts(plan: &Plan) -> Vec<u32> {
    let mut starts = vec![0];
    let mut copies = 0;
    for tree in &plan.trees {
        let copied = |s: &&Segment| !s.start.is_multiple_of(TILE) && !s.tokens.is_empty();
        copies += plan.segments[tree.segments.clone()].iter().filter(copied).count();
        starts.push(copies as u32);
    }
    assert_eq!(copies, plan.copies.len(), "a copy for each segment that begins inside a page");
    starts
}

/// Gradients of the rotated queries and keys and of the values: dq `[T, H * d]`, dk and dv `[T, H_kv * d]`, all bf16. `lse` is the forward pass's.
///
/// # Errors
/// If a buffer does not fit the shapes, or the device failed.
///
/// # Panics
/// If the work speaks of other heads or pages than `kv`.
#[allow(clippy::too_many_arguments)] // what the equation has
pub fn backward(
    gpu: &Arc<Gpu>,
    d_o: &Buffer,
    q: &Buffer,
    o: &Buffer,
    lse: &Buffer,
    kv: &DeviceKv,
    work: &BackwardWork,
    scale: f32,
) -> Result<(Buffer, Buffer, Buffer)> {
    assert_eq!((work.group, work.num_pages), (kv.heads.group(), kv.pages), "the work was made for such heads and pages");
    let Heads { num_heads, num_kv_heads, head_dim } = kv.heads;
    let tokens = work.tokens;
    let mut dq = Buffer::uninit(gpu, DType::Bf16, tokens * num_heads * head_dim)?;
    let mut dk = Buffer::uninit(gpu, DType::Bf16, tokens * num_kv_heads * head_dim)?;
    let mut dv = Buffer::uninit(gpu, DType::Bf16, tokens * num_kv_heads * head_dim)?;
    if tokens == 0 {
        return Ok((dq, dk, dv));
    }
    let delta = deltas(gpu, d_o, o, tokens * num_heads, head_dim)?;
    let pass = Pass { gpu, d_o, q, lse, delta: &delta, kv, work, scale };
    let pages = || Buffer::uninit(gpu, DType::F32, kv.len());
    let (mut dk_pages, mut dv_pages) = (pages()?, pages()?);
    pass.run(&mut dq, &mut dk_pages, &mut dv_pages)?;
    pass.fold(&mut dk_pages, &mut dv_pages)?;
    pass.per_token(&mut dk, &mut dv, &dk_pages, &dv_pages)?;
    Ok((dq, dk, dv))
}

fn deltas(gpu: &Arc<Gpu>, d_o: &Buffer, o: &Buffer, pairs: usize, head_dim: usize) -> Result<Buffer> {
    let mut delta = Buffer::uninit(gpu, DType::F32, pairs)?;
    let kernel = Kernel { source: Source::ATTENTION_BWD, name: "attention_delta" };
    Launch::new(gpu, kernel, [pairs.div_ceil(4), 1, 1], [128, 1, 1], 0)
        .output("delta", &mut delta, DType::F32, pairs)
        .input("d_o", d_o, DType::Bf16, pairs * head_dim)
        .input("o", o, DType::Bf16, pairs * head_dim)
        .dim("pairs", pairs)
        .dim("dim", head_dim)
        .run()?;
    Ok(delta)
}

struct Pass<'a> {
    gpu: &'a Arc<Gpu>,
    d_o: &'a Buffer,
    q: &'a Buffer,
    lse: &'a Buffer,
    delta: &'a Buffer,
    kv: &'a DeviceKv,
    work: &'a BackwardWork,
    scale: f32,
}

impl Pass<'_> {
    /// A launch of the kernel for this width of a head: blocks for each kv head, threads of a block, bytes of its shared memory.
    fn launch(&self, source: Source, names: [&'static str; 3], blocks: usize, threads: usize, shared: usize) -> Launch<'_> {
        let kernel = Kernel { source, name: by_width(self.kv.heads.head_dim, names) };
        Launch::new(self.gpu, kernel, [blocks, self.kv.heads.num_kv_heads, 1], [threads, 1, 1], shared)
    }

    /// The arguments that both passes take after their outputs.
    fn inputs<'l>(&self, launch: Launch<'l>) -> Launch<'l> {
        let pairs = self.work.tokens * self.kv.heads.num_heads;
        launch
            .input("d_o", self.d_o, DType::Bf16, pairs * self.kv.heads.head_dim)
            .input("q", self.q, DType::Bf16, pairs * self.kv.heads.head_dim)
            .input("keys", &self.kv.keys, DType::Bf16, self.kv.len())
            .input("values", &self.kv.values, DType::Bf16, self.kv.len())
            .input("lse", self.lse, DType::F32, pairs)
            .input("delta", self.delta, DType::F32, pairs)
            .input("positions", &self.work.positions, DType::U32, self.work.tokens)
    }

    /// The same on Hopper: by tensor maps, of q and d_o in boxes of as many tokens as fill `pairs` pairs.
    fn inputs_by_tma<'l>(&self, launch: Launch<'l>, pairs: usize) -> Launch<'l> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.kv.heads;
        let tokens = self.work.tokens;
        let (group, slots) = (self.kv.heads.group(), self.kv.pages * num_kv_heads * TILE);
        let planes = Planes { count: tokens, of_box: pairs / group };
        launch
            .planes("d_o", self.d_o, planes, num_heads, head_dim, group)
            .planes("q", self.q, planes, num_heads, head_dim, group)
            .matrix("keys", Some(&self.kv.keys), slots, head_dim, TILE)
            .matrix("values", Some(&self.kv.values), slots, head_dim, TILE)
            .input("lse", self.lse, DType::F32, tokens * num_heads)
            .input("delta", self.delta, DType::F32, tokens * num_heads)
            .input("positions", &self.work.positions, DType::U32, tokens)
    }

    fn run(&self, dq: &mut Buffer, dk: &mut Buffer, dv: &mut Buffer) -> Result<()> {
        match &self.work.keys {
            Keys::OnePass { blocks, tiles, starts, num_tiles } => self.all_at_once([dq, dk, dv], [blocks, tiles, starts], *num_tiles),
            Keys::TwoPasses { queries, pages, runs, starts } => {
                self.queries(dq, queries)?;
                self.keys_and_values([dk, dv], [pages, runs, starts])
            }
        }
    }

    fn all_at_once(&self, [dq, dk, dv]: [&mut Buffer; 3], [blocks, tiles, starts]: [&Buffer; 3], num_tiles: usize) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.kv.heads;
        let (tokens, num_blocks) = (self.work.tokens, starts.len() - 1);
        let turns = num_tiles * num_kv_heads;
        let len = num_sums(self.kv.heads, num_tiles);
        let mut sums = Buffer::uninit(self.gpu, DType::F32, len)?;
        let mut counters = Buffer::zeros(self.gpu, DType::U32, 1 + turns)?;
        let kernel = Kernel { source: Source::ATTENTION_BWD_HOPPER, name: by_width(head_dim, HOPPER) };
        let scores = 4 * TILE * TILE * DType::Bf16.size();
        let launch = Launch::new(self.gpu, kernel, [num_blocks * num_kv_heads, 1, 1], [384, 1, 1], 8 * hopper_tile(head_dim) + scores)
            .output("dq", dq, DType::Bf16, tokens * num_heads * head_dim)
            .output("dk", dk, DType::F32, self.kv.len())
            .output("dv", dv, DType::F32, self.kv.len())
            .output("sums", &mut sums, DType::F32, len)
            .output("counters", &mut counters, DType::U32, 1 + turns);
        self.inputs_by_tma(launch, pairs_of_run(head_dim))
            .dim("tokens", tokens)
            .input("blocks", blocks, DType::U32, 6 * num_blocks)
            .input("tiles", tiles, DType::U32, tiles.len())
            .input("starts", starts, DType::U32, num_blocks + 1)
            .dim("heads", num_heads)
            .dim("kv_heads", num_kv_heads)
            .f32(self.scale)
            .run()
    }

    fn queries(&self, dq: &mut Buffer, queries: &Work) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.kv.heads;
        let launch = if queries.hopper {
            self.launch(Source::ATTENTION_BWD_Q_HOPPER, HOPPER_QUERIES, queries.num_items(), 384, 10 * hopper_tile(head_dim))
        } else {
            self.launch(Source::ATTENTION_BWD, QUERIES, queries.num_items(), 128, 6 * TILE * head_dim * DType::Bf16.size())
        };
        let launch = launch.output("dq", dq, DType::Bf16, queries.tokens * num_heads * head_dim);
        let launch = if queries.hopper { self.inputs_by_tma(launch, HOPPER_PAIRS) } else { self.inputs(launch) };
        launch
            .input("items", &queries.items, DType::U32, 5 * queries.num_items())
            .input("rows", &queries.rows, DType::U32, queries.rows.len())
            .input("pages", &queries.pages, DType::U32, queries.pages.len())
            .dim("heads", num_heads)
            .dim("kv_heads", num_kv_heads)
            .f32(self.scale)
            .run()
    }

    fn keys_and_values(&self, [dk, dv]: [&mut Buffer; 2], [pages, runs, starts]: [&Buffer; 3]) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.kv.heads;
        let (num_pages, pairs, tokens) = (self.work.num_pages, pairs_of_run(head_dim), self.work.tokens);
        let hopper = self.gpu.is_hopper();
        let launch = if hopper {
            self.launch(Source::ATTENTION_BWD_KV_HOPPER, HOPPER_PAGES, num_pages, 256, 6 * hopper_tile(head_dim))
        } else {
            self.launch(Source::ATTENTION_BWD, PAGES, num_pages, 128, (2 * TILE + 4 * pairs) * head_dim * DType::Bf16.size())
        };
        let launch = launch.output("dk", dk, DType::F32, self.kv.len()).output("dv", dv, DType::F32, self.kv.len());
        let launch = if hopper { self.inputs_by_tma(launch, pairs).dim("tokens", tokens) } else { self.inputs(launch) };
        launch
            .input("pages", pages, DType::U32, 2 * num_pages)
            .input("runs", runs, DType::U32, runs.len())
            .input("starts", starts, DType::U32, num_pages + 1)
            .dim("heads", num_heads)
            .dim("kv_heads", num_kv_heads)
            .f32(self.scale)
            .run()
    }

    /// What reached a child's copy of a partial page belongs to the parent.
    fn fold(&self, dk: &mut Buffer, dv: &mut Buffer) -> Result<()> {
        if self.work.copies.is_empty() {
            return Ok(());
        }
        let Heads { num_kv_heads, head_dim, .. } = self.kv.heads;
        let kernel = Kernel { source: Source::KV_PAGES, name: "kv_fold_f32" };
        let grid = [self.work.trees, num_kv_heads, (TILE * head_dim).div_ceil(128)];
        Launch::new(self.gpu, kernel, grid, [128, 1, 1], 0)
            .output("dk", dk, DType::F32, self.kv.len())
            .output("dv", dv, DType::F32, self.kv.len())
            .input("copies", &self.work.copies, DType::U32, self.work.copies.len())
            .input("starts", &self.work.copy_starts, DType::U32, self.work.trees + 1)
            .dim("kv_heads", num_kv_heads)
            .dim("dim", head_dim)
            .run()
    }

    fn per_token(&self, dk: &mut Buffer, dv: &mut Buffer, dk_pages: &Buffer, dv_pages: &Buffer) -> Result<()> {
        let Heads { num_kv_heads, head_dim, .. } = self.kv.heads;
        let (tokens, width) = (self.work.tokens, num_kv_heads * head_dim);
        let kernel = Kernel { source: Source::KV_PAGES, name: "kv_read_f32" };
        Launch::new(self.gpu, kernel, [tokens, width.div_ceil(128 * 8), 1], [128, 1, 1], 0)
            .output("dk", dk, DType::Bf16, tokens * width)
            .output("dv", dv, DType::Bf16, tokens * width)
            .input("dk_pages", dk_pages, DType::F32, self.kv.len())
            .input("dv_pages", dv_pages, DType::F32, self.kv.len())
            .input("slots", &self.work.slots, DType::U32, 2 * tokens)
            .dim("kv_heads", num_kv_heads)
            .dim("dim", head_dim)
            .run()
    }
}
