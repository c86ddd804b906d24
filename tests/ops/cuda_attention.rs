//! Attention's kernels against the processor's op on the same bf16 inputs: on the emulator under every schedule, and on a GPU where there is one.

use crate::attention::{Inputs, forest, heads, histories, scale, tree};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator::{self, KernelText};
use crate::support::{bits, close, error, rows, wide};
use half::bf16;
use sorft_native::Result;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::cuda::work::Cut;
use sorft_native::tensor::ops::attention::cuda::{self, DeviceKv, PageCopies, Work};
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::plan::{Plan, Segment, Tree};
use std::sync::Arc;

/// Of o: rounded to bf16, from exponentials that are.
const OUTPUT_BOUND: f64 = 4e-3;
/// Of the log of the sum of exponentials, in f32.
const LSE_BOUND: f64 = 1e-6;

/// Numbers that bf16 holds.
pub fn rounded(x: &Tensor) -> Tensor {
    Tensor::from_vec(x.shape(), x.data().iter().map(|x| bf16::from_f32(*x).to_f32()).collect())
}

pub fn inputs(heads: Heads, tokens: usize) -> Inputs {
    let x = Inputs::new(heads, tokens, 1.0);
    Inputs { q: rounded(&x.q), k: rounded(&x.k), v: rounded(&x.v), d_o: rounded(&x.d_o) }
}

pub fn upload(gpu: &Arc<Gpu>, x: &Tensor) -> Result<Buffer> {
    Buffer::from_f32(gpu, DType::Bf16, x.data())
}

fn slots(gpu: &Arc<Gpu>, slots: &[(u32, u32)]) -> Result<Buffer> {
    Buffer::from_u32(gpu, &slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect::<Vec<_>>())
}

/// The pages of a plan, filled; unwritten slots are what the device's memory holds, which the emulator reports if it is read.
pub fn pages(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs) -> Result<DeviceKv> {
    let mut kv = DeviceKv::new(gpu, heads, plan.num_pages)?;
    kv.write(&slots(gpu, &plan.kv_slots)?, &upload(gpu, &x.k)?, &upload(gpu, &x.v)?)?;
    kv.copy(&PageCopies::new(gpu, &plan.copies)?)?;
    Ok(kv)
}

/// The same in pages that were full of one number.
pub fn pages_that_held(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs, number: f32) -> Result<DeviceKv> {
    let all: Vec<(u32, u32)> = (0..plan.num_pages as u32 * 64).map(|i| (i / 64, i % 64)).collect();
    let width = heads.num_kv_heads * heads.head_dim;
    let filling = upload(gpu, &Tensor::from_vec(&[all.len(), width], vec![number; all.len() * width]))?;
    let mut kv = DeviceKv::new(gpu, heads, plan.num_pages)?;
    kv.write(&slots(gpu, &all)?, &filling, &filling)?;
    kv.write(&slots(gpu, &plan.kv_slots)?, &upload(gpu, &x.k)?, &upload(gpu, &x.v)?)?;
    kv.copy(&PageCopies::new(gpu, &plan.copies)?)?;
    Ok(kv)
}

/// o and the logs of the sums.
pub fn run(gpu: &Arc<Gpu>, heads: Heads, plan: &Plan, x: &Inputs, cut: Cut) -> Result<[Vec<f32>; 2]> {
    let kv = pages(gpu, heads, plan, x)?;
    let work = Work::cut(gpu, &plan.segments, heads, cut)?;
    let (o, lse) = cuda::forward(gpu, &upload(gpu, &x.q)?, &kv, &work, scale(heads))?;
    Ok([o.to_f32()?, lse.to_f32()?])
}

