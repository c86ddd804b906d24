//! `doctor --check`: every kernel on a device against the processor's op on the same random numbers, and what `docs/exactness.md` promises of a
//! device, in one table. It needs nothing but this program: for the day that there is a GPU, and for every new kind of GPU.

use crate::cli::lines;
use crate::tensor::cuda::{Buffer, DType, Gpu};
use crate::{Error, Result};
use half::bf16;
use serde::Serialize;
use std::sync::Arc;

mod attend;
mod decoding;
mod elements;
mod instructions;
mod model;
mod products;

/// One line of the table.
#[derive(Serialize)]
struct Row {
    name: String,
    ok: bool,
    /// ||got - want|| / ||want||; none where bits are compared.
    error: Option<f64>,
    /// The largest error that passes.
    bound: Option<f64>,
    /// What stopped the check.
    failure: Option<String>,
    /// A word about one that passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// The checks so far.
struct Check {
    gpu: Arc<Gpu>,
    /// Shapes that the emulator gets through.
    small: bool,
    json: bool,
    out: lines::Output,
    failed: usize,
    run: usize,
}

impl Check {
    /// `large` on a chip, `small` on the emulator.
    fn size(&self, large: usize, small: usize) -> usize {
        if self.small { small } else { large }
    }

    /// Uploads numbers that bf16 holds.
    fn upload(&self, x: &[f32]) -> Result<Buffer> {
        Buffer::from_f32(&self.gpu, DType::Bf16, x)
    }

    fn f32(&self, x: &[f32]) -> Result<Buffer> {
        Buffer::from_f32(&self.gpu, DType::F32, x)
    }

    /// Compares numbers with the processor's.
    fn close(&mut self, name: &str, got: &[f32], want: &[f32], bound: f64) -> Result<()> {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let error = if off == 0.0 { 0.0 } else { off / norm(&mut want.iter().map(|x| f64::from(*x))) };
        let ok = got.len() == want.len() && error <= bound;
        self.row(Row { name: name.to_owned(), ok, error: Some(error), bound: Some(bound), failure: None, note: None })
    }

    /// Compares bits that are promised to be the same.
    fn same(&mut self, name: &str, a: &[f32], b: &[f32]) -> Result<()> {
        let ok = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        self.row(Row { name: name.to_owned(), ok, error: None, bound: None, failure: None, note: None })
    }

    fn skip(&mut self, name: &str, why: &str) -> Result<()> {
        if self.json {
            return self.out.write(&Skipped { name, skipped: why });
        }
        self.out.text(&format!("skip   {name:<44} {why}\n"))
    }

    fn row(&mut self, row: Row) -> Result<()> {
        self.run += 1;
        self.failed += usize::from(!row.ok);
        if self.json {
            return self.out.write(&row);
        }
        let verdict = if row.ok { "ok    " } else { "WRONG " };
        let figures = match (&row.failure, row.error, row.bound) {
            (Some(failure), ..) => failure.lines().next().unwrap_or_default().to_owned(),
            (_, Some(error), Some(bound)) => format!("{error:8.1e} of {bound:.0e}"),
            _ if row.note.is_some() => String::new(),
            _ => "the same bits".to_owned(),
        };
        let said: Vec<&str> = [Some(figures.as_str()), row.note.as_deref()].into_iter().flatten().filter(|s| !s.is_empty()).collect();
        self.out.text(&format!("{verdict} {:<44} {}\n", row.name, said.join(", ")))
    }
}

/// A line about checks that are not for this device.
#[derive(Serialize)]
struct Skipped<'a> {
    name: &'a str,
    skipped: &'a str,
}

/// A group of checks.
type Group = (&'static str, fn(&mut Check) -> Result<()>);

const GROUPS: [Group; 6] = [
    ("instructions", instructions::run),
    ("elements", elements::run),
    ("products", products::run),
    ("attention", attend::run),
    ("decoding", decoding::run),
    ("model", model::run),
];

/// Runs every check; one that cannot run is a line of the table too, and the others go on.
pub(super) fn run(gpu: Arc<Gpu>, small: bool, json: bool) -> Result<()> {
    let mut check = Check { gpu, small, json, out: lines::Output::new(), failed: 0, run: 0 };
    for (name, group) in GROUPS {
        if let Err(error) = group(&mut check) {
            if lines::is_closed_pipe(&error) {
                return Err(error);
            }
            check.row(Row { name: name.to_owned(), ok: false, error: None, bound: None, failure: Some(error.to_string()), note: None })?;
        }
    }
    match check.failed {
        0 => Ok(()),
        n => {
            Err(Error::device(format!("{n} of {} checks failed", check.run)).hint("the kernels cannot be relied on here: use --device cpu"))
        }
    }
}

/// `n` numbers between -1 and 1 that bf16 holds; each `stream` is another sequence.
fn random(n: usize, stream: u64) -> Vec<f32> {
    let random = crate::tensor::philox::Philox::new(17, stream);
    (0..n).map(|i| round(random.uniform(i as u64, 0) as f32 * 2.0 - 1.0)).collect()
}

fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}
