//! Options that several commands share, and what they mean.

use crate::model::transformer::Transformer;
use crate::model::weights::{self, ModelFiles};
use crate::tensor::Device;
use crate::tensor::cpu::Compute;
use crate::tensor::cuda::Gpu;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Which model, and where it runs.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder, a .gguf file, or a hub id owner/name
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// A PEFT LoRA folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Where a model runs that is not trained, and what it computes in.
#[derive(clap::Args)]
pub(crate) struct PlaceArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// What the processor multiplies matrices in: f32, or bf16 with sums in f32, fast where there is AMX
    #[arg(long, default_value = "f32", value_name = "FORMAT")]
    pub compute: Compute,
}

/// Where a command runs.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// cpu, or cuda:N; auto is cpu
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl DeviceArgs {
    /// Opens the device.
    pub fn open(&self) -> Result<Device> {
        open_device(&self.device)
    }
}

/// Opens a device by its name on the command line.
pub(crate) fn open_device(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        "emulator" => Ok(Device::Cuda(Gpu::emulator_of_environment()?)),
        "cuda" => Ok(Device::Cuda(Gpu::open(0)?)),
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => Ok(Device::Cuda(Gpu::open(ordinal)?)),
            None => Err(Error::usage(format!("--device {other}: expected auto, cpu or cuda:N"))),
        },
    }
}

impl ModelArgs {
    /// Opens the model's files and reads its weights, the adapter's included.
    pub fn load(&self) -> Result<(Transformer, ModelFiles)> {
        let device = self.place.device.open()?;
        let files = weights::open(&self.model)?;
        let model = load(&files, self.adapter.as_deref(), &device, self.place.compute)?;
        Ok((model, files))
    }
}

/// Reads the weights of a model that is not to be trained, and of its adapter.
pub(crate) fn load(files: &ModelFiles, adapter: Option<&Path>, device: &Device, compute: Compute) -> Result<Transformer> {
    let mut model = Transformer::load(files, device, compute)?;
    if let Some(dir) = adapter {
        let (lora, tensors) = weights::load_peft(dir)?;
        model.add_saved_lora(&lora, &tensors).map_err(|e| e.at_file(dir))?;
    }
    Ok(model)
}

/// Calls `f` on one of `threads` worker threads (one per core where `None`). A parallel section that a worker starts costs no more than a
/// look at the other workers' queues; one started from outside wakes a worker and waits for it, some 300 times a decoded token.
pub(crate) fn on_workers(threads: Option<usize>, f: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    if threads == Some(0) {
        return Err(Error::usage("--threads takes a number of at least 1"));
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .stack_size(WORKER_STACK)
        .build_global()
        .map_err(|e| Error::device(format!("cannot start the worker threads: {e}")))?;
    rayon::scope(|_| f())
}

/// The exit status, if this program was started as the first process of a sandbox: then it has to be that before any thread is there.
pub(crate) fn inside_of_sandbox() -> Option<u8> {
    #[cfg(target_os = "linux")]
    {
        use crate::agentless::sandbox::confine;
        let mut arguments = std::env::args_os().skip(1);
        (arguments.next()? == confine::NAME).then(|| confine::run(arguments))
    }
    #[cfg(not(target_os = "linux"))]
    None
}

/// Refuses a `SORFT_ISA` that asks for nothing known: it would silently be the best one.
pub(crate) fn check_environment() -> Result<()> {
    match std::env::var("SORFT_ISA").as_deref() {
        Err(_) | Ok("portable" | "avx2" | "avx512" | "amx") => Ok(()),
        Ok(other) => Err(Error::usage(format!("SORFT_ISA={other}: expected portable, avx2, avx512 or amx"))),
    }
}

/// Bytes of a worker's stack: what a main thread has.
const WORKER_STACK: usize = 8 << 20;
