//! SwiGLU, forward and backward.

use crate::support::{bits, close, inner, is_gradient, normal, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::swiglu;

/// (rows, width): odd sizes, and more than one work unit of 16 k numbers, its last one not full.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 17), (3, 33), (40, 1536), (1, 16385), (7, 9000)];

const BOUND: f64 = 2e-7;
/// For large gates 1 + g (1 - s) holds the rounding of s, times g.
const BOUND_GATE: f64 = 6e-7;

fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
}

/// (d gate, d up).
fn backward(dy: &[f64], gate: &[f64], up: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let s: Vec<f64> = gate.iter().map(|g| 1.0 / (1.0 + (-g).exp())).collect();
    let n = gate.len();
    let dgate = (0..n).map(|i| dy[i] * up[i] * (s[i] + gate[i] * s[i] * (1.0 - s[i]))).collect();
    (dgate, (0..n).map(|i| dy[i] * gate[i] * s[i]).collect())
}

#[test]
fn the_reference_gradient_is_a_slope() {
    let (dy, gate, up) = (wide(&normal(9, 1)), wide(&normal(9, 2)), wide(&normal(9, 3)));
    let (dgate, dup) = backward(&dy, &gate, &up);
    is_gradient("d gate", &|g| inner(&forward(g, &up), &dy), &gate, &dgate);
    is_gradient("d up", &|u| inner(&forward(&gate, u), &dy), &up, &dup);
}

#[test]
fn forward_and_backward_equal_f64() {
    for (t, d) in SHAPES {
        for scale in [0.01f32, 1.0, 12.0] {
            let gate = Tensor::from_vec(&[t, d], normal(t * d, 1).iter().map(|x| x * scale).collect());
            let (up, dy) = (tensor(&[t, d], 2), tensor(&[t, d], 3));
            let (gates, ups, dys) = (wide(gate.data()), wide(up.data()), wide(dy.data()));
            let name = |what: &str| format!("{what} of [{t}, {d}], gates of {scale}");
            close(&name("y"), swiglu::forward(&gate, &up).data(), &forward(&gates, &ups), BOUND);
            let (dgate, dup) = swiglu::backward(&dy, &gate, &up);
            let (want_gate, want_up) = backward(&dys, &gates, &ups);
            close(&name("d gate"), dgate.data(), &want_gate, BOUND_GATE);
            close(&name("d up"), dup.data(), &want_up, BOUND);
        }
    }
}

/// Where e^-g overflows or vanishes the op has its limits: 0 below, the identity above.
#[test]
fn large_gates_saturate() {
    let gates = [-1e30f32, -1000.0, -100.0, -0.0, 0.0, 100.0, 1000.0, 1e30];
    let n = gates.len();
    let (gate, ones) = (Tensor::from_vec(&[1, n], gates.to_vec()), Tensor::from_vec(&[1, n], vec![1.0; n]));
    let y = swiglu::forward(&gate, &ones);
    let (dgate, dup) = swiglu::backward(&ones, &gate, &ones);
    for (i, &g) in gates.iter().enumerate() {
        let (y, dg, du) = (y.data()[i], dgate.data()[i], dup.data()[i]);
        let (want, slope) = if g < 0.0 { (0.0, 0.0) } else { (g, if g == 0.0 { 0.5 } else { 1.0 }) };
        assert!((y - want).abs() < 1e-30 && y == du, "y({g}) = {y}, d up = {du}");
        assert!((dg - slope).abs() < 1e-30 || g == 0.0 && dg == 0.5, "d gate({g}) = {dg}");
    }
    let bad = Tensor::from_vec(&[1, 1], vec![f32::NAN]);
    assert!(swiglu::forward(&bad, &Tensor::from_vec(&[1, 1], vec![1.0])).data()[0].is_nan());
}

#[test]
fn bits_do_not_depend_on_other_rows_or_threads() {
    let (t, d) = (30, 1001);
    let (gate, up, dy) = (tensor(&[t, d], 1), tensor(&[t, d], 2), tensor(&[t, d], 3));
    let run = |span: std::ops::Range<usize>| {
        let (gate, up, dy) = (rows(&gate, span.clone()), rows(&up, span.clone()), rows(&dy, span));
        let (dgate, dup) = swiglu::backward(&dy, &gate, &up);
        [swiglu::forward(&gate, &up), dgate, dup]
    };
    let all = run(0..t);
    for span in [0..1, 16..18, 29..30] {
        for (part, all) in run(span.clone()).iter().zip(&all) {
            assert!(bits(part.data()) == bits(rows(all, span.clone()).data()));
        }
    }
    same_on_any_threads("swiglu", || run(0..t).into_iter().flat_map(Tensor::into_vec).collect());
}
