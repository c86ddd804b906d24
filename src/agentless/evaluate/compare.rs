//! Two evaluations of the same tasks: the paired difference of every number.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Interval, Record};
use crate::data::bootstrap::Bootstrap;
use crate::{Error, Result};

/// A number in both evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// How many tasks have it in both.
    pub tasks: usize,
    /// Its mean in the first.
    pub a: f64,
    /// Its mean in the second.
    pub b: f64,
    /// The mean difference, second less first, with its 95 % interval, clustered by repository.
    pub difference: Interval,
    /// In how many tasks the second is larger.
    pub larger: usize,
    /// In how many it is smaller.
    pub smaller: usize,
}

/// Two evaluations compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// How many tasks both have.
    pub tasks: usize,
    /// How many tasks only one of them has.
    pub unpaired: usize,
    /// The pairs by name.
    pub numbers: BTreeMap<String, Pair>,
}

/// A number's values in the first and in the second evaluation, and the repositories of their tasks.
type Values<'a> = (Vec<f64>, Vec<f64>, Vec<&'a str>);

/// Compares the records of two evaluations, task by task.
///
/// # Errors
///
/// No task in common.
pub fn compare(a: &[Record], b: &[Record]) -> Result<Comparison> {
    let second: HashMap<&str, &Record> = b.iter().map(|r| (r.instance_id.as_str(), r)).collect();
    let pairs: Vec<(&Record, &Record)> = a.iter().filter_map(|r| Some((r, *second.get(r.instance_id.as_str())?))).collect();
    if pairs.is_empty() {
        return Err(Error::input("the two evaluations have no task in common").hint("compare runs over the same --tasks"));
    }
    let mut numbers: BTreeMap<String, Values<'_>> = BTreeMap::new();
    for (a, b) in &pairs {
        for (name, x) in a.numbers.iter().filter(|(name, _)| !is_baseline(name)) {
            if let Some(y) = b.numbers.get(name) {
                let (xs, ys, clusters) = numbers.entry(name.clone()).or_default();
                xs.push(*x);
                ys.push(*y);
                clusters.push(&a.repo);
            }
        }
    }
    let pair = |(xs, ys, clusters): Values<'_>| {
        let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
        let count = |larger: &dyn Fn(f64, f64) -> bool| xs.iter().zip(&ys).filter(|(x, y)| larger(**x, **y)).count();
        Pair {
            tasks: xs.len(),
            a: mean(&xs),
            b: mean(&ys),
            difference: Bootstrap::default().paired(&xs, &ys, Some(&clusters)),
            larger: count(&|x, y| y > x),
            smaller: count(&|x, y| y < x),
        }
    };
    Ok(Comparison {
        tasks: pairs.len(),
        unpaired: a.len() + b.len() - 2 * pairs.len(),
        numbers: numbers.into_iter().map(|(name, of)| (name, pair(of))).collect(),
    })
}

/// Whether a number is a retriever's: those of two runs differ only because a baseline names as many as the run it stands beside.
fn is_baseline(name: &str) -> bool {
    name.starts_with("bm25.") || name.starts_with("fused.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, value: f64) -> Record {
        Record { instance_id: id.into(), repo: "o/r".into(), numbers: BTreeMap::from([("x".into(), value)]), ..Record::default() }
    }

    #[test]
    fn tasks_are_paired_by_name() {
        let a = [record("1", 0.0), record("2", 1.0), record("3", 0.0)];
        let b = [record("2", 1.0), record("1", 1.0), record("4", 1.0)];
        let c = compare(&a, &b).unwrap();
        assert_eq!((c.tasks, c.unpaired), (2, 2));
        let x = c.numbers["x"];
        assert_eq!((x.tasks, x.a, x.b, x.difference.mean, x.larger, x.smaller), (2, 0.5, 1.0, 0.5, 1, 0));
        assert!(compare(&a, &[record("9", 0.0)]).is_err());
    }
}
