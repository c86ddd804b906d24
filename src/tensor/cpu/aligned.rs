//! Memory that starts on a cache line.

/// 64 bytes.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A growable array of f32 on a 64-byte boundary; its length is rounded up to whole cache lines.
#[derive(Clone, Default)]
pub struct AlignedVec {
    lines: Vec<Line>,
}

impl AlignedVec {
    /// At least `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![bytemuck::Zeroable::zeroed(); len.div_ceil(16)] }
    }

    /// Grows to at least `len` numbers; the new ones are zero.
    pub fn grow(&mut self, len: usize) {
        let lines = len.div_ceil(16).max(self.lines.len());
        self.lines.resize(lines, bytemuck::Zeroable::zeroed());
    }
}

impl std::ops::Deref for AlignedVec {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl std::ops::DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
