//! Holding tasks out: by repository, so that what is measured holds for repositories never seen, and by time, so that what is learnt
//! comes before what is asked.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::Task;
use super::random::Keyed;
use crate::{Error, Result};

/// Places in a list of tasks: those to learn from and those held out, each in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// What to learn from.
    pub train: Vec<usize>,
    /// What to measure on.
    pub heldout: Vec<usize>,
}

impl Split {
    fn by(n: usize, held: impl Fn(usize) -> bool) -> Self {
        let (heldout, train) = (0..n).partition(|&i| held(i));
        Self { train, heldout }
    }
}

/// Deals the repositories into `folds` folds of about equally many tasks (a keyed order, largest-need first) and holds out number
/// `fold`. No repository is on both sides, whichever files its tasks came from, however its name is spelt, and forks go with it
/// ([`Task::repo_key`]).
///
/// # Errors
///
/// Fewer repositories than folds, fewer than two folds, or no fold of that number.
pub fn by_repository(tasks: &[Task], folds: usize, fold: usize, seed: u64) -> Result<Split> {
    if folds < 2 || fold >= folds {
        return Err(Error::usage(format!("there is no fold {fold} of {folds}")).hint("folds are counted from 0, and there are at least 2"));
    }
    let keys: Vec<String> = tasks.iter().map(Task::repo_key).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    keys.iter().for_each(|key| *counts.entry(key).or_default() += 1);
    if counts.len() < folds {
        let ending = if counts.len() == 1 { "y" } else { "ies" };
        let message = format!("{} repositor{ending} cannot be split into {folds} folds", counts.len());
        return Err(Error::input(message).hint("split by time instead (--by time), or into fewer folds"));
    }
    let mut repos: Vec<&str> = counts.keys().copied().collect();
    Keyed::new(seed, &["folds"]).shuffle(&mut repos);
    let mut sizes = vec![0; folds];
    let mut fold_of = BTreeMap::new();
    for repo in repos {
        // The first of the emptiest folds; every fold gets one, because there are at least as many repositories.
        let at = (0..folds).min_by_key(|&f| sizes[f]).unwrap_or(0);
        sizes[at] += counts[repo];
        fold_of.insert(repo, at);
    }
    Ok(Split::by(tasks.len(), |i| fold_of[keys[i].as_str()] == fold))
}

/// Holds out the newest `fraction` of the tasks (at least one, and not all).
///
/// # Errors
///
/// A task whose `created_at` is missing or not a time; fewer than two tasks; a fraction outside 0 to 1.
pub fn by_time(tasks: &[Task], fraction: f64) -> Result<Split> {
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(
            Error::usage(format!("a fraction of {fraction} cannot be held out")).hint("expected a number between 0 and 1, such as 0.2")
        );
    }
    if tasks.len() < 2 {
        return Err(Error::input("one task alone cannot be split").hint("give a file with more tasks"));
    }
    let mut order = Vec::with_capacity(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        let at = task.created_at.as_deref().and_then(instant).ok_or_else(|| {
            let found = task.created_at.as_deref().map_or("nothing".to_owned(), |t| format!("`{t}`"));
            Error::input(format!("expected a time such as 2024-01-31T12:00:00Z, found {found}"))
                .at("field `created_at`")
                .at(&task.instance_id)
                .hint("a split by time needs the time of every task: split by repository instead (--by repository)")
        })?;
        order.push((at, &task.instance_id, i));
    }
    order.sort();
    let held = ((tasks.len() as f64 * fraction).round() as usize).clamp(1, tasks.len() - 1);
    let mut newest = vec![false; tasks.len()];
    order[tasks.len() - held..].iter().for_each(|&(_, _, i)| newest[i] = true);
    Ok(Split::by(tasks.len(), |i| newest[i]))
}

