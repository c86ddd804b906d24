//! Attention forward on the CPU.

use super::{Heads, KvLayer, Small, Unit, raw_scores, transpose};
use crate::tensor::Tensor;
use crate::tensor::cpu::parallel::{SharedMut, over_units};
use crate::tensor::cpu::vector::{LANES, Lanes, exp, max_lanes, sum_lanes};
use crate::tensor::cpu::vectorized;
use crate::tensor::plan::{Segment, TILE};

/// Softmax states that the backward pass needs: for each (token, query head) the largest score and 1 / sum of exponentials.
#[derive(Debug)]
pub struct Saved {
    /// `[T, H]`.
    pub max: Vec<f32>,
    /// `[T, H]`.
    pub inv_sum: Vec<f32>,
}

/// o `[T, H * d]` for q `[T, H * d]` (rotated) of the tokens of `segments`, whose keys and values (their own included) stand in `kv`.
pub fn forward(q: &Tensor, kv: &KvLayer, segments: &[Segment], scale: f32) -> (Tensor, Saved) {
    let heads = kv.heads;
    let mut o = Tensor::zeros(q.shape());
    let states = q.rows() * heads.num_heads;
    let mut saved = Saved { max: vec![0.0; states], inv_sum: vec![0.0; states] };
    let units = Unit::all(segments, heads);
    let out = SharedMut::new(o.data_mut());
    let (max, inv_sum) = (SharedMut::new(&mut saved.max), SharedMut::new(&mut saved.inv_sum));
    over_units(units.len(), |u| {
        let unit = &units[u];
        let state = forward_unit(unit, q.data(), kv, scale);
        let (d, stride) = (heads.head_dim, kv.stride());
        for i in 0..unit.pairs() {
            let (row, head) = unit.pair(i);
            let at = row * heads.num_heads + head;
            let inv = 1.0 / state.sum[i];
            // SAFETY: each unit has its own (row, head) pairs.
            let (o, m, l) = unsafe { (out.slice(at * d, d), max.slice(at, 1), inv_sum.slice(at, 1)) };
            (m[0], l[0]) = (state.max[i], inv);
            for (o, x) in o.iter_mut().zip(&state.o[i * stride..]) {
                *o = x * inv;
            }
        }
    });
    (o, saved)
}

/// Online softmax states of a unit's pairs.
struct State {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[pairs, stride]`, not yet divided by the sums.
    o: Vec<f32>,
}

fn forward_unit(unit: &Unit<'_>, q: &[f32], kv: &KvLayer, scale: f32) -> State {
    let Heads { head_dim: d, .. } = unit.heads;
    let (pairs, stride) = (unit.pairs(), kv.stride());
    let mut state = State { max: vec![f32::NEG_INFINITY; pairs], sum: vec![0.0; pairs], o: vec![0.0; pairs * stride] };
    let rows = unit.gather(q, d);
    let mut queries = vec![0.0; pairs * d];
    transpose(&rows, pairs, d, d, &mut queries);
    let mut scores = vec![0.0; pairs * TILE];
    let mut weights = vec![0.0; pairs * TILE];
    for tile in 0..unit.tiles() {
        let page = unit.segment.pages[tile];
        let keys = unit.bound(pairs - 1, tile);
        raw_scores(&queries, pairs, d, kv.keys(page, unit.kv_head), &mut scores);
        for i in 0..pairs {
            let row: &mut [f32; TILE] = (&mut scores[i * TILE..(i + 1) * TILE]).try_into().expect("a tile");
            let bound = unit.bound(i, tile);
            let shrink = softmax_tile(row, bound, scale, &mut state.max[i], &mut state.sum[i]);
            if shrink != 1.0 {
                state.o[i * stride..(i + 1) * stride].iter_mut().for_each(|x| *x *= shrink);
            }
        }
        transpose(&scores, pairs, keys, TILE, &mut weights);
        Small { m: pairs, columns: d, k: keys, a: &weights, lda: pairs, b: kv.values(page, unit.kv_head), ldb: stride, add: true }
            .run(&mut state.o, stride);
    }
    state
}

vectorized! {
    /// Turns a tile's raw scores into e^{s - max} (0 from `bound` on), updates the running max and sum, and returns by what the sums so far
    /// shrink: e^{old max - new max}.
    fn softmax_tile(s: &mut [f32; TILE], bound: usize, scale: f32, max: &mut f32, sum: &mut f32) -> f32 {
        if bound == 0 {
            s.fill(0.0);
            return 1.0;
        }
        // Beyond the bound the scores are replaced by -inf, whose exponential is 0 whatever stood there.
        s[bound..].fill(f32::NEG_INFINITY);
        let (lanes, _) = s.as_chunks_mut::<LANES>();
        let mut top: Lanes = [f32::NEG_INFINITY; LANES];
        for x in lanes.iter_mut() {
            for l in 0..LANES {
                x[l] *= scale;
                top[l] = if x[l] > top[l] { x[l] } else { top[l] };
            }
        }
        let new = max_lanes(top).max(*max);
        let shrink = exp(*max - new);
        let mut acc: Lanes = [0.0; LANES];
        for x in lanes.iter_mut() {
            for l in 0..LANES {
                let e = exp(x[l] - new);
                x[l] = e;
                acc[l] += e;
            }
        }
        *sum = *sum * shrink + sum_lanes(acc);
        *max = new;
        shrink
    }
}
