//! Arithmetic on 16 numbers at a time, with the reduction trees that every op uses.

/// Numbers worked on side by side. Reductions run over this many chains whatever the hardware's width.
pub const LANES: usize = 16;

/// [`LANES`] numbers.
pub type Lanes = [f32; LANES];

/// The sum of the lanes by a fixed tree: halves are added to halves.
#[inline(always)]
pub fn sum_lanes(mut v: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            v[i] += v[i + width];
        }
        width /= 2;
    }
    v[0]
}

/// The largest lane.
#[inline(always)]
pub fn max_lanes(mut v: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            v[i] = if v[i + width] > v[i] { v[i + width] } else { v[i] };
        }
        width /= 2;
    }
    v[0]
}

/// Sum of `a[i] * b[i]`: element `i` goes to lane `i % LANES`, in order; then the lanes' tree.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut acc = [0.0; LANES];
    let (a16, ar) = a.as_chunks::<LANES>();
    let (b16, br) = b.as_chunks::<LANES>();
    for (x, y) in a16.iter().zip(b16) {
        for l in 0..LANES {
            acc[l] = x[l].mul_add(y[l], acc[l]);
        }
    }
    for l in 0..ar.len().min(br.len()) {
        acc[l] = ar[l].mul_add(br[l], acc[l]);
    }
    sum_lanes(acc)
}

/// Sum of `a[i] * b[i] * c[i]`, in the order of [`dot`].
#[inline(always)]
pub fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let n = a.len().min(b.len()).min(c.len());
    let mut acc = [0.0; LANES];
    let mut i = 0;
    while i + LANES <= n {
        for l in 0..LANES {
            acc[l] = (a[i + l] * b[i + l]).mul_add(c[i + l], acc[l]);
        }
        i += LANES;
    }
    for l in 0..n - i {
        acc[l] = (a[i + l] * b[i + l]).mul_add(c[i + l], acc[l]);
    }
    sum_lanes(acc)
}

/// e^x with a relative error below 2 units in the last place; 0 below -86.6, and +inf above 88.72.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 7 (its Taylor coefficients), 2^n through the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_145_75;
    const LN2_LO: f32 = 1.428_606_8e-6;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer that stands in the low mantissa bits
    let clamped = x.clamp(-86.6, 88.72);
    let t = clamped.mul_add(LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let mut p = 1.0f32 / 5040.0;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // 2^n as 2^(n-1) * 2, so that n = 128 does not overflow the exponent field.
    let half = f32::from_bits(t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(126) << 23);
    let e = p * half * 2.0;
    if x < -86.6 {
        0.0
    } else if x > 88.72 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        e
    }
}

/// e^x in f64 with a relative error below 2 units in the last place; 0 below -708, and what e^709 is above 709.
///
/// As [`exp`], with a polynomial of degree 13. The library's own function differs from system to system; this one is the same everywhere, on a
/// device too (`kernels/row_softmax.cuh`).
#[inline(always)]
pub fn exp64(x: f64) -> f64 {
    const LN2_HI: f64 = 6.931_471_803_691_238e-1; // its last 21 bits are zero, so n times it is exact
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it rounds to an integer that stands in the low mantissa bits
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let clamped = x.clamp(-708.0, 709.0);
    let t = clamped.mul_add(std::f64::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let mut p = INVERSE_FACTORIALS[0];
    for c in &INVERSE_FACTORIALS[1..] {
        p = p.mul_add(r, *c);
    }
    let power = f64::from_bits(t.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(1023) << 52);
    if x < -708.0 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        p * power
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        let mut worst: f64 = 0.0;
        for i in -866_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "worst relative error {worst:e}");
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp64_is_accurate() {
        let mut worst: f64 = 0.0;
        for i in -707_999..709_000 {
            let x = f64::from(i) * 1e-3;
            worst = worst.max((exp64(x) - x.exp()).abs() / x.exp());
        }
        assert!(worst < 4.5e-16, "worst relative error {worst:e}");
        assert_eq!([exp64(-709.0), exp64(f64::NEG_INFINITY), exp64(0.0)], [0.0, 0.0, 1.0]);
        assert!(exp64(f64::NAN).is_nan());
    }

    #[test]
    fn dot_handles_odd_lengths() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
        assert_eq!(dot3(&a, &a, &[1.0; 37]), dot(&a, &a));
    }
}
