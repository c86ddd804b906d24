//! Training runs that are killed (SIGKILL) again and again, and resumed each time: in the end every file that two equal runs share has the
//! bytes of a run never killed.
//!
//! `SORFT_KILLS=100 cargo test --test reliability kill -- --nocapture` kills more often than the few of the usual test, and says where the
//! kills came. Moments are drawn by a keyed generator (`SORFT_KILL_SEED`); the machine's speed adds its own chance.

use crate::place::Place;
use sorft_native::tensor::philox::Philox;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// What is trained: all parameters, or an adapter. Both go through supervised steps and GRPO with a KL to a reference.
const KINDS: [(&str, &[&str]); 2] = [("full", &[]), ("lora", &["--set", "lora.rank=4"])];

/// What the killer waits for.
#[derive(Clone, Copy, Debug)]
enum Trigger {
    /// A time after the process's start.
    Time,
    /// A checkpoint that is being written.
    Checkpoint,
    /// The answers of a step: what follows is the backward pass and the optimizer.
    Answers,
    /// The result that is being saved.
    Result,
}

/// The draws of one test.
struct Chance {
    random: Philox,
    drawn: u64,
}

impl Chance {
    fn next(&mut self) -> f64 {
        self.drawn += 1;
        self.random.uniform(self.drawn, 0)
    }

    fn trigger(&mut self) -> Trigger {
        match self.next() {
            x if x < 0.5 => Trigger::Time,
            x if x < 0.75 => Trigger::Checkpoint,
            x if x < 0.95 => Trigger::Answers,
            _ => Trigger::Result,
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn writes_checkpoint(out: &Path) -> bool {
    names(&out.join("checkpoints")).iter().any(|n| n.starts_with(".tmp-"))
}

fn saves_result(out: &Path) -> bool {
    out.join("model").exists() || out.join("adapter").exists()
}

fn steps_logged(out: &Path) -> usize {
    fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |t| t.lines().filter(|l| !l.contains("\"eval\"")).count())
}

/// Where a killed process was, by what it has left.
fn moment(out: &Path) -> &'static str {
    let steps = steps_logged(out);
    match () {
        () if !out.exists() => "before the run folder",
        () if saves_result(out) => "saving the result",
        () if writes_checkpoint(out) => "writing a checkpoint",
        () if out.join(format!("rollouts/{}.jsonl", steps + 1)).exists() => "backward or optimizer (GRPO)",
        () if steps >= 8 => "sampling, or between steps",
        () if steps > 0 => "supervised steps",
        () => "loading",
    }
}

/// Waits for the trigger, then kills. `true` if the process ended by itself before.
fn kill_at(child: &mut Child, out: &Path, trigger: Trigger, run: Duration, chance: &mut Chance) -> bool {
    let (begun, rollouts) = (Instant::now(), names(&out.join("rollouts")).len());
    let until = run.mul_f64(0.7 * chance.next());
    let delay = Duration::from_micros((8000.0 * chance.next() * chance.next()) as u64);
    loop {
        if let Some(status) = child.try_wait().expect("the process can be asked") {
            assert!(status.success(), "{status}");
            return true;
        }
        let now = match trigger {
            Trigger::Time => begun.elapsed() >= until,
            Trigger::Checkpoint => writes_checkpoint(out),
            Trigger::Answers => names(&out.join("rollouts")).len() > rollouts,
            Trigger::Result => saves_result(out),
        };
        if now {
            if !matches!(trigger, Trigger::Time) {
                std::thread::sleep(delay);
            }
            // On Unix this is SIGKILL.
            child.kill().expect("the process can be killed");
            return child.wait().expect("the process ends").success();
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Every file that two equal runs share, by name.
fn shared_files(out: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.strip_prefix(root).expect("inside").to_owned();
            // What a clock gave, and the report, which shows it.
            if ["timing.jsonl", "tensorboard", "report.html"].iter().any(|n| name == Path::new(n)) {
                continue;
            }
            if path.is_dir() { walk(&path, root, found) } else { drop(found.insert(name, fs::read(&path).expect("a file"))) }
        }
    }
    let mut found = BTreeMap::new();
    walk(out, out, &mut found);
    found
}

fn assert_same(whole: &Path, cut: &Path) {
    let (whole, cut) = (shared_files(whole), shared_files(cut));
    assert_eq!(whole.keys().collect::<Vec<_>>(), cut.keys().collect::<Vec<_>>());
    let different: Vec<_> = whole.iter().filter(|(name, bytes)| cut[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(different.is_empty(), "{different:?}");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |v| v.parse().expect("a number"))
}

#[test]
fn kill_anywhere_and_resume_gives_the_bytes_of_an_unbroken_run() {
    let kills = number("SORFT_KILLS", 10);
    let mut chance = Chance { random: Philox::new(number("SORFT_KILL_SEED", 7), 0x6B69_6C6C), drawn: 0 };
    let place = Place::furnished();
    let mut lengths = Vec::new();
    for (kind, settings) in KINDS {
        let begun = Instant::now();
        let out = format!("whole-{kind}");
        let (status, said) = place.run(&[&["train", "grpo.toml", "--threads", "2", "--out", &out][..], settings].concat());
        assert_eq!(status, Some(0), "{said}");
        lengths.push(begun.elapsed());
        // Something was learned from rewards: the test would be empty without.
        let metrics = fs::read_to_string(place.at(&out).join("metrics.jsonl")).expect("metrics");
        assert!(metrics.lines().any(|l| l.contains("\"reward_std\":0.") && !l.contains("\"reward_std\":0.0,")), "{metrics}");
    }
    let (mut killed, mut runs, mut moments) = (0, 0, BTreeMap::<&str, u64>::new());
    while killed < kills {
        let (kind, settings) = KINDS[runs % KINDS.len()];
        let name = format!("cut-{runs}");
        let out = place.at(&name);
        loop {
            let args = match out.exists() {
                true => vec!["train", "--resume", "--threads", "2", "--out", &name],
                false => [&["train", "grpo.toml", "--threads", "2", "--out", &name][..], settings].concat(),
            };
            let mut child = place.program(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program runs");
            let trigger = chance.trigger();
            if killed == kills {
                assert!(child.wait().expect("the process ends").success());
                break;
            }
            if kill_at(&mut child, &out, trigger, lengths[runs % KINDS.len()], &mut chance) {
                break;
            }
            killed += 1;
            *moments.entry(moment(&out)).or_default() += 1;
        }
        assert_same(&place.at(&format!("whole-{kind}")), &out);
        fs::remove_dir_all(&out).expect("removed");
        runs += 1;
    }
    println!("{killed} kills in {runs} runs, every run with the bytes of an unbroken one: {moments:?}");
}
