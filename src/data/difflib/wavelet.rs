//! A wavelet matrix (Claude, Navarro and Ordóñez, "The wavelet matrix", 2015): how many numbers of a range lie below a bound, and the k-th smallest
//! of a range, in one step for each bit of a number.

/// The numbers of an array, bit by bit from the highest.
pub(super) struct WaveletMatrix {
    levels: Vec<Level>,
}

/// One bit of every number, in the order in which the bits above have sorted them (stably).
struct Level {
    /// 64 bits a word, with the number of ones in all words before.
    words: Vec<(u64, u32)>,
    /// How many bits are zero.
    zeros: u32,
}

impl Level {
    /// Ones among the first `n` bits.
    fn ones(&self, n: u32) -> u32 {
        let (word, before) = self.words[n as usize / 64];
        before + (word & ((1u64 << (n % 64)) - 1)).count_ones()
    }
}

impl WaveletMatrix {
    /// The matrix of `numbers`, all of which are below `2^bits`.
    pub fn new(mut numbers: Vec<u32>, bits: u32) -> Self {
        let mut levels = Vec::with_capacity(bits as usize);
        for bit in (0..bits).rev() {
            let mut words = vec![(0u64, 0u32); numbers.len() / 64 + 1];
            for (i, x) in numbers.iter().enumerate() {
                words[i / 64].0 |= u64::from(x >> bit & 1) << (i % 64);
            }
            let mut ones = 0;
            for (word, before) in &mut words {
                *before = ones;
                ones += word.count_ones();
            }
            levels.push(Level { words, zeros: numbers.len() as u32 - ones });
            let (low, high): (Vec<u32>, Vec<u32>) = numbers.iter().partition(|&x| x >> bit & 1 == 0);
            numbers = low;
            numbers.extend(high);
        }
        Self { levels }
    }

    /// How many numbers of `lo..hi` are below `x`, where `x` is below `2^bits`.
    pub fn count_below(&self, mut lo: u32, mut hi: u32, x: u32) -> u32 {
        let mut count = 0;
        let bits = self.levels.len();
        for (i, level) in self.levels.iter().enumerate() {
            let (ones_lo, ones_hi) = (level.ones(lo), level.ones(hi));
            if x >> (bits - 1 - i) & 1 == 1 {
                count += (hi - lo) - (ones_hi - ones_lo);
                (lo, hi) = (level.zeros + ones_lo, level.zeros + ones_hi);
            } else {
                (lo, hi) = (lo - ones_lo, hi - ones_hi);
            }
        }
        count
    }

    /// The `k`-th smallest number (from 0) of `lo..hi`, which holds more than `k`.
    pub fn kth(&self, mut lo: u32, mut hi: u32, mut k: u32) -> u32 {
        let mut value = 0;
        for level in &self.levels {
            let (ones_lo, ones_hi) = (level.ones(lo), level.ones(hi));
            let zeros = (hi - lo) - (ones_hi - ones_lo);
            value <<= 1;
            if k < zeros {
                (lo, hi) = (lo - ones_lo, hi - ones_hi);
            } else {
                k -= zeros;
                value |= 1;
                (lo, hi) = (level.zeros + ones_lo, level.zeros + ones_hi);
            }
        }
        value
    }
}
