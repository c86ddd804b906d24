//! The storage types of GGUF tensors and their expansion to f32, with ggml's order of operations, so that the numbers are its own to the
//! bit: a product is rounded before the offset is added, and a block's scale is multiplied into its sub-scale first.

use crate::{Error, Result};
use half::f16;

/// How a tensor's numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The format's own names.
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q4K,
    Q5K,
    Q6K,
}

/// Types that exist and are not supported, for the error's text.
const UNSUPPORTED: [(u32, &str); 24] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl GgmlType {
    /// The type with this number in a header.
    ///
    /// # Errors
    /// If the type is unknown or not supported.
    pub fn from_code(code: u32) -> Result<Self> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => {
                let known = UNSUPPORTED.iter().find(|(code, _)| *code == other);
                let name = known
                    .map_or_else(|| format!("number {other}, which is unknown"), |(_, name)| format!("{name}, which is not supported"));
                return Err(Error::input(format!("its type is {name}"))
                    .hint("supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K: use another quantisation"));
            }
        })
    }

    /// Numbers in one block.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Expands whole blocks: `out.len()` numbers from `src`, which has exactly their blocks.
    pub(super) fn expand(self, src: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => scalars(src, out, f32::from_le_bytes),
            Self::F16 => scalars(src, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => scalars(src, out, |b| half::bf16::from_le_bytes(b).to_f32()),
            Self::Q8_0 => blocks(src, out, q8_0),
            Self::Q4_0 => blocks(src, out, q4_0),
            Self::Q4_1 => blocks(src, out, q4_1),
            Self::Q5_0 => blocks(src, out, q5_0),
            Self::Q5_1 => blocks(src, out, q5_1),
            Self::Q4K => blocks(src, out, q4_k),
            Self::Q5K => blocks(src, out, q5_k),
            Self::Q6K => blocks(src, out, q6_k),
        }
    }
}

fn scalars<const N: usize>(src: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (x, b) in out.iter_mut().zip(src.as_chunks().0) {
        *x = read(*b);
    }
}

fn blocks<const BYTES: usize, const LEN: usize>(src: &[u8], out: &mut [f32], expand: impl Fn(&[u8; BYTES], &mut [f32; LEN])) {
    for (b, y) in src.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        expand(b, y);
    }
}

/// The f16 at `at`.
fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (y, q) in y.iter_mut().zip(&b[2..]) {
        *y = d * f32::from(q.cast_signed());
    }
}

/// The numbers of a block of 32: the low nibbles are the first 16, the high nibbles the others.
fn nibbles(qs: &[u8], y: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = y.split_at_mut(16);
    for (j, q) in qs.iter().enumerate() {
        low[j] = value(j, q & 15);
        high[j] = value(j + 16, q >> 4);
    }
}

fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half_at(b, 0);
    nibbles(&b[2..], y, |_, q| d * f32::from(q.cast_signed() - 8));
}

fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    nibbles(&b[4..], y, |_, q| d * f32::from(q) + m);
}

/// The fifth bit of number `j`, in its place.
fn fifth_bit(high: u32, j: usize) -> u8 {
    (((high >> j) & 1) << 4) as u8
}

fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half_at(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
    nibbles(&b[6..], y, |j, q| d * f32::from((q | fifth_bit(high, j)).cast_signed() - 16));
}

fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half_at(b, 0), half_at(b, 2), u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
    nibbles(&b[8..], y, |j, q| d * f32::from(q | fifth_bit(high, j)) + m);
}

/// Scale and minimum of sub-block `j` of 8, six bits each, packed into 12 bytes.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scales, qs) = b[4..].split_at(12);
    for (pair, (y, qs)) in y.chunks_exact_mut(64).zip(qs.chunks_exact(32)).enumerate() {
        let (low, high) = y.split_at_mut(32);
        for (half, y) in [low, high].into_iter().enumerate() {
            let (scale, min) = scale_and_min(scales, 2 * pair + half);
            let (scale, min) = (d * scale, dmin * min);
            for (y, q) in y.iter_mut().zip(qs) {
                *y = scale * f32::from((q >> (4 * half)) & 15) - min;
            }
        }
    }
}

fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (scales, rest) = b[4..].split_at(12);
    let (fifth, qs) = rest.split_at(32);
    for (pair, (y, qs)) in y.chunks_exact_mut(64).zip(qs.chunks_exact(32)).enumerate() {
        let (low, high) = y.split_at_mut(32);
        for (half, y) in [low, high].into_iter().enumerate() {
            let j = 2 * pair + half;
            let (scale, min) = scale_and_min(scales, j);
            let (scale, min) = (d * scale, dmin * min);
            for ((y, q), h) in y.iter_mut().zip(qs).zip(fifth) {
                *y = scale * f32::from(((q >> (4 * half)) & 15) | (((h >> j) & 1) << 4)) - min;
            }
        }
    }
}

fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for (n, y) in y.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&b[n * 64..][..64], &b[128 + n * 32..][..32], &b[192 + n * 8..][..8]);
        for (quarter, y) in y.chunks_exact_mut(32).enumerate() {
            // Quarters 0 and 1 are the low nibbles of the two halves of `low`, quarters 2 and 3 the high ones.
            let (low, shift) = (&low[32 * (quarter % 2)..][..32], 4 * (quarter / 2));
            for (sixteenth, (y, (low, high))) in y.chunks_exact_mut(16).zip(low.chunks_exact(16).zip(high.chunks_exact(16))).enumerate() {
                let scale = d * f32::from(scales[2 * quarter + sixteenth].cast_signed());
                for ((y, l), h) in y.iter_mut().zip(low).zip(high) {
                    let q = ((l >> shift) & 15) | (((h >> (2 * quarter)) & 3) << 4);
                    *y = scale * f32::from(q.cast_signed() - 32);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [GgmlType; 11] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::Bf16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q5_0,
        GgmlType::Q5_1,
        GgmlType::Q4K,
        GgmlType::Q5K,
        GgmlType::Q6K,
    ];

    /// Every block of every type writes all its numbers and reads all its bytes.
    #[test]
    fn blocks_are_whole() {
        for ty in ALL {
            let mut out = vec![f32::NAN; ty.block_len() * 3];
            ty.expand(&vec![0; ty.block_bytes() * 3], &mut out);
            assert!(out.iter().all(|x| *x == 0.0), "{ty:?}");
        }
    }

    #[test]
    fn small_blocks_by_hand() {
        let one = f16::from_f32(1.0).to_le_bytes();
        let two = f16::from_f32(2.0).to_le_bytes();
        let mut y = vec![0.0; 32];
        let mut b = vec![two[0], two[1]];
        b.extend([0xF3; 16]); // low nibble 3, high nibble 15
        GgmlType::Q4_0.expand(&b, &mut y);
        assert_eq!((y[0], y[15], y[16], y[31]), (-10.0, -10.0, 14.0, 14.0));
        let mut b = vec![two[0], two[1], one[0], one[1]];
        b.extend([0xF3; 16]);
        GgmlType::Q4_1.expand(&b, &mut y);
        assert_eq!((y[0], y[16]), (7.0, 31.0));
        let mut b = vec![one[0], one[1], 1, 0, 0, 0x80]; // fifth bits of numbers 0 and 31
        b.extend([0xF3; 16]);
        GgmlType::Q5_0.expand(&b, &mut y);
        assert_eq!((y[0], y[1], y[30], y[31]), (3.0, -13.0, -1.0, 15.0));
        let mut b = vec![one[0], one[1], two[0], two[1], 1, 0, 0, 0x80];
        b.extend([0xF3; 16]);
        GgmlType::Q5_1.expand(&b, &mut y);
        assert_eq!((y[0], y[1], y[30], y[31]), (21.0, 5.0, 17.0, 33.0));
    }

    #[test]
    fn unsupported_types_are_named() {
        assert!(GgmlType::from_code(20).unwrap_err().to_string().contains("IQ4_NL, which is not supported"));
        assert!(GgmlType::from_code(99).unwrap_err().to_string().contains("number 99, which is unknown"));
    }
}
