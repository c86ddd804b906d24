//! `SequenceMatcher(None, a, b, autojunk=False)` on characters.
//!
//! CPython finds the longest match of a window by looking at every pair of equal characters in it, quadratic in the length of the window.
//! Here the windows of a stream through the suffix automaton of b, made once for the whole of b: a step asks where the last occurrence
//! that ends before the window's end begins, which says how much of the match so far lies inside the window. Updating on strictly longer
//! matches only keeps CPython's ties: the earliest in a, and the first occurrence in b is asked for at the end. Where b's part of a window
//! is at most [`NARROW`] characters, a row of lengths for each character of a is as exact and faster.
//!
//! # Bound on the work
//!
//! A search of a window steps at most twice for each character of a in it, and a step costs O(log |b|) (or a row of [`NARROW`] lengths). A
//! search stops at the first match that is as long as the window's bound (see `block::all_matches`), so a character of a is searched again
//! only below a strictly smaller bound. The bounds are lengths of disjoint matches that surround the window, and different lengths which
//! sum to at most min(|a|, |b|) are fewer than sqrt(2 min(|a|, |b|)). Altogether at most
//! `|a| * 2 (2 sqrt(2 min(|a|, |b|)) + 2)` steps, whatever the texts: for two texts of 50,000 characters at most 1,270 steps a
//! character, where CPython may look at 50,000 characters for each match. No text is repeated, and nothing is indexed again for a window.

use rustc_hash::FxHashMap;

use super::automaton::{Automaton, ROOT};
use super::block::{self, Block, Found, Window};
use super::text::code_points;

/// The widest part of b that is matched by rows.
const NARROW: usize = 96;

/// The symbol of characters that b does not have.
const ABSENT: u32 = u32::MAX;

/// The index of a second text b, for any number of first texts.
pub struct CharIndex {
    ascii: [u32; 128],
    others: FxHashMap<u32, u32>,
    b: Vec<u32>,
    /// The symbols of b in 16 bits, if they all fit.
    narrow: Option<Vec<u16>>,
    automaton: Option<Automaton>,
}

/// Memory that is used again from one text to the next.
#[derive(Default)]
pub struct Scratch {
    a: Vec<u32>,
    stack: Vec<Window>,
    rows: [Vec<i16>; 2],
}

impl CharIndex {
    /// Indexes a text (UTF-8, as [`super::PyText`] has it).
    pub fn new(b: &[u8]) -> Self {
        let mut ascii = [ABSENT; 128];
        let mut others = FxHashMap::default();
        let mut symbols = 0u32;
        let mut number = |point: u32| {
            let slot = if point < 128 { &mut ascii[point as usize] } else { others.entry(point).or_insert(ABSENT) };
            if *slot == ABSENT {
                *slot = symbols;
                symbols += 1;
            }
            *slot
        };
        let b: Vec<u32> = code_points(b).into_iter().map(&mut number).collect();
        // 0xFFFF stands for the characters that b does not have.
        let narrow = (symbols < u32::from(u16::MAX)).then(|| b.iter().map(|&s| s as u16).collect());
        let automaton = (b.len() > NARROW || narrow.is_none()).then(|| Automaton::new(&b, symbols as usize));
        Self { ascii, others, b, narrow, automaton }
    }

    /// Number of characters of the indexed text.
    pub fn len(&self) -> usize {
        self.b.len()
    }

    /// Whether the indexed text is empty.
    pub fn is_empty(&self) -> bool {
        self.b.is_empty()
    }

    /// `get_matching_blocks()` for a first text, without the empty last block.
    pub fn matching_blocks(&self, a: &[u8], scratch: &mut Scratch) -> Vec<Block> {
        block::merged(&self.matches(a, scratch))
    }

    /// `ratio()` for a first text: `2 M / (|a| + |b|)`.
    pub fn ratio(&self, a: &[u8], scratch: &mut Scratch) -> f64 {
        let matches = self.matches(a, scratch).iter().map(|b| b.size).sum();
        block::ratio(matches, scratch.a.len(), self.b.len())
    }

    fn matches(&self, a: &[u8], scratch: &mut Scratch) -> Vec<Block> {
        let symbol = |point: u32| match point {
            0..128 => self.ascii[point as usize],
            _ => self.others.get(&point).copied().unwrap_or(ABSENT),
        };
        let Scratch { a: symbols, stack, rows } = scratch;
        symbols.clear();
        symbols.extend(code_points(a).into_iter().map(symbol));
        block::all_matches(symbols.len(), self.b.len(), stack, |w| {
            let bound = w.bound.min(w.a_hi - w.a_lo).min(w.b_hi - w.b_lo);
            let nothing = Block { a: w.a_lo, b: w.b_lo, size: 0 };
            let block = match (&self.narrow, &self.automaton) {
                _ if bound == 0 => nothing,
                (Some(b), _) if w.b_hi - w.b_lo <= NARROW => longest_by_rows(symbols, b, w, bound, rows),
                (_, Some(automaton)) => longest_by_automaton(symbols, automaton, w, bound),
                // An index without an automaton has at most NARROW symbols, all of them narrow.
                (_, None) => nothing,
            };
            Found { core: block.size, block }
        })
    }
}

