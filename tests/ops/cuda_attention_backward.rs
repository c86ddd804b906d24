//! Attention's gradients on a device against the processor's on the same bf16 inputs.

use crate::attention::{Inputs, forest, heads, scale, tree};
use crate::cuda_attention::{Mutant, broken, inputs, mutant, pages, pages_that_held, upload};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, close, error, rows, wide};
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::cuda::{self, BackwardWork, DeviceKv, Work};
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::philox::Philox;
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
    gradients(gpu, heads, plan, x, reference, &pages(gpu, heads, plan, x)?)
}

fn gradients(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs, reference: &Reference, kv: &DeviceKv) -> Result<[Vec<f32>; 3]> {
    let work = BackwardWork::new(gpu, plan, heads)?;
    let o = Buffer::from_f32(gpu, DType::Bf16, &reference.o)?;
    let lse = Buffer::from_f32(gpu, DType::F32, &reference.lse)?;
    let (dq, dk, dv) = cuda::backward(gpu, &upload(gpu, &x.d_o)?, &upload(gpu, &x.q)?, &o, &lse, kv, &work, scale(heads))?;
    Ok([dq.to_f32()?, dk.to_f32()?, dv.to_f32()?])
}

/// The bits of a small case's gradients.
pub fn small(gpu: &Arc<Gpu>) -> [Vec<u32>; 3] {
    let (heads, plan) = (heads(3, 1, 96), Plan::for_trees(&group()));
    let x = inputs(heads, plan.num_tokens());
    all_bits(&run_backward(gpu, heads, &plan, &x, &processor(heads, &plan, &x)).expect("runs"))
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

/// The chip without the kernels that are for Hopper.
fn on_ampere(mode: Emulation) -> Emulation {
    Emulation { compute_capability: (8, 0), ..mode }
}

/// By mma.sync and by wgmma.
#[test]
fn gradients_equal_the_processor_s_under_every_schedule() {
    for (heads, trees) in [(heads(3, 1, 64), group()), (heads(2, 2, 96), group()), (heads(5, 1, 128), vec![tree(&[(None, 37)])])] {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let reference = processor(heads, &plan, &x);
        let mut first = None;
        for mode in modes().into_iter().flat_map(|mode| [on_ampere(mode), mode]) {
            let got =
                run_backward(&emulator::gpu(mode), heads, &plan, &x, &reference).unwrap_or_else(|e| panic!("{heads:?}, {mode:?}: {e}"));
            compare(heads, &got, &reference.gradients);
            let got = all_bits(&got);
            assert!(*first.get_or_insert(got.clone()) == got, "{heads:?}, {mode:?}: other bits");
        }
    }
}

/// After the device's own forward pass, with groups of 1 to 8; by mma.sync and by wgmma.
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
        let ampere = run(&emulator::gpu(on_ampere(quick)), heads, &plan, &x).expect("runs");
        assert!(all_bits(&got) == all_bits(&ampere), "{heads:?}: mma.sync and wgmma");
        let mut want = processor(heads, &plan, &x).gradients;
        if plan.num_tokens() == 1 {
            // A token that sees only itself has a softmax of 1: dq and dk are what rounding leaves of 0.
            assert!(got[..2].concat().iter().all(|g| g.abs() < 0.1), "{got:?}");
            want[..2].iter_mut().zip(&got).for_each(|(want, got)| *want = wide(got));
        }
        compare(heads, &got, &want);
    }
}

/// A forest drawn at random: up to two trees of up to four segments with parents before them, primes and single tokens among their lengths.
fn drawn(random: &Philox, case: u64) -> Vec<Tree> {
    let below = |place: u64, n: usize| (random.uniform(case, place) * n as f64) as usize;
    let lengths = [0, 1, 2, 7, 23, 61, 64, 65];
    let segments = |t: u64| -> Vec<(Option<usize>, usize)> {
        let segment = |i: usize| {
            let place = 100 * t + 10 * i as u64;
            ((i > 0).then(|| below(place, i)), if i == 0 { 1 + below(place + 1, 90) } else { lengths[below(place + 2, lengths.len())] })
        };
        (0..=below(100 * t + 99, 4)).map(segment).collect()
    };
    (0..=below(1, 2) as u64).map(|t| tree(&segments(t + 1))).collect()
}

