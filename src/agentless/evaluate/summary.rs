//! The means of an evaluation's records, with bootstrap intervals clustered by repository.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Record;
use crate::data::bootstrap::Bootstrap;
pub use crate::data::bootstrap::Interval;

/// A mean over the tasks that have the number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// How many tasks.
    pub tasks: usize,
    /// The mean and its 95 % interval.
    #[serde(flatten)]
    pub interval: Interval,
}

/// The means of a repository's tasks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repository {
    /// How many tasks.
    pub tasks: usize,
    /// Means by name.
    pub numbers: BTreeMap<String, f64>,
}

/// A whole evaluation in numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many tasks.
    pub tasks: usize,
    /// Means by name.
    pub numbers: BTreeMap<String, Mean>,
    /// What `k` samples reach together, `k` from 1 on, by name.
    pub coverage: BTreeMap<String, Vec<Interval>>,
    /// The breakdown by repository.
    pub repositories: BTreeMap<String, Repository>,
    /// How many tasks have no patch, by the reason.
    pub no_patch: BTreeMap<String, usize>,
}

impl Summary {
    /// Sums up records.
    pub fn new(records: &[Record]) -> Self {
        let bootstrap = Bootstrap::default();
        let names: BTreeSet<&String> = records.iter().flat_map(|r| r.numbers.keys()).collect();
        let mean = |name: &str| {
            let (values, clusters): (Vec<f64>, Vec<&str>) =
                records.iter().filter_map(|r| Some((*r.numbers.get(name)?, r.repo.as_str()))).unzip();
            Mean { tasks: values.len(), interval: bootstrap.mean(&values, Some(&clusters)) }
        };
        let curves: BTreeSet<&String> = records.iter().flat_map(|r| r.coverage.keys()).collect();
        let curve = |name: &str| -> Vec<Interval> {
            let of: Vec<(&Vec<f64>, &str)> = records.iter().filter_map(|r| Some((r.coverage.get(name)?, r.repo.as_str()))).collect();
            let length = of.iter().map(|(c, _)| c.len()).min().unwrap_or(0);
            let clusters: Vec<&str> = of.iter().map(|(_, repo)| *repo).collect();
            (0..length).map(|k| bootstrap.mean(&of.iter().map(|(c, _)| c[k]).collect::<Vec<_>>(), Some(&clusters))).collect()
        };
        let mut by_repository: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        records.iter().for_each(|r| by_repository.entry(&r.repo).or_default().push(r));
        let mut no_patch = BTreeMap::new();
        records.iter().filter_map(|r| r.no_patch.clone()).for_each(|reason| *no_patch.entry(reason).or_default() += 1);
        Self {
            tasks: records.len(),
            numbers: names.iter().map(|name| ((*name).clone(), mean(name))).collect(),
            coverage: curves.iter().map(|name| ((*name).clone(), curve(name))).collect(),
            repositories: by_repository.into_iter().map(|(repo, of)| (repo.to_owned(), Repository::new(&of))).collect(),
            no_patch,
        }
    }
}

impl Repository {
    fn new(records: &[&Record]) -> Self {
        let mut sums: BTreeMap<String, (f64, usize)> = BTreeMap::new();
        for (name, value) in records.iter().flat_map(|r| &r.numbers) {
            let sum = sums.entry(name.clone()).or_default();
            *sum = (sum.0 + value, sum.1 + 1);
        }
        Self { tasks: records.len(), numbers: sums.into_iter().map(|(name, (sum, n))| (name, sum / n as f64)).collect() }
    }
}
