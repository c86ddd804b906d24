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

/// What is trained: all parameters, or an adapter, by supervised steps and then GRPO with a KL to a reference, or PPO with each kind of
/// critic. A name, a configuration, settings.
const KINDS: [(&str, &str, &[&str]); 7] = [
    ("grpo", "grpo.toml", &[]),
    ("ppo-trunk", "ppo.toml", &["--set=critic.kind=trunk"]),
    ("grpo-lora", "grpo.toml", &["--set=lora.rank=4"]),
    ("ppo-lora", "ppo.toml", &["--set=lora.rank=4", "--set=lora.alpha=64", "--set=critic.kind=lora"]),
    ("ppo", "ppo.toml", &[]),
    ("grpo-8bit", "grpo.toml", &["--set=optim.moments=8bit"]),
    ("ppo-8bit", "ppo.toml", &["--set=optim.moments=8bit"]),
];

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
            () if out.join(format!("rollouts/{}.jsonl", self.steps + 1)).exists() => "backward or optimizer (GRPO, PPO)",
            () if self.steps >= SUPERVISED + REWARDED => "after the last step",
            () if self.steps >= SUPERVISED => "sampling, or between steps (GRPO, PPO)",
            () => "supervised steps",
        }
    }
}

/// Steps of each stage of `grpo.toml` and `ppo.toml`.
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

/// The arguments of a run of a kind, from its start.
fn args<'a>(&(_, config, settings): &(&str, &'a str, &'a [&'a str]), out: &'a str) -> Vec<&'a str> {
    [&["train", config, "--threads", "2", "--out", out], settings].concat()
}

/// The run of a kind that nothing disturbs, in `whole-KIND`: how long it took.
fn whole(place: &Place, kind: &(&str, &str, &[&str])) -> Duration {
    let begun = Instant::now();
    let out = format!("whole-{}", kind.0);
    let (status, said) = place.run(&args(kind, &out));
    assert_eq!(status, Some(0), "{said}");
    let took = begun.elapsed();
    let metrics = fs::read_to_string(place.at(&out).join("metrics.jsonl")).expect("metrics");
    let with = |key: &str| metrics.lines().filter(|l| l.contains(key) && !l.contains(&format!("{key}0.0,"))).count();
    // Every step has a gradient (PPO's first one the critic's alone), critics err, and full training learns from rewards: the test would be
    // empty without.
    let ppo = kind.1 == "ppo.toml";
    assert_eq!(with("\"grad_norm\":"), SUPERVISED + REWARDED - usize::from(ppo), "{metrics}");
    assert!(!ppo || with("\"value_loss\":") > 1, "{metrics}");
    assert!(kind.0.ends_with("lora") || with("\"reward_std\":") > 0, "{metrics}");
    took
}

#[test]
fn kill_anywhere_and_resume_gives_the_bytes_of_an_unbroken_run() {
    let kills = number("SORFT_KILLS", 10);
    let in_a_run = kills.div_ceil(KINDS.len() as u64).min(4);
    let mut chance = Chance { random: Philox::new(number("SORFT_KILL_SEED", 7), 0x6B69_6C6C), drawn: 0 };
    let place = Place::furnished();
    let lengths = KINDS.each_ref().map(|kind| whole(&place, kind));
    let (mut runs, mut moments, mut killed) = (0, BTreeMap::<&str, u64>::new(), [0; KINDS.len()]);
    while killed.iter().sum::<u64>() < kills {
        // The kind that was killed least: a run may end before its killer wakes.
        let which = (0..KINDS.len()).min_by_key(|&i| killed[i]).expect("a kind");
        let kind = &KINDS[which];
        let name = format!("cut-{runs}");
        let out = place.at(&name);
        let last = (killed.iter().sum::<u64>() + in_a_run).min(kills);
        loop {
            let resume = ["train", "--resume", "--threads", "2", "--out", &name];
            let args = if out.exists() { resume.to_vec() } else { args(kind, &name) };
            let before = Traces::of(&out);
            let mut child = place.program(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program runs");
            let trigger = chance.trigger();
            if killed.iter().sum::<u64>() == last {
                assert!(child.wait().expect("the process ends").success());
                break;
            }
            if kill_at(&mut child, &out, trigger, &before, lengths[which], &mut chance) {
                break;
            }
            *moments.entry(Traces::of(&out).moment(&before, &out)).or_default() += 1;
            killed[which] += 1;
        }
        assert_same(&place.at(&format!("whole-{}", kind.0)), &out);
        fs::remove_dir_all(&out).expect("removed");
        runs += 1;
    }
    let kinds = KINDS.iter().zip(killed).map(|(kind, n)| format!("{} {n}", kind.0)).collect::<Vec<_>>();
    println!("kills in {runs} runs, every run with the bytes of an unbroken one: {kinds:?}, {moments:?}");
}
