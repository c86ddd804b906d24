//! RMSNorm, forward and backward.

use crate::support::{bits, close, inner, is_gradient, normal, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::rmsnorm;
use std::ops::Range;

/// (rows, width): one number, odd widths, not a multiple of 16, per-head widths, more rows than one work unit takes.
const SHAPES: [(usize, usize); 9] = [(1, 1), (1, 10), (3, 16), (5, 37), (7, 64), (2, 96), (40, 576), (300, 128), (9, 4099)];

const BOUND: f64 = 2e-7;

fn norm(x: &Tensor, w: &Tensor, eps: f32) -> (Tensor, Tensor) {
    rmsnorm::forward(x, w, eps).expect("nothing fails on the CPU")
}

/// dx, with dw summed over `chunks` of rows where it is wanted.
fn gradient(dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, chunks: &[Range<usize>], dw: Option<&mut Tensor>) -> Tensor {
    rmsnorm::backward(dy, x, w, rstd, chunks, dw).expect("nothing fails on the CPU")
}

/// `rows` rows in chunks of 50.
fn fifties(rows: usize) -> Vec<Range<usize>> {
    (0..rows).step_by(50).map(|a| a..(a + 50).min(rows)).collect()
}

fn forward(x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = w.len();
    let rstd: Vec<f64> = x.chunks(d).map(|x| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + eps).sqrt()).collect();
    let y = x.iter().enumerate().map(|(i, x)| x * rstd[i / d] * w[i % d]).collect();
    (y, rstd)
}

/// (dx, dw), from d rms(x)^2 / dx_j = 2 x_j / D.
fn backward(dy: &[f64], x: &[f64], w: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = w.len();
    let (_, rstd) = forward(x, w, eps);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; d]);
    for (t, &r) in rstd.iter().enumerate() {
        let at = |i: usize| t * d + i;
        let along: f64 = (0..d).map(|i| dy[at(i)] * w[i] * x[at(i)]).sum();
        for i in 0..d {
            dx[at(i)] = r * dy[at(i)] * w[i] - r.powi(3) * x[at(i)] * along / d as f64;
            dw[i] += dy[at(i)] * x[at(i)] * r;
        }
    }
    (dx, dw)
}

fn case(t: usize, d: usize) -> (Tensor, Tensor, Tensor) {
    let w: Vec<f32> = normal(d, 3).iter().map(|x| 1.0 + 0.3 * x).collect();
    (tensor(&[t, d], 1), tensor(&[t, d], 2), Tensor::from_vec(&[d], w))
}

#[test]
fn the_reference_gradient_is_a_slope() {
    let (x, dy, w) = case(2, 5);
    let (x, dy, w) = (wide(x.data()), wide(dy.data()), wide(w.data()));
    let (dx, dw) = backward(&dy, &x, &w, 1e-2);
    is_gradient("dx", &|x| inner(&forward(x, &w, 1e-2).0, &dy), &x, &dx);
    is_gradient("dw", &|w| inner(&forward(&x, w, 1e-2).0, &dy), &w, &dw);
}

#[test]
fn forward_and_backward_equal_f64() {
    for (t, d) in SHAPES {
        for eps in [1e-5f32, 1e-6, 0.1] {
            let (x, dy, w) = case(t, d);
            let name = |what: &str| format!("{what} of [{t}, {d}], eps {eps:e}");
            let (y, rstd) = norm(&x, &w, eps);
            let (xs, dys, ws, eps) = (wide(x.data()), wide(dy.data()), wide(w.data()), f64::from(eps));
            let (want_y, want_rstd) = forward(&xs, &ws, eps);
            close(&name("y"), y.data(), &want_y, BOUND);
            close(&name("rstd"), rstd.data(), &want_rstd, BOUND);
            let start = normal(d, 4);
            let mut dw = Tensor::from_vec(&[d], start.clone());
            let dx = gradient(&dy, &x, &w, &rstd, &fifties(t), Some(&mut dw));
            let (want_dx, want_dw) = backward(&dys, &xs, &ws, eps);
            // One number alone cancels almost wholly in its own norm; what is left is measured against what cancelled.
            if d > 1 {
                close(&name("dx"), dx.data(), &want_dx, BOUND);
            }
            let want_dw: Vec<f64> = want_dw.iter().zip(&start).map(|(a, b)| a + f64::from(*b)).collect();
            close(&name("dw +="), dw.data(), &want_dw, BOUND);
            assert_eq!(bits(dx.data()), bits(gradient(&dy, &x, &w, &rstd, &[], None).data()));
        }
    }
}

/// Small and large rows: the sum of squares stays in f32's range for what a model holds.
#[test]
fn scales_of_the_input_are_covered() {
    for scale in [1e-12f32, 1e-3, 1e4, 1e15] {
        let x = Tensor::from_vec(&[3, 100], normal(300, 1).iter().map(|x| x * scale).collect());
        let w = Tensor::from_vec(&[100], vec![1.0; 100]);
        let (y, _) = norm(&x, &w, 1e-5);
        close(&format!("scale {scale:e}"), y.data(), &forward(&wide(x.data()), &[1.0; 100], f64::from(1e-5f32)).0, BOUND);
    }
    let zero = Tensor::zeros(&[2, 33]);
    let (y, rstd) = norm(&zero, &Tensor::from_vec(&[33], vec![2.0; 33]), 1e-6);
    assert!(y.data().iter().all(|y| *y == 0.0) && rstd.data().iter().all(|r| (r - 1e3).abs() < 1e-3));
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for d in [37, 576] {
        let (x, dy, w) = case(90, d);
        let (y, rstd) = norm(&x, &w, 1e-5);
        let dx = gradient(&dy, &x, &w, &rstd, &[], None);
        for span in [0..1, 5..6, 3..90, 80..90] {
            let (y_part, rstd_part) = norm(&rows(&x, span.clone()), &w, 1e-5);
            assert!(bits(y_part.data()) == bits(rows(&y, span.clone()).data()));
            let dx_part = gradient(&rows(&dy, span.clone()), &rows(&x, span.clone()), &w, &rstd_part, &[], None);
            assert!(bits(dx_part.data()) == bits(rows(&dx, span).data()));
        }
    }
}

#[test]
fn the_weight_gradient_does_not_depend_on_the_micro_batch() {
    let (x, dy, w) = case(61, 150);
    let (_, rstd) = norm(&x, &w, 1e-5);
    let spans = [0..1, 1..30, 30..61];
    let mut whole = Tensor::zeros(&[150]);
    gradient(&dy, &x, &w, &rstd, &spans, Some(&mut whole));
    let mut parts = Tensor::zeros(&[150]);
    for span in spans {
        let own = [0..span.len()];
        let rstd = Tensor::from_vec(&[span.len()], rstd.data()[span.clone()].to_vec());
        gradient(&rows(&dy, span.clone()), &rows(&x, span), &w, &rstd, &own, Some(&mut parts));
    }
    assert!(bits(whole.data()) == bits(parts.data()));
}

#[test]
fn threads_change_nothing() {
    let (x, dy, w) = case(300, 130);
    same_on_any_threads("rmsnorm", || {
        let (y, rstd) = norm(&x, &w, 1e-5);
        let mut dw = Tensor::zeros(&[130]);
        let dx = gradient(&dy, &x, &w, &rstd, &fifties(300), Some(&mut dw));
        let mut out = dw.into_vec();
        out.extend(y.data().iter().chain(rstd.data()).chain(dx.data()));
        out
    });
}
