//! 8-bit codes of moments, block by block (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization").
//!
//! A **block** is up to 256 consecutive numbers of a row of a matrix `[rows, cols]`: a row has `ceil(cols / 256)` of them, and none crosses
//! into the next row. That is so wherever the matrix lies (in panels on the processor, row-major on a device), so a block, its scale and its
//! codes mean the same on both. Its **scale** is the largest magnitude in it, f32. A number is coded as its part x of the scale, in `[0, 1]`.
//!
//! **The code** has a dynamic exponent: the position f of the highest bit set tells the magnitude's power of 16, the f bits below it divide
//! that stretch into 2^f equal steps. With F = 6 for first moments (and a bit for the sign), F = 7 for second ones:
//!
//! k = 2^f + j, 0 <= j < 2^f:   level(k) = 16^(f - F) (1/16 + 15/16 (j + 1) / 2^f);   level(0) = 0
//!
//! from 16^-F to exactly 1. Every level is a short binary fraction, so neither the rule nor its inverse rounds. (The paper's powers are of
//! 10; 16 covers more, and needs no table.)
//!
//! **Rounding is stochastic**: x goes to the level above with the probability of its way there, so its expectation is x. To the nearest, a
//! second moment could not fall or rise: 1 - beta2 of it is less than half a step; and a first moment whose gradients have ended would stop
//! short of zero while the second goes on falling. The random bits are Philox's, a function of the key, the tensor, the step and the place:
//! runs repeat and resume to the bit. A second moment above zero never gets code 0, so no quotient meets a root of zero that was not there.

use crate::tensor::philox::{philox4x32, philox4x32_lanes};

/// Numbers of a row that share a scale.
pub const BLOCK: usize = 256;

/// F of first moments: 7 bits beside the sign.
pub const FIRST: u32 = 6;
/// F of second moments: 8 bits.
pub const SECOND: u32 = 7;

/// The least scale of a block that is not all zeros (2^-120): its inverse is finite.
const LEAST: f32 = f32::from_bits(7 << 23);

/// 2^23: what is added to it is rounded to an integer, in the low bits of the sum.
const INTEGERS: f32 = 8_388_608.0;

/// The bit of a first moment's sign.
const SIGN: u32 = 0x80;

/// Which random numbers round a tensor's moments at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// Philox's key.
    pub key: [u32; 2],
    /// The optimizer's step.
    pub step: u32,
    /// The tensor.
    pub tensor: u32,
}

impl Rounding {
    /// The bits of columns `4 group..4 group + 4` of a row.
    #[inline(always)]
    pub fn bits(&self, group: u32, row: u32) -> [u32; 4] {
        philox4x32(self.key, [group, row, self.step, self.tensor])
    }

    /// The same of `L` rows from `row` on.
    #[inline(always)]
    pub(super) fn lanes<const L: usize>(&self, group: u32, row: u32) -> [[u32; L]; 4] {
        philox4x32_lanes(self.key, [[group; L], std::array::from_fn(|i| row.wrapping_add(i as u32)), [self.step; L], [self.tensor; L]])
    }
}

/// The part of the scale that a code stands for. (Here and below wrapping arithmetic, no branches and no conversions that saturate: so that
/// vectors can do it, in builds that check for overflow as well. Nothing overflows.)
#[inline(always)]
fn level<const F: u32>(k: u32) -> f32 {
    let number = k as i32 as f32;
    // f + 127, and what 127 + 4 (f - F - 1) becomes by it.
    let exponent = number.to_bits() >> 23;
    let power = (exponent << 2).wrapping_sub(3 * 127 + 4 * (F + 1));
    let rest = (number + 1.0) * f32::from_bits(254u32.wrapping_sub(exponent) << 23) - 1.0;
    let x = (15.0 * rest + 1.0) * f32::from_bits(power << 23);
    if k == 0 { 0.0 } else { x }
}

/// The code of x in `[0, 1]`, rounded up where `u` (in `[0, 1)`) is below the way to the level above.
#[inline(always)]
fn code<const F: u32>(x: f32, u: f32) -> u32 {
    // 16^-(e + 1) <= x < 16^-e, but e = F also for what is below, and 0 for 1.
    let e = (126u32.saturating_sub(x.to_bits() >> 23) >> 2).min(F);
    let f = F.wrapping_sub(e);
    let steps = power_of_two(f);
    let y = x * power_of_two((e << 2).wrapping_add(4));
    let way = if f == 0 { y * (1.0 / 16.0) } else { (y - 1.0) * (1.0 / 15.0) * steps };
    let near = (way + INTEGERS) - INTEGERS;
    let whole = if near > way { near - 1.0 } else { near };
    let up = if u < way - whole { 1.0 } else { 0.0 };
    let k = (steps - 1.0 + whole + up).min(((2 << F) - 1) as f32);
    (k + INTEGERS).to_bits() & 0xff
}

#[inline(always)]
fn power_of_two(n: u32) -> f32 {
    f32::from_bits(n.wrapping_add(127) << 23)
}

/// A block's scale, and its inverse, by its largest magnitude; both 0 for a block of zeros.
#[inline(always)]
pub(super) fn scale(largest: f32) -> (f32, f32) {
    let scale = largest.max(LEAST);
    if largest == 0.0 { (0.0, 0.0) } else { (scale, 1.0 / scale) }
}

/// A first moment by its code.
#[inline(always)]
pub fn first(code: u8, scale: f32) -> f32 {
    let x = level::<FIRST>(u32::from(code) & !SIGN) * scale;
    f32::from_bits(x.to_bits() | (u32::from(code) & SIGN) << 24)
}

