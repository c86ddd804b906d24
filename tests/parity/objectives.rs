//! GRPO's loss and advantages against the f64 reference of `grpo.py`.

use crate::compare::Report;
use crate::fixture;
use serde::Deserialize;
use sorft_native::rl::advantage::{Scale, group_normalised};
use sorft_native::rl::objective::{Advantage, Aggregation, BatchStats, Clip, Grpo, Objective, Sample};

/// Objectives accumulate in f64: |difference| <= 1e-6 max(1, |reference|).
const LIMIT: f64 = 1e-6;

/// `ADVANTAGE_EPS` of `grpo.py`.
const ADVANTAGE_EPS: f64 = 1e-4;

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    clip_low: f64,
    clip_high: f64,
    kl_coef: f64,
    entropy_coef: f64,
    aggregation: String,
    group_size: usize,
    rewards: Vec<f64>,
    advantages: Vec<f64>,
    logprob: Vec<Vec<f32>>,
    old_logprob: Vec<Vec<f32>>,
    ref_logprob: Vec<Vec<f32>>,
    entropy: Vec<Vec<f32>>,
    loss: f64,
    d_logprob: Vec<Vec<f64>>,
    d_entropy: Vec<Vec<f64>>,
}

impl Case {
    fn objective(&self) -> Grpo {
        let aggregation = match self.aggregation.as_str() {
            "token" => Aggregation::Token,
            "sequence" => Aggregation::Sequence,
            other => panic!("unknown aggregation {other}"),
        };
        let clip = Clip { low: self.clip_low, high: self.clip_high };
        let mut grpo = Grpo { clip, kl_coef: self.kl_coef, entropy_coef: self.entropy_coef, aggregation, ..Grpo::default() };
        grpo.prepare(BatchStats::count(self.logprob.iter().map(Vec::len)));
        grpo
    }

    fn sample<'a>(&'a self, i: usize, advantages: &[f32]) -> Sample<'a> {
        Sample {
            logprob: &self.logprob[i],
            old_logprob: &self.old_logprob[i],
            ref_logprob: (self.kl_coef != 0.0).then_some(&self.ref_logprob[i]),
            entropy: &self.entropy[i],
            advantage: Advantage::Sequence(advantages[i]),
        }
    }

    fn name(&self) -> String {
        let Self { clip_low, clip_high, kl_coef, entropy_coef, aggregation, .. } = self;
        format!("clip {clip_low}/{clip_high}, kl {kl_coef}, entropy {entropy_coef}, by {aggregation}")
    }
}

/// The largest |difference| / max(1, |reference|).
fn scaled_error(got: impl IntoIterator<Item = f64>, want: impl IntoIterator<Item = f64>) -> f64 {
    let (got, want): (Vec<f64>, Vec<f64>) = (got.into_iter().collect(), want.into_iter().collect());
    assert_eq!(got.len(), want.len(), "as many numbers as the reference has");
    got.iter().zip(&want).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max)
}

#[test]
fn grpo_is_that_of_an_f64_reference() {
    let path = fixture::root().join("grpo.json");
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: File = serde_json::from_slice(&text).expect("grpo.json is what grpo.py writes");
    let mut report = Report::default();
    for case in &file.cases {
        let groups = case.rewards.chunks(case.group_size);
        let advantages: Vec<f32> = groups.flat_map(|g| group_normalised(g, Scale::Sample, ADVANTAGE_EPS)).collect();
        let name = case.name();
        let error = scaled_error(advantages.iter().map(|&a| f64::from(a)), case.advantages.iter().copied());
        report.at_most(&format!("{name}: advantages"), error, LIMIT);
        // One tree a group: the trees' shares add up to the batch's loss.
        let grpo = case.objective();
        let samples: Vec<Sample<'_>> = (0..case.logprob.len()).map(|i| case.sample(i, &advantages)).collect();
        let trees: Vec<_> = samples.chunks(case.group_size).map(|tree| grpo.evaluate(tree)).collect();
        let loss: f64 = trees.iter().map(|t| t.metrics.loss).sum();
        report.at_most(&format!("{name}: loss"), scaled_error([loss], [case.loss]), LIMIT);
        let slopes = trees.iter().flat_map(|t| &t.d_logprob).map(|&d| f64::from(d));
        report.at_most(&format!("{name}: d logprob"), scaled_error(slopes, case.d_logprob.concat()), LIMIT);
        let slopes: Vec<f64> = trees.iter().flat_map(|t| t.d_entropy.iter().flatten()).map(|&d| f64::from(d)).collect();
        let want = if case.entropy_coef == 0.0 { Vec::new() } else { case.d_entropy.concat() };
        report.at_most(&format!("{name}: d entropy"), scaled_error(slopes, want), LIMIT);
    }
    report.finish();
}
