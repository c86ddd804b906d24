//! Which of many candidate patches is handed in (Agentless, arXiv 2407.01489, section 3.3; Agentless Mini of SWE-RL, arXiv 2502.18449,
//! with CodeT's score, arXiv 2207.10397).

use std::collections::BTreeMap;

use super::pipeline::Pipeline;

/// A candidate patch with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The normalised patch ([`super::normalize`]); empty for one that counts as none.
    pub normalized: String,
    /// How many tests that passed before it fail with it; none where they were not run.
    pub failed_regressions: Option<usize>,
    /// For every reproduction test, whether it passes with the patch; none where they were not run.
    pub reproductions: Option<Vec<bool>>,
}

/// What narrows the candidates down before the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranker {
    /// Keeps those with the fewest failing regression tests.
    Regression,
    /// Keeps the group that CodeT's score is highest for.
    Reproduction,
}

/// The orders of rankers, as Agentless Mini tries them: the first that leaves a candidate decides.
pub const ORDERS: [&[Ranker]; 4] = [
    &[Ranker::Regression, Ranker::Reproduction],
    &[Ranker::Reproduction, Ranker::Regression],
    &[Ranker::Reproduction],
    &[Ranker::Regression],
];

/// The orders of Agentless 1.5: of those with the fewest failing regression tests, those that pass the reproduction test; where none
/// does, all of them. No candidate with more failing regression tests is handed in for its reproduction test.
pub const AGENTLESS: [&[Ranker]; 3] = [&[Ranker::Regression, Ranker::Reproduction], &[Ranker::Regression], &[Ranker::Reproduction]];

/// The orders of a pipeline: those of the system that it follows.
pub fn orders(pipeline: Pipeline) -> &'static [&'static [Ranker]] {
    match pipeline {
        Pipeline::Sorft => &AGENTLESS,
        Pipeline::Mini => &ORDERS,
    }
}

/// The candidate that is handed in: the rankers of the first of `orders` that leaves any narrow the candidates down, and the majority
/// among those decides. Where no order leaves any, all candidates vote. None where every candidate counts as none.
pub fn select(candidates: &[Candidate], orders: &[&[Ranker]]) -> Option<usize> {
    let all: Vec<usize> = (0..candidates.len()).filter(|&i| !candidates[i].normalized.trim().is_empty()).collect();
    let narrowed = orders.iter().map(|order| order.iter().fold(all.clone(), |kept, ranker| ranker.keep(candidates, &kept)));
    let kept = narrowed.into_iter().find(|kept| !kept.is_empty()).unwrap_or(all);
    majority(candidates, &kept)
}

impl Ranker {
    /// Those of the candidates at `places` that the ranker keeps, in their order. None where it knows nothing of them.
    pub fn keep(self, candidates: &[Candidate], places: &[usize]) -> Vec<usize> {
        match self {
            Self::Regression => fewest_failures(candidates, places),
            Self::Reproduction => best_group(candidates, places),
        }
    }
}

fn fewest_failures(candidates: &[Candidate], places: &[usize]) -> Vec<usize> {
    let least = places.iter().filter_map(|&i| candidates[i].failed_regressions).min();
    places.iter().copied().filter(|&i| least.is_some() && candidates[i].failed_regressions == least).collect()
}

/// Groups the candidates by the set `T` of reproduction tests that pass with them, and keeps the group `P` for which `|P| |T|^2` is
/// highest, the one seen first among equals. Where no test passes with any, none is kept.
fn best_group(candidates: &[Candidate], places: &[usize]) -> Vec<usize> {
    let mut groups: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for &i in places {
        if let Some(passed) = &candidates[i].reproductions {
            let tests = passed.iter().enumerate().filter(|(_, p)| **p).map(|(t, _)| t).collect();
            groups.entry(tests).or_default().push(i);
        }
    }
    let score = |tests: &[usize], group: &[usize]| group.len() * tests.len() * tests.len();
    let best = groups.into_iter().filter(|(tests, _)| !tests.is_empty()).max_by_key(|(tests, group)| {
        let first = group.first().copied().unwrap_or(usize::MAX);
        (score(tests, group), std::cmp::Reverse(first))
    });
    best.map(|(_, group)| group).unwrap_or_default()
}

/// One candidate for each different normalised patch, the best first: the one that [`select`] hands in, then the others by how many
/// candidates have their patch, then in the order of the candidates. Candidates that count as none are left out.
pub fn ranked(candidates: &[Candidate], orders: &[&[Ranker]]) -> Vec<usize> {
    let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (i, candidate) in candidates.iter().enumerate().filter(|(_, c)| !c.normalized.trim().is_empty()) {
        groups.entry(&candidate.normalized).or_insert((0, i)).0 += 1;
    }
    let best = select(candidates, orders);
    let mut order: Vec<(usize, usize)> = groups.into_values().collect();
    order.sort_by_key(|&(count, first)| (std::cmp::Reverse(count), first));
    let others = order.into_iter().map(|(_, first)| first);
    let is_best = |i: usize| best.is_some_and(|b| candidates[b].normalized == candidates[i].normalized);
    best.into_iter().chain(others.filter(|&i| !is_best(i))).collect()
}

