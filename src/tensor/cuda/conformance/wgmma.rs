//! The products of a warpgroup, every wrapper of `kernels/hopper.cuh`: sums of small whole numbers must be exact, others lie within the bound that `mma.sync`
//! has too; and whether a chain of products has the bits of the same chain by `mma.sync`, which nobody promises.

use super::hopper::launch;
use super::{Check, Finding, MMA_BOUND, Numbers, words};
use crate::Result;
use crate::tensor::cuda::DType::{Bf16, U32};
use crate::tensor::cuda::{Buffer, Gpu};
use std::sync::Arc;

/// How the left operand comes.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    /// In shared memory, numbers along a row are terms ("K-major").
    ByTerms,
    /// In shared memory, numbers along a row are rows ("MN-major").
    ByRows,
    /// By terms, by the threads' own stores.
    Stored,
    Registers,
}

struct Wrapper {
    kernel: &'static str,
    /// Of d.
    columns: usize,
    left: Left,
    /// Whether numbers along a row of the right operand are columns of d, not terms.
    b_by_rows: bool,
    /// With whole numbers, with others.
    names: [&'static str; 2],
}

const WRAPPERS: [Wrapper; 8] = [
    Wrapper {
        kernel: "conformance_hopper_64_terms_terms",
        columns: 64,
        left: Left::ByTerms,
        b_by_rows: false,
        names: ["wgmma.m64n64k16, whole numbers", "wgmma.m64n64k16"],
    },
    Wrapper {
        kernel: "conformance_hopper_stored",
        columns: 64,
        left: Left::Stored,
        b_by_rows: false,
        names: ["wgmma behind fence.proxy.async, whole", "wgmma behind fence.proxy.async"],
    },
    Wrapper {
        kernel: "conformance_hopper_256_terms_terms",
        columns: 256,
        left: Left::ByTerms,
        b_by_rows: false,
        names: ["wgmma.m64n256k16, whole numbers", "wgmma.m64n256k16"],
    },
    Wrapper {
        kernel: "conformance_hopper_256_terms_rows",
        columns: 256,
        left: Left::ByTerms,
        b_by_rows: true,
        names: ["wgmma.m64n256k16, b', whole numbers", "wgmma.m64n256k16, b'"],
    },
    Wrapper {
        kernel: "conformance_hopper_256_rows_rows",
        columns: 256,
        left: Left::ByRows,
        b_by_rows: true,
        names: ["wgmma.m64n256k16, a' b', whole numbers", "wgmma.m64n256k16, a' b'"],
    },
    Wrapper {
        kernel: "conformance_hopper_64_registers",
        columns: 64,
        left: Left::Registers,
        b_by_rows: true,
        names: ["wgmma.m64n64k16 of registers, whole", "wgmma.m64n64k16 of registers"],
    },
    Wrapper {
        kernel: "conformance_hopper_96_registers",
        columns: 96,
        left: Left::Registers,
        b_by_rows: true,
        names: ["wgmma.m64n96k16 of registers, whole", "wgmma.m64n96k16 of registers"],
    },
    Wrapper {
        kernel: "conformance_hopper_128_registers",
        columns: 128,
        left: Left::Registers,
        b_by_rows: true,
        names: ["wgmma.m64n128k16 of registers, whole", "wgmma.m64n128k16 of registers"],
    },
];

pub(super) fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = Vec::new();
    for wrapper in &WRAPPERS {
        checks.extend([true, false].map(|whole| -> Check { Box::new(move |gpu| products(gpu, wrapper, whole)) }));
    }
    checks.push(Box::new(|gpu| chain(gpu, false)));
    checks.push(Box::new(|gpu| chain(gpu, true)));
    checks
}

/// Rows of d and threads of a warpgroup; terms of one product, and of an operand in shared memory.
const ROWS: usize = 64;
const THREADS: usize = 128;
const K: usize = 16;
const TERMS: usize = 64;