fn processor(heads: Heads, plan: &Plan, x: &Inputs) -> [Vec<f64>; 2] {
    let mut kv = KvLayer::new(heads, plan.num_pages);
    kv.write(&plan.kv_slots, &x.k, &x.v);
    kv.copy(&plan.copies);
    let (o, saved) = attention::forward(&x.q, &kv, &plan.segments, scale(heads));
    let lse = saved.max.iter().zip(&saved.inv_sum).map(|(m, l)| f64::from(*m) - f64::from(*l).ln()).collect();
    [wide(o.data()), lse]
}

fn compare(what: &str, [o, lse]: &[Vec<f32>; 2], want: &[Vec<f64>; 2]) {
    close(&format!("o, {what}"), o, &want[0], OUTPUT_BOUND);
    // A relative error says nothing of a logarithm near 0, so those of a token that sees only itself are not left alone with it.
    close(&format!("lse, {what}"), lse, &want[1], LSE_BOUND);
}

fn both_bits(x: &[Vec<f32>; 2]) -> [Vec<u32>; 2] {
    [bits(&x[0]), bits(&x[1])]
}

/// One long sequence and many short ones, across the end of a split.
fn long_and_short() -> Vec<Tree> {
    let mut trees = vec![tree(&[(None, 293)])];
    trees.extend([1, 2, 3, 5, 7, 11].map(|n| tree(&[(None, n)])));
    trees
}

/// The same bits under every schedule and with either cut, near the processor's numbers.
#[test]
fn forests_equal_the_processor_under_every_schedule() {
    let group = || vec![tree(&[(None, 67), (Some(0), 3), (Some(1), 62), (Some(0), 1), (Some(0), 0), (Some(4), 2)]), tree(&[(None, 1)])];
    for (heads, trees) in [(heads(3, 1, 64), group()), (heads(2, 2, 96), group()), (heads(5, 1, 128), vec![tree(&[(None, 71)])])] {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let want = processor(heads, &plan, &x);
        let mut first = None;
        let on_ampere = |mode| Emulation { compute_capability: (8, 0), ..mode };
        for mode in modes().into_iter().flat_map(|mode| [on_ampere(mode), mode]) {
            let cuts = if mode.compute_capability == (8, 0) { &[Cut::Whole, Cut::Split][..] } else { &[Cut::Whole] };
            for &cut in cuts {
                let got = run(&emulator::gpu(mode), heads, &plan, &x, cut).unwrap_or_else(|e| panic!("{heads:?}, {mode:?}, {cut:?}: {e}"));
                compare(&format!("{heads:?}"), &got, &want);
                let got = both_bits(&got);
                assert!(*first.get_or_insert(got.clone()) == got, "{heads:?}, {mode:?}, {cut:?}: other bits");
            }
        }
    }
}

/// Groups of 1 to 8 query heads, segments of every kind, histories over several splits; by mma.sync and by wgmma.
#[test]
fn shapes_equal_the_processor() {
    let quick = |compute_capability| Emulation { check: false, compute_capability, ..Emulation::default() };
    let ways = [(quick((8, 0)), Cut::Whole), (quick((8, 0)), Cut::Split), (quick((9, 0)), Cut::Whole)];
    let cases = [
        (heads(1, 1, 64), vec![tree(&[(None, 1)])]),
        (heads(2, 1, 64), forest()),
        (heads(4, 1, 96), forest()),
        (heads(12, 2, 64), long_and_short()),
        (heads(7, 1, 64), vec![tree(&[(None, 530), (Some(0), 1), (Some(0), 13)])]),
        (heads(8, 1, 128), long_and_short()),
    ];
    for (heads, trees) in cases {
        let plan = Plan::for_trees(&trees);
        let x = inputs(heads, plan.num_tokens());
        let want = processor(heads, &plan, &x);
        let runs = ways.map(|(mode, cut)| run(&emulator::gpu(mode), heads, &plan, &x, cut).expect("runs"));
        compare(&format!("{heads:?}"), &runs[0], &want);
        assert!(both_bits(&runs[0]) == both_bits(&runs[1]), "{heads:?}: whole histories and splits");
        assert!(both_bits(&runs[0]) == both_bits(&runs[2]), "{heads:?}: mma.sync and wgmma");
    }
}

