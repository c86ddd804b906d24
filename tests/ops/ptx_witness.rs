//! Every kernel by both witnesses (`tests/support/witness.rs`): the emulator and an interpreter of the PTX agree on every byte of memory after every
//! launch.

use crate::attention::{forest, heads, tree};
use crate::cuda_attention::inputs;
use crate::cuda_checker::{self, ZOO};
use crate::cuda_token_logprob;
use crate::resources;
use crate::witness::{self, ARCHITECTURE, HOPPER};
use crate::{cuda_attention, cuda_attention_backward, cuda_elementwise, cuda_few, cuda_matmul, cuda_qkv, cuda_rmsnorm, cuda_sample};
use rayon::prelude::*;
use sorft_native::tensor::cuda::{Gpu, Source, conformance};
use sorft_native::tensor::ops::attention::Heads;
use sorft_native::tensor::ops::attention::cuda::work::Cut;
use sorft_native::tensor::plan::{Plan, Tree};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Launches on a device, which fail where the witnesses do not agree. What a case asserts besides is what its op's own tests assert.
type Case = (&'static str, fn(&Arc<Gpu>));

/// What only a Hopper chip runs.
const HOPPER_CASES: [Case; 15] = [
    ("conformance on Hopper", conforms_on_hopper),
    ("linear on Hopper", hopper_linear),
    ("linear on Hopper, several tiles", |gpu| hopper_products(gpu, [389, 264, 328, 16])),
    ("linear on Hopper, pairs", |gpu| hopper_products(gpu, [200, 136, 264, 16])),
    ("linear on Hopper, pairs and one alone", |gpu| hopper_products(gpu, [1029, 136, 72, 8])),
    ("head on Hopper, pairs", |gpu| hopper_head(gpu, 201, 72, 304)),
    ("head on Hopper", |gpu| hopper_head(gpu, 131, 72, 304)),
    ("head on Hopper, several chunks", |gpu| hopper_head(gpu, 5, 16, 2120)),
    ("attention on Hopper, heads of 64", |gpu| hopper_attend(gpu, heads(3, 1, 64), cuda_attention_backward::group())),
    ("attention on Hopper, heads of 96", |gpu| hopper_attend(gpu, heads(2, 2, 96), cuda_attention_backward::group())),
    ("attention on Hopper, heads of 128", |gpu| hopper_attend(gpu, heads(5, 1, 128), cuda_attention_backward::group())),
    ("attention on Hopper, over a split", |gpu| hopper_attend(gpu, heads(1, 1, 64), vec![tree(&[(None, 387)])])),
    ("attention on Hopper, groups of 8", |gpu| hopper_attend(gpu, heads(8, 1, 128), vec![tree(&[(None, 65), (Some(0), 9)])])),
    ("attention on Hopper, two groups of 7", |gpu| hopper_attend(gpu, heads(14, 2, 64), cuda_attention_backward::group())),
    ("attention on Hopper, ragged trees", |gpu| hopper_attend(gpu, heads(4, 1, 96), forest())),
];

/// Shapes on both sides of every boundary of a kernel, small enough for an interpreter.
const CASES: [Case; 15] = [
    ("conformance", conforms),
    ("attention, heads of 64", |gpu| attend(gpu, 3, 1, 64)),
    ("attention, heads of 96", |gpu| attend(gpu, 2, 2, 96)),
    ("attention, heads of 128", |gpu| attend(gpu, 5, 1, 128)),
    ("head", head),
    ("linear", linear),
    ("several products of few rows", cuda_few::few_on),
    ("between the products and attention", cuda_qkv::qkv_on),
    ("rmsnorm", norms),
    ("sample", sample),
    ("swiglu and rope", |gpu| {
        cuda_elementwise::swiglu_on(gpu);
        cuda_elementwise::rope_on(gpu);
    }),
    ("adamw", cuda_elementwise::adamw_on),
    ("adamw in 8 bits", cuda_elementwise::adamw_8bit_on),
    ("embedding and sums", |gpu| {
        cuda_elementwise::embedding_on(gpu);
        cuda_elementwise::sums_on(gpu);
    }),
    ("norm", cuda_matmul::squares_on),
];

pub fn conforms(gpu: &Arc<Gpu>) {
    for finding in conformance::run(gpu).expect("both agree") {
        assert!(finding.passes() && finding.different == 0, "{finding:?}");
    }
}

fn conforms_on_hopper(gpu: &Arc<Gpu>) {
    assert!(gpu.is_hopper());
    conforms(gpu);
}

fn attend(gpu: &Arc<Gpu>, q: usize, kv: usize, dim: usize) {
    let heads = heads(q, kv, dim);
    // Over the end of a page, copies of pages, an empty segment; with the narrow heads over the end of a split too.
    let mut trees = cuda_attention_backward::group();
    if dim == 64 {
        trees.push(tree(&[(None, 258)]));
    }
    let plan = Plan::for_trees(&trees);
    let x = inputs(heads, plan.num_tokens());
    for cut in [Cut::Whole, Cut::Split] {
        cuda_attention::run(gpu, heads, &plan, &x, cut).expect("both agree");
    }
    let plan = Plan::for_trees(&cuda_attention_backward::group());
    let x = inputs(heads, plan.num_tokens());
    cuda_attention_backward::run(gpu, heads, &plan, &x).expect("both agree");
}

fn head(gpu: &Arc<Gpu>) {
    for (rows, width, vocab) in [(1, 8, 8), (7, 72, 304), (131, 8, 72), (5, 16, 2120)] {
        let case = cuda_token_logprob::Case::new(rows, width, vocab, 0.7);
        let mut dw = cuda_token_logprob::zeros(gpu, &case);
        cuda_token_logprob::run(gpu, &case, &mut dw).expect("both agree");
    }
}

fn linear(gpu: &Arc<Gpu>) {
    for (m, n, k, rank) in [(1, 8, 8, 8), (37, 72, 136, 16), (131, 136, 72, 8), (7, 8, 264, 72), (259, 72, 40, 8)] {
        let case = cuda_matmul::Case::new(m, n, k, rank, vec![0..m / 2, m / 2..m]);
        let mut dw = cuda_matmul::zeros(gpu, &case);
        cuda_matmul::run(gpu, &case, &mut dw).expect("both agree");
        cuda_matmul::add_scaled(gpu, &case, &mut dw, 0.5).expect("both agree");
    }
}

fn norms(gpu: &Arc<Gpu>) {
    for (rows, cols) in [(1, 1), (3, 7), (5, 8), (17, 64), (9, 129), (3, 513), (2, 2056)] {
        let case = cuda_rmsnorm::Case::new(rows, cols, vec![0..rows.div_ceil(2), rows.div_ceil(2)..rows]);
        cuda_rmsnorm::run(gpu, &case, &mut cuda_rmsnorm::constant(gpu, cols, 0.25));
    }
    cuda_rmsnorm::fused_on(gpu);
}

fn sample(gpu: &Arc<Gpu>) {
    for (vocab, grid) in [(8, false), (2056, true), (4392, false)] {
        cuda_sample::chosen_on(gpu, vocab, grid);
    }
    cuda_sample::sampled_on(gpu);
}

/// Outputs, sums and adapters over the ends of tiles of 128 x 256 and chunks of 64 terms; trees that end within a chunk.
fn hopper_linear(gpu: &Arc<Gpu>) {
    assert!(gpu.is_hopper());
    for shape in [[261, 72, 136, 16], [257, 128, 64, 8], [5, 8, 72, 72]] {
        hopper_products(gpu, shape);
    }
}

fn hopper_products(gpu: &Arc<Gpu>, [m, n, k, rank]: [usize; 4]) {
    let case = cuda_matmul::Case::new(m, n, k, rank, vec![0..m / 37, m / 37..m]);
    let mut dw = cuda_matmul::zeros(gpu, &case);
    cuda_matmul::run(gpu, &case, &mut dw).expect("both agree");
}

fn hopper_head(gpu: &Arc<Gpu>, rows: usize, width: usize, vocab: usize) {
    let case = cuda_token_logprob::Case::new(rows, width, vocab, 0.7);
    let mut dw = cuda_token_logprob::zeros(gpu, &case);
    cuda_token_logprob::run(gpu, &case, &mut dw).expect("both agree");
}

/// Items of one warpgroup and of two, histories over more pages than there are stages, copies of pages, empty segments.
fn hopper_attend(gpu: &Arc<Gpu>, heads: Heads, trees: Vec<Tree>) {
    let plan = Plan::for_trees(&trees);
    let x = inputs(heads, plan.num_tokens());
    cuda_attention_backward::run(gpu, heads, &plan, &x).expect("both agree");
}

#[test]
fn both_agree_on_every_kernel() {
    // Made before the cases run side by side: what they share is then ready.
    if witness::gpu(false).is_none() {
        return;
    }
    let of = |cases: &'static [Case], hopper: bool| cases.par_iter().map(move |case| (case, hopper));
    of(&CASES, false).chain(of(&HOPPER_CASES, true)).for_each(|((name, case), hopper)| {
        let begin = std::time::Instant::now();
        case(&witness::gpu(hopper).expect("there is a compiler"));
        println!("{name}: {:.1} s", begin.elapsed().as_secs_f64());
    });
    let (run, all) = (witness::seen(), witness::kernels());
    let missing: BTreeSet<&String> = all.iter().filter(|k| !run.contains_key(*k)).collect();
    assert!(missing.is_empty(), "no case launches {missing:?}");
    println!("{} kernels, {} launches", all.len(), run.values().map(|s| s.launches).sum::<usize>());
    resources::check_dynamic(&run);
}

/// A source's text, which lasts as long as the program; kept in a list, so that no checker takes it for lost.
pub fn kept(text: String) -> &'static str {
    static TEXTS: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    let text = text.leak();
    TEXTS.lock().expect("no panic while it is held").push(text);
    text
}

