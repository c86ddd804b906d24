//! Which block of the device attends with which tokens to which keys: tables made once a batch from the plan's segments.
//!
//! A token's bits do not depend on how the work is cut (`kernels/attention.cu`), so the cut is free to follow speed alone: whole histories
//! where there are many tokens, a block for each split of the history where there are few, with the tokens that share a split's pages (the
//! answers of one prompt) in one block, so that those pages are read once for all of them.

use crate::Result;
use crate::tensor::cuda::{Buffer, Gpu};
use crate::tensor::ops::attention::Heads;
use crate::tensor::ops::matmul;
use crate::tensor::plan::{Segment, TILE};
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// Pairs of a token and a query head in one block (`ROWS` of the kernel).
pub const PAIRS: usize = 64;
/// The same where two warpgroups share a block's pages (`kernels/attention_hopper.cu`, `kernels/attention_bwd_q_hopper.cu`).
pub(super) const HOPPER_PAIRS: usize = 2 * PAIRS;
/// Keys after which the softmax begins afresh (`SPLIT` of the kernel).
pub const SPLIT: usize = 256;

/// How the work of a batch is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A block goes through all that its tokens see.
    Whole,
    /// A block for each split; a second launch merges.
    Split,
}

/// The tables of a batch, on the device.
#[derive(Debug)]
pub struct Work {
    pub(super) tokens: usize,
    pub(super) group: usize,
    pub(super) items: Buffer,
    pub(super) rows: Buffer,
    pub(super) pages: Buffer,
    pub(super) positions: Buffer,
    pub(super) merge: Option<MergeTables>,
    /// Whether an item is for two warpgroups of Hopper's kernels.
    pub(super) hopper: bool,
    /// The pages that `pages` speaks of are below this.
    pub(super) page_limit: usize,
}

/// For each token, the entries of `rows` that are its splits, in order.
#[derive(Debug)]
pub(super) struct MergeTables {
    pub order: Buffer,
    pub starts: Buffer,
}

impl Work {
    /// The work of some segments, cut in the way that suits their lengths: a few tokens each is decoding.
    ///
    /// # Errors
    /// If the device is out of memory or failed.
    ///
    /// # Panics
    /// If the segments do not cover rows `0..T` in order.
    pub fn new(gpu: &Arc<Gpu>, segments: &[Segment], heads: Heads) -> Result<Self> {
        let few = segments.iter().all(|s| s.tokens.len() <= PAIRS / heads.group());
        Self::cut(gpu, segments, heads, if few { Cut::Split } else { Cut::Whole })
    }

    /// The same, cut in a given way.
    ///
    /// # Errors
    /// As [`Work::new`].
    ///
    /// # Panics
    /// As [`Work::new`].
    pub fn cut(gpu: &Arc<Gpu>, segments: &[Segment], heads: Heads, cut: Cut) -> Result<Self> {
        let hopper = cut == Cut::Whole && matmul::cuda::takes_wgmma(gpu)?;
        Self::with_tables(gpu, segments, heads, cut, hopper)
    }

    /// The same for the blocks of 64 pairs that all chips have, or for Hopper's of 128.
    pub(super) fn with_tables(gpu: &Arc<Gpu>, segments: &[Segment], heads: Heads, cut: Cut, hopper: bool) -> Result<Self> {
        super::check(heads)?;
        let pairs = if hopper { HOPPER_PAIRS } else { PAIRS };
        let mut tokens = 0;
        let mut positions = Vec::new();
        for s in segments {
            assert_eq!(s.tokens.start, tokens, "segments cover the packed rows in order");
            tokens = s.tokens.end;
            positions.extend((s.start..s.end()).map(|p| p as u32));
        }
        let tables = match cut {
            Cut::Whole => Tables::whole(segments, pairs / heads.group()),
            Cut::Split => Tables::split(segments, PAIRS / heads.group()),
        };
        let merge = match cut {
            Cut::Whole => None,
            Cut::Split => {
                let (order, starts) = tables.merge_order(tokens);
                Some(MergeTables { order: Buffer::from_u32(gpu, &order)?, starts: Buffer::from_u32(gpu, &starts)? })
            }
        };
        let page_limit = tables.pages.iter().max().map_or(0, |p| *p as usize + 1);
        Ok(Self {
            tokens,
            group: heads.group(),
            items: Buffer::from_u32(gpu, &tables.items.concat())?,
            rows: Buffer::from_u32(gpu, &tables.rows)?,
            pages: Buffer::from_u32(gpu, &tables.pages)?,
            positions: Buffer::from_u32(gpu, &positions)?,
            merge,
            hopper,
            page_limit,
        })
    }