/// The place in d of number i of a thread (the PTX manual, "Matrix fragments for wgmma.mma_async.m64nNk16").
fn place(thread: usize, i: usize) -> (usize, usize) {
    (thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2)
}

/// Numbers of d, fragment after fragment.
fn fragments(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..THREADS).flat_map(move |thread| (0..columns / 2).map(move |i| place(thread, i)))
}

/// What chips have left, and what they should have.
#[derive(Default)]
struct Sums {
    got: Vec<u32>,
    /// Each product's sum in f64, rounded once.
    want: Vec<f32>,
    /// All terms in f64, and their sizes.
    exact: Vec<f64>,
    sizes: Vec<f64>,
    /// How often each was rounded.
    rounded: Vec<usize>,
}

impl Sums {
    /// The next number: `start` and then products of 16 of these terms.
    fn expect(&mut self, start: f32, terms: impl Iterator<Item = f64>) {
        let (start64, terms) = (f64::from(start), terms.collect::<Vec<_>>());
        self.want.push(terms.chunks(K).fold(start, |sum, terms| terms.iter().fold(f64::from(sum), |sum, x| sum + x) as f32));
        self.exact.push(terms.iter().fold(start64, |sum, x| sum + x));
        self.sizes.push(terms.iter().fold(start64.abs(), |sum, x| sum + x.abs()));
        self.rounded.push(terms.len().div_ceil(K));
    }

    fn finding(&self, name: &'static str, bound: f64) -> Finding {
        Finding::within(name, &self.got, &self.want, bound, |i, got| (got - self.exact[i]).abs() / self.sizes[i] / self.rounded[i] as f64)
    }
}

/// Several launches of a wrapper: with sums kept and overwritten, one product and four.
fn products(gpu: &Arc<Gpu>, wrapper: &Wrapper, whole: bool) -> Result<Finding> {
    let (numbers, others) = if whole { (Numbers::Whole, Numbers::Whole) } else { (Numbers::Any, Numbers::Infinite) };
    let mut sums = Sums::default();
    for (numbers, keep, count) in [(numbers, true, 1), (numbers, true, 4), (numbers, false, 1), (others, false, 3)] {
        // Those of registers always add.
        launch_products(gpu, wrapper, numbers, keep || wrapper.left == Left::Registers, count, &mut sums)?;
    }
    Ok(if whole { sums.finding(wrapper.names[0], 0.0) } else { sums.finding(wrapper.names[1], MMA_BOUND) })
}

fn draw(numbers: Numbers, n: usize, stream: u64) -> Vec<f32> {
    words(n, stream).into_iter().map(|w| numbers.draw(w)).collect()
}

/// x `[rows, 64]` turned over.
fn transposed(x: &[f32], rows: usize) -> Vec<f32> {
    (0..TERMS).flat_map(|term| (0..rows).map(move |row| x[row * TERMS + term])).collect()
}

