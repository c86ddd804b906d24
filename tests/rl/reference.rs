//! Advantages, KL estimates and losses against the numbers of `make_reference.py`.

use serde_json::Value;
use sorft_native::rl::advantage::{Scale, Whitening, gae, group_baseline, group_normalised, leave_one_out, to_go, token_rewards, whiten};
use sorft_native::rl::objective::{
    Advantage, Aggregation, BatchStats, Clip, Grpo, KlEstimator, Objective, Ratio, Sample, ValueLoss, ValueSample,
};

fn cases(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("reference.json")).expect("the fixture");
    all[name].as_array().expect("cases").clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn doubles(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(number).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().expect("rows").iter().map(doubles).collect()
}

fn floats(value: &Value) -> Vec<Vec<f32>> {
    rows(value).into_iter().map(|row| row.into_iter().map(|x| x as f32).collect()).collect()
}

/// |a - b| <= 1e-6 max(1, |b|), number by number.
fn close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f64]) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 1e-6 * e.abs().max(1.0), "{what} {i}: {f} instead of {e}");
    }
}

fn estimator(value: &Value) -> KlEstimator {
    match value.as_str() {
        Some("k1") => KlEstimator::K1,
        Some("k2") => KlEstimator::K2,
        _ => KlEstimator::K3,
    }
}

#[test]
fn group_advantages_equal_the_reference_numbers() {
    for case in cases("groups") {
        let rewards = doubles(&case["rewards"]);
        close("rloo", leave_one_out(&rewards), &doubles(&case["rloo"]));
        close("baseline", group_baseline(&rewards), &doubles(&case["group_baseline"]));
        close("dr_grpo", group_normalised(&rewards, Scale::None, 1e-4).into_iter().map(f64::from), &doubles(&case["dr_grpo"]));
    }
}

#[test]
fn token_advantages_equal_the_reference_numbers() {
    for case in cases("tokens") {
        let (new, reference, values) = (floats(&case["new"]), floats(&case["ref"]), floats(&case["values"]));
        let (gamma, lambda, coef) = (number(&case["gamma"]), number(&case["lambda"]), number(&case["kl_coef"]));
        let (scores, kind, expected) = (doubles(&case["score"]), estimator(&case["kl"]), &case["expected"]);
        let (mut rewards, mut advantages) = (Vec::new(), Vec::new());
        for i in 0..scores.len() {
            let kl: Vec<f64> = new[i].iter().zip(&reference[i]).map(|(n, r)| kind.estimate(*n, *r).0).collect();
            close("kl", kl.clone(), &doubles(&expected["kl"][i]));
            let r = token_rewards(scores[i], &kl, coef);
            close("rewards", r.clone(), &doubles(&expected["rewards"][i]));
            close("to_go", to_go(&r, gamma), &doubles(&expected["to_go"][i]));
            let g = gae(&r, &values[i], gamma, lambda);
            close("advantages", g.advantages.clone(), &doubles(&expected["advantages"][i]));
            close("returns", g.returns, &doubles(&expected["returns"][i]));
            rewards.push(r);
            advantages.push(g.advantages);
        }
        for (whitening, name) in [(Whitening::Sample, "sample"), (Whitening::Population, "population")] {
            let Some(want) = expected.get(format!("whitened_{name}")) else { continue };
            let mut found = advantages.clone();
            whiten(&mut found, whitening);
            close(name, found.concat(), &rows(want).concat());
            let mut found: Vec<Vec<f64>> = rewards.iter().map(|r| to_go(r, gamma)).collect();
            whiten(&mut found, whitening);
            close("reinforce++", found.concat(), &rows(&expected[format!("reinforce_{name}")]).concat());
        }
    }
}

fn policy(settings: &Value, lengths: impl Iterator<Item = usize>) -> Grpo {
    let mut policy = Grpo {
        clip: Clip { low: number(&settings["low"]), high: number(&settings["high"]) },
        dual_clip: settings["dual"].as_f64(),
        ratio: if settings["ratio"] == "sequence" { Ratio::Sequence } else { Ratio::Token },
        kl: estimator(&settings["kl"]),
        kl_coef: number(&settings["kl_coef"]),
        aggregation: match settings["aggregation"].as_str() {
            Some("constant") => Aggregation::Constant(number(&settings["longest"]) as usize),
            Some("sequence") => Aggregation::Sequence,
            _ => Aggregation::Token,
        },
        ..Grpo::default()
    };
    policy.prepare(BatchStats::count(lengths));
    policy
}

#[test]
fn policy_losses_and_gradients_equal_the_reference_numbers() {
    for case in cases("policy") {
        let [new, old, reference, advantage] = ["new", "old", "ref", "advantage"].map(|name| floats(&case[name]));
        let policy = policy(&case["settings"], new.iter().map(Vec::len));
        let samples: Vec<Sample<'_>> = (0..new.len())
            .map(|i| Sample {
                logprob: &new[i],
                old_logprob: &old[i],
                ref_logprob: Some(&reference[i]),
                entropy: &new[i],
                advantage: Advantage::Token(&advantage[i]),
            })
            .collect();
        let out = policy.evaluate(&samples);
        let what = case["settings"].to_string();
        close(&what, [out.metrics.loss], &[number(&case["expected"]["loss"])]);
        close(&what, out.d_logprob.into_iter().map(f64::from), &rows(&case["expected"]["d_logprob"]).concat());
    }
}

#[test]
fn value_losses_and_gradients_equal_the_reference_numbers() {
    for case in cases("value") {
        let [value, old, returns] = ["value", "old", "returns"].map(|name| floats(&case[name]));
        let loss = ValueLoss::new(case["clip"].as_f64(), BatchStats::count(value.iter().map(Vec::len)));
        let samples: Vec<ValueSample<'_>> =
            (0..value.len()).map(|i| ValueSample { value: &value[i], old_value: &old[i], returns: &returns[i] }).collect();
        let (metrics, slopes) = loss.evaluate(&samples);
        let expected = &case["expected"];
        close("loss", [metrics.loss, metrics.clip_fraction()], &[number(&expected["loss"]), number(&expected["clip_fraction"])]);
        close("d_value", slopes.into_iter().map(f64::from), &rows(&expected["d_value"]).concat());
    }
}
