//! The device handle.

use crate::tensor::cuda::buffer::Memory;
use crate::tensor::cuda::context::Context;
use crate::tensor::cuda::emulator::{Emulation, EmulationStats, Emulator};
use crate::tensor::cuda::graph::Recording;
use crate::tensor::cuda::launch::{Call, Geometry, Kernel};
use crate::tensor::cuda::tensor_map::{Boxes, TensorMap};
use crate::{Error, Result};
use std::ffi::c_void;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// The N of `cuda:N`.
    pub ordinal: usize,
    /// The device's name, as the driver gives it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Device memory in bytes.
    pub memory_bytes: usize,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Their highest clock, in thousands of cycles a second.
    pub clock_khz: usize,
    /// The most shared memory a block can have, in bytes.
    pub shared_bytes_per_block: usize,
}

/// What the driver and the emulator both do; tests have a third way to run kernels behind it. Addresses are those that kernels get. Every error is
/// the device's.
#[allow(clippy::missing_errors_doc)]
pub trait Backend: fmt::Debug + Send + Sync {
    /// Memory for elements of `grain` bytes, aligned to 256 bytes.
    fn alloc(&self, bytes: usize, grain: usize) -> Result<u64>;
    /// Gives memory back once all launches so far have ended.
    fn free(&self, address: u64);
    /// Copies bytes to the device.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Copies bytes from the device, after all launches so far.
    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()>;
    /// Sets bytes to zero.
    fn zero(&self, address: u64, bytes: usize) -> Result<()>;
    /// Copies memory of the device to other memory of the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Waits until everything queued so far has been done.
    fn synchronize(&self) -> Result<()>;
    /// Bytes of memory that are free; `None` where there is no bound.
    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Whether there is [`Backend::tensor_map`].
    fn has_tensor_maps(&self) -> bool {
        false
    }

    /// The map of a matrix, with the 128-byte swizzle and zeros outside.
    fn tensor_map(&self, _boxes: &Boxes) -> Result<TensorMap> {
        Err(Error::device("the driver makes no tensor maps"))
    }

    /// Queues a kernel. `arguments[i]` points to the value of argument i, whose kind `signature` spells (`launch.rs`).
    ///
    /// # Safety
    /// The values have the types that the signature says, and buffers are as large as the kernel takes them to be.
    unsafe fn launch(&self, kernel: Kernel, geometry: &Geometry, arguments: &mut [*mut c_void], signature: &str) -> Result<()>;

    /// Makes one thing of launches that follow each other; `None` where launching them one by one is as good.
    fn make_graph(&self, _calls: &mut [Call]) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Queues what [`Backend::make_graph`] has made.
    ///
    /// # Safety
    /// The graph is this backend's, not destroyed, and the memory that its launches name is there.
    unsafe fn launch_graph(&self, graph: u64) -> Result<()> {
        Err(Error::device(format!("graph {graph} is of another device")))
    }

    /// Gives back what [`Backend::make_graph`] has made.
    fn destroy_graph(&self, _graph: u64) {}

    /// What the last launch cost; `None` where nobody counts.
    fn emulation_stats(&self) -> Option<EmulationStats> {
        None
    }
}

/// What the host has asked of a device so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Kernels whose launch was recorded.
    pub recorded: u64,
    /// Recorded launches queued again, a whole [`Graph`](super::Graph) at a time.
    pub graphs: u64,
    /// Copies to the device.
    pub uploads: u64,
    /// Copies from the device; the host waits for each.
    pub downloads: u64,
    /// Pieces of memory asked for.
    pub allocations: u64,
}

#[derive(Debug, Default)]
struct Counters {
    launches: AtomicU64,
    recorded: AtomicU64,
    graphs: AtomicU64,
    uploads: AtomicU64,
    downloads: AtomicU64,
    allocations: AtomicU64,
}

/// Why the driver makes no graphs.
#[derive(Debug, Default)]
struct Refusal {
    refused: bool,
    /// What nobody has been told yet.
    untold: Option<String>,
}

