//! A run's resident memory does not grow from step to step.

use crate::place::Place;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

/// Resident bytes of a process, by the system's count; none once it has ended.
fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Steps of a run.
const STEPS: usize = 300;

/// The most that a run has resident between its third and its sixth step, and in its last ten steps.
fn early_and_late(place: &Place, args: &[&str]) -> (u64, u64) {
    let mut child = place.program(args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program runs");
    let (mut early, mut late) = (0, 0);
    while child.try_wait().expect("the process can be asked").is_none() {
        let now = resident(child.id()).unwrap_or(0);
        // The count is taken last: what saving and the report take after the last step is not counted.
        match fs::read_to_string(place.at("run/metrics.jsonl")).map_or(0, |m| m.lines().count()) {
            3..6 => early = early.max(now),
            done if (STEPS - 10..STEPS).contains(&done) => late = late.max(now),
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().expect("the process ends").success());
    assert!(early > 0 && late > 0, "the run was faster than it could be looked at");
    (early, late)
}

/// Arrays of the allocator fill up in the first steps with answers of every length, hence the margin: a leak of 14 kB a step is over it.
#[test]
#[cfg(target_os = "linux")]
fn memory_after_300_steps_is_that_after_the_third() {
    const MARGIN: u64 = 4 << 20;
    let place = Place::furnished();
    let rewarded = ["--set=stage.1.steps=1", "--set=stage.2.steps=299"];
    for (config, settings) in [("sft.toml", ["--set=batch_prompts=6", "--set=steps=300"]), ("ppo.toml", rewarded)] {
        let args = [&["train", config, "--out", "run", "--threads", "2", "--set=checkpoint.every=100"][..], &settings].concat();
        let (early, late) = early_and_late(&place, &args);
        println!("{config}: {} KiB after the third step, {} KiB after the last", early >> 10, late >> 10);
        assert!(late <= early + MARGIN, "{config}: {early} bytes resident after the third step, {late} in the end");
        fs::remove_dir_all(place.at("run")).expect("removed");
    }
}