    /// The work of a step of decoding, from buffers of any room that [`DecodeTables`] are uploaded to: items beyond the tables' have no tokens
    /// (zeros), tokens beyond theirs no entries (`starts` goes on with its last number). `order` and `rows` have the same length, the number of
    /// tokens is that of `positions`.
    ///
    /// # Errors
    /// If the kernels do not know such heads.
    pub fn decoding(
        heads: Heads,
        items: Buffer,
        rows: Buffer,
        pages: Buffer,
        positions: Buffer,
        (order, starts): (Buffer, Buffer),
    ) -> Result<Self> {
        super::check(heads)?;
        let (tokens, group) = (positions.len(), heads.group());
        // Which pages there are is known when the tables are.
        Ok(Self { tokens, group, items, rows, pages, positions, merge: Some(MergeTables { order, starts }), hopper: false, page_limit: 0 })
    }

    /// Blocks for each kv head.
    pub fn num_items(&self) -> usize {
        self.items.len() / 5
    }
}

/// The tables of a step of decoding, cut in splits, on the host: for a [`Work`] whose tables have more room ([`Work::decoding`]).
#[derive(Debug)]
pub struct DecodeTables {
    /// Five numbers each.
    pub items: Vec<u32>,
    /// The tokens of items, one item's after another's.
    pub rows: Vec<u32>,
    /// For each token, the entries of `rows` that are its splits, in order.
    pub order: Vec<u32>,
    /// Where each token's entries begin in `order`, and where the last one's end.
    pub starts: Vec<u32>,
    /// The pages of segments, one segment's after another's.
    pub pages: Vec<u32>,
}

impl DecodeTables {
    /// The tables of some segments.
    pub fn new(segments: &[Segment], heads: Heads) -> Self {
        let tables = Tables::split(segments, PAIRS / heads.group());
        let (order, starts) = tables.merge_order(segments.last().map_or(0, |s| s.tokens.end));
        Self { items: tables.items.into_flattened(), rows: tables.rows, order, starts, pages: tables.pages }
    }
}

/// The tables on the host. An item is (first entry of `rows`, tokens, first entry of `pages`, first key, one past the last key).
#[derive(Debug, Default)]
struct Tables {
    items: Vec<[u32; 5]>,
    rows: Vec<u32>,
    pages: Vec<u32>,
    /// Where each segment's pages begin in `pages`.
    first_page: Vec<usize>,
}

/// Rows that see the same pages whole, and one of the segments that name them.
struct Sharers {
    segment: usize,
    /// The split.
    begin: usize,
    rows: Vec<usize>,
}

impl Tables {
    fn new(segments: &[Segment]) -> Self {
        let mut tables = Self::default();
        for s in segments {
            tables.first_page.push(tables.pages.len());
            tables.pages.extend(&s.pages);
        }
        tables
    }

    fn push(&mut self, rows: impl IntoIterator<Item = usize>, segment: usize, begin: usize, end: usize) {
        let first = self.rows.len();
        self.rows.extend(rows.into_iter().map(|r| r as u32));
        let numbers = [first, self.rows.len() - first, self.first_page[segment], begin, end];
        self.items.push(numbers.map(|n| u32::try_from(n).expect("tables of a batch are counted in 32 bits")));
    }

    fn whole(segments: &[Segment], rows_of_item: usize) -> Self {
        let mut tables = Self::new(segments);
        for (i, s) in segments.iter().enumerate() {
            for from in s.tokens.clone().step_by(rows_of_item) {
                let to = (from + rows_of_item).min(s.tokens.end);
                tables.push(from..to, i, 0, s.start + to - s.tokens.start);
            }
        }
        // The longest first, so that none of them is what a launch ends with.
        tables.items.sort_by_key(|item| std::cmp::Reverse(item[4]));
        tables
    }

