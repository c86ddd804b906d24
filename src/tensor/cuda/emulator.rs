//! Loads the emulator, a library that tests build from `kernels/emulator/` and the kernels, and runs launches on it.
//!
//! Device memory is host memory there, and a launch has ended when it returns. Whatever a kernel does wrong (races, accesses out of bounds,
//! misaligned or to memory that was never written, divergence, deadlocks) is an error that names the line.

use crate::tensor::cuda::gpu::Backend;
use crate::tensor::cuda::launch::{Geometry, Kernel};
use crate::tensor::cuda::tensor_map::{Boxes, Planes, TensorMap};
use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// In which order the emulator lets threads run. A kernel must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Schedule {
    /// In order of readiness, lowest index first.
    Fifo = 0,
    /// The same, highest index first.
    Reversed = 1,
    /// The thread that became ready last: one runs as far ahead as it can.
    NewestFirst = 2,
    /// At random, by the seed.
    Random = 3,
}

/// How the emulator runs and watches kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulation {
    /// The order of threads.
    pub schedule: Schedule,
    /// Of the random schedule and of preemption.
    pub seed: u64,
    /// Whether races and reads of unwritten memory are looked for; bounds, alignment and divergence always are.
    pub check: bool,
    /// A thread is set aside after one access in this many, at random; 0: never.
    pub preempt: u32,
    /// How many blocks run side by side.
    pub resident: u32,
    /// The chip that the device passes for: (9, 0) has the kernels that are for Hopper.
    pub compute_capability: (u32, u32),
}

impl Default for Emulation {
    fn default() -> Self {
        Self { schedule: Schedule::Fifo, seed: 0, check: true, preempt: 0, resident: 1, compute_capability: (9, 0) }
    }
}

/// What a launch cost on the emulator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EmulationStats {
    /// Switches from one CUDA thread to another.
    pub switches: u64,
    /// Loads and stores that were checked.
    pub accesses: u64,
}

/// `emu::ABI_VERSION` of `kernels/emulator/api.hpp`, which declares all that follows.
const ABI_VERSION: u32 = 3;

/// `TileMap::MAGIC` there.
const TILE_MAP_MAGIC: u64 = 0x7061_6d20_656c_6974;

#[repr(C)]
struct RawOptions {
    seed: u64,
    schedule: u32,
    check: u32,
    preempt: u32,
    resident: u32,
}

#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    arguments: u32,
    cluster: u32,
    early: u32,
    pointers: u64,
}

type Device = *mut c_void;
type Entry = unsafe extern "C" fn(*mut *mut c_void);

struct Functions {
    close: unsafe extern "C" fn(Device),
    error: unsafe extern "C" fn(Device) -> *const c_char,
    alloc: unsafe extern "C" fn(Device, usize, usize) -> *mut c_void,
    free: unsafe extern "C" fn(Device, *mut c_void) -> c_int,
    write: unsafe extern "C" fn(Device, *mut c_void, *const c_void, usize) -> c_int,
    read: unsafe extern "C" fn(Device, *mut c_void, *const c_void, usize) -> c_int,
    zero: unsafe extern "C" fn(Device, *mut c_void, usize) -> c_int,
    launch: unsafe extern "C" fn(Device, Entry, *const RawLaunch, *mut *mut c_void, *const RawOptions, *mut EmulationStats) -> c_int,
}

/// An emulated device.
pub(super) struct Emulator {
    library: Library,
    path: PathBuf,
    functions: Functions,
    emulation: Emulation,
    state: Mutex<State>,
}

struct State {
    device: Device,
    stats: EmulationStats,
}

// SAFETY: the library keeps all state in the device, which is only used with `state` locked; a launch runs to its end on one thread.
unsafe impl Send for State {}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "emulator ({:?})", self.emulation)
    }
}

