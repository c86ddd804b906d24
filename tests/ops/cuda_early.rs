//! Launches of a graph that begin before those before them have ended: until they wait they may read only what no launch of the graph writes.

use crate::cuda_attention::{Mutant, broken, mutant};
use crate::cuda_checker::modes;
use crate::emulator;
use crate::support::normal;
use sorft_native::Result;
use sorft_native::tensor::cuda::{Arena, Buffer, DType, Gpu, Graph, Source};
use sorft_native::tensor::ops::matmul::cuda::{self as matmul, Layer, LowRank, Shape};
use sorft_native::tensor::ops::rmsnorm::cuda as rmsnorm;
use std::sync::Arc;

/// Tells whether a graph's numbers are right.
type Right = fn(&Arc<Gpu>) -> Result<bool>;

const ROWS: usize = 5;
const WIDTH: usize = 72;

fn bf16(gpu: &Arc<Gpu>, n: usize, seed: u64) -> Result<Buffer> {
    Buffer::from_f32(gpu, DType::Bf16, &normal(n, seed))
}

/// Products of products: with an adapter, and with what follows two of them.
fn products(gpu: &Arc<Gpu>, x: &Buffer, [w, a, b]: [&Buffer; 3]) -> Result<Buffer> {
    let shape = Shape { m: ROWS, n: WIDTH, k: WIDTH };
    let plain = |w| Layer { w, bias: None, adapter: None, n: WIDTH };
    let y = matmul::forward(gpu, x, w, None, None, shape)?;
    let low = matmul::forward(gpu, &y, a, None, None, Shape { n: 8, ..shape })?;
    let z = matmul::forward(gpu, &y, w, None, Some(LowRank { low: &low, matrix: b, rank: 8, scale: 0.5 }), shape)?;
    matmul::forward_swiglu(gpu, &z, &plain(w), &plain(w), ROWS, WIDTH)
}

/// The norm of a norm's sum with what it is a norm of.
fn norms(gpu: &Arc<Gpu>, x: &Buffer, w: &Buffer) -> Result<Buffer> {
    let (y, _) = rmsnorm::forward(gpu, x, w, ROWS, WIDTH, 1e-5)?;
    Ok(rmsnorm::forward_add(gpu, &y, x, w, ROWS, WIDTH, 1e-5)?.y)
}

/// Whether the graph's numbers are those of the launches one after another.
fn graph_is_right(gpu: &Arc<Gpu>, launches: impl Fn() -> Result<Buffer>) -> Result<bool> {
    let want = launches()?.to_f32()?;
    let (mut graph, got) = Graph::record(gpu, &mut Arena::default(), &launches)?;
    graph.launch()?;
    Ok(got.to_f32()? == want)
}

fn products_are_right(gpu: &Arc<Gpu>) -> Result<bool> {
    let (x, w, a, b) = (bf16(gpu, ROWS * WIDTH, 1)?, bf16(gpu, WIDTH * WIDTH, 2)?, bf16(gpu, 8 * WIDTH, 3)?, bf16(gpu, WIDTH * 8, 4)?);
    graph_is_right(gpu, || products(gpu, &x, [&w, &a, &b]))
}

fn norms_are_right(gpu: &Arc<Gpu>) -> Result<bool> {
    let (x, w) = (bf16(gpu, ROWS * WIDTH, 1)?, bf16(gpu, WIDTH, 2)?);
    graph_is_right(gpu, || norms(gpu, &x, &w))
}

#[test]
fn a_graph_has_the_bits_of_its_launches() {
    for mode in modes() {
        let gpu = emulator::gpu(mode);
        assert!(products_are_right(&gpu).expect("no alarm") && norms_are_right(&gpu).expect("no alarm"), "{mode:?}");
    }
}

/// What a launch reads before it waits must not be what another one of the graph writes.
#[test]
fn a_weight_that_the_graph_computes_is_refused() {
    let gpu = emulator::gpu(modes()[0]);
    let (x, w) = (bf16(&gpu, ROWS * WIDTH, 1).expect("uploaded"), bf16(&gpu, WIDTH * WIDTH, 2).expect("uploaded"));
    let shape = Shape { m: WIDTH, n: WIDTH, k: WIDTH };
    let launches = || {
        let product = matmul::forward(&gpu, &w, &w, None, None, shape)?;
        matmul::forward(&gpu, &x, &product, None, None, Shape { m: ROWS, ..shape })
    };
    let error = graph_is_right(&gpu, launches).expect_err("it is read too early").to_string();
    assert!(
        error.contains("too early: read of argument 5") && error.contains("which an earlier launch writes, before griddepcontrol.wait"),
        "{error}"
    );
    assert!(error.contains("linear_few.cu:"), "{error}");
}

#[test]
fn every_mistake_is_found() {
    let wait = "  ptx::wait_for_earlier_launches(left.o.numbers);\n";
    let left = "  SORFT_UNROLL\n  for (int c = 0; c < STAGES - 1; c++) copy_left(c);\n";
    let (in_order, turned): (&'static str, &'static str) = (format!("{wait}{left}").leak(), format!("{left}{wait}").leak());
    let begin = "  ptx::begin_after_earlier_launches(x, residual);\n  rmsnorm::forward<32>";
    let mistakes: [(Source, Mutant, Right); 3] = [
        (Source::LINEAR_FEW, mutant("no wait", wait, ""), products_are_right),
        (Source::LINEAR_FEW, mutant("a wait that comes late", in_order, turned), products_are_right),
        (Source::RMSNORM, mutant("no wait", begin, "  rmsnorm::forward<32>"), norms_are_right),
    ];
    for (source, mutant, right) in &mistakes {
        let error = right(&emulator::open(&broken(*source, mutant, 64), modes()[0])).expect_err(mutant.name).to_string();
        assert!(error.contains("too early"), "{}: {error}", mutant.name);
    }
}
