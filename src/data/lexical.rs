//! Lexical evidence: how well the words of an issue match the words of a file, by BM25 (Robertson and Zaragoza, "The probabilistic
//! relevance framework: BM25 and beyond", 2009). It is the baseline that stands beside every result, and a hint that prompts can carry.

pub mod definitions;

use std::collections::{BTreeMap, HashMap};

use super::{Task, symbols};

/// BM25's saturation of repeated words.
const K1: f64 = 1.5;
/// BM25's share of length normalisation.
const B: f64 = 0.75;

/// What of a file is matched against the issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The words of its path.
    Path,
    /// The words of its path and of its content.
    Content,
}

/// By what candidates are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// BM25 over a field.
    Bm25(Field),
    /// Four such rankings at once ([`fused_scores`]).
    Fused,
}

/// Calls `each` with the words of `text` in lower case: identifiers (runs of letters, digits and `_`) cut at `_` and where camelCase
/// has its humps, and after its parts each identifier of several parts as a whole: `HTTPServer_x2` is http, server, x2, httpserver_x2.
/// Words of one character are left out.
pub fn words(text: &str, mut each: impl FnMut(&str)) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut part = String::new();
    for identifier in text.split(|c| !is_part(c)).filter(|i| !i.is_empty()) {
        let (mut parts, mut before) = (0, '_');
        let mut flush = |part: &mut String| {
            parts += usize::from(!part.is_empty());
            if part.chars().nth(1).is_some() {
                each(part);
            }
            part.clear();
        };
        let mut chars = identifier.chars().peekable();
        while let Some(c) = chars.next() {
            let next_is_lower = chars.peek().is_some_and(|n| n.is_lowercase());
            let hump = c.is_uppercase() && (before.is_lowercase() || before.is_numeric() || (before.is_uppercase() && next_is_lower));
            if hump || c == '_' {
                flush(&mut part);
            }
            if c != '_' {
                part.extend(c.to_lowercase());
            }
            before = c;
        }
        flush(&mut part);
        if parts > 1 {
            each(&identifier.to_lowercase());
        }
    }
}

/// A set of documents that queries are scored against.
pub struct Bm25 {
    postings: HashMap<String, Vec<(usize, u32)>>,
    lengths: Vec<f64>,
    mean_length: f64,
}

impl Bm25 {
    /// Takes in the documents, each given as pieces of text.
    pub fn new<'a, I: IntoIterator<Item = &'a str>>(documents: impl IntoIterator<Item = I>) -> Self {
        let mut postings: HashMap<String, Vec<(usize, u32)>> = HashMap::new();
        let mut lengths = Vec::new();
        for (d, pieces) in documents.into_iter().enumerate() {
            let mut length = 0usize;
            for piece in pieces {
                words(piece, |word| {
                    length += 1;
                    match postings.get_mut(word) {
                        Some(list) => match list.last_mut() {
                            Some((last, n)) if *last == d => *n += 1,
                            _ => list.push((d, 1)),
                        },
                        None => drop(postings.insert(word.to_owned(), vec![(d, 1)])),
                    }
                });
            }
            lengths.push(length as f64);
        }
        let mean_length = (lengths.iter().sum::<f64>() / lengths.len().max(1) as f64).max(1.0);
        Self { postings, lengths, mean_length }
    }

    /// Each document's score for the query, whose words count as often as they are there: sum over them of
    /// `idf * f (k1 + 1) / (f + k1 (1 - b + b |d| / mean))` with `idf = ln(1 + (N - n + 1/2) / (n + 1/2))`, k1 1.5, b 0.75.
    pub fn scores(&self, query: &str) -> Vec<f64> {
        self.scores_weighed(query, |times| times)
    }

    /// The same, where a word that is `n` times in the query counts `1 + ln n` times: a long issue repeats what it quotes.
    pub fn scores_damped(&self, query: &str) -> Vec<f64> {
        self.scores_weighed(query, |times| 1.0 + times.ln())
    }

    fn scores_weighed(&self, query: &str, weight: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut scores = vec![0.0; self.lengths.len()];
        for (word, times) in word_counts(query) {
            let Some(list) = self.postings.get(&word) else { continue };
            let idf = weight(f64::from(times)) * self.idf(list.len());
            for &(d, n) in list {
                let n = f64::from(n);
                scores[d] += idf * n * (K1 + 1.0) / (n + K1 * (1.0 - B + B * self.lengths[d] / self.mean_length));
            }
        }
        scores
    }

