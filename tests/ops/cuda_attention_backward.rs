//! Attention's gradients on a device against the processor's on the same bf16 inputs.

use crate::attention::{Inputs, forest, heads, scale, tree};
use crate::cuda_attention::{broken, inputs, mutant, pages, upload};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, close, error, rows, wide};
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::cuda::{self, BackwardWork, Work};
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::plan::{Plan, Tree};
use std::sync::Arc;

/// p and ds are rounded to bf16 before their products, and so are the results.
const BOUND: f64 = 6e-3;

/// The processor's (o, lse) and (dq, dk, dv).
struct Reference {
    o: Vec<f32>,
    lse: Vec<f32>,
    gradients: [Vec<f64>; 3],
}

fn processor(heads: Heads, plan: &Plan, x: &Inputs) -> Reference {
    let mut kv = KvLayer::new(heads, plan.num_pages);
    kv.write(&plan.kv_slots, &x.k, &x.v);
    kv.copy(&plan.copies);
    let (o, saved) = attention::forward(&x.q, &kv, &plan.segments, scale(heads));
    let (dq, dk, dv) = attention::backward(&x.d_o, &x.q, &o, &saved, &kv, plan, scale(heads));
    let lse = saved.max.iter().zip(&saved.inv_sum).map(|(m, l)| m - l.ln()).collect();
    Reference { o: o.into_vec(), lse, gradients: [dq, dk, dv].map(|t| wide(t.data())) }
}

/// dq, dk and dv, after the device's own forward pass.
pub fn run(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs) -> Result<[Vec<f32>; 3]> {
    let kv = pages(gpu, heads, plan, x)?;
    let q = upload(gpu, &x.q)?;
    let (o, lse) = cuda::forward(gpu, &q, &kv, &Work::new(gpu, &plan.segments, heads)?, scale(heads))?;
    let work = BackwardWork::new(gpu, plan, heads)?;
    let (dq, dk, dv) = cuda::backward(gpu, &upload(gpu, &x.d_o)?, &q, &o, &lse, &kv, &work, scale(heads))?;
    Ok([dq.to_f32()?, dk.to_f32()?, dv.to_f32()?])
}

/// The backward pass alone, from the processor's forward pass.
fn run_backward(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs, reference: &Reference) -> Result<[Vec<f32>; 3]> {
    let kv = pages(gpu, heads, plan, x)?;
    let work = BackwardWork::new(gpu, plan, heads)?;
    let o = Buffer::from_f32(gpu, DType::Bf16, &reference.o)?;
    let lse = Buffer::from_f32(gpu, DType::F32, &reference.lse)?;
    let (dq, dk, dv) = cuda::backward(gpu, &upload(gpu, &x.d_o)?, &upload(gpu, &x.q)?, &o, &lse, &kv, &work, scale(heads))?;
    Ok([dq.to_f32()?, dk.to_f32()?, dv.to_f32()?])
}

fn compare(heads: Heads, got: &[Vec<f32>; 3], want: &[Vec<f64>; 3]) {
    for ((got, want), name) in got.iter().zip(want).zip(["dq", "dk", "dv"]) {
        close(&format!("{name}, {heads:?}"), got, want, BOUND);
    }
}

fn all_bits(x: &[Vec<f32>; 3]) -> [Vec<u32>; 3] {
    [bits(&x[0]), bits(&x[1]), bits(&x[2])]
}

/// A copy of a copy, an empty segment, a page that two answers share.
pub fn group() -> Vec<Tree> {
    vec![tree(&[(None, 67), (Some(0), 3), (Some(1), 2), (Some(0), 1), (Some(0), 0), (Some(4), 2)]), tree(&[(None, 1)])]
}

#[test]
fn gradients_equal_the_processor_s_under_every_schedule() {
    for (heads, trees) in [(heads(3, 1, 64), group()), (heads(2, 2, 96), group()), (heads(5, 1, 128), vec![tree(&[(None, 37)])])] {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let reference = processor(heads, &plan, &x);
        let mut first = None;
        for mode in modes() {
            let got =
                run_backward(&emulator::gpu(mode), heads, &plan, &x, &reference).unwrap_or_else(|e| panic!("{heads:?}, {mode:?}: {e}"));
            compare(heads, &got, &reference.gradients);
            let got = all_bits(&got);
            assert!(*first.get_or_insert(got.clone()) == got, "{heads:?}, {mode:?}: other bits");
        }
    }
}

/// After the device's own forward pass, with groups of 1 to 8.
#[test]
fn shapes_equal_the_processor() {
    let quick = Emulation { check: false, ..Emulation::default() };
    let long_and_short = || vec![tree(&[(None, 139)]), tree(&[(None, 1)]), tree(&[(None, 5), (Some(0), 7)])];
    let cases = [
        (heads(1, 1, 64), vec![tree(&[(None, 1)])]),
        (heads(2, 1, 64), forest()),
        (heads(4, 1, 96), long_and_short()),
        (heads(12, 2, 64), long_and_short()),
        (heads(7, 1, 64), long_and_short()),
        (heads(8, 1, 128), long_and_short()),
    ];
    for (heads, trees) in cases {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let got = run(&emulator::gpu(quick), heads, &plan, &x).expect("runs");
        let mut want = processor(heads, &plan, &x).gradients;
        if plan.num_tokens() == 1 {
            // A token that sees only itself has a softmax of 1: dq and dk are what rounding leaves of 0.
            assert!(got[..2].concat().iter().all(|g| g.abs() < 0.1), "{got:?}");
            want[..2].iter_mut().zip(&got).for_each(|(want, got)| *want = wide(got));
        }
        compare(heads, &got, &want);
    }
}

