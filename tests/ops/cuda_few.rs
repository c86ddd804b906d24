//! Several products of few rows in one launch, and SwiGLU with its two: the bits of the launches one by one.

use crate::cuda_attention::{Mutant, mutant, rounded, upload};
use crate::cuda_checker::modes;
use crate::cuda_matmul::broken;
use crate::cuda_rmsnorm::real_gpu;
use crate::emulator;
use crate::support::{bits, tensor};
use sorft_native::Result;
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cuda::{Buffer, Emulation, Gpu, Source};
use sorft_native::tensor::ops::matmul::cuda::{self as matmul, FEW_ROWS, Layer, LowRank, Shape};
use sorft_native::tensor::ops::swiglu;
use std::sync::Arc;

/// A layer's outputs, its adapter's rank (none is 0), and whether it has a bias.
type Wanted = (usize, usize, bool);

/// A layer's operands; low stands for x a'.
struct OneLayer {
    n: usize,
    rank: usize,
    scale: f32,
    w: Tensor,
    b: Tensor,
    low: Tensor,
    bias: Option<Tensor>,
}

/// Layers of one input.
struct Case {
    m: usize,
    k: usize,
    x: Tensor,
    layers: Vec<OneLayer>,
}

/// A layer's operands on a device: w, b, low and the bias.
type OnDevice = ([Buffer; 3], Option<Buffer>);

impl Case {
    fn new(m: usize, k: usize, layers: &[Wanted]) -> Self {
        let random = |shape: [usize; 2], stream| rounded(&tensor(&shape, stream));
        let layer = |(i, &(n, rank, bias)): (usize, &Wanted)| {
            let at = 10 * (i as u64 + 1);
            OneLayer {
                n,
                rank,
                scale: 0.5 + i as f32,
                w: random([n, k], at),
                b: random([n, rank], at + 1),
                low: random([m, rank], at + 2),
                bias: bias.then(|| random([1, n], at + 3)),
            }
        };
        Self { m, k, x: random([m, k], 1), layers: layers.iter().enumerate().map(layer).collect() }
    }

    fn on(&self, gpu: &Arc<Gpu>) -> Result<(Buffer, Vec<OnDevice>)> {
        let of = |l: &OneLayer| {
            let bias = l.bias.as_ref().map(|b| upload(gpu, b)).transpose()?;
            Ok(([upload(gpu, &l.w)?, upload(gpu, &l.b)?, upload(gpu, &l.low)?], bias))
        };
        Ok((upload(gpu, &self.x)?, self.layers.iter().map(of).collect::<Result<_>>()?))
    }

    fn operands<'a>(&self, on: &'a [OnDevice]) -> Vec<Layer<'a>> {
        let of = |(l, ([w, b, low], bias)): (&OneLayer, &'a OnDevice)| {
            let adapter = (l.rank > 0).then_some(LowRank { low, matrix: b, rank: l.rank, scale: l.scale });
            Layer { w, bias: bias.as_ref(), adapter, n: l.n }
        };
        self.layers.iter().zip(on).map(of).collect()
    }

    /// All outputs, by launches of one product each.
    fn one_by_one(&self, gpu: &Arc<Gpu>) -> Result<Vec<Buffer>> {
        let (x, on) = self.on(gpu)?;
        let shape = |n| Shape { m: self.m, n, k: self.k };
        self.operands(&on).iter().map(|l| matmul::forward(gpu, &x, l.w, l.bias, l.adapter, shape(l.n))).collect()
    }

    fn many(&self, gpu: &Arc<Gpu>) -> Result<Outputs> {
        let (x, on) = self.on(gpu)?;
        outputs(&matmul::forward_many(gpu, &x, &self.operands(&on), self.m, self.k)?)
    }

    /// The first layer is the gate, the second is up.
    fn swiglu(&self, gpu: &Arc<Gpu>) -> Result<Outputs> {
        let (x, on) = self.on(gpu)?;
        let layers = self.operands(&on);
        outputs(&[matmul::forward_swiglu(gpu, &x, &layers[0], &layers[1], self.m, self.k)?])
    }

    /// What [`Case::many`] and [`Case::swiglu`] have to give.
    fn want(&self) -> [Outputs; 2] {
        let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
        let by_one = self.one_by_one(&gpu).expect("runs");
        let gated = match self.layers[..] {
            [ref gate, ref up, ..] if gate.n == up.n => outputs(&[swiglu::cuda::forward(&gpu, &by_one[0], &by_one[1]).expect("runs")]),
            _ => Ok(Vec::new()),
        };
        [outputs(&by_one).expect("downloaded"), gated.expect("downloaded")]
    }

    fn check(&self, gpu: &Arc<Gpu>, want: &[Outputs; 2]) {
        let name = || format!("{} rows, {} terms, {:?}", self.m, self.k, self.layers.iter().map(|l| (l.n, l.rank)).collect::<Vec<_>>());
        assert!(self.many(gpu).unwrap_or_else(|e| panic!("{}: {e}", name())) == want[0], "{}", name());
        if !want[1].is_empty() {
            assert!(self.swiglu(gpu).unwrap_or_else(|e| panic!("{}: {e}", name())) == want[1], "swiglu of {}", name());
        }
    }
}

