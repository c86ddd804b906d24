//! Causal attention with grouped heads over a forest of segments: one op for training, prefill and decode.
//!
//! For query head h of a token at position p, with k, v of its kv head at positions 0..=p along its path in the forest:
//! s_j = (q . k_j) scale, p_j = e^{s_j} / sum e^{s_i}, o = sum_j p_j v_j (softmax in the online form of FlashAttention, Dao et al. 2022).
//!
//! Shapes: q, o `[T, H * d]`; k, v `[T, H_kv * d]` before they are written to pages. Keys are taken in tiles of [`TILE`] absolute
//! positions, tile after tile; inside a tile each score is one chain over d, the sum of exponentials a fixed tree, and each output one chain
//! over the tile's keys that is then added to the running sum. So a token's numbers depend on its history alone. Slots that nobody wrote,
//! or that an earlier user of the page left behind, may hold anything, NaN included. (A value that is itself not finite also spoils the
//! rows up to 15 before it, which take it 0 times.)
//!
//! Floor: forward 4 T L H d / 2 operations, backward (with scores recomputed in both passes) 14 T L H d / 2, at the FMA rate.

mod backward;
pub mod cuda;
mod forward;
mod kv;

pub use backward::backward;
pub use forward::{Saved, forward};
pub use kv::KvLayer;

use crate::tensor::cpu::kernel::{Tile, kernel, max_rows};
use crate::tensor::plan::{Segment, TILE};

/// How heads share keys.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a kv head.
    pub fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Rows of a segment that one work unit takes (its query heads of one kv head with them).
const ROWS: usize = 16;

/// One unit of query work: some rows of a segment, for one kv head. A pair is a row with one of the kv head's query heads.
struct Unit<'a> {
    segment: &'a Segment,
    kv_head: usize,
    /// First row in the segment.
    from: usize,
    rows: usize,
    heads: Heads,
}

impl<'a> Unit<'a> {
    /// All units of some segments.
    fn all(segments: &'a [Segment], heads: Heads) -> Vec<Unit<'a>> {
        let mut units = Vec::new();
        for segment in segments {
            for from in (0..segment.tokens.len()).step_by(ROWS) {
                let rows = ROWS.min(segment.tokens.len() - from);
                units.extend((0..heads.num_kv_heads).map(|kv_head| Unit { segment, kv_head, from, rows, heads }));
            }
        }
        units
    }

    fn pairs(&self) -> usize {
        self.rows * self.heads.group()
    }

    /// Packed row and query head of a pair.
    fn pair(&self, i: usize) -> (usize, usize) {
        let group = self.heads.group();
        (self.segment.tokens.start + self.from + i / group, self.kv_head * group + i % group)
    }

    /// Absolute position of a pair's row.
    fn position(&self, i: usize) -> usize {
        self.segment.start + self.from + i / self.heads.group()
    }

    /// Tiles that the unit's last row sees.
    fn tiles(&self) -> usize {
        (self.position(self.pairs() - 1) + 1).div_ceil(TILE)
    }

    /// Keys of a tile that a pair sees.
    fn bound(&self, i: usize, tile: usize) -> usize {
        (self.position(i) + 1).saturating_sub(tile * TILE).min(TILE)
    }

    /// The pairs' rows of `x [T, H * d]`, packed `[pairs, stride]`, zero beyond d.
    fn gather(&self, x: &[f32], stride: usize) -> Vec<f32> {
        let d = self.heads.head_dim;
        let mut out = vec![0.0; self.pairs() * stride];
        for (i, line) in out.chunks_exact_mut(stride).enumerate() {
            let (row, head) = self.pair(i);
            line[..d].copy_from_slice(&x[(row * self.heads.num_heads + head) * d..][..d]);
        }
        out
    }
}

/// `c [m, columns] (+)= a b` with `a` given as `[k][m]` (leading dimension `lda`) and `b` `[k][>= columns, readable to a multiple of 32]`:
/// the attention's products, all of them small. One chain over k an element.
struct Small<'a> {
    m: usize,
    columns: usize,
    k: usize,
    a: &'a [f32],
    lda: usize,
    b: &'a [f32],
    ldb: usize,
    add: bool,
}

impl Small<'_> {
    fn run(&self, c: &mut [f32], ldc: usize) {
        if self.m == 0 || self.k == 0 {
            return;
        }
        let padded = self.columns.next_multiple_of(32);
        assert!(self.a.len() >= (self.k - 1) * self.lda + self.m);
        assert!(self.b.len() >= (self.k - 1) * self.ldb + padded);
        assert!(c.len() >= (self.m - 1) * ldc + self.columns);
        let blocks = self.m.div_ceil(max_rows());
        for b in 0..blocks {
            let (from, to) = (self.m * b / blocks, self.m * (b + 1) / blocks);
            let run = kernel(to - from);
            for column in (0..self.columns).step_by(32) {
                let tile = Tile {
                    k: self.k,
                    a: self.a[from..].as_ptr(),
                    lda: self.lda,
                    b: self.b[column..].as_ptr(),
                    ldb: self.ldb,
                    c: c[from * ldc + column..].as_mut_ptr(),
                    ldc,
                    lanes: (self.columns - column).min(32),
                    add: self.add,
                };
                // SAFETY: the assertions above cover every element that the tile reads and writes.
                unsafe { run(&tile) };
            }
        }
    }
}

/// Terms of a score that are summed in one chain. Qwen2's key biases are in the hundreds: a score is then a small difference of products in
/// the thousands, and a chain that holds such a product rounds whatever follows to its last place. In chains this short most hold none:
/// the gradients of Qwen2.5's first layers come out 4 to 5 times nearer to f64 than with one chain over the head.
const SCORE_CHUNK: usize = 8;

/// `scores [pairs, TILE]` = q k of queries `[d][pairs]` and a page's keys `[d][TILE]`, in chains of [`SCORE_CHUNK`] terms that are added in order.
fn raw_scores(queries: &[f32], pairs: usize, d: usize, keys: &[f32], scores: &mut [f32]) {
    for from in (0..d).step_by(SCORE_CHUNK) {
        let (a, b, k) = (&queries[from * pairs..], &keys[from * TILE..], SCORE_CHUNK.min(d - from));
        Small { m: pairs, columns: TILE, k, a, lda: pairs, b, ldb: TILE, add: from > 0 }.run(scores, TILE);
    }
}

/// `out [n][m] = x [m][n]` (row strides `ldx` and `m`).
fn transpose(x: &[f32], m: usize, n: usize, ldx: usize, out: &mut [f32]) {
    for (i, row) in x.chunks(ldx).take(m).enumerate() {
        for (j, v) in row[..n].iter().enumerate() {
            out[j * m + i] = *v;
        }
    }
}
