//! Attention over forests of segments, against plain softmax attention over each token's history in f64.

use crate::support::{bits, close, inner, is_gradient, normal, rows, same_on_any_threads, tensor, wide};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::plan::{Plan, Segment, SegmentSpec, TILE, Tree};
use std::ops::Range;

/// Forward, dq, dk, dv: chains over d and over tiles of 64 keys.
const BOUND: f64 = 6e-7;

/// A tree of segments given as (parent, length).
pub fn tree(segments: &[(Option<usize>, usize)]) -> Tree {
    let spec = |&(parent, len): &(Option<usize>, usize)| SegmentSpec { parent, ids: vec![1; len], targets: vec![true; len] };
    Tree { segments: segments.iter().map(spec).collect() }
}

/// Depth 3; segments that end on, before and after a page's end; an empty one with a child; a prompt without answers.
pub fn forest() -> Vec<Tree> {
    vec![
        tree(&[(None, 70), (Some(0), 5), (Some(1), 80), (Some(1), 1), (Some(0), 64), (Some(0), 0), (Some(5), 3)]),
        tree(&[(None, 3)]),
        tree(&[(None, TILE), (Some(0), 2), (Some(0), 17), (Some(2), 47), (Some(3), 20)]),
        tree(&[(None, 1), (Some(0), 1), (Some(1), 1)]),
    ]
}

/// For each packed row the rows that it attends to, itself last: from the trees alone, not from the plan.
pub fn histories(trees: &[Tree]) -> Vec<Vec<usize>> {
    let mut all: Vec<Vec<usize>> = Vec::new();
    for tree in trees {
        let mut paths: Vec<Vec<usize>> = Vec::new();
        for segment in &tree.segments {
            let mut path = segment.parent.map_or(Vec::new(), |p| paths[p].clone());
            for _ in &segment.ids {
                path.push(all.len());
                all.push(path.clone());
            }
            paths.push(path);
        }
    }
    all
}

struct Shape {
    heads: Heads,
    histories: Vec<Vec<usize>>,
    scale: f64,
}

impl Shape {
    fn new(heads: Heads, trees: &[Tree]) -> Self {
        Self { heads, histories: histories(trees), scale: f64::from((heads.head_dim as f32).powf(-0.5)) }
    }

    /// Where head `h` of row `t` begins in `[T, H, d]`, and its kv head in `[T, H_kv, d]`.
    fn at(&self, t: usize, h: usize) -> usize {
        (t * self.heads.num_heads + h) * self.heads.head_dim
    }

    fn kv_at(&self, t: usize, h: usize) -> usize {
        (t * self.heads.num_kv_heads + h / self.heads.group()) * self.heads.head_dim
    }

    /// Probabilities of a row's history.
    fn weights(&self, q: &[f64], k: &[f64], t: usize, h: usize) -> Vec<f64> {
        let d = self.heads.head_dim;
        let query = &q[self.at(t, h)..][..d];
        let scores: Vec<f64> = self.histories[t].iter().map(|&j| inner(query, &k[self.kv_at(j, h)..][..d]) * self.scale).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        scores.iter().map(|s| (s - max).exp() / sum).collect()
    }

    fn forward(&self, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let mut o = vec![0.0; q.len()];
        for t in 0..self.histories.len() {
            for h in 0..self.heads.num_heads {
                for (p, &j) in self.weights(q, k, t, h).iter().zip(&self.histories[t]) {
                    for i in 0..self.heads.head_dim {
                        o[self.at(t, h) + i] += p * v[self.kv_at(j, h) + i];
                    }
                }
            }
        }
        o
    }

    /// (dq, dk, dv), by the Jacobian of softmax: ds_j = p_j (dp_j - sum_i p_i dp_i).
    fn backward(&self, d_o: &[f64], q: &[f64], k: &[f64], v: &[f64]) -> [Vec<f64>; 3] {
        let d = self.heads.head_dim;
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for (t, history) in self.histories.iter().enumerate() {
            for h in 0..self.heads.num_heads {
                let (at, p) = (self.at(t, h), self.weights(q, k, t, h));
                let dp: Vec<f64> = history.iter().map(|&j| inner(&d_o[at..at + d], &v[self.kv_at(j, h)..][..d])).collect();
                let mean = inner(&p, &dp);
                for (n, &j) in history.iter().enumerate() {
                    let (kv, ds) = (self.kv_at(j, h), p[n] * (dp[n] - mean) * self.scale);
                    for i in 0..d {
                        dq[at + i] += ds * k[kv + i];
                        dk[kv + i] += ds * q[at + i];
                        dv[kv + i] += p[n] * d_o[at + i];
                    }
                }
            }
        }
        [dq, dk, dv]
    }
}

pub struct Inputs {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    pub d_o: Tensor,
}