/// The bits of mma.sync by wgmma, for groups of 1 to 8 and every width of a head.
#[test]
fn drawn_forests_have_the_same_bits_on_hopper() {
    let quick = Emulation { check: false, ..Emulation::default() };
    let random = Philox::new(29, 0);
    for case in 0..10 {
        let (group, kv_heads) = (1 + case as usize % 8, 1 + case as usize / 8);
        let heads = heads(group * kv_heads, kv_heads, [64, 96, 128][case as usize % 3]);
        let plan = Plan::for_trees(&drawn(&random, case));
        let x = inputs(heads, plan.num_tokens());
        let reference = processor(heads, &plan, &x);
        let run = |mode| run_backward(&emulator::gpu(mode), heads, &plan, &x, &reference).expect("runs");
        let [hopper, ampere] = [quick, on_ampere(quick)].map(run);
        assert!(all_bits(&hopper) == all_bits(&ampere), "{heads:?}, {:?}", plan.segments);
        assert!(hopper.concat().iter().all(|g| g.is_finite()));
    }
}

/// What pages held before reaches no gradient, not even NaN or infinity.
#[test]
fn stale_slots_do_not_leak() {
    let heads = heads(3, 1, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)]), tree(&[(None, 3)])]);
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, &plan, &x);
    for mode in [Emulation::default(), on_ampere(Emulation::default())] {
        let gpu = emulator::gpu(mode);
        let clean = all_bits(&run_backward(&gpu, heads, &plan, &x, &reference).expect("runs"));
        for stale in [1e30, f32::NAN, f32::INFINITY] {
            let kv = pages_that_held(&gpu, heads, &plan, &x, stale).expect("filled");
            let got = gradients(&gpu, heads, &plan, &x, &reference, &kv).expect("runs");
            assert!(all_bits(&got) == clean, "{mode:?}: slots that held {stale}");
        }
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
        mutant("queries: no delta", "dp[j][e], delta[e / 2], a.scale", "dp[j][e], 0.0f, a.scale"),
        mutant("queries: the other row's sum", "lse[e / 2]);", "lse[1 - e / 2]);"),
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
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    // Whose pages begin unwritten, so that reading too much of them is found.
    let modes: Vec<Emulation> = modes().into_iter().step_by(3).map(on_ampere).collect();
    each_is_found(Source::ATTENTION_BWD, "struct Gradients {", &mutants, heads(3, 1, 64), &plan, &modes);
}

