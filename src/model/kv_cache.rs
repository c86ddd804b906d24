//! The KV cache of generation: pages that sequences share and give back.

use crate::tensor::ops::attention::{Heads, KvLayer};
use crate::tensor::plan::{PageCopy, TILE};

/// Pages of all layers, with the number of sequences that use each.
pub(crate) struct KvCache {
    pub layers: Vec<KvLayer>,
    users: Vec<u32>,
    free: Vec<u32>,
    /// Beyond it the cache grows page by page.
    limit: usize,
}

impl KvCache {
    pub fn new(heads: Heads, num_layers: usize) -> Self {
        Self { layers: vec![KvLayer::new(heads, 0); num_layers], users: Vec::new(), free: Vec::new(), limit: usize::MAX }
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
    pub fn extend(&mut self, pages: &mut Vec<u32>, len: usize) {
        while pages.len() * TILE < len {
            pages.push(self.take());
        }
    }

    /// The pages of a child that goes on from position `len` of a parent: whole pages shared, the partial one copied.
    pub fn fork(&mut self, pages: &[u32], len: usize) -> Vec<u32> {
        let whole = len / TILE;
        let mut child = pages[..whole].to_vec();
        for &page in &child {
            self.users[page as usize] += 1;
        }
        if !len.is_multiple_of(TILE) {
            let to = self.take();
            let copy = PageCopy { from: pages[whole], to, slots: (len % TILE) as u32 };
            self.layers.iter_mut().for_each(|l| l.copy(&[copy]));
            child.push(to);
        }
        child
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

    fn take(&mut self) -> u32 {
        if self.free.is_empty() {
            let (old, new) = (self.users.len(), (self.users.len() * 3 / 2 + 8).min(self.limit).max(self.users.len() + 1));
            self.users.resize(new, 0);
            self.layers.iter_mut().for_each(|l| l.grow(new));
            self.free.extend((old..new).rev().map(|p| p as u32));
        }
        let page = self.free.pop().expect("pages were added");
        self.users[page as usize] = 1;
        page
    }
}
