//! Sums of activations.

use crate::support::{bits, close, normal, rows, same_on_any_threads, tensor};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::residual;

fn copy(x: &Tensor) -> Tensor {
    Tensor::from_vec(x.shape(), x.data().to_vec())
}

/// Each output is one addition, so the bits are known.
#[test]
fn sums_are_single_additions() {
    for (t, d) in [(1, 1), (3, 17), (40, 576), (2, 20_000)] {
        let (x, y, b) = (tensor(&[t, d], 1), tensor(&[t, d], 2), tensor(&[d], 3));
        let mut sum = copy(&x);
        residual::add_to(&mut sum, &y);
        let want: Vec<f32> = x.data().iter().zip(y.data()).map(|(a, b)| a + b).collect();
        assert!(bits(sum.data()) == bits(&want));
        let mut biased = copy(&x);
        residual::add_bias(&mut biased, &b);
        let want: Vec<f32> = x.data().iter().enumerate().map(|(i, x)| x + b.data()[i % d]).collect();
        assert!(bits(biased.data()) == bits(&want));
    }
}

#[test]
fn the_bias_gradient_equals_f64_and_does_not_depend_on_the_micro_batch() {
    for (t, d) in [(1, 1), (70, 33), (600, 10)] {
        let (dy, start) = (tensor(&[t, d], 1), normal(d, 2));
        let spans = [0..t / 3, t / 3..t];
        let mut db = Tensor::from_vec(&[d], start.clone());
        residual::bias_gradient(&dy, &spans, &mut db);
        let want: Vec<f64> = (0..d).map(|i| f64::from(start[i]) + (0..t).map(|r| f64::from(dy.data()[r * d + i])).sum::<f64>()).collect();
        close(&format!("db of [{t}, {d}]"), db.data(), &want, 1e-7);
        let mut parts = Tensor::from_vec(&[d], start);
        for span in spans {
            let own = [0..span.len()];
            residual::bias_gradient(&rows(&dy, span), &own, &mut parts);
        }
        assert!(bits(db.data()) == bits(parts.data()));
    }
}

#[test]
fn threads_change_nothing() {
    let (x, y, b) = (tensor(&[90, 700], 1), tensor(&[90, 700], 2), tensor(&[700], 3));
    same_on_any_threads("residual", || {
        let mut sum = copy(&x);
        residual::add_to(&mut sum, &y);
        residual::add_bias(&mut sum, &b);
        let mut db = Tensor::zeros(&[700]);
        residual::bias_gradient(&sum, &[0..40, 40..90], &mut db);
        let mut db = db.into_vec();
        db.extend(sum.data());
        db
    });
}