#[test]
fn forests_equal_the_processor_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for heads in [heads(3, 1, 64), heads(14, 2, 64), heads(8, 8, 96), heads(8, 1, 128)] {
        for trees in [forest(), long_and_short(), vec![tree(&[(None, 2000), (Some(0), 100), (Some(0), 63)])]] {
            let plan = Plan::for_trees(&trees);
            let x = inputs(heads, plan.num_tokens());
            let runs = [Cut::Whole, Cut::Split].map(|cut| run(&gpu, heads, &plan, &x, cut).expect("runs"));
            compare(&format!("{heads:?}"), &runs[0], &processor(heads, &plan, &x));
            assert!(both_bits(&runs[0]) == both_bits(&runs[1]), "{heads:?}: whole histories and splits");
        }
    }
}

/// A token's bits are the same whether its history is shared with siblings or its own, and whatever else is in the batch.
#[test]
fn shared_and_repeated_histories_agree() {
    let heads = heads(7, 1, 64);
    let trees = [tree(&[(None, 260), (Some(0), 5), (Some(0), 30)]), tree(&[(None, 9)])];
    let plan = Plan::for_trees(&trees);
    let x = inputs(heads, plan.num_tokens());
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let [o, _] = run(&gpu, heads, &plan, &x, Cut::Whole).expect("runs");
    let o = Tensor::from_vec(x.q.shape(), o);
    for segment in &plan.segments {
        let history = &histories(&trees)[segment.tokens.end - 1];
        let pick = |t: &Tensor| {
            let data: Vec<f32> = history.iter().flat_map(|&r| t.row(r).to_vec()).collect();
            Tensor::from_vec(&[history.len(), t.cols()], data)
        };
        let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(pick);
        let alone = Plan::for_trees(&[tree(&[(None, history.len())])]);
        let [alone, _] = run(&gpu, heads, &alone, &Inputs { q, k, v, d_o }, Cut::Whole).expect("runs");
        assert!(bits(&alone) == bits(pick(&o).data()), "segment at {:?}", segment.tokens);
    }
}

/// Decoding the answers of one prompt, a token of each at a time, reads the prompt's pages once for all and gives the bits of training.
#[test]
fn decode_and_training_agree() {
    let heads = heads(6, 2, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 259), (Some(0), 4), (Some(0), 3), (Some(0), 4)]), tree(&[(None, 258)])]);
    let x = inputs(heads, plan.num_tokens());
    let gpu = emulator::gpu(Emulation::default());
    let [o, _] = run(&gpu, heads, &plan, &x, Cut::Whole).expect("runs");
    let o = Tensor::from_vec(x.q.shape(), o);
    let kv = pages(&gpu, heads, &plan, &x).expect("filled");
    for step in 0..4 {
        let alive: Vec<usize> = (1..5).filter(|s| plan.segments[*s].tokens.len() > step).collect();
        let row = |s: &usize| plan.segments[*s].tokens.start + step;
        let segments: Vec<Segment> = alive
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let (start, pages) = (plan.segments[*s].start + step, plan.segments[*s].pages.clone());
                Segment { parent: None, tokens: i..i + 1, start, pages }
            })
            .collect();
        let work = Work::new(&gpu, &segments, heads).expect("uploaded");
        let pick = |t: &Tensor| Tensor::from_vec(&[alive.len(), t.cols()], alive.iter().flat_map(|s| t.row(row(s)).to_vec()).collect());
        let (got, _) = cuda::forward(&gpu, &upload(&gpu, &pick(&x.q)).expect("uploaded"), &kv, &work, scale(heads)).expect("runs");
        assert!(bits(&got.to_f32().expect("downloaded")) == bits(pick(&o).data()), "step {step}");
    }
}