    fn split(segments: &[Segment], rows_of_item: usize) -> Self {
        let mut tables = Self::new(segments);
        // Tokens that see all of a split's pages, by those pages, whatever their segments.
        let mut found: FxHashMap<(usize, &[u32]), usize> = FxHashMap::default();
        let mut shared: Vec<Sharers> = Vec::new();
        for (i, s) in segments.iter().enumerate() {
            for from in s.tokens.clone().step_by(rows_of_item) {
                let to = (from + rows_of_item).min(s.tokens.end);
                for begin in (0..s.start + to - s.tokens.start).step_by(SPLIT) {
                    let end = begin + SPLIT;
                    let position = |row: usize| s.start + row - s.tokens.start;
                    // The rows that reach into the split, those among them that see it whole last.
                    let reaching = (from..to).find(|r| position(*r) >= begin).unwrap_or(to)..to;
                    let all = (from..to).find(|r| position(*r) + 1 >= end).unwrap_or(to);
                    if reaching.start < all {
                        tables.push(reaching.start..all, i, begin, position(all - 1) + 1);
                    }
                    if all < to {
                        let pages = &s.pages[begin / TILE..end / TILE];
                        let at = *found.entry((begin, pages)).or_insert(shared.len());
                        if at == shared.len() {
                            shared.push(Sharers { segment: i, begin, rows: Vec::new() });
                        }
                        shared[at].rows.extend(all..to);
                    }
                }
            }
        }
        for Sharers { segment, begin, rows } in shared {
            for rows in rows.chunks(rows_of_item) {
                tables.push(rows.iter().copied(), segment, begin, begin + SPLIT);
            }
        }
        tables
    }

    /// The entries of `rows` by token, by position inside one; and where each token's begin.
    fn merge_order(&self, tokens: usize) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0; tokens + 1];
        self.rows.iter().for_each(|row| starts[*row as usize + 1] += 1);
        (0..tokens).for_each(|t| starts[t + 1] += starts[t]);
        let mut entries = vec![(0, 0); self.rows.len()];
        let mut next = starts.clone();
        for &[first, count, _, begin, _] in &self.items {
            for entry in first..first + count {
                let place = &mut next[self.rows[entry as usize] as usize];
                entries[*place as usize] = (begin, entry);
                *place += 1;
            }
        }
        starts.windows(2).for_each(|w| entries[w[0] as usize..w[1] as usize].sort_unstable());
        (entries.into_iter().map(|(_, entry)| entry).collect(), starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::plan::{Plan, Tree};

    /// One token of each of three answers, at positions 600, 600 and 515, in the pages of a prompt of 512.
    fn decoding() -> Vec<Segment> {
        let plan = Plan::for_trees(&[Tree::prompt_with_answers(&[0; 512], &[vec![0; 89], vec![0; 89], vec![0; 4]])]);
        let answers = plan.segments[1..].iter().enumerate();
        answers.map(|(i, s)| Segment { parent: None, tokens: i..i + 1, start: s.end() - 1, pages: s.pages.clone() }).collect()
    }

    #[test]
    fn answers_of_one_prompt_share_its_splits() {
        let tables = Tables::split(&decoding(), 64);
        let work: Vec<(&[u32], u32, u32)> =
            tables.items.iter().map(|i| (&tables.rows[i[0] as usize..(i[0] + i[1]) as usize], i[3], i[4])).collect();
        let shared: &[u32] = &[0, 1, 2];
        assert_eq!(work, [(&[0][..], 512, 601), (&[1], 512, 601), (&[2], 512, 516), (shared, 0, 256), (shared, 256, 512)]);
        let (order, starts) = tables.merge_order(3);
        assert_eq!(starts, [0, 3, 6, 9]);
        assert_eq!(order, [3, 6, 0, 4, 7, 1, 5, 8, 2]);
    }

    #[test]
    fn every_token_meets_every_key_once() {
        let plan = Plan::for_trees(&[Tree::prompt_with_answers(&[0; 300], &[vec![0; 230], vec![0; 1], vec![0; 77]])]);
        for rows_of_item in [1, 9, 64] {
            for tables in [Tables::whole(&plan.segments, rows_of_item), Tables::split(&plan.segments, rows_of_item)] {
                let mut seen = vec![0; plan.num_tokens()];
                for &[first, count, first_page, begin, end] in &tables.items {
                    assert!(count as usize <= rows_of_item && begin < end);
                    for &row in &tables.rows[first as usize..(first + count) as usize] {
                        let segment = plan.segments.iter().find(|s| s.tokens.contains(&(row as usize))).expect("a row has a segment");
                        for tile in begin as usize / TILE..(end as usize).div_ceil(TILE) {
                            assert_eq!(tables.pages[first_page as usize + tile], segment.pages[tile]);
                        }
                        seen[row as usize] += (plan.positions[row as usize] + 1).min(end) - begin;
                    }
                }
                let want: Vec<u32> = plan.positions.iter().map(|p| p + 1).collect();
                assert_eq!(seen, want);
            }
        }
    }
}
