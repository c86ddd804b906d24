//! Rounding to bf16, and numbers in pairs: the even term of a contraction in the lower half of a word, the odd one in the upper half.

use super::{CHUNK, HALF, PAIRS, TERMS};
use crate::tensor::cpu::panels::PANEL;
use crate::tensor::cpu::vectorized;

/// `x` rounded to the nearest bf16, ties to the even one: the upper half of its bits. What is not a number stays so.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { nearest }
}

/// `x` rounded to bf16, as an f32.
#[inline(always)]
pub fn rounded(x: f32) -> f32 {
    f32::from_bits(round(x) << 16)
}

#[inline(always)]
fn pair(even: f32, odd: f32) -> u32 {
    round(even) | round(odd) << 16
}

/// The even and the odd number of a pair.
#[inline(always)]
pub fn unpair(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Where a chunk's numbers are: `source[row * row_stride + term * term_stride]`, one of the strides being 1, for `rows` and `terms` of at
/// most 32 each. What is missing to 32 is zero.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    pub source: &'a [f32],
    pub rows: usize,
    pub row_stride: usize,
    pub terms: usize,
    pub term_stride: usize,
}

/// A chunk's numbers with the terms as lines of [`PANEL`] rows, to be rounded.
type Lines = [[f32; PANEL]; TERMS];

impl Chunk<'_> {
    /// `out[half][pair][row]`: rows side by side, as the right operand of a product has them.
    pub fn rows_as_lanes(&self, out: &mut [u32]) {
        if self.row_stride == 1 && self.rows == PANEL && self.terms == TERMS {
            return pair_lines(self.source, self.term_stride, out);
        }
        let mut lines: Lines = [[0.0; PANEL]; TERMS];
        for (term, line) in lines[..self.terms].iter_mut().enumerate() {
            for (row, x) in line[..self.rows].iter_mut().enumerate() {
                *x = self.source[row * self.row_stride + term * self.term_stride];
            }
        }
        pair_lines(lines.as_flattened(), PANEL, out);
    }

    /// `out[half][row][pair]`: terms side by side, as the left operand of AMX has them.
    pub fn terms_as_lanes(&self, out: &mut [u32]) {
        if self.term_stride == 1 && self.terms == TERMS {
            let (there, missing) = out.split_at_mut(self.rows * PAIRS);
            missing.fill(0);
            return pair_rows(self.source, self.row_stride, there);
        }
        let mut lanes = [0; CHUNK];
        self.rows_as_lanes(&mut lanes);
        turn(&lanes, out);
    }
}

vectorized! {
    /// `out[half][pair][row] = (source[2 pair][row], source[2 pair + 1][row])` for 32 lines of 32 numbers, `stride` apart.
    fn pair_lines(source: &[f32], stride: usize, out: &mut [u32]) {
        for p in 0..PAIRS {
            let (even, odd) = (&source[2 * p * stride..][..PANEL], &source[(2 * p + 1) * stride..][..PANEL]);
            for half in 0..2 {
                let (even, odd) = (&even[half * PAIRS..][..PAIRS], &odd[half * PAIRS..][..PAIRS]);
                for ((out, x), y) in out[half * HALF + p * PAIRS..][..PAIRS].iter_mut().zip(even).zip(odd) {
                    *out = pair(*x, *y);
                }
            }
        }
    }
}

vectorized! {
    /// `out[row][pair] = (source[row][2 pair], source[row][2 pair + 1])` for rows of 32 numbers, `stride` apart.
    fn pair_rows(source: &[f32], stride: usize, out: &mut [u32]) {
        for (row, out) in out.chunks_exact_mut(PAIRS).enumerate() {
            for (out, x) in out.iter_mut().zip(source[row * stride..][..TERMS].as_chunks::<2>().0) {
                *out = pair(x[0], x[1]);
            }
        }
    }
}

/// `out[half][j][i] = lanes[half][i][j]`.
fn turn(lanes: &[u32; CHUNK], out: &mut [u32]) {
    for (lanes, out) in lanes.chunks_exact(HALF).zip(out.chunks_exact_mut(HALF)) {
        for (j, out) in out.chunks_exact_mut(PAIRS).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                *out = lanes[i * PAIRS + j];
            }
        }
    }
}

vectorized! {
    /// A chunk of 32 rows and 32 terms with the two exchanged: `from[half of the rows][pair of terms][row]` to
    /// `to[half of the terms][pair of rows][term]`.
    pub fn exchange(from: &[u32], to: &mut [u32]) {
        // Two words side by side, of rows 2s and 2s + 1, hold two terms of each; the same four numbers, the middle two changed over, are
        // two terms' words of the pair s of rows.
        let mut fours = [0u64; CHUNK / 2];
        for (four, from) in fours.iter_mut().zip(from.as_chunks::<2>().0) {
            let four_now = u64::from(from[0]) | u64::from(from[1]) << 32;
            let middle = four_now & 0x0000_ffff_ffff_0000;
            *four = four_now ^ middle | (middle >> 16 & 0xffff_0000) | (middle << 16 & 0xffff_0000_0000);
        }
        const EIGHT: usize = PAIRS / 2;
        for (i, to) in to[..CHUNK].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let (half, s, r) = (i / (PAIRS * EIGHT), i / EIGHT % PAIRS, i % EIGHT);
            let four = fours[s / EIGHT * PAIRS * EIGHT + (half * EIGHT + r) * EIGHT + s % EIGHT];
            *to = [four as u32, (four >> 32) as u32];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::philox::Philox;
    use half::bf16;

    #[test]
    fn rounds_as_the_format_asks() {
        let random = Philox::new(1, 1);
        let some = (0..200_000u64).map(|i| f32::from_bits((random.uniform(i, 0) * 4_294_967_296.0) as u32));
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1.003_906_2, 1.011_718_8, 1e-40];
        for x in special.into_iter().chain(some) {
            assert_eq!(round(x), u32::from(bf16::from_f32(x).to_bits()), "{x:e}");
        }
    }

    /// The same chunk by every way, ragged ones among them.
    #[test]
    fn packs_rows_and_terms() {
        let source: Vec<f32> = (0..40 * 50).map(|i| i as f32).collect();
        for (rows, terms) in [(32, 32), (7, 32), (32, 5), (31, 31)] {
            for (row_stride, term_stride) in [(50, 1), (1, 50)] {
                let chunk = Chunk { source: &source, rows, row_stride, terms, term_stride };
                let at = |row: usize, term: usize| {
                    if row < rows && term < terms { rounded(source[row * row_stride + term * term_stride]) } else { 0.0 }
                };
                let (mut right, mut left, mut exchanged) = ([9; CHUNK], [9; CHUNK], [9; CHUNK]);
                chunk.rows_as_lanes(&mut right);
                chunk.terms_as_lanes(&mut left);
                exchange(&right, &mut exchanged);
                for (row, p) in (0..32).flat_map(|row| (0..16).map(move |p| (row, p))) {
                    let expected = [at(row, 2 * p), at(row, 2 * p + 1)];
                    assert_eq!(unpair(right[row / 16 * HALF + p * 16 + row % 16]), expected);
                    assert_eq!(unpair(left[row * 16 + p]), expected);
                    // `row` is a term now, and `p` a pair of rows.
                    assert_eq!(unpair(exchanged[row / 16 * HALF + p * 16 + row % 16]), [at(2 * p, row), at(2 * p + 1, row)]);
                }
            }
        }
    }
}
