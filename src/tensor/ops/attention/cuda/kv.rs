//! Pages of keys and values in device memory.

use crate::Result;
use crate::tensor::cuda::{Buffer, DType, Gpu, Kernel, Launch, Source};
use crate::tensor::ops::attention::Heads;
use crate::tensor::plan::{PageCopy, TILE};
use std::collections::HashMap;
use std::sync::Arc;

/// The page of a row whose key and value are not written: it only fills a batch of fixed size (`NOWHERE` of the kernel).
pub const NOWHERE: u32 = u32::MAX;

/// Keys and values of one layer on a device: each `[pages, H_kv, TILE, d]` bf16.
#[derive(Debug)]
pub struct DeviceKv {
    pub(super) heads: Heads,
    pub(super) pages: usize,
    pub(super) keys: Buffer,
    pub(super) values: Buffer,
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
