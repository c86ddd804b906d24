//! The CUDA driver before a device is open: whether it is there and can do what is needed, and which devices it has.

use crate::tensor::cuda::gpu::GpuInfo;
use crate::tensor::cuda::probe::CudaVersion;
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{c_int, c_void};

/// The lowest compute capability: bf16 tensor cores and cp.async (Ampere).
const LEAST_CAPABILITY: (u32, u32) = (8, 0);

/// Every driver function used here. cudarc panics at the first call of one that the driver lacks, so they are looked for beforehand; the
/// newest of them came with CUDA 11.2.
const NEEDED: [&str; 32] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetDefaultMemPool",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemPoolSetAttribute",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
];

/// An error of the driver's.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    let text = |s: std::result::Result<&std::ffi::CStr, DriverError>| s.map_or("unknown".into(), |s| s.to_string_lossy().into_owned());
    let message = format!("{what}: {} ({})", text(error.error_string()), text(error.error_name()));
    let e = Error::device(message).caused_by(error);
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => e.hint("the device is out of memory: lower microbatch_tokens, or use another device"),
        _ => e,
    }
}

/// Starts the driver and returns its CUDA version.
///
/// # Errors
/// If there is no driver, it lacks a function, or it does not start.
pub(super) fn start_driver() -> Result<CudaVersion> {
    // SAFETY: loads the driver's library, whose initialisers are meant to be run by any program.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device("no CUDA driver: libcuda was not found").hint("install NVIDIA's driver, or use --device cpu"));
    }
    let mut version: c_int = 0;
    // SAFETY: the library is present (or this would panic); symbols are only looked up, and cuDriverGetVersion, which needs no
    // initialisation, gets a valid pointer.
    let missing = unsafe {
        let library = sys::culib();
        let missing = NEEDED.iter().find(|name| library.get::<*const c_void>(name.as_bytes()).is_err());
        if !NEEDED[..2].iter().any(|name| missing == Some(name)) {
            sys::cuDriverGetVersion(&mut version).result().map_err(|e| failed("cuDriverGetVersion", e))?;
        }
        missing
    };
    let version = CudaVersion { major: version as u32 / 1000, minor: version as u32 % 1000 / 10 };
    if let Some(missing) = missing {
        return Err(Error::device(format!("the CUDA driver (CUDA {version}) is too old: it has no {missing}"))
            .hint("install a newer driver: CUDA 11.2 is the oldest"));
    }
    match result::init() {
        Ok(()) => Ok(version),
        Err(e) if e.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => Err(Error::device("there is a CUDA driver but no CUDA device")
            .hint("use --device cpu; in a container, check that the GPU is passed on")
            .caused_by(e)),
        Err(e) => Err(failed("the CUDA driver does not start", e)),
    }
}

/// Number of devices. The driver must have been started.
pub(super) fn device_count() -> Result<usize> {
    result::device::get_count().map(|n| n.max(0) as usize).map_err(|e| failed("counting the CUDA devices", e))
}

/// What device `ordinal` is. The driver must have been started.
pub(super) fn describe(ordinal: usize) -> Result<GpuInfo> {
    let read = || -> std::result::Result<GpuInfo, DriverError> {
        let device = result::device::get(ordinal as c_int)?;
        // SAFETY: a device that the driver has just given.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) }.map(|v| v.max(0) as usize);
        use sys::CUdevice_attribute as A;
        Ok(GpuInfo {
            ordinal,
            name: result::device::get_name(device)?,
            compute_capability: (
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
            ),
            // SAFETY: as above.
            memory_bytes: unsafe { result::device::total_mem(device) }?,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock_khz: attribute(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
            shared_bytes_per_block: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    };
    read().map_err(|e| failed("reading the device's properties", e).at(format_args!("cuda:{ordinal}")))
}

/// Whether the kernels run on such a device.
pub(super) fn check_capability(info: &GpuInfo) -> Result<()> {
    if info.compute_capability >= LEAST_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, least_minor)) = (info.compute_capability, LEAST_CAPABILITY);
    let message = format!("{} has compute capability {major}.{minor}; the kernels need {least}.{least_minor} (Ampere) or later", info.name);
    Err(Error::device(message).at(format_args!("cuda:{}", info.ordinal)).hint("use --device cpu"))
}
