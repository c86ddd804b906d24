//! `bench`: the kernels' times beside their floors, and, with a model, tokens per second of prefill, decode and training.

use crate::cli::common::PlaceArgs;
use crate::cli::output::width;
use crate::cli::{interrupt, lines};
use crate::tensor::Device;
use crate::{Error, Result};
use serde::Serialize;
use std::time::Instant;

mod decoding;
mod device;
mod kernels;
mod model;

/// Time the kernels, with their floors.
///
/// Floors come from the processor's own rates, measured in the same run: fused multiply-adds in
/// registers for arithmetic, reading memory for traffic. With --device cuda:N the CUDA kernels are
/// timed: copying device memory is the floor of traffic, the chip's clock that of products.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the benchmarks whose name contains this
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Also time this model: decode alone and in batches, prefill, a training step, a GRPO step, a step of a LoRA adapter
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// JSON lines
    #[arg(long)]
    json: bool,
    /// Seconds for each benchmark
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    seconds: f64,
}

/// One line of the table.
#[derive(Serialize)]
pub(crate) struct Row {
    name: String,
    /// Median time of one call, in seconds.
    seconds: f64,
    /// What is counted: "GFLOP/s", "GB/s" or "tokens/s".
    unit: &'static str,
    rate: f64,
    /// The same rate at the floor, where there is one.
    floor: Option<f64>,
}

/// Collects rows and prints each as it comes.
pub(crate) struct Bench {
    filter: Option<String>,
    budget: f64,
    json: bool,
    out: lines::Output,
    /// GFLOP/s and GB/s that the machine reaches.
    peaks: (f64, f64),
    /// Benchmarks that have run.
    rows: usize,
    /// The names of all, whether they were asked for or not.
    names: Vec<String>,
    /// Whether the terminal is too narrow for a row.
    narrow: bool,
}

impl Bench {
    /// Whether any benchmark of this group is asked for.
    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| name.contains(f.as_str()))
    }

    /// The same, and keeps the group's name for whoever asks for one that is not there.
    fn wants_group(&mut self, name: &str) -> bool {
        self.knows(name);
        self.filter.as_ref().is_none_or(|f| name.contains(f.as_str()) || f.contains(name))
    }

    fn knows(&mut self, name: &str) {
        // A benchmark of a group that is known is found by the group's name.
        if !self.names.iter().any(|known| name.starts_with(known.as_str())) {
            self.names.push(name.to_owned());
        }
    }

    /// Times `work`: `amount` units of `unit` a call (10^9 of them where the unit begins with G).
    fn run(&mut self, name: &str, unit: &'static str, amount: f64, work: &mut dyn FnMut()) -> Result<()> {
        let floor = match unit {
            "GFLOP/s" => Some(self.peaks.0),
            "GB/s" => Some(self.peaks.1),
            _ => None,
        };
        self.run_timed(name, unit, amount, floor, &mut || seconds_of(&mut *work))
    }

    /// The same for work that takes its own time, in seconds, and knows its own floor.
    fn run_timed(&mut self, name: &str, unit: &'static str, amount: f64, floor: Option<f64>, work: &mut dyn FnMut() -> f64) -> Result<()> {
        if interrupt::pressed() {
            return Err(Error::interrupted());
        }
        self.knows(name);
        if !self.wants(name) {
            return Ok(());
        }
        let seconds = median_seconds(self.budget, work);
        let scale = if unit.starts_with('G') { 1e9 } else { 1.0 };
        self.row(Row { name: name.to_owned(), seconds, unit, rate: amount / seconds / scale, floor })
    }

    fn row(&mut self, row: Row) -> Result<()> {
        self.rows += 1;
        if self.json {
            return self.out.write(&row);
        }
        let share = row.floor.map_or(String::new(), |f| format!("{:4.0} % of {:.0}", 100.0 * row.rate / f, f));
        // Where one line is too long for the terminal, the numbers stand below the name.
        let name = if self.narrow { format!("{}\n ", row.name) } else { format!("{:<34}", row.name) };
        let line = format!("{name} {:>10} {:>9.1} {:<8} {share}", time(row.seconds), row.rate, row.unit);
        self.out.text(&format!("{}\n", line.trim_end()))
    }
}

/// A time with a unit that suits it.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn seconds_of(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The median of what `work` says it took: one call to warm up, then calls for about `budget` seconds, at least three.
fn median_seconds(budget: f64, work: &mut dyn FnMut() -> f64) -> f64 {
    work();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (begin.elapsed().as_secs_f64() < budget && times.len() < 10_000) {
        times.push(work());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The kernels of the processor.
fn on_processor(bench: &mut Bench, seconds: f64) -> Result<()> {
    bench.peaks = (kernels::peak_gflops(seconds.min(0.3)), kernels::read_rate(seconds.min(0.5)));
    if !bench.json {
        let threads = rayon::current_num_threads();
        bench.out.text(&format!(
            "{threads} threads: {:.0} GFLOP/s of f32 in the first cache, {:.1} GB/s read from memory\n",
            bench.peaks.0, bench.peaks.1
        ))?;
    }
    kernels::run(bench)
}

pub(crate) fn run(args: Args) -> Result<()> {
    interrupt::listen()?;
    let device = args.place.device.open()?;
    let peaks = (1.0, 1.0);
    let mut bench = Bench {
        filter: args.name,
        budget: args.seconds,
        json: args.json,
        out: lines::Output::new(),
        peaks,
        rows: 0,
        names: Vec::new(),
        narrow: width().is_some_and(|w| w < 80),
    };
    let emulated = args.place.device.device == "emulator";
    match &device {
        Device::Cpu => on_processor(&mut bench, args.seconds)?,
        Device::Cuda(gpu) => device::run(&mut bench, gpu, emulated)?,
    }
    if let Some(spec) = &args.model {
        model::run(&mut bench, spec, (&device, args.place.compute), emulated)?;
    }
    match bench.filter {
        Some(name) if bench.rows == 0 => {
            let model = if args.model.is_some() {
                ""
            } else {
                "; with --model: model decode, model prefill, model training step, model GRPO step, model LoRA training step"
            };
            let hint = format!("there are: {}{model}", bench.names.join(", "));
            Err(Error::usage(format!("no benchmark has `{name}` in its name")).hint(hint))
        }
        _ => Ok(()),
    }
}
