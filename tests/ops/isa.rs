//! Portable, AVX2, AVX-512 and AMX code give the same bits: this test program runs a small workload of every op again as a child process,
//! once for each instruction set, and compares hashes of all output bits.

use crate::support::{normal, tensor};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::{Bf16Matrix, Compute, PanelMatrix, bf16, isa};
use sorft_native::tensor::ops::attention::{self, Heads, KvLayer};
use sorft_native::tensor::ops::rope::Angles;
use sorft_native::tensor::ops::token_logprob::Keep;
use sorft_native::tensor::ops::{adamw, embedding, matmul, norm, residual, rmsnorm, rope, sample, swiglu, token_logprob};
use sorft_native::tensor::plan::{Plan, Tree};
use std::process::Command;

/// FNV-1a over the bits of all results, op by op.
#[derive(Default)]
struct Hashes(Vec<(&'static str, u64)>);

impl Hashes {
    fn add(&mut self, op: &'static str, numbers: &[&[f32]]) {
        let bytes = numbers.iter().flat_map(|n| n.iter()).flat_map(|x| x.to_bits().to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        self.0.push((op, hash));
    }
}

fn products(out: &mut Hashes) {
    for (t, n, k) in [(1, 33, 600), (5, 70, 40), (29, 45, 513)] {
        let (x, dy, w) = (tensor(&[t, k], 1), tensor(&[t, n], 2), PanelMatrix::from_rows(n, k, &normal(n * k, 3)));
        let (y, dx) = (matmul::forward(&x, &w), matmul::backward_input(&dy, &w));
        let mut dw = w.clone();
        matmul::backward_weight(&dy, &x, &[0..t / 2, t / 2..t], &mut dw);
        out.add("matmul", &[y.data(), dx.data(), dw.data()]);
        let narrow = Bf16Matrix::rounded(&w);
        let (y, dx) = (matmul::forward(&x, &narrow), matmul::backward_input(&dy, &narrow));
        let mut dw = w.clone();
        matmul::backward_weight_in(Compute::Bf16, &dy, &x, &[0..t / 2, t / 2..t], &mut dw);
        out.add("matmul in bf16", &[y.data(), dx.data(), dw.data()]);
    }
}

fn rows(out: &mut Hashes) {
    let (t, d) = (5, 77);
    let (x, dy, w) = (tensor(&[t, d], 1), tensor(&[t, d], 2), tensor(&[d], 3));
    let (y, rstd) = rmsnorm::forward(&x, &w, 1e-5).expect("nothing fails on the CPU");
    let (mut dw, chunks) = (Tensor::zeros(&[d]), [0..2, 2..t]);
    let dx = rmsnorm::backward(&dy, &x, &w, &rstd, &chunks, Some(&mut dw)).expect("nothing fails on the CPU");
    out.add("rmsnorm", &[y.data(), rstd.data(), dx.data(), dw.data()]);
    let gates = Tensor::from_vec(&[t, d], x.data().iter().map(|x| x * 30.0).collect());
    let (dgate, dup) = swiglu::backward(&dy, &gates, &x);
    out.add("swiglu", &[swiglu::forward(&gates, &x).data(), dgate.data(), dup.data()]);
    let frequencies: Vec<f32> = (0..11).map(|i| 0.7f32.powi(i)).collect();
    let mut turned = tensor(&[t, 44], 4);
    rope::forward(&mut turned, &Angles::new(&[0, 1, 50, 3000, 7], &frequencies));
    out.add("rope", &[turned.data()]);
    let mut sum = Tensor::from_vec(x.shape(), x.data().to_vec());
    residual::add_to(&mut sum, &dy);
    residual::add_bias(&mut sum, &w);
    residual::bias_gradient(&dy, &chunks, &mut dw);
    out.add("residual", &[sum.data(), dw.data()]);
    let embedded = embedding::forward(&PanelMatrix::from_rows(t, d, x.data()), &[3, 0, 4]);
    let squares = norm::sum_of_squares(x.data());
    out.add("embedding and norm", &[embedded.data(), &[squares as f32, (squares - f64::from(squares as f32)) as f32]]);
}

fn attend(out: &mut Hashes) {
    for (h, kv, d) in [(3, 1, 10), (4, 2, 64)] {
        let heads = Heads { num_heads: h, num_kv_heads: kv, head_dim: d };
        let plan = Plan::for_trees(&[Tree::prompt_with_answers(&[1; 70], &[vec![1; 5], vec![1; 60]])]);
        let t = plan.num_tokens();
        let (q, d_o) = (tensor(&[t, h * d], 1), tensor(&[t, h * d], 2));
        let (k, v) = (tensor(&[t, kv * d], 3), tensor(&[t, kv * d], 4));
        let mut layer = KvLayer::new(heads, plan.num_pages);
        layer.write(&plan.kv_slots, &k, &v);
        layer.copy(&plan.copies);
        let (o, saved) = attention::forward(&q, &layer, &plan.segments, 0.3);
        let (dq, dk, dv) = attention::backward(&d_o, &q, &o, &saved, &layer, &plan, 0.3);
        out.add("attention", &[o.data(), &saved.max, &saved.inv_sum, dq.data(), dk.data(), dv.data()]);
    }
}

fn head(out: &mut Hashes) {
    let (t, d, v) = (3, 20, 2100);
    let (h, w) = (tensor(&[t, d], 1), PanelMatrix::from_rows(v, d, &normal(v * d, 2)));
    let targets = [7, 2099, 0];
    let (logprob, entropy, saved) = token_logprob::forward(&h, &w, &targets, 0.7, Keep::ForBackward);
    let mut dw = PanelMatrix::zeros(v, d);
    let (a, b) = (normal(t, 3), normal(t, 4));
    let dh = token_logprob::backward(&h, &w, &targets, 0.7, saved, &a, Some(&b), std::slice::from_ref(&(0..t)), Some(&mut dw));
    out.add("token_logprob", &[&logprob, &entropy, dh.data(), dw.data()]);
    let logits = token_logprob::logits(&h, &w);
    let filters = sample::Filters { top_k: 0, top_p: 1.0, min_p: 0.0 };
    let draws: Vec<f32> = (0..40)
        .map(|i| sample::draw(logits.row(i % t), 0.8, sample::Filters { top_k: i / 20 * 9, ..filters }, i as f64 / 40.0))
        .flat_map(|c| [c.id as f32, c.logprob])
        .collect();
    out.add("sample", &[&draws]);
}

fn optimizer(out: &mut Hashes) {
    let n = 1003;
    let (mut p, g, mut m, mut v) = (normal(n, 1), normal(n, 2), vec![0.0; n], vec![0.0; n]);
    let scalars = adamw::Step {
        decay: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        eps: 1e-8,
        step_size: 0.0,
        bias2_sqrt: 0.0,
        grad_scale: 0.3,
    };
    for t in 1..4 {
        let (step_size, bias2_sqrt) = (1e-2 / (1.0 - 0.9f32.powi(t)), (1.0 - 0.999f32.powi(t)).sqrt());
        let scalars = adamw::Step { step_size, bias2_sqrt, ..scalars };
        adamw::step(&mut p, &g, &mut m, &mut v, scalars);
    }
    out.add("adamw", &[&p, &m, &v]);
    let (rows, cols) = (37, 523);
    let mut p = PanelMatrix::from_rows(rows, cols, &normal(rows * cols, 3));
    let mut moments = adamw::panels::Moments::zeros(rows, cols);
    for t in 1..4 {
        let g = PanelMatrix::from_rows(rows, cols, &normal(rows * cols, 3 + t));
        let scalars = adamw::Step { step_size: 1e-2, bias2_sqrt: 0.1, ..scalars };
        adamw::panels::step(&mut p, &g, &mut moments, scalars, crate::adamw_8bit::rounding(t as u32));
    }
    let (m, v) = moments.export();
    let codes: Vec<f32> = m.codes.iter().chain(&v.codes).map(|k| f32::from(*k)).collect();
    out.add("adamw in 8 bits", &[p.data(), &codes, &m.scales, &v.scales]);
}

/// Prints the hashes on lines that begin with `bits of`; the test below runs it again for each instruction set.
#[test]
fn workload() {
    let mut out = Hashes::default();
    products(&mut out);
    rows(&mut out);
    attend(&mut out);
    head(&mut out);
    optimizer(&mut out);
    println!("\ninstruction set {:?}{}", isa(), if bf16::has_amx() { " and AMX" } else { "" });
    for (op, hash) in &out.0 {
        println!("bits of {op}: {hash:016x}");
    }
}

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let run = |set: &str| {
        let program = std::env::current_exe().expect("the path of this test program");
        let output = Command::new(program).args(["isa::workload", "--exact", "--nocapture"]).env("SORFT_ISA", set).output();
        let output = output.expect("this test program runs again");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let used = text.lines().find_map(|l| l.strip_prefix("instruction set ")).expect("the set in use").to_owned();
        let hashes: Vec<String> = text.lines().filter(|l| l.starts_with("bits of")).map(str::to_owned).collect();
        assert!(hashes.len() >= 12, "{text}");
        (used, hashes)
    };
    let (used, want) = run("portable");
    assert_eq!(used, "Portable");
    for (set, name) in [("avx2", "Avx2"), ("avx512", "Avx512"), ("amx", "Avx512 and AMX")] {
        let (used, hashes) = run(set);
        if used != name {
            eprintln!("skipped: this processor has no {name}; {used} was used");
        }
        assert_eq!(want, hashes, "portable against {used}");
    }
}
