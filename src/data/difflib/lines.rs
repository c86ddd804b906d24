//! The algorithm of CPython's `SequenceMatcher` (no junk function), for sequences of numbered elements such as lines.

use std::hash::Hash;
use std::ops::Range;

use rustc_hash::FxHashMap;

use super::block::{self, Block, Found, Window};

/// A pair of sequences, ready to be matched.
pub struct LineMatcher {
    a: Vec<u32>,
    b: Vec<u32>,
    /// Where in `places` the places of each element of b are; empty for the popular ones and for elements of a alone.
    ranges: Vec<Range<usize>>,
    /// Ascending places of one element after those of another.
    places: Vec<usize>,
}

impl LineMatcher {
    /// Indexes b. With `autojunk`, elements of a b of 200 or more that make up more than 1 % of it (and one) start no match.
    pub fn new<T: Hash + Eq + Copy>(a: &[T], b: &[T], autojunk: bool) -> Self {
        let mut numbers = FxHashMap::default();
        let mut number = |x: &T| -> u32 {
            let next = numbers.len() as u32;
            *numbers.entry(*x).or_insert(next)
        };
        let b: Vec<u32> = b.iter().map(&mut number).collect();
        let a: Vec<u32> = a.iter().map(&mut number).collect();
        let mut counts = vec![0usize; numbers.len()];
        b.iter().for_each(|&x| counts[x as usize] += 1);
        let most = if autojunk && b.len() >= 200 { b.len() / 100 + 1 } else { usize::MAX };
        let mut ranges = Vec::with_capacity(counts.len());
        let mut end = 0;
        for &count in &counts {
            ranges.push(end..end);
            end += if count > most { 0 } else { count };
        }
        let mut places = vec![0; end];
        for (j, &x) in b.iter().enumerate() {
            if counts[x as usize] <= most {
                places[ranges[x as usize].end] = j;
                ranges[x as usize].end += 1;
            }
        }
        Self { a, b, ranges, places }
    }

    /// `get_matching_blocks()` without the empty last block.
    pub fn matching_blocks(&self) -> Vec<Block> {
        let mut rows = [vec![0u32; self.b.len() + 1], vec![0u32; self.b.len() + 1]];
        let blocks = block::all_matches(self.a.len(), self.b.len(), &mut Vec::new(), |w| self.longest(w, &mut rows));
        block::merged(&blocks)
    }

    /// `ratio()`.
    pub fn ratio(&self) -> f64 {
        let matches = self.matching_blocks().iter().map(|b| b.size).sum();
        block::ratio(matches, self.a.len(), self.b.len())
    }

    /// `find_longest_match`. `rows[_][j + 1]` is how many elements match up to place j, in this row of a and in the one before; all
    /// zero before and after.
    fn longest(&self, w: &Window, rows: &mut [Vec<u32>; 2]) -> Found {
        let mut best = Block { a: w.a_lo, b: w.b_lo, size: 0 };
        let mut before: &[usize] = &[];
        let a_hi = if w.bound == 0 { w.a_lo } else { w.a_hi };
        'rows: for i in w.a_lo..a_hi {
            let all = &self.places[self.ranges[self.a[i] as usize].clone()];
            let first = all.partition_point(|&j| j < w.b_lo);
            let places = &all[first..first + all[first..].partition_point(|&j| j < w.b_hi)];
            let [last, row] = &mut *rows;
            for &j in places {
                let k = last[j] + 1;
                row[j + 1] = k;
                if k as usize > best.size {
                    best = Block { a: i + 1 - k as usize, b: j + 1 - k as usize, size: k as usize };
                    if best.size >= w.bound {
                        before.iter().for_each(|&j| last[j + 1] = 0);
                        before = &[];
                        places.iter().for_each(|&j| row[j + 1] = 0);
                        break 'rows;
                    }
                }
            }
            before.iter().for_each(|&j| last[j + 1] = 0);
            before = places;
            rows.swap(0, 1);
        }
        before.iter().for_each(|&j| rows[0][j + 1] = 0);
        Found { core: best.size, block: self.extended(best, w) }
    }

    /// The match with the equal elements around it, which only popular ones can be.
    fn extended(&self, mut m: Block, w: &Window) -> Block {
        while m.a > w.a_lo && m.b > w.b_lo && self.a[m.a - 1] == self.b[m.b - 1] {
            m = Block { a: m.a - 1, b: m.b - 1, size: m.size + 1 };
        }
        while m.a + m.size < w.a_hi && m.b + m.size < w.b_hi && self.a[m.a + m.size] == self.b[m.b + m.size] {
            m.size += 1;
        }
        m
    }
}
