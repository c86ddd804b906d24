//! Attention backward on the CPU: scores are computed again from the saved softmax states.
//!
//! With p_j = e^{s_j - max} inv_sum, dp_j = do . v_j, delta = do . o and ds_j = p_j (dp_j - delta) scale:
//! dq = sum_j ds_j k_j, dk_j = sum over queries ds_j q, dv_j = sum over queries p_j do. Two passes, so that no two units write the same
//! number: by query rows for dq, by pages for dk and dv (queries in packed order, which is the canonical order of the tree).

use super::{Heads, KvLayer, ROWS, Saved, Small, Unit, raw_scores, transpose};
use crate::tensor::Tensor;
use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::parallel::{SharedMut, over_units};
use crate::tensor::cpu::{vector, vectorized};
use crate::tensor::plan::{Plan, TILE};
use rayon::prelude::*;

/// Returns dq `[T, H * d]`, dk and dv `[T, H_kv * d]` (with respect to rotated queries and keys).
pub fn backward(d_o: &Tensor, q: &Tensor, o: &Tensor, saved: &Saved, kv: &KvLayer, plan: &Plan, scale: f32) -> (Tensor, Tensor, Tensor) {
    let pass = Pass { delta: deltas(d_o, o, kv.heads), saved, kv, turned: Turned::new(kv, plan), scale };
    let units = Unit::all(&plan.segments, kv.heads);
    let rows: Vec<Rows> = units.par_iter().map(|unit| Rows::new(unit, q.data(), d_o.data(), kv.stride())).collect();
    let dq = pass.queries(plan, &units, &rows);
    let (dk, dv) = pass.keys_and_values(plan, &units, &rows);
    (dq, dk, dv)
}

/// delta `[T, H]` = do . o.
fn deltas(d_o: &Tensor, o: &Tensor, heads: Heads) -> Vec<f32> {
    let d = heads.head_dim;
    d_o.data().chunks_exact(d).zip(o.data().chunks_exact(d)).map(|(a, b)| dot(a, b)).collect()
}

vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        vector::dot(a, b)
    }
}

/// The pages the other way round: keys `[TILE][stride]`, values `[d][TILE]`.
struct Turned {
    keys: AlignedVec,
    values: AlignedVec,
}

impl Turned {
    fn new(kv: &KvLayer, plan: &Plan) -> Self {
        let (d, stride, heads) = (kv.heads.head_dim, kv.stride(), kv.heads.num_kv_heads);
        let count = plan.num_pages * heads;
        let (mut keys, mut values) = (AlignedVec::zeros(count * TILE * stride), AlignedVec::zeros(count * d * TILE));
        let (k, v) = (SharedMut::new(&mut keys), SharedMut::new(&mut values));
        over_units(count, |i| {
            let (page, head) = ((i / heads) as u32, i % heads);
            // SAFETY: each unit has its own page and head.
            let (k, v) = unsafe { (k.slice(i * TILE * stride, TILE * stride), v.slice(i * d * TILE, d * TILE)) };
            for (x, row) in kv.keys(page, head).chunks_exact(TILE).enumerate() {
                for (slot, y) in row.iter().enumerate() {
                    k[slot * stride + x] = *y;
                }
            }
            for (slot, row) in kv.values(page, head).chunks_exact(stride).enumerate() {
                for (x, y) in row[..d].iter().enumerate() {
                    v[x * TILE + slot] = *y;
                }
            }
        });
        Self { keys, values }
    }
}

struct Pass<'a> {
    delta: Vec<f32>,
    saved: &'a Saved,
    kv: &'a KvLayer,
    turned: Turned,
    scale: f32,
}

/// A unit's rows, gathered for both passes: `[pairs, stride]` and transposed `[d][pairs]`.
struct Rows {
    q: Vec<f32>,
    d_o: Vec<f32>,
    q_turned: Vec<f32>,
    d_o_turned: Vec<f32>,
}

