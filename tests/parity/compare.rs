//! Comparisons that report how close they came, model by model, and fail together at the end.

/// ‖x - reference‖ / ‖reference‖, or ‖x‖ where the reference is zero.
pub fn relative_error(x: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(x.len(), reference.len(), "as many numbers as the reference has");
    let size = norm(reference.iter().copied());
    let error = norm(x.iter().zip(reference).map(|(a, b)| a - b));
    if size > 0.0 { error / size } else { error }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// The largest absolute difference; NaN counts as infinite.
pub fn max_error(x: &[f32], reference: &[f64]) -> f64 {
    assert_eq!(x.len(), reference.len(), "as many numbers as the reference has");
    let errors = x.iter().zip(reference).map(|(a, b)| (f64::from(*a) - b).abs());
    errors.fold(0.0, |max, e| if e.is_nan() { f64::INFINITY } else { max.max(e) })
}

/// The largest |x / reference - 1|; NaN counts as infinite.
pub fn max_relative(x: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(x.len(), reference.len(), "as many numbers as the reference has");
    let errors = x.iter().zip(reference).map(|(a, b)| (a / b - 1.0).abs());
    errors.fold(0.0, |max, e| if e.is_nan() { f64::INFINITY } else { max.max(e) })
}

/// Buckets of [`sketch`]; `SKETCH_BUCKETS` of `make_fixtures.py`.
const BUCKETS: u64 = 2048;

/// The count-sketch of `make_fixtures.py`, which explains it: linear, covers every number, keeps norms within a few percent.
pub fn sketch(x: &[f32]) -> Vec<f64> {
    let mut buckets = vec![0.0; BUCKETS as usize];
    for (i, &value) in x.iter().enumerate() {
        let z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        let value = f64::from(value);
        buckets[(z % BUCKETS) as usize] += if z >> 63 == 1 { -value } else { value };
    }
    buckets
}

/// Collects what was measured and what was too far off.
#[derive(Default)]
pub struct Report {
    failures: Vec<String>,
}

impl Report {
    /// Prints `what` and notes a failure if `value` is above `limit` (or not a number).
    pub fn at_most(&mut self, what: &str, value: f64, limit: f64) {
        println!("{what}: {value:.3e} (at most {limit:.3e})");
        self.check(value <= limit, || format!("{what}: {value:.3e} is more than {limit:.3e}"));
    }

    /// Notes a failure unless `ok`.
    pub fn check(&mut self, ok: bool, failure: impl FnOnce() -> String) {
        if !ok {
            self.failures.push(failure());
        }
    }

    /// Panics if anything failed.
    pub fn finish(self) {
        assert!(self.failures.is_empty(), "\n{}", self.failures.join("\n"));
    }
}
