//! The micro-kernel of the matrix product: a tile of up to [`max_rows`] x 32 outputs, all of whose sums stay in registers.
//!
//! Each output is one chain: `acc = 0; for k in 0..K { acc = fma(a[k], b[k], acc) }`, then `c = acc` or `c += acc`. The chain is the same
//! in every instruction set and for every number of rows, so an output's bits do not depend on which kernel computed it.
//!
//! The dev profile, which the quickstart is built with, checks for overflow and what the library's unsafe functions ask for. Inside these loops
//! that costs two thirds of the speed (sums go through memory before whatever may panic), so pointers wrap, and are read as arrays.

use crate::tensor::cpu::panels::PANEL;
use crate::tensor::cpu::{Isa, isa};

/// One tile: `c[i][j] (+)= sum_k a[k * lda + i] * b[k * ldb + j]` for `j < lanes`.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub k: usize,
    pub a: *const f32,
    pub lda: usize,
    pub b: *const f32,
    pub ldb: usize,
    pub c: *mut f32,
    pub ldc: usize,
    /// Columns of `c` that are written, at most 32. `b` must have all 32 readable.
    pub lanes: usize,
    /// Add to `c` instead of replacing it.
    pub add: bool,
}

pub(crate) type Kernel = unsafe fn(&Tile);

/// Rows of the largest tile: what the registers hold.
pub(crate) fn max_rows() -> usize {
    match isa() {
        Isa::Avx512 => 14,
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// With few rows a product waits for memory, and the weights are fetched ahead: this many numbers (16 kB).
#[cfg(target_arch = "x86_64")]
const PREFETCH: usize = 4096;
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 8;

/// The instance for a number of rows of a micro-kernel `Kernel` that is written for each instruction set, of the best one that is here.
macro_rules! instance {
    ($rows:expr; avx512: $($wide:literal)*; avx2: $($half:literal)*; portable: $($plain:literal)*) => {{
        use $crate::tensor::cpu::{Isa, isa};
        static PORTABLE: &[Kernel] = &[$(portable::<$plain>),*];
        #[cfg(target_arch = "x86_64")]
        static AVX512: &[Kernel] = &[$(avx512::<$wide>),*];
        #[cfg(target_arch = "x86_64")]
        static AVX2: &[Kernel] = &[$(avx2::<$half>),*];
        match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => AVX512[$rows - 1],
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => AVX2[$rows - 1],
            _ => PORTABLE[$rows - 1],
        }
    }};
}
pub(crate) use instance;

/// The kernel for tiles of `rows` rows, `1 <= rows <= max_rows()`.
///
/// Calling it is safe where `a` has `rows` readable numbers at each of its `k` steps, `b` 32, and `c` is writable in `rows` x `lanes`.
pub(crate) fn kernel(rows: usize) -> Kernel {
    instance!(rows; avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14; avx2: 1 2 3 4 5 6; portable: 1 2 3 4)
}

unsafe fn portable<const R: usize>(t: &Tile) {
    let mut acc = [[0.0f32; PANEL]; R];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.k {
        // SAFETY: the caller promises 32 readable numbers of b and R of a at each step.
        let (x, b_now) = unsafe { (*a.cast::<[f32; R]>(), &*b.cast::<[f32; PANEL]>()) };
        for (acc, x) in acc.iter_mut().zip(x) {
            for (acc, b) in acc.iter_mut().zip(b_now) {
                *acc = x.mul_add(*b, *acc);
            }
        }
        a = a.wrapping_add(t.lda);
        b = b.wrapping_add(t.ldb);
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: as above.
        unsafe { write_lanes(t, i, acc) };
    }
}

/// Writes or adds the first `lanes` numbers of a row.
unsafe fn write_lanes(t: &Tile, i: usize, acc: &[f32; PANEL]) {
    // SAFETY: the caller promises that `c` is writable in rows x lanes.
    let c = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.ldc), t.lanes) };
    for (c, x) in c.iter_mut().zip(acc) {
        *c = if t.add { *c + x } else { *x };
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(t: &Tile) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let mut acc = [[_mm512_setzero_ps(); 2]; R];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.k {
        // SAFETY: the caller promises 32 readable numbers of b and R of a at each step; a prefetch may point anywhere. 16 numbers are a vector.
        let (x, b0, b1) = unsafe {
            if R <= FEW_ROWS {
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(PREFETCH).cast());
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(PREFETCH + 16).cast());
            }
            let [b0, b1] = *b.cast::<[[f32; 16]; 2]>();
            (*a.cast::<[f32; R]>(), transmute::<[f32; 16], __m512>(b0), transmute::<[f32; 16], __m512>(b1))
        };
        for (acc, x) in acc.iter_mut().zip(x) {
            let x = _mm512_set1_ps(x);
            acc[0] = _mm512_fmadd_ps(x, b0, acc[0]);
            acc[1] = _mm512_fmadd_ps(x, b1, acc[1]);
        }
        a = a.wrapping_add(t.lda);
        b = b.wrapping_add(t.ldb);
    }
    let mask = |from: usize| ((1u32 << t.lanes.saturating_sub(from).min(16)) - 1) as __mmask16;
    let (m0, m1) = (mask(0), mask(16));
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: masked to the lanes that the caller promises.
        unsafe {
            let c = t.c.add(i * t.ldc);
            let (mut x0, mut x1) = (acc[0], acc[1]);
            if t.add {
                x0 = _mm512_add_ps(_mm512_maskz_loadu_ps(m0, c), x0);
                x1 = _mm512_add_ps(_mm512_maskz_loadu_ps(m1, c.wrapping_add(16)), x1);
            }
            _mm512_mask_storeu_ps(c, m0, x0);
            _mm512_mask_storeu_ps(c.wrapping_add(16), m1, x1);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(t: &Tile) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let mut out = [[0.0f32; PANEL]; R];
    // Two passes of 16 columns: 6 x 2 sums, 2 columns vectors and a broadcast fit the 16 registers.
    for half in [0, 16] {
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        let (mut a, mut b) = (t.a, t.b.wrapping_add(half));
        for _ in 0..t.k {
            // SAFETY: the caller promises 32 readable numbers of b and R of a at each step. 8 numbers are a vector.
            let (x, b0, b1) = unsafe {
                let [b0, b1] = *b.cast::<[[f32; 8]; 2]>();
                (*a.cast::<[f32; R]>(), transmute::<[f32; 8], __m256>(b0), transmute::<[f32; 8], __m256>(b1))
            };
            for (acc, x) in acc.iter_mut().zip(x) {
                let x = _mm256_set1_ps(x);
                acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
            }
            a = a.wrapping_add(t.lda);
            b = b.wrapping_add(t.ldb);
        }
        for (out, acc) in out.iter_mut().zip(&acc) {
            // SAFETY: `out` has 32 numbers.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().add(half), acc[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(half + 8), acc[1]);
            }
        }
    }
    for (i, out) in out.iter().enumerate() {
        // SAFETY: the caller promises the tile's extents.
        unsafe { write_lanes(t, i, out) };
    }
}
