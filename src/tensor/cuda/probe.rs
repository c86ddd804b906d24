//! What this machine has for CUDA: for `doctor`, and for `--device`.

use crate::tensor::cuda::driver;
use crate::tensor::cuda::{GpuInfo, Nvrtc};
use crate::{Error, Result};
use std::fmt;

/// A version of CUDA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One device.
#[derive(Debug)]
pub struct GpuReport {
    /// What it is.
    pub info: GpuInfo,
    /// Whether the kernels run on it, and if not, why.
    pub usable: Result<()>,
}

/// What there is, and where something is missing, the error that says what to do.
#[derive(Debug)]
pub struct Probe {
    /// The CUDA version that the driver runs.
    pub driver: Result<CudaVersion>,
    /// The compiler for the kernels.
    pub compiler: Result<Nvrtc>,
    /// The devices, in the driver's order. Empty where the driver is missing.
    pub gpus: Vec<GpuReport>,
}

impl Probe {
    /// The first device that can be used now (what `--device auto` takes), if there is one and a compiler for it.
    pub fn first_usable(&self) -> Option<usize> {
        self.compiler.as_ref().ok()?;
        self.gpus.iter().find(|g| g.usable.is_ok()).map(|g| g.info.ordinal)
    }
}

/// Looks for the driver, the compiler and the devices. Never fails and never panics: what is missing is in the report.
pub fn probe() -> Probe {
    let driver = driver::start_driver();
    let major = driver.as_ref().ok().map(|v| v.major);
    let compiler = match major {
        Some(major) => super::module::compiler(major),
        None => Nvrtc::load(None),
    };
    let mut gpus = Vec::new();
    let mut driver = driver;
    if driver.is_ok() {
        match list() {
            Ok(found) => gpus = found,
            Err(e) => driver = Err(e),
        }
    }
    Probe { driver, compiler, gpus }
}

fn list() -> Result<Vec<GpuReport>> {
    let count = driver::device_count()?;
    if count == 0 {
        return Err(Error::device("there is a CUDA driver but no CUDA device")
            .hint("use --device cpu; in a container, check that the GPU is passed on"));
    }
    (0..count)
        .map(|ordinal| {
            let info = driver::describe(ordinal)?;
            let usable = driver::check_capability(&info);
            Ok(GpuReport { info, usable })
        })
        .collect()
}
