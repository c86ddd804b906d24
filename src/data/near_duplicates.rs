//! Changes that are made again, or nearly: exact repeats by a hash, near ones by min-hash (Broder, "On the resemblance and containment of
//! documents", 1997) with locality-sensitive hashing (Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4).
//!
//! Of a patch count the names of its files without folders and its changed lines, not what stands around them, white space aside: a
//! backport, a cherry-pick, or the same fix in a copy of a file are repeats. Its words are runs of letters, digits and underscores, and
//! each other character alone; its shingles are all runs of [`SHINGLE`] words, with marks before the first and behind the last, so that
//! every word is in as many. Two patches are as alike as their sets of shingles:
//!
//! ```text
//! J(A, B) = |A intersected with B| / |A united with B|
//! ```
//!
//! A sketch keeps, for each of [`HASHES`] keyed hashes, the least value over the shingles. Two sketches agree in one of them with
//! probability `J`, so the share of those in which they agree is an unbiased estimate of it, with a standard error of
//! `sqrt(J (1 - J) / 128)`: 0.035 at 0.8. Only sketches that agree in all of one of `128 / r` bands of `r` hashes are compared, which those
//! of likeness `J` do with probability `1 - (1 - J^r)^(128 / r)`: for `J = 0.8` and bands of 4 above `1 - 1e-7`. Lower thresholds take bands
//! of fewer hashes, so that a pair at the threshold is missed with a probability below 0.3 %. A kept change costs some 1.5 kB of memory
//! (with bands of 4), whatever its size.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use super::Task;
use super::random::{Keyed, hash};
use crate::{Error, Result};

/// Words of a shingle: one word that differs makes five shingles of each side differ, wherever it stands, so patches of less than some 40
/// words are near duplicates at 0.8 only where they say the same in another order.
pub const SHINGLE: usize = 5;

/// Hashes of a sketch.
pub const HASHES: usize = 128;

/// Hashes that have to agree, all of one band, before two sketches are compared where near duplicates are as alike as `threshold`.
fn rows(threshold: f64) -> usize {
    match threshold {
        t if t >= 0.65 => 4,
        t if t >= 0.3 => 2,
        _ => 1,
    }
}

/// From which likeness on two changes are near duplicates, unless something else is asked for.
pub const THRESHOLD: f64 = 0.8;

/// What is kept of a patch to find it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sketch {
    /// A hash of all that counts of it; none where nothing does (a file that is only renamed, or is not text).
    exact: Option<u64>,
    /// The least value of each hash over its shingles.
    least: [u32; HASHES],
}

/// How a change repeats one that was kept before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// All that counts is the same.
    Exact,
    /// It is at least as alike as the threshold says.
    Near,
}

/// The keys of the hashes. They are part of what is mined: other keys would find other pairs near the threshold.
static KEYS: LazyLock<[u64; HASHES]> = LazyLock::new(|| {
    let mut keys = Keyed::new(0, &["min-hash"]);
    std::array::from_fn(|_| keys.next_u64())
});

impl Sketch {
    /// The sketch of a unified diff.
    pub fn of(patch: &str) -> Self {
        let text = essence(patch);
        let mut least = [u32::MAX; HASHES];
        for shingle in shingles(&text) {
            for (least, key) in least.iter_mut().zip(KEYS.iter()) {
                // Multiplying by an odd number and taking the upper half is a universal hash (Dietzfelbinger et al., 1997) of what
                // `hash` has spread already.
                *least = (*least).min((shingle.wrapping_mul(key | 1).wrapping_add(key.rotate_left(32)) >> 32) as u32);
            }
        }
        Self { exact: (!text.is_empty()).then(|| hash(text.as_bytes())), least }
    }

    /// The estimated likeness of two patches, from 0 to 1.
    pub fn likeness(&self, other: &Self) -> f64 {
        agreeing(&self.least, &other.least) as f64 / HASHES as f64
    }
}

fn agreeing(a: &[u32; HASHES], b: &[u32; HASHES]) -> usize {
    a.iter().zip(b).filter(|(x, y)| x == y).count()
}

