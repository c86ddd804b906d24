//! Attention's gradients on a device against the processor's on the same bf16 inputs.

use crate::attention::{Inputs, forest, heads, scale, tree};
use crate::cuda_attention::{Mutant, broken, inputs, mutant, pages, pages_that_held, upload};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, close, error, rows, wide};
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::cuda::{self, BackwardWork, DeviceKv, Passes, Work};
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

/// dq, dk and dv, after the device's own forward pass: in one pass where the device can, and there in two as well, to the same bits.
pub fn run(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs) -> Result<[Vec<f32>; 3]> {
    let two = run_in(gpu, Passes::Two, heads, plan, x)?;
    if !gpu.is_hopper() {
        return Ok(two);
    }
    let one = run_in(gpu, Passes::One, heads, plan, x)?;
    assert!(all_bits(&one) == all_bits(&two), "{heads:?}: one pass and two");
    Ok(one)
}

/// The same in one pass or in two.
pub fn run_in(gpu: &Arc<Gpu>, passes: Passes, heads: Heads, plan: &Plan, x: &Inputs) -> Result<[Vec<f32>; 3]> {
    let kv = pages(gpu, heads, plan, x)?;
    let q = upload(gpu, &x.q)?;
    let (o, lse) = cuda::forward(gpu, &q, &kv, &Work::new(gpu, &plan.segments, heads)?, scale(heads))?;
    let work = BackwardWork::in_passes(gpu, plan, heads, passes)?;
    let (dq, dk, dv) = cuda::backward(gpu, &upload(gpu, &x.d_o)?, &q, &o, &lse, &kv, &work, scale(heads))?;
    Ok([dq.to_f32()?, dk.to_f32()?, dv.to_f32()?])
}

/// The backward pass alone, from the processor's forward pass.
fn run_backward(gpu: &Arc<Gpu>, way: Way, heads: Heads, plan: &Plan, x: &Inputs, reference: &Reference) -> Result<[Vec<f32>; 3]> {
    gradients(gpu, way, heads, plan, x, reference, &pages(gpu, heads, plan, x)?)
}

fn gradients(
    gpu: &Arc<Gpu>,
    way: Way,
    heads: Heads,
    plan: &Plan,
    x: &Inputs,
    reference: &Reference,
    kv: &DeviceKv,
) -> Result<[Vec<f32>; 3]> {
    let work = BackwardWork::in_passes(gpu, plan, heads, if way == Way::OnePass { Passes::One } else { Passes::Two })?;
    let o = Buffer::from_f32(gpu, DType::Bf16, &reference.o)?;
    let lse = Buffer::from_f32(gpu, DType::F32, &reference.lse)?;
    let (dq, dk, dv) = cuda::backward(gpu, &upload(gpu, &x.d_o)?, &upload(gpu, &x.q)?, &o, &lse, kv, &work, scale(heads))?;
    Ok([dq.to_f32()?, dk.to_f32()?, dv.to_f32()?])
}

/// The bits of a small case's gradients.
pub fn small(gpu: &Arc<Gpu>) -> [Vec<u32>; 3] {
    let (heads, plan) = (heads(3, 1, 96), Plan::for_trees(&group()));
    let x = inputs(heads, plan.num_tokens());
    all_bits(&run(gpu, heads, &plan, &x).expect("runs"))
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

/// By which kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// mma.sync, in two passes.
    Ampere,
    /// wgmma, in two.
    TwoPasses,
    /// wgmma, in one.
    OnePass,
}

const WAYS: [Way; 3] = [Way::Ampere, Way::TwoPasses, Way::OnePass];

impl Way {
    /// The same on a chip that has it.
    fn on(self, mode: Emulation) -> Emulation {
        Emulation { compute_capability: if self == Way::Ampere { (8, 0) } else { (9, 0) }, ..mode }
    }

    fn gpu(self, mode: Emulation) -> Arc<Gpu> {
        emulator::gpu(self.on(mode))
    }
}

