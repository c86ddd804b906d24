//! The CUDA driver: a device's context, one stream, memory and loaded modules; `context/graphs.rs` has graphs.

mod graphs;

use crate::tensor::cuda::Nvrtc;
use crate::tensor::cuda::driver::{check_capability, describe, device_count, failed, start_driver};
use crate::tensor::cuda::gpu::{Backend, GpuInfo};
use crate::tensor::cuda::launch::{Call, Geometry, Kernel};
use crate::tensor::cuda::module::{self, Source};
use crate::tensor::cuda::probe::CudaVersion;
use crate::tensor::cuda::staging::Staging;
use crate::tensor::cuda::tensor_map::{Boxes, Planes, TensorMap};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shared memory that a kernel may use without asking for more.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// An open device.
pub(super) struct Context {
    info: GpuInfo,
    driver: CudaVersion,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Whether memory is allocated and freed in the stream's order, without waiting.
    pools: bool,
    /// Where uploads wait for the stream.
    staging: Mutex<Staging>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// Loaded with the first module: a program that runs no kernel needs no compiler.
    compiler: Option<Nvrtc>,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: the driver's handles may be used from any thread; every call makes the context current first, and `loaded` is locked.
unsafe impl Send for Context {}
// SAFETY: as above: the driver's functions are thread-safe.
unsafe impl Sync for Context {}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({}, CUDA {})", self.info.ordinal, self.info.name, self.driver)
    }
}

