//! Builds the emulator with the kernels, once for all test binaries and runs, and opens devices on it.
//!
//! Object files and libraries lie under the target folder, named by a hash of everything they are made from, and are renamed into place: so
//! test binaries that build at the same time do not disturb each other, and nothing is built twice.

use rayon::prelude::*;
use sha2::{Digest, Sha256};
use sorft_native::tensor::cuda::{Emulation, Gpu, Schedule, Source};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// A source for a library: the text under a name of its own, so that it may differ from the file of that name.
pub struct KernelText {
    /// What error messages call it: a kernel if it ends in `.cu`, else plain C++ that goes with the emulator.
    pub name: String,
    /// Preprocessor definitions.
    pub defines: Vec<String>,
    /// The source.
    pub text: String,
}

/// The ways in which tests run a kernel: each schedule, preemption at accesses, several blocks side by side.
pub fn modes() -> Vec<Emulation> {
    let plain = Emulation::default();
    let mut modes: Vec<Emulation> = [Schedule::Fifo, Schedule::Reversed, Schedule::NewestFirst, Schedule::Random]
        .map(|schedule| Emulation { schedule, ..plain })
        .to_vec();
    modes.push(Emulation { schedule: Schedule::Random, seed: 1, preempt: 5, ..plain });
    modes.push(Emulation { schedule: Schedule::Random, seed: 2, preempt: 3, resident: 3, ..plain });
    modes.push(Emulation { schedule: Schedule::NewestFirst, preempt: 11, resident: 2, ..plain });
    modes
}

/// A device on the emulator with all kernels.
pub fn gpu(emulation: Emulation) -> Arc<Gpu> {
    open(all_kernels(), emulation)
}

/// The library of the emulator with all kernels.
pub fn all_kernels() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let kernels = Source::ALL.map(|s| KernelText { name: s.file.to_owned(), defines: Vec::new(), text: s.text.to_owned() });
        library(&kernels)
    })
}

/// A device on a library made by [`library`].
pub fn open(library: &Path, emulation: Emulation) -> Arc<Gpu> {
    // SAFETY: `library` has built it from kernels/emulator/.
    unsafe { Gpu::emulated(library, emulation) }.expect("the emulator opens")
}

/// A library of the emulator with these kernels.
///
/// # Panics
/// If there is no C++ compiler or it refuses a source.
pub fn library(kernels: &[KernelText]) -> PathBuf {
    let build = Build::new();
    let engine = folder_texts(&build.sources.join("emulator"), ".cpp");
    let mut units: Vec<Unit> = engine.iter().map(|(name, text)| Unit { name, text, flags: &ENGINE_FLAGS, defines: &[] }).collect();
    units.extend(kernels.iter().map(|k| {
        let flags: &[&str] = if k.name.ends_with(".cu") { &KERNEL_FLAGS } else { &ENGINE_FLAGS };
        Unit { name: &k.name, text: &k.text, flags, defines: &k.defines }
    }));
    let objects: Vec<PathBuf> = units.par_iter().map(|unit| build.object(unit)).collect();
    build.once(&hash(objects.iter().map(|o| o.as_os_str().as_encoded_bytes())), "so", |folder, out| {
        let mut command = build.command(folder);
        // -z defs: a hook that the sanitizer calls and the emulator does not define is an error here, not at load.
        command.args(["-shared", "-Wl,-z,defs", "-Wl,-Bsymbolic", "-o"]).arg(out).args(&objects);
        command
    })
}

const ENGINE_FLAGS: [&str; 4] = ["-Wall", "-Wextra", "-Wshadow", "-Werror"];

/// Kernels have line numbers, call the checker before each load and store, each access as wide as the source has it, and products and sums are not contracted.
const KERNEL_FLAGS: [&str; 11] = [
    "-DSORFT_EMULATOR",
    "-g1",
    "-fsanitize=thread",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
    "-fno-store-merging",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
];