/// The changes that were kept.
#[derive(Debug)]
pub struct Seen {
    /// In how many hashes near duplicates agree; more than there are where only exact repeats count.
    needed: usize,
    /// Hashes of a band.
    rows: usize,
    exact: HashSet<u64>,
    kept: Vec<[u32; HASHES]>,
    /// The places of the kept sketches, by the hash of a band and its place.
    bands: HashMap<u64, Vec<u32>>,
}

impl Seen {
    /// Nothing yet. Changes whose likeness is at least `threshold` will be near duplicates; with 1 only exact repeats count.
    ///
    /// # Errors
    ///
    /// A threshold that is not above 0 and at most 1.
    pub fn new(threshold: f64) -> Result<Self> {
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(Error::usage(format!("a likeness of {threshold}: expected a number above 0 and at most 1")));
        }
        let needed = if threshold < 1.0 { (threshold * HASHES as f64).ceil() as usize } else { HASHES + 1 };
        Ok(Self { needed, rows: rows(threshold), exact: HashSet::new(), kept: Vec::new(), bands: HashMap::new() })
    }

    /// Keeps a change, unless it repeats one that is kept: then says how. Which of several it repeats makes no difference. A change of which
    /// nothing counts repeats none.
    ///
    /// # Errors
    ///
    /// Not errors of the program: the repeat.
    pub fn keep(&mut self, sketch: &Sketch) -> Result<(), Repeat> {
        let Some(exact) = sketch.exact else { return Ok(()) };
        if self.exact.contains(&exact) {
            return Err(Repeat::Exact);
        }
        if self.needed <= HASHES {
            let near = |at: &u32| agreeing(&self.kept[*at as usize], &sketch.least) >= self.needed;
            let bands: Vec<u64> = bands(&sketch.least, self.rows).collect();
            if bands.iter().any(|band| self.bands.get(band).is_some_and(|places| places.iter().any(near))) {
                return Err(Repeat::Near);
            }
            // 2^32 changes are some terabytes of sketches.
            let at = self.kept.len() as u32;
            self.kept.push(sketch.least);
            for band in bands {
                self.bands.entry(band).or_default().push(at);
            }
        }
        self.exact.insert(exact);
        Ok(())
    }
}

/// Leaves out the tasks whose patches repeat those of earlier ones: how many exactly, and how many nearly.
///
/// # Errors
///
/// As [`Seen::new`].
pub fn leave_out(tasks: &mut Vec<Task>, threshold: f64) -> Result<(usize, usize)> {
    let (mut seen, mut exact, mut near) = (Seen::new(threshold)?, 0, 0);
    tasks.retain(|task| {
        let repeat = seen.keep(&Sketch::of(&task.patch)).err();
        exact += usize::from(repeat == Some(Repeat::Exact));
        near += usize::from(repeat == Some(Repeat::Near));
        repeat.is_none()
    });
    Ok((exact, near))
}

/// The hashes of a sketch's bands, each with its place.
fn bands(least: &[u32; HASHES], rows: usize) -> impl Iterator<Item = u64> + '_ {
    least.chunks_exact(rows).enumerate().map(|(i, band)| {
        let bytes: Vec<u8> = band.iter().copied().chain([i as u32]).flat_map(u32::to_le_bytes).collect();
        hash(&bytes)
    })
}

/// What counts of a patch, a line each.
fn essence(patch: &str) -> String {
    let mut text = String::new();
    for line in patch.lines() {
        let name = line.strip_prefix("+++ ").or_else(|| line.strip_prefix("--- ")).map(|name| name.rsplit('/').next().unwrap_or(name));
        let changed = line.starts_with(['+', '-']).then_some(line);
        let Some(part) = name.or(changed) else { continue };
        let mut words = part[usize::from(name.is_none())..].split_whitespace().peekable();
        if words.peek().is_some() {
            text.push_str(if name.is_some() { "file" } else { &line[..1] });
            words.for_each(|w| {
                text.push(' ');
                text.push_str(w);
            });
            text.push('\n');
        }
    }
    text
}