/// The longest match of a window, by the automaton of the whole of b.
fn longest_by_automaton(a: &[u32], automaton: &Automaton, w: &Window, bound: usize) -> Block {
    let (b_lo, b_hi) = (w.b_lo as u32, w.b_hi as u32);
    // The longest suffix of what was read that lies in the window, and its state.
    let (mut state, mut len) = (ROOT, 0u32);
    let (mut end, mut best_state, mut best) = (w.a_lo, ROOT, 0u32);
    for (i, &symbol) in a.iter().enumerate().take(w.a_hi).skip(w.a_lo) {
        loop {
            // All strings of a state go on to the same state, so one occurrence, the last, says how long a string may be.
            let next = automaton.step(state, symbol);
            let found = next.and_then(|next| Some((next, automaton.last_before(next, b_hi).filter(|&e| e >= b_lo)?)));
            if let Some((next, last)) = found {
                let kept = len.min(last - b_lo);
                if state == ROOT || kept > automaton.len(automaton.link(state)) {
                    (state, len) = (next, kept + 1);
                    break;
                }
            }
            if state == ROOT {
                len = 0;
                break;
            }
            state = automaton.link(state);
            len = automaton.len(state);
        }
        if len > best {
            (end, best_state, best) = (i + 1, state, len);
            if best as usize >= bound {
                break;
            }
        }
    }
    let size = best as usize;
    let place = if best == 0 { None } else { automaton.first_from(best_state, b_lo + best - 1) };
    match place {
        Some(last) => Block { a: end - size, b: last as usize + 1 - size, size },
        None => Block { a: w.a_lo, b: w.b_lo, size: 0 },
    }
}

/// The longest match of a window whose part of b is narrow: `row[j + 1]` is the length of the match that ends at this character of a and
/// at place j, one more than that of the row before at j - 1.
fn longest_by_rows(a: &[u32], b: &[u16], w: &Window, bound: usize, rows: &mut [Vec<i16>; 2]) -> Block {
    let b = &b[w.b_lo..w.b_hi];
    for row in rows.iter_mut() {
        row.clear();
        row.resize(b.len() + 1, 0);
    }
    let mut best = Block { a: w.a_lo, b: w.b_lo, size: 0 };
    for (i, &symbol) in a.iter().enumerate().take(w.a_hi).skip(w.a_lo) {
        let symbol = symbol.min(u32::from(u16::MAX)) as u16;
        let [last, row] = &mut *rows;
        let mut longest = 0i16;
        for ((&b, &before), now) in b.iter().zip(last.iter()).zip(&mut row[1..]) {
            *now = if b == symbol { before + 1 } else { 0 };
            longest = longest.max(*now);
        }
        if longest as usize > best.size {
            let size = longest as usize;
            let j = row.iter().position(|&k| k == longest).unwrap_or(0);
            best = Block { a: i + 1 - size, b: w.b_lo + j - size, size };
            if size >= bound {
                break;
            }
        }
        rows.swap(0, 1);
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::LineMatcher;
    use super::*;

    /// What CPython's algorithm says.
    fn slow(a: &str, b: &str) -> Vec<Block> {
        let chars = |t: &str| t.chars().collect::<Vec<_>>();
        LineMatcher::new(&chars(a), &chars(b), false).matching_blocks()
    }

    fn check(a: &str, b: &str) {
        let mut index = CharIndex::new(b.as_bytes());
        let mut scratch = Scratch::default();
        let expected = slow(a, b);
        assert_eq!(index.matching_blocks(a.as_bytes(), &mut scratch), expected, "{a:?} {b:?}");
        // The same without the rows: every window by the automaton.
        index.narrow = None;
        index.automaton.get_or_insert_with(|| {
            let symbols = index.b.iter().max().map_or(0, |&s| s as usize + 1);
            Automaton::new(&index.b, symbols)
        });
        assert_eq!(index.matching_blocks(a.as_bytes(), &mut scratch), expected, "{a:?} {b:?}");
    }

    #[test]
    fn special_texts() {
        let long = |unit: &str, n: usize| unit.repeat(n);
        for (a, b) in [
            (String::new(), String::new()),
            ("a".into(), String::new()),
            (String::new(), "a".into()),
            ("tide".into(), "diet".into()),
            ("diet".into(), "tide".into()),
            ("ab".into(), "acab".into()),
            ("a😀b".into(), "a😁b".into()),
            (long("x", 300), long("x", 200)),
            (long("x", 150) + "y" + &long("x", 150), long("x", 200) + "z" + &long("x", 99)),
            (long("ab", 120), long("ba", 130)),
            (long("x = 1\n", 60), long("x = 2\n", 60)),
            (
                (0..400u32).filter_map(char::from_u32).map(|c| format!("{c}d")).collect(),
                (0..400u32).filter_map(char::from_u32).map(|c| format!("{c}e")).collect(),
            ),
        ] {
            check(&a, &b);
            check(&b, &a);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn short_texts_of_few_letters(a in "[ab]{0,40}", b in "[abc]{0,40}") {
            check(&a, &b);
        }

        #[test]
        fn long_texts_of_repeated_pieces(a in "(abc|abd|x|yy|\n    |é|😀){0,120}", b in "(abc|abd|x|yy|\n    |é|ß){0,120}") {
            check(&a, &b);
        }

        #[test]
        fn edited_texts(base in "(if |x|y|z|\n|    |return |self\\.|= ){50,150}", cut in 0usize..400, len in 0usize..60, new in "[a-z =]{0,30}") {
            let chars: Vec<char> = base.chars().collect();
            let (from, to) = (cut.min(chars.len()), (cut + len).min(chars.len()));
            let edited: String = chars[..from].iter().copied().chain(new.chars()).chain(chars[to..].iter().copied()).collect();
            check(&base, &edited);
            check(&edited, &base);
        }
    }
}
