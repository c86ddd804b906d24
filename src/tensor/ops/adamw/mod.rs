//! One fused AdamW step (Loshchilov and Hutter 2019), element by element, in PyTorch's order of operations:
//!
//! p -= lr wd p; m += (1 - b1)(g - m); v = b2 v + (1 - b2) g^2; p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps),
//! where g is the gradient times the clip scale. Gradients, weights and moments share one layout, so the op never looks at shapes.
//!
//! The moments of large matrices may be kept in 8-bit codes with a scale a block ([`codes`]; [`panels`] on the processor): the same step on
//! decoded moments, which are coded anew in the same pass.

pub mod codes;
pub mod cuda;
pub mod panels;

use crate::tensor::cpu::parallel::{ELEMENTS, SharedMut, over_units};
use crate::tensor::cpu::vectorized;

/// The scalars of one step, formed in f64 and rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// 1 - lr wd.
    pub decay: f32,
    /// 1 - b1.
    pub one_minus_beta1: f32,
    /// b2.
    pub beta2: f32,
    /// 1 - b2.
    pub one_minus_beta2: f32,
    /// eps.
    pub eps: f32,
    /// lr / (1 - b1^t).
    pub step_size: f32,
    /// sqrt(1 - b2^t).
    pub bias2_sqrt: f32,
    /// Gradients are multiplied by it: the clip scale.
    pub grad_scale: f32,
}

/// Updates weights and moments in place.
pub fn step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Step) {
    let n = p.len();
    assert!(g.len() == n && m.len() == n && v.len() == n);
    let (p, m, v) = (SharedMut::new(p), SharedMut::new(m), SharedMut::new(v));
    over_units(n.div_ceil(ELEMENTS), |unit| {
        let from = unit * ELEMENTS;
        let len = ELEMENTS.min(n - from);
        // SAFETY: each unit has its own elements.
        let (p, m, v) = unsafe { (p.slice(from, len), m.slice(from, len), v.slice(from, len)) };
        step_slice(p, &g[from..from + len], m, v, s);
    });
}

vectorized! {
    fn step_slice(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Step) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            (*p, *m, *v) = update(*p, *g, *m, *v, s);
        }
    }
}

/// Weight and moments after the step.
#[inline(always)]
fn update(p: f32, g: f32, m: f32, v: f32, s: Step) -> (f32, f32, f32) {
    let g = g * s.grad_scale;
    let m = s.one_minus_beta1.mul_add(g - m, m);
    let v = (v * s.beta2) + (g * g) * s.one_minus_beta2;
    let denominator = v.sqrt() / s.bias2_sqrt + s.eps;
    (p * s.decay - s.step_size * (m / denominator), m, v)
}