impl Context {
    /// Opens device `ordinal`: its primary context and a stream of our own.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let driver = start_driver()?;
        let count = device_count()?;
        if ordinal >= count {
            let message = if count == 0 {
                "there is no CUDA device".to_owned()
            } else {
                format!("no such device: there are {count}, counted from 0")
            };
            return Err(Error::device(message).at(format_args!("cuda:{ordinal}")).hint("`doctor` lists the devices"));
        }
        let info = describe(ordinal)?;
        check_capability(&info)?;
        let at = |what: &'static str| move |e| failed(what, e).at(format_args!("cuda:{ordinal}"));
        let device = result::device::get(ordinal as c_int).map_err(at("opening the device"))?;
        // SAFETY: a device that the driver has just given; released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(at("opening the device's context"))?;
        let stream = std::ptr::null_mut();
        let mut this = Self { info, driver, device, context, stream, pools: false, staging: Mutex::default(), loaded: Mutex::default() };
        this.bind()?;
        this.stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(at("creating a stream"))?;
        this.pools = keep_freed_memory(device).map_err(at("setting up the memory pool"))?;
        Ok(this)
    }

    pub(super) fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: retained in `open`, released in `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.failed("making the context current", e))
    }

    fn failed(&self, what: &str, error: DriverError) -> Error {
        failed(what, error).at(format_args!("cuda:{}", self.info.ordinal))
    }

    fn lock(&self) -> MutexGuard<'_, Loaded> {
        // What is in there stays right even if a thread panicked while holding it: entries are complete when they are inserted.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's function, compiled and loaded at first use.
    fn function(&self, kernel: Kernel) -> Result<sys::CUfunction> {
        let mut loaded = self.lock();
        if let Some(&function) = loaded.functions.get(kernel.name) {
            return Ok(function);
        }
        let module = match loaded.modules.get(kernel.source.file) {
            Some(&module) => module,
            None => {
                let compiler = match loaded.compiler.take() {
                    Some(compiler) => compiler,
                    None => module::compiler(self.driver.major)?,
                };
                let module = self.load(loaded.compiler.insert(compiler), kernel.source)?;
                loaded.modules.insert(kernel.source.file, module);
                module
            }
        };
        let name = CString::new(kernel.name).map_err(|_| Error::device("a zero byte in a kernel's name"))?;
        // SAFETY: the module stays loaded until `drop`.
        let function = unsafe { result::module::get_function(module, name) }.map_err(|e| self.failed("finding the kernel", e))?;
        loaded.functions.insert(kernel.name, function);
        Ok(function)
    }

    /// Waits until what was queued has been done.
    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as self.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.failed("running what was queued", e))
    }

    /// The kernel's function, ready for a launch with so much dynamic shared memory.
    fn prepared(&self, kernel: Kernel, shared_bytes: u32) -> Result<sys::CUfunction> {
        let function = self.function(kernel)?;
        if shared_bytes > DEFAULT_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a loaded function.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as c_int) }
                .map_err(|e| self.failed(&format!("asking for {shared_bytes} bytes of shared memory"), e))?;
        }
        Ok(function)
    }

    /// # Safety
    /// The function takes such arguments, and the stream is open.
    unsafe fn launch_on(
        &self,
        stream: sys::CUstream,
        function: sys::CUfunction,
        geometry: &Geometry,
        arguments: &mut [*mut c_void],
    ) -> Result<()> {
        let Geometry { grid, block, shared_bytes, .. } = *geometry;
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        // SAFETY: as the caller promises.
        unsafe { result::launch_kernel(function, grid, block, shared_bytes, stream, arguments) }.map_err(|e| self.failed("launching", e))
    }

    fn load(&self, nvrtc: &Nvrtc, source: Source) -> Result<sys::CUmodule> {
        let architecture = module::architecture(self.info.compute_capability);
        let compiled = module::compile_cached(nvrtc, source, &architecture, module::cache_folder().as_deref())?;
        // SAFETY: a whole CUBIN; the driver copies it.
        unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) }
            .map_err(|e| self.failed(&format!("loading {} for {architecture}", source.file), e))
    }
}

/// Lets the driver's pool keep freed memory instead of giving it back at every synchronisation. False where there are no pools.
fn keep_freed_memory(device: sys::CUdevice) -> std::result::Result<bool, DriverError> {
    use sys::CUdevice_attribute as A;
    // SAFETY: an open device; the attribute is a u64 that the driver reads.
    unsafe {
        if result::device::get_attribute(device, A::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Ok(false);
        }
        let pool = result::device::get_default_mem_pool(device)?;
        let mut threshold = u64::MAX;
        let release = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, release, (&raw mut threshold).cast())?;
    }
    Ok(true)
}

impl Backend for Context {
    fn alloc(&self, bytes: usize, _grain: usize) -> Result<u64> {
        self.bind()?;
        // SAFETY: the stream lives as long as self; the memory is freed by `free`.
        let memory = unsafe { if self.pools { result::malloc_async(self.stream, bytes) } else { result::malloc_sync(bytes) } };
        memory.map_err(|e| self.failed(&format!("allocating {bytes} bytes"), e))
    }

    fn free(&self, address: u64) {
        if self.bind().is_err() {
            return; // the device is lost, and its memory with it
        }
        // SAFETY: allocated by `alloc`, freed once, by the buffer that owned it. Launches queued before are in the same stream; freeing
        // without a pool waits for them. There is nobody to tell of an error, and the next call of the driver gives it again.
        let _ = unsafe { if self.pools { result::free_async(address, self.stream) } else { result::free_sync(address) } };
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's buffer has room for the bytes; they stay valid until the copy has ended, in the staging memory or here.
        unsafe {
            if let Some(staged) = staging.stage(bytes, || self.wait())? {
                return result::memcpy_htod_async(to, staged, self.stream).map_err(|e| self.failed("uploading", e));
            }
            result::memcpy_htod_async(to, bytes, self.stream).map_err(|e| self.failed("uploading", e))?;
        }
        self.wait()
    }

    fn download(&self, bytes: &mut [u8], from: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: as for `upload`.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream) }.map_err(|e| self.failed("downloading", e))?;
        self.synchronize()
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's buffer has that many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream) }.map_err(|e| self.failed("clearing memory", e))
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's buffers have that many bytes; the copy is queued behind what writes them.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(|e| self.failed("copying memory", e))
    }

    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        self.wait()?;
        staging.landed();
        Ok(())
    }

    fn has_tensor_maps(&self) -> bool {
        // SAFETY: the library was loaded in `open`; the symbol is only looked up.
        unsafe { sys::culib().get::<*const c_void>(b"cuTensorMapEncodeTiled").is_ok() }
    }

    fn tensor_map(&self, boxes: &Boxes) -> Result<TensorMap> {
        let Boxes { address, planes, rows, columns, box_rows } = *boxes;
        let mut map = TensorMap::default();
        let mut encoded = MaybeUninit::<sys::CUtensorMap>::uninit();
        // The third dimension is read only where the matrix has planes.
        let Planes { count, of_box } = planes.unwrap_or(Planes { count: 1, of_box: 1 });
        let rank = if planes.is_some() { 3 } else { 2 };
        let dims = [columns as u64, rows as u64, count as u64];
        let strides = [2 * columns as u64, 2 * (rows * columns) as u64];
        let (of_box, steps) = ([64, box_rows as u32, of_box as u32], [1; 3]);
        self.bind()?;
        // SAFETY: the symbol is there (`has_tensor_maps`); all pointers are to at least as many numbers as there are dimensions, and the map is written
        // whole where the call succeeds.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                encoded.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                rank,
                std::ptr::with_exposed_provenance_mut(address as usize),
                dims.as_ptr(),
                strides.as_ptr(),
                of_box.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|e| self.failed(&format!("describing a matrix of {rows} x {columns} to TMA"), e))?;
            map.0 = encoded.assume_init().opaque;
        }
        Ok(map)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        self.bind()?;
        // What the pool keeps of freed buffers is free as well, to this process; before the first step there is none.
        let (free, _total) = result::mem_get_info().map_err(|e| self.failed("asking for free memory", e))?;
        Ok(Some(free as u64))
    }

    unsafe fn launch(&self, kernel: Kernel, geometry: &Geometry, arguments: &mut [*mut c_void], _signature: &str) -> Result<()> {
        self.bind()?;
        let function = self.prepared(kernel, geometry.shared_bytes)?;
        // SAFETY: a loaded function and our stream; the arguments are as the caller promises.
        unsafe { self.launch_on(self.stream, function, geometry, arguments) }
    }

    fn make_graph(&self, calls: &mut [Call]) -> Result<Option<u64>> {
        self.bind()?;
        self.graph_of(calls).map(Some)
    }

    unsafe fn launch_graph(&self, graph: u64) -> Result<()> {
        self.bind()?;
        // SAFETY: as the caller promises.
        unsafe { result::graph::launch(exec(graph), self.stream) }.map_err(|e| self.failed("launching a graph", e))
    }

    fn destroy_graph(&self, graph: u64) {
        if self.bind().is_ok() {
            // SAFETY: made by `make_graph`, destroyed once; one that still runs goes when it has ended. There is nobody to tell of an error.
            let _ = unsafe { result::graph::exec_destroy(exec(graph)) };
        }
    }
}

fn exec(graph: u64) -> sys::CUgraphExec {
    std::ptr::with_exposed_provenance_mut(graph as usize)
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: created by `open`, `upload` and `load`, and no buffer is left (each holds the Gpu). Errors have nobody to go to.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::stream::destroy(self.stream);
            }
            staging.free();
            for (_, module) in loaded.modules.drain() {
                let _ = result::module::unload(module);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
