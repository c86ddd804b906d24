//! The fused head: log-probability and entropy of a row of the vocabulary, and their gradients.

use crate::support::{bits, close, inner, is_gradient, normal, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::token_logprob::{self as head, Keep, softmax_of_row};

/// (rows, D, V): one row, a vocabulary of less than one chunk of 2048, just over one, several; D beyond one contraction chunk.
const SHAPES: [(usize, usize, usize); 6] = [(1, 3, 5), (4, 16, 2048), (3, 40, 2049), (15, 33, 5003), (2, 600, 301), (1, 1, 1)];

/// Log-probabilities and entropies.
const BOUND: f64 = 1e-6;
/// Gradients: a probability has the absolute error of its logit, a chain of up to 512 terms.
const BOUND_GRADIENT: f64 = 2e-6;

struct Case {
    h: Tensor,
    w: PanelMatrix,
    rows: Vec<f64>,
    targets: Vec<u32>,
    d_logprob: Vec<f32>,
    d_entropy: Vec<f32>,
}

fn case(t: usize, d: usize, v: usize) -> Case {
    let w: Vec<f32> = normal(v * d, 2).iter().map(|x| x * 2.0 / (d as f32).sqrt()).collect();
    Case {
        h: tensor(&[t, d], 1),
        w: PanelMatrix::from_rows(v, d, &w),
        rows: wide(&w),
        targets: (0..t).map(|i| (i * 2_654_435_761 % v) as u32).collect(),
        d_logprob: normal(t, 3),
        d_entropy: normal(t, 4),
    }
}

/// log softmax of each row of h W' / T, in f64.
fn log_softmax(h: &[f64], w: &[f64], d: usize, temperature: f64) -> Vec<Vec<f64>> {
    let row = |h: &[f64]| {
        let z: Vec<f64> = w.chunks(d).map(|w| inner(h, w) / temperature).collect();
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        z.iter().map(|z| z - lse).collect()
    };
    h.chunks(d).map(row).collect()
}

fn entropy(ln_p: &[f64]) -> f64 {
    -ln_p.iter().map(|l| l.exp() * l).sum::<f64>()
}

/// sum of d_logprob . logprob + d_entropy . entropy
fn loss(c: &Case, h: &[f64], w: &[f64], temperature: f64) -> f64 {
    let ln_p = log_softmax(h, w, c.h.cols(), temperature);
    let term = |r: usize| f64::from(c.d_logprob[r]) * ln_p[r][c.targets[r] as usize] + f64::from(c.d_entropy[r]) * entropy(&ln_p[r]);
    (0..c.targets.len()).map(term).sum()
}

/// (dh, dW); `with_entropy` false leaves out the entropy's part.
fn backward(c: &Case, h: &[f64], w: &[f64], temperature: f64, with_entropy: bool) -> (Vec<f64>, Vec<f64>) {
    let d = c.h.cols();
    let (mut dh, mut dw) = (vec![0.0; h.len()], vec![0.0; w.len()]);
    for (r, ln_p) in log_softmax(h, w, d, temperature).iter().enumerate() {
        let (a, b) = (f64::from(c.d_logprob[r]), if with_entropy { f64::from(c.d_entropy[r]) } else { 0.0 });
        let entropy = entropy(ln_p);
        for (j, l) in ln_p.iter().enumerate() {
            let hit = if j == c.targets[r] as usize { 1.0 } else { 0.0 };
            let dz = (a * (hit - l.exp()) - b * l.exp() * (l + entropy)) / temperature;
            for i in 0..d {
                dh[r * d + i] += dz * w[j * d + i];
                dw[j * d + i] += dz * h[r * d + i];
            }
        }
    }
    (dh, dw)
}

#[test]
fn the_reference_gradient_is_a_slope() {
    let c = case(2, 3, 5);
    let h = wide(c.h.data());
    let (dh, dw) = backward(&c, &h, &c.rows, 0.8, true);
    is_gradient("dh", &|h| loss(&c, h, &c.rows, 0.8), &h, &dh);
    is_gradient("dW", &|w| loss(&c, &h, w, 0.8), &c.rows, &dw);
}

#[test]
fn forward_and_backward_equal_f64() {
    for (t, d, v) in SHAPES {
        for temperature in [1.0f32, 0.7, 3.0] {
            let c = case(t, d, v);
            let (h, wide_t) = (wide(c.h.data()), f64::from(temperature));
            let name = |what: &str| format!("{what} of [{t}, {d}], vocabulary {v}, temperature {temperature}");
            let (logprob, ent, saved) = head::forward(&c.h, &c.w, &c.targets, temperature, Keep::ForBackward);
            let ln_p = log_softmax(&h, &c.rows, d, wide_t);
            let want: Vec<f64> = ln_p.iter().zip(&c.targets).map(|(l, t)| l[*t as usize]).collect();
            close(&name("logprob"), &logprob, &want, BOUND);
            close(&name("entropy"), &ent, &ln_p.iter().map(|l| entropy(l)).collect::<Vec<_>>(), BOUND);
            if v == 1 {
                continue; // nothing to choose: all gradients are 0
            }
            for with_entropy in [false, true] {
                let start = normal(v * d, 5);
                let mut dw = PanelMatrix::from_rows(v, d, &start);
                let d_entropy = with_entropy.then_some(&c.d_entropy[..]);
                let chunks = [0..t / 2, t / 2..t];
                let dh =
                    head::backward(&c.h, &c.w, &c.targets, temperature, saved.clone(), &c.d_logprob, d_entropy, &chunks, Some(&mut dw));
                let (want_dh, want_dw) = backward(&c, &h, &c.rows, wide_t, with_entropy);
                close(&name("dh"), dh.data(), &want_dh, BOUND_GRADIENT);
                let want_dw: Vec<f64> = want_dw.iter().zip(&start).map(|(a, b)| a + f64::from(*b)).collect();
                close(&name("dW +="), &dw.to_rows(), &want_dw, BOUND_GRADIENT);
                let frozen = head::backward(&c.h, &c.w, &c.targets, temperature, saved.clone(), &c.d_logprob, d_entropy, &chunks, None);
                assert!(bits(frozen.data()) == bits(dh.data()), "a frozen head gives the same dh");
            }
        }
    }
}

/// Logits of hundreds, and a target that is all but impossible.
#[test]
fn sharp_distributions_stay_finite() {
    let (d, v) = (4, 3000);
    let mut w = vec![0.0f32; v * d];
    w[2500 * d] = 300.0;
    w[7 * d] = -300.0;
    let (h, w) = (Tensor::from_vec(&[2, d], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]), PanelMatrix::from_rows(v, d, &w));
    let (logprob, entropy, saved) = head::forward(&h, &w, &[2500, 7], 1.0, Keep::ForBackward);
    assert_eq!((logprob[0], logprob[1]), (0.0, -600.0));
    assert!(entropy.iter().all(|e| e.abs() < 1e-30));
    let dh = head::backward(&h, &w, &[2500, 7], 1.0, saved.clone(), &[1.0, 1.0], Some(&[1.0, 1.0]), std::slice::from_ref(&(0..2)), None);
    assert!(dh.data()[..4].iter().all(|x| x.abs() < 1e-6), "{:?}", dh.data());
    assert!((dh.data()[4] + 600.0).abs() < 1e-3);
}