impl Rows {
    fn new(unit: &Unit<'_>, q: &[f32], d_o: &[f32], stride: usize) -> Self {
        let (d, pairs) = (unit.heads.head_dim, unit.pairs());
        let (q, d_o) = (unit.gather(q, stride), unit.gather(d_o, stride));
        let (mut q_turned, mut d_o_turned) = (vec![0.0; pairs * d], vec![0.0; pairs * d]);
        transpose(&q, pairs, d, stride, &mut q_turned);
        transpose(&d_o, pairs, d, stride, &mut d_o_turned);
        Self { q, d_o, q_turned, d_o_turned }
    }
}

/// p and ds of a unit's pairs against one tile, `[pairs, TILE]`.
struct Scores {
    p: Vec<f32>,
    ds: Vec<f32>,
}

impl Scores {
    fn new(pairs: usize) -> Self {
        Self { p: vec![0.0; pairs * TILE], ds: vec![0.0; pairs * TILE] }
    }
}

impl Pass<'_> {
    /// p and ds of a unit's pairs against one tile.
    fn tile(&self, unit: &Unit<'_>, rows: &Rows, tile: usize, out: &mut Scores) {
        let (d, pairs) = (unit.heads.head_dim, unit.pairs());
        let page = unit.segment.pages[tile];
        let index = page as usize * unit.heads.num_kv_heads + unit.kv_head;
        let keys = self.kv.keys(page, unit.kv_head);
        let values = &self.turned.values[index * d * TILE..][..d * TILE];
        raw_scores(&rows.q_turned, pairs, d, keys, &mut out.p);
        Small { m: pairs, columns: TILE, k: d, a: &rows.d_o_turned, lda: pairs, b: values, ldb: TILE, add: false }.run(&mut out.ds, TILE);
        for i in 0..pairs {
            let (row, head) = unit.pair(i);
            let at = row * unit.heads.num_heads + head;
            let span = i * TILE..(i + 1) * TILE;
            let state = (self.saved.max[at], self.saved.inv_sum[at], self.delta[at]);
            score_gradients(&mut out.p[span.clone()], &mut out.ds[span], unit.bound(i, tile), self.scale, state);
        }
    }

    fn queries(&self, plan: &Plan, units: &[Unit<'_>], rows: &[Rows]) -> Tensor {
        let heads = self.kv.heads;
        let (d, stride) = (heads.head_dim, self.kv.stride());
        let mut dq = Tensor::zeros(&[plan.num_tokens(), heads.num_heads * d]);
        let out = SharedMut::new(dq.data_mut());
        over_units(units.len(), |u| {
            let unit = &units[u];
            let pairs = unit.pairs();
            let mut scores = Scores::new(pairs);
            let mut acc = vec![0.0; pairs * d];
            let mut ds_turned = vec![0.0; pairs * TILE];
            for tile in 0..unit.tiles() {
                let keys = unit.bound(pairs - 1, tile);
                self.tile(unit, &rows[u], tile, &mut scores);
                transpose(&scores.ds, pairs, keys, TILE, &mut ds_turned);
                let index = unit.segment.pages[tile] as usize * heads.num_kv_heads + unit.kv_head;
                let b = &self.turned.keys[index * TILE * stride..][..TILE * stride];
                Small { m: pairs, columns: d, k: keys, a: &ds_turned, lda: pairs, b, ldb: stride, add: true }.run(&mut acc, d);
            }
            for (i, x) in acc.chunks_exact(d).enumerate() {
                let (row, head) = unit.pair(i);
                // SAFETY: each unit has its own (row, head) pairs.
                unsafe { out.slice((row * heads.num_heads + head) * d, d) }.copy_from_slice(x);
            }
        });
        dq
    }

    fn keys_and_values(&self, plan: &Plan, units: &[Unit<'_>], rows: &[Rows]) -> (Tensor, Tensor) {
        let heads = self.kv.heads;
        let (stride, kv_heads) = (self.kv.stride(), heads.num_kv_heads);
        let size = TILE * stride;
        let mut dk_pages = AlignedVec::zeros(plan.num_pages * kv_heads * size);
        let mut dv_pages = AlignedVec::zeros(plan.num_pages * kv_heads * size);
        let viewers = viewers(plan);
        let blocks_before = plan.segments.iter().scan(0, |sum, s| Some(std::mem::replace(sum, *sum + s.tokens.len().div_ceil(ROWS))));
        let first_unit: Vec<usize> = blocks_before.map(|blocks| blocks * kv_heads).collect();
        let (dk, dv) = (SharedMut::new(&mut dk_pages), SharedMut::new(&mut dv_pages));
        over_units(plan.num_pages * kv_heads, |i| {
            let (page, kv_head) = (i / kv_heads, i % kv_heads);
            // SAFETY: each unit has its own page and head.
            let (dk, dv) = unsafe { (dk.slice(i * size, size), dv.slice(i * size, size)) };
            let mut scores = Scores::new(ROWS * heads.group());
            for &(segment, tile) in &viewers[page] {
                let first = plan.segments[segment].start;
                // Rows are cut on the segment's own grid, so a row before the tile may come along: it sees nothing of it.
                let blocks = (tile * TILE).saturating_sub(first) / ROWS..plan.segments[segment].tokens.len().div_ceil(ROWS);
                for block in blocks {
                    let u = first_unit[segment] + block * kv_heads + kv_head;
                    self.page_gradients(&units[u], &rows[u], tile, &mut scores, dk, dv);
                }
            }
        });
        for c in plan.copies.iter().rev() {
            for h in 0..kv_heads {
                for pages in [&mut dk_pages, &mut dv_pages] {
                    add_slots(
                        pages,
                        (c.from as usize * kv_heads + h) * size,
                        (c.to as usize * kv_heads + h) * size,
                        c.slots as usize * stride,
                    );
                }
            }
        }
        (self.per_token(plan, &dk_pages), self.per_token(plan, &dv_pages))
    }

    fn page_gradients(&self, unit: &Unit<'_>, rows: &Rows, tile: usize, scores: &mut Scores, dk: &mut [f32], dv: &mut [f32]) {
        let (stride, pairs) = (self.kv.stride(), unit.pairs());
        let keys = unit.bound(pairs - 1, tile);
        self.tile(unit, rows, tile, scores);
        Small { m: keys, columns: stride, k: pairs, a: &scores.p, lda: TILE, b: &rows.d_o, ldb: stride, add: true }.run(dv, stride);
        Small { m: keys, columns: stride, k: pairs, a: &scores.ds, lda: TILE, b: &rows.q, ldb: stride, add: true }.run(dk, stride);
    }

    fn per_token(&self, plan: &Plan, pages: &[f32]) -> Tensor {
        let Heads { num_kv_heads, head_dim: d, .. } = self.kv.heads;
        let stride = self.kv.stride();
        let mut out = Tensor::zeros(&[plan.num_tokens(), num_kv_heads * d]);
        for (row, &(page, slot)) in out.data_mut().chunks_exact_mut(num_kv_heads * d).zip(&plan.kv_slots) {
            for (h, head) in row.chunks_exact_mut(d).enumerate() {
                let at = (page as usize * num_kv_heads + h) * TILE * stride + slot as usize * stride;
                head.copy_from_slice(&pages[at..at + d]);
            }
        }
        out
    }
}

/// pages[from..] += pages[to..]: what reached a child's copy of a partial page belongs to the parent.
fn add_slots(pages: &mut [f32], from: usize, to: usize, len: usize) {
    for i in 0..len {
        pages[from + i] += pages[to + i];
    }
}

/// For each page, the (segment, tile) pairs that read it, in packed order.
fn viewers(plan: &Plan) -> Vec<Vec<(usize, usize)>> {
    let mut viewers = vec![Vec::new(); plan.num_pages];
    for (s, segment) in plan.segments.iter().enumerate() {
        for (tile, &page) in segment.pages.iter().enumerate() {
            viewers[page as usize].push((s, tile));
        }
    }
    viewers
}

vectorized! {
    /// `p`: raw scores in, probabilities out; `ds`: do . v in, score gradients out; both 0 from `bound` on.
    fn score_gradients(p: &mut [f32], ds: &mut [f32], bound: usize, scale: f32, state: (f32, f32, f32)) {
        let (max, inv_sum, delta) = state;
        p[bound..].fill(f32::NEG_INFINITY);
        for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
            let e = vector::exp(*p * scale - max) * inv_sum;
            *ds = e * (*ds - delta) * scale;
            *p = e;
        }
        // A key that the row does not see may hold anything.
        ds[bound..].fill(0.0);
    }
}