/// A second moment by its code.
#[inline(always)]
pub fn second(code: u8, scale: f32) -> f32 {
    level::<SECOND>(u32::from(code)) * scale
}

/// The code of a first moment, by the low 12 of its random bits.
#[inline(always)]
pub(super) fn code_first(m: f32, inverse: f32, bits: u32) -> u8 {
    let u = ((bits & 0xfff) as i32 as f32 + 0.5) * (1.0 / 4096.0);
    let k = code::<FIRST>((m.abs() * inverse).min(1.0), u);
    (k | m.to_bits() >> 24 & SIGN) as u8
}

/// The code of a second moment, by the high 20 of its random bits.
#[inline(always)]
pub(super) fn code_second(v: f32, inverse: f32, bits: u32) -> u8 {
    let u = ((bits >> 12) as i32 as f32 + 0.5) * (1.0 / 1_048_576.0);
    let k = code::<SECOND>((v * inverse).min(1.0), u);
    k.max(u32::from(v > 0.0)) as u8
}

/// A moment of a matrix `[rows, cols]` in codes, as it is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// `[rows, cols]`, row-major.
    pub codes: Vec<u8>,
    /// `[rows, ceil(cols / 256)]`.
    pub scales: Vec<f32>,
}

impl Coded {
    /// The numbers `[rows, cols]` of a moment that `number` decodes ([`first`] or [`second`]).
    pub fn to_f32(&self, cols: usize, number: fn(u8, f32) -> f32) -> Vec<f32> {
        let scales = self.scales.chunks(cols.div_ceil(BLOCK).max(1));
        let rows = self.codes.chunks(cols.max(1)).zip(scales);
        rows.flat_map(|(row, scales)| row.iter().enumerate().map(move |(c, &k)| number(k, scales[c / BLOCK]))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels<const F: u32>() -> Vec<f32> {
        (0..2u32 << F).map(level::<F>).collect()
    }

    /// The levels rise from the first to exactly 1, and are the rule's, computed in f64.
    fn rule<const F: u32>() {
        let levels = levels::<F>();
        assert!(levels.windows(2).all(|w| w[0] < w[1]) && levels[0] == 0.0 && levels.last() == Some(&1.0));
        for (k, x) in levels.iter().enumerate().skip(1) {
            let f = k.ilog2() as i32;
            let rest = (k - (1 << f) + 1) as f64 / f64::from(1 << f);
            assert_eq!(f64::from(*x), 16f64.powi(f - F as i32) * (1.0 / 16.0 + 15.0 / 16.0 * rest), "{k}");
        }
    }

    #[test]
    fn levels_are_the_rule_s() {
        rule::<FIRST>();
        rule::<SECOND>();
    }

    /// A level is its own code up to a millionth of a step; between two levels the way decides.
    fn codes<const F: u32>() {
        let levels = levels::<F>();
        for (k, w) in levels.windows(2).enumerate() {
            for (part, u) in [(0.25, 0.24), (0.25, 0.26), (0.7, 0.69), (0.7, 0.71)] {
                let x = w[0] + (w[1] - w[0]) * part;
                assert_eq!(code::<F>(x, u), k as u32 + u32::from(u < part), "{part} of the way from {k}");
            }
            assert_eq!((code::<F>(w[0], 1e-4), code::<F>(w[0], 0.999)), (k as u32, k as u32));
        }
        assert_eq!(code::<F>(1.0, 0.999), (2 << F) - 1);
    }

    #[test]
    fn codes_are_next_to_the_number() {
        codes::<FIRST>();
        codes::<SECOND>();
    }

    #[test]
    fn signs_zeros_and_the_least() {
        assert_eq!((code_first(0.0, 1.0, 0), code_second(0.0, 1.0, 0)), (0, 0));
        assert_eq!(code_first(-1.0, 1.0, !0), 0xff);
        assert_eq!((first(0xff, 2.0), first(0x7f, 2.0), second(0xff, 2.0)), (-2.0, 2.0, 2.0));
        // Far below the least level a first moment becomes zero, a second one never.
        assert_eq!((code_first(1e-20, 1.0, !0), code_second(1e-20, 1.0, !0)), (0, 1));
        // So small that the inverse would be infinite.
        let (s, inverse) = scale(1e-44);
        assert!(s > 0.0 && inverse.is_finite() && code_second(1e-44, inverse, 0) >= 1);
        assert_eq!(scale(0.0), (0.0, 0.0));
    }

    /// Over all random bits a moment's mean is the moment.
    #[test]
    fn rounding_has_no_bias() {
        for x in [1.0f32, 0.9, 0.303, 0.07, 0.0621, 1e-3, 2.5e-5, 7e-8, 3e-9] {
            let n = 1 << 12;
            let mean = |of: &dyn Fn(u32) -> f32| (0..n).map(|i| f64::from(of(i))).sum::<f64>() / f64::from(n);
            let v = mean(&|i| second(code_second(x, 1.0, i << 20), 1.0));
            let m = mean(&|i| -first(code_first(-x, 1.0, i), 1.0));
            let step = |levels: Vec<f32>| f64::from(levels.windows(2).find(|w| x <= w[1]).map_or(1.0, |w| w[1] - w[0]));
            let least = 16f32.powi(-(SECOND as i32));
            assert!((v - f64::from(x.max(least))).abs() < 1e-3 * step(levels::<SECOND>()), "second of {x}: {v}");
            assert!((m - f64::from(x)).abs() < 1e-3 * step(levels::<FIRST>()), "first of {x}: {m}");
        }
    }
}
