//! The emulator's checker: it finds every mistake of `zoo.cu`, naming the line, under every schedule, and nothing in the correct twins.

pub use crate::emulator::modes;
use crate::emulator::{self, KernelText};
use sorft_native::Error;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Kernel, Launch, Source};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub const ZOO: Source = Source { file: "zoo.cu", text: include_str!("zoo.cu") };

/// The zoo's library, with or without the mistakes.
pub fn library(mistake: bool) -> &'static Path {
    static LIBRARIES: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    LIBRARIES[usize::from(mistake)].get_or_init(|| {
        let defines = vec![format!("MISTAKE={}", u8::from(mistake))];
        emulator::library(&[KernelText { name: ZOO.file.to_owned(), defines, text: ZOO.text.to_owned() }])
    })
}

/// What a zoo kernel needs: blocks, the length of `out`, whether that comes in written, and n.
pub struct Setting {
    pub name: &'static str,
    blocks: usize,
    out: usize,
    written: bool,
    n: usize,
    /// A word of the message that tells the kind of mistake.
    kind: &'static str,
}

const fn setting(name: &'static str, kind: &'static str) -> Setting {
    Setting { name, blocks: 1, out: 128, written: true, n: 128, kind }
}

const fn blocks(name: &'static str, kind: &'static str, out: usize) -> Setting {
    Setting { blocks: 3, out, ..setting(name, kind) }
}

pub fn settings() -> Vec<Setting> {
    const LAST: usize = 4 + 4 * 128;
    vec![
        setting("missing_syncthreads", "shared `s`"),
        setting("missing_second_syncthreads", "race, "),
        setting("missing_syncwarp", "shared `s`"),
        setting("syncwarp_for_syncthreads", "shared `s`"),
        setting("write_after_all_read", "race, "),
        Setting { blocks: 2, out: 200, n: 200, ..setting("out_of_bounds", "4 bytes past the end of argument 0 (800 bytes)") },
        setting("shared_out_of_bounds", "outside every shared array"),
        setting("dynamic_out_of_bounds", "outside every shared array"),
        setting("misaligned", "misaligned access of 16 bytes"),
        setting("unwritten_shared", "never written: shared `s` byte 0x1fc"),
        Setting { written: false, ..setting("unwritten_global", "never written: argument 0") },
        setting("divergent_shuffle", "divergent warp"),
        setting("mixed_warp_operations", "divergent warp"),
        setting("shuffle_from_outside", "which does not take part"),
        setting("half_barrier", "divergent block"),
        setting("deadlock", "deadlock"),
        setting("copy_not_waited_for", "asynchronous copy still in flight: shared `s`"),
        setting("copy_waited_for_too_late", "asynchronous copy still in flight: shared `s`"),
        setting("copy_without_barrier", "shared `s`"),
        setting("copy_over_what_is_read", "race, "),
        setting("ldmatrix_without_syncwarp", "race, read after write: shared `s`"),
        setting("mma_by_half_a_warp", "divergent warp"),
        blocks("block_race", "race between blocks, read after write: argument 0", 128),
        blocks("last_block_without_fence", "race between blocks", LAST),
        blocks("last_block_by_index", "race between blocks", LAST),
        blocks("counter_before_barrier", "race between blocks", LAST),
    ]
}

fn run(mistake: bool, setting: &Setting, emulation: Emulation) -> Result<(), Error> {
    run_on(&emulator::open(library(mistake), emulation), setting)
}

pub fn run_on(gpu: &Arc<Gpu>, setting: &Setting) -> Result<(), Error> {
    let input: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let input = Buffer::from_f32(gpu, DType::F32, &input)?;
    let mut out = Buffer::uninit(gpu, DType::F32, setting.out)?;
    if setting.written {
        out.upload_f32(&vec![0.0; setting.out])?;
    }
    let kernel = Kernel { source: ZOO, name: setting.name };
    Launch::new(gpu, kernel, [setting.blocks, 1, 1], [128, 1, 1], 512)
        .output("out", &mut out, DType::F32, setting.out)
        .input("in", &input, DType::F32, 256)
        .dim("n", setting.n)
        .run()
}