/// The first candidate of the most frequent normalised patch among those at `places`; among equally frequent ones, of the one seen
/// first.
pub fn majority(candidates: &[Candidate], places: &[usize]) -> Option<usize> {
    let mut votes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for &i in places {
        votes.entry(&candidates[i].normalized).or_insert((0, i)).0 += 1;
    }
    votes.into_values().max_by_key(|&(count, first)| (count, std::cmp::Reverse(first))).map(|(_, first)| first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A normalised patch, its failing regression tests, and 1 for every reproduction test that passes.
    type Row<'a> = (&'a str, Option<usize>, Option<&'a [u8]>);

    fn candidates(rows: &[Row<'_>]) -> Vec<Candidate> {
        let one = |&(text, failed, passed): &Row<'_>| Candidate {
            normalized: text.to_owned(),
            failed_regressions: failed,
            reproductions: passed.map(|p| p.iter().map(|&b| b == 1).collect()),
        };
        rows.iter().map(one).collect()
    }

    #[test]
    fn the_majority_wins_and_ties_go_to_the_first_seen() {
        let vote = |texts: &[&str]| {
            let all = candidates(&texts.iter().map(|t| (*t, None, None)).collect::<Vec<_>>());
            select(&all, &ORDERS)
        };
        assert_eq!(vote(&["a", "b", "b"]), Some(1));
        assert_eq!(vote(&["z", "a", "a", "z"]), Some(0));
        assert_eq!(vote(&["", "", "a"]), Some(2), "empty ones have no vote");
        assert_eq!(vote(&["", " \n"]), None);
        assert_eq!(vote(&[]), None);
        let all = candidates(&["c", "", "b", "a", "b", "a", "c", "b"].map(|t| (t, None, None)));
        assert_eq!(ranked(&all, &ORDERS), [2, 0, 3]);
    }

    #[test]
    fn regressions_come_first() {
        let all = candidates(&[("a", Some(2), None), ("a", Some(2), None), ("b", Some(0), None), ("c", None, None), ("c", None, None)]);
        assert_eq!(Ranker::Regression.keep(&all, &[0, 1, 2, 3, 4]), [2]);
        assert_eq!(select(&all, &ORDERS), Some(2), "no reproduction was run: the last order decides");
    }

    #[test]
    fn the_group_with_the_highest_score_is_kept() {
        // |P| |T|^2: {0, 1} with one test 2, {2} with two tests 4, {3, 4, 5} with one test 3, {6} with none.
        let rows: [Row<'_>; 7] = [
            ("a", None, Some(&[1, 0, 0])),
            ("a", None, Some(&[1, 0, 0])),
            ("b", None, Some(&[0, 1, 1])),
            ("c", None, Some(&[0, 1, 0])),
            ("c", None, Some(&[0, 1, 0])),
            ("c", None, Some(&[0, 1, 0])),
            ("d", None, Some(&[0, 0, 0])),
        ];
        let all = candidates(&rows);
        assert_eq!(Ranker::Reproduction.keep(&all, &[0, 1, 2, 3, 4, 5, 6]), [2]);
        assert_eq!(Ranker::Reproduction.keep(&all, &[6, 5, 1]), [1], "equal scores: the first seen");
        assert_eq!(Ranker::Reproduction.keep(&all, &[6]), [] as [usize; 0]);
        assert_eq!(select(&all, &ORDERS), Some(2));
        let both = candidates(&[("a", Some(1), Some(&[1, 1])), ("b", Some(0), Some(&[0, 0])), ("b", Some(0), Some(&[0, 1]))]);
        assert_eq!(select(&both, &ORDERS), Some(2));
        assert_eq!(select(&both, &[&[Ranker::Reproduction]]), Some(0));
    }

    #[test]
    fn agentless_never_gives_up_a_regression_test_for_a_reproduction_test() {
        let rows: [Row<'_>; 3] = [("a", Some(1), Some(&[1])), ("b", Some(0), Some(&[0])), ("c", Some(0), Some(&[0]))];
        let all = candidates(&rows);
        assert_eq!((select(&all, orders(Pipeline::Sorft)), select(&all, orders(Pipeline::Mini))), (Some(1), Some(0)));
        let rows: [Row<'_>; 3] = [("a", Some(0), Some(&[0])), ("a", Some(0), Some(&[0])), ("b", Some(0), Some(&[1]))];
        assert_eq!(select(&candidates(&rows), &AGENTLESS), Some(2), "passing the test goes over the majority");
        let rows: [Row<'_>; 3] = [("a", None, Some(&[0])), ("a", None, Some(&[0])), ("b", None, Some(&[1]))];
        assert_eq!(select(&candidates(&rows), &AGENTLESS), Some(2), "without regression tests as well");
    }
}