/// The pages of generation hold what earlier sequences left there. Nothing of it reaches a token, not even NaN or infinity.
#[test]
fn stale_slots_do_not_leak() {
    let heads = heads(3, 1, 64);
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)]), tree(&[(None, 3)])]);
    let x = inputs(heads, plan.num_tokens());
    let gpu = emulator::gpu(Emulation::default());
    let clean = both_bits(&run(&gpu, heads, &plan, &x, Cut::Whole).expect("runs"));
    for stale in [1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let kv = pages_that_held(&gpu, heads, &plan, &x, stale).expect("filled");
        let work = Work::cut(&gpu, &plan.segments, heads, Cut::Whole).expect("uploaded");
        let (o, lse) = cuda::forward(&gpu, &upload(&gpu, &x.q).expect("uploaded"), &kv, &work, scale(heads)).expect("runs");
        assert!(clean == both_bits(&[o.to_f32().expect("downloaded"), lse.to_f32().expect("downloaded")]), "slots that held {stale}");
    }
}

/// One mistake in the kernel: what stands there, what instead.
#[derive(Clone, Copy)]
pub struct Mutant {
    pub name: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

pub const fn mutant(name: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { name, from, to }
}

/// Headers that mistakes may stand in.
const HEADERS: [(&str, &str); 4] = [
    ("attention_bwd.cuh", include_str!("../../kernels/attention_bwd.cuh")),
    ("softmax.cuh", include_str!("../../kernels/softmax.cuh")),
    ("attention_hopper.cuh", include_str!("../../kernels/attention_hopper.cuh")),
    ("attention_bwd_hopper.cuh", include_str!("../../kernels/attention_bwd_hopper.cuh")),
];

/// The library of a source with one mistake, which may stand in a header, with kernels for heads of one width only.
pub fn broken(source: Source, mutant: &Mutant, head_dim: usize) -> std::path::PathBuf {
    let mut whole = source.text.to_owned();
    for (name, text) in HEADERS.iter().filter(|(_, text)| text.contains(mutant.from)) {
        whole = whole.replace(&format!("#include \"{name}\""), &text.replace("#pragma once", ""));
    }
    assert_eq!(whole.matches(mutant.from).count(), 1, "{}: the place is unique", mutant.name);
    let narrow: Vec<&str> =
        whole.lines().map(|l| if l.starts_with("ATTENTION_") && !l.contains(&format!("({head_dim}")) { "" } else { l }).collect();
    let text = narrow.join("\n").replacen(mutant.from, mutant.to, 1);
    let kernels = |source: Source, text: String| KernelText { name: source.file.to_owned(), defines: Vec::new(), text };
    let mut all = vec![kernels(source, text), kernels(Source::KV_PAGES, Source::KV_PAGES.text.to_owned())];
    let passes = [Source::ATTENTION_BWD_Q_HOPPER, Source::ATTENTION_BWD_KV_HOPPER];
    let others = match source {
        _ if passes.contains(&source) => [&passes[..], &[Source::ATTENTION_BWD]].concat(), // the other pass, and for delta
        Source::ATTENTION_BWD_HOPPER => vec![Source::ATTENTION_BWD],
        _ => Vec::new(),
    };
    all.extend(others.into_iter().filter(|s| *s != source).map(|s| kernels(s, s.text.to_owned())));
    emulator::library(&all)
}

/// Without a barrier, with another wait or mask, and so on, the checker objects or the numbers are wrong, under every schedule.
#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant("no barrier", "__syncthreads();  // the tile has landed for all, and all have left the other stage", ""),
        mutant("a warp's barrier", "__syncthreads();  // the tile", "__syncwarp();  // the tile"),
        mutant(
            "barrier before the wait",
            "ptx::cp_async_wait<0>();\n    __syncthreads();",
            "__syncthreads();\n    ptx::cp_async_wait<0>();",
        ),
        mutant("waits for all groups but one", "ptx::cp_async_wait<0>();", "ptx::cp_async_wait<1>();"),
        mutant("no wait", "ptx::cp_async_wait<0>();", ""),
        mutant("one stage", "(next - first) % 2 * 2 * PAGE", "(t - first) % 2 * 2 * PAGE"),
        mutant("sees one key too many", "> position[e / 2]", "> position[e / 2] + 1"),
        mutant("sees one key too few", "> position[e / 2]", ">= position[e / 2]"),
        mutant("masks by the wrong row", "position[e / 2]", "position[e % 2]"),
        mutant("no mask", "if (t * ROWS + j * 8 + lane % 4 * 2 + e % 2 > position[e / 2])", "if (false)"),
        mutant("reads a row too many", "item.end - next * ROWS", "item.end + 1 - next * ROWS"),
        mutant("first page's rows", "item.end - first * ROWS", "ROWS"),
        mutant("the quad is not asked", "top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));", ""),
        mutant("half of the sum", "sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 2);", ""),
        mutant("outputs do not shrink", "out[j][2 * r] *= shrinks[r], out[j][2 * r + 1] *= shrinks[r];", ";"),
        mutant(
            "the neighbour's head",
            "blockIdx.y * group + pair % group;\n    const float inverse",
            "blockIdx.y * group + (pair + 1) % group;\n    const float inverse",
        ),
        mutant(
            "a pair too many is written",
            "if (pair >= item.rows * group) continue;\n    const i64 at = (i64)a.rows",
            "if (pair > item.rows * group) continue;\n    const i64 at = (i64)a.rows",
        ),
    ];
    let of_splits = [
        mutant("a split is not begun afresh", "before.keep(state);\n      state.clear();", "before.keep(state);"),
        mutant("a split is lost", "if (before.any) before.join(state, a.scale_log2);\n      before.keep", "before.keep"),
    ];
    each_is_found(Source::ATTENTION, "struct Merge {", &mutants, heads(3, 1, 64), 131, (8, 0));
    each_is_found(Source::ATTENTION, "struct Merge {", &of_splits, heads(3, 1, 64), 515, (8, 0));
}

