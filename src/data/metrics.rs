//! How well answers hit: precision, recall, F-beta, and the table of a whole evaluation.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Interval};
use super::lexical::definitions::{self, Named};
use super::lexical::{Ranking, rank};
use super::{Task, ground_truth};
use crate::Result;

/// SoRFT's beta: recall weighs three times as much as precision.
pub const BETA: f64 = 3.0;

/// Which number of an answer is its reward (SoRFT's ablation, arXiv 2502.20127, figure 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreKind {
    /// F-beta of the answered set.
    Fbeta,
    /// F-beta with beta 1.
    F1,
    /// 1 if the answered set is the gold set.
    Exact,
    /// 1 if the answered set holds any gold element.
    Hit,
}

/// How an answered set O compares with the gold set A.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SetScore {
    /// |O|: how many different elements were answered.
    pub answers: usize,
    /// |A|.
    pub gold: usize,
    /// |O and A|.
    pub common: usize,
    /// True if the first answered element is in A.
    pub first: bool,
    /// False for an answer that earns nothing: nothing in it, or an element that is not in the prompt.
    pub valid: bool,
}

impl SetScore {
    /// Compares an answer, its elements in the order given (equal ones count once), with the gold set.
    pub fn new<T: Ord>(answered: &[T], gold: &BTreeSet<T>, valid: bool) -> Self {
        let set: BTreeSet<&T> = answered.iter().collect();
        Self {
            answers: set.len(),
            gold: gold.len(),
            common: set.iter().filter(|e| gold.contains(**e)).count(),
            first: answered.first().is_some_and(|e| gold.contains(e)),
            valid,
        }
    }

    /// |O and A| / |O|; 0 for an empty answer.
    pub fn precision(&self) -> f64 {
        ratio(self.common, self.answers)
    }

    /// |O and A| / |A|; 0 for an empty gold set.
    pub fn recall(&self) -> f64 {
        ratio(self.common, self.gold)
    }

    /// `(1 + b^2) P R / (b^2 P + R)`; 0 where nothing is in common, or the answer is not valid.
    pub fn fbeta(&self, beta: f64) -> f64 {
        if !self.valid || self.common == 0 {
            return 0.0;
        }
        let (p, r, b2) = (self.precision(), self.recall(), beta * beta);
        (1.0 + b2) * p * r / (b2 * p + r)
    }

    /// The reward that this answer earns.
    pub fn reward(&self, kind: ScoreKind, beta: f64) -> f64 {
        let flag = |b: bool| f64::from(u8::from(b && self.valid));
        match kind {
            ScoreKind::Fbeta => self.fbeta(beta),
            ScoreKind::F1 => self.fbeta(1.0),
            ScoreKind::Exact => flag(self.common == self.gold && self.common == self.answers && self.common > 0),
            ScoreKind::Hit => flag(self.common > 0),
        }
    }
}

fn ratio(a: usize, b: usize) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// The means over an evaluation, each with its interval. Answers that are not valid count as 0 everywhere but in `answers`.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// How many answers went in.
    pub n: usize,
    /// Share of answers that are valid.
    pub valid: Interval,
    /// Share that holds any gold element.
    pub hit: Interval,
    /// Share whose first element is gold.
    pub top1: Interval,
    /// Share that is the gold set.
    pub exact: Interval,
    /// Mean precision.
    pub precision: Interval,
    /// Mean recall.
    pub recall: Interval,
    /// Mean F1.
    pub f1: Interval,
    /// Mean F-beta.
    pub fbeta: Interval,
    /// Mean number of elements answered.
    pub answers: Interval,
}

impl Table {
    /// The table of `scores`; `clusters[i]` names what score i is drawn with (its repository), for intervals that hold beyond the
    /// repositories seen. Without clusters every score counts as drawn by itself.
    pub fn new(scores: &[SetScore], beta: f64, clusters: Option<&[&str]>, bootstrap: &Bootstrap) -> Self {
        let mean = |value: &dyn Fn(&SetScore) -> f64| {
            let values: Vec<f64> = scores.iter().map(value).collect();
            bootstrap.mean(&values, clusters)
        };
        let if_valid = |s: &SetScore, value: f64| if s.valid { value } else { 0.0 };
        Self {
            n: scores.len(),
            valid: mean(&|s| f64::from(u8::from(s.valid))),
            hit: mean(&|s| s.reward(ScoreKind::Hit, beta)),
            top1: mean(&|s| if_valid(s, f64::from(u8::from(s.first)))),
            exact: mean(&|s| s.reward(ScoreKind::Exact, beta)),
            precision: mean(&|s| if_valid(s, s.precision())),
            recall: mean(&|s| if_valid(s, s.recall())),
            f1: mean(&|s| s.fbeta(1.0)),
            fbeta: mean(&|s| s.fbeta(beta)),
            answers: mean(&|s| s.answers as f64),
        }
    }
}

/// What naming the best `k` candidates by BM25 scores, for each `k` of `1..=most`: entry `[k - 1][task]`. The candidates of each task
/// are `candidates[task]` (those of its prompt, say, so that a model and BM25 choose from the same), or without them its
/// [`Task::file_paths`]. Contents can only be matched where the task has them.
///
/// # Panics
///
/// If there are candidates for fewer tasks than there are.
pub fn bm25_scores(tasks: &[Task], candidates: Option<&[Vec<String>]>, ranking: Ranking, most: usize) -> Result<Vec<Vec<SetScore>>> {
    let mut out = vec![Vec::with_capacity(tasks.len()); most];
    for (i, task) in tasks.iter().enumerate() {
        let gold = task.gold()?;
        let ranked = match candidates {
            Some(lists) => rank(task, &lists[i], ranking),
            None => rank(task, &task.file_paths(), ranking),
        };
        score_heads(&ranked, &gold, &mut out);
    }
    Ok(out)
}