/// The hashes of a text's shingles, with `SHINGLE - 1` marks at each end.
fn shingles(text: &str) -> BTreeSet<u64> {
    let marks = || std::iter::repeat_n(0, SHINGLE - 1);
    let words: Vec<u64> = marks().chain(words(text).map(|w| hash(w.as_bytes()))).chain(marks()).collect();
    let one = |run: &[u64]| run.iter().fold(run.len() as u64, |h, w| h.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ w);
    words.windows(SHINGLE).map(|run| hash(&one(run).to_le_bytes())).collect()
}

/// Runs of letters, digits and underscores, and each other character that is no white space alone.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = match is_word(first) {
            true => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patch(path: &str, lines: &[String]) -> String {
        let body: String = lines.iter().map(|l| format!("+{l}\n")).collect();
        format!("diff --git a/{path} b/{path}\nindex 1..2\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n context\n{body}")
    }

    /// `n` lines of four words each, all of them different; those of `changed` are others.
    fn lines(n: usize, changed: std::ops::Range<usize>) -> Vec<String> {
        (0..n).map(|i| if changed.contains(&i) { format!("other{i} = new{i}(y{i})") } else { format!("name{i} = f{i}(x{i})") }).collect()
    }

    /// The likeness itself, of which the sketches' is an estimate.
    fn jaccard(a: &str, b: &str) -> f64 {
        let (a, b) = (shingles(&essence(a)), shingles(&essence(b)));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn what_counts_of_a_patch() {
        let sketch = |path: &str, line: &str| {
            let text = format!("diff --git a/{path} b/{path}\nindex 1..2\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-x\n{line}\n");
            Sketch::of(&text)
        };
        let first = sketch("old/place/a.py", "+y  =  1");
        assert_eq!(first, sketch("new/a.py", "+    y = 1\n+\n z"));
        for other in [sketch("new/b.py", "+y = 1"), sketch("new/a.py", "+y = 2"), sketch("new/a.py", "-y = 1")] {
            assert_ne!(first.exact, other.exact);
            assert!(first.likeness(&other) < 0.8, "a word of a short change says much");
        }
    }

    #[test]
    fn words_are_names_and_single_signs() {
        let of = |text| words(text).collect::<Vec<_>>().join(" ");
        assert_eq!(of("  if a_1==b.c(d):\n"), "if a_1 = = b . c ( d ) :");
        assert_eq!(of("größe→x"), "größe → x");
        assert_eq!(of(" \n"), "");
        assert_eq!((shingles("a b c").len(), shingles("a b c d e").len(), shingles("a b c d e f").len()), (7, 9, 10));
        assert_ne!(shingles("a b c d e"), shingles("b a c d e"));
    }

    #[test]
    fn the_estimate_is_near_the_likeness() {
        let whole = patch("a.py", &lines(60, 0..0));
        for changed in [0, 1, 3, 6, 12, 20, 40, 60] {
            let other = patch("a.py", &lines(60, 0..changed));
            let (estimate, exact) = (Sketch::of(&whole).likeness(&Sketch::of(&other)), jaccard(&whole, &other));
            let error = (exact * (1.0 - exact) / HASHES as f64).sqrt();
            assert!((estimate - exact).abs() <= 3.5 * error, "{changed} lines: {estimate} of {exact}");
        }
    }

    #[test]
    fn the_estimate_is_unbiased_over_many_pairs() {
        let (mut sum, mut square, n) = (0.0, 0.0, 300);
        for i in 0..n {
            let with = |changed| patch("a.py", &lines(30, changed).iter().map(|l| format!("{l} case{i}")).collect::<Vec<_>>());
            let (a, b) = (with(0..0), with(i % 20..i % 20 + 2));
            let (estimate, exact) = (Sketch::of(&a).likeness(&Sketch::of(&b)), jaccard(&a, &b));
            let z = (estimate - exact) / (exact * (1.0 - exact) / HASHES as f64).sqrt();
            (sum, square) = (sum + z, square + z * z);
        }
        let (mean, variance) = (sum / n as f64, square / n as f64);
        assert!(mean.abs() < 4.0 / (n as f64).sqrt(), "{mean}");
        assert!((0.7..1.35).contains(&variance), "{variance}");
    }

    #[test]
    fn near_ones_are_found_and_others_kept() {
        let mut seen = Seen::new(THRESHOLD).unwrap();
        let sketch = |n, changed| Sketch::of(&patch("a.py", &lines(n, changed)));
        assert_eq!(seen.keep(&sketch(80, 0..0)), Ok(()));
        assert_eq!(seen.keep(&sketch(80, 0..0)), Err(Repeat::Exact));
        assert_eq!(seen.keep(&sketch(80, 3..5)), Err(Repeat::Near));
        assert_eq!(seen.keep(&sketch(80, 0..40)), Ok(()));
        assert_eq!(seen.keep(&sketch(80, 0..42)), Err(Repeat::Near), "near the second");
        assert_eq!(seen.keep(&Sketch::of(&patch("b.py", &["x = 1".to_owned()]))), Ok(()));
        assert_eq!(seen.keep(&Sketch::of(&patch("b.py", &["x = 2".to_owned()]))), Ok(()), "short ones must be equal");
        // Twenty words of which the last is another: a different fix, wherever the word stands.
        let mut short = Seen::new(THRESHOLD).unwrap();
        for last in ["return left", "return right"] {
            let text = ["if self.limit == other.limit:".to_owned(), last.to_owned()];
            assert_eq!(short.keep(&Sketch::of(&patch("c.py", &text))), Ok(()), "{last}");
        }
        // Nothing to tell them by: both stay.
        let renamed =
            |to: &str| Sketch::of(&format!("diff --git a/a.py b/{to}\nsimilarity index 100%\nrename from a.py\nrename to {to}\n"));
        assert_eq!((short.keep(&renamed("b.py")), short.keep(&renamed("c.py"))), (Ok(()), Ok(())));
        let mut exact = Seen::new(1.0).unwrap();
        assert_eq!((exact.keep(&sketch(80, 0..0)), exact.keep(&sketch(80, 3..5))), (Ok(()), Ok(())));
        assert_eq!(exact.keep(&sketch(80, 3..5)), Err(Repeat::Exact));
        assert!(exact.kept.is_empty(), "no sketches where none are compared");
        for wrong in [0.0, -1.0, 1.1, f64::NAN] {
            assert!(Seen::new(wrong).is_err());
        }
    }

    #[test]
    fn bands_miss_no_pair_that_comparing_all_would_find() {
        for (threshold, least_kept) in [(THRESHOLD, 50), (0.65, 50), (0.5, 40), (0.3, 20), (0.1, 2)] {
            no_pair_is_missed(threshold, least_kept);
        }
    }

    fn no_pair_is_missed(threshold: f64, least_kept: usize) {
        let mut seen = Seen::new(threshold).unwrap();
        let (mut kept, mut near): (Vec<Sketch>, usize) = (Vec::new(), 0);
        for i in 0..400 {
            // Few lines in common: likenesses from 0 up.
            let other: Vec<String> = lines(25, 0..(i * 7) % 26).iter().map(|l| format!("{l} family{}", i % 23)).collect();
            let sketch = Sketch::of(&patch(&format!("a{}.py", i % 23), &other));
            let expected = kept.iter().any(|k| k.likeness(&sketch) >= threshold);
            assert_eq!(seen.keep(&sketch).is_err(), expected || kept.contains(&sketch), "change {i}");
            if expected {
                near += 1;
            } else {
                kept.push(sketch);
            }
        }
        assert!(near > 50 && kept.len() > least_kept, "at {threshold}: {near} near, {} kept", kept.len());
    }

    proptest! {
        #[test]
        fn any_text_has_a_sketch_and_repeats_itself(text in "(\\+|-| |@@|diff --git |\\+\\+\\+ b/|ä|x_1|→|\n|\t){0,60}") {
            let sketch = Sketch::of(&text);
            prop_assert_eq!(sketch.likeness(&sketch), 1.0);
            let mut seen = Seen::new(0.5).unwrap();
            prop_assert_eq!(seen.keep(&sketch), Ok(()));
            prop_assert_eq!(seen.keep(&sketch), if sketch.exact.is_some() { Err(Repeat::Exact) } else { Ok(()) });
        }
    }
}