/// The lines of a kernel that carry the mark, as `zoo.cu:N`.
fn marked_lines(kernel: &str) -> Vec<String> {
    let lines: Vec<&str> = ZOO.text.lines().collect();
    let start = lines.iter().position(|l| l.starts_with(&format!("KERNEL {kernel}("))).expect("the zoo has the kernel");
    let end = lines.iter().position(|l| *l == format!("SORFT_EXPORT({kernel})")).expect("the kernel is exported");
    (start..end).filter(|&i| lines[i].contains("// HERE")).map(|i| format!("zoo.cu:{}", i + 1)).collect()
}

#[test]
fn every_mistake_is_found_and_its_line_named() {
    for setting in settings() {
        let lines = marked_lines(setting.name);
        assert!(!lines.is_empty(), "{} has a marked line", setting.name);
        for mode in modes() {
            let error = run(true, &setting, mode).expect_err(&format!("{} under {mode:?} has a mistake", setting.name)).to_string();
            assert!(error.contains(setting.kind), "{} under {mode:?}: expected `{}` in: {error}", setting.name, setting.kind);
            let named = lines.iter().any(|l| error.split([' ', ',', ';']).any(|word| word == l));
            assert!(named, "{} under {mode:?}: expected one of {lines:?} in: {error}", setting.name);
        }
    }
}

#[test]
fn correct_twins_raise_no_alarm() {
    for setting in settings() {
        for mode in modes() {
            run(false, &setting, mode).unwrap_or_else(|e| panic!("{} under {mode:?}: {e}", setting.name));
        }
    }
}

/// Without the checker, bounds, alignment and divergence are still found, and races are not.
#[test]
fn what_is_found_without_the_race_checker() {
    let off = Emulation { check: false, ..Emulation::default() };
    for setting in settings() {
        let always = ["past the end", "outside every", "misaligned", "divergent", "does not take part", "deadlock"];
        let found = run(true, &setting, off).is_err();
        assert_eq!(found, always.iter().any(|kind| setting.kind.contains(kind)), "{}", setting.name);
    }
}

#[test]
fn warp_and_block_operations_return_what_cuda_says() {
    modes().into_iter().for_each(|mode| values_on(&emulator::open(library(false), mode), &format!("under {mode:?}")));
}

pub fn values_on(gpu: &Arc<Gpu>, what: &str) {
    let input: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let input = Buffer::from_f32(gpu, DType::F32, &input).expect("uploaded");
    let mut out = Buffer::uninit(gpu, DType::F32, 12 * 128).expect("allocated");
    Launch::new(gpu, Kernel { source: ZOO, name: "values" }, [1, 1, 1], [128, 1, 1], 0)
        .output("out", &mut out, DType::F32, 12 * 128)
        .input("in", &input, DType::F32, 128)
        .dim("n", 128)
        .run()
        .expect("a correct kernel");
    let out = out.to_f32().expect("downloaded");
    for t in 0..128 {
        let lane = t % 32;
        let matches = |i: usize| (0..32).filter(|j| j % 5 == i % 5).count() as f32;
        let expected = [
            5.0,
            if lane < 3 { lane } else { lane - 3 } as f32,
            if lane % 8 < 5 { lane + 3 } else { lane } as f32,
            (lane ^ 9) as f32,
            11.0,
            matches(lane),
            1.0,
            32.0,
            1.0,
            (0..128).sum::<usize>() as f32,
            (0..128).sum::<usize>() as f32,
            (lane ^ 8) as f32,
        ];
        for (i, expected) in expected.into_iter().enumerate() {
            assert_eq!(out[i * 128 + t], expected, "value {i} of thread {t} {what}");
        }
    }
}

/// Launches on one device from several threads take turns; devices do not share anything.
#[test]
fn devices_can_be_used_from_several_threads() {
    let shared = emulator::open(library(false), Emulation::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let gpu = Arc::clone(&shared);
            scope.spawn(move || {
                for _ in 0..5 {
                    let input = Buffer::from_f32(&gpu, DType::F32, &[1.0; 256]).expect("uploaded");
                    let mut out = Buffer::uninit(&gpu, DType::F32, 128).expect("allocated");
                    Launch::new(&gpu, Kernel { source: ZOO, name: "missing_syncthreads" }, [1, 1, 1], [128, 1, 1], 0)
                        .output("out", &mut out, DType::F32, 128)
                        .input("in", &input, DType::F32, 256)
                        .dim("n", 128)
                        .run()
                        .expect("a correct kernel");
                    assert_eq!(out.to_f32().expect("downloaded"), [1.0; 128]);
                }
            });
        }
    });
}
