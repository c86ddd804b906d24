//! Objectives and advantages against the numbers of `make_objectives.py`, and against finite differences.

use serde_json::Value;
use sorft_native::rl::advantage::{Scale, group_normalised};
use sorft_native::rl::objective::{Advantage, Aggregation, BatchStats, Clip, Grpo, Metrics, Objective, Sample, Sft};

fn fixture() -> Value {
    serde_json::from_str(include_str!("objectives.json")).expect("the fixture")
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().map(|a| a.iter().map(|x| x.as_f64().expect("a number") as f32).collect()).unwrap_or_default()
}

/// |a - b| <= 1e-6 max(1, |b|).
fn close(what: &str, found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{what}: {found} instead of {expected}");
}

struct Owned {
    new: Vec<f32>,
    old: Vec<f32>,
    reference: Option<Vec<f32>>,
    entropy: Vec<f32>,
    advantage: f32,
}

impl Owned {
    fn read(v: &Value) -> Self {
        Self {
            new: floats(&v["new"]),
            old: floats(&v["old"]),
            reference: v.get("ref").map(floats),
            entropy: floats(&v["entropy"]),
            advantage: v["advantage"].as_f64().expect("a number") as f32,
        }
    }

    fn sample(&self) -> Sample<'_> {
        Sample {
            logprob: &self.new,
            old_logprob: &self.old,
            ref_logprob: self.reference.as_deref(),
            entropy: &self.entropy,
            advantage: Advantage::Sequence(self.advantage),
        }
    }
}

fn grpo(settings: &Value, samples: &[Owned]) -> Grpo {
    let number = |name: &str| settings[name].as_f64().expect("a number");
    let aggregation = if settings["aggregation"] == "token" { Aggregation::Token } else { Aggregation::Sequence };
    let mut grpo = Grpo {
        clip: Clip { low: number("low"), high: number("high") },
        kl_coef: number("kl_coef"),
        entropy_coef: number("entropy_coef"),
        aggregation,
        ..Grpo::default()
    };
    grpo.prepare(BatchStats::count(samples.iter().map(|s| s.new.len())));
    grpo
}

#[test]
fn grpo_equals_the_reference_numbers() {
    for (i, case) in fixture()["grpo"].as_array().expect("cases").iter().enumerate() {
        let samples: Vec<Owned> = case["samples"].as_array().expect("samples").iter().map(Owned::read).collect();
        let (grpo, expected) = (grpo(&case["settings"], &samples), &case["expected"]);
        let views: Vec<Sample<'_>> = samples.iter().map(Owned::sample).collect();
        let out = grpo.evaluate(&views);
        let number = |name: &str| expected[name].as_f64().expect("a number");
        close(&format!("loss of case {i}"), out.metrics.loss, number("loss"));
        close("entropy", out.metrics.entropy(), number("entropy"));
        close("ratio_max", out.metrics.ratio_max, number("ratio_max"));
        close("clip_fraction", out.metrics.clip_fraction(), number("clip_fraction"));
        assert_eq!(out.metrics.kl().is_some(), expected["kl"].is_number());
        if let Some(kl) = out.metrics.kl() {
            close("kl", kl, number("kl"));
        }
        for (found, expected) in out.d_logprob.iter().zip(expected["d_logprob"].as_array().expect("slopes")) {
            close(&format!("slope in case {i}"), f64::from(*found), expected.as_f64().expect("a number"));
        }
        // Tree by tree, as the trainer goes: the same to the last bit of f64's sums.
        let mut sum = Metrics::default();
        let mut slopes = Vec::new();
        for view in &views {
            let part = grpo.evaluate(std::slice::from_ref(view));
            sum.add(&part.metrics);
            slopes.extend(part.d_logprob);
        }
        assert_eq!((sum, slopes), (out.metrics, out.d_logprob));
    }
}

#[test]
fn grpo_slopes_are_those_of_finite_differences() {
    for case in fixture()["grpo"].as_array().expect("cases").iter().filter(|c| c["settings"]["entropy_coef"] != 0.0) {
        let samples: Vec<Owned> = case["samples"].as_array().expect("samples").iter().map(Owned::read).collect();
        let grpo = grpo(&case["settings"], &samples);
        for s in &samples {
            let out = grpo.evaluate(&[s.sample()]);
            let d_entropy = out.d_entropy.expect("an entropy term");
            for i in 0..s.new.len() {
                let ratio = (f64::from(s.new[i]) - f64::from(s.old[i])).exp();
                let edge = (ratio - 1.0 + grpo.clip.low).abs().min((ratio - 1.0 - grpo.clip.high).abs());
                if edge < 0.02 || ratio > 1e3 {
                    continue;
                }
                let moved = |by: f32, entropy: bool| {
                    let (mut new, mut h) = (s.new.clone(), s.entropy.clone());
                    if entropy {
                        h[i] += by
                    } else {
                        new[i] += by
                    }
                    let x = f64::from(if entropy { h[i] } else { new[i] });
                    (x, grpo.evaluate(&[Sample { logprob: &new, entropy: &h, ..s.sample() }]).metrics.loss)
                };
                for (entropy, slope) in [(false, out.d_logprob[i]), (true, d_entropy[i])] {
                    let ((x1, y1), (x0, y0)) = (moved(1e-3, entropy), moved(-1e-3, entropy));
                    let (found, slope) = ((y1 - y0) / (x1 - x0), f64::from(slope));
                    assert!((found - slope).abs() <= 1e-4 * slope.abs().max(1e-2), "{found} {slope}");
                }
            }
        }
    }
}

#[test]
fn advantages_equal_the_reference_numbers() {
    for case in fixture()["advantages"].as_array().expect("groups") {
        let rewards: Vec<f64> = case["rewards"].as_array().expect("rewards").iter().map(|r| r.as_f64().expect("a number")).collect();
        let scale = match case["scale"].as_str() {
            Some("population") => Scale::Population,
            Some("none") => Scale::None,
            _ => Scale::Sample,
        };
        let found = group_normalised(&rewards, scale, case["eps"].as_f64().expect("eps"));
        for (f, e) in found.iter().zip(case["expected"].as_array().expect("advantages")) {
            close("advantage", f64::from(*f), e.as_f64().expect("a number"));
        }
    }
}

#[test]
fn sft_is_a_mean_over_the_whole_batch() {
    let (a, b) = ([-0.25f32, -4.0], [-1.75f32]);
    let mut sft = Sft::default();
    sft.prepare(BatchStats::count([2, 1]));
    let parts = [&a[..], &b[..]].map(|lp| sft.evaluate(&[Sample::supervised(lp, &vec![0.0; lp.len()])]));
    close("loss", parts[0].metrics.loss + parts[1].metrics.loss, 2.0);
    assert!(parts.iter().flat_map(|p| &p.d_logprob).all(|d| *d == -1.0 / 3.0));
}