/// A device that runs the kernels.
#[derive(Debug)]
pub struct Gpu {
    info: GpuInfo,
    backend: Box<dyn Backend>,
    /// Bytes that buffers hold, and the most that they held at a time.
    held: AtomicUsize,
    peak: AtomicUsize,
    wgmma_agrees: OnceLock<bool>,
    counters: Counters,
    recording: Mutex<Option<Recording>>,
    refusal: Mutex<Refusal>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Gpu {
    /// Opens the CUDA device `ordinal`.
    ///
    /// # Errors
    /// If there is no driver, the driver is too old, there is no such device, or its compute capability is below 8.0.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let context = Context::open(ordinal)?;
        Ok(Self::new(context.info().clone(), Box::new(context)))
    }

    /// Opens an emulator that runs the kernels on the CPU, slowly, and checks every memory access they make.
    ///
    /// # Errors
    /// If the library cannot be loaded or is of another version.
    ///
    /// # Safety
    /// `library` is the emulator, built from this version's `kernels/emulator/` and kernels.
    pub unsafe fn emulated(library: &Path, emulation: Emulation) -> Result<Arc<Self>> {
        // SAFETY: passed on to the caller.
        let emulator = unsafe { Emulator::load(library, emulation) }?;
        let info = GpuInfo {
            ordinal: 0,
            name: "emulator".to_owned(),
            compute_capability: emulation.compute_capability,
            memory_bytes: usize::MAX,
            multiprocessors: 1,
            clock_khz: 1_000_000,
            shared_bytes_per_block: 227 * 1024,
        };
        Ok(Self::new(info, Box::new(emulator)))
    }

