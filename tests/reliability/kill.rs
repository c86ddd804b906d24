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

/// What a run folder holds of things under way.
#[derive(Clone, Debug, Default, PartialEq)]
struct Traces {
    there: bool,
    steps: usize,
    rollouts: usize,
    /// The folder of a checkpoint that is not whole: its inode, since a kill leaves it until the next is written.
    checkpoint: Option<u64>,
    /// Files of the result that are not whole.
    saving: Vec<String>,
}

impl Traces {
    fn of(out: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
        let mut temporary = entries.filter(|e| e.file_name().to_string_lossy().starts_with(".tmp-"));
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let saving = ["model", "adapter"].iter().flat_map(|dir| names(&out.join(dir)));
        Self {
            there: out.exists(),
            steps: metrics.lines().count(),
            rollouts: names(&out.join("rollouts")).iter().filter(|n| n.ends_with(".jsonl")).count(),
            checkpoint: temporary.next().and_then(|e| e.metadata().ok()).map(|m| m.ino()),
            saving: saving.filter(|n| n.starts_with(".writing-")).collect(),
        }
    }

    /// Where a process was that was killed, if it began with the traces `before` and left these.
    fn moment(&self, before: &Traces, out: &Path) -> &'static str {
        match () {
            () if !self.there => "before the run folder",
            () if self.saving != before.saving => "saving the result",
            () if self.checkpoint.is_some() && self.checkpoint != before.checkpoint => "writing a checkpoint",
            () if self == before => "loading, or the first step",
            () if out.join(format!("rollouts/{}.jsonl", self.steps + 1)).exists() => "backward or optimizer (GRPO)",
            () if self.steps >= SUPERVISED + REWARDED => "after the last step",
            () if self.steps >= SUPERVISED => "sampling, or between steps (GRPO)",
            () => "supervised steps",
        }
    }
}

/// Steps of each stage of `grpo.toml`.
const SUPERVISED: usize = 8;
const REWARDED: usize = 6;

/// Waits for the trigger, then kills. `true` if the process ended by itself before.
fn kill_at(child: &mut Child, out: &Path, trigger: Trigger, before: &Traces, run: Duration, chance: &mut Chance) -> bool {
    let begun = Instant::now();
    let until = run.mul_f64(0.7 * chance.next());
    let delay = Duration::from_micros((8000.0 * chance.next() * chance.next()) as u64);
    loop {
        if let Some(status) = child.try_wait().expect("the process can be asked") {
            assert!(status.success(), "{status}");
            return true;
        }
        let now = Traces::of(out);
        let pulled = match trigger {
            Trigger::Time => begun.elapsed() >= until,
            Trigger::Checkpoint => now.checkpoint.is_some() && now.checkpoint != before.checkpoint,
            Trigger::Answers => now.rollouts > before.rollouts,
            Trigger::Result => !now.saving.is_empty() && now.saving != before.saving,
        };
        if pulled {
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
        // Every step has a gradient, and full training learns from rewards: the test would be empty without.
        let metrics = fs::read_to_string(place.at(&out).join("metrics.jsonl")).expect("metrics");
        assert!(!metrics.contains("\"grad_norm\":0.0,"), "{metrics}");
        assert!(kind == "lora" || metrics.lines().any(|l| l.contains("reward_std") && !l.contains("\"reward_std\":0.0,")), "{metrics}");
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
            let before = Traces::of(&out);
            let mut child = place.program(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program runs");
            let trigger = chance.trigger();
            if killed == kills {
                assert!(child.wait().expect("the process ends").success());
                break;
            }
            if kill_at(&mut child, &out, trigger, &before, lengths[runs % KINDS.len()], &mut chance) {
                break;
            }
            killed += 1;
            *moments.entry(Traces::of(&out).moment(&before, &out)).or_default() += 1;
        }
        assert_same(&place.at(&format!("whole-{kind}")), &out);
        fs::remove_dir_all(&out).expect("removed");
        runs += 1;
    }
    println!("{killed} kills in {runs} runs, every run with the bytes of an unbroken one: {moments:?}");
}