/// Seconds since 1970 of a time in any of the forms that task files have: RFC 3339 (with `T` or a blank), the same without an offset
/// (taken as UTC), a date, or a count of seconds, milli-, micro- or nanoseconds.
pub fn instant(text: &str) -> Option<i64> {
    let text = text.trim();
    // Some libraries write counts as floats.
    let count = text.parse().ok().or_else(|| text.parse::<f64>().ok().filter(|x| x.abs() < 9e18).map(|x| x.floor() as i64));
    if let Some(number) = count {
        // Seconds reach the first number in the year 5138; milliseconds passed it in 1973. So on for micro- and nanoseconds.
        let per_second = match number.unsigned_abs() {
            ..100_000_000_000 => 1,
            100_000_000_000..100_000_000_000_000 => 1_000,
            100_000_000_000_000..100_000_000_000_000_000 => 1_000_000,
            _ => 1_000_000_000,
        };
        return Some(number.div_euclid(per_second));
    }
    let with_t = text.replacen(' ', "T", 1);
    if let Ok(time) = DateTime::parse_from_rfc3339(&with_t).or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S %z")) {
        return Some(time.timestamp());
    }
    if let Ok(time) = NaiveDateTime::parse_from_str(with_t.trim_end_matches(" UTC"), "%Y-%m-%dT%H:%M:%S%.f") {
        return Some(time.and_utc().timestamp());
    }
    NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0).map(|t| t.and_utc().timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(repo: &str, i: usize, created_at: &str) -> Task {
        let created_at = Some(created_at.to_owned());
        Task { instance_id: format!("{repo}-{i}"), repo: repo.to_owned(), created_at, ..Task::default() }
    }

    #[test]
    fn repositories_stay_whole_and_folds_cover_all() {
        let tasks: Vec<Task> = (0..90).map(|i| task(["a", "b", "c", "d", "e", "f"][i % 6], i, "")).collect();
        let mut held = vec![0; tasks.len()];
        for fold in 0..3 {
            let s = by_repository(&tasks, 3, fold, 7).unwrap();
            assert_eq!((s.train.len(), s.heldout.len()), (60, 30));
            s.heldout.iter().for_each(|&i| held[i] += 1);
            let repos = |side: &[usize]| side.iter().map(|&i| tasks[i].repo.clone()).collect::<std::collections::BTreeSet<_>>();
            assert!(repos(&s.train).is_disjoint(&repos(&s.heldout)));
        }
        assert!(held.iter().all(|&n| n == 1));
        assert_eq!(by_repository(&tasks, 3, 0, 7).unwrap(), by_repository(&tasks, 3, 0, 7).unwrap());
        assert!(by_repository(&tasks, 7, 0, 0).unwrap_err().to_string().contains("6 repositories"));
        assert_eq!(by_repository(&tasks, 3, 3, 0).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn forks_and_other_spellings_stay_on_one_side() {
        let names = ["o/one", "O/One", "fork/one", "", "o/two", "o/next.js", "p/Next.JS", "mirror/o__two.0c0ffee1"];
        let tasks: Vec<Task> = names.iter().enumerate().map(|(i, name)| task(name, i, "")).collect();
        let tasks: Vec<Task> =
            tasks.into_iter().map(|t| if t.repo.is_empty() { Task { instance_id: "o__one-3".to_owned(), ..t } } else { t }).collect();
        let keys = |side: &[usize]| side.iter().map(|&i| tasks[i].repo_key()).collect::<std::collections::BTreeSet<_>>();
        for seed in 0..20 {
            let s = by_repository(&tasks, 3, 0, seed).unwrap();
            assert!(keys(&s.train).is_disjoint(&keys(&s.heldout)), "{s:?}");
            assert!(s.train.len() == 8 - s.heldout.len() && [4, 2].contains(&s.heldout.len()), "{s:?}");
        }
    }

    #[test]
    fn the_newest_are_held_out_whatever_their_offset() {
        let times = ["2024-01-01T00:30:00+02:00", "2023-12-31T23:00:00Z", "2023-12-31 23:30:00", "2020-01-01", "1704067200"];
        let tasks: Vec<Task> = times.iter().enumerate().map(|(i, t)| task("r", i, t)).collect();
        // In UTC: 22:30, 23:00, 23:30 of the last day of 2023; 2020; 2024-01-01 00:00.
        assert_eq!(by_time(&tasks, 0.4).unwrap(), Split { train: vec![0, 1, 3], heldout: vec![2, 4] });
        assert_eq!(by_time(&tasks, 0.01).unwrap().heldout, [4]);
        assert_eq!(by_time(&tasks, 0.99).unwrap().train, [3]);
        let error = by_time(&[task("r", 1, "soon"), task("r", 2, "2020-01-01")], 0.2).unwrap_err().to_string();
        assert!(error.contains("r-1: field `created_at`: expected a time") && error.contains("`soon`"), "{error}");
        assert!(by_time(&tasks[..1], 0.2).is_err());
        assert_eq!(by_time(&tasks, 1.0).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn times_are_read_in_many_forms() {
        for text in [
            "2022-03-03T15:14:54Z",
            "2022-03-03 15:14:54+00:00",
            "2022-03-03 15:14:54 +0000",
            "1646320494",
            "1646320494.0",
            "1646320494000",
            "1646320494000000000",
        ] {
            assert_eq!(instant(text), Some(1_646_320_494), "{text}");
        }
        assert_eq!(instant("yesterday"), None);
    }
}
