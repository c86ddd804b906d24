//! As `cuda_checker.rs`, of what only Hopper has: every mistake of `zoo_hopper.cu` and `zoo_cluster.cu` is found under every schedule, and nothing in the correct twins.

use crate::cuda_checker::modes;
use crate::emulator::{self, KernelText};
use rayon::prelude::*;
use sorft_native::Error;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Kernel, Launch, Source};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const ZOO: [Source; 2] = [
    Source { file: "zoo_hopper.cu", text: include_str!("zoo_hopper.cu") },
    Source { file: "zoo_cluster.cu", text: include_str!("zoo_cluster.cu") },
];

/// The zoo's library, with or without the mistakes.
fn library(mistake: bool) -> &'static Path {
    static LIBRARIES: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    LIBRARIES[usize::from(mistake)].get_or_init(|| {
        let defines = vec![format!("MISTAKE={}", u8::from(mistake))];
        let texts = ZOO.map(|s| KernelText { name: s.file.to_owned(), defines: defines.clone(), text: s.text.to_owned() });
        emulator::library(&texts)
    })
}

/// A kernel, how many blocks it needs, and words of which a message about its mistake has one.
struct Setting {
    name: &'static str,
    blocks: usize,
    kinds: &'static [&'static str],
    /// Whether the mistake is found where races are not looked for.
    always: bool,
}