#[test]
#[should_panic(expected = "target 5 in a vocabulary of 5")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let c = case(1, 3, 5);
    head::forward(&c.h, &c.w, &[5], 1.0, Keep::ForBackward);
}

/// The sampler's way (a whole row of logits) and training's (chunk by chunk, other rows beside it) give the same bits.
#[test]
fn sampling_and_training_agree() {
    let c = case(15, 33, 5003);
    for temperature in [1.0f32, 0.7] {
        let (logprob, entropy, _) = head::forward(&c.h, &c.w, &c.targets, temperature, Keep::ForBackward);
        let logits = head::logits(&c.h, &c.w);
        for (r, target) in c.targets.iter().enumerate() {
            let softmax = softmax_of_row(logits.row(r), temperature);
            assert_eq!(softmax.logprob(logits.row(r)[*target as usize] / temperature).to_bits(), logprob[r].to_bits());
            assert_eq!(softmax.entropy().to_bits(), entropy[r].to_bits());
        }
    }
}

#[test]
fn bits_do_not_depend_on_other_rows_micro_batches_or_threads() {
    let (t, d, v) = (15, 40, 2500);
    let c = case(t, d, v);
    let run = |span: std::ops::Range<usize>, chunks: &[std::ops::Range<usize>], keep: Keep, dw: &mut PanelMatrix| {
        let (h, targets) = (rows(&c.h, span.clone()), &c.targets[span.clone()]);
        let (logprob, entropy, saved) = head::forward(&h, &c.w, targets, 0.9, keep);
        let (a, b) = (&c.d_logprob[span.clone()], &c.d_entropy[span]);
        let dh = head::backward(&h, &c.w, targets, 0.9, saved, a, Some(b), chunks, Some(dw));
        (logprob, entropy, dh)
    };
    let mut dw = PanelMatrix::zeros(v, d);
    let (logprob, entropy, dh) = run(0..t, &[0..6, 6..7, 7..15], Keep::ForBackward, &mut dw);
    let mut parts = PanelMatrix::zeros(v, d);
    for (span, chunks) in [(0..7, vec![0..6, 6..7]), (7..15, vec![0..8])] {
        // Logits that were not kept are computed again.
        let (l, e, h) = run(span.clone(), &chunks, Keep::Nothing, &mut parts);
        assert!(bits(&l) == bits(&logprob[span.clone()]) && bits(&e) == bits(&entropy[span.clone()]));
        assert!(bits(h.data()) == bits(rows(&dh, span).data()));
    }
    assert!(bits(dw.data()) == bits(parts.data()));
    same_on_any_threads("head", || {
        let mut dw = PanelMatrix::zeros(v, d);
        let (logprob, entropy, dh) = run(0..t, &[0..6, 6..7, 7..15], Keep::ForBackward, &mut dw);
        [&logprob, &entropy, dh.data(), dw.data()].concat()
    });
}

#[test]
fn no_predictions_are_no_work() {
    let c = case(1, 3, 5);
    let none = Tensor::zeros(&[0, 3]);
    let (logprob, entropy, saved) = head::forward(&none, &c.w, &[], 1.0, Keep::ForBackward);
    assert!(logprob.is_empty() && entropy.is_empty());
    let mut dw = PanelMatrix::zeros(5, 3);
    let dh = head::backward(&none, &c.w, &[], 1.0, saved.clone(), &[], None, &[], Some(&mut dw));
    assert_eq!(dh.shape(), [0, 3]);
    assert!(dw.data().iter().all(|x| *x == 0.0));
}
