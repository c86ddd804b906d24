//! Every kernel by both witnesses (`tests/support/witness.rs`): the emulator and an interpreter of the PTX agree on every byte of memory after every
//! launch. Mistakes in the assembly of `kernels/ptx.cuh`, which the emulator never sees, are found.

use crate::attention::{heads, tree};
use crate::cuda_attention::{Mutant, inputs, mutant};
use crate::cuda_checker::{self, ZOO};
use crate::witness::{self, ARCHITECTURE};
use crate::{cuda_attention, cuda_attention_backward, cuda_elementwise, cuda_matmul, cuda_rmsnorm, cuda_sample, cuda_token_logprob};
use crate::{emulator, resources};
use rayon::prelude::*;
use sorft_native::tensor::cuda::{Buffer, DType, Gpu, Source, conformance};
use sorft_native::tensor::ops::attention::cuda::work::Cut;
use sorft_native::tensor::ops::rmsnorm;
use sorft_native::tensor::plan::Plan;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Launches on a device, which fail where the witnesses do not agree. What a case asserts besides is what its op's own tests assert.
type Case = (&'static str, fn(&Arc<Gpu>));

/// Shapes on both sides of every boundary of a kernel, small enough for an interpreter.
const CASES: [Case; 13] = [
    ("conformance", conforms),
    ("attention, heads of 64", |gpu| attend(gpu, 3, 1, 64)),
    ("attention, heads of 96", |gpu| attend(gpu, 2, 2, 96)),
    ("attention, heads of 128", |gpu| attend(gpu, 5, 1, 128)),
    ("head", head),
    ("linear", linear),
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

fn conforms(gpu: &Arc<Gpu>) {
    for finding in conformance::run(gpu).expect("both agree") {
        assert!(finding.passes() && finding.different == 0, "{finding:?}");
    }
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

#[test]
fn both_agree_on_every_kernel() {
    // Made before the cases run side by side: what they share is then ready.
    if witness::gpu().is_none() {
        return;
    }
    CASES.par_iter().for_each(|(name, case)| {
        let begin = std::time::Instant::now();
        case(&witness::gpu().expect("there is a compiler"));
        println!("{name}: {:.1} s", begin.elapsed().as_secs_f64());
    });
    let (run, all) = (witness::seen(), witness::kernels());
    let missing: BTreeSet<&String> = all.iter().filter(|k| !run.contains_key(*k)).collect();
    assert!(missing.is_empty(), "no case launches {missing:?}");
    println!("{} kernels, {} launches", all.len(), run.values().map(|s| s.launches).sum::<usize>());
    resources::check_dynamic(&run);
}

/// A source's text, which lasts as long as the program; kept in a list, so that no checker takes it for lost.
fn kept(text: String) -> &'static str {
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
            ptx.lines().filter(|l| !l.starts_with(".target ")).collect::<Vec<_>>().join("\n")
        };
        let want = body(ARCHITECTURE);
        assert!(want.contains(".visible .entry"), "{} has kernels", source.file);
        assert!(body("sm_90a") == want, "{}: other PTX for sm_90a than for {ARCHITECTURE}", source.file);
    }
}

/// A source whose `ptx.cuh` has a mistake, or that has one itself or in `sorft.cuh`: all in one text.
fn broken(source: Source, mutant: &Mutant) -> Source {
    let part = |text: &str| text.replacen("#pragma once", "", 1);
    let header =
        part(include_str!("../../kernels/sorft.cuh")).replacen("#include \"ptx.cuh\"", &part(include_str!("../../kernels/ptx.cuh")), 1);
    let text = source.text.replacen("#include \"sorft.cuh\"", &header, 1);
    assert_eq!(text.matches(mutant.from).count(), 1, "{}: the place is unique", mutant.name);
    Source { file: source.file, text: kept(text.replacen(mutant.from, mutant.to, 1)) }
}

