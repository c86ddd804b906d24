//! The micro-kernel where there is no AMX: up to [`max_rows`] x 16 outputs, whose even and odd chains stay in registers over a chunk.
//!
//! Products of bf16 are exact in f32, so a fused multiply-add of widened operands is what AMX computes. As in the f32 kernel pointers wrap and
//! are read as arrays: what the dev profile checks otherwise would cost most of the speed.

use super::round::unpair;
use super::{HALF, PAIRS};
use crate::tensor::cpu::kernel::instance;
use crate::tensor::cpu::{Isa, isa};

/// A chunk of up to 32 terms of a tile of R x 32 outputs:
/// `c[i][j] = c[i][j] + (sum_p a[2p][i] b[p][j].even + sum_p a[2p + 1][i] b[p][j].odd)`, from 0 instead of `c` unless `add`.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub terms: usize,
    /// `[terms][R]`, rounded to bf16.
    pub a: *const f32,
    /// `[2][16][16]` pairs.
    pub b: *const u32,
    pub c: *mut f32,
    pub ldc: usize,
    /// Columns of `c` that are written, at most 32.
    pub lanes: usize,
    /// Add to `c` instead of replacing it.
    pub add: bool,
}

pub(super) type Kernel = unsafe fn(&Step);

/// Rows of the largest tile: what the registers hold.
pub(super) fn max_rows() -> usize {
    match isa() {
        Isa::Avx512 => 12,
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    }
}

/// With few rows a product waits for memory, and the weights are fetched ahead: this many words (16 kB).
#[cfg(target_arch = "x86_64")]
const PREFETCH: usize = 4096;
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 8;

/// The kernel for tiles of `rows` rows, `1 <= rows <= max_rows()`.
///
/// Calling it is safe where `a` and `b` have the extents that [`Step`] gives, and `c` is writable in `rows` x `lanes`.
pub(super) fn kernel(rows: usize) -> Kernel {
    instance!(rows; avx512: 1 2 3 4 5 6 7 8 9 10 11 12; avx2: 1 2 3 4 5 6; portable: 1 2 3 4)
}

/// Calls `two(p, x, y)` for each pair of terms: its number and its rows of `a`, the second zero beyond the last term.
///
/// # Safety
/// `a` has `terms` rows of R numbers.
#[inline(always)]
unsafe fn each_pair<const R: usize>(t: &Step, mut two: impl FnMut(usize, &[f32; R], &[f32; R])) {
    let row = |term: usize| t.a.wrapping_add(term * R).cast::<[f32; R]>();
    for p in 0..t.terms / 2 {
        // SAFETY: both are among the rows that the caller promises.
        unsafe { two(p, &*row(2 * p), &*row(2 * p + 1)) };
    }
    if t.terms % 2 == 1 {
        // SAFETY: as above.
        unsafe { two(t.terms / 2, &*row(t.terms - 1), &[0.0; R]) };
    }
}

unsafe fn portable<const R: usize>(t: &Step) {
    for half in 0..t.lanes.div_ceil(PAIRS) {
        let mut sums = [[[0.0f32; PAIRS]; 2]; R];
        let two = |p: usize, x: &[f32; R], y: &[f32; R]| {
            // SAFETY: the caller promises 2 x 16 x 16 pairs of b.
            let b = unsafe { &*t.b.wrapping_add(half * HALF + p * PAIRS).cast::<[u32; PAIRS]>() };
            for (([evens, odds], x), y) in sums.iter_mut().zip(x).zip(y) {
                for ((even, odd), b) in evens.iter_mut().zip(odds).zip(b) {
                    let [b_even, b_odd] = unpair(*b);
                    *even = x.mul_add(b_even, *even);
                    *odd = y.mul_add(b_odd, *odd);
                }
            }
        };
        // SAFETY: the caller promises the rows of a.
        unsafe { each_pair(t, two) };
        for (i, [even, odd]) in sums.iter().enumerate() {
            // SAFETY: the caller promises that `c` is writable in rows x lanes.
            unsafe { write_lanes(t, i, half * PAIRS, even, odd) };
        }
    }
}