    /// For each document the query's words that it holds, rarest first (then in alphabetical order); words that all documents hold
    /// tell nothing and are left out.
    pub fn matched_words(&self, query: &str) -> Vec<Vec<String>> {
        let mut out: Vec<Vec<(usize, String)>> = vec![Vec::new(); self.lengths.len()];
        for word in word_counts(query).into_keys() {
            let Some(list) = self.postings.get(&word).filter(|l| l.len() < self.lengths.len()) else { continue };
            list.iter().for_each(|&(d, _)| out[d].push((list.len(), word.clone())));
        }
        let strip = |mut words: Vec<(usize, String)>| {
            words.sort();
            words.into_iter().map(|(_, word)| word).collect()
        };
        out.into_iter().map(strip).collect()
    }

    fn idf(&self, documents_with_word: usize) -> f64 {
        let (n, with) = (self.lengths.len() as f64, documents_with_word as f64);
        (1.0 + (n - with + 0.5) / (with + 0.5)).ln()
    }
}

/// The different words of a text, in a fixed order, and how often each is there.
fn word_counts(text: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    words(text, |word| match counts.get_mut(word) {
        Some(n) => *n += 1,
        None => drop(counts.insert(word.to_owned(), 1)),
    });
    counts
}

/// The index of a task's `candidates`, with what `files` knows of their contents.
pub fn index<S: AsRef<str>>(candidates: &[S], files: &BTreeMap<String, String>, field: Field) -> Bm25 {
    Bm25::new(candidates.iter().map(|path| {
        let content = (field == Field::Content).then(|| files.get(path.as_ref()).map(String::as_str)).flatten();
        std::iter::once(path.as_ref()).chain(content)
    }))
}

/// Every candidate's score by four rankings at once: BM25 of paths, of contents, of the names that a file defines, and of contents for
/// the issue's first line alone, which says most in the fewest words. Each ranking is divided by its best score, and the four are added up
/// (CombSUM; Fox and Shaw, "Combination of multiple searches", 1994). Equal weights: nothing here was fitted.
pub fn fused_scores<S: AsRef<str>>(issue: &str, candidates: &[S], files: &BTreeMap<String, String>) -> Vec<f64> {
    let names: Vec<String> = candidates
        .iter()
        .map(|path| files.get(path.as_ref()).map_or(String::new(), |text| symbols::defined_names(path.as_ref(), text).join(" ")))
        .collect();
    let contents = index(candidates, files, Field::Content);
    let rankings = [
        index(candidates, files, Field::Path).scores(issue),
        contents.scores(issue),
        contents.scores(title(issue)),
        Bm25::new(names.iter().map(|text| [text.as_str()])).scores(issue),
    ];
    let mut fused = vec![0.0; candidates.len()];
    rankings.iter().for_each(|scores| add_normalised(&mut fused, scores));
    fused
}

/// The first line of an issue that is not blank.
fn title(issue: &str) -> &str {
    issue.lines().find(|line| !line.trim().is_empty()).unwrap_or("")
}

/// Adds scores divided by the best of them; where none is above 0, nothing.
fn add_normalised(sum: &mut [f64], scores: &[f64]) {
    let best = scores.iter().copied().fold(0.0, f64::max);
    if best > 0.0 {
        sum.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score / best);
    }
}

/// Every candidate's score. Where the contents of some are not known, paths alone count: else files would rank high for being known.
pub fn scores<S: AsRef<str>>(issue: &str, candidates: &[S], files: &BTreeMap<String, String>, ranking: Ranking) -> Vec<f64> {
    let known = candidates.iter().all(|path| files.contains_key(path.as_ref()));
    match if known { ranking } else { Ranking::Bm25(Field::Path) } {
        Ranking::Bm25(field) => index(candidates, files, field).scores(issue),
        Ranking::Fused => fused_scores(issue, candidates, files),
    }
}

