//! Which keys of a batch meet which queries in the backward pass: tables made once a batch from the plan's segments.
//!
//! Queries come in tiles that are cut from a segment's first token on, so that all keys meet the same tiles. A page meets the last tile of the batch first
//! (`kernels/attention_bwd_hopper.cu` says why); a sum's bits follow from that order, and so it is the order of every kernel.

use crate::tensor::plan::{Plan, Segment, TILE};

/// A page that a block of keys does not have (`NO_PAGE` of the kernel).
const NO_PAGE: u32 = u32::MAX;

/// How queries are cut: a tile is `runs` runs of up to `rows` tokens each.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    pub rows: usize,
    pub runs: usize,
}

/// Tokens of one segment that are taken together.
#[derive(Clone, Copy, Debug)]
struct QueryTile {
    segment: usize,
    first: usize,
    rows: usize,
}

impl Cuts {
    /// The batch's tiles, last first.
    fn tiles(self, segments: &[Segment]) -> Vec<QueryTile> {
        let step = self.rows * self.runs;
        let of = |(segment, s): (usize, &Segment)| {
            let end = s.tokens.end;
            s.tokens.clone().step_by(step).map(move |first| QueryTile { segment, first, rows: step.min(end - first) })
        };
        let mut tiles: Vec<QueryTile> = segments.iter().enumerate().flat_map(of).collect();
        tiles.reverse();
        tiles
    }
}

impl QueryTile {
    /// The pages that its tokens see.
    fn pages(self, segments: &[Segment]) -> &[u32] {
        let s = &segments[self.segment];
        let last = s.start + (self.first + self.rows - 1 - s.tokens.start);
        &s.pages[..=last / TILE]
    }

    /// Its runs whose last token lies at or behind `position`: first token, tokens.
    fn runs(self, segments: &[Segment], cuts: Cuts, position: usize) -> impl Iterator<Item = [u32; 2]> {
        let s = &segments[self.segment];
        let end = self.first + self.rows;
        let runs = (self.first..end).step_by(cuts.rows).map(move |first| (first, cuts.rows.min(end - first)));
        runs.filter(move |(first, rows)| s.start + (first + rows - 1 - s.tokens.start) >= position)
            .map(|(first, rows)| [small(first), small(rows)])
    }
}

fn small(n: usize) -> u32 {
    u32::try_from(n).expect("tables of a batch are counted in 32 bits")
}

/// Where each of some lists begins in their concatenation, and its end.
fn starts<T>(lists: &[Vec<T>]) -> Vec<u32> {
    let ends = lists.iter().scan(0, |sum, list| {
        *sum += list.len();
        Some(*sum)
    });
    std::iter::once(0).chain(ends).map(small).collect()
}

/// The position of each page's first slot, and how many slots are filled.
fn filled(plan: &Plan) -> Vec<[u32; 2]> {
    let mut pages = vec![[0; 2]; plan.num_pages];
    for segment in plan.segments.iter().filter(|s| !s.tokens.is_empty()) {
        for (tile, &page) in segment.pages.iter().enumerate() {
            let begin = tile * TILE;
            let [first, filled] = &mut pages[page as usize];
            *first = small(begin);
            *filled = small((segment.end() - begin).min(TILE)).max(*filled);
        }
    }
    pages
}

/// The tables of a pass over pages alone.
#[derive(Debug)]
pub struct PageTables {
    /// The position of each page's first slot, and how many slots are filled.
    pub pages: Vec<u32>,
    /// (first row, rows): what reads a page.
    pub runs: Vec<u32>,
    /// Where each page's runs begin.
    pub starts: Vec<u32>,
}

impl PageTables {
    /// The tables of a plan that owns its pages.
    pub fn new(plan: &Plan, cuts: Cuts) -> Self {
        let pages = filled(plan);
        let mut runs = vec![Vec::new(); plan.num_pages];
        for tile in cuts.tiles(&plan.segments) {
            for (i, &page) in tile.pages(&plan.segments).iter().enumerate() {
                runs[page as usize].extend(tile.runs(&plan.segments, cuts, i * TILE));
            }
        }
        Self { starts: starts(&runs), pages: pages.concat(), runs: runs.concat().concat() }
    }
}

