//! AdamW with moments in 8-bit codes: against a twin in f64 that knows the rule of the code alone, and what such moments are apt to do wrong:
//! second moments that cannot move, quotients that blow up, first moments that never end.

use crate::support::{bits, normal, same_on_any_threads, wide};
use proptest::prelude::*;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::adamw::codes::{BLOCK, Coded, FIRST, Rounding, SECOND, first, second};
use sorft_native::tensor::ops::adamw::{Step, panels};
use sorft_native::tensor::philox::Philox;

/// The scalars of step `t`, from 1.
fn scalars(t: i32, (b1, b2): (f64, f64), lr: f64) -> Step {
    Step {
        decay: (1.0 - lr * 0.1) as f32,
        one_minus_beta1: (1.0 - b1) as f32,
        beta2: b2 as f32,
        one_minus_beta2: (1.0 - b2) as f32,
        eps: 1e-8,
        step_size: (lr / (1.0 - b1.powi(t))) as f32,
        bias2_sqrt: (1.0 - b2.powi(t)).sqrt() as f32,
        grad_scale: 0.7,
    }
}

pub fn rounding(step: u32) -> Rounding {
    Rounding { key: [0x1234_5678, 0x9abc_def0], step, tensor: 3 }
}

/// Gradients whose sizes spread over e^(`spread` z), each number's own.
fn gradients(n: usize, spread: f64, stream: u64) -> Vec<f32> {
    let random = Philox::new(5, 1);
    normal(n, stream).iter().enumerate().map(|(i, x)| (f64::from(*x) * (spread * random.normal(i as u64, 7)).exp()) as f32).collect()
}

/// The levels of a code, from 0 to 1.
fn levels(f: u32) -> Vec<f64> {
    let level = |k: u32| {
        let exponent = k.ilog2() as i32;
        let rest = f64::from(k + 1 - (1 << exponent)) / f64::from(1 << exponent);
        16f64.powi(exponent - f as i32) * (1.0 / 16.0 + 15.0 / 16.0 * rest)
    };
    std::iter::once(0.0).chain((1..2 << f).map(level)).collect()
}

/// Fails unless every number of a block is coded as a level next to its part of the scale, which is the largest. `slack`: how far f32's own
/// rounding may have moved each number.
fn next_to(what: &str, exact: &[f64], slack: &[f64], coded: &[f32], levels: &[f64], zero_is_for_zeros: bool) {
    let largest = exact.iter().fold(1e-300, |m, x| f64::max(m, x.abs()));
    // Of the scale.
    let off = 1e-6 + slack.iter().fold(0.0, |m, x| f64::max(m, *x)) / largest;
    for ((x, slack), c) in exact.iter().zip(slack).zip(coded) {
        let (part, slack, got) = (x.abs() / largest, (slack + off * x.abs()) / largest, f64::from(c.abs()) / largest);
        assert!(*c == 0.0 || x.abs() / largest <= slack || (*x < 0.0) == (*c < 0.0), "{what}: {c} for {x}");
        assert!(!zero_is_for_zeros || (*c == 0.0) == (*x == 0.0), "{what}: {c} for {x}");
        let low = levels[levels.partition_point(|l| *l <= part - slack).saturating_sub(1)];
        let high = levels[levels.partition_point(|l| *l < part + slack).min(levels.len() - 1)];
        assert!(got >= low * (1.0 - off) && got <= high * (1.0 + off), "{what}: {got} for {part}, between {low} and {high}");
    }
}