/// The bits of several buffers.
type Outputs = Vec<Vec<u32>>;

fn outputs(buffers: &[Buffer]) -> Result<Outputs> {
    buffers.iter().map(|b| Ok(bits(&b.to_f32()?))).collect()
}

/// Parts that end within a tile, with and without biases and adapters of several ranks; terms that end within a chunk, and more chunks than stages.
const QKV: [Wanted; 3] = [(72, 8, true), (8, 0, false), (24, 72, true)];
const GATE_UP: [Wanted; 2] = [(40, 16, true), (40, 8, false)];

#[test]
fn products_in_one_launch_have_the_bits_of_many_under_every_schedule() {
    let layers = |ranks: [usize; 3]| ranks.map(|rank| (rank, 0, false));
    let cases = [
        Case::new(1, 584, &QKV),
        Case::new(3, 72, &layers([8, 72, 16])),
        Case::new(16, 136, &[(24, 8, false), (16, 0, true)]),
        Case::new(17, 584, &QKV),
        Case::new(64, 72, &[(40, 8, true)]),
        Case::new(200, 72, &QKV),
        Case::new(5, 584, &GATE_UP),
        Case::new(20, 584, &GATE_UP),
        Case::new(64, 72, &[(24, 0, false), (24, 0, true)]),
        Case::new(200, 40, &[(72, 0, true), (72, 8, true), (8, 0, false)]),
    ];
    for case in &cases {
        let want = case.want();
        for mode in modes() {
            case.check(&emulator::gpu(mode), &want);
        }
    }
}

/// The tile of many blocks, of which each product by itself has too few: its bits are those of the others.
#[test]
fn the_largest_tile_has_the_bits_of_the_others() {
    let case = Case::new(130, 264, &[(2080, 8, true), (2080, 0, true)]);
    let want = case.want();
    for mode in [modes()[1], modes()[5]] {
        case.check(&emulator::gpu(mode), &want);
    }
}

/// More products than a launch has parts; more rows than few, where narrow products still are one launch; none.
#[test]
fn any_number_of_products_and_rows() {
    let gpu = emulator::gpu(Emulation { check: false, ..Emulation::default() });
    let five = [(8, 8, false), (24, 0, true), (16, 0, false), (40, 8, true), (8, 0, true)];
    let rows = FEW_ROWS + 4;
    let wide = [(72, 8, true), (72, 0, false)];
    for case in [Case::new(7, 72, &five), Case::new(rows, 40, &five), Case::new(rows, 40, &wide), Case::new(0, 72, &GATE_UP)] {
        let before = gpu.counts().launches;
        case.check(&gpu, &case.want());
        let launches = gpu.counts().launches - before;
        // Of the wide ones each product is a launch, SwiGLU is three.
        let want = if case.m == 0 { 0 } else { if case.layers.len() == 5 { 2 } else { 5 } };
        assert_eq!(launches, want, "{} rows", case.m);
    }
    assert!(
        matmul::forward_many(&gpu, &upload(&gpu, &tensor(&[1, 8], 1)).expect("uploaded"), &[], 1, 8).expect("nothing to do").is_empty()
    );
}

#[test]
fn products_in_one_launch_have_the_bits_of_many_on_the_gpu() {
    let Some(gpu) = real_gpu() else { return };
    for m in [1, 16, 17, 64, 200] {
        for layers in [&[(896, 16, true), (128, 8, true), (128, 0, true)][..], &[(4864, 16, false), (4864, 16, false)]] {
            let case = Case::new(m, 896, layers);
            let by_one = case.one_by_one(&gpu).expect("runs");
            let gated = match layers.len() {
                2 => vec![swiglu::cuda::forward(&gpu, &by_one[0], &by_one[1]).expect("runs")],
                _ => Vec::new(),
            };
            case.check(&gpu, &[outputs(&by_one).expect("downloaded"), outputs(&gated).expect("downloaded")]);
        }
    }
}