/// By mma.sync and by wgmma.
#[test]
fn gradients_equal_the_processor_s_under_every_schedule() {
    for (heads, trees) in [(heads(3, 1, 64), group()), (heads(2, 2, 96), group()), (heads(5, 1, 128), vec![tree(&[(None, 37)])])] {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let reference = processor(heads, &plan, &x);
        let mut first = None;
        for (mode, way) in modes().into_iter().flat_map(|mode| WAYS.map(|way| (mode, way))) {
            let got = run_backward(&way.gpu(mode), way, heads, &plan, &x, &reference);
            let got = got.unwrap_or_else(|e| panic!("{heads:?}, {way:?}, {mode:?}: {e}"));
            compare(heads, &got, &reference.gradients);
            let got = all_bits(&got);
            assert!(*first.get_or_insert(got.clone()) == got, "{heads:?}, {way:?}, {mode:?}: other bits");
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
        let ampere = run(&Way::Ampere.gpu(quick), heads, &plan, &x).expect("runs");
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
        let all = WAYS.map(|way| run_backward(&way.gpu(quick), way, heads, &plan, &x, &reference).expect("runs"));
        assert!(all.iter().all(|g| all_bits(g) == all_bits(&all[0])), "{heads:?}, {:?}", plan.segments);
        assert!(all[0].concat().iter().all(|g| g.is_finite()));
    }
}

/// What pages held before reaches no gradient, not even NaN or infinity.
#[test]
fn stale_slots_do_not_leak() {
    let heads = heads(3, 1, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)]), tree(&[(None, 3)])]);
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, &plan, &x);
    for way in WAYS {
        let gpu = way.gpu(Emulation::default());
        let clean = all_bits(&run_backward(&gpu, way, heads, &plan, &x, &reference).expect("runs"));
        for stale in [1e30, f32::NAN, f32::INFINITY] {
            let kv = pages_that_held(&gpu, heads, &plan, &x, stale).expect("filled");
            let got = gradients(&gpu, way, heads, &plan, &x, &reference, &kv).expect("runs");
            assert!(all_bits(&got) == clean, "{way:?}: slots that held {stale}");
        }
    }
}