#[test]
fn mistakes_in_assembly_are_found() {
    let mutants = [
        mutant("the halves of b are swapped", "\"r\"(b0), \"r\"(b1)", "\"r\"(b1), \"r\"(b0)"),
        mutant("pieces of a are swapped", "\"r\"(a[1]), \"r\"(a[2])", "\"r\"(a[2]), \"r\"(a[1])"),
        mutant("the sums that come in are swapped", "{%8, %9}, {%0, %1, %2, %3}", "{%8, %9}, {%1, %0, %2, %3}"),
        mutant("the sums that go out are swapped", "f32 {%0, %1, %2, %3}, {%4", "f32 {%0, %2, %1, %3}, {%4"),
        mutant("no .trans", "x4.trans.shared", "x4.shared"),
        mutant(".trans where there is none", "x4.shared", "x4.trans.shared"),
        mutant("the halves of a pair are swapped", "\"f\"(hi), \"f\"(lo)", "\"f\"(lo), \"f\"(hi)"),
        mutant("waits for one group too few", "\"n\"(PENDING)", "\"n\"(PENDING + 1)"),
        mutant("copies are in no group", "asm volatile(\"cp.async.commit_group;\"", "asm volatile(\"\""),
        mutant("what is not valid is read", "\"r\"(valid ? 16 : 0) : \"memory\"", "\"r\"(16) : \"memory\""),
        mutant("half of the bytes", "\"r\"(valid ? 16 : 0) : \"memory\"", "\"r\"(valid ? 8 : 0) : \"memory\""),
        mutant("2^x for the logarithm", "asm(\"lg2.approx", "asm(\"ex2.approx"),
        mutant("subnormal numbers are kept", "asm(\"ex2.approx.ftz", "asm(\"ex2.approx"),
    ];
    let library = emulator::all_kernels();
    let device = |source: Source, mutant: &Mutant| witness::gpu_of(library, broken(source, mutant));
    let Some(gpu) = device(Source::CONFORMANCE, &mutant("nothing", "asm(\"lg2.approx", "asm(\"lg2.approx")) else { return };
    conforms(&gpu);
    mutants.par_iter().for_each(|mutant| {
        let gpu = device(Source::CONFORMANCE, mutant).expect("there is a compiler");
        let error = conformance::run(&gpu).map(|_| ()).expect_err(mutant.name).to_string();
        println!("{}: {error}", mutant.name);
        assert!(error.contains("differ in") || error.contains("PTX line"), "{}: {error}", mutant.name);
    });
    // In a kernel: the mask of a shuffle, whose first sum needs the lanes that it leaves out.
    let mask = mutant(
        "half of a mask",
        "v += __shfl_xor_sync(FULL_WARP, v, mask);\n  return v;",
        "v += __shfl_xor_sync(0xffffu, v, mask);\n  return v;",
    );
    let gpu = device(Source::RMSNORM, &mask).expect("there is a compiler");
    let [x, w] = [&[1.0; 64][..], &[1.0; 64]].map(|x| Buffer::from_f32(&gpu, DType::Bf16, x).expect("uploaded"));
    let error = rmsnorm::cuda::forward(&gpu, &x, &w, 1, 64, 1e-5).expect_err(mask.name).to_string();
    assert!(error.contains("is given by lanes"), "{error}");
}

/// PTX is made without a look into assembly: a typing error there must reach the assembler of the very architecture.
#[test]
fn typing_errors_in_assembly_do_not_compile() {
    let Some(nvrtc) = witness::nvrtc() else { return };
    let source = broken(Source::CONFORMANCE, &mutant("no such shape", "mma.sync.aligned.m16n8k16", "mma.sync.aligned.m16n8k17"));
    let error = sorft_native::tensor::cuda::compile(nvrtc, source, ARCHITECTURE).expect_err("no such shape").to_string();
    assert!(error.contains("m16n8k17"), "{error}");
}
