//! Random inputs, error measures and bit comparisons.

use sorft_native::tensor::Tensor;
use sorft_native::tensor::philox::Philox;
use std::ops::Range;

/// `n` standard normal numbers; each `stream` is another sequence.
pub fn normal(n: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(11, stream);
    (0..n).map(|i| random.normal(i as u64, 0) as f32).collect()
}

/// A tensor of standard normal numbers.
pub fn tensor(shape: &[usize], stream: u64) -> Tensor {
    Tensor::from_vec(shape, normal(shape.iter().product(), stream))
}

/// Rows `range` of a tensor.
pub fn rows(x: &Tensor, range: Range<usize>) -> Tensor {
    let w = x.cols();
    Tensor::from_vec(&[range.len(), w], x.data()[range.start * w..range.end * w].to_vec())
}

/// The numbers in f64.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// The bits of the numbers, so that -0.0 and NaN count.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// ||got - want|| / ||want||.
pub fn error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "as many numbers as expected");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - b));
    // NaN must not pass for small.
    if off == 0.0 { 0.0 } else { off / norm(&mut want.iter().copied()) }
}

/// Fails if the relative error is above `bound` (or not a number).
pub fn close(what: &str, got: &[f32], want: &[f64], bound: f64) {
    let e = error(got, want);
    if std::env::var_os("SORFT_SHOW_ERRORS").is_some() {
        eprintln!("{e:9.2e} of {bound:.0e}  {what}");
    }
    assert!(e <= bound, "{what}: relative error {e:e}, at most {bound:e} is allowed");
}

/// Fails if `f` gives other bits in pools of 1, 2 and 3 threads than in the default one.
pub fn same_on_any_threads(what: &str, f: impl Fn() -> Vec<f32> + Send + Sync) {
    let want = bits(&f());
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        assert!(want == bits(&pool.install(&f)), "{what}: other bits on {threads} threads");
    }
}

/// The derivative of `f` along coordinate `i` at `x`, by central differences in f64.
pub fn slope(f: &dyn Fn(&[f64]) -> f64, x: &[f64], i: usize) -> f64 {
    let h = 1e-5 * x[i].abs().max(1.0);
    let at = |d: f64| {
        let mut y = x.to_vec();
        y[i] += d;
        f(&y)
    };
    (at(h) - at(-h)) / (2.0 * h)
}

/// Fails if a reference gradient, itself written by hand, is not the slope of the reference function.
pub fn is_gradient(what: &str, f: &dyn Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64]) {
    for (i, g) in gradient.iter().enumerate() {
        let s = slope(f, x, i);
        assert!((s - g).abs() <= 1e-8 * g.abs().max(1.0), "{what}[{i}]: reference gradient {g}, slope {s}");
    }
}

/// A weighted sum: the scalar loss whose gradient with respect to `y` is `dy`.
pub fn inner(y: &[f64], dy: &[f64]) -> f64 {
    y.iter().zip(dy).map(|(a, b)| a * b).sum()
}