impl Inputs {
    pub fn new(heads: Heads, t: usize, q_scale: f32) -> Self {
        let (width, kv_width) = (heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim);
        let q = normal(t * width, 1).iter().map(|x| x * q_scale).collect();
        let [k, v] = [2, 3].map(|s| tensor(&[t, kv_width], s));
        Self { q: Tensor::from_vec(&[t, width], q), k, v, d_o: tensor(&[t, width], 4) }
    }

    fn rows(&self, range: Range<usize>) -> Self {
        let [q, k, v, d_o] = [&self.q, &self.k, &self.v, &self.d_o].map(|x| rows(x, range.clone()));
        Self { q, k, v, d_o }
    }
}

pub fn scale(heads: Heads) -> f32 {
    (heads.head_dim as f32).powf(-0.5)
}

/// (o, dq, dk, dv), in pages that held `stale` everywhere before.
fn run(heads: Heads, plan: &Plan, x: &Inputs, stale: f32) -> [Tensor; 4] {
    let mut kv = KvLayer::new(heads, plan.num_pages);
    let slots: Vec<(u32, u32)> = (0..plan.num_pages * TILE).map(|i| ((i / TILE) as u32, (i % TILE) as u32)).collect();
    let width = heads.num_kv_heads * heads.head_dim;
    let filling = Tensor::from_vec(&[slots.len(), width], vec![stale; slots.len() * width]);
    kv.write(&slots, &filling, &filling);
    kv.write(&plan.kv_slots, &x.k, &x.v);
    kv.copy(&plan.copies);
    let (o, saved) = attention::forward(&x.q, &kv, &plan.segments, scale(heads));
    let (dq, dk, dv) = attention::backward(&x.d_o, &x.q, &o, &saved, &kv, plan, scale(heads));
    [o, dq, dk, dv]
}

pub fn heads(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { num_heads, num_kv_heads, head_dim }
}

#[test]
fn the_reference_gradient_is_a_slope() {
    let trees = [tree(&[(None, 3), (Some(0), 2), (Some(1), 1), (Some(0), 1)])];
    let shape = Shape::new(heads(2, 1, 3), &trees);
    let x = Inputs::new(shape.heads, shape.histories.len(), 1.0);
    let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|x| wide(x.data()));
    let [dq, dk, dv] = shape.backward(&d_o, &q, &k, &v);
    is_gradient("dq", &|q| inner(&shape.forward(q, &k, &v), &d_o), &q, &dq);
    is_gradient("dk", &|k| inner(&shape.forward(&q, k, &v), &d_o), &k, &dk);
    is_gradient("dv", &|v| inner(&shape.forward(&q, &k, v), &d_o), &v, &dv);
}

fn compare(heads: Heads, trees: &[Tree], q_scale: f32, bound: f64) {
    let (shape, plan) = (Shape::new(heads, trees), Plan::for_trees(trees));
    let x = Inputs::new(heads, plan.num_tokens(), q_scale);
    let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(|x| wide(x.data()));
    let [dq, dk, dv] = shape.backward(&d_o, &q, &k, &v);
    let want = [shape.forward(&q, &k, &v), dq, dk, dv];
    for ((got, want), name) in run(heads, &plan, &x, 0.0).iter().zip(&want).zip(["o", "dq", "dk", "dv"]) {
        close(&format!("{name}, {heads:?}, queries x {q_scale}"), got.data(), want, bound);
    }
}

/// Widths that fill no vector or several, groups of 1, 3 and 7 query heads.
#[test]
fn forests_equal_f64() {
    for (h, kv, d) in [(1, 1, 10), (3, 1, 16), (14, 2, 64), (9, 3, 64), (2, 2, 96), (3, 1, 128), (7, 1, 33), (4, 4, 1)] {
        compare(heads(h, kv, d), &forest(), 1.0, BOUND);
    }
    compare(heads(1, 1, 64), &[tree(&[(None, 1)])], 1.0, BOUND);
    compare(heads(3, 1, 64), &[tree(&[(None, 400)])], 1.0, BOUND);
}

/// Sharp and flat softmaxes. Scores of about 100 have an error of 1e-5, which is a relative one after the exponential; the running maximum
/// jumps by more than e^-87 can hold, so sums so far shrink to 0.
#[test]
fn large_and_small_scores_equal_f64() {
    compare(heads(3, 1, 64), &forest(), 1e-3, BOUND);
    compare(heads(3, 1, 64), &forest(), 10.0, 5e-6);
    compare(heads(3, 1, 64), &forest(), 60.0, 3e-5);
}