/// One file to compile.
struct Unit<'a> {
    name: &'a str,
    text: &'a str,
    flags: &'a [&'a str],
    defines: &'a [String],
}

struct Build {
    compiler: cc::Tool,
    /// The compiler with its options (CXXFLAGS among them) and every header: what all objects depend on.
    common: String,
    sources: PathBuf,
    folder: PathBuf,
}

impl Build {
    fn new() -> Self {
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let mut build = cc::Build::new();
        // Always optimised: an emulator built without is five times slower.
        build.cpp(true).target(&triple).host(&triple).opt_level(2).debug(false).cargo_metadata(false);
        let missing = |e: &dyn std::fmt::Display| -> ! {
            panic!("the kernels' emulator needs a C++17 compiler (install g++, or set CXX): {e}");
        };
        let compiler = build.try_get_compiler().unwrap_or_else(|e| missing(&e));
        let version = compiler.to_command().arg("--version").output().unwrap_or_else(|e| missing(&e)).stdout;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let headers = [folder_texts(&sources, ".cuh"), folder_texts(&sources.join("emulator"), ".hpp")].concat();
        let common = format!("{:?}{:?}{}{headers:?}", compiler.path(), compiler.args(), String::from_utf8_lossy(&version));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        std::fs::create_dir_all(&folder).expect("a folder under the target folder");
        Self { compiler, common, sources, folder }
    }

    /// The compiler, run in `folder`.
    fn command(&self, folder: &Path) -> Command {
        let mut command = self.compiler.to_command();
        command.current_dir(folder);
        command
    }

    fn object(&self, unit: &Unit) -> PathBuf {
        let Unit { name, text, flags, defines } = unit;
        let hash = hash([self.common.as_bytes(), name.as_bytes(), text.as_bytes(), format!("{flags:?}{defines:?}").as_bytes()]);
        self.once(&hash, "o", |folder, out| {
            // The text as it was hashed: a file that is edited meanwhile cannot slip in.
            std::fs::write(folder.join(name), text).expect("a source is written");
            let mut command = self.command(folder);
            // No other model of thread-local storage: initial-exec is no faster here, and takes from the small room that all loaded libraries
            // share and that unloading does not give back: 35 of them fill it.
            command.args(["-std=c++17", "-fPIC", "-fvisibility=hidden"]).args(*flags);
            command.arg("-I").arg(&self.sources).arg("-I").arg(self.sources.join("emulator"));
            command.args(defines.iter().map(|d| format!("-D{d}"))).args(["-x", "c++", "-c", name, "-o"]).arg(out);
            command
        })
    }

    /// The file `hash.extension`: there already, or made by a command in a folder of its own and renamed into place.
    fn once(&self, hash: &str, extension: &str, command: impl FnOnce(&Path, &Path) -> Command) -> PathBuf {
        let file = self.folder.join(format!("{hash}.{extension}"));
        if !file.exists() {
            let folder = tempfile::tempdir_in(&self.folder).expect("a folder under the target folder");
            let out = folder.path().join("out");
            let result = command(folder.path(), &out).output().expect("the compiler starts");
            assert!(result.status.success(), "the emulator does not build:\n{}", String::from_utf8_lossy(&result.stderr));
            std::fs::rename(&out, &file).expect("the result is renamed into place");
        }
        file
    }
}

/// Names and texts of a folder's files with this ending, in order.
fn folder_texts(folder: &Path, ending: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder).expect("the kernels' folder");
    let mut texts: Vec<(String, String)> = entries
        .map(|e| e.expect("an entry of the folder").path())
        .filter(|p| p.to_string_lossy().ends_with(ending))
        .map(|p| (p.file_name().expect("a file").to_string_lossy().into_owned(), std::fs::read_to_string(&p).expect("a source")))
        .collect();
    texts.sort();
    texts
}

fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()[..12].iter().map(|b| format!("{b:02x}")).collect()
}
