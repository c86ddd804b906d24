//! The second witness: a device that runs each launch twice, by the emulator from the C++ that g++ makes of a kernel and by the interpreter
//! (`ptx/`) from the PTX that NVRTC makes of it, and after each launch compares every byte of device memory. The first difference is an error of
//! the launch. So whatever launches kernels can be run on it unchanged, and what it computes both have computed.

use crate::emulator;
use crate::ptx::{Memory, Module, Shape};
use rayon::prelude::*;
use sorft_native::tensor::cuda::{
    Backend, Boxes, Compiled, Emulation, EmulationStats, Geometry, Gpu, Kernel, Nvrtc, Source, TensorMap, compile,
};
use sorft_native::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The architecture whose PTX is run, but of [`FOR_HOPPER`]. That of sm_90a is the same text but for its head, as a test makes sure.
pub const ARCHITECTURE: &str = "sm_80";
/// The architecture whose PTX is run of those.
pub const HOPPER: &str = "sm_90a";

/// Sources whose kernels have code for Hopper alone.
pub const FOR_HOPPER: [&str; 8] = [
    "attention_bwd_hopper.cu",
    "attention_bwd_kv_hopper.cu",
    "attention_bwd_q_hopper.cu",
    "attention_hopper.cu",
    "conformance_hopper.cu",
    "conformance_tiles.cu",
    "head_hopper.cu",
    "linear_hopper.cu",
];

/// The compiler; none, with a word about it, where it is missing and not required.
pub fn nvrtc() -> Option<&'static Nvrtc> {
    static NVRTC: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let load = || match Nvrtc::load(None) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) => {
            assert!(std::env::var_os("SORFT_REQUIRE_NVRTC").is_none(), "SORFT_REQUIRE_NVRTC is set, but: {e}");
            // Not eprintln!, which the test harness would keep to itself.
            let note = "SKIPPED: the kernels were not compiled for a GPU (with SORFT_REQUIRE_NVRTC set, this is a failure)";
            let _ = writeln!(std::io::stderr(), "{note}\n  {e}");
            None
        }
    };
    NVRTC.get_or_init(load).as_ref()
}

/// The code of a kernel source for some architectures: compiled once, side by side.
pub fn compiled(source: Source, architecture: &'static str) -> Result<Arc<Compiled>> {
    type Slot = Arc<OnceLock<std::result::Result<Arc<Compiled>, String>>>;
    static CACHE: Mutex<BTreeMap<(&str, &str), Slot>> = Mutex::new(BTreeMap::new());
    let slot = locked(&CACHE).entry((source.file, architecture)).or_default().clone();
    let make = || -> std::result::Result<Arc<Compiled>, String> {
        let nvrtc = nvrtc().ok_or("there is no compiler")?;
        compile(nvrtc, source, architecture).map(Arc::new).map_err(|e| e.to_string())
    };
    slot.get_or_init(make).clone().map_err(Error::device)
}

/// What a kernel has been launched with so far, in this process.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    pub launches: usize,
    /// The most dynamic shared memory, in bytes.
    pub dynamic: u32,
}

static SEEN: Mutex<BTreeMap<String, Seen>> = Mutex::new(BTreeMap::new());

/// The kernels that both witnesses have run and agreed about, in this process.
pub fn seen() -> BTreeMap<String, Seen> {
    locked(&SEEN).clone()
}

/// The architecture whose PTX of a source is run.
pub fn architecture(source: Source) -> &'static str {
    if FOR_HOPPER.contains(&source.file) { HOPPER } else { ARCHITECTURE }
}

/// What gives the interpreter a source's module.
type Modules = Box<dyn Fn(Source) -> Result<Arc<Module>> + Send + Sync>;

/// Every source's module, once there is a compiler.
fn modules() -> &'static HashMap<&'static str, Arc<Module>> {
    static MODULES: OnceLock<HashMap<&str, Arc<Module>>> = OnceLock::new();
    let module = |source: &Source| {
        let ptx = &compiled(*source, architecture(*source)).unwrap_or_else(|e| panic!("{e}")).ptx;
        (source.file, Arc::new(Module::parse(ptx).unwrap_or_else(|e| panic!("{}: {e}", source.file))))
    };
    MODULES.get_or_init(|| Source::ALL.par_iter().map(module).collect())
}

