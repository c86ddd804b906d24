//! A run's resident memory does not grow from step to step.

use crate::place::Place;
use serde_json::Value;
use std::fs;

/// What stays in memory after each step (`timing.jsonl`), in bytes.
fn resident(place: &Place, args: &[&str]) -> Vec<u64> {
    let done = place.program(args).output().expect("the program runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let lines = fs::read_to_string(place.at("run/timing.jsonl")).expect("times of the run");
    let steps = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["resident_bytes"].as_u64());
    steps.map(|bytes| bytes.expect("resident_bytes")).collect()
}

/// The allocator's blocks fill up in the first steps with answers of every length, hence the margin: a leak of 7 kB a step is over it.
#[test]
#[cfg(target_os = "linux")]
fn memory_after_300_steps_is_that_after_the_third() {
    const MARGIN: u64 = 2 << 20;
    let place = Place::furnished();
    let rewarded = ["--set=stage.1.steps=1", "--set=stage.2.steps=299"];
    for (config, settings) in [("sft.toml", ["--set=batch_prompts=6", "--set=steps=300"]), ("ppo.toml", rewarded)] {
        let args = [&["train", config, "--out", "run", "--threads", "2", "--set=checkpoint.every=100"][..], &settings].concat();
        let steps = resident(&place, &args);
        assert_eq!(steps.len(), 300);
        let (early, late) = (steps[2], steps[299]);
        println!("{config}: {} KiB after the third step, {} KiB after the last", early >> 10, late >> 10);
        assert!(late <= early + MARGIN, "{config}: {early} bytes resident after the third step, {late} in the end");
        fs::remove_dir_all(place.at("run")).expect("removed");
    }
}