impl Emulator {
    /// # Safety
    /// `path` is the emulator of this version of the program.
    pub(super) unsafe fn load(path: &Path, emulation: Emulation) -> Result<Self> {
        let refused = |e: libloading::Error| Error::device(format!("not the kernels' emulator: {e}")).at_file(path);
        // SAFETY: the caller says what the library is; its types are those of api.hpp in the version that is checked first.
        unsafe {
            let library = Library::new(path).map_err(refused)?;
            let version = (*library.get::<unsafe extern "C" fn() -> u32>(b"emu_abi_version").map_err(refused)?)();
            if version != ABI_VERSION {
                let message = format!("the emulator has interface version {version}; this program has {ABI_VERSION}");
                return Err(Error::device(message).at_file(path).hint("build it from this version's sources"));
            }
            let functions = Functions {
                close: *library.get(b"emu_close").map_err(refused)?,
                error: *library.get(b"emu_error").map_err(refused)?,
                alloc: *library.get(b"emu_alloc").map_err(refused)?,
                free: *library.get(b"emu_free").map_err(refused)?,
                write: *library.get(b"emu_write").map_err(refused)?,
                read: *library.get(b"emu_read").map_err(refused)?,
                zero: *library.get(b"emu_zero").map_err(refused)?,
                launch: *library.get(b"emu_launch").map_err(refused)?,
            };
            let device = (*library.get::<unsafe extern "C" fn() -> Device>(b"emu_open").map_err(refused)?)();
            let state = Mutex::new(State { device, stats: EmulationStats::default() });
            Ok(Self { library, path: path.to_owned(), functions, emulation, state })
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The library's state is whole between calls, whatever panicked on the Rust side.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's last message as an error, if `status` says that there is one.
    fn check(&self, state: &State, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: a string that lives until the next call on the device, which is locked.
        let message = unsafe { CStr::from_ptr((self.functions.error)(state.device)) }.to_string_lossy().into_owned();
        Err(Error::device(name_lines(&self.path, &message)))
    }

    /// The kernel's entry, once its signature is the one that the launch spells, and how many of its blocks are a cluster.
    fn entry(&self, kernel: Kernel, signature: &str) -> Result<(Entry, u32)> {
        let symbol = |suffix: &str| CString::new(format!("{}__emu{suffix}", kernel.name)).unwrap_or_default();
        let missing = |e: libloading::Error| Error::device(format!("the emulator has no such kernel: {e}")).at_file(&self.path);
        // SAFETY: SORFT_EXPORT defines the first two with these types, SORFT_EXPORT_CLUSTER the third, where there is one.
        let (entry, own, cluster) = unsafe {
            let entry = *self.library.get::<Entry>(symbol("").as_bytes_with_nul()).map_err(missing)?;
            let spell =
                *self.library.get::<unsafe extern "C" fn() -> *const c_char>(symbol("_signature").as_bytes_with_nul()).map_err(missing)?;
            let cluster = self.library.get::<unsafe extern "C" fn() -> u32>(symbol("_cluster").as_bytes_with_nul());
            (entry, CStr::from_ptr(spell()).to_string_lossy(), cluster.map_or(1, |blocks| blocks()))
        };
        if own != signature {
            return Err(Error::device(format!("the launch's arguments are ({signature}); the kernel takes ({own})")));
        }
        Ok((entry, cluster))
    }
}

impl Backend for Emulator {
    fn alloc(&self, bytes: usize, grain: usize) -> Result<u64> {
        let state = self.lock();
        // SAFETY: a device that is open and locked.
        let memory = unsafe { (self.functions.alloc)(state.device, bytes, grain) };
        self.check(&state, c_int::from(memory.is_null()))?;
        Ok(memory.expose_provenance() as u64)
    }

    fn free(&self, address: u64) {
        let state = self.lock();
        // SAFETY: as above; the address is checked there. A buffer frees its own memory once, so this cannot fail.
        unsafe { (self.functions.free)(state.device, pointer(address)) };
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let state = self.lock();
        // SAFETY: as above; the target is checked there.
        let status = unsafe { (self.functions.write)(state.device, pointer(to), bytes.as_ptr().cast(), bytes.len()) };
        self.check(&state, status)
    }

    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        let state = self.lock();
        // SAFETY: as above; the origin is checked there.
        let status = unsafe { (self.functions.read)(state.device, bytes.as_mut_ptr().cast(), pointer(from), bytes.len()) };
        self.check(&state, status)
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        let state = self.lock();
        // SAFETY: as above; the target is checked there.
        let status = unsafe { (self.functions.zero)(state.device, pointer(address), bytes) };
        self.check(&state, status)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let mut through = vec![0; bytes];
        self.download(&mut through, from)?;
        self.upload(to, &through)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(()) // a launch has ended when it returns
    }

    fn has_tensor_maps(&self) -> bool {
        true
    }

    /// `TileMap` of `kernels/emulator/engine.hpp`.
    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap> {
        let Boxes { address, planes, rows, columns, box_rows } = *boxes;
        let mut words = [0; 16];
        words[..6].copy_from_slice(&[TILE_MAP_MAGIC, address, columns as u64, rows as u64, 2 * columns as u64, box_rows as u64]);
        if let Some(Planes { count, of_box }) = planes {
            words[6..9].copy_from_slice(&[count as u64, 2 * (rows * columns) as u64, of_box as u64]);
        }
        Ok(TensorMap(words))
    }

    unsafe fn launch(&self, kernel: Kernel, geometry: &Geometry, arguments: &mut [*mut c_void], signature: &str) -> Result<()> {
        let (entry, cluster) = self.entry(kernel, signature)?;
        let is_pointer = |letters: &str| letters.len() == 2;
        let pointers = signature.split(' ').take(64).enumerate().map(|(i, letters)| u64::from(is_pointer(letters)) << i).sum();
        let Geometry { grid, block, shared_bytes, early } = *geometry;
        let (arguments_count, early) = (arguments.len() as u32, u32::from(early));
        let launch = RawLaunch { grid, block, shared_bytes, arguments: arguments_count, cluster, early, pointers };
        let Emulation { schedule, seed, check, preempt, resident, .. } = self.emulation;
        let options = RawOptions { seed, schedule: schedule as u32, check: u32::from(check), preempt, resident };
        let mut state = self.lock();
        let mut stats = EmulationStats::default();
        // SAFETY: an entry of this library whose parameters are the arguments' types; all pointers outlive the call.
        let status = unsafe { (self.functions.launch)(state.device, entry, &launch, arguments.as_mut_ptr(), &options, &mut stats) };
        state.stats = stats;
        self.check(&state, status)
    }

    fn emulation_stats(&self) -> Option<EmulationStats> {
        Some(self.lock().stats)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: open, and closed only here; no buffer is left (each holds the Gpu).
        unsafe { (self.functions.close)(state.device) };
    }
}

fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// Replaces every `{pc:0x...}` of a message by the kernel line it belongs to. Asks binutils' addr2line, which comes with every C++ compiler
/// that could have built the library; without it the offset stays.
fn name_lines(library: &Path, message: &str) -> String {
    let mut parts = message.split("{pc:");
    let mut out = parts.next().unwrap_or_default().to_owned();
    let places: Vec<(&str, &str)> = parts.map(|p| p.split_once('}').unwrap_or((p, ""))).collect();
    let lines = lines_of(library, places.iter().map(|p| p.0));
    for (i, (pc, text)) in places.into_iter().enumerate() {
        match lines.get(i) {
            Some(line) if !line.is_empty() => out.push_str(line),
            _ => out.push_str(&format!("code offset {pc}")),
        }
        out.push_str(text);
    }
    out
}

/// For each offset, its line in a kernel source, and the lines that it was inlined into: `rmsnorm.cu:57 (from 140, 176)`.
fn lines_of<'a>(library: &Path, offsets: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut offsets = offsets.peekable();
    if offsets.peek().is_none() {
        return Vec::new();
    }
    // -a begins each answer with the address, -i adds the places that the code was inlined into, innermost first.
    let output = Command::new("addr2line").args(["-a", "-i", "-e"]).arg(library).args(offsets).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let mut lines: Vec<Vec<&str>> = Vec::new();
    for line in text.lines() {
        match lines.last_mut() {
            _ if line.starts_with("0x") => lines.push(Vec::new()),
            Some(frames) if !line.starts_with("??") => {
                frames.push(line.split(" (").next().unwrap_or(line).rsplit('/').next().unwrap_or(line))
            }
            _ => {}
        }
    }
    lines.iter().map(|frames| describe(frames)).collect()
}

fn describe(frames: &[&str]) -> String {
    let kernel = |frame: &&&str| frame.split(':').next().is_some_and(|file| file.ends_with(".cu"));
    let Some(first) = frames.iter().find(kernel).or(frames.first()) else { return String::new() };
    let outer: Vec<&str> = frames.iter().filter(kernel).skip(1).filter_map(|f| Some(f.split_once(':')?.1)).collect();
    if outer.is_empty() { (*first).to_owned() } else { format!("{first} (from {})", outer.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_the_kernel_s_lines() {
        assert_eq!(describe(&["sorft.cuh:70", "k.cu:5", "k.cu:9"]), "k.cu:5 (from 9)");
        assert_eq!(describe(&["k.cu:5"]), "k.cu:5");
        assert_eq!(describe(&["device.hpp:5"]), "device.hpp:5");
        assert_eq!(describe(&[]), "");
    }

    #[test]
    fn unknown_offsets_stay() {
        let nowhere = Path::new("/nonexistent/library.so");
        assert_eq!(
            name_lines(nowhere, "race at {pc:0x12}, before at {pc:0x34}; end"),
            "race at code offset 0x12, before at code offset 0x34; end"
        );
        assert_eq!(name_lines(nowhere, "no place"), "no place");
    }
}