    /// A device of another kind: tests run launches through one of their own.
    pub fn new(info: GpuInfo, backend: Box<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            info,
            backend,
            held: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            wgmma_agrees: OnceLock::new(),
            counters: Counters::default(),
            recording: Mutex::default(),
            refusal: Mutex::default(),
        })
    }

    /// Opens the emulator that `SORFT_EMULATOR` names: a library that the tests have built. So the commands themselves, with `--device
    /// emulator`, run the kernels' launches in tests; there is no such library in a release.
    ///
    /// # Errors
    /// If the variable is not set, or as [`Gpu::emulated`].
    pub fn emulator_of_environment() -> Result<Arc<Self>> {
        let library = std::env::var_os("SORFT_EMULATOR").ok_or_else(|| {
            Error::usage("--device emulator: SORFT_EMULATOR names no library").hint("it is for this project's tests; use --device cpu")
        })?;
        // SAFETY: who sets the variable says that the library is the emulator, as who sets LD_PRELOAD does; the version is checked.
        unsafe { Self::emulated(Path::new(&library), Emulation::default()) }
    }

    /// What the device is.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Whether the device has Hopper's own instructions (wgmma, TMA) and the driver what they need.
    pub fn is_hopper(&self) -> bool {
        self.info.compute_capability == (9, 0) && self.backend.has_tensor_maps()
    }

    /// Whether kernels run on the emulator.
    pub fn is_emulated(&self) -> bool {
        self.backend.emulation_stats().is_some()
    }

    /// Whether this chip's wgmma gives the bits of its mma.sync, as `find_out` finds at the first call.
    pub(crate) fn wgmma_agrees(&self, find_out: impl FnOnce() -> Result<bool>) -> Result<bool> {
        match self.wgmma_agrees.get() {
            Some(&agrees) => Ok(agrees),
            None => {
                let agrees = find_out()?;
                Ok(*self.wgmma_agrees.get_or_init(|| agrees))
            }
        }
    }

    /// Bytes of device memory that are free, for this process and others; `None` on the emulator.
    ///
    /// # Errors
    /// If the device failed.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        self.backend.free_bytes()
    }

    /// The most bytes that buffers held at a time, since the last [`Gpu::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Bytes that buffers hold now; the peak is counted anew from here.
    pub fn reset_peak(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        self.peak.store(held, Ordering::Relaxed);
        held
    }

    /// What has been asked of the device since it was opened.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Counters { launches, recorded, graphs, uploads, downloads, allocations } = &self.counters;
        Counts {
            launches: read(launches),
            recorded: read(recorded),
            graphs: read(graphs),
            uploads: read(uploads),
            downloads: read(downloads),
            allocations: read(allocations),
        }
    }

    /// Why recorded launches are queued one by one on this device, if they are; said once.
    pub fn graph_warning(&self) -> Option<String> {
        self.lock(&self.refusal).untold.take()
    }

    /// Memory: of the recording's own, where this thread records.
    pub(super) fn memory(self: &Arc<Self>, bytes: usize, grain: usize) -> Result<Arc<Memory>> {
        match self.recorded(|recording| recording.memory(self, bytes, grain)) {
            Some(memory) => memory,
            None => self.lasting_memory(bytes, grain),
        }
    }

    /// [`Backend::alloc`], counted.
    pub(super) fn lasting_memory(self: &Arc<Self>, bytes: usize, grain: usize) -> Result<Arc<Memory>> {
        let address = self.backend.alloc(bytes, grain)?;
        count(&self.counters.allocations);
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(Arc::new(Memory { gpu: self.clone(), address, bytes, of: None }))
    }

    /// [`Backend::free`], counted.
    pub(super) fn free(&self, address: u64, bytes: usize) {
        self.backend.free(address);
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Waits until everything queued so far has been done.
    ///
    /// # Errors
    /// If the device failed, also in an earlier launch.
    pub fn synchronize(&self) -> Result<()> {
        self.backend.synchronize()
    }

    /// What the last launch cost, on the emulator; `None` on a real device.
    pub fn emulation_stats(&self) -> Option<EmulationStats> {
        self.backend.emulation_stats()
    }

    /// Queues a launch, or notes it down where this thread records. `memory` is what its arguments point into.
    pub(super) fn queue(&self, call: Call, memory: &[Arc<Memory>]) -> Result<()> {
        let mut call = Some(call);
        let noted = self.recorded(|recording| recording.note(call.take().expect("it was not queued"), memory));
        let (None, Some(mut call)) = (noted, call) else {
            count(&self.counters.recorded);
            return Ok(());
        };
        count(&self.counters.launches);
        // SAFETY: the memory is there.
        unsafe { call.queue(&*self.backend) }
    }

    /// [`Backend::upload`], counted.
    pub(super) fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_in_recording("an upload")?;
        count(&self.counters.uploads);
        self.backend.upload(to, bytes)
    }

    /// [`Backend::download`], counted.
    pub(super) fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        self.refuse_in_recording("a download")?;
        count(&self.counters.downloads);
        self.backend.download(bytes, from)
    }

    /// [`Backend::zero`].
    pub(super) fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.refuse_in_recording("clearing memory")?;
        self.backend.zero(address, bytes)
    }

    /// [`Backend::copy`].
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.refuse_in_recording("a copy")?;
        self.backend.copy(to, from, bytes)
    }

    /// What carries out the work.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Begins or ends a recording; returns the one before.
    pub(super) fn set_recording(&self, recording: Option<Recording>) -> Option<Recording> {
        std::mem::replace(&mut *self.lock(&self.recording), recording)
    }

    /// `note` of the recording, where this thread has one under way.
    fn recorded<R>(&self, note: impl FnOnce(&mut Recording) -> R) -> Option<R> {
        self.lock(&self.recording).as_mut().filter(|r| r.thread == std::thread::current().id()).map(note)
    }

    fn refuse_in_recording(&self, what: &str) -> Result<()> {
        match self.recorded(|_| ()) {
            None => Ok(()),
            Some(()) => Err(Error::device(format!("{what} while launches are recorded: only launches can be repeated"))),
        }
    }

    /// Whether the driver has refused to make a graph; `why` says that it has now.
    pub(super) fn graphs_refused(&self, why: Option<&Error>) -> bool {
        let mut refusal = self.lock(&self.refusal);
        if let (Some(why), false) = (why, refusal.refused) {
            let untold = format!("the launches of decoding are queued one by one, since the driver made no graph of them: {why}");
            *refusal = Refusal { refused: true, untold: Some(untold) };
        }
        refusal.refused
    }

    pub(super) fn count_graph(&self) {
        count(&self.counters.graphs);
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        // What is in there is whole between any two statements.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
