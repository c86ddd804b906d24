//! Pages of keys and values of one layer.

use crate::tensor::Tensor;
use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::ops::attention::Heads;
use crate::tensor::plan::{PageCopy, TILE};

/// Keys and values of one layer, in pages of [`TILE`] positions. A page holds, for each kv head, the keys transposed `[d][TILE]` (the lanes
/// of a score product are different keys) and the values `[TILE][d rounded up to 32]`.
#[derive(Clone)]
pub struct KvLayer {
    pub(super) heads: Heads,
    pages: usize,
    keys: AlignedVec,
    values: AlignedVec,
}

impl std::fmt::Debug for KvLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvLayer({} pages)", self.pages)
    }
}

impl KvLayer {
    /// `pages` pages of zeros.
    pub fn new(heads: Heads, pages: usize) -> Self {
        let mut layer = Self { heads, pages: 0, keys: AlignedVec::default(), values: AlignedVec::default() };
        layer.grow(pages);
        layer
    }

    /// Makes room for at least `pages` pages.
    pub fn grow(&mut self, pages: usize) {
        self.pages = self.pages.max(pages);
        self.keys.grow(self.pages * self.heads.num_kv_heads * self.key_size());
        self.values.grow(self.pages * self.heads.num_kv_heads * self.value_size());
    }

    /// Bytes that `pages` pages take.
    pub fn bytes(heads: Heads, pages: usize) -> usize {
        pages * heads.num_kv_heads * TILE * (heads.head_dim + heads.head_dim.next_multiple_of(32)) * 4
    }

    /// Row stride of a page's values: the head's width rounded up to 32.
    pub(super) fn stride(&self) -> usize {
        self.heads.head_dim.next_multiple_of(32)
    }

    fn key_size(&self) -> usize {
        self.heads.head_dim * TILE
    }

    pub(super) fn value_size(&self) -> usize {
        self.stride() * TILE
    }

    /// A page's keys for one kv head, `[d][TILE]`.
    pub(super) fn keys(&self, page: u32, kv_head: usize) -> &[f32] {
        let size = self.key_size();
        &self.keys[(page as usize * self.heads.num_kv_heads + kv_head) * size..][..size]
    }

    /// A page's values for one kv head, `[TILE][stride]`.
    pub(super) fn values(&self, page: u32, kv_head: usize) -> &[f32] {
        let size = self.value_size();
        &self.values[(page as usize * self.heads.num_kv_heads + kv_head) * size..][..size]
    }

    /// Writes each token's key and value, k and v `[T, H_kv * d]`, to its (page, slot).
    pub fn write(&mut self, slots: &[(u32, u32)], k: &Tensor, v: &Tensor) {
        let (d, stride, heads) = (self.heads.head_dim, self.stride(), self.heads.num_kv_heads);
        let (key_size, value_size) = (self.key_size(), self.value_size());
        for (t, &(page, slot)) in slots.iter().enumerate() {
            for h in 0..heads {
                let at = page as usize * heads + h;
                let row = t * heads * d + h * d..t * heads * d + (h + 1) * d;
                let keys = &mut self.keys[at * key_size..][..key_size];
                for (i, x) in k.data()[row.clone()].iter().enumerate() {
                    keys[i * TILE + slot as usize] = *x;
                }
                self.values[at * value_size + slot as usize * stride..][..d].copy_from_slice(&v.data()[row]);
            }
        }
    }

    /// Copies partial pages from parents to children.
    pub fn copy(&mut self, copies: &[PageCopy]) {
        let (stride, heads) = (self.stride(), self.heads.num_kv_heads);
        let (key_size, value_size) = (self.key_size(), self.value_size());
        for c in copies {
            let slots = c.slots as usize;
            for h in 0..heads {
                let (from, to) = (c.from as usize * heads + h, c.to as usize * heads + h);
                for i in 0..self.heads.head_dim {
                    let line = from * key_size + i * TILE;
                    self.keys.copy_within(line..line + slots, to * key_size + i * TILE);
                }
                self.values.copy_within(from * value_size..from * value_size + slots * stride, to * value_size);
            }
        }
    }
}
