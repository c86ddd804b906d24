//! Memory that starts on a cache line.

use memmap2::MmapMut;
use std::sync::atomic::{AtomicUsize, Ordering};

/// 64 bytes.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// An array of f32 on a 64-byte boundary; its length is rounded up to whole cache lines.
#[derive(Clone)]
pub struct AlignedVec(Memory);

enum Memory {
    /// From the allocator, growable.
    Heap(Vec<Line>),
    /// From the system, in large pages where it has them: reading many megabytes in order is faster so. The numbers start at a byte that
    /// differs from one array to the next: what is worked on side by side (a weight, its gradient, its moments) would otherwise have
    /// equal addresses within a page, and wait for one another.
    Pages(Mapped, usize),
}

/// Memory from the system, counted.
struct Mapped(MmapMut);

/// Bytes that all [`Mapped`] hold.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

impl Mapped {
    fn new(bytes: usize) -> Option<Self> {
        let pages = MmapMut::map_anon(bytes).ok()?;
        // Only a wish: the system may have no large pages.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        MAPPED.fetch_add(pages.len(), Ordering::Relaxed);
        Some(Self(pages))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        MAPPED.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

/// Bytes of the arrays that come from the system and not from the allocator; the two together are what the program holds.
pub fn mapped_bytes() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// Bytes from which on lasting memory comes in pages of its own.
const LARGE: usize = 1 << 20;
const PAGE: usize = 4096;
/// How many different starts there are.
const STARTS: usize = 8;

impl AlignedVec {
    /// At least `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self(Memory::Heap(vec![bytemuck::Zeroable::zeroed(); len.div_ceil(16)]))
    }

    /// At least `len` zeros that are to stay for long: weights and what is kept beside them.
    pub fn lasting(len: usize) -> Self {
        static ARRAYS: AtomicUsize = AtomicUsize::new(0);
        let bytes = len.div_ceil(16) * size_of::<Line>();
        let start = ARRAYS.fetch_add(1, Ordering::Relaxed) % STARTS * (PAGE / STARTS);
        match (bytes >= LARGE).then(|| Mapped::new(start + bytes)).flatten() {
            Some(pages) => Self(Memory::Pages(pages, start)),
            None => Self::zeros(len),
        }
    }

    /// Grows to at least `len` numbers; the new ones are zero.
    pub fn grow(&mut self, len: usize) {
        if let Memory::Pages(pages, start) = &self.0 {
            self.0 = Memory::Heap(bytemuck::cast_slice(&pages.0[*start..]).to_vec());
        }
        if let Memory::Heap(lines) = &mut self.0 {
            lines.resize(len.div_ceil(16).max(lines.len()), bytemuck::Zeroable::zeroed());
        }
    }
}

impl Default for AlignedVec {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        match self {
            Self::Heap(lines) => Self::Heap(lines.clone()),
            Self::Pages(pages, start) => {
                let numbers: &[f32] = bytemuck::cast_slice(&pages.0[*start..]);
                let mut copy = AlignedVec::lasting(numbers.len());
                copy.copy_from_slice(numbers);
                copy.0
            }
        }
    }
}

impl std::ops::Deref for AlignedVec {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.0 {
            Memory::Heap(lines) => bytemuck::cast_slice(lines),
            Memory::Pages(pages, start) => bytemuck::cast_slice(&pages.0[*start..]),
        }
    }
}

impl std::ops::DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Memory::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Memory::Pages(pages, start) => bytemuck::cast_slice_mut(&mut pages.0[*start..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_is_zero_aligned_and_copied() {
        let mut large = AlignedVec::lasting(LARGE / 4 + 3);
        assert_eq!((large.len(), large.as_ptr() as usize % 64), (LARGE / 4 + 16, 0));
        assert!(matches!(large.0, Memory::Pages(..)) && large.iter().all(|x| *x == 0.0));
        large[7] = 1.0;
        let mut copy = large.clone();
        copy.grow(LARGE / 4 + 100);
        assert_eq!((copy[7], copy[LARGE / 4 + 99]), (1.0, 0.0));
    }
}