/// A step of the twin: weight and moments in f64 from the same codes and numbers, and how far f32 may move the first moment.
fn twin(p: f32, g: f32, m: f32, v: f32, s: Step) -> [f64; 4] {
    let [p, g, m, v] = [p, g, m, v].map(f64::from);
    let g = g * f64::from(s.grad_scale);
    let slack = 2e-7 * (g.abs() + m.abs());
    let (m, v) = (m + f64::from(s.one_minus_beta1) * (g - m), v * f64::from(s.beta2) + g * g * f64::from(s.one_minus_beta2));
    let quotient = m / (v.sqrt() / f64::from(s.bias2_sqrt) + f64::from(s.eps));
    [p * f64::from(s.decay) - f64::from(s.step_size) * quotient, m, v, slack]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any state that a few steps lead to: weights as near to f64 as f32 allows, moments at a level next to the exact one.
    #[test]
    fn a_step_is_the_twin_s(rows in 1usize..70, cols in 1usize..600, spread in 0.0f64..4.0, seed in 0u64..1000, b2 in 0.9f64..0.9999, lr in 1e-5f64..1e-1) {
        let n = rows * cols;
        let mut p = PanelMatrix::from_rows(rows, cols, &normal(n, seed));
        let mut moments = panels::Moments::zeros(rows, cols);
        for t in 1..4 {
            let s = scalars(t, (0.9, b2), lr);
            let g = gradients(n, spread, seed + t as u64);
            let (before, (m0, v0)) = (p.to_rows(), moments.export());
            let (m0, v0) = (m0.to_f32(cols, first), v0.to_f32(cols, second));
            panels::step(&mut p, &PanelMatrix::from_rows(rows, cols, &g), &mut moments, s, rounding(t as u32));
            let (after, (m1, v1)) = (p.to_rows(), moments.export());
            let (m1, v1) = (m1.to_f32(cols, first), v1.to_f32(cols, second));
            let want: Vec<[f64; 4]> = (0..n).map(|i| twin(before[i], g[i], m0[i], v0[i], s)).collect();
            for (i, [p, ..]) in want.iter().enumerate() {
                let (moved, exact) = (f64::from(after[i]), p);
                prop_assert!((moved - exact).abs() <= 3e-7 * (exact.abs() + lr * 10.0), "p[{i}]: {moved} against {exact}");
            }
            for row in 0..rows {
                for from in (0..cols).step_by(BLOCK) {
                    let block = row * cols + from..row * cols + (from + BLOCK).min(cols);
                    let part = |k: usize| want[block.clone()].iter().map(|w| w[k]).collect::<Vec<f64>>();
                    let none = vec![0.0; block.len()];
                    next_to("m", &part(1), &part(3), &m1[block.clone()], &levels(FIRST), false);
                    next_to("v", &part(2), &none, &v1[block.clone()], &levels(SECOND), true);
                }
            }
        }
    }
}

/// What is saved is what is there, whatever the shape; and padding stays zero.
#[test]
fn moments_go_out_and_come_back() {
    for (rows, cols) in [(1, 1), (31, 255), (33, 256), (64, 257), (5, 700)] {
        let g = PanelMatrix::from_rows(rows, cols, &normal(rows * cols, 2));
        let mut p = PanelMatrix::zeros(rows, cols);
        let mut moments = panels::Moments::zeros(rows, cols);
        panels::step(&mut p, &g, &mut moments, scalars(1, (0.9, 0.999), 1e-3), rounding(1));
        let (m, v) = moments.export();
        assert_eq!((m.codes.len(), m.scales.len()), (rows * cols, rows * cols.div_ceil(BLOCK)));
        let mut again = panels::Moments::zeros(rows, cols);
        again.import(&m, &v);
        assert!(again.export() == (m, v) && p.data().iter().filter(|x| **x != 0.0).count() == rows * cols);
        let run = |mut moments: panels::Moments| {
            let mut p = PanelMatrix::from_rows(rows, cols, &p.to_rows());
            panels::step(&mut p, &g, &mut moments, scalars(2, (0.9, 0.999), 1e-3), rounding(2));
            (bits(p.data()), moments.export())
        };
        assert!(run(again) == run(moments));
    }
}

