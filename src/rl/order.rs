//! The order in which examples are trained on: a function of the seed, so a position in it is a whole data cursor.

use crate::tensor::philox::Philox;

/// The stream of random numbers that orders examples; others of the same seed belong to sampling and initialisation.
const STREAM: u64 = 0x006F_7264_6572;

/// An endless order over `n` examples: epoch after epoch, each a fresh permutation (or the file's order).
#[derive(Clone, Debug)]
pub struct Order {
    n: usize,
    random: Option<Philox>,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of `n` examples for a stage of a run; `shuffle = false` keeps the file's.
    pub fn new(n: usize, seed: u64, stage: usize, shuffle: bool) -> Self {
        let random = shuffle.then(|| Philox::new(seed, STREAM ^ (stage as u64) << 48));
        let mut order = Self { n, random, epoch: 0, permutation: Vec::new() };
        order.enter(0);
        order
    }

    /// The example at `cursor`, the number of examples taken before it.
    ///
    /// # Panics
    /// If there are no examples.
    pub fn at(&mut self, cursor: u64) -> usize {
        let (epoch, place) = (cursor / self.n as u64, (cursor % self.n as u64) as usize);
        if epoch != self.epoch {
            self.enter(epoch);
        }
        self.permutation[place]
    }

    fn enter(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.permutation = match &self.random {
            Some(random) => random.permutation(epoch, self.n),
            None => (0..self.n).collect(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_holds_each_example_once_in_its_own_order() {
        let mut order = Order::new(10, 3, 0, true);
        let all: Vec<usize> = (0..30).map(|c| order.at(c)).collect();
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(Order::new(10, 3, 0, true).at(25), all[25], "a cursor is enough to go on");
        assert_eq!((0..5).map(|c| Order::new(3, 3, 0, false).at(c)).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
    }
}
