//! As `cuda_checker.rs`, of what only Hopper has: every mistake of `zoo_hopper.cu` is found under every schedule, and nothing in the correct twins.

use crate::cuda_checker::modes;
use crate::emulator::{self, KernelText};
use rayon::prelude::*;
use sorft_native::Error;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Kernel, Launch, Source};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const ZOO: Source = Source { file: "zoo_hopper.cu", text: include_str!("zoo_hopper.cu") };

/// The zoo's library, with or without the mistakes.
fn library(mistake: bool) -> &'static Path {
    static LIBRARIES: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    LIBRARIES[usize::from(mistake)].get_or_init(|| {
        let defines = vec![format!("MISTAKE={}", u8::from(mistake))];
        emulator::library(&[KernelText { name: ZOO.file.to_owned(), defines, text: ZOO.text.to_owned() }])
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

const SETTINGS: [Setting; 15] = [
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
];

fn run(mistake: bool, setting: &Setting, emulation: Emulation) -> Result<(), Error> {
    run_on(&emulator::open(library(mistake), emulation), setting)
}

fn run_on(gpu: &Arc<Gpu>, setting: &Setting) -> Result<(), Error> {
    let numbers: Vec<f32> = (0..64 * 64).map(|i| (i % 250) as f32).collect();
    let mut matrix = Buffer::from_f32(gpu, DType::Bf16, &numbers)?;
    let (from, mut out) = (Buffer::from_f32(gpu, DType::Bf16, &numbers)?, Buffer::zeros(gpu, DType::U32, 256)?);
    let kernel = Kernel { source: ZOO, name: setting.name };
    Launch::new(gpu, kernel, [setting.blocks, 1, 1], [128, 1, 1], 2048)
        .output("out", &mut out, DType::U32, 256)
        .input("matrix", &matrix, DType::Bf16, 64 * 64)
        .output_matrix("to", &mut matrix, 64, 64, 8)
        .matrix("from", Some(&from), 64, 64, 8)
        .dim("n", 128)
        .run()
}

/// The lines of a kernel that carry the mark, as `zoo_hopper.cu:N`.
fn marked_lines(kernel: &str) -> Vec<String> {
    let lines: Vec<&str> = ZOO.text.lines().collect();
    let start = lines.iter().position(|l| l.starts_with("KERNEL ") && l.contains(&format!(" {kernel}("))).expect("the zoo has the kernel");
    let end =
        lines.iter().position(|l| l.starts_with("SORFT_EXPORT") && l.contains(&format!("({kernel}"))).expect("the kernel is exported");
    (start..end).filter(|&i| lines[i].contains("// HERE")).map(|i| format!("{}:{}", ZOO.file, i + 1)).collect()
}

#[test]
fn every_mistake_is_found_and_its_line_named() {
    let exports = ZOO.text.lines().filter(|l| l.starts_with("SORFT_EXPORT")).count();
    assert_eq!(exports, SETTINGS.len(), "every kernel of the zoo is run");
    SETTINGS.par_iter().for_each(|setting| {
        let lines = marked_lines(setting.name);
        for mode in modes() {
            let error = run(true, setting, mode).expect_err(&format!("{} under {mode:?} has a mistake", setting.name)).to_string();
            let expected = setting.kinds.iter().any(|kind| error.contains(kind));
            assert!(expected, "{} under {mode:?}: expected one of {:?} in: {error}", setting.name, setting.kinds);
            // What a thread has left undone at its end has no line.
            let named = lines.is_empty() || lines.iter().any(|l| error.split([' ', ',', ';']).any(|word| word == l));
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
    for setting in &SETTINGS {
        assert_eq!(run(true, setting, off).is_err(), setting.always, "{}", setting.name);
    }
}
