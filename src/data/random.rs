//! Keyed randomness: a choice is a function of a seed and of what is chosen for, never of the order in which choices are made.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), started at a hash
//! of the seed and of the names it is keyed by.

/// A stream of random numbers keyed by a seed and names.
#[derive(Clone, Debug)]
pub struct Keyed {
    state: u64,
}

impl Keyed {
    /// The stream for `seed` and `names` (for example `["distractors", instance_id]`). The borders between names count:
    /// `["ab", "c"]` and `["a", "bc"]` are different streams.
    pub fn new(seed: u64, names: &[&str]) -> Self {
        let mut state = mix(seed);
        for name in names {
            state = mix(state ^ hash(name.as_bytes()));
        }
        Self { state }
    }

    /// The stream keyed by one name more, given by its [`hash`]: `new(s, &[a, b])` is `new(s, &[a]).with(hash(b))`.
    pub fn with(&self, hash: u64) -> Self {
        Self { state: mix(self.state ^ hash) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A uniform number in `0..n` (0 for `n` of 0). The bias of the multiply-and-shift method is below `n / 2^64`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Brings `items` into a random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// FNV-1a, 64 bits, finished as SplitMix64 is: a fixed hash, equal on every machine and in every version.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xCBF2_9CE4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    mix(fnv ^ bytes.len() as u64)
}

/// The finaliser of SplitMix64: a bijection that spreads every input bit over all output bits.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // The first outputs of SplitMix64 from state 0, as in the reference implementation.
        let mut r = Keyed { state: 0 };
        assert_eq!([r.next_u64(), r.next_u64()], [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4]);
    }

    #[test]
    fn keys_are_distinct_and_repeatable() {
        let draw = |names: &[&str]| Keyed::new(1, names).next_u64();
        assert_eq!(draw(&["a", "b"]), draw(&["a", "b"]));
        assert_ne!(draw(&["ab", "c"]), draw(&["a", "bc"]));
        assert_ne!(draw(&["a"]), draw(&["a", ""]));
        assert_ne!(draw(&["a"]), Keyed::new(2, &["a"]).next_u64());
    }

    #[test]
    fn below_is_uniform_and_shuffle_is_a_permutation() {
        let mut r = Keyed::new(3, &["uniform"]);
        let mut counts = [0usize; 7];
        (0..70_000).for_each(|_| counts[r.below(7)] += 1);
        assert!(counts.iter().all(|&c| (9_500..10_500).contains(&c)), "{counts:?}");
        let mut items: Vec<u32> = (0..50).collect();
        r.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
        assert_eq!(r.below(0), 0);
    }
}