const fn setting(name: &'static str, kinds: &'static [&'static str]) -> Setting {
    Setting { name, blocks: 1, kinds, always: false }
}

const fn always(name: &'static str, kinds: &'static [&'static str]) -> Setting {
    Setting { always: true, ..setting(name, kinds) }
}

const fn of_two(setting: Setting) -> Setting {
    Setting { blocks: 2, ..setting }
}

const SETTINGS: [Setting; 34] = [
    setting("store_without_fence", &["no fence.proxy.async: a store by TMA reads"]),
    setting("store_without_barrier", &["race, read after write", "never written"]),
    setting("store_over_what_is_read", &["a store by TMA may still read it"]),
    setting("store_waited_for_by_another", &["a store by TMA may still read it"]),
    setting("store_waited_for_too_late", &["a store by TMA may still read it"]),
    setting("store_wait_without_barrier", &["a store by TMA may still read it", "race, "]),
    always("store_in_no_group", &["ends with stores of tiles"]),
    always("store_not_waited_for", &["ends with stores of tiles"]),
    setting("store_not_arrived", &["asynchronous copy still in flight"]),
    setting("store_arrived_for_another", &["asynchronous copy still in flight", "race, "]),
    of_two(setting("stores_that_overlap", &["race between blocks, write after write", "asynchronous copy still in flight"])),
    always("store_of_half_a_tile", &["starts at a multiple of 1024 bytes"]),
    setting("stmatrix_without_syncwarp", &["race, read after write"]),
    setting("stmatrix_over_what_is_read", &["race, write after read"]),
    always("stmatrix_by_half_a_warp", &["divergent warp"]),
    of_two(setting("cluster_without_barrier", &["race between blocks", "never written"])),
    of_two(setting("cluster_used_before_the_wait", &["race between blocks", "never written"])),
    of_two(always("cluster_barrier_by_one_block", &["divergent cluster"])),
    of_two(always("cluster_barrier_by_half_a_warp", &["divergent warp", "divergent cluster"])),
    of_two(always("cluster_arrives_twice", &["twice without barrier.cluster.wait"])),
    of_two(setting("arrival_in_the_block_alone", &["race between blocks"])),
    of_two(setting("arrival_not_waited_for", &["race between blocks", "never written"])),
    of_two(always("arrival_before_the_barrier", &["no mbarrier was initialised", "race between blocks", "never written", "outside every"])),
    of_two(always("arrival_without_fence", &["no fence.mbarrier_init"])),
    of_two(always("arrival_after_the_end", &["ends, and none of its threads has waited", "has ended"])),
    of_two(always("arrival_outside_the_cluster", &["no block 2 in a cluster of 2"])),
    of_two(always("arrival_that_nobody_makes", &["deadlock"])),
    of_two(always("load_of_another_block", &["another block's shared memory"])),
    of_two(setting("multicast", &["race between blocks", "still in flight", "deadlock"])),
    of_two(always("multicast_of_more_bytes", &["deadlock", "still in flight", "has ended", "race"])),
    of_two(always("multicast_not_waited_for", &["still in flight", "never written", "race"])),
    of_two(setting("multicast_over_what_is_read", &["race", "still in flight"])),
    of_two(always("multicast_and_an_early_end", &["ends, and none of its threads has waited", "has ended"])),
    of_two(always("multicast_to_the_own_block", &["deadlock"])),
];

fn run(mistake: bool, setting: &Setting, emulation: Emulation) -> Result<(), Error> {
    run_on(&emulator::open(library(mistake), emulation), setting)
}

fn run_on(gpu: &Arc<Gpu>, setting: &Setting) -> Result<(), Error> {
    let numbers: Vec<f32> = (0..64 * 64).map(|i| (i % 250) as f32).collect();
    let mut matrix = Buffer::from_f32(gpu, DType::Bf16, &numbers)?;
    let (from, mut out) = (Buffer::from_f32(gpu, DType::Bf16, &numbers)?, Buffer::zeros(gpu, DType::U32, 256)?);
    let kernel = Kernel { source: home(setting.name), name: setting.name };
    Launch::new(gpu, kernel, [setting.blocks, 1, 1], [128, 1, 1], 2048)
        .output("out", &mut out, DType::U32, 256)
        .input("matrix", &matrix, DType::Bf16, 64 * 64)
        .output_matrix("to", &mut matrix, 64, 64, 8)
        .matrix("from", Some(&from), 64, 64, 8)
        .dim("n", 128)
        .run()
}

/// Whether a line begins a kernel.
fn begins(line: &str, kernel: &str) -> bool {
    (line.starts_with("KERNEL ") || line.starts_with("CLUSTER ")) && line.contains(&format!(" {kernel}("))
}

/// The source that has a kernel.
fn home(kernel: &str) -> Source {
    ZOO.into_iter().find(|s| s.text.lines().any(|l| begins(l, kernel))).expect("the zoo has the kernel")
}

/// The lines of a kernel that carry the mark, as `zoo_hopper.cu:N`; a message has N alone where it names a line that another is called from.
fn marked_lines(kernel: &str) -> Vec<String> {
    let source = home(kernel);
    let lines: Vec<&str> = source.text.lines().collect();
    let start = lines.iter().position(|l| begins(l, kernel)).expect("it begins");
    let end = start + lines[start..].iter().position(|l| l.starts_with("SORFT_EXPORT")).expect("the kernel is exported");
    (start..end).filter(|&i| lines[i].contains("// HERE")).map(|i| format!("{}:{}", source.file, i + 1)).collect()
}

#[test]
fn every_mistake_is_found_and_its_line_named() {
    let exports = ZOO.iter().flat_map(|s| s.text.lines()).filter(|l| l.starts_with("SORFT_EXPORT")).count();
    assert_eq!(exports, SETTINGS.len(), "every kernel of the zoo is run");
    SETTINGS.par_iter().for_each(|setting| {
        let lines = marked_lines(setting.name);
        for mode in modes() {
            let error = run(true, setting, mode).expect_err(&format!("{} under {mode:?} has a mistake", setting.name)).to_string();
            let expected = setting.kinds.iter().any(|kind| error.contains(kind));
            assert!(expected, "{} under {mode:?}: expected one of {:?} in: {error}", setting.name, setting.kinds);
            // What a thread has left undone at its end has no line.
            let word_of =
                |l: &String| error.split([' ', ',', ';', ')']).any(|word| word == l || l.split_once(':').is_some_and(|l| l.1 == word));
            let named = lines.is_empty() || lines.iter().any(word_of);
            assert!(named, "{} under {mode:?}: expected one of {lines:?} in: {error}", setting.name);
        }
    });
}

#[test]
fn correct_twins_raise_no_alarm() {
    SETTINGS.par_iter().for_each(|setting| {
        for mode in modes() {
            run(false, setting, mode).unwrap_or_else(|e| panic!("{} under {mode:?}: {e}", setting.name));
        }
    });
}

/// Without the checker, what is no matter of order is still found.
#[test]
fn what_is_found_without_the_race_checker() {
    let off = Emulation { check: false, ..Emulation::default() };
    let wrong = SETTINGS.iter().filter(|s| run(true, s, off).is_err() != s.always);
    assert_eq!(wrong.map(|s| s.name).collect::<Vec<_>>(), [""; 0]);
}
