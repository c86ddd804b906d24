//! Attention's gradients on a device against the processor's on the same bf16 inputs.

use crate::attention::{Inputs, forest, heads, scale, tree};
use crate::cuda_attention::{inputs, pages, pages_that_held, upload};
use crate::cuda_checker::modes;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, close, rows, wide};
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu};
use sorft_native::tensor::ops::attention::cuda::{self, BackwardWork, DeviceKv, Passes, Work};
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::philox::Philox;
use sorft_native::tensor::plan::{Plan, Tree};
use std::sync::Arc;

/// p and ds are rounded to bf16 before their products, and so are the results.
pub const BOUND: f64 = 6e-3;

/// The processor's (o, lse) and (dq, dk, dv).
pub struct Reference {
    o: Vec<f32>,
    lse: Vec<f32>,
    pub gradients: [Vec<f64>; 3],
}

pub fn processor(heads: Heads, plan: &Plan, x: &Inputs) -> Reference {
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
pub fn run_backward(gpu: &Arc<Gpu>, way: Way, heads: Heads, plan: &Plan, x: &Inputs, reference: &Reference) -> Result<[Vec<f32>; 3]> {
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
pub enum Way {
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
    pub fn on(self, mode: Emulation) -> Emulation {
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