/// Writes or adds the sums of some columns of a row, as far as there are such columns.
unsafe fn write_lanes(t: &Step, row: usize, column: usize, even: &[f32], odd: &[f32]) {
    let lanes = even.len().min(t.lanes - column);
    // SAFETY: the caller promises that `c` is writable in rows x lanes.
    let c = unsafe { std::slice::from_raw_parts_mut(t.c.wrapping_add(row * t.ldc + column), lanes) };
    for (c, (even, odd)) in c.iter_mut().zip(even.iter().zip(odd)) {
        *c = if t.add { *c } else { 0.0 } + (even + odd);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(t: &Step) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    for half in 0..t.lanes.div_ceil(PAIRS) {
        let mut even = [_mm512_setzero_ps(); R];
        let mut odd = [_mm512_setzero_ps(); R];
        let b = t.b.wrapping_add(half * HALF);
        let two = |p: usize, x: &[f32; R], y: &[f32; R]| {
            // SAFETY: the caller promises 2 x 16 x 16 pairs of b; a prefetch may point anywhere. 16 words are a vector.
            let pairs = unsafe {
                if R <= FEW_ROWS {
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(p * PAIRS + PREFETCH).cast());
                }
                transmute::<[u32; 16], __m512i>(*b.wrapping_add(p * PAIRS).cast::<[u32; 16]>())
            };
            let b_even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let b_odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
            for (((even, odd), x), y) in even.iter_mut().zip(&mut odd).zip(x).zip(y) {
                *even = _mm512_fmadd_ps(_mm512_set1_ps(*x), b_even, *even);
                *odd = _mm512_fmadd_ps(_mm512_set1_ps(*y), b_odd, *odd);
            }
        };
        // SAFETY: the caller promises the rows of a.
        unsafe { each_pair(t, two) };
        let mask = ((1u32 << (t.lanes - half * PAIRS).min(PAIRS)) - 1) as __mmask16;
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            let c = t.c.wrapping_add(i * t.ldc + half * PAIRS);
            // SAFETY: masked to the lanes that the caller promises.
            unsafe {
                let before = if t.add { _mm512_maskz_loadu_ps(mask, c) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(c, mask, _mm512_add_ps(before, _mm512_add_ps(even, odd)));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(t: &Step) {
    use std::arch::x86_64::*;
    use std::mem::transmute;
    const EIGHT: usize = 8;
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    // Eight columns at a time: 6 x 2 sums, two of b and a broadcast fit the 16 registers.
    for column in (0..t.lanes).step_by(EIGHT) {
        let mut even = [_mm256_setzero_ps(); R];
        let mut odd = [_mm256_setzero_ps(); R];
        let b = t.b.wrapping_add(column / PAIRS * HALF + column % PAIRS);
        let two = |p: usize, x: &[f32; R], y: &[f32; R]| {
            // SAFETY: the caller promises 2 x 16 x 16 pairs of b. 8 words are a vector.
            let pairs = unsafe { transmute::<[u32; 8], __m256i>(*b.wrapping_add(p * PAIRS).cast::<[u32; 8]>()) };
            let b_even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let b_odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
            for (((even, odd), x), y) in even.iter_mut().zip(&mut odd).zip(x).zip(y) {
                *even = _mm256_fmadd_ps(_mm256_set1_ps(*x), b_even, *even);
                *odd = _mm256_fmadd_ps(_mm256_set1_ps(*y), b_odd, *odd);
            }
        };
        // SAFETY: the caller promises the rows of a.
        unsafe { each_pair(t, two) };
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            // SAFETY: 8 numbers are a vector; the caller promises the tile's extents.
            unsafe { write_lanes(t, i, column, &transmute::<__m256, [f32; 8]>(even), &transmute::<__m256, [f32; 8]>(odd)) };
        }
    }
}
