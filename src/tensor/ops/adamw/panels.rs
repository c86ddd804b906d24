//! AdamW on the processor with moments in 8-bit codes: the room's step, the moments decoded before it and coded anew after, in one pass.
//!
//! A matrix lies in panels of 32 rows, so 32 blocks (256 columns of a panel) lie together, number by number side by side: a vector's lanes
//! are different blocks, and a block's largest magnitude is a lane's. The update uses the moments as they are in f32; only what is kept is
//! coded. So the bits depend on neither threads nor instruction sets, and they are the device's.

use super::codes::{BLOCK, Coded, Rounding, code_first, code_second, first, scale, second};
use super::{Step, update};
use crate::tensor::cpu::aligned::AlignedVec;
use crate::tensor::cpu::panels::PANEL;
use crate::tensor::cpu::parallel::{SharedMut, over_units};
use crate::tensor::cpu::{PanelMatrix, vectorized};

/// A moment of a matrix `[n, k]`.
struct Moment {
    /// `[ceil(n / 32)][k][32]` bytes, as the matrix lies.
    codes: AlignedVec,
    /// `[ceil(n / 32)][ceil(k / 256)][32]`.
    scales: AlignedVec,
}

/// Both moments of a matrix `[n, k]` in codes.
pub struct Moments {
    n: usize,
    k: usize,
    first: Moment,
    second: Moment,
}

impl Moments {
    /// Moments of zero for a matrix.
    pub fn zeros(n: usize, k: usize) -> Self {
        let panels = n.div_ceil(PANEL);
        // Four codes in the room of an f32: memory as weights have it, in large pages.
        let moment = || Moment {
            codes: AlignedVec::lasting(panels * k * (PANEL / 4)),
            scales: AlignedVec::lasting(panels * k.div_ceil(BLOCK) * PANEL),
        };
        Self { n, k, first: moment(), second: moment() }
    }

    /// First and second moment, as they are saved.
    pub fn export(&self) -> (Coded, Coded) {
        (self.first.export(self.n, self.k), self.second.export(self.n, self.k))
    }

    /// Replaces both.
    ///
    /// # Panics
    /// If there are not as many codes and scales as the matrix has.
    pub fn import(&mut self, first: &Coded, second: &Coded) {
        self.first.import(self.n, self.k, first);
        self.second.import(self.n, self.k, second);
    }
}

impl Moment {
    fn export(&self, n: usize, k: usize) -> Coded {
        let codes: &[u8] = bytemuck::cast_slice(&self.codes);
        Coded { codes: to_rows(codes, n, k), scales: to_rows(&self.scales, n, k.div_ceil(BLOCK)) }
    }

    fn import(&mut self, n: usize, k: usize, from: &Coded) {
        set_rows(bytemuck::cast_slice_mut(&mut self.codes), n, k, &from.codes);
        set_rows(&mut self.scales, n, k.div_ceil(BLOCK), &from.scales);
    }
}

/// Rows `[n, k]` of panels.
fn to_rows<T: Copy>(panels: &[T], n: usize, k: usize) -> Vec<T> {
    (0..n).flat_map(|row| (0..k).map(move |c| panels[place(row, c, k)])).collect()
}

/// Panels of rows `[n, k]`.
fn set_rows<T: Copy>(panels: &mut [T], n: usize, k: usize, rows: &[T]) {
    assert_eq!(rows.len(), n * k, "a [{n}, {k}] matrix");
    for (i, x) in rows.iter().enumerate() {
        panels[place(i / k, i % k, k)] = *x;
    }
}

fn place(row: usize, column: usize, k: usize) -> usize {
    (row / PANEL * k + column) * PANEL + row % PANEL
}