/// Exchanges of every kind, atomics, barriers with votes, diverged warps: what the kernels above need not all have.
#[test]
fn both_agree_on_the_checker_s_kernels() {
    // It has an array in local memory, which no kernel of the project may have (that is a spill) and the interpreter refuses.
    const LOCAL: &str = "ldmatrix_without_syncwarp";
    let parts: Vec<&str> = ZOO.text.split("KERNEL ").filter(|part| !part.starts_with(LOCAL)).collect();
    let source = Source { file: ZOO.file, text: kept(format!("#define MISTAKE 0\n{}", parts.join("KERNEL "))) };
    let Some(gpu) = witness::gpu_of(cuda_checker::library(false), source) else { return };
    cuda_checker::values_on(&gpu, "by both");
    for setting in cuda_checker::settings().iter().filter(|s| s.name != LOCAL) {
        cuda_checker::run_on(&gpu, setting).unwrap_or_else(|e| panic!("{}: {e}", setting.name));
    }
}

/// So what has been run for Ampere has been run for Hopper. (For later chips NVRTC has another compiler.)
#[test]
fn the_ptx_is_the_same_for_ampere_and_hopper() {
    if witness::nvrtc().is_none() {
        return;
    }
    for source in Source::ALL.into_iter().filter(|s| !witness::FOR_HOPPER.contains(&s.file)) {
        let body = |architecture| {
            let ptx = witness::compiled(source, architecture).unwrap_or_else(|e| panic!("{e}")).ptx.clone();
            // Launches wait for one another by an instruction that Ampere lacks; it computes nothing.
            let own = ["griddepcontrol.", "//", ".target "];
            ptx.lines().filter(|l| !own.iter().any(|begin| l.trim_start().starts_with(begin))).collect::<Vec<_>>().join("\n")
        };
        let want = body(ARCHITECTURE);
        assert!(want.contains(".visible .entry"), "{} has kernels", source.file);
        assert!(body(HOPPER) == want, "{}: other PTX for {HOPPER} than for {ARCHITECTURE}", source.file);
    }
}
