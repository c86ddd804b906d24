//! `doctor`: what this machine has, and which devices can be used.

use crate::Result;
use crate::cli::lines;
use crate::tensor::cpu::{Isa, isa};
use serde::Serialize;

/// What this machine has and which devices can be used.
///
/// Reports the processor, the memory, the GPUs and the cache folder.
#[derive(clap::Args)]
pub(crate) struct Args {
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
    memory_gib: Option<f64>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: cpu_name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernels: match isa() {
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2 + FMA",
            Isa::Portable => "portable (slow: this processor has no AVX2 with FMA)",
        },
        memory_gib: memory_gib(),
    };
    let mut out = lines::Output::new();
    if args.json {
        return out.write(&report);
    }
    let memory = report.memory_gib.map_or("unknown".to_owned(), |g| format!("{g:.1} GiB"));
    out.text(&format!(
        "sorft-native {}\n  processor  {}\n  cores      {}\n  memory     {}\n  kernels    {}\n",
        report.version, report.cpu, report.cores, memory, report.kernels
    ))
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
