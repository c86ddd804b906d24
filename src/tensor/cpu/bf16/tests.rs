//! The products against a slow emulation of what they are to compute, bit for bit, by every engine that this processor has.

use super::*;
use crate::tensor::cpu::PanelMatrix;
use crate::tensor::philox::Philox;
use half::bf16;

fn random(n: usize, stream: u64) -> Vec<f32> {
    let r = Philox::new(1, stream);
    (0..n).map(|i| r.normal(i as u64, 0) as f32).collect()
}

/// The engines to be tested; says so where one of them is not here.
fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Vector];
    match has_amx() {
        true => engines.push(Engine::Amx),
        false => eprintln!("SKIPPED: this processor has no AMX, so its kernel is not tested here"),
    }
    println!("engines under test: {engines:?}");
    engines
}

/// `c (+)=` the contraction of `a(t)` with `b(t)` over the chunks, as the module's head says it.
fn contract(mut c: f32, parts: &[Range<usize>], a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    for part in parts {
        let mut sums = [0.0f32; 2];
        for t in part.clone() {
            let sum = &mut sums[(t - part.start) % 2];
            *sum = rounded(a(t)).mul_add(rounded(b(t)), *sum);
        }
        c += sums[0] + sums[1];
    }
    c
}

/// Operands of the three products, and what is there before.
struct Case {
    t: usize,
    n: usize,
    k: usize,
    x: Vec<f32>,
    dy: Vec<f32>,
    w: Vec<f32>,
    packed: Bf16Matrix,
    y: Vec<f32>,
    dw: Vec<f32>,
}

impl Case {
    fn new(t: usize, n: usize, k: usize) -> Self {
        let w = random(n * k, 3);
        let packed = Bf16Matrix::rounded(&PanelMatrix::from_rows(n, k, &w));
        Self { t, n, k, x: random(t * k, 1), dy: random(t * n, 2), w, packed, y: random(t * n, 4), dw: random(n * k, 5) }
    }

    fn forward(&self, engine: Engine, add: bool) -> Vec<f32> {
        let mut y = self.y.clone();
        nt_by(engine, &self.x, self.t, &[(self.packed.view(), SharedMut::new(&mut y))], add);
        y
    }

    /// The gradient by the input, added to x if `add`.
    fn by_input(&self, engine: Engine, add: bool) -> Vec<f32> {
        let mut dx = self.x.clone();
        nn_by(engine, &self.dy, self.t, self.packed.view(), SharedMut::new(&mut dx), add);
        dx
    }

    fn by_weight(&self, engine: Engine, chunks: &[Range<usize>]) -> Vec<f32> {
        let mut dw = PanelMatrix::from_rows(self.n, self.k, &self.dw);
        tn_by(engine, (&self.dy, &self.x), (self.n, self.k), chunks, dw.data_mut());
        dw.to_rows()
    }
}

fn same_bits(found: &[f32], expected: impl Iterator<Item = f32>, what: &str) {
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert_eq!(x.to_bits(), y.to_bits(), "{what}: number {i}, {x:e} where {y:e} is expected");
    }
}

#[test]
fn products_are_what_is_written() {
    // Ragged in every dimension, and whole in every one; more than one part of the contraction; few rows.
    let shapes = [(1, 33, 5), (5, 1, 1), (2, 64, 600), (16, 32, 64), (32, 64, 96), (17, 45, 1100), (29, 1100, 70), (70, 40, 33)];
    for engine in engines() {
        // Miri, which interprets, gets the small ones.
        for (t, n, k) in shapes.into_iter().take(if cfg!(miri) { 2 } else { shapes.len() }) {
            let (case, what) = (Case::new(t, n, k), format!("{engine:?} {t}x{k}x{n}"));
            let (inputs, outputs) = (chunks_of(k), chunks_of(n));
            for add in [false, true] {
                let (Case { x, dy, w, .. }, start) = (&case, |x: f32| if add { x } else { 0.0 });
                let y = (0..t * n).map(|i| contract(start(case.y[i]), &inputs, |j| x[i / n * k + j], |j| w[i % n * k + j]));
                same_bits(&case.forward(engine, add), y, &format!("{what} forward"));
                let dx = (0..t * k).map(|i| contract(start(x[i]), &outputs, |j| dy[i / k * n + j], |j| w[j * k + i % k]));
                same_bits(&case.by_input(engine, add), dx, &format!("{what} dx"));
            }
            let chunks = [0..t / 3, t / 3..t];
            let tokens: Vec<_> = chunks.iter().flat_map(|c| cut(c.clone(), TERMS)).collect();
            let (Case { x, dy, dw, .. }, n) = (&case, n);
            let expected = (0..n * k).map(|i| contract(dw[i], &tokens, |r| x[r * k + i % k], |r| dy[r * n + i / k]));
            same_bits(&case.by_weight(engine, &chunks), expected, &format!("{what} dW"));
            println!("{what}: the bits of all three products are those of the emulation");
        }
    }
}

#[test]
fn products_are_close_to_f64() {
    let (t, n, k) = (19, 70, 333);
    let case = Case::new(t, n, k);
    for engine in engines() {
        let y = case.forward(engine, false);
        let (mut error, mut norm) = (0.0, 0.0);
        for (i, y) in y.iter().enumerate() {
            let exact: f64 = (0..k).map(|j| f64::from(case.x[i / n * k + j]) * f64::from(case.w[i % n * k + j])).sum();
            error += (f64::from(*y) - exact).powi(2);
            norm += exact.powi(2);
        }
        // Two roundings to 8 bits, each at most 2^-9 of its number.
        assert!(f64::sqrt(error / norm) < 1.0 / 256.0, "{engine:?}: relative error {:e}", f64::sqrt(error / norm));
    }
}

#[test]
fn a_row_depends_on_neither_the_others_nor_the_threads() {
    let (n, k) = (70, 1300);
    let whole = Case::new(80, n, k);
    for engine in engines() {
        let all = whole.forward(engine, false);
        for rows in [1, 2, 3, 7, 12, 15, 16, 17, 31, 32, 33] {
            let case = Case { t: rows, x: whole.x[5 * k..(5 + rows) * k].to_vec(), y: vec![0.0; rows * n], ..Case::new(0, n, k) };
            assert_eq!(case.forward(engine, false), all[5 * n..(5 + rows) * n]);
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                assert_eq!(whole.forward(engine, false), all);
                assert_eq!(whole.by_input(engine, false), whole.by_input(Engine::Vector, false));
                assert_eq!(whole.by_weight(engine, &[0..50, 50..80]), whole.by_weight(Engine::Vector, &[0..50, 50..80]));
            });
        }
    }
}

#[test]
fn weight_gradients_do_not_depend_on_the_split_of_trees() {
    let (n, k) = (40, 30);
    let whole = Case::new(90, n, k);
    let chunks = [0..20, 20..70, 70..90];
    for engine in engines() {
        let mut parts = PanelMatrix::from_rows(n, k, &whole.dw);
        for c in chunks.clone() {
            let (own, rows) = (0..c.len(), (&whole.dy[c.start * n..c.end * n], &whole.x[c.start * k..c.end * k]));
            tn_by(engine, rows, (n, k), std::slice::from_ref(&own), parts.data_mut());
        }
        assert_eq!(whole.by_weight(engine, &chunks), parts.to_rows());
    }
}
