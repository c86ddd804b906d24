//! Merging what several samples name, as Agentless does (arXiv 2407.01489, section 3.1).

use std::collections::HashMap;
use std::hash::Hash;

/// The elements that most of the lists name, at most `most` of them: by how many lists name them, then in the order of appearance (Python's
/// `Counter.most_common`). An element counts once a list.
pub fn by_count<T: Clone + Eq + Hash>(lists: &[Vec<T>], most: usize) -> Vec<T> {
    let mut counts: HashMap<&T, usize> = HashMap::new();
    let mut order: Vec<&T> = Vec::new();
    for list in lists {
        for (i, element) in list.iter().enumerate().filter(|(i, e)| !list[..*i].contains(e)) {
            let count = counts.entry(element).or_insert_with(|| {
                order.push(&list[i]);
                0
            });
            *count += 1;
        }
    }
    order.sort_by_key(|e| std::cmp::Reverse(counts[*e]));
    order.into_iter().take(most).cloned().collect()
}

/// The different lists that are not empty, in the order of appearance: every sample's own choice is followed up (Agentless Mini).
pub fn distinct<T: Clone + Eq>(lists: &[Vec<T>]) -> Vec<Vec<T>> {
    let mut out: Vec<Vec<T>> = Vec::new();
    for list in lists.iter().filter(|l| !l.is_empty()) {
        if !out.contains(list) {
            out.push(list.clone());
        }
    }
    out
}

/// All elements of the lists, each once, in the order of appearance.
pub fn union<T: Clone + Eq + Hash>(lists: &[Vec<T>]) -> Vec<T> {
    let mut seen = std::collections::HashSet::new();
    lists.iter().flatten().filter(|e| seen.insert(*e)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_decide_and_first_seen_breaks_ties() {
        let lists = [vec!["c", "a", "c"], vec!["b", "a"], vec![], vec!["b"]];
        assert_eq!(by_count(&lists, 9), ["a", "b", "c"]);
        assert_eq!(by_count(&lists, 1), ["a"]);
        assert_eq!(union(&lists), ["c", "a", "b"]);
        assert_eq!(distinct(&[vec![1, 2], vec![], vec![2, 1], vec![1, 2]]), [vec![1, 2], vec![2, 1]]);
    }
}