#[test]
fn gradients_equal_the_processor_s_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for heads in [heads(3, 1, 64), heads(14, 2, 64), heads(8, 8, 96), heads(8, 1, 128)] {
        for trees in [forest(), group(), vec![tree(&[(None, 1000), (Some(0), 100), (Some(0), 63)])]] {
            let plan = Plan::for_trees(&trees);
            let x = inputs(heads, plan.num_tokens());
            let got = run(&gpu, heads, &plan, &x).expect("runs");
            compare(heads, &got, &processor(heads, &plan, &x).gradients);
            assert!(all_bits(&got) == all_bits(&run(&gpu, heads, &plan, &x).expect("runs")), "the same bits again");
        }
    }
}

/// The atom of a gradient is one tree: its bits do not depend on the others.
#[test]
fn a_tree_does_not_depend_on_the_others() {
    let heads = heads(3, 1, 64);
    let trees = [group(), vec![tree(&[(None, 5), (Some(0), 7)])]].concat();
    let plan = Plan::for_trees(&trees);
    let x = inputs(heads, plan.num_tokens());
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let all = run(&gpu, heads, &plan, &x).expect("runs");
    for (tree, range) in trees.iter().zip(&plan.trees) {
        let tokens = range.tokens.clone();
        let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|t| rows(t, tokens.clone()));
        let alone = run(&gpu, heads, &Plan::for_trees(std::slice::from_ref(tree)), &Inputs { q, k, v, d_o }).expect("runs");
        for ((alone, all), width) in alone.iter().zip(&all).zip([192, 64, 64]) {
            assert!(bits(alone) == bits(&all[tokens.start * width..tokens.end * width]), "tokens {tokens:?}");
        }
    }
}

#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant("queries: no barrier", "__syncthreads();  // the tile has landed for all", "// the tile has landed for all"),
        mutant("queries: one stage", "(t + 1) % 2 * 2 * PAGE", "t % 2 * 2 * PAGE"),
        mutant("queries: one key too many", "<= position[e / 2];", "<= position[e / 2] + 1;"),
        mutant("queries: no delta", "p * (dp[j][e] - delta[e / 2]) * a.scale", "p * dp[j][e] * a.scale"),
        mutant("queries: the other row's sum", "-lse[e / 2])", "-lse[1 - e / 2])"),
        mutant("queries: a row too many", "item.end - (t + 1) * ROWS", "item.end + 1 - (t + 1) * ROWS"),
        mutant("pages: no barrier", "__syncthreads();  // the pairs have landed for all", "// the pairs have landed for all"),
        mutant("pages: one stage", "const u32 other = (i + 1 - first) % 2;", "const u32 other = (i - first) % 2;"),
        mutant("pages: one stage of what is known", "known + other, a", "known + 1 - other, a"),
        mutant(
            "pages: waits too little",
            "ptx::cp_async_wait<0>();\n    __syncthreads();  // the pairs",
            "ptx::cp_async_wait<1>();\n    __syncthreads();  // the pairs",
        ),
        mutant("pages: no mask", "position + lane / 4 + e / 2 * 8 <= own.position[pair]", "own.position[pair] >= 0"),
        mutant("pages: the pair's neighbour", "const int pair = j * 8 + lane % 4 * 2 + e % 2;", "const int pair = j * 8 + lane % 4 * 2;"),
        mutant("pages: unwritten slots", "page, a.kv_heads, kv_head, filled)", "page, a.kv_heads, kv_head, ROWS)"),
        mutant("pages: the last run is lost", "i < last; i++) {\n    ptx", "i + 1 < last; i++) {\n    ptx"),
        mutant("delta: half of a row", "c < dim; c += 64", "c < dim / 2; c += 64"),
    ];
    let heads = heads(3, 1, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, &plan, &x);
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let got = run_backward(gpu, heads, &plan, &x, &reference)?;
        Ok(got.iter().zip(&reference.gradients).all(|(got, want)| error(got, want) <= BOUND))
    };
    // Whose pages begin unwritten, so that reading too much of them is found.
    let open = |library: &std::path::Path, mode| emulator::open(library, Emulation { compute_capability: (8, 0), ..mode });
    let unbroken = broken(Source::ATTENTION_BWD, &mutant("nothing", "struct Gradients {", "struct Gradients {"));
    for mode in modes() {
        assert!(right(&open(&unbroken, mode)).expect("the kernel itself raises no alarm"), "and its numbers are right");
    }
    for mutant in &mutants {
        let library = broken(Source::ATTENTION_BWD, mutant);
        for mode in modes().into_iter().step_by(3) {
            assert!(!right(&open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