/// The tables of the pass that forms all gradients at once: blocks of up to two pages, and the turns in which they add to the gradient of a query.
#[derive(Debug)]
pub struct KeyTables {
    /// Two pages, the first position, the turn, slots filled of each: in order of first positions.
    pub blocks: Vec<u32>,
    /// What each block meets: a tile's first token, tokens, its number, the last turn that it has.
    pub tiles: Vec<u32>,
    /// Where each block's tiles begin.
    pub starts: Vec<u32>,
    /// Tiles of the batch.
    pub num_tiles: usize,
}

impl KeyTables {
    /// The tables of a plan that owns its pages.
    pub fn new(plan: &Plan, cuts: Cuts) -> Self {
        let blocks = Blocks::new(plan);
        let tiles = cuts.tiles(&plan.segments);
        let mut met = vec![Vec::new(); blocks.pages.len()];
        for (number, tile) in tiles.iter().enumerate() {
            let mut history: Vec<usize> = tile.pages(&plan.segments).iter().map(|page| blocks.of_page[*page as usize]).collect();
            history.dedup();
            for &block in &history {
                met[block].push([small(tile.first), small(tile.rows), small(number), small(history.len() - 1)]);
            }
        }
        let pages = filled(plan);
        let row = |(own, turn): (&[u32; 2], &u32)| {
            let filled = own.map(|page| pages.get(page as usize).map_or(0, |p| p[1]));
            [own[0], own[1], pages[own[0] as usize][0], *turn, filled[0], filled[1]]
        };
        let rows: Vec<[u32; 6]> = blocks.pages.iter().zip(&blocks.turns).map(row).collect();
        Self { blocks: rows.concat(), starts: starts(&met), tiles: met.concat().concat(), num_tiles: tiles.len() }
    }
}

/// Pages by twos: two that lie one after another in every history that has both, and where none has another in the place of the second.
#[derive(Debug)]
struct Blocks {
    pages: Vec<[u32; 2]>,
    /// How many blocks come before in a history.
    turns: Vec<u32>,
    of_page: Vec<usize>,
}

