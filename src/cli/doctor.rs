//! `doctor`: what this machine has, and which devices can be used.

use crate::cli::common::open_device;
use crate::cli::lines;
use crate::model::hub::cache_dir;
use crate::tensor::Device;
use crate::tensor::cpu::{Isa, bf16, isa};
use crate::tensor::cuda::probe;
use crate::{Error, Result};
use serde::Serialize;

mod check;

/// What this machine has and which devices can be used.
///
/// Reports the processor, the memory, the GPUs and the cache folder.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run every CUDA kernel on this device against the processor's ops: cuda:N
    #[arg(long, value_name = "DEVICE")]
    check: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    cpu: String,
    cores: usize,
    kernels: &'static str,
    /// What multiplies matrices with `compute = "bf16"`.
    bf16: &'static str,
    memory_gib: Option<f64>,
    cache: String,
    /// The CUDA version of the driver, or why there is none.
    cuda_driver: Found,
    /// The compiler for the CUDA kernels, or why there is none.
    cuda_compiler: Found,
    gpus: Vec<GpuLine>,
}

/// A thing that was looked for.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Yes(String),
    No(String),
}

#[derive(Serialize)]
struct GpuLine {
    name: String,
    usable: Found,
}

fn found<T>(result: &Result<T>, show: impl Fn(&T) -> String) -> Found {
    match result {
        Ok(value) => Found::Yes(show(value)),
        Err(error) => Found::No(first_line(error)),
    }
}

/// An error without its hint.
fn first_line(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Yes(what) => f.write_str(what),
            Found::No(why) => f.write_str(why),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    if let Some(name) = &args.check {
        return match open_device(name)? {
            Device::Cuda(gpu) => check::run(gpu, name == "emulator", args.json),
            Device::Cpu => Err(Error::usage(format!("--check {name}: expected cuda:N"))),
        };
    }
    let cuda = probe();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernels: match isa() {
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2 + FMA",
            Isa::Portable => "portable (slow: this processor has no AVX2 with FMA)",
        },
        bf16: match bf16::has_amx() {
            true => "AMX: compute = \"bf16\" is fast here",
            false => "no AMX: compute = \"bf16\" runs, to the same bits; faster than f32 in decoding one answer, slower in the rest",
        },
        memory_gib: memory_gib(),
        cache: cache_dir().display().to_string(),
        cuda_driver: found(&cuda.driver, |v| format!("CUDA {v}")),
        cuda_compiler: found(&cuda.compiler, |c| format!("NVRTC {}.{}, {}", c.version().0, c.version().1, c.path().display())),
        gpus: cuda
            .gpus
            .iter()
            .map(|g| GpuLine {
                name: g.info.name.clone(),
                usable: found(&g.usable, |()| "can be used: --device cuda:N (the kernels have not run on a chip yet)".to_owned()),
            })
            .collect(),
    };
    let mut out = lines::Output::new();
    if args.json {
        return out.write(&report);
    }
    let memory = report.memory_gib.map_or("unknown".to_owned(), |g| format!("{g:.1} GiB"));
    let Report { version, cpu, cores, kernels, bf16, cache, cuda_driver, cuda_compiler, gpus, .. } = &report;
    let mut text = format!(
        "sorft-native {version}\n  processor      {cpu}\n  cores          {cores}\n  memory         {memory}\n  kernels        {kernels}\n  bf16           {bf16}\n  \
         cache          {cache}\n  CUDA driver    {cuda_driver}\n  CUDA compiler  {cuda_compiler}\n"
    );
    for gpu in gpus {
        text += &format!("  GPU            {}: {}\n", gpu.name, gpu.usable);
    }
    text += match gpus.is_empty() {
        true => "  runs on        the CPU\n",
        false => "  runs on        the CPU (and on a GPU above with --device cuda:N)\n",
    };
    out.text(&text)
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, n)| n.trim().to_owned()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn memory_gib() -> Option<f64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<f64>().ok().map(|kb| kb / (1024.0 * 1024.0))
}
