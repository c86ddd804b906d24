//! Counter-based random numbers: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A number is a function of a key and a counter, so results do not depend on threads, batch composition or the order of completion.

/// Philox-4x32 with ten rounds: 128 random bits from a 64-bit key and a 128-bit counter.
pub fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let (mut k, mut c) = (key, counter);
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The same for `L` counters of one key side by side, `counters[word][lane]`: in a vectorised body, `L` at a time.
#[inline(always)]
pub fn philox4x32_lanes<const L: usize>(key: [u32; 2], counters: [[u32; L]; 4]) -> [[u32; L]; 4] {
    let (mut k, [mut a, mut b, mut c, mut d]) = (key, counters);
    for _ in 0..10 {
        for i in 0..L {
            let p0 = u64::from(a[i]) * 0xD251_1F53;
            let p1 = u64::from(c[i]) * 0xCD9E_8D57;
            a[i] = (p1 >> 32) as u32 ^ b[i] ^ k[0];
            b[i] = p1 as u32;
            c[i] = (p0 >> 32) as u32 ^ d[i] ^ k[1];
            d[i] = p0 as u32;
        }
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    [a, b, c, d]
}

/// A stream of random numbers named by what they are for: `(seed, stream)` is the key, `(a, b, c)` the place in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The stream `stream` of `seed`. Different streams of a seed are independent for all practical purposes.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mixed = splitmix64(seed ^ splitmix64(stream));
        Self { key: [mixed as u32, (mixed >> 32) as u32] }
    }

    /// The key of [`philox4x32`], for code that forms the counters itself.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }

    /// 64 random bits for the place `(a, b)`.
    pub fn bits(&self, a: u64, b: u64) -> u64 {
        let r = philox4x32(self.key, [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]);
        u64::from(r[0]) | u64::from(r[1]) << 32
    }

    /// A uniform number in `[0, 1)` with 53 random bits for the place `(a, b)`.
    pub fn uniform(&self, a: u64, b: u64) -> f64 {
        (self.bits(a, b) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A standard normal number for the place `(a, b)` (Box-Muller).
    pub fn normal(&self, a: u64, b: u64) -> f64 {
        let r = philox4x32(self.key, [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]);
        let u = (f64::from(r[2]) + 1.0) / 4294967296.0;
        let v = f64::from(r[3]) / 4294967296.0;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// A random order of `0..n` (Fisher-Yates), for the place `a`.
    pub fn permutation(&self, a: u64, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            let j = (self.uniform(a, i as u64) * (i + 1) as f64) as usize;
            order.swap(i, j.min(i));
        }
        order
    }
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0, 0], [0, 0, 0, 0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0, !0], [!0, !0, !0, !0]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_single_calls() {
        let counters = [[1, 2, !0], [0, 7, !0], [5, 5, 5], [9, 0, 1]];
        let lanes = philox4x32_lanes([3, 4], counters);
        for i in 0..3 {
            assert_eq!(lanes.map(|word| word[i]), philox4x32([3, 4], counters.map(|word| word[i])));
        }
    }

    #[test]
    fn permutation_holds_each_once() {
        let mut p = Philox::new(7, 1).permutation(3, 100);
        assert_ne!(p, (0..100).collect::<Vec<_>>());
        p.sort_unstable();
        assert_eq!(p, (0..100).collect::<Vec<_>>());
    }
}
