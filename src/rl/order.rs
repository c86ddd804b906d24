//! The order in which examples are trained on: a function of the seed, so a position in it is a whole data cursor.

use crate::tensor::philox::Philox;
use std::ops::Range;

/// The stream of random numbers that orders examples; others of the same seed belong to sampling and initialisation.
const STREAM: u64 = 0x006F_7264_6572;

/// An endless order over `n` examples: epoch after epoch, each a fresh permutation (or the file's order).
#[derive(Clone, Debug)]
struct Single {
    n: usize,
    random: Option<Philox>,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Single {
    fn new(n: usize, seed: u64, stream: u64, shuffle: bool) -> Self {
        let mut order = Self { n, random: shuffle.then(|| Philox::new(seed, stream)), epoch: 0, permutation: Vec::new() };
        order.enter(0);
        order
    }

    fn at(&mut self, cursor: u64) -> usize {
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

/// Examples of one kind in a mixture.
#[derive(Clone, Debug)]
struct Part {
    /// The number of its first example.
    start: usize,
    /// How many of its examples an epoch of the mixture takes.
    share: u64,
    order: Single,
}

/// Several kinds of examples in given shares.
#[derive(Clone, Debug)]
struct Mixture {
    parts: Vec<Part>,
    random: Option<Philox>,
    epoch: u64,
    /// The examples of the epoch, in order.
    examples: Vec<usize>,
}

impl Mixture {
    fn epoch_len(&self) -> u64 {
        self.parts.iter().map(|p| p.share).sum()
    }

    fn at(&mut self, cursor: u64) -> usize {
        let len = self.epoch_len();
        let epoch = cursor / len;
        if epoch != self.epoch || self.examples.is_empty() {
            self.enter(epoch);
        }
        self.examples[(cursor % len) as usize]
    }

    fn enter(&mut self, epoch: u64) {
        self.epoch = epoch;
        // (how far through its part, part, example): in the files' order the parts are spread evenly over the epoch.
        let mut drawn: Vec<(f64, usize, usize)> = Vec::new();
        for (p, part) in self.parts.iter_mut().enumerate() {
            for i in 0..part.share {
                let place = (i as f64 + 0.5) / part.share as f64;
                drawn.push((place, p, part.start + part.order.at(epoch * part.share + i)));
            }
        }
        self.examples = match &self.random {
            Some(random) => random.permutation(epoch, drawn.len()).into_iter().map(|i| drawn[i].2).collect(),
            None => {
                drawn.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                drawn.into_iter().map(|d| d.2).collect()
            }
        };
    }
}

/// An endless order over a stage's examples.
#[derive(Clone, Debug)]
pub struct Order(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Single(Single),
    Mixture(Mixture),
}

impl Order {
    /// The order of `n` examples for a stage of a run, each once an epoch; `shuffle = false` keeps the file's.
    pub fn new(n: usize, seed: u64, stage: usize, shuffle: bool) -> Self {
        Self(Kind::Single(Single::new(n, seed, STREAM ^ (stage as u64) << 48, shuffle)))
    }

    /// The order of a mixture. `parts` are runs of the examples with their weights. An epoch is about as many examples as there are, of part
    /// s `round(w_s / sum of w * all)`, at least one where w_s > 0; a part gives its examples in an order of its own, each once before any twice, over as many epochs of
    /// the mixture as that takes. One part alone is [`Order::new`].
    pub fn mixed(parts: &[(Range<usize>, f64)], seed: u64, stage: usize, shuffle: bool) -> Self {
        if let [(range, _)] = parts {
            return Self::new(range.len(), seed, stage, shuffle);
        }
        let stream = STREAM ^ (stage as u64) << 48;
        let all = parts.iter().map(|(range, _)| range.len()).sum::<usize>() as f64;
        let weights = parts.iter().map(|(_, w)| w).sum::<f64>();
        let part = |(i, (range, weight)): (usize, &(Range<usize>, f64))| Part {
            start: range.start,
            // A part that is wanted at all is never rounded away.
            share: ((weight / weights * all).round() as u64).max(u64::from(*weight > 0.0 && !range.is_empty())),
            order: Single::new(range.len(), seed, stream ^ (i as u64 + 1) << 40, shuffle),
        };
        let parts = parts.iter().enumerate().map(part).collect();
        let random = shuffle.then(|| Philox::new(seed, stream));
        Self(Kind::Mixture(Mixture { parts, random, epoch: 0, examples: Vec::new() }))
    }

    /// The example at `cursor`, the number of examples taken before it.
    ///
    /// # Panics
    /// If there are no examples.
    pub fn at(&mut self, cursor: u64) -> usize {
        match &mut self.0 {
            Kind::Single(order) => order.at(cursor),
            Kind::Mixture(mixture) => mixture.at(cursor),
        }
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
        let mut alone = Order::mixed(&[(0..10, 7.0)], 3, 0, true);
        assert_eq!((0..30).map(|c| alone.at(c)).collect::<Vec<_>>(), all, "one part is no mixture");
    }

    #[test]
    fn a_mixture_keeps_its_weights_and_uses_all_examples_alike() {
        let parts = [(0..20, 1.0), (20..30, 2.0), (30..40, 1.0), (40..40, 0.0)];
        let mut order = Order::mixed(&parts, 5, 1, true);
        let all: Vec<usize> = (0..400).map(|c| order.at(c)).collect();
        for epoch in all.chunks(40) {
            let of = |range: &Range<usize>| epoch.iter().filter(|i| range.contains(i)).count();
            assert_eq!([of(&parts[0].0), of(&parts[1].0), of(&parts[2].0)], [10, 20, 10]);
        }
        // Ten epochs: 100 draws of 20 examples, 200 of 10, 100 of 10.
        let expected = |i| [5, 20, 10][usize::from(i >= 20) + usize::from(i >= 30)];
        assert!((0..40).all(|i| all.iter().filter(|&&x| x == i).count() == expected(i)));
        assert_ne!(all[..40], all[40..80]);
        let mut cursors: Vec<u64> = (0..400).collect();
        cursors.reverse();
        let mut other = Order::mixed(&parts, 5, 1, true);
        assert!(cursors.into_iter().all(|c| other.at(c) == all[c as usize]), "a cursor is enough to go on");
    }

    #[test]
    fn a_small_weight_is_not_rounded_away() {
        let mut order = Order::mixed(&[(0..6, 1.0), (6..12, 0.02), (12..18, 0.0)], 0, 0, true);
        let first: Vec<usize> = (0..19).map(|c| order.at(c)).collect();
        assert_eq!(first.iter().filter(|i| (6..12).contains(*i)).count(), 1);
        assert!(first.iter().all(|i| *i < 12), "a weight of 0 is none");
    }

    #[test]
    fn a_mixture_in_the_order_of_files_is_spread_evenly() {
        let mut order = Order::mixed(&[(0..4, 1.0), (4..6, 1.0)], 0, 0, false);
        assert_eq!((0..12).map(|c| order.at(c)).collect::<Vec<_>>(), [0, 4, 1, 5, 2, 4, 3, 5, 0, 4, 1, 5]);
    }
}
