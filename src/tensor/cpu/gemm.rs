//! The three products of a linear layer over panel-packed weights: y = x W', dx = dy W and dW += dy' x.
//!
//! Each sums its contraction in fixed chunks ([`K_CHUNK`] inputs or outputs; for dW the plan's token chunks, each cut every [`K_CHUNK`] tokens):
//! in order inside a chunk, chunk sums added in order. So a row's bits depend neither on how many rows there are nor on how the work was
//! divided (`docs/exactness.md`).
//!
//! Floor: 2 N K T floating-point operations at the processor's FMA rate for many rows; 4 N K bytes of weights at its memory rate for few.

use crate::tensor::cpu::division::{Blocks, cut, group, pack_left, panels_per_unit, row_groups, rows_of};
use crate::tensor::cpu::kernel::{Tile, kernel, max_rows};
use crate::tensor::cpu::panels::{PANEL, PanelMatrix, PanelView};
use crate::tensor::cpu::parallel::{SharedMut, over_units, written};
use crate::tensor::plan::K_CHUNK;
use std::ops::Range;

/// Steps of a contraction whose operands are worked on together, so that they stay in the cache: whole chunks.
const K_BLOCK: usize = 8 * K_CHUNK;

/// `out [T, N] (+)= x [T, K] W'`, `W [N, K]` in panels.
///
/// # Panics
/// If the sizes do not fit.
pub fn nt(x: &[f32], w: PanelView<'_>, out: &mut [f32], add: bool) {
    let rows = rows_of(x, w.k);
    assert_eq!(out.len(), rows * w.n, "x [{rows}, {}], W [{}, {}]", w.k, w.n, w.k);
    nt_shared(x, rows, &[(w, SharedMut::new(out))], add);
}

