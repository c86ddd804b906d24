//! A watch over a run's curves: warnings where a policy games its reward, forgets the format, or collapses.
//!
//! It reads the lines of `metrics.jsonl` and nothing else, so a resumed run is watched as an unbroken one, and any log can be watched
//! afterwards. What it says changes nothing: a warning is for people.
//!
//! Each rule looks at one number of a step, averaged over [`WINDOW`] steps: at the beginning of the stage, at best, and now. A rule warns when
//! it begins to hold, and again only after it has ceased to.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Steps that a mean is taken over.
pub const WINDOW: usize = 5;

/// Means of a number over [`WINDOW`] steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Over the stage's first steps.
    pub first: f64,
    /// The highest so far.
    pub best: f64,
    /// Over the latest steps.
    pub now: f64,
}

/// One thing that can go wrong.
struct Rule {
    /// Where the number stands in a line: a key, or a key in `parts`.
    key: &'static str,
    holds: fn(&Trend) -> bool,
    /// What it means and what to do.
    advice: &'static str,
}

/// The rules. Their limits are wide: a healthy run of the papers' size stays well inside.
#[rustfmt::skip]
const RULES: &[Rule] = &[
    Rule { key: "answers", holds: |t| t.now > 2.0 * t.first + 1.0,
        advice: "answers name ever more elements, which raises recall without finding more; lower reward.beta, or ask for a number by prompt.answers" },
    Rule { key: "answer_tokens_mean", holds: |t| t.now > 2.0 * t.first + 16.0,
        advice: "answers have become twice as long; look at rollouts/ for filling that earns nothing" },
    Rule { key: "truncated", holds: |t| t.now > 0.5,
        advice: "most answers end at max_new_tokens; raise it, or train on gold answers first" },
    Rule { key: "duplicates", holds: |t| t.now > 0.9,
        advice: "nearly all answers of a group are the same, so there is nothing to compare; raise temperature or entropy.coef" },
    Rule { key: "valid", holds: |t| t.now < 0.5 * t.best,
        advice: "the format is being forgotten: fewer than half as many answers can be read as at best; lower optim.lr or raise kl.coef" },
    Rule { key: "entropy", holds: |t| t.now < 0.01,
        advice: "the policy has collapsed to single answers; raise entropy.coef or kl.coef, or go back to an earlier checkpoint" },
    Rule { key: "entropy", holds: |t| t.now > 2.0 * t.first + 1.0,
        advice: "entropy is running away; lower optim.lr or entropy.coef" },
    Rule { key: "kl", holds: |t| t.now > 0.5,
        advice: "the policy is far from its reference (nats a token); lower optim.lr or raise kl.coef" },
];

/// The numbers of one key so far.
#[derive(Clone, Debug, Default)]
struct Series {
    sum_first: f64,
    count: usize,
    recent: Vec<f64>,
    best: f64,
}

impl Series {
    /// Takes the next number; the trend, once there are enough.
    fn push(&mut self, x: f64) -> Option<Trend> {
        if self.count < WINDOW {
            self.sum_first += x;
        }
        self.count += 1;
        self.recent.push(x);
        if self.recent.len() > WINDOW {
            self.recent.remove(0);
        }
        if self.count < WINDOW {
            return None;
        }
        let now = self.recent.iter().sum::<f64>() / WINDOW as f64;
        self.best = if self.count == WINDOW { now } else { self.best.max(now) };
        Some(Trend { first: self.sum_first / WINDOW as f64, best: self.best, now })
    }
}

/// The watch over a run, stage by stage.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    stage: u64,
    /// By subtask (empty: all of them together) and rule.
    series: BTreeMap<(String, usize), Series>,
    holding: BTreeSet<(String, usize)>,
}

impl Watch {
    /// The watch of a run that has these lines already; what it would have said then is not said again.
    pub fn of_log(lines: &[Map<String, Value>]) -> Self {
        let mut watch = Self::default();
        lines.iter().for_each(|line| drop(watch.observe(line)));
        watch
    }

    /// Takes a step's line of `metrics.jsonl` and returns the warnings it calls for. Only lines of sampled answers say anything: a line may
    /// also hold `subtasks`, an object of such lines by subtask, each watched by itself; what those have is not looked at in the line itself,
    /// where it moves with what a step happens to ask.
    pub fn observe(&mut self, line: &Map<String, Value>) -> Vec<String> {
        if !line.contains_key("reward_mean") {
            return Vec::new();
        }
        let stage = line.get("stage").and_then(Value::as_u64).unwrap_or(0);
        if stage != self.stage {
            *self = Self { stage, ..Self::default() };
        }
        let mut warnings = Vec::new();
        self.read("", line, &mut warnings);
        for (name, inner) in line.get("subtasks").and_then(Value::as_object).into_iter().flatten() {
            if let Value::Object(inner) = inner {
                self.read(name, inner, &mut warnings);
            }
        }
        warnings
    }