/// What histories say of a page: its place in them, what comes before it, and what behind it.
#[derive(Clone, Copy, Debug, Default)]
struct Neighbours {
    place: usize,
    before: Option<u32>,
    behind: Behind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Behind {
    #[default]
    Nothing,
    One(u32),
    Several,
}

impl Blocks {
    fn new(plan: &Plan) -> Self {
        let mut known = vec![Neighbours::default(); plan.num_pages];
        for segment in plan.segments.iter().filter(|s| !s.tokens.is_empty()) {
            for (place, &page) in segment.pages.iter().enumerate() {
                let own = &mut known[page as usize];
                own.place = place;
                own.before = place.checked_sub(1).map(|i| segment.pages[i]);
                own.behind = match (own.behind, segment.pages.get(place + 1)) {
                    (behind, None) => behind,
                    (Behind::Nothing, Some(&next)) => Behind::One(next),
                    (Behind::One(other), Some(&next)) if other == next => own.behind,
                    _ => Behind::Several,
                };
            }
        }
        let mut order: Vec<u32> = (0..small(plan.num_pages)).collect();
        order.sort_by_key(|page| known[*page as usize].place);
        let mut blocks = Self { pages: Vec::new(), turns: Vec::new(), of_page: vec![usize::MAX; plan.num_pages] };
        for page in order {
            if blocks.of_page[page as usize] != usize::MAX {
                continue;
            }
            let own = known[page as usize];
            let block = blocks.pages.len();
            let second = if let Behind::One(next) = own.behind { next } else { NO_PAGE };
            blocks.turns.push(own.before.map_or(0, |before| blocks.turns[blocks.of_page[before as usize]] + 1));
            blocks.pages.push([page, second]);
            for page in [page, second].into_iter().filter(|p| *p != NO_PAGE) {
                blocks.of_page[page as usize] = block;
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::plan::Tree;

    /// A prompt of three pages and a bit, with three answers.
    fn plan() -> Plan {
        let answers = [vec![0; 130], vec![0; 1], vec![0; 70]];
        Plan::for_trees(&[Tree::prompt_with_answers(&[0; 200], &answers), Tree::prompt_with_answers(&[0; 5], &[])])
    }

    #[test]
    fn pages_of_a_block_have_the_same_histories() {
        let plan = plan();
        let blocks = Blocks::new(&plan);
        assert_eq!(blocks.of_page.iter().filter(|b| **b == usize::MAX).count(), 0, "every page has a block");
        for segment in &plan.segments {
            let own: Vec<usize> = segment.pages.iter().map(|p| blocks.of_page[*p as usize]).collect();
            let mut once = own.clone();
            once.dedup();
            // The turns of a history are 0, 1, 2, ...: whoever adds to a query's gradient has a turn of its own.
            let turns: Vec<u32> = once.iter().map(|b| blocks.turns[*b]).collect();
            assert_eq!(turns, (0..turns.len() as u32).collect::<Vec<_>>(), "{segment:?}");
        }
        // Of the prompt two pages and one, since answers have copies of the fourth; of the first answer, whose own pages are three, two and one.
        let sizes: Vec<usize> = blocks.pages.iter().map(|p| if p[1] == NO_PAGE { 1 } else { 2 }).collect();
        assert_eq!(sizes.iter().sum::<usize>(), plan.num_pages);
        assert!(sizes.contains(&2) && sizes.contains(&1), "{sizes:?}");
    }

    #[test]
    fn what_a_turn_waits_for_comes_before() {
        for cuts in [Cuts { rows: 64, runs: 1 }, Cuts { rows: 10, runs: 2 }, Cuts { rows: 1, runs: 1 }] {
            let plan = plan();
            let tables = KeyTables::new(&plan, cuts);
            let mut turns = vec![0; tables.num_tiles];
            let mut last = vec![0; tables.num_tiles];
            for (block, ends) in tables.starts.windows(2).enumerate() {
                let turn = tables.blocks[6 * block + 3];
                for tile in tables.tiles[4 * ends[0] as usize..4 * ends[1] as usize].chunks_exact(4) {
                    let number = tile[2] as usize;
                    assert_eq!(turns[number], turn, "in the order of blocks each turn of a tile is the next one");
                    turns[number] += 1;
                    last[number] = tile[3];
                }
            }
            assert!(turns.iter().zip(&last).all(|(turns, last)| *turns == last + 1), "every tile has all its turns");
        }
    }

    #[test]
    fn every_token_meets_every_key_that_it_sees() {
        let plan = plan();
        let cuts = Cuts { rows: 10, runs: 2 };
        let pages = PageTables::new(&plan, cuts);
        let keys = KeyTables::new(&plan, cuts);
        for segment in &plan.segments {
            for row in segment.tokens.clone() {
                let position = segment.start + row - segment.tokens.start;
                let holds = |run: &[u32]| (run[0]..run[0] + run[1]).contains(&(row as u32));
                for &page in &segment.pages[..=position / TILE] {
                    let runs = &pages.runs[2 * pages.starts[page as usize] as usize..2 * pages.starts[page as usize + 1] as usize];
                    assert_eq!(runs.chunks_exact(2).filter(|run| holds(run)).count(), 1, "row {row}, page {page}");
                    let block = keys.blocks.chunks_exact(6).position(|b| b[..2].contains(&page)).expect("every page has a block");
                    let tiles = &keys.tiles[4 * keys.starts[block] as usize..4 * keys.starts[block + 1] as usize];
                    assert_eq!(tiles.chunks_exact(4).filter(|tile| holds(tile)).count(), 1, "row {row}, page {page}");
                }
            }
        }
    }
}