/// The same for definitions, among all those of the files whose contents each task has: entry `[k - 1][task]`.
pub fn bm25_definition_scores(tasks: &[&Task], ranking: Ranking, most: usize) -> Result<Vec<Vec<SetScore>>> {
    let mut out = vec![Vec::with_capacity(tasks.len()); most];
    for task in tasks {
        let gold = ground_truth::functions(task)?;
        let ranked = definitions::ranked(&task.problem_statement, &task.files, ranking);
        let named: Vec<Named> = ranked.into_iter().take(most).map(|(named, _)| named).collect();
        score_heads(&named, &gold, &mut out);
    }
    Ok(out)
}

/// Adds to `out[k - 1]` what naming the first `k` of `ranked` scores.
fn score_heads<T: Ord>(ranked: &[T], gold: &BTreeSet<T>, out: &mut [Vec<SetScore>]) {
    for (k, scores) in out.iter_mut().enumerate() {
        let named = &ranked[..ranked.len().min(k + 1)];
        scores.push(SetScore::new(named, gold, !named.is_empty()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::lexical::Field;

    fn score(answered: &[u8], gold: &[u8], valid: bool) -> SetScore {
        SetScore::new(answered, &gold.iter().copied().collect(), valid)
    }

    #[test]
    fn scores_by_hand() {
        let s = score(&[1, 2, 2, 3], &[2, 4], true);
        assert_eq!((s.answers, s.gold, s.common, s.first), (3, 2, 1, false));
        let (p, r) = (1.0 / 3.0, 0.5);
        assert_eq!((s.precision(), s.recall()), (p, r));
        assert!((s.fbeta(3.0) - 10.0 * p * r / (9.0 * p + r)).abs() < 1e-15);
        assert!((s.reward(ScoreKind::F1, 3.0) - 0.4).abs() < 1e-15);
        assert_eq!((s.reward(ScoreKind::Hit, 3.0), s.reward(ScoreKind::Exact, 3.0)), (1.0, 0.0));
        let all = score(&[4, 2], &[2, 4], true);
        assert_eq!([ScoreKind::Fbeta, ScoreKind::F1, ScoreKind::Exact, ScoreKind::Hit].map(|k| all.reward(k, 3.0)), [1.0; 4]);
        let invalid = score(&[4, 2], &[2, 4], false);
        assert_eq!([ScoreKind::Fbeta, ScoreKind::F1, ScoreKind::Exact, ScoreKind::Hit].map(|k| invalid.reward(k, 3.0)), [0.0; 4]);
        assert_eq!(score(&[], &[], true).reward(ScoreKind::Exact, 3.0), 0.0);
    }

    #[test]
    fn the_table_averages_and_counts_invalid_answers_as_nothing() {
        let scores = [score(&[1], &[1], true), score(&[1, 2], &[2], true), score(&[1], &[1], false)];
        let t = Table::new(&scores, BETA, None, &Bootstrap::default());
        assert_eq!((t.n, t.valid.mean, t.hit.mean, t.top1.mean, t.exact.mean), (3, 2.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0));
        assert_eq!((t.precision.mean, t.answers.mean), (0.5, 4.0 / 3.0));
    }

    #[test]
    fn bm25_names_the_best_of_the_candidates_given() {
        let files = ["src/parser.py", "src/core.py", "src/io.py"].map(|p| (p.to_owned(), String::new())).into_iter().collect();
        let gold_files = Some(vec!["src/parser.py".to_owned()]);
        let task = Task { files, gold_files, problem_statement: "the parser of core".to_owned(), ..Task::default() };
        let hits = |candidates: Option<&[Vec<String>]>| -> Vec<f64> {
            let scores = bm25_scores(std::slice::from_ref(&task), candidates, Ranking::Bm25(Field::Path), 3).unwrap();
            scores.iter().map(|s| s[0].reward(ScoreKind::Hit, BETA)).collect()
        };
        assert_eq!(hits(None)[1..], [1.0, 1.0]);
        let two = ["src/io.py", "src/parser.py"].map(str::to_owned).to_vec();
        assert_eq!(hits(Some(&[two])), [1.0, 1.0, 1.0]);
    }

    proptest! {
        #[test]
        fn scores_stay_in_their_bounds(answered in proptest::collection::vec(0u8..12, 0..12), gold in proptest::collection::vec(0u8..12, 0..6), beta in 0.0f64..10.0) {
            let s = score(&answered, &gold, !answered.is_empty());
            let f = s.fbeta(beta);
            prop_assert!((0.0..=1.0 + 1e-12).contains(&f));
            let (low, high) = (s.precision().min(s.recall()), s.precision().max(s.recall()));
            prop_assert!(f == 0.0 || (low - 1e-12..=high + 1e-12).contains(&f), "between precision and recall");
            prop_assert!(s.reward(ScoreKind::Exact, beta) <= s.reward(ScoreKind::Hit, beta));
        }
    }
}