/// The kernels of all sources.
pub fn kernels() -> Vec<String> {
    modules().values().flat_map(|m| m.kernels().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The device with all kernels as they are; none where there is no compiler. It passes for a Hopper chip, or for one before it.
pub fn gpu(hopper: bool) -> Option<Arc<Gpu>> {
    nvrtc()?;
    let of = |source: Source| modules().get(source.file).cloned().ok_or_else(|| Error::device("no such source"));
    Some(open(emulator::all_kernels(), hopper, Box::new(of)))
}

/// A device whose emulator has `library` and whose interpreter runs what NVRTC makes of `source` and, of other sources, what [`gpu`] does; none where
/// there is no compiler.
pub fn gpu_of(library: &Path, source: Source) -> Option<Arc<Gpu>> {
    let ptx = compile(nvrtc()?, source, architecture(source)).unwrap_or_else(|e| panic!("{e}")).ptx;
    let module = Module::parse(&ptx).map(Arc::new);
    let of = move |other: Source| {
        let own = other.file == source.file;
        if own {
            module.clone().map_err(Error::device)
        } else {
            modules().get(other.file).cloned().ok_or_else(|| Error::device("no such source"))
        }
    };
    Some(open(library, FOR_HOPPER.contains(&source.file), Box::new(of)))
}

fn open(library: &Path, hopper: bool, modules: Modules) -> Arc<Gpu> {
    let compute_capability = if hopper { (9, 0) } else { (8, 0) };
    // Races are looked for where the emulator runs alone.
    let emulator = emulator::open(library, Emulation { check: false, compute_capability, ..Emulation::default() });
    let info = emulator.info().clone();
    Gpu::new(info, Box::new(Witness { emulator, modules, memory: Mutex::default() }))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both, with the same addresses for the same buffers.
struct Witness {
    emulator: Arc<Gpu>,
    modules: Modules,
    /// The interpreter's.
    memory: Mutex<Memory>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("emulator and PTX")
    }
}

impl Witness {
    fn write(&self, to: u64, bytes: &[u8]) -> Result<()> {
        locked(&self.memory).bytes(to, bytes.len()).map_err(Error::device)?.copy_from_slice(bytes);
        Ok(())
    }

    /// An error if any byte differs.
    fn compare(&self, kernel: Kernel, arguments: &[Vec<u8>], signature: &str) -> Result<()> {
        let memory = locked(&self.memory);
        for (address, own) in memory.buffers() {
            // SAFETY: the emulator's device memory is memory of this process; this buffer was allocated there with this many bytes, is not freed
            // (`free` takes it out of `memory` first, which is locked), and nothing writes to it outside a launch, which has ended.
            let theirs = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(address as usize), own.len()) };
            if own == theirs {
                continue;
            }
            let inside = |argument: &Vec<u8>| {
                argument.as_slice().try_into().is_ok_and(|a| (address..address + own.len() as u64).contains(&u64::from_le_bytes(a)))
            };
            let argument = arguments.iter().zip(signature.split(' ')).position(|(a, letters)| letters.len() == 2 && inside(a));
            let size = match argument.and_then(|i| signature.split(' ').nth(i)?.chars().nth(1)) {
                Some('b') => 2,
                Some('d') => 8,
                _ => 4,
            };
            let different: Vec<usize> =
                (0..own.len().div_ceil(size)).filter(|i| element(own, *i, size) != element(theirs, *i, size)).collect();
            let at = different[0];
            return Err(Error::device(format!(
                "{}: the PTX and the emulator differ in {} of {} numbers of {}: number {at} is {:#x} by the PTX, {:#x} by the emulator",
                kernel.name,
                different.len(),
                own.len().div_ceil(size),
                argument.map_or("a buffer that is no argument".to_owned(), |i| format!("argument {i}")),
                element(own, at, size),
                element(theirs, at, size),
            )));
        }
        Ok(())
    }
}

fn element(bytes: &[u8], i: usize, size: usize) -> u64 {
    bytes[i * size..].iter().take(size).rev().fold(0, |x, b| x << 8 | u64::from(*b))
}

impl Backend for Witness {
    fn alloc(&self, bytes: usize, grain: usize) -> Result<u64> {
        let mut memory = locked(&self.memory);
        let address = self.emulator.backend().alloc(bytes, grain)?;
        memory.add(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        let mut memory = locked(&self.memory);
        memory.remove(address);
        self.emulator.backend().free(address);
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.emulator.backend().upload(to, bytes)?;
        self.write(to, bytes)
    }

    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        // Both have the same, or the launch would have failed; the emulator knows too what was never written.
        self.emulator.backend().download(bytes, from)
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.emulator.backend().zero(address, bytes)?;
        self.write(address, &vec![0; bytes])
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.emulator.backend().copy(to, from, bytes)?;
        let through = locked(&self.memory).bytes(from, bytes).map_err(Error::device)?.to_vec();
        self.write(to, &through)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// The emulator's maps, which the interpreter reads too.
    fn has_tensor_maps(&self) -> bool {
        self.emulator.backend().has_tensor_maps()
    }

    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap> {
        self.emulator.backend().tensor_map(boxes)
    }

    fn emulation_stats(&self) -> Option<EmulationStats> {
        self.emulator.backend().emulation_stats()
    }

    unsafe fn launch(&self, kernel: Kernel, geometry: &Geometry, arguments: &mut [*mut c_void], signature: &str) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { self.emulator.backend().launch(kernel, geometry, arguments, signature) }?;
        let module = (self.modules)(kernel.source)?;
        let sizes = module.parameters(kernel.name).map_err(Error::device)?;
        if sizes.len() != arguments.len() {
            return Err(Error::device(format!("{} arguments for {} parameters of the PTX", arguments.len(), sizes.len())));
        }
        // SAFETY: the emulator has compared the signature with the kernel's own parameters, whose sizes these are; each value is as large.
        let value =
            |(argument, bytes): (&*mut c_void, &usize)| unsafe { std::slice::from_raw_parts(argument.cast::<u8>(), *bytes) }.to_vec();
        let values: Vec<Vec<u8>> = arguments.iter().zip(&sizes).map(value).collect();
        let shape = Shape { grid: geometry.grid, block: geometry.block, dynamic: geometry.shared_bytes };
        module.launch(kernel.name, &shape, &values, &mut locked(&self.memory)).map_err(|e| Error::device(format!("the PTX: {e}")))?;
        self.compare(kernel, &values, signature)?;
        let mut seen = locked(&SEEN);
        let seen = seen.entry(kernel.name.to_owned()).or_default();
        *seen = Seen { launches: seen.launches + 1, dynamic: seen.dynamic.max(geometry.shared_bytes) };
        Ok(())
    }
}