/// Mistakes with pages by TMA and products by warpgroups.
#[test]
fn every_mistake_on_hopper_is_found() {
    let mutants = [
        mutant("does not wait for a free page", "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n", ""),
        mutant("does not wait for keys", "    ptx::wait(&barriers.keys[at.stage], at.parity);\n", ""),
        mutant("does not wait for values", "    ptx::wait(&barriers.values[turn.stage], turn.parity);\n", ""),
        mutant("values wait for keys", "ptx::wait(&barriers.values[turn.stage]", "ptx::wait(&barriers.keys[turn.stage]"),
        mutant("parities stay", "stage = 0, parity ^= 1", "stage = 0"),
        mutant(
            "a page is freed too early",
            "ptx::wgmma_wait<0>();\n        state.shrink_outputs(shrinks);\n      }\n      leave_page();",
            "leave_page();\n        ptx::wgmma_wait<0>();\n        state.shrink_outputs(shrinks);\n      }",
        ),
        mutant("a page is freed by half", "groups * GROUP / 32);", "groups * GROUP / 64);"),
        mutant("scores are not waited for", "ptx::wgmma_wait<1>();  // the scores", "// the scores"),
        mutant("outputs are not waited for", "ptx::wgmma_wait<0>();\n        state.shrink_outputs", "state.shrink_outputs"),
        mutant(
            "the queries are not fenced",
            "    ptx::fence_async_proxy();\n    ptx::named_barrier(1 + group",
            "    ptx::named_barrier(1 + group",
        ),
        mutant("nobody waits for the queries", "    ptx::named_barrier(1 + group, GROUP);\n", ""),
        mutant("the queries have not landed", "    ptx::cp_async_wait<0>();\n", ""),
        mutant("the zeros are not fenced", "  ptx::fence_async_proxy();\n  ptx::named_barrier(id", "  ptx::named_barrier(id"),
        mutant("each group waits for its own zeros", "named_barrier(id, threads)", "named_barrier(id + thread / GROUP, GROUP)"),
        mutant(
            "both take the first queries",
            "const u8 *queries = shared + L::QUERIES + group * Tile<D>::BYTES",
            "const u8 *queries = shared + L::QUERIES",
        ),
        mutant("sees one key too many", "> position[i / 2]", "> position[i / 2] + 1"),
        mutant("sees one key too few", "> position[i / 2]", ">= position[i / 2]"),
        mutant("a page that is not seen whole is not masked", "ROWS <= least + 1", "ROWS <= least + ROWS"),
        mutant("a split is not begun afresh", "before.keep(state);\n        state.clear();", "before.keep(state);"),
        mutant("a split is lost", "if (before.any) before.join(state, a.scale_log2);\n        before.keep", "before.keep"),
        mutant("states of the groups meet", "shared + L::BEFORE + group * L::BEFORE_BYTES", "shared + L::BEFORE"),
        mutant("outputs do not shrink", "        state.shrink_outputs(shrinks);\n", ""),
        mutant("the next keys lie elsewhere", "BLOCK_BYTES + k % 4 * 32", "BLOCK_BYTES + k % 4 * 16"),
        mutant("the next values lie elsewhere", "b + k * 2048", "b + k * 1024"),
        mutant(
            "fewer bytes are announced",
            "arrive_and_expect(&b.values[turn.stage], Tile<D>::BYTES)",
            "arrive_and_expect(&b.values[turn.stage], 16)",
        ),
        mutant(
            "a pair too many is written",
            "if (pair >= w.item.rows * of_token) continue;",
            "if (pair > w.item.rows * of_token) continue;",
        ),
    ];
    each_is_found(Source::ATTENTION_HOPPER, "struct Barriers {", &mutants, heads(30, 1, 64), 515, (9, 0));
}

