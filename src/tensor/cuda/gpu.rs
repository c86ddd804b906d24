//! The device handle.

use crate::tensor::cuda::context::Context;
use crate::tensor::cuda::emulator::{Emulation, EmulationStats, Emulator};
use crate::tensor::cuda::launch::{Geometry, Kernel};
use crate::{Error, Result};
use std::ffi::c_void;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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

/// A bf16 matrix in device memory, rows one after another, and the boxes of 64 columns that TMA copies from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boxes {
    pub address: u64,
    pub rows: usize,
    pub columns: usize,
    pub box_rows: usize,
}

/// The 128 bytes that tell TMA of a matrix (`TensorMap` of `kernels/hopper.cuh`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct TensorMap(pub [u64; 16]);

/// What the driver and the emulator both do. Addresses are those that kernels get.
pub(super) trait Backend: fmt::Debug + Send + Sync {
    /// Memory for elements of `grain` bytes, aligned to 256 bytes.
    fn alloc(&self, bytes: usize, grain: usize) -> Result<u64>;
    /// Gives memory back once all launches so far have ended.
    fn free(&self, address: u64);
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()>;
    fn zero(&self, address: u64, bytes: usize) -> Result<()>;
    /// Copies memory of the device to other memory of the device.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
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

    fn emulator(&self) -> Option<&Emulator> {
        None
    }
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

    fn new(info: GpuInfo, backend: Box<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { info, backend, held: AtomicUsize::new(0), peak: AtomicUsize::new(0), wgmma_agrees: OnceLock::new() })
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
        self.backend.emulator().is_some()
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

    /// [`Backend::alloc`], counted.
    pub(super) fn alloc(&self, bytes: usize, grain: usize) -> Result<u64> {
        let address = self.backend.alloc(bytes, grain)?;
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(held, Ordering::Relaxed);
        Ok(address)
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
        self.backend.emulator().map(Emulator::stats)
    }

    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
}
