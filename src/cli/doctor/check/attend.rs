//! Attention: whole, split, and backward, for every width of a head.

use super::{Check, random};
use crate::Result;
use crate::tensor::Tensor;
use crate::tensor::cuda::Buffer;
use crate::tensor::ops::attention::cuda::work::Cut;
use crate::tensor::ops::attention::cuda::{self, BackwardWork, DeviceKv, PageCopies, Work};
use crate::tensor::ops::attention::{self, Heads, KvLayer};
use crate::tensor::plan::{Plan, Tree};

const BOUND: f64 = 6e-3;

pub(super) fn run(check: &mut Check) -> Result<()> {
    for head_dim in [64, 96, 128] {
        of_width(check, Heads { num_heads: 6, num_kv_heads: 2, head_dim })?;
    }
    Ok(())
}

fn of_width(check: &mut Check, heads: Heads) -> Result<()> {
    let gpu = check.gpu.clone();
    let Heads { num_heads, num_kv_heads, head_dim } = heads;
    let prompt = check.size(700, 70);
    let answers = [vec![1; check.size(300, 9)], vec![1; 5]];
    let plan = Plan::for_trees(&[Tree::prompt_with_answers(&vec![1; prompt], &answers), Tree::sequence(&[1; 3], &[true; 3])]);
    let (t, scale) = (plan.num_tokens(), (head_dim as f32).powf(-0.5));
    let (q, d_o) = (random(t * num_heads * head_dim, 1), random(t * num_heads * head_dim, 2));
    let (k, v) = (random(t * num_kv_heads * head_dim, 3), random(t * num_kv_heads * head_dim, 4));
    let tensor = |x: &[f32]| Tensor::from_vec(&[t, x.len() / t], x.to_vec());

    let slots: Vec<u32> = plan.kv_slots.iter().flat_map(|(page, slot)| [*page, *slot]).collect();
    let mut kv = DeviceKv::new(&gpu, heads, plan.num_pages)?;
    kv.write(&Buffer::from_u32(&gpu, &slots)?, &check.upload(&k)?, &check.upload(&v)?)?;
    kv.copy(&PageCopies::new(&gpu, &plan.copies)?)?;
    let q_on = check.upload(&q)?;
    let forward = |cut| cuda::forward(&gpu, &q_on, &kv, &Work::cut(&gpu, &plan.segments, heads, cut)?, scale);
    let (o, lse) = forward(Cut::Whole)?;
    let split = forward(Cut::Split)?.0;

    let mut pages = KvLayer::new(heads, plan.num_pages);
    pages.write(&plan.kv_slots, &tensor(&k), &tensor(&v));
    pages.copy(&plan.copies);
    let (want, saved) = attention::forward(&tensor(&q), &pages, &plan.segments, scale);
    let at = |what: &str| format!("attention {what}, heads of {head_dim}");
    check.close(&at("forward"), &o.to_f32()?, want.data(), BOUND)?;
    check.same(&at("split as whole"), &split.to_f32()?, &o.to_f32()?)?;
    let work = BackwardWork::new(&gpu, &plan, heads)?;
    let got = cuda::backward(&gpu, &check.upload(&d_o)?, &q_on, &o, &lse, &kv, &work, scale)?;
    let want = attention::backward(&tensor(&d_o), &tensor(&q), &want, &saved, &pages, &plan, scale);
    check.close(&at("dq"), &got.0.to_f32()?, want.0.data(), 2.0 * BOUND)?;
    check.close(&at("dk"), &got.1.to_f32()?, want.1.data(), 2.0 * BOUND)?;
    check.close(&at("dv"), &got.2.to_f32()?, want.2.data(), 2.0 * BOUND)
}