    fn read(&mut self, subtask: &str, line: &Map<String, Value>, warnings: &mut Vec<String>) {
        fn number(line: &Map<String, Value>, key: &str) -> Option<f64> {
            line.get(key).or_else(|| line.get("parts")?.get(key)).and_then(Value::as_f64)
        }
        let apart = line.get("subtasks").and_then(Value::as_object);
        let apart = |key: &str| apart.is_some_and(|s| s.values().filter_map(Value::as_object).any(|inner| number(inner, key).is_some()));
        for (i, rule) in RULES.iter().enumerate().filter(|(_, rule)| !apart(rule.key)) {
            let Some(x) = number(line, rule.key) else { continue };
            let place = (subtask.to_owned(), i);
            let Some(trend) = self.series.entry(place.clone()).or_default().push(x) else { continue };
            if !(rule.holds)(&trend) {
                self.holding.remove(&place);
            } else if self.holding.insert(place) {
                let of = if subtask.is_empty() { String::new() } else { format!("{subtask}: ") };
                let Trend { first, now, .. } = trend;
                warnings.push(format!("{of}{} is {now:.3} over {WINDOW} steps ({first:.3} at first): {}", rule.key, rule.advice));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The warnings of a run whose number `key` takes these values, with the steps at which they came.
    fn watched(key: &str, values: &[f64]) -> Vec<(usize, String)> {
        let mut watch = Watch::default();
        let mut out = Vec::new();
        for (i, x) in values.iter().enumerate() {
            let line = json!({"stage": 1, "reward_mean": 0.5, key: x});
            out.extend(watch.observe(line.as_object().unwrap()).into_iter().map(|w| (i + 1, w)));
        }
        out
    }

    fn run(parts: &[(f64, usize)]) -> Vec<f64> {
        parts.iter().flat_map(|&(x, n)| vec![x; n]).collect()
    }

    #[test]
    fn each_rule_warns_once_when_it_begins_to_hold() {
        for (key, healthy, bad, word) in [
            ("answer_tokens_mean", 20.0, 80.0, "twice as long"),
            ("truncated", 0.1, 0.9, "max_new_tokens"),
            ("duplicates", 0.5, 1.0, "the same"),
            ("valid", 0.9, 0.1, "format is being forgotten"),
            ("entropy", 0.5, 0.0, "collapsed"),
            ("entropy", 0.5, 4.0, "running away"),
            ("kl", 0.05, 2.0, "far from its reference"),
        ] {
            let found = watched(key, &run(&[(healthy, 20), (bad, 20)]));
            assert!(found.len() == 1 && found[0].1.contains(word), "{key}: {found:?}");
            assert!((21..=25).contains(&found[0].0), "{key}: {found:?}");
            assert!(watched(key, &run(&[(healthy, 40)])).is_empty(), "{key}");
            // Back to health and ill again: a second warning.
            assert_eq!(watched(key, &run(&[(healthy, 20), (bad, 10), (healthy, 10), (bad, 10)])).len(), 2, "{key}");
        }
    }

    #[test]
    fn answers_are_counted_in_parts_and_subtasks_apart() {
        let mut watch = Watch::default();
        let mut said = Vec::new();
        for step in 0..30 {
            let n = if step < 10 { 1.0 } else { 6.0 };
            let line = json!({"stage": 1, "reward_mean": 0.5, "parts": {"answers": n}, "subtasks": {"edit": {"parts": {"answers": n}}}});
            said.extend(watch.observe(line.as_object().unwrap()));
        }
        assert!(said.len() == 1 && said[0].starts_with("edit: answers is "), "{said:?}");
    }

    #[test]
    fn a_new_stage_begins_afresh_and_supervised_steps_say_nothing() {
        let mut watch = Watch::default();
        let mut line = |stage: u64, reward: bool, tokens: f64| {
            let mut line = json!({"stage": stage, "answer_tokens_mean": tokens, "entropy": 0.0});
            if reward {
                line["reward_mean"] = json!(0.0);
                line["entropy"] = json!(1.0);
            }
            watch.observe(line.as_object().unwrap())
        };
        assert!((0..10).all(|_| line(1, false, 9.0).is_empty()));
        assert!((0..10).all(|_| line(2, true, 10.0).is_empty()));
        assert!((0..10).all(|_| line(3, true, 100.0).is_empty()));
    }

    #[test]
    fn a_resumed_run_is_watched_as_an_unbroken_one() {
        let line = |x: f64| json!({"stage": 1, "reward_mean": 0.5, "kl": x}).as_object().unwrap().clone();
        let log: Vec<_> = run(&[(0.1, 10), (2.0, 4)]).into_iter().map(line).collect();
        let mut resumed = Watch::of_log(&log);
        assert!(resumed.observe(&line(2.0)).is_empty(), "it has been said before the kill");
    }
}
