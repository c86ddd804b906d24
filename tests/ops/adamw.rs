//! AdamW against `torch.optim.AdamW` (`adamw_reference.py` made the numbers) and against itself in f64.

use crate::support::{bits, close, error, normal, same_on_any_threads, wide};
use sorft_native::tensor::ops::adamw::{self, Step};

struct Config {
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    decay: f64,
}

impl Config {
    /// The scalars of step `t`, from 1, as the optimizer forms them.
    fn scalars(&self, t: i32, grad_scale: f64) -> Step {
        Step {
            decay: (1.0 - self.lr * self.decay) as f32,
            one_minus_beta1: (1.0 - self.betas.0) as f32,
            beta2: self.betas.1 as f32,
            one_minus_beta2: (1.0 - self.betas.1) as f32,
            eps: self.eps as f32,
            step_size: (self.lr / (1.0 - self.betas.0.powi(t))) as f32,
            bias2_sqrt: (1.0 - self.betas.1.powi(t)).sqrt() as f32,
            grad_scale: grad_scale as f32,
        }
    }
}

fn numbers(v: &serde_json::Value) -> Vec<f64> {
    v.as_array().expect("an array").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn narrow(v: &serde_json::Value) -> Vec<f32> {
    numbers(v).into_iter().map(|x| x as f32).collect()
}

/// After every step as near to float64 as PyTorch's own f32 is, within a factor of 2, and in any case within 3e-7.
#[test]
fn steps_equal_pytorch() {
    let reference: serde_json::Value = serde_json::from_str(include_str!("adamw_reference.json")).expect("the reference file");
    for case in reference["cases"].as_array().expect("cases") {
        let c = &case["config"];
        let number = |name: &str| c[name].as_f64().expect("a number");
        let betas = numbers(&c["betas"]);
        let config = Config { lr: number("lr"), betas: (betas[0], betas[1]), eps: number("eps"), decay: number("weight_decay") };
        let mut p = narrow(&case["start"]);
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        let near = |what: &str, got: &[f32], exact: &serde_json::Value, own: &serde_json::Value| {
            let exact = numbers(exact);
            let torch = error(&narrow(own), &exact);
            close(what, got, &exact, (2.0 * torch).clamp(6e-8, 3e-7));
        };
        for (t, g) in case["grads"].as_array().expect("gradients").iter().enumerate() {
            adamw::step(&mut p, &narrow(g), &mut m, &mut v, config.scalars(t as i32 + 1, 1.0));
            near(&format!("p, lr {}, after step {}", config.lr, t + 1), &p, &case["float64"]["p"][t], &case["float32"]["p"][t]);
        }
        near("m", &m, &case["float64"]["m"], &case["float32"]["m"]);
        near("v", &v, &case["float64"]["v"], &case["float32"]["v"]);
    }
}

/// The formula of the room's head, in f64, over more than one work unit; gradients scaled by the clip.
#[test]
fn steps_equal_f64() {
    let config = Config { lr: 1e-2, betas: (0.9, 0.99), eps: 1e-8, decay: 0.1 };
    for n in [1, 17, 40_000] {
        let (mut p, mut m, mut v) = (normal(n, 1), vec![0.0; n], vec![0.0; n]);
        let (mut p64, mut m64, mut v64) = (wide(&p), vec![0.0f64; n], vec![0.0f64; n]);
        for t in 1..=10 {
            let g = normal(n, 10 + t as u64);
            adamw::step(&mut p, &g, &mut m, &mut v, config.scalars(t, 0.25));
            let (b1, b2) = config.betas;
            for i in 0..n {
                let g = f64::from(g[i]) * 0.25;
                m64[i] = b1 * m64[i] + (1.0 - b1) * g;
                v64[i] = b2 * v64[i] + (1.0 - b2) * g * g;
                let (m, v) = (m64[i] / (1.0 - b1.powi(t)), v64[i] / (1.0 - b2.powi(t)));
                p64[i] = p64[i] * (1.0 - config.lr * config.decay) - config.lr * m / (v.sqrt() + config.eps);
            }
        }
        close(&format!("p of {n}"), &p, &p64, 3e-7);
        close(&format!("m of {n}"), &m, &m64, 3e-7);
        close(&format!("v of {n}"), &v, &v64, 3e-7);
    }
}

/// The zero padding of panel-packed matrices goes through the step as well and stays zero.
#[test]
fn padding_stays_zero() {
    let config = Config { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, decay: 0.1 };
    let (mut p, g, mut m, mut v) = (vec![0.0; 40], vec![0.0; 40], vec![0.0; 40], vec![0.0; 40]);
    for t in 1..4 {
        adamw::step(&mut p, &g, &mut m, &mut v, config.scalars(t, 1.0));
    }
    assert!(p.iter().chain(&m).chain(&v).all(|x| *x == 0.0));
}

/// Weights are updated element by element: neither their place nor the number of threads changes a bit.
#[test]
fn bits_do_not_depend_on_place_or_threads() {
    let config = Config { lr: 1e-2, betas: (0.9, 0.999), eps: 1e-8, decay: 0.1 };
    let n = 50_000;
    let (start, g) = (normal(n, 1), normal(n, 2));
    let run = |from: usize, to: usize| {
        let (mut p, mut m, mut v) = (start[from..to].to_vec(), vec![0.0; to - from], vec![0.0; to - from]);
        for t in 1..3 {
            adamw::step(&mut p, &g[from..to], &mut m, &mut v, config.scalars(t, 0.5));
        }
        p
    };
    let all = run(0, n);
    for (from, to) in [(3, 4), (16_380, 16_390), (33_333, n)] {
        assert!(bits(&run(from, to)) == bits(&all[from..to]));
    }
    same_on_any_threads("adamw", || run(0, n));
}