fn launch_products(gpu: &Arc<Gpu>, w: &Wrapper, numbers: Numbers, keep: bool, count: usize, sums: &mut Sums) -> Result<()> {
    let n = w.columns;
    let stream = 20 + 4 * count as u64;
    let (a, b, c) = (draw(numbers, ROWS * TERMS, stream), draw(numbers, n * TERMS, stream + 1), draw(numbers, ROWS * n, stream + 2));
    for (row, column) in fragments(n) {
        let start = if keep { c[row * n + column] } else { 0.0 };
        let term = |k| f64::from(a[row * TERMS + k]) * f64::from(b[column * TERMS + k]);
        sums.expect(start, (0..count * K).map(term));
    }
    let c: Vec<u32> = fragments(n).map(|(row, column)| c[row * n + column].to_bits()).collect();
    let (mut out, c) = (Buffer::uninit(gpu, U32, c.len())?, Buffer::from_u32(gpu, &c)?);
    let left = match w.left {
        Left::ByTerms | Left::Stored => Buffer::from_f32(gpu, Bf16, &a)?,
        Left::ByRows => Buffer::from_f32(gpu, Bf16, &transposed(&a, ROWS))?,
        Left::Registers => Buffer::from_u32(gpu, &left_fragments(&a, count))?,
    };
    // By rows a box has 64 rows of d's, of which the last may not fill it.
    let b_bytes = 2 * TERMS * if w.b_by_rows { n.next_multiple_of(64) } else { n };
    let a_bytes = if w.left == Left::Registers { 0 } else { 2 * TERMS * ROWS };
    let b = Buffer::from_f32(gpu, Bf16, &if w.b_by_rows { transposed(&b, n) } else { b })?;
    let launch = launch(gpu, w.kernel, 1, THREADS, a_bytes + b_bytes).output("out", &mut out, U32, c.len());
    let launch = match w.left {
        Left::ByTerms | Left::ByRows => launch.matrix("a", Some(&left), ROWS, TERMS, 64),
        Left::Stored => launch.input("a", &left, Bf16, ROWS * TERMS),
        Left::Registers => launch.input("a", &left, U32, left.len()),
    };
    let launch = if w.b_by_rows { launch.matrix("b", Some(&b), TERMS, n, 64) } else { launch.matrix("b", Some(&b), n, TERMS, n) };
    let launch = launch.input("c", &c, U32, c.len()).dim("products", count);
    match w.left {
        Left::Registers => launch.run()?,
        _ => launch.dim("keep", usize::from(keep)).run()?,
    }
    sums.got.extend(out.to_u32()?);
    Ok(())
}

/// A left operand's registers for each of `count` products: those of `mma.m16n8k16`, each warp 16 rows.
fn left_fragments(a: &[f32], count: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for (k, thread) in (0..count).flat_map(|k| (0..THREADS).map(move |thread| (k, thread))) {
        let (row, term) = (thread / 32 * 16 + thread % 32 / 4, k * K + thread % 4 * 2);
        for (below, right) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
            let at = (row + below) * TERMS + term + right;
            bits.push(a[at].to_bits() >> 16 | a[at + 1].to_bits() & 0xffff_0000);
        }
    }
    bits
}

/// A chain of twenty products, four a group; `beside`: against the same chain by `mma.sync` on the same chip. Other bits there are no
/// failure: which of the two a forward pass takes follows from them (`docs/exactness.md`).
fn chain(gpu: &Arc<Gpu>, beside: bool) -> Result<Finding> {
    let chunks = 5;
    let terms = chunks * TERMS;
    let (a, b) = (draw(Numbers::Any, ROWS * terms, 61), draw(Numbers::Any, ROWS * terms, 62));
    let [left, right] = [&a, &b].map(|x| Buffer::from_f32(gpu, Bf16, x));
    let (left, right, len) = (left?, right?, ROWS * ROWS);
    let (mut out, mut other) = (Buffer::uninit(gpu, U32, len)?, Buffer::uninit(gpu, U32, len)?);
    launch(gpu, "conformance_hopper_chain", 1, THREADS, 2 * 2 * 2 * TERMS * ROWS)
        .output("out", &mut out, U32, len)
        .output("other", &mut other, U32, len)
        .matrix("a", Some(&left), ROWS, terms, 64)
        .matrix("b", Some(&right), ROWS, terms, 64)
        .dim("chunks", chunks)
        .run()?;
    let mut sums = Sums { got: out.to_u32()?, ..Sums::default() };
    for (row, column) in fragments(ROWS) {
        sums.expect(0.0, (0..terms).map(|k| f64::from(a[row * terms + k]) * f64::from(b[column * terms + k])));
    }
    if !beside {
        return Ok(sums.finding("wgmma.m64n64k16, a chain of products", MMA_BOUND));
    }
    // Two errors of the same bound at the most.
    sums.want = other.to_u32()?.into_iter().map(f32::from_bits).collect();
    sums.exact = sums.want.iter().map(|x| f64::from(*x)).collect();
    Ok(Finding { informs: true, ..sums.finding("wgmma beside mma.sync", 2.0 * MMA_BOUND) })
}