/// Rows are rounded by their place alone: threads and the rows around them change no bit; another step, tensor or key does.
#[test]
fn bits_do_not_depend_on_threads_or_neighbours() {
    let (rows, cols) = (130, 300);
    let (start, g) = (normal(rows * cols, 1), gradients(rows * cols, 1.0, 2));
    let run = |rows: usize, rounding: Rounding| {
        let mut p = PanelMatrix::from_rows(rows, cols, &start[..rows * cols]);
        let mut moments = panels::Moments::zeros(rows, cols);
        for t in 1..4 {
            let g = PanelMatrix::from_rows(rows, cols, &g[..rows * cols]);
            panels::step(&mut p, &g, &mut moments, scalars(t, (0.9, 0.999), 1e-3), Rounding { step: rounding.step + t as u32, ..rounding });
        }
        let (m, v) = moments.export();
        let codes = m.codes.iter().chain(&v.codes).map(|k| f32::from(*k));
        (p.to_rows(), codes.collect::<Vec<f32>>())
    };
    let (p, codes) = run(rows, rounding(0));
    let (part, part_codes) = run(37, rounding(0));
    assert!(bits(&p[..37 * cols]) == bits(&part) && codes[..37 * cols] == part_codes[..37 * cols]);
    same_on_any_threads("8-bit adamw", || {
        let (p, codes) = run(rows, rounding(0));
        [p, codes].concat()
    });
    let base = rounding(0);
    for other in [Rounding { step: 9, ..base }, Rounding { tensor: 4, ..base }, Rounding { key: [1, 2], ..base }] {
        assert!(run(rows, other).1 != codes, "{other:?}");
    }
}

/// AdamW with moments that are rounded to the nearest level, as a rule that this op does not follow.
struct Nearest {
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Nearest {
    fn step(&mut self, g: &[f64], (b1, b2): (f64, f64)) {
        for (kept, beta, power, levels) in [(&mut self.m, b1, 1, levels(FIRST)), (&mut self.v, b2, 2, levels(SECOND))] {
            kept.iter_mut().zip(g).for_each(|(x, g)| *x = beta * *x + (1.0 - beta) * g.powi(power));
            for block in kept.chunks_mut(BLOCK) {
                let largest = block.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                for x in block {
                    let part = x.abs() / largest;
                    let k = levels.partition_point(|l| *l < part).clamp(1, levels.len() - 1);
                    let near = if part - levels[k - 1] < levels[k] - part { levels[k - 1] } else { levels[k] };
                    *x = near * largest * x.signum();
                }
            }
        }
    }
}

/// Runs `steps` of gradients that a function gives by step and number, and returns weights, and moments as they are kept.
fn run(cols: usize, steps: u32, betas: (f64, f64), g: impl Fn(u32, usize) -> f32) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let rows = 32;
    let (mut p, mut moments) = (PanelMatrix::zeros(rows, cols), panels::Moments::zeros(rows, cols));
    for t in 1..=steps {
        let g: Vec<f32> = (0..rows * cols).map(|i| g(t, i)).collect();
        let s = Step { decay: 1.0, grad_scale: 1.0, ..scalars(t as i32, betas, 1e-3) };
        panels::step(&mut p, &PanelMatrix::from_rows(rows, cols, &g), &mut moments, s, rounding(t));
    }
    let (m, v) = moments.export();
    (p.to_rows(), m.to_f32(cols, first), v.to_f32(cols, second))
}

/// Half of every block's gradients become ten times smaller. Their second moments follow, on the mean to a few per cent; rounded to the nearest
/// they would stay where they were.
#[test]
fn second_moments_follow_gradients_that_shrink() {
    let (cols, steps, betas) = (256, 3000, (0.9, 0.999));
    let random = Philox::new(3, 3);
    let g = |t: u32, i: usize| random.normal(i as u64, u64::from(t)) as f32 * if i.is_multiple_of(2) && t > 300 { 0.1 } else { 1.0 };
    let (_, _, v) = run(cols, steps, betas, g);
    let (mut exact, mut nearest) = (vec![0.0; cols], Nearest { m: vec![0.0; cols], v: vec![0.0; cols] });
    for t in 1..=steps {
        let g: Vec<f64> = (0..cols).map(|i| f64::from(g(t, i))).collect();
        exact.iter_mut().zip(&g).for_each(|(x, g)| *x = betas.1 * *x + (1.0 - betas.1) * g * g);
        nearest.step(&g, betas);
    }
    let small = |v: &[f64]| v.iter().step_by(2).sum::<f64>() / exact.iter().step_by(2).sum::<f64>();
    let (here, there) = (small(&wide(&v[..cols])), small(&nearest.v));
    assert!((here - 1.0).abs() < 0.1, "{here} of what it should be");
    assert!(there > 2.0, "{there}: to the nearest it would have been {here} as well, and this test is empty");
}

