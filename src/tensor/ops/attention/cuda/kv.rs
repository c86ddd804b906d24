//! Pages of keys and values in device memory.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::rope::cuda::DeviceAngles;
use crate::tensor::plan::{PageCopy, TILE};
use std::collections::HashMap;
use std::sync::Arc;

/// The page of a row whose key and value are not written: it only fills a batch of fixed size (`NOWHERE` of the kernel).
pub const NOWHERE: u32 = u32::MAX;

/// Warps of a block that turns and writes, each with a head (`WARPS` of the kernel).
const HEADS_OF_BLOCK: usize = 4;

/// Keys and values of one layer on a device: each `[pages, H_kv, TILE, d]` bf16.
#[derive(Debug)]
pub struct DeviceKv {
    pub(super) heads: Heads,
    pub(super) pages: usize,
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
}

/// The per-head norms of q and k, `[d]` bf16 each.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// Of q.
    pub q: &'a Buffer,
    /// Of k.
    pub k: &'a Buffer,
    /// What is added to the mean of the squares.
    pub eps: f32,
}

/// A batch's page copies on the device. Those of one level do not depend on each other; the next level copies what they made.
#[derive(Debug, Default)]
pub struct PageCopies {
    levels: Vec<(usize, Buffer)>,
}

impl PageCopies {
    /// Sorts the copies by level and uploads them.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn new(gpu: &Arc<Gpu>, copies: &[PageCopy]) -> Result<Self> {
        let mut level_of_page = HashMap::new();
        let mut levels: Vec<Vec<u32>> = Vec::new();
        for copy in copies {
            let level = level_of_page.get(&copy.from).map_or(0, |l| l + 1);
            level_of_page.insert(copy.to, level);
            levels.resize(levels.len().max(level + 1), Vec::new());
            levels[level].extend([copy.from, copy.to, copy.slots]);
        }
        let levels = levels.iter().map(|l| Ok((l.len() / 3, Buffer::from_u32(gpu, l)?))).collect::<Result<_>>()?;
        Ok(Self { levels })
    }
}

impl DeviceKv {
    /// Room for `pages` pages, with undefined contents: attention reads only what was written. On Hopper, whose TMA copies whole pages, zeros.
    ///
    /// # Errors
    /// If the kernels do not know such heads, or the device is out of memory.
    pub fn new(gpu: &Arc<Gpu>, heads: Heads, pages: usize) -> Result<Self> {
        super::check(heads)?;
        let new = if gpu.is_hopper() { Buffer::zeros } else { Buffer::uninit };
        let numbers = || new(gpu, DType::Bf16, pages * heads.num_kv_heads * TILE * heads.head_dim);
        Ok(Self { heads, pages, keys: numbers()?, values: numbers()? })
    }