/// `x W'` for several matrices, in one go: x is packed once, and the panels are shared out among the threads together.
///
/// # Panics
/// If the sizes do not fit.
pub fn nt_many<const N: usize>(x: &[f32], weights: [PanelView<'_>; N]) -> [Vec<f32>; N] {
    let rows = weights.first().map_or(0, |w| rows_of(x, w.k));
    let mut out = weights.map(|w| Vec::with_capacity(rows * w.n));
    let products: Vec<_> = weights.iter().zip(&mut out).map(|(w, y)| (*w, SharedMut::spare(y))).collect();
    nt_shared(x, rows, &products, false);
    for (w, y) in weights.iter().zip(&mut out) {
        // SAFETY: the product has written all of its rows x n outputs.
        unsafe { y.set_len(rows * w.n) };
    }
    out
}

/// Writes every output of every product (adds to it if `add`).
fn nt_shared(x: &[f32], rows: usize, products: &[(PanelView<'_>, SharedMut<f32>)], add: bool) {
    let k = products.first().map_or(0, |(w, _)| w.k);
    assert!(products.iter().all(|(w, _)| w.k == k), "matrices of one width");
    if rows == 0 {
        return;
    }
    let blocks = Blocks::new(rows, max_rows());
    let left = Left { packed: pack_left(&blocks, k, x, k, 1, |x| x), blocks, k };
    let per_unit = panels_per_unit(products.iter().map(|(w, _)| w.n.div_ceil(PANEL)).sum());
    let mut units = Vec::new();
    for (w, out) in products {
        let panels = w.n.div_ceil(PANEL);
        units.extend((0..panels).step_by(per_unit).map(|from| (*w, *out, from..(from + per_unit).min(panels))));
    }
    let groups = row_groups(units.len(), left.blocks.count);
    over_units(units.len() * groups, |unit| {
        let (w, out, panels) = &units[unit / groups];
        left.times_panels(*w, out, panels.clone(), group(left.blocks.count, groups, unit % groups), add);
    });
}

/// Up to how many blocks of rows a product is taken to wait for memory.
const STREAMED: usize = 2;

/// The packed left operand of [`nt`].
struct Left {
    packed: Vec<f32>,
    blocks: Blocks,
    k: usize,
}

impl Left {
    /// The product of some blocks of rows with some panels of a matrix: a part of `out` that no other unit writes.
    fn times_panels(&self, w: PanelView<'_>, out: &SharedMut<f32>, panels: Range<usize>, blocks: Range<usize>, add: bool) {
        let k = self.k;
        if self.blocks.count <= STREAMED {
            // Few rows wait for memory: each panel is read from end to end.
            for p in panels {
                cut(0..k, K_BLOCK).for_each(|part| self.times_part(w, out, p, part, blocks.clone(), add));
            }
        } else {
            // Many rows: a part of them stays in the second cache for all panels.
            for part in cut(0..k, K_BLOCK) {
                panels.clone().for_each(|p| self.times_part(w, out, p, part.clone(), blocks.clone(), add));
            }
        }
    }

    /// A part of the contraction, for panel `p` and some blocks of rows.
    fn times_part(&self, w: PanelView<'_>, out: &SharedMut<f32>, p: usize, part: Range<usize>, blocks: Range<usize>, add: bool) {
        let (n, k) = (w.n, self.k);
        let panel = &w.data[p * k * PANEL..(p + 1) * k * PANEL];
        for b in blocks {
            let (from, mr) = self.blocks.get(b);
            let run = kernel(mr);
            let a = &self.packed[from * k..(from + mr) * k];
            for chunk in cut(part.clone(), K_CHUNK) {
                let tile = Tile {
                    k: chunk.len(),
                    a: a[chunk.start * mr..chunk.end * mr].as_ptr(),
                    lda: mr,
                    b: panel[chunk.start * PANEL..chunk.end * PANEL].as_ptr(),
                    ldb: PANEL,
                    c: out.pointer(from * n + p * PANEL),
                    ldc: n,
                    lanes: PANEL.min(n - p * PANEL),
                    add: add || chunk.start > 0,
                };
                // SAFETY: `a` and `panel` were sliced to the tile's extents; rows x lanes at `c` lie in `out`, and no other unit has
                // this panel's columns.
                unsafe { run(&tile) };
            }
        }
    }
}

/// `dx [T, K] += dy [T, N] W`, `W [N, K]` in panels.
///
/// # Panics
/// If the sizes do not fit.
pub fn nn_add(dy: &[f32], w: PanelView<'_>, dx: &mut [f32]) {
    let rows = rows_of(dy, w.n);
    assert_eq!(dx.len(), rows * w.k, "dy [{rows}, {}], W [{}, {}]", w.n, w.n, w.k);
    nn_shared(dy, rows, w, SharedMut::new(dx), true);
}

/// `dy [T, N] W`, `W [N, K]` in panels.
///
/// # Panics
/// If the sizes do not fit.
pub fn nn(dy: &[f32], w: PanelView<'_>) -> Vec<f32> {
    let rows = rows_of(dy, w.n);
    // SAFETY: the product writes all of its rows x k outputs.
    unsafe { written(rows * w.k, |dx| nn_shared(dy, rows, w, dx, false)) }
}

/// Writes every output (adds to it if `add`).
fn nn_shared(dy: &[f32], rows: usize, w: PanelView<'_>, out: SharedMut<f32>, add: bool) {
    let (n, k) = (w.n, w.k);
    if rows == 0 {
        return;
    }
    let blocks = Blocks::new(rows, max_rows());
    let left = pack_left(&blocks, n, dy, n, 1, |x| x);
    let columns = k.div_ceil(PANEL);
    let groups = row_groups(columns, blocks.count);
    over_units(columns * groups, |unit| {
        let (column, own) = (unit / groups, group(blocks.count, groups, unit % groups));
        let lanes = PANEL.min(k - column * PANEL);
        let mut right = vec![0.0; K_BLOCK.min(n) * PANEL];
        for part in cut(0..n, K_BLOCK) {
            transpose_columns(w, column, part.clone(), &mut right);
            for b in own.clone() {
                let (from, mr) = blocks.get(b);
                let run = kernel(mr);
                let a = &left[from * n..(from + mr) * n];
                for chunk in cut(part.clone(), K_CHUNK) {
                    let tile = Tile {
                        k: chunk.len(),
                        a: a[chunk.start * mr..chunk.end * mr].as_ptr(),
                        lda: mr,
                        b: right[(chunk.start - part.start) * PANEL..(chunk.end - part.start) * PANEL].as_ptr(),
                        ldb: PANEL,
                        c: out.pointer(from * k + column * PANEL),
                        ldc: k,
                        lanes,
                        add: add || chunk.start > 0,
                    };
                    // SAFETY: `a` and `right` hold the chunk; rows x lanes at `c` lie in `dx`, and no other unit has these rows and columns.
                    unsafe { run(&tile) };
                }
            }
        }
    });
}

/// `out[i][j] = W[part.start + i][column * 32 + j]`: 32 input columns of some output rows, row-major (zero beyond the last column).
fn transpose_columns(w: PanelView<'_>, column: usize, part: Range<usize>, out: &mut [f32]) {
    let lanes = PANEL.min(w.k - column * PANEL);
    for (rows, p) in out.chunks_mut(PANEL * PANEL).zip(part.start / PANEL..part.end.div_ceil(PANEL)) {
        let block = &w.data[(p * w.k + column * PANEL) * PANEL..][..lanes * PANEL];
        for (i, row) in rows.chunks_exact_mut(PANEL).enumerate() {
            for (j, x) in row[..lanes].iter_mut().enumerate() {
                *x = block[j * PANEL + i];
            }
        }
    }
}

/// `dW [N, K] += dy [T, N]' x [T, K]`, `dW` in panels (`dw`: the panels of `n` output rows); tokens are summed over `chunks`, in order.
///
/// # Panics
/// If the sizes do not fit.
pub fn tn(dy: &[f32], x: &[f32], n: usize, k: usize, chunks: &[Range<usize>], dw: &mut [f32]) {
    let rows = dy.len().checked_div(n).unwrap_or(0);
    assert_eq!((dy.len(), x.len(), dw.len()), (rows * n, rows * k, n.div_ceil(PANEL) * PANEL * k), "dy [{rows}, {n}], x [{rows}, {k}]");
    if rows == 0 || k == 0 {
        return;
    }
    let blocks = Blocks::new(k, max_rows());
    let left = pack_left(&blocks, rows, x, 1, k, |x| x);
    let panels = n.div_ceil(PANEL);
    let groups = row_groups(panels, blocks.count);
    let out = SharedMut::new(dw);
    over_units(panels * groups, |unit| {
        let (p, own) = (unit / groups, group(blocks.count, groups, unit % groups));
        let lanes = PANEL.min(n - p * PANEL);
        let mut right = vec![0.0; rows * PANEL];
        for (line, row) in right.chunks_exact_mut(PANEL).zip(dy.chunks_exact(n)) {
            line[..lanes].copy_from_slice(&row[p * PANEL..p * PANEL + lanes]);
        }
        for b in own {
            let (from, mr) = blocks.get(b);
            let run = kernel(mr);
            for chunk in chunks.iter().flat_map(|chunk| cut(chunk.clone(), K_CHUNK)) {
                let a = &left[from * rows + chunk.start * mr..from * rows + chunk.end * mr];
                let tile = Tile {
                    k: chunk.len(),
                    a: a.as_ptr(),
                    lda: mr,
                    b: right[chunk.start * PANEL..chunk.end * PANEL].as_ptr(),
                    ldb: PANEL,
                    c: out.pointer((p * k + from) * PANEL),
                    ldc: PANEL,
                    lanes,
                    add: true,
                };
                // SAFETY: `a` and `right` were sliced to the chunk; rows x lanes at `c` lie in this unit's own part of the panel.
                unsafe { run(&tile) };
            }
        }
    });
}

/// [`tn`] into a whole [`PanelMatrix`].
pub fn tn_into(dy: &[f32], x: &[f32], chunks: &[Range<usize>], dw: &mut PanelMatrix) {
    let (n, k) = (dw.n(), dw.k());
    tn(dy, x, n, k, chunks, dw.data_mut());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::philox::Philox;

    fn random(n: usize, stream: u64) -> Vec<f32> {
        let r = Philox::new(1, stream);
        (0..n).map(|i| r.normal(i as u64, 0) as f32).collect()
    }

    fn close(a: &[f32], b: &[f64]) {
        assert_eq!(a.len(), b.len());
        let scale = b.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-30);
        let error = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum::<f64>().sqrt() / scale;
        assert!(error < 1e-6, "relative error {error:e}");
    }

    #[test]
    fn products_equal_f64() {
        // Miri, which interprets, gets the small ones.
        for (t, n, k) in
            [(1, 33, 5), (5, 1, 1), (2, 64, 600), (17, 45, 1100), (29, 1100, 70)].into_iter().take(if cfg!(miri) { 2 } else { 5 })
        {
            let (x, w, dy) = (random(t * k, 1), random(n * k, 2), random(t * n, 3));
            let panels = PanelMatrix::from_rows(n, k, &w);
            let f = |i: usize| f64::from(w[i]);
            let mut y = vec![0.0; t * n];
            nt(&x, panels.view(), &mut y, false);
            let want: Vec<f64> = (0..t * n).map(|i| (0..k).map(|j| f64::from(x[i / n * k + j]) * f(i % n * k + j)).sum()).collect();
            close(&y, &want);
            let dx = nn(&dy, panels.view());
            let want: Vec<f64> = (0..t * k).map(|i| (0..n).map(|j| f64::from(dy[i / k * n + j]) * f(j * k + i % k)).sum()).collect();
            close(&dx, &want);
            let mut dw = PanelMatrix::zeros(n, k);
            let chunks = [0..t / 2, t / 2..t];
            tn_into(&dy, &x, &chunks, &mut dw);
            let want: Vec<f64> =
                (0..n * k).map(|i| (0..t).map(|r| f64::from(dy[r * n + i / k]) * f64::from(x[r * k + i % k])).sum()).collect();
            close(&dw.to_rows(), &want);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (n, k) = (70, 1300);
        let (x, w) = (random(40 * k, 1), random(n * k, 2));
        let panels = PanelMatrix::from_rows(n, k, &w);
        let mut all = vec![0.0; 40 * n];
        nt(&x, panels.view(), &mut all, false);
        for rows in [1, 2, 3, 7, 13, 14, 15, 29] {
            let mut some = vec![0.0; rows * n];
            nt(&x[5 * k..(5 + rows) * k], panels.view(), &mut some, false);
            assert_eq!(some, all[5 * n..(5 + rows) * n]);
        }
    }

    #[test]
    fn weight_gradients_do_not_depend_on_the_split_of_trees() {
        let (n, k) = (40, 30);
        let (x, dy) = (random(90 * k, 1), random(90 * n, 2));
        let chunks = [0..20, 20..70, 70..90];
        let mut whole = PanelMatrix::zeros(n, k);
        tn_into(&dy, &x, &chunks, &mut whole);
        let mut parts = PanelMatrix::zeros(n, k);
        for c in chunks {
            let own = 0..c.len();
            tn_into(&dy[c.start * n..c.end * n], &x[c.start * k..c.end * k], std::slice::from_ref(&own), &mut parts);
        }
        assert_eq!(whole.data(), parts.data());
    }
}