/// Scores so low that a key of a page which is not there, whose score would be 0, would have an infinite probability.
#[test]
fn what_is_not_there_is_not_seen_where_scores_are_low() {
    let heads = heads(3, 1, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    let mut x = inputs(heads, plan.num_tokens());
    x.q.data_mut().fill(-16.0);
    x.k.data_mut().iter_mut().for_each(|k| *k = 4.0 + k.abs() / 64.0);
    let reference = processor(heads, &plan, &x);
    assert!(reference.lse.iter().all(|lse| *lse < -300.0), "{:?}", reference.lse);
    let all = WAYS.map(|way| run_backward(&way.gpu(Emulation::default()), way, heads, &plan, &x, &reference).expect("runs"));
    for (got, way) in all.iter().zip(WAYS) {
        assert!(got.concat().iter().all(|g| g.is_finite()), "{way:?}");
        assert!(all_bits(got) == all_bits(&all[0]), "{way:?}: other bits");
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
    let modes: Vec<Emulation> = modes().into_iter().step_by(3).collect();
    each_is_found(Source::ATTENTION_BWD, Way::Ampere, "struct Gradients {", &mutants, heads(3, 1, 64), &plan, &modes);
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
        mutant("queries: another page", "a.row_of_page(pages[t])", "a.row_of_page(pages[0])"),
        mutant("queries: a pair too many is written", "if (pair >= item.rows * a.of_token())", "if (pair > item.rows * a.of_token())"),
    ];
    let of_pages = [
        mutant("pages: do not wait for the page", "    ptx::wait(page, 0);\n", ""),
        mutant("pages: do not wait for pairs", "    ptx::wait(&barriers.full[turn.stage], turn.parity);\n", ""),
        mutant(
            "pages: no wait for a free stage",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    ptx::arrive_and_expect(full",
            "    ptx::arrive_and_expect(full",
        ),
        mutant(
            "pages: what is known is written too early",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    const Run at",
            "    const Run at",
        ),
        mutant("pages: pairs without what is known of them", "TILE_ARRIVALS = 3;", "TILE_ARRIVALS = 1;"),
        mutant(
            "pages: a warp does not wait for itself",
            "    __syncwarp();\n    if (pair % 32 == 0) ptx::arrive(&b",
            "    if (pair % 32 == 0) ptx::arrive(&b",
        ),
        mutant("pages: a warp is still reading", "    __syncwarp();  // all lanes", "    // all lanes"),
        mutant("pages: pairs are freed too early", "    ptx::wgmma_wait<0>();\n    __syncwarp();", "    __syncwarp();"),
        mutant("pages: no mask", "if (all) take_scores<false>", "if (true) take_scores<false>"),
        mutant(
            "pages: the last run is lost",
            "n < tiles; n++, turn.next()) {\n    const u8",
            "n + 1 < tiles; n++, turn.next()) {\n    const u8",
        ),
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
        mutant("pages: a run that is not there", "return {tokens, 0};", "return {tokens, 32};"),
    ];
    let modes = [modes()[0], modes()[4]];
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    let (queries, pages) = (Source::ATTENTION_BWD_Q_HOPPER, Source::ATTENTION_BWD_KV_HOPPER);
    each_is_found(queries, Way::TwoPasses, "struct QueryBarriers {", &[&of_both[..], &of_queries].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, Way::TwoPasses, "struct Runs {", &[&of_both[..], &of_pages].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, Way::TwoPasses, "struct Runs {", &of_two_runs, heads(3, 1, 96), &plan, &modes);
    // Stages of the first pass are used again behind the third page.
    let plan = Plan::for_trees(&[tree(&[(None, 194)])]);
    each_is_found(queries, Way::TwoPasses, "struct QueryBarriers {", &of_stages, heads(1, 1, 64), &plan, &modes);
}

/// Mistakes of the pass that forms all gradients at once.
#[test]
fn every_mistake_in_one_pass_is_found() {
    let of_turns = [
        mutant("a turn is not waited for", "      ptx::wait_for(taken", "      if (false) ptx::wait_for(taken"),
        mutant("the thread that waits is not waited for", "        ptx::wait(&barriers.turn[turn.stage], turn.parity);\n", ""),
        mutant(
            "it waits for no free stage",
            "      ptx::wait(&b.tiles.free[stage.stage], stage.parity ^ 1);\n      ptx::wait_for",
            "      ptx::wait_for",
        ),
        mutant("sums begin afresh", "if (own.turn == 0)", "if (true)"),
        mutant("sums are not fenced", "    __threadfence();\n", ""),
        mutant("a turn ends too early", "    ptx::named_barrier(2 + group, GROUP);  // the whole warpgroup has\n", ""),
        mutant("a turn does not end", "    atomicAdd(turns.taken", "    if (false) atomicAdd(turns.taken"),
        mutant("the last turn is one before", "== turn; }", "<= turn + 1; }"),
        mutant("another tile's sums", "turns.sums + (((own.tile(n)", "turns.sums + (((own.tile(0)"),
        mutant("another place in the sums", "from + j * GROUP * 4", "from + j * GROUP"),
    ];
    let of_pages = [
        mutant("do not wait for pages", "    ptx::wait(barriers.pages, 0);\n", ""),
        mutant("do not wait for pairs", "      ptx::wait(&barriers.tiles.full[turn.stage], turn.parity);\n", ""),
        mutant("keys beyond are not cleared", "if (own.filled(group) < ROWS) clear_behind", "if (false) clear_behind"),
        mutant("a missing page is not cleared", "if (own.page(group) == NO_PAGE) clear_behind", "if (false) clear_behind"),
        mutant("the scores are not waited for", "ptx::wgmma_wait<1>();  // the scores", "// the scores"),
        mutant("dp is not waited for", "ptx::wgmma_wait<1>();  // dp", "// dp"),
        mutant("gradients of scores are not fenced", "      ptx::fence_async_proxy();\n      issue_sum", "      issue_sum"),
        mutant(
            "the other page's are not waited for",
            "ptx::named_barrier(1, MAX_GROUPS * GROUP);",
            "ptx::named_barrier(4 + group, GROUP);",
        ),
        mutant("one turn of them", "shared + P::SCORES + n % 2 * 2 * P::SCORE_BYTES", "shared + P::SCORES"),
        mutant("their chunks are not exchanged", "(j ^ key % 8) << 4", "j << 4"),
        mutant("of one page", "k < 8; k++) {\n      const u8 *keys", "k < 4; k++) {\n      const u8 *keys"),
        mutant("both have the first page's positions", ": own.begin + group * ROWS;", ": own.begin;"),
        mutant("no mask", "if (all) take_scores<false>", "if (true) take_scores<false>"),
        mutant("a tile that does not see all is not masked", "+ ROWS <= least + 1", "+ ROWS <= least + ROWS"),
        mutant("where there is no pair something is seen", "-minus_infinity();", "0.0f;"),
        mutant(
            "both have the first page",
            "const u8 *keys = shared + group * Tile<D>::BYTES;\n    tile",
            "const u8 *keys = shared;\n    tile",
        ),
        mutant("pairs are freed too early", "      ptx::wgmma_wait<0>();\n      // (What", "      // (What"),
        mutant("a pair too many is written", "if (in_run >= run.rows", "if (in_run > run.rows"),
        mutant(
            "the last tile is lost",
            "n < own.count; n++, turn.next()) {\n      const u8",
            "n + 1 < own.count; n++, turn.next()) {\n      const u8",
        ),
    ];
    // Of heads whose queries have two blocks of columns, and whose tiles have two runs.
    let of_columns = [
        mutant(
            "both add to the first columns",
            "turns.sums + (((own.tile(n) * a.kv_heads + a.kv_head) * Tile<D>::BLOCKS + columns)",
            "turns.sums + (((own.tile(n) * a.kv_heads + a.kv_head) * Tile<D>::BLOCKS)",
        ),
        mutant("both have the first columns of the keys", " + columns * Tile<D>::BLOCK_BYTES + k % 4", " + k % 4"),
        mutant("columns beyond the head are written", "if (column < D)", "if (true)"),
        mutant("one run in the place of two", "own.token(n) + r * most, left", "own.token(n), left"),
    ];
    let (source, way) = (Source::ATTENTION_BWD_HOPPER, Way::OnePass);
    let modes = modes();
    let found_in = [modes[0], modes[4]];
    let unbroken = "struct KeyBarriers {";
    // Two blocks of two pages, the second of the last not full; then blocks of one page each, the last of two answers.
    let long = Plan::for_trees(&[tree(&[(None, 194)])]);
    let branched = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    each_is_found(source, way, unbroken, &of_turns, heads(1, 1, 64), &long, &found_in);
    each_is_found(source, way, unbroken, &of_pages, heads(3, 1, 64), &branched_and_long(), &found_in);
    each_is_found(source, way, unbroken, &of_columns, heads(3, 1, 96), &branched, &found_in);
    // What has to be seen where blocks are at work side by side.
    let half = [mutant("half a turn is enough", "own.turn * Tile<D>::BLOCKS", "own.turn")];
    each_is_found(source, way, unbroken, &half, heads(3, 1, 96), &branched, &modes[5..]);
    // Work by the block's number is right as long as blocks begin in that order, and else waits for what has not begun.
    let by_number = [mutant("work by the block's number", "begun[0] = atomicAdd(counters, 1u)", "begun[0] = blockIdx.x")];
    each_is_found(source, way, unbroken, &by_number, heads(1, 1, 64), &long, &modes[1..2]);
}

/// A history of two blocks of two pages, and two of one page each.
fn branched_and_long() -> Plan {
    Plan::for_trees(&[tree(&[(None, 150)]), tree(&[(None, 70), (Some(0), 2)])])
}

#[allow(clippy::too_many_arguments)] // what a mistake is looked for with
fn each_is_found(source: Source, way: Way, unbroken: &'static str, mutants: &[Mutant], heads: Heads, plan: &Plan, found_in: &[Emulation]) {
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, plan, &x);
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let got = run_backward(gpu, way, heads, plan, &x, &reference)?;
        Ok(got.iter().zip(&reference.gradients).all(|(got, want)| error(got, want) <= BOUND))
    };
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken), heads.head_dim);
    for mode in modes() {
        assert!(right(&emulator::open(&unbroken, way.on(mode))).expect("the kernel itself raises no alarm"), "and its numbers are right");
    }
    for mutant in mutants {
        let library = broken(source, mutant, heads.head_dim);
        for &mode in found_in {
            assert!(!right(&emulator::open(&library, way.on(mode))).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
