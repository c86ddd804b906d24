use sorft_native::model::config::*;
use sorft_native::model::generate::*;
use sorft_native::model::optimizer::*;
use sorft_native::model::transformer::*;
use sorft_native::tensor::philox::Philox;
use sorft_native::tensor::plan::*;
use std::time::Instant;
fn main() {
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    let c = ModelConfig {
        family: Family::Llama,
        vocab_size: 49152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        rope_theta: 1e5,
        rope_scaling: RopeScaling::None,
        rms_norm_eps: 1e-5,
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        eos_token_ids: vec![],
        bos_token_id: None,
    };
    let mut s = 0;
    let mut m = Transformer::build(c, &mut |i| {
        s += 1;
        let r = Philox::new(1, s);
        Ok((0..i.shape.iter().product::<usize>())
            .map(|j| if i.shape.len() == 1 { 1.0 } else { (r.uniform(j as u64, 0) as f32 - 0.5) * 0.1 })
            .collect())
    })
    .unwrap();
    let ids: Vec<u32> = (0..512).map(|i| (i * 97 % 49152) as u32).collect();
    for b in [1, 16] {
        for _ in 0..2 {
            let t = Instant::now();
            let p = SamplingParams { n: b, max_new_tokens: 32, ..Default::default() };
            let out = generate(&m, None, &[ids[..64].to_vec()], &p, b, &mut |_| true).unwrap();
            let n: usize = out.iter().map(|c| c.ids.len()).sum();
            println!("decode {b}: {:.1} tok/s", n as f64 / t.elapsed().as_secs_f64());
        }
    }
    let targets: Vec<bool> = (0..512).map(|i| i == 511).collect();
    let plan = Plan::for_trees(&[Tree::sequence(&ids, &targets)]);
    for _ in 0..3 {
        let t = Instant::now();
        m.evaluate(&plan, 1.0, Adapter::On).unwrap();
        println!("prefill {:.1} tok/s", 512.0 / t.elapsed().as_secs_f64());
    }
    let plan = Plan::for_trees(&[Tree::sequence(&ids, &vec![true; 512])]);
    let mut g = m.gradients();
    let mut o = AdamW::new(
        &m,
        AdamWConfig { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, decay_norms_and_biases: false, max_grad_norm: 1.0 },
    );
    for i in 0..3 {
        let t = Instant::now();
        g.zero();
        let a = t.elapsed();
        let (_, sv) = m.forward(&plan, 1.0, false).unwrap();
        let b = t.elapsed();
        m.backward(&plan, sv, &vec![-0.01; 511], None, &mut g).unwrap();
        let c = t.elapsed();
        o.step(&mut m, &mut g, 1e-6, i + 1).unwrap();
        println!(
            "train {:.1} tok/s zero {:.2} fwd {:.2} bwd {:.2} opt {:.2}",
            512.0 / t.elapsed().as_secs_f64(),
            a.as_secs_f64(),
            (b - a).as_secs_f64(),
            (c - b).as_secs_f64(),
            (t.elapsed() - c).as_secs_f64()
        );
    }
}
