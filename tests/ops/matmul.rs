//! The linear layer and its low-rank term.

use crate::support::{bits, close, normal, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::matmul;

/// (T, N, K): one row, odd widths, panels of 32 not filled, contractions beyond one chunk of 512 on either side.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (1, 33, 5), (2, 64, 600), (3, 10, 513), (14, 31, 512), (15, 32, 64), (17, 45, 1100), (29, 1100, 70), (150, 8, 576)];

/// Chains of at most 512 terms: a relative error of about sqrt(512) half units in the last place.
const BOUND: f64 = 1e-6;

/// `a [m, k] b [k, n]`, given by their elements.
fn product(m: usize, n: usize, k: usize, a: impl Fn(usize, usize) -> f64, b: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    (0..m * n).map(|i| (0..k).map(|j| a(i / n, j) * b(j, i % n)).sum()).collect()
}

fn matrix(n: usize, k: usize, stream: u64) -> (Vec<f64>, PanelMatrix) {
    let w = normal(n * k, stream);
    (wide(&w), PanelMatrix::from_rows(n, k, &w))
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[test]
fn products_and_gradients_equal_f64() {
    for (t, n, k) in SHAPES {
        let (x, dy, (w, panels)) = (tensor(&[t, k], 1), tensor(&[t, n], 2), matrix(n, k, 3));
        let (xs, dys) = (wide(x.data()), wide(dy.data()));
        let name = |op: &str| format!("{op} of [{t}, {k}] with [{n}, {k}]");
        let y = product(t, n, k, |i, j| xs[i * k + j], |j, i| w[i * k + j]);
        close(&name("y"), matmul::forward(&x, &panels).data(), &y, BOUND);
        let mut added = Tensor::from_vec(&[t, n], dy.data().to_vec());
        matmul::forward_add(&x, &panels, &mut added);
        close(&name("y +="), added.data(), &sum(&dys, &y), BOUND);
        let dx = product(t, k, n, |i, j| dys[i * n + j], |j, i| w[j * k + i]);
        close(&name("dx"), matmul::backward_input(&dy, &panels).data(), &dx, BOUND);
        let mut added = Tensor::from_vec(&[t, k], x.data().to_vec());
        matmul::backward_input_add(&dy, &panels, &mut added);
        close(&name("dx +="), added.data(), &sum(&xs, &dx), BOUND);
        let dw = product(n, k, t, |i, j| dys[j * n + i], |j, i| xs[j * k + i]);
        let mut grad = panels.clone();
        matmul::backward_weight(&dy, &x, &[0..t / 3, t / 3..t], &mut grad);
        close(&name("dW +="), &grad.to_rows(), &sum(&w, &dw), BOUND);
    }
}

#[test]
fn panels_keep_their_padding_zero() {
    let (n, k, t) = (45, 7, 9);
    let mut grad = PanelMatrix::zeros(n, k);
    matmul::backward_weight(&tensor(&[t, n], 1), &tensor(&[t, k], 2), std::slice::from_ref(&(0..t)), &mut grad);
    for (i, x) in grad.data()[32 * k..].iter().enumerate() {
        assert!(i % 32 < n - 32 || x.to_bits() == 0, "lane {} of the last panel", i % 32);
    }
}

/// y = x W' + s (x A') B' and all its gradients, put together from the op's parts as the linear layer does.
#[test]
fn the_low_rank_term_equals_f64() {
    for (t, n, k, r, s) in [(1, 33, 70, 1, 2.0f32), (5, 40, 600, 8, 0.5), (20, 100, 48, 33, 1.25)] {
        let (x, dy) = (tensor(&[t, k], 1), tensor(&[t, n], 2));
        let ((w, wp), (a, ap), (b, bp)) = (matrix(n, k, 3), matrix(r, k, 4), matrix(n, r, 5));
        let (xs, dys, scale) = (wide(x.data()), wide(dy.data()), f64::from(s));
        let name = |what: &str| format!("{what}, rank {r}, [{t}, {k}] to {n}");

        let u = product(t, r, k, |i, j| xs[i * k + j] * scale, |j, i| a[i * k + j]);
        let base = product(t, n, k, |i, j| xs[i * k + j], |j, i| w[i * k + j]);
        let y = sum(&base, &product(t, n, r, |i, j| u[i * r + j], |j, i| b[i * r + j]));
        let mut low = matmul::forward(&x, &ap);
        matmul::scale(&mut low, s);
        let mut got = matmul::forward(&x, &wp);
        matmul::forward_add(&low, &bp, &mut got);
        close(&name("y"), got.data(), &y, BOUND);

        let du = product(t, r, n, |i, j| dys[i * n + j] * scale, |j, i| b[j * r + i]);
        let mut du_got = matmul::backward_input(&dy, &bp);
        matmul::scale(&mut du_got, s);
        let all = 0..t;
        let (mut da, mut db) = (PanelMatrix::zeros(r, k), PanelMatrix::zeros(n, r));
        matmul::backward_weight(&dy, &low, std::slice::from_ref(&all), &mut db);
        matmul::backward_weight(&du_got, &x, std::slice::from_ref(&all), &mut da);
        close(&name("dA"), &da.to_rows(), &product(r, k, t, |i, j| du[j * r + i], |j, i| xs[j * k + i]), BOUND);
        close(&name("dB"), &db.to_rows(), &product(n, r, t, |i, j| dys[j * n + i], |j, i| u[j * r + i]), BOUND);
        let dx = sum(
            &product(t, k, n, |i, j| dys[i * n + j], |j, i| w[j * k + i]),
            &product(t, k, r, |i, j| du[i * r + j], |j, i| a[j * k + i]),
        );
        let mut got = matmul::backward_input(&dy, &wp);
        matmul::backward_input_add(&du_got, &ap, &mut got);
        close(&name("dx"), got.data(), &dx, BOUND);
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for (n, k) in [(70, 1300), (576, 40), (8, 600)] {
        let (x, dy, (_, w)) = (tensor(&[200, k], 1), tensor(&[200, n], 2), matrix(n, k, 3));
        let (y, dx) = (matmul::forward(&x, &w), matmul::backward_input(&dy, &w));
        for count in [1, 2, 3, 4, 5, 7, 13, 14, 15, 28, 29, 150] {
            let span = 7..7 + count;
            let part = |t: &Tensor| bits(rows(t, span.clone().start..span.end).data());
            assert!(part(&y) == bits(matmul::forward(&rows(&x, span.clone()), &w).data()), "y, {count} rows");
            assert!(part(&dx) == bits(matmul::backward_input(&rows(&dy, span.clone()), &w).data()), "dx, {count} rows");
        }
    }
}

/// Trees may come in one batch or in several: their chunks are summed one after another in both.
#[test]
fn weight_gradients_do_not_depend_on_the_micro_batch() {
    for (n, k) in [(70, 33), (8, 600), (600, 8)] {
        let (x, dy) = (tensor(&[90, k], 1), tensor(&[90, n], 2));
        let chunks = [0..20, 20..70, 70..71, 71..90];
        let whole = |chunks: &[std::ops::Range<usize>]| {
            let mut dw = PanelMatrix::zeros(n, k);
            matmul::backward_weight(&dy, &x, chunks, &mut dw);
            dw.to_rows()
        };
        let want = bits(&whole(&chunks));
        let mut parts = PanelMatrix::zeros(n, k);
        for (from, to, own) in [(0, 20, vec![0..20]), (20, 71, vec![0..50, 50..51]), (71, 90, vec![0..19])] {
            matmul::backward_weight(&rows(&dy, from..to), &rows(&x, from..to), &own, &mut parts);
        }
        assert!(want == bits(&parts.to_rows()));
        assert!(want != bits(&whole(std::slice::from_ref(&(0..90)))), "where the chunks end is part of the result");
    }
}

#[test]
fn threads_change_nothing() {
    for (t, n, k) in [(1, 700, 600), (40, 8, 600), (33, 600, 100), (200, 8, 600), (200, 600, 8)] {
        let (x, dy, (_, w)) = (tensor(&[t, k], 1), tensor(&[t, n], 2), matrix(n, k, 3));
        same_on_any_threads("matmul", || {
            let mut out = matmul::forward(&x, &w).into_vec();
            out.extend(matmul::backward_input(&dy, &w).into_vec());
            let mut dw = PanelMatrix::zeros(n, k);
            matmul::backward_weight(&dy, &x, &[0..t / 2, t / 2..t], &mut dw);
            out.extend(dw.to_rows());
            out
        });
    }
}

#[test]
fn several_products_of_one_input_are_those_one_by_one() {
    for t in [1, 15, 40] {
        let (x, (_, a), (_, b), (_, c)) = (tensor(&[t, 600], 1), matrix(70, 600, 2), matrix(8, 600, 3), matrix(1, 600, 4));
        for (many, w) in matmul::forward_many(&x, [&a, &b, &c]).iter().zip([&a, &b, &c]) {
            assert!(bits(many.data()) == bits(matmul::forward(&x, w).data()));
        }
    }
}