/// Key biases in the hundreds, as Qwen2.5's first layers have them. A score is summed in short chains: one chain over the head would hold the
/// large product from its dimension on, and be twice as far from f64 (2.6e-6 and more).
#[test]
fn keys_with_a_large_bias_equal_f64() {
    let (heads, trees) = (heads(1, 1, 64), [tree(&[(None, 150)])]);
    let (shape, plan) = (Shape::new(heads, &trees), Plan::for_trees(&trees));
    let mut x = Inputs::new(heads, plan.num_tokens(), 1.0);
    x.k.data_mut().iter_mut().skip(3).step_by(heads.head_dim).for_each(|k| *k += 150.0);
    let [q, k, v] = [&x.q, &x.k, &x.v].map(|x| wide(x.data()));
    close("o, a bias of 150", run(heads, &plan, &x, 0.0)[0].data(), &shape.forward(&q, &k, &v), 2e-6);
}

/// The pages of generation hold what earlier sequences left there. Nothing of it reaches a token, not even NaN or infinity.
#[test]
fn stale_slots_do_not_leak() {
    for heads in [heads(3, 1, 16), heads(2, 2, 33)] {
        let plan = Plan::for_trees(&forest());
        let x = Inputs::new(heads, plan.num_tokens(), 1.0);
        let clean = run(heads, &plan, &x, 0.0).map(|t| bits(t.data()));
        for stale in [1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let dirty = run(heads, &plan, &x, stale).map(|t| bits(t.data()));
            assert!(clean == dirty, "pages that held {stale} before");
        }
    }
}

#[test]
fn a_tree_does_not_depend_on_the_others() {
    for heads in [heads(3, 1, 16), heads(4, 2, 40)] {
        let trees = forest();
        let plan = Plan::for_trees(&trees);
        let x = Inputs::new(heads, plan.num_tokens(), 1.0);
        let all = run(heads, &plan, &x, 0.0);
        for (tree, range) in trees.iter().zip(&plan.trees) {
            let tokens = range.tokens.clone();
            let alone = run(heads, &Plan::for_trees(std::slice::from_ref(tree)), &x.rows(tokens.clone()), 0.0);
            for (alone, all) in alone.iter().zip(&all) {
                assert!(bits(alone.data()) == bits(rows(all, tokens.clone()).data()));
            }
        }
    }
}

/// A token's output is the same bits whether its history is shared with siblings or its own.
#[test]
fn shared_and_repeated_histories_agree() {
    let heads = heads(7, 1, 64);
    let trees = forest();
    let plan = Plan::for_trees(&trees);
    let x = Inputs::new(heads, plan.num_tokens(), 1.0);
    let [o, ..] = run(heads, &plan, &x, 0.0);
    for segment in plan.segments.iter().filter(|s| !s.tokens.is_empty()) {
        let history = &histories(&trees)[segment.tokens.end - 1];
        let pick = |t: &Tensor| {
            let data: Vec<f32> = history.iter().flat_map(|&r| t.row(r).to_vec()).collect();
            Tensor::from_vec(&[history.len(), t.cols()], data)
        };
        let [q, k, v, d_o] = [&x.q, &x.k, &x.v, &x.d_o].map(pick);
        let [alone, ..] = run(heads, &Plan::for_trees(&[tree(&[(None, history.len())])]), &Inputs { q, k, v, d_o }, 0.0);
        assert!(bits(alone.data()) == bits(pick(&o).data()), "segment at {:?}", segment.tokens);
    }
}

/// Prefill in pieces, then one token at a time, in pages that hold garbage beyond: the same bits as all at once.
#[test]
fn decode_and_prefill_agree() {
    let (heads, t) = (heads(6, 2, 64), 150);
    let whole = Plan::for_trees(&[tree(&[(None, t)])]);
    let x = Inputs::new(heads, t, 1.0);
    let [o, ..] = run(heads, &whole, &x, 0.0);
    let mut kv = KvLayer::new(heads, whole.num_pages);
    let mut from = 0;
    for len in [40, 30, 1, 1, 1, 20, 30].into_iter().chain([1; 27]) {
        let span = from..from + len;
        let x = x.rows(span.clone());
        kv.write(&whole.kv_slots[span.clone()], &x.k, &x.v);
        let segment = Segment { parent: None, tokens: 0..len, start: from, pages: whole.segments[0].pages.clone() };
        let (part, _) = attention::forward(&x.q, &kv, &[segment], scale(heads));
        assert!(bits(part.data()) == bits(rows(&o, span.clone()).data()), "tokens {span:?}");
        from += len;
    }
    assert_eq!(from, t);
}

#[test]
fn threads_change_nothing() {
    let heads = heads(6, 2, 20);
    let plan = Plan::for_trees(&forest());
    let x = Inputs::new(heads, plan.num_tokens(), 1.0);
    same_on_any_threads("attention", || run(heads, &plan, &x, 0.0).into_iter().flat_map(Tensor::into_vec).collect());
}