    /// Makes room for at least `pages` pages; the contents stay, and what is new is zero.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    pub fn grow(&mut self, pages: usize) -> Result<()> {
        if pages <= self.pages {
            return Ok(());
        }
        let gpu = self.keys.gpu().clone();
        let len = pages * self.heads.num_kv_heads * TILE * self.heads.head_dim;
        for buffer in [&mut self.keys, &mut self.values] {
            let mut larger = Buffer::zeros(&gpu, DType::Bf16, len)?;
            larger.copy_from(buffer)?;
            *buffer = larger;
        }
        self.pages = pages;
        Ok(())
    }

    /// How many pages there is room for.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Whose memory it is.
    pub fn gpu(&self) -> &Arc<Gpu> {
        self.keys.gpu()
    }

    /// All keys and all values, as they lie.
    ///
    /// # Errors
    /// If the device failed, or there is a number that was never written (on the emulator).
    pub fn numbers(&self) -> Result<[Vec<f32>; 2]> {
        Ok([self.keys.to_f32()?, self.values.to_f32()?])
    }

    /// Elements of the keys, and of the values.
    pub(super) fn len(&self) -> usize {
        self.pages * self.heads.num_kv_heads * TILE * self.heads.head_dim
    }

    /// Writes each token's key and value, k and v `[T, H_kv * d]` bf16, to its (page, slot): `slots [T, 2]`.
    ///
    /// # Errors
    /// If a buffer does not fit, or the device failed.
    pub fn write(&mut self, slots: &Buffer, k: &Buffer, v: &Buffer) -> Result<()> {
        let (tokens, width, len) = (slots.len() / 2, self.heads.num_kv_heads * self.heads.head_dim, self.len());
        if tokens == 0 {
            return Ok(());
        }
        let gpu = self.keys.gpu().clone();
        let kernel = Kernel { source: Source::KV_PAGES, name: "kv_write_bf16" };
        Launch::new(&gpu, kernel, [tokens, width.div_ceil(128 * 8), 1], [128, 1, 1], 0)
            .output("keys", &mut self.keys, DType::Bf16, len)
            .output("values", &mut self.values, DType::Bf16, len)
            .input("k", k, DType::Bf16, tokens * width)
            .input("v", v, DType::Bf16, tokens * width)
            .input("slots", slots, DType::U32, 2 * tokens)
            .dim("kv_heads", self.heads.num_kv_heads)
            .dim("dim", self.heads.head_dim)
            .run()
    }

    /// All between the products q `[T, H * d]`, k and v `[T, H_kv * d]` bf16 and attention in one launch: the per-head norms of q and k, where there are
    /// any, their turns by the tokens' angles, q's in place, and [`DeviceKv::write`]. The same bits as one by one.
    ///
    /// # Errors
    /// If a buffer does not fit, or the device failed.
    pub fn turn_and_write(
        &mut self,
        q: &mut Buffer,
        k: &Buffer,
        v: &Buffer,
        norms: Option<HeadNorms<'_>>,
        angles: &DeviceAngles,
        slots: &Buffer,
    ) -> Result<()> {
        let Heads { num_heads, num_kv_heads, head_dim } = self.heads;
        let (tokens, width, len) = (slots.len() / 2, num_kv_heads * head_dim, self.len());
        if tokens == 0 {
            return Ok(());
        }
        let gpu = self.keys.gpu().clone();
        let kernel = Kernel { source: Source::QKV, name: "qkv_bf16" };
        let grid = [(tokens * (num_heads + 2 * num_kv_heads)).div_ceil(HEADS_OF_BLOCK), 1, 1];
        Launch::new(&gpu, kernel, grid, [32 * HEADS_OF_BLOCK, 1, 1], 0)
            .waits()
            .output("q", q, DType::Bf16, tokens * num_heads * head_dim)
            .output("keys", &mut self.keys, DType::Bf16, len)
            .output("values", &mut self.values, DType::Bf16, len)
            .input("k", k, DType::Bf16, tokens * width)
            .input("v", v, DType::Bf16, tokens * width)
            .optional_input("the norm of q", norms.map(|n| n.q), DType::Bf16, head_dim)
            .optional_input("the norm of k", norms.map(|n| n.k), DType::Bf16, head_dim)
            .input("angles", angles.table(), DType::F32, tokens * head_dim)
            .input("slots", slots, DType::U32, 2 * tokens)
            .dim("tokens", tokens)
            .dim("heads", num_heads)
            .dim("kv_heads", num_kv_heads)
            .dim("dim", head_dim)
            .f32(norms.map_or(0.0, |n| n.eps))
            .run()
    }

    /// Copies partial pages from parents to children.
    ///
    /// # Errors
    /// If the device failed.
    pub fn copy(&mut self, copies: &PageCopies) -> Result<()> {
        let (gpu, len) = (self.keys.gpu().clone(), self.len());
        for (count, level) in &copies.levels {
            let kernel = Kernel { source: Source::KV_PAGES, name: "kv_copy_bf16" };
            Launch::new(&gpu, kernel, [*count, self.heads.num_kv_heads, 1], [128, 1, 1], 0)
                .output("keys", &mut self.keys, DType::Bf16, len)
                .output("values", &mut self.values, DType::Bf16, len)
                .input("copies", level, DType::U32, 3 * count)
                .dim("kv_heads", self.heads.num_kv_heads)
                .dim("dim", self.heads.head_dim)
                .run()?;
        }
        Ok(())
    }
}
