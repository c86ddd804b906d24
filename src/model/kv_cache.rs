//! The KV cache of generation: pages that sequences share and give back.

use crate::Result;
use crate::tensor::cuda::Gpu;
use crate::tensor::ops::attention::cuda::{DeviceKv, PageCopies};
use crate::tensor::ops::attention::{Heads, KvLayer};
use crate::tensor::plan::{PageCopy, TILE};
use std::sync::Arc;

/// The pages of all layers, where the model is.
pub(crate) enum KvLayers {
    Cpu(Vec<KvLayer>),
    /// Made when the first page is needed, which may fail.
    Device(Vec<DeviceKv>),
}

impl KvLayers {
    fn copy(&mut self, copies: &[PageCopy]) -> Result<()> {
        match self {
            KvLayers::Cpu(layers) => layers.iter_mut().for_each(|l| l.copy(copies)),
            KvLayers::Device(layers) => {
                let Some(first) = layers.first() else { return Ok(()) };
                let copies = PageCopies::new(first.gpu(), copies)?;
                layers.iter_mut().try_for_each(|l| l.copy(&copies))?;
            }
        }
        Ok(())
    }

    fn grow(&mut self, pages: usize) -> Result<()> {
        match self {
            KvLayers::Cpu(layers) => layers.iter_mut().for_each(|l| l.grow(pages)),
            KvLayers::Device(layers) => layers.iter_mut().try_for_each(|l| l.grow(pages))?,
        }
        Ok(())
    }
}

/// Pages of all layers, with the number of sequences that use each.
pub(crate) struct KvCache {
    pub layers: KvLayers,
    /// What the layers of a device are made from.
    device: Option<(Arc<Gpu>, Heads, usize)>,
    users: Vec<u32>,
    free: Vec<u32>,
    /// What [`KvCache::copy_forked`] has to do.
    forked: Vec<PageCopy>,
    /// Beyond it the cache grows page by page.
    limit: usize,
}

impl KvCache {
    pub fn new(gpu: Option<&Arc<Gpu>>, heads: Heads, num_layers: usize) -> Self {
        let layers = match gpu {
            None => KvLayers::Cpu(vec![KvLayer::new(heads, 0); num_layers]),
            Some(_) => KvLayers::Device(Vec::new()),
        };
        let device = gpu.map(|gpu| (gpu.clone(), heads, num_layers));
        Self { layers, device, users: Vec::new(), free: Vec::new(), forked: Vec::new(), limit: usize::MAX }
    }

    /// How many pages are wanted at most: the cache grows ahead of need, but not beyond them.
    pub fn limit(&mut self, pages: usize) {
        self.limit = pages;
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.users.len() - self.free.len()
    }

    /// Makes `pages` cover `len` positions.
    pub fn extend(&mut self, pages: &mut Vec<u32>, len: usize) -> Result<()> {
        while pages.len() * TILE < len {
            pages.push(self.take()?);
        }
        Ok(())
    }

    /// The pages of a child that goes on from position `len` of a parent: whole pages shared, the partial one copied by the next
    /// [`KvCache::copy_forked`], until when the parent's is not to be released.
    pub fn fork(&mut self, pages: &[u32], len: usize) -> Result<Vec<u32>> {
        let whole = len / TILE;
        let mut child = pages[..whole].to_vec();
        for &page in &child {
            self.users[page as usize] += 1;
        }
        if !len.is_multiple_of(TILE) {
            let to = self.take()?;
            self.forked.push(PageCopy { from: pages[whole], to, slots: (len % TILE) as u32 });
            child.push(to);
        }
        Ok(child)
    }

    /// Copies the partial pages of all children that were forked, at once.
    pub fn copy_forked(&mut self) -> Result<()> {
        let copies = std::mem::take(&mut self.forked);
        if copies.is_empty() { Ok(()) } else { self.layers.copy(&copies) }
    }

    /// Gives a sequence's pages back.
    pub fn release(&mut self, pages: &[u32]) {
        for &page in pages {
            self.users[page as usize] -= 1;
            if self.users[page as usize] == 0 {
                self.free.push(page);
            }
        }
    }

    fn take(&mut self) -> Result<u32> {
        if self.free.is_empty() {
            let (old, new) = (self.users.len(), (self.users.len() * 3 / 2 + 8).min(self.limit).max(self.users.len() + 1));
            if let (KvLayers::Device(layers), Some((gpu, heads, count))) = (&mut self.layers, &self.device) {
                while layers.len() < *count {
                    layers.push(DeviceKv::new(gpu, *heads, 0)?);
                }
            }
            self.layers.grow(new)?;
            self.users.resize(new, 0);
            self.free.extend((old..new).rev().map(|p| p as u32));
        }
        let page = self.free.pop().expect("pages were added");
        self.users[page as usize] = 1;
        Ok(page)
    }
}