/// Small launches of both kinds, for the second witness.
pub fn few_on(gpu: &Arc<Gpu>) {
    for case in [Case::new(1, 136, &QKV), Case::new(18, 72, &QKV), Case::new(5, 136, &GATE_UP), Case::new(65, 72, &GATE_UP)] {
        case.check(gpu, &case.want());
    }
    // The largest tile.
    let case = Case::new(65, 72, &[(4096, 8, true), (4096, 0, false)]);
    case.check(gpu, &case.want());
}

/// Each mistake is found by one of the cases, under both of two schedules.
fn each_is_found(mutants: &[Mutant], cases: &[Case], run: fn(&Case, &Arc<Gpu>) -> Result<Outputs>, what: usize) {
    let wants: Vec<Outputs> = cases.iter().map(|c| c.want()[what].clone()).collect();
    let right = |gpu: &Arc<Gpu>| cases.iter().zip(&wants).all(|(case, want)| run(case, gpu).is_ok_and(|got| got == *want));
    let unbroken = broken(Source::LINEAR_FEW, &mutant("nothing", "struct Pairs {", "struct Pairs {"));
    assert!(right(&emulator::open(&unbroken, modes()[3])), "the kernel itself raises no alarm, and its numbers are right");
    for mutant in mutants {
        let library = broken(Source::LINEAR_FEW, mutant);
        for mode in [modes()[0], modes()[4]] {
            assert!(!right(&emulator::open(&library, mode)), "{} under {mode:?}", mutant.name);
        }
    }
}

#[test]
fn every_mistake_in_several_products_is_found() {
    let mutants = [
        mutant("a part begins in the tile of the one before", "column -= width(a.n);", "column -= a.n;"),
        mutant("a part's last columns have no block", "(n + COLUMNS - 1) / COLUMNS * COLUMNS", "n / COLUMNS * COLUMNS"),
        mutant("the third part begins at the second's columns", "column -= width(b.n);", ""),
        mutant("the second part is the first", "< width(b.n)) return b;", "< width(b.n)) return a;"),
        mutant("the third part is the second", "PART_OF(1), PART_OF(2)", "PART_OF(1), PART_OF(1)"),
        mutant("all have the first's low product", "bias##p, s##p, b##p, rank##p", "bias##p, s0, b##p, rank##p"),
        mutant("all have the first's scale", "rank##p, scale##p }", "rank##p, scale0 }"),
        mutant("all have the first's bias", "{ w##p, bias##p,", "{ w##p, bias0,"),
        mutant("a column too many is written", "if (at_column < n) store_vec", "if (at_column <= n) store_vec"),
        mutant("rows of the other kind are read for the adapter", "Rows{{l.b, n, l.rank}, column}", "Rows{{l.b, n, l.rank}, 0}"),
    ];
    let few = [Case::new(5, 72, &[(24, 8, true), (40, 16, true), (24, 8, false)]), Case::new(20, 72, &QKV)];
    each_is_found(&mutants, &few, Case::many, 0);
}

#[test]
fn every_mistake_in_swiglu_s_products_is_found() {
    let mutants = [
        mutant("gate and up are taken for one another", "row % 16 < 8 ? a : b", "row % 16 < 8 ? b : a"),
        mutant("a warp's rows are sixteen", "row / 16 * 8 + row % 8", "row / 16 * 16 + row % 8"),
        mutant("a warp's columns are sixteen", "threadIdx.x / 32 * 8", "threadIdx.x / 32 * 16"),
        mutant("the gate is not rounded", "swish(to_f32(g.v[0]))", "swish(sum[i][0][2 * r])"),
        mutant("the gate's adapter is up's", "FIRST>(sum, shared, gate", "SECOND>(sum, shared, gate"),
        mutant("up's scale is for both", "HALF == SECOND ? 4 : 0", "0"),
        mutant("up has no scale", "HALF == FIRST ? 4 : 8", "4"),
        mutant("the gate has up's bias", "r, gate.bias, at_column", "r, up.bias, at_column"),
        mutant(
            "the second half's sums are of the first's columns",
            "ptx::mma(sum[i][1], x, y[2], y[3])",
            "ptx::mma(sum[i][1], x, y[0], y[1])",
        ),
        mutant("columns beyond the last are written", "if (at_column >= n) return;", "if (at_column > n) return;"),
        mutant("rows beyond the last are written", "if (at_row < m) put", "if (at_row <= m) put"),
        mutant("the gate is not gated", "swish(to_f32(g.v[1]))", "to_f32(g.v[1])"),
    ];
    each_is_found(&mutants, &[Case::new(5, 72, &GATE_UP), Case::new(20, 72, &GATE_UP)], Case::swiglu, 1);
}