/// A gradient that ends: the first moment ends too, however far below its block's largest it is, and the weight comes to rest. (To the nearest,
/// it stops at a level that a step of beta1 does not leave, while the second moment falls, and the weight runs away.)
#[test]
fn first_moments_end_with_their_gradients() {
    let random = Philox::new(4, 4);
    let dead = |i: usize| i.is_multiple_of(8);
    let g = |t: u32, i: usize| if dead(i) && t > 20 { 0.0 } else { 1.0 + 0.3 * random.normal(i as u64, u64::from(t)) as f32 };
    let of = |x: &[f32]| x.iter().enumerate().filter(|(i, _)| dead(*i)).map(|(_, x)| x.abs()).fold(0.0, f32::max);
    let [(p0, ..), (p1, m, _)] = [300, 3000].map(|steps| run(256, steps, (0.9, 0.999), g));
    assert_eq!(of(&m), 0.0);
    let moved: Vec<f32> = p0.iter().zip(&p1).map(|(a, b)| a - b).collect();
    assert!(of(&moved) == 0.0 && of(&p1) < 0.1, "{} after 300 steps, {} since", of(&p0), of(&moved));
    let mut nearest = Nearest { m: vec![0.0; 256], v: vec![0.0; 256] };
    (1..=3000).for_each(|t| nearest.step(&(0..256).map(|i| f64::from(g(t, i))).collect::<Vec<_>>(), (0.9, 0.999)));
    assert!(nearest.m[0] != 0.0, "to the nearest it would have ended as well, and this test is empty");
}

/// No weight moves by more than a few learning rates a step, though a block's gradients differ by 10^6 and come seldom.
#[test]
fn no_update_blows_up() {
    let random = Philox::new(9, 9);
    let g = |t: u32, i: usize| {
        let size = 10f64.powf(6.0 * random.uniform(i as u64, 1) - 3.0);
        let rare = i.is_multiple_of(3) && random.uniform(i as u64, 1000 + u64::from(t)) > 0.05;
        if rare { 0.0 } else { (size * random.normal(i as u64, u64::from(t))) as f32 }
    };
    let (rows, cols, lr) = (32, 256, 1e-3);
    let (mut p, mut moments) = (PanelMatrix::zeros(rows, cols), panels::Moments::zeros(rows, cols));
    let mut most = 0f32;
    for t in 1..=400 {
        let before = p.to_rows();
        let g: Vec<f32> = (0..rows * cols).map(|i| g(t, i)).collect();
        let s = Step { decay: 1.0, grad_scale: 1.0, ..scalars(t as i32, (0.9, 0.999), lr) };
        panels::step(&mut p, &PanelMatrix::from_rows(rows, cols, &g), &mut moments, s, rounding(t));
        most = p.to_rows().iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(most, f32::max);
    }
    // With exact moments a step is at most 7.3 learning rates at these betas; a rounded second moment is at worst 0.12 of the exact one.
    let rates = f64::from(most) / lr;
    assert!((1.0..7.3 / 0.12f64.sqrt()).contains(&rates), "{rates} learning rates");
}

/// Second moments that are too large for f32 are infinite, not hidden: so that no checkpoint is written of them.
#[test]
fn what_is_not_finite_stays_so() {
    let (mut p, mut moments) = (PanelMatrix::zeros(1, 16), panels::Moments::zeros(1, 16));
    let g: Vec<f32> = (0..16).map(|i| if i == 5 { 1e25 } else { 1.0 }).collect();
    panels::step(&mut p, &PanelMatrix::from_rows(1, 16, &g), &mut moments, scalars(1, (0.9, 0.999), 1e-3), rounding(1));
    let (_, v): (Coded, Coded) = moments.export();
    assert!(v.scales[0] == f32::INFINITY && p.to_rows().iter().all(|x| x.is_finite()));
}
