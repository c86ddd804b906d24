//! The gradient norm and the search for numbers that are not finite.

use crate::support::{normal, wide};
use sorft_native::tensor::ops::norm;

#[test]
fn sums_of_squares_equal_f64() {
    for n in [0, 1, 15, 16_384, 16_385, 100_001] {
        let x = normal(n, 1);
        // f64 rounding is all there is: pairwise sums of the same squares.
        let want: f64 = wide(&x).chunks(100).map(|c| c.iter().map(|x| x * x).sum::<f64>()).sum();
        let got = norm::sum_of_squares(&x);
        assert!((got - want).abs() <= 1e-13 * want, "{n} numbers: {got} against {want}");
    }
    // f32 would overflow, or lose the small one.
    assert_eq!(norm::sum_of_squares(&[1e30, 1e30]), 2.0 * f64::from(1e30f32).powi(2));
    assert_eq!(norm::sum_of_squares(&[1e4, 1e-3]), f64::from(1e4f32).powi(2) + f64::from(1e-3f32).powi(2));
}

#[test]
fn threads_change_nothing() {
    let x = normal(200_003, 2);
    let want = norm::sum_of_squares(&x).to_bits();
    for threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        assert_eq!(want, pool.install(|| norm::sum_of_squares(&x).to_bits()));
    }
}

#[test]
fn one_bad_number_anywhere_is_found() {
    assert!(norm::all_finite(&[]));
    let mut x = vec![f32::MAX; 40_000];
    x[5] = f32::MIN_POSITIVE / 2.0;
    assert!(norm::all_finite(&x));
    for at in [0, 1, 16_383, 16_384, 39_999] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7f80_0001)] {
            let before = std::mem::replace(&mut x[at], bad);
            assert!(!norm::all_finite(&x), "{bad} at {at}");
            assert!(!norm::sum_of_squares(&x).is_finite());
            x[at] = before;
        }
    }
}
