//! Rotary position embedding.

use crate::support::{bits, close, inner, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::rope::{self, Angles};

/// (rows, heads, head width).
const SHAPES: [(usize, usize, usize); 7] = [(1, 1, 2), (1, 3, 10), (5, 2, 16), (9, 9, 64), (3, 1, 96), (130, 2, 128), (2, 7, 80)];

const BOUND: f64 = 1e-7;

fn frequencies(d: usize) -> Vec<f32> {
    (0..d / 2).map(|i| 1.0 / 10_000f32.powf((2 * i) as f32 / d as f32)).collect()
}

/// Positions in no order, far ones among them.
fn positions(t: usize) -> Vec<u32> {
    (0..t as u32).map(|i| i.wrapping_mul(2_654_435_761) % 8192).collect()
}

/// Each pair (x_i, x_{i + d/2}) as a complex number times e^{i angle}; the angle is formed in f32, everything else in f64.
fn turned(x: &[f64], positions: &[u32], frequencies: &[f32], sign: f64) -> Vec<f64> {
    let (half, width) = (frequencies.len(), x.len() / positions.len());
    let mut y = x.to_vec();
    for (t, &p) in positions.iter().enumerate() {
        for (i, f) in frequencies.iter().enumerate() {
            let angle = sign * f64::from(p as f32 * f);
            for head in (0..width).step_by(2 * half) {
                let (a, b) = (t * width + head + i, t * width + head + half + i);
                (y[a], y[b]) = (x[a] * angle.cos() - x[b] * angle.sin(), x[b] * angle.cos() + x[a] * angle.sin());
            }
        }
    }
    y
}

fn copy(x: &Tensor) -> Tensor {
    Tensor::from_vec(x.shape(), x.data().to_vec())
}

#[test]
fn turns_equal_f64() {
    for (t, heads, d) in SHAPES {
        let (f, p, x) = (frequencies(d), positions(t), tensor(&[t, heads * d], 1));
        let angles = Angles::new(&p, &f);
        let mut y = copy(&x);
        rope::forward(&mut y, &angles);
        close(&format!("y, {heads} heads of {d}"), y.data(), &turned(&wide(x.data()), &p, &f, 1.0), BOUND);
        let mut dx = copy(&x);
        rope::backward(&mut dx, &angles);
        close(&format!("dx, {heads} heads of {d}"), dx.data(), &turned(&wide(x.data()), &p, &f, -1.0), BOUND);
        rope::backward(&mut y, &angles);
        close("forward, then backward", y.data(), &wide(x.data()), 2.0 * BOUND);
    }
}

/// The op is linear, so its gradient is its transpose: <dy, R x> = <R' dy, x>.
#[test]
fn the_gradient_is_the_transpose() {
    let (t, d) = (11, 48);
    let (x, dy) = (tensor(&[t, 2 * d], 1), tensor(&[t, 2 * d], 2));
    let angles = Angles::new(&positions(t), &frequencies(d));
    let (mut y, mut dx) = (copy(&x), copy(&dy));
    rope::forward(&mut y, &angles);
    rope::backward(&mut dx, &angles);
    let (a, b) = (inner(&wide(y.data()), &wide(dy.data())), inner(&wide(x.data()), &wide(dx.data())));
    assert!((a - b).abs() < 1e-5, "{a} against {b}");
}

#[test]
fn position_0_is_left_alone() {
    let mut x = tensor(&[1, 64], 1);
    let before = bits(x.data());
    rope::forward(&mut x, &Angles::new(&[0], &frequencies(64)));
    assert_eq!(before, bits(x.data()));
}

/// Scores depend on the distance alone: that is what the rotation is for.
#[test]
fn scores_depend_on_the_distance() {
    let d = 64;
    let (q, k) = (tensor(&[1, d], 1), tensor(&[1, d], 2));
    let score = |p: u32, distance: u32| {
        let (mut q, mut k) = (copy(&q), copy(&k));
        rope::forward(&mut q, &Angles::new(&[p + distance], &frequencies(d)));
        rope::forward(&mut k, &Angles::new(&[p], &frequencies(d)));
        inner(&wide(q.data()), &wide(k.data()))
    };
    for distance in [0, 1, 63, 200] {
        assert!((score(0, distance) - score(500, distance)).abs() < 1e-3);
    }
}

#[test]
fn bits_do_not_depend_on_other_rows_or_threads() {
    let (t, d) = (200, 64);
    let (p, f, x) = (positions(t), frequencies(d), tensor(&[t, 3 * d], 1));
    let turn = |p: &[u32], x: &Tensor| {
        let mut y = copy(x);
        rope::forward(&mut y, &Angles::new(p, &f));
        y.into_vec()
    };
    let all = turn(&p, &x);
    for span in [0..1, 17..18, 90..200] {
        assert!(bits(&turn(&p[span.clone()], &rows(&x, span.clone()))) == bits(&all[span.start * 3 * d..span.end * 3 * d]));
    }
    same_on_any_threads("rope", || turn(&p, &x));
}