fn each_is_found(source: Source, unbroken: &'static str, mutants: &[Mutant], heads: Heads, length: usize, compute_capability: (u32, u32)) {
    let plan = Plan::for_trees(&[tree(&[(None, length)]), tree(&[(None, 2)])]);
    let x = inputs(heads, plan.num_tokens());
    let want = processor(heads, &plan, &x);
    // The last rows alone: they see everything, and cost little.
    let begin = length - 3;
    let segments =
        [(begin..length, begin, 0), (length..length + 2, 0, 1)].map(|(tokens, start, s)| (tokens, start, plan.segments[s].pages.clone()));
    let run = |gpu: &Arc<Gpu>| -> Result<bool> {
        let kv = pages(gpu, heads, &plan, &x)?;
        let mut first = 0;
        let segments = segments.clone().map(|(tokens, start, pages)| {
            let own = first..first + tokens.len();
            first = own.end;
            Segment { parent: None, tokens: own, start, pages }
        });
        let work = Work::cut(gpu, &segments, heads, Cut::Whole)?;
        let (o, lse) = cuda::forward(gpu, &upload(gpu, &rows(&x.q, begin..begin + 5))?, &kv, &work, scale(heads))?;
        let (o_error, lse_error) =
            (error(&o.to_f32()?, &want[0][begin * x.q.cols()..]), error(&lse.to_f32()?, &want[1][begin * heads.num_heads..]));
        Ok(o_error <= OUTPUT_BOUND && lse_error <= LSE_BOUND) // NaN is not
    };
    let open = |library: &std::path::Path, mode| emulator::open(library, Emulation { compute_capability, ..mode });
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken), heads.head_dim);
    for mode in modes() {
        assert!(run(&open(&unbroken, mode)).expect("the kernel itself raises no alarm"), "and its numbers are right");
    }
    for mutant in mutants {
        let library = broken(source, mutant, heads.head_dim);
        for mode in [modes()[0], modes()[4]] {
            let found = !run(&open(&library, mode)).unwrap_or(false);
            assert!(found, "{} under {mode:?}", mutant.name);
        }
    }
}
