//! Work units for rayon. Which thread runs a unit never changes a number: units write disjoint outputs, and no sum crosses a unit.

use rayon::prelude::*;

/// Elements that one unit of an elementwise op works on.
pub const ELEMENTS: usize = 16 * 1024;

/// Calls `f(first_row, rows)` for consecutive blocks of whole rows of `out` (`width` numbers a row), in parallel.
pub fn over_rows(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let rows = (ELEMENTS / width.max(1)).max(1);
    if out.len() <= rows * width {
        return f(0, out);
    }
    out.par_chunks_mut(rows * width).enumerate().for_each(|(i, block)| f(i * rows, block));
}

/// Calls `f(i)` for `i` in `0..n`, in parallel where there is more than one.
pub fn over_units(n: usize, f: impl Fn(usize) + Sync + Send) {
    if n <= 1 {
        return (0..n).for_each(f);
    }
    (0..n).into_par_iter().for_each(f);
}

/// A vector of `len` numbers that `write` sets: what filling it with zeros first would cost is saved.
///
/// # Safety
/// `write` must write every number, through [`SharedMut::pointer`], and read none before.
pub unsafe fn written(len: usize, write: impl FnOnce(SharedMut<f32>)) -> Vec<f32> {
    let mut out = Vec::with_capacity(len);
    write(SharedMut(out.as_mut_ptr(), len));
    // SAFETY: the capacity is there, and `write` has written all of it.
    unsafe { out.set_len(len) };
    out
}

/// A pointer that work units write through, each to its own part.
#[derive(Clone, Copy)]
pub struct SharedMut<T>(*mut T, usize);

// SAFETY: the pointer is only dereferenced through `slice`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `data` among work units.
    pub fn new(data: &mut [T]) -> Self {
        Self(data.as_mut_ptr(), data.len())
    }

    /// Shares what `out` has room for, none of it written yet: to be written through [`SharedMut::pointer`].
    pub fn spare(out: &mut Vec<T>) -> Self {
        Self(out.as_mut_ptr(), out.capacity())
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two live slices may overlap, and the slice that was shared must outlive them.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "{start}+{len} of {}", self.1);
        // SAFETY: in bounds by the assertion; disjoint and alive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// A pointer to element `start`.
    pub fn pointer(&self, start: usize) -> *mut T {
        assert!(start <= self.1);
        self.0.wrapping_add(start)
    }
}