/// The paths of `candidates` with their [`scores`], best match of the task's issue first; equal scores in the order of the candidates.
pub fn ranked<S: AsRef<str>>(task: &Task, candidates: &[S], ranking: Ranking) -> Vec<(String, f64)> {
    let scores = scores(&task.problem_statement, candidates, &task.files, ranking);
    let mut ranked: Vec<(String, f64)> = candidates.iter().map(|path| path.as_ref().to_owned()).zip(scores).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// The paths alone.
pub fn rank<S: AsRef<str>>(task: &Task, candidates: &[S], ranking: Ranking) -> Vec<String> {
    ranked(task, candidates, ranking).into_iter().map(|(path, _)| path).collect()
}

/// How many of `ranked`, best first, score at least `part` of the best: how sure a retriever is of its first choice. At least one, at
/// most `most`.
pub fn close(ranked: &[(String, f64)], part: f64, most: usize) -> usize {
    let best = ranked.first().map_or(0.0, |(_, score)| *score);
    ranked.iter().take(most).filter(|(_, score)| *score >= part * best).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let mut out = Vec::new();
        words(text, |w| out.push(w.to_owned()));
        out
    }

    #[test]
    fn words_are_cut_at_humps_and_underscores() {
        let words = ["parse", "http", "server2", "parse_httpserver2", "camel", "case", "camelcase", "übergröße"];
        assert_eq!(split("parse_HTTPServer2, camelCase.x Übergröße"), words);
        assert_eq!(split("a/b/c"), Vec::<String>::new());
        assert_eq!(split("sha256Sum ID"), ["sha256", "sum", "sha256sum", "id"]);
    }

    #[test]
    fn scores_by_hand() {
        // Two documents of two words; "red" is in one of them: idf = ln(1 + 1.5 / 1.5) = ln 2, the length factor is 1, and the query has
        // the word twice.
        let bm25 = Bm25::new([["red apple"], ["green apple"]]);
        let scores = bm25.scores("Red red");
        assert!((scores[0] - 2.0 * 2f64.ln() * 2.5 / 2.5).abs() < 1e-12 && scores[1] == 0.0, "{scores:?}");
        assert_eq!(bm25.matched_words("red green apple"), [["red"], ["green"]]);
    }

    #[test]
    fn ranking_finds_paths_and_contents() {
        let files = BTreeMap::from([("a/core.py".to_owned(), "frobnicate".to_owned()), ("b/io.py".to_owned(), "read".to_owned())]);
        let task = Task { problem_statement: "frobnicate fails in io".to_owned(), files, ..Task::default() };
        let candidates = task.known_paths();
        assert_eq!(rank(&task, &candidates, Ranking::Bm25(Field::Path))[0], "b/io.py");
        assert_eq!(
            rank(&Task { problem_statement: "frobnicate".into(), ..task }, &candidates, Ranking::Bm25(Field::Content))[0],
            "a/core.py"
        );
        assert!(Bm25::new(Vec::<[&str; 1]>::new()).scores("x").is_empty());
    }

    #[test]
    fn close_scores_are_counted_from_the_best() {
        let ranked: Vec<(String, f64)> = [4.0, 3.0, 2.9, 1.0].map(|score| ("x".to_owned(), score)).into();
        assert_eq!([0.8, 0.75, 0.7, 0.0].map(|part| close(&ranked, part, 3)), [1, 2, 3, 3]);
        assert_eq!((close(&[], 0.5, 3), close(&ranked, 0.5, 0)), (1, 1));
    }

    #[test]
    fn fused_rankings_count_alike() {
        // The word is in every path's content, so that contents prefer the shortest; one file defines it, one is named after it.
        let files = BTreeMap::from(
            [("a/uses.py", "frob()"), ("b/core.py", "def frob():\n    return 1\n"), ("c/frob.py", "import core\nfrob\n")]
                .map(|(path, text)| (path.to_owned(), text.to_owned())),
        );
        let candidates: Vec<&str> = files.keys().map(String::as_str).collect();
        let scores = fused_scores("\nfrob fails\nbadly", &candidates, &files);
        let of = |field, query: &str| {
            let scores = index(&candidates, &files, field).scores(query);
            let best = scores.iter().copied().fold(0.0, f64::max);
            scores.into_iter().map(move |s| s / best).collect::<Vec<_>>()
        };
        let (path, issue, title) =
            (of(Field::Path, "frob fails badly"), of(Field::Content, "frob fails badly"), of(Field::Content, "frob fails"));
        let names = [0.0, 1.0, 0.0];
        for i in 0..3 {
            assert!((scores[i] - (path[i] + issue[i] + title[i] + names[i])).abs() < 1e-12, "{scores:?}");
        }
        assert_eq!(fused_scores("nothing", &candidates, &files), [0.0; 3]);
    }
}