/// Updates a matrix and its moments in place by its gradient, in the same layout.
///
/// # Panics
/// If the shapes differ.
pub fn step(p: &mut PanelMatrix, g: &PanelMatrix, moments: &mut Moments, s: Step, rounding: Rounding) {
    let (n, k) = (p.n(), p.k());
    assert!((g.n(), g.k()) == (n, k) && (moments.n, moments.k) == (n, k), "a [{n}, {k}] matrix");
    let blocks = k.div_ceil(BLOCK);
    let (first, second) = (&mut moments.first, &mut moments.second);
    let (g, p) = (g.data(), SharedMut::new(p.data_mut()));
    let codes =
        [SharedMut::<u8>::new(bytemuck::cast_slice_mut(&mut first.codes)), SharedMut::new(bytemuck::cast_slice_mut(&mut second.codes))];
    let scales = [SharedMut::<f32>::new(&mut first.scales), SharedMut::new(&mut second.scales)];
    over_units(n.div_ceil(PANEL) * blocks, |unit| {
        let (panel, block) = (unit / blocks, unit % blocks);
        let from = (panel * k + block * BLOCK) * PANEL;
        let len = BLOCK.min(k - block * BLOCK) * PANEL;
        // SAFETY: each unit has its own blocks: their numbers, their codes, their scales.
        let (p, m, v) = unsafe { (p.slice(from, len), codes[0].slice(from, len), codes[1].slice(from, len)) };
        // SAFETY: as above.
        let (m_scale, v_scale) = unsafe { (scales[0].slice(unit * PANEL, PANEL), scales[1].slice(unit * PANEL, PANEL)) };
        step_blocks(p, &g[from..from + len], m, v, m_scale, v_scale, s, rounding, [block * BLOCK, panel * PANEL]);
    });
}

/// What a step works on at a time: 32 blocks' moments in f32.
type Wide = [[f32; PANEL]; BLOCK];

vectorized! {
    fn step_blocks(
        p: &mut [f32],
        g: &[f32],
        m: &mut [u8],
        v: &mut [u8],
        m_scale: &mut [f32],
        v_scale: &mut [f32],
        s: Step,
        rounding: Rounding,
        at: [usize; 2],
    ) {
        let (p, g) = (p.as_chunks_mut::<PANEL>().0, g.as_chunks::<PANEL>().0);
        let (m, v) = (m.as_chunks_mut::<PANEL>().0, v.as_chunks_mut::<PANEL>().0);
        let (m_scale, v_scale): (&mut [f32; PANEL], &mut [f32; PANEL]) =
            (m_scale.try_into().expect("a panel's"), v_scale.try_into().expect("a panel's"));
        let (mut m_wide, mut v_wide): (Wide, Wide) = ([[0.0; PANEL]; BLOCK], [[0.0; PANEL]; BLOCK]);
        let (mut m_top, mut v_top) = ([0f32; PANEL], [0f32; PANEL]);
        for ((((p, g), (m, v)), m_wide), v_wide) in p.iter_mut().zip(g).zip(m.iter().zip(&*v)).zip(&mut m_wide).zip(&mut v_wide) {
            for i in 0..PANEL {
                let (m0, v0) = (first(m[i], m_scale[i]), second(v[i], v_scale[i]));
                (p[i], m_wide[i], v_wide[i]) = update(p[i], g[i], m0, v0, s);
                m_top[i] = m_top[i].max(m_wide[i].abs());
                v_top[i] = v_top[i].max(v_wide[i]);
            }
        }
        let (mut m_inverse, mut v_inverse) = ([0f32; PANEL], [0f32; PANEL]);
        for i in 0..PANEL {
            (m_scale[i], m_inverse[i]) = scale(m_top[i]);
            (v_scale[i], v_inverse[i]) = scale(v_top[i]);
        }
        let wide = m_wide.chunks(4).zip(v_wide.chunks(4));
        for (group, ((m, v), (m_wide, v_wide))) in m.chunks_mut(4).zip(v.chunks_mut(4)).zip(wide).enumerate() {
            let bits = rounding.lanes::<PANEL>((at[0] / 4 + group) as u32, at[1] as u32);
            for ((((m, v), m_wide), v_wide), bits) in m.iter_mut().zip(v).zip(m_wide).zip(v_wide).zip(&bits) {
                for i in 0..PANEL {
                    m[i] = code_first(m_wide[i], m_inverse[i], bits[i]);
                    v[i] = code_second(v_wide[i], v_inverse[i], bits[i]);
                }
            }
        }
    }
}