/// Mistakes with pages and pairs by TMA and products by warpgroups.
#[test]
fn every_mistake_on_hopper_is_found() {
    // In the headers that the two passes share.
    let of_both = [
        mutant("padding is not cleared", "    store_vec(areas", "    if (false) store_vec(areas"),
        mutant("padding is not fenced", "  ptx::fence_async_proxy();\n}", "}"),
        mutant("no fence of the sums", "  ptx::wgmma_fence();\n  SORFT_UNROLL\n  for (int k = 0; k < 4", "  for (int k = 0; k < 4"),
        mutant("the next columns lie elsewhere", "BLOCK_BYTES + k % 4 * 32", "BLOCK_BYTES + k % 4 * 16"),
        mutant("the next terms lie elsewhere", "b + k * 2048", "b + k * 1024"),
    ];
    let of_queries = [
        mutant("queries: do not wait for pairs", "    ptx::wait(barriers.pairs, 0);\n", ""),
        mutant("queries: do not wait for keys", "    ptx::wait(&barriers.keys[at.stage], at.parity);\n", ""),
        mutant("queries: do not wait for values", "    ptx::wait(&barriers.values[at.stage], at.parity);\n", ""),
        mutant("queries: fewer bytes are announced", "&b.keys[turn.stage], Tile<D>::BYTES);", "&b.keys[turn.stage], 16);"),
        mutant("queries: scores are not waited for", "ptx::wgmma_wait<2>();  // the scores", "// the scores"),
        mutant("queries: dp is not waited for", "ptx::wgmma_wait<1>();  // so is dp", "// so is dp"),
        mutant("queries: zeros are not fenced", "  ptx::fence_async_proxy();\n  ptx::named_barrier", "  ptx::named_barrier"),
        mutant("queries: each group has its own zeros", "named_barrier(id, threads)", "named_barrier(id + thread / GROUP, GROUP)"),
        mutant("queries: both take the first pairs", "*pairs = shared + group * ROWS * ROW_BYTES", "*pairs = shared"),
        mutant("queries: one key too many", "<= position[e / 2];", "<= position[e / 2] + 1;"),
        mutant("queries: another page", "pages[t] * a.kv_heads", "pages[0] * a.kv_heads"),
        mutant("queries: a pair too many is written", "if (pair >= item.rows * a.of_token())", "if (pair > item.rows * a.of_token())"),
    ];
    let of_pages = [
        mutant("pages: do not wait for the page", "    ptx::wait(barriers.page, 0);\n", ""),
        mutant("pages: do not wait for pairs", "      ptx::wait(&barriers.full[turn.stage], turn.parity);\n", ""),
        mutant(
            "pages: no wait for a free stage",
            "      ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n      ptx::arrive_and_expect(full",
            "      ptx::arrive_and_expect(full",
        ),
        mutant(
            "pages: what is known is written too early",
            "      ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n      const i64",
            "      const i64",
        ),
        mutant("pages: pairs without what is known of them", "ptx::barrier_init(&full[i], 3);", "ptx::barrier_init(&full[i], 1);"),
        mutant(
            "pages: a warp does not wait for itself",
            "      __syncwarp();\n      if (thread % 32 == 0) ptx::arrive(&b",
            "      if (thread % 32 == 0) ptx::arrive(&b",
        ),
        mutant("pages: a warp is still reading", "      __syncwarp();  // all lanes", "      // all lanes"),
        mutant("pages: pairs are freed too early", "      ptx::wgmma_wait<0>();\n      __syncwarp();", "      __syncwarp();"),
        mutant("pages: no mask", "seen ? attention::probability(", "true ? attention::probability("),
        mutant("pages: the last run is lost", "i < runs.last; i += ROWS / PAIRS", "i + 1 < runs.last; i += ROWS / PAIRS"),
    ];
    let of_stages = [
        mutant("parities stay", "stage = 0, parity ^= 1", "stage = 0"),
        mutant(
            "queries: no wait for a free page",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    ptx::arrive_and_expect(&b.keys",
            "    ptx::arrive_and_expect(&b.keys",
        ),
        mutant("queries: a page is freed by half", "groups * GROUP / 32);", "groups * GROUP / 64);"),
        mutant(
            "queries: a page is freed too early",
            "ptx::wgmma_wait<0>();\n      leave_page();",
            "leave_page();\n      ptx::wgmma_wait<0>();",
        ),
    ];
    // Of kernels whose tiles have two runs.
    let of_two_runs = [
        mutant("pages: one run in the place of two", "to + r * PAIRS * ROW_BYTES, Tile", "to, Tile"),
        mutant("pages: a run that is not there", "i < last ? (int)table[2 * i + 1] : 0", "(int)table[2 * i + 1]"),
    ];
    let modes = [modes()[0], modes()[4]];
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    let (queries, pages) = (Source::ATTENTION_BWD_Q_HOPPER, Source::ATTENTION_BWD_KV_HOPPER);
    each_is_found(queries, "struct QueryBarriers {", &[&of_both[..], &of_queries].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, "struct Runs {", &[&of_both[..], &of_pages].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, "struct Runs {", &of_two_runs, heads(3, 1, 96), &plan, &modes);
    // Stages of the first pass are used again behind the third page.
    let plan = Plan::for_trees(&[tree(&[(None, 194)])]);
    each_is_found(queries, "struct QueryBarriers {", &of_stages, heads(1, 1, 64), &plan, &modes);
}

fn each_is_found(source: Source, unbroken: &'static str, mutants: &[Mutant], heads: Heads, plan: &Plan, found_in: &[Emulation]) {
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, plan, &x);
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let got = run_backward(gpu, heads, plan, &x, &reference)?;
        Ok(got.iter().zip(&reference.gradients).all(|(got, want)| error(got, want) <= BOUND))
    };
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken), heads.head_dim);
    for mode in modes() {
        let mode = Emulation { compute_capability: found_in[0].compute_capability, ..mode };
        assert!(right(&emulator::open(&unbroken, mode)).expect("the kernel itself raises no alarm"), "and its numbers are right");
    }
    for mutant in mutants {
        let library = broken(source, mutant, heads.head_dim);
        for &mode in found_in {
            assert!(!right(&emulator::open(&library, mode)).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
