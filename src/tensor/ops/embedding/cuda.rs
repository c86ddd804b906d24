//! The embedding on a CUDA device: launches of `kernels/embedding.cu`, which has the equations and the order of every sum.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use std::sync::Arc;

/// Columns of a block of 128 threads.
const COLUMNS: usize = 128 * 8;
/// Rows that one launch takes: the limit of a grid's second dimension.
const ROWS: usize = 65535;

/// The ids of a batch's tokens on the device, and its tokens grouped by id for the gradient. Made once a batch.
#[derive(Debug)]
pub struct DeviceIds {
    /// Runs of at most [`ROWS`] tokens.
    ids: Vec<(usize, Buffer)>,
    groups: Vec<Groups>,
    tokens: usize,
    vocab: usize,
}

/// At most [`ROWS`] different ids with their tokens.
#[derive(Debug)]
struct Groups {
    count: usize,
    order: Buffer,
    starts: Buffer,
    rows: Buffer,
}

impl DeviceIds {
    /// Groups and uploads the ids of tokens of a vocabulary of `vocab`.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    ///
    /// # Panics
    /// If an id is not in the vocabulary.
    pub fn new(gpu: &Arc<Gpu>, ids: &[u32], vocab: usize) -> Result<Self> {
        assert!(ids.iter().all(|id| (*id as usize) < vocab), "ids of a vocabulary of {vocab}");
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_by_key(|t| ids[*t as usize]); // stable: tokens of one id stay in order
        let by_id: Vec<&[u32]> = order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]).collect();
        let groups = by_id.chunks(ROWS).map(|groups| {
            let mut starts = vec![0];
            starts.extend(groups.iter().scan(0, |end, g| {
                *end += g.len() as u32;
                Some(*end)
            }));
            let rows: Vec<u32> = groups.iter().map(|g| ids[g[0] as usize]).collect();
            Ok(Groups {
                count: groups.len(),
                order: Buffer::from_u32(gpu, &groups.concat())?,
                starts: Buffer::from_u32(gpu, &starts)?,
                rows: Buffer::from_u32(gpu, &rows)?,
            })
        });
        let groups = groups.collect::<Result<_>>()?;
        let ids_on_device =
            ids.chunks(ROWS).enumerate().map(|(i, run)| Ok((i * ROWS, Buffer::from_u32(gpu, run)?))).collect::<Result<_>>()?;
        Ok(Self { ids: ids_on_device, groups, tokens: ids.len(), vocab })
    }
}

impl DeviceIds {
    /// The ids of as many tokens as the buffer has, for [`forward`] alone; they are in a vocabulary of `vocab`.
    pub fn of(ids: Buffer, vocab: usize) -> Self {
        Self { tokens: ids.len(), ids: vec![(0, ids)], groups: Vec::new(), vocab }
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// x `[T, cols]`: the rows of w `[V, cols]`, both bf16.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn forward(gpu: &Arc<Gpu>, w: &Buffer, ids: &DeviceIds, cols: usize) -> Result<Buffer> {
    let mut x = Buffer::uninit(gpu, DType::Bf16, ids.tokens * cols)?;
    for (first, run) in ids.ids.iter().filter(|_| cols > 0) {
        launch(gpu, "embedding_fwd_bf16", cols, run.len())
            .output_from("x", &mut x, DType::Bf16, first * cols, run.len() * cols)
            .input("w", w, DType::Bf16, ids.vocab * cols)
            .input("ids", run, DType::U32, run.len())
            .dim("cols", cols)
            .run()?;
    }
    Ok(x)
}

/// Adds the gradient dx `[T, cols]` bf16 of the rows to d `[V, cols]` f32.
///
/// # Errors
/// If a buffer does not fit, or the device failed.
pub fn backward(gpu: &Arc<Gpu>, d: &mut Buffer, dx: &Buffer, ids: &DeviceIds, cols: usize) -> Result<()> {
    for g in ids.groups.iter().filter(|_| cols > 0) {
        launch(gpu, "embedding_bwd_f32", cols, g.count)
            .output("d", d, DType::F32, ids.vocab * cols)
            .input("dx", dx, DType::Bf16, ids.tokens * cols)
            .input("order", &g.order, DType::U32, g.order.len())
            .input("starts", &g.starts, DType::U32, g.count + 1)
            .input("rows", &g.rows, DType::U32, g.count)
            .dim("cols", cols)
            .run()?;
    }
    Ok(())
}

fn launch<'a>(gpu: &'a Gpu, name: &'static str, cols: usize, rows: usize) -> Launch<'a> {
    Launch::new(gpu, Kernel { source: Source::EMBEDDING, name }, [cols.div_ceil(COLUMNS), rows, 1], [128, 1, 1], 0)
}
