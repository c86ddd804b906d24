//! Mistakes planted in the assembly of `kernels/ptx.cuh` and `kernels/hopper.cuh`, which the emulator never sees: the witnesses differ, or the interpreter
//! refuses the PTX by its line.

use crate::attention::heads;
use crate::cuda_attention::{self, Mutant, inputs, mutant};
use crate::ptx_witness::{conforms, kept};
use crate::witness::{self, ARCHITECTURE};
use crate::{cuda_attention_backward, cuda_matmul, emulator};
use rayon::prelude::*;
use sorft_native::Result;
use sorft_native::tensor::cuda::{Buffer, DType, Gpu, Source, conformance};
use sorft_native::tensor::ops::attention::cuda::Passes;
use sorft_native::tensor::ops::attention::cuda::work::Cut;
use sorft_native::tensor::ops::rmsnorm;
use sorft_native::tensor::plan::Plan;
use std::sync::Arc;

/// The headers that mistakes may stand in, those before that include them.
const HEADERS: [(&str, &str); 6] = [
    ("linear_hopper.cuh", include_str!("../../kernels/linear_hopper.cuh")),
    ("hopper.cuh", include_str!("../../kernels/hopper.cuh")),
    ("hopper_store.cuh", include_str!("../../kernels/hopper_store.cuh")),
    ("hopper_cluster.cuh", include_str!("../../kernels/hopper_cluster.cuh")),
    ("sorft.cuh", include_str!("../../kernels/sorft.cuh")),
    ("ptx.cuh", include_str!("../../kernels/ptx.cuh")),
];

/// A source with one mistake, which may stand in a header: all in one text.
fn broken(source: Source, mutant: &Mutant) -> Source {
    let whole = HEADERS.iter().fold(source.text.to_owned(), |text, (name, header)| {
        text.replacen(&format!("#include \"{name}\""), &header.replacen("#pragma once", "", 1), 1)
    });
    assert_eq!(whole.matches(mutant.from).count(), 1, "{}: the place is unique", mutant.name);
    Source { file: source.file, text: kept(whole.replacen(mutant.from, mutant.to, 1)) }
}

#[test]
fn mistakes_in_assembly_are_found() {
    let mutants = [
        mutant("the halves of b are swapped", "\"r\"(b0), \"r\"(b1)", "\"r\"(b1), \"r\"(b0)"),
        mutant("pieces of a are swapped", "\"r\"(a[1]), \"r\"(a[2])", "\"r\"(a[2]), \"r\"(a[1])"),
        mutant("the sums that come in are swapped", "{%8, %9}, {%0, %1, %2, %3}", "{%8, %9}, {%1, %0, %2, %3}"),
        mutant("the sums that go out are swapped", "f32 {%0, %1, %2, %3}, {%4", "f32 {%0, %2, %1, %3}, {%4"),
        mutant("no .trans", "x4.trans.shared", "x4.shared"),
        mutant(".trans where there is none", "x4.shared", "x4.trans.shared"),
        mutant("the halves of a pair are swapped", "\"f\"(hi), \"f\"(lo)", "\"f\"(lo), \"f\"(hi)"),
        mutant("waits for one group too few", "\"n\"(PENDING)", "\"n\"(PENDING + 1)"),
        mutant("copies are in no group", "asm volatile(\"cp.async.commit_group;\"", "asm volatile(\"\""),
        mutant("what is not valid is read", "\"r\"(valid ? 16 : 0) : \"memory\"", "\"r\"(16) : \"memory\""),
        mutant("half of the bytes", "\"r\"(valid ? 16 : 0) : \"memory\"", "\"r\"(valid ? 8 : 0) : \"memory\""),
        mutant("2^x for the logarithm", "asm(\"lg2.approx", "asm(\"ex2.approx"),
        mutant("subnormal numbers are kept", "asm(\"ex2.approx.ftz", "asm(\"ex2.approx"),
    ];
    let library = emulator::all_kernels();
    let device = |source: Source, mutant: &Mutant| witness::gpu_of(library, broken(source, mutant));
    let Some(gpu) = device(Source::CONFORMANCE, &mutant("nothing", "asm(\"lg2.approx", "asm(\"lg2.approx")) else { return };
    conforms(&gpu);
    mutants.par_iter().for_each(|mutant| {
        let gpu = device(Source::CONFORMANCE, mutant).expect("there is a compiler");
        let error = conformance::run(&gpu).map(|_| ()).expect_err(mutant.name).to_string();
        println!("{}: {error}", mutant.name);
        assert!(error.contains("differ in") || error.contains("PTX line"), "{}: {error}", mutant.name);
    });
    // In a kernel: the mask of a shuffle, whose first sum needs the lanes that it leaves out.
    let mask = mutant(
        "half of a mask",
        "v += __shfl_xor_sync(FULL_WARP, v, mask);\n  return v;",
        "v += __shfl_xor_sync(0xffffu, v, mask);\n  return v;",
    );
    let gpu = device(Source::RMSNORM, &mask).expect("there is a compiler");
    let [x, w] = [&[1.0; 64][..], &[1.0; 64]].map(|x| Buffer::from_f32(&gpu, DType::Bf16, x).expect("uploaded"));
    let error = rmsnorm::cuda::forward(&gpu, &x, &w, 1, 64, 1e-5).expect_err(mask.name).to_string();
    assert!(error.contains("is given by lanes"), "{error}");
}

/// Launches that take one kernel of a source through mistakes in `hopper.cuh`, and the mistakes.
struct Broken {
    source: Source,
    /// All of them where it is empty.
    kernel: &'static str,
    run: fn(&Arc<Gpu>) -> Result<()>,
    mutants: &'static [Mutant],
}

/// A source with this kernel alone, which is sooner compiled.
fn narrow(source: Source, kernel: &str) -> Source {
    // Kernels that a macro makes for heads of each width.
    let width = kernel.rsplit_once("_d").map_or("", |(_, width)| width);
    let is_of_another_width = |line: &str| line.starts_with("ATTENTION_") && !line.contains(&format!("({width}"));
    let (mut text, mut one) = (String::new(), String::new());
    for line in source.text.lines().filter(|line| !is_of_another_width(line)) {
        let to = if line.starts_with("extern \"C\"") || !one.is_empty() { &mut one } else { &mut text };
        to.push_str(line);
        to.push('\n');
        if let Some(name) = line.strip_prefix("SORFT_EXPORT(").or_else(|| line.strip_prefix("SORFT_EXPORT_CLUSTER(")) {
            let own = std::mem::take(&mut one);
            text.push_str(if name.split([',', ')']).next() == Some(kernel) { &own } else { "" });
        }
    }
    Source { file: source.file, text: kept(text) }
}

const HOPPER_MISTAKES: [Broken; 6] = [
    Broken {
        source: Source::LINEAR_HOPPER,
        kernel: "linear_dw_hopper",
        // One tile of more chunks than there are stages.
        run: |gpu| {
            let case = cuda_matmul::Case::new(270, 72, 136, 8, vec![0..7, 7..270]);
            cuda_matmul::add_scaled(gpu, &case, &mut cuda_matmul::zeros(gpu, &case), 1.0)
        },
        mutants: &[
            mutant("sums are swapped", "\" %64, %65, %66, %67, %68,", "\" %65, %64, %66, %67, %68,"),
            mutant("sums of two rows are swapped", "\"+f\"(d[16][1]), \"+f\"(d[16][2])", "\"+f\"(d[16][2]), \"+f\"(d[16][1])"),
            mutant("the operands are swapped", "\" %128, %129, p,", "\" %129, %128, p,"),
            mutant("a is transposed", "p, 1, 1, %131, %132;}", "p, 1, 1, 0, %132;}"),
            mutant("the wrong half of what is kept", "setp.ne.b32 p, %130, 0;", "setp.eq.b32 p, %130, 0;"),
            mutant("a is subtracted", "p, 1, 1, %131, %132;}", "p, -1, 1, %131, %132;}"),
            mutant("another swizzle", "| 1ull << 62", "| 2ull << 62"),
            mutant("the strides are swapped", "(first >> 4 & 0x3fff) << 16", "(second >> 4 & 0x3fff) << 16"),
            mutant("row and column are swapped", "{%3, %4}], [%2]", "{%4, %3}], [%2]"),
            mutant("the tile in the place of its barrier", "[%0], [%1, {%3, %4}], [%2]", "[%2], [%1, {%3, %4}], [%0]"),
            mutant(
                "bytes are not announced",
                "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
                "mbarrier.arrive.shared::cta.b64 _, [%0];",
            ),
            mutant("fewer bytes are announced", "\"r\"(bytes)", "\"r\"(bytes / 2)"),
            mutant("more bytes are announced", "\"r\"(bytes)", "\"r\"(bytes + 16)"),
            mutant("the other parity", "\"r\"(parity)", "\"r\"(parity ^ 1)"),
            mutant("one look is enough", "while (!done);", "while (false);"),
            mutant("fewer arrive than a barrier is made for", "\"r\"(count)", "\"r\"(count + 1)"),
            mutant("more arrive than a barrier is made for", "\"r\"(count)", "\"r\"(count == 8 ? 4 : count)"),
            mutant("nobody arrives", "mbarrier.arrive.shared::cta.b64 _, [%0];", ""),
            mutant("barriers are not announced", "fence.mbarrier_init.release.cluster;", ""),
            mutant("stores are not fenced", "fence.proxy.async.shared::cta;", ""),
            mutant("half of a group meets", "\"r\"(id), \"r\"(threads)", "\"r\"(id), \"r\"(threads / 2)"),
            mutant("the groups meet", "\"r\"(id), \"r\"(threads)", "\"r\"(1), \"r\"(threads)"),
            mutant("sums are not fenced", "asm volatile(\"wgmma.fence.sync.aligned;\"", "asm volatile(\"\""),
            mutant("products are in no group", "asm volatile(\"wgmma.commit_group.sync.aligned;\"", "asm volatile(\"\""),
            mutant("products are not waited for", "wgmma.wait_group.sync.aligned %0;", "// %0"),
            mutant(
                "one group too few is waited for",
                "wait_group.sync.aligned %0;\" ::\"n\"(PENDING)",
                "wait_group.sync.aligned %0;\" ::\"n\"(PENDING + 1)",
            ),
            mutant(
                "registers are taken before they are given",
                "setmaxnreg.dec.sync.aligned.u32 %0;\" ::\"n\"(REGISTERS)",
                "setmaxnreg.dec.sync.aligned.u32 %0;\" ::\"n\"(REGISTERS + 8)",
            ),
        ],
    },
    Broken {
        source: Source::ATTENTION_HOPPER,
        kernel: "attention_hopper_d96",
        run: |gpu| {
            let (heads, plan) = (heads(3, 1, 96), Plan::for_trees(&cuda_attention_backward::group()));
            cuda_attention::run(gpu, heads, &plan, &inputs(heads, plan.num_tokens()), Cut::Whole).map(|_| ())
        },
        mutants: &[
            mutant("registers of a are swapped", "{%48, %49, %50, %51}, %52", "{%48, %50, %49, %51}, %52"),
            mutant("b is transposed", "%52, p, 1, 1, %53;}", "%52, p, 1, 1, 0;}"),
            mutant(
                "sums of two rows are swapped",
                "\"+f\"(d[11][1]), \"+f\"(d[11][2]), \"+f\"(d[11][3])\n      :",
                "\"+f\"(d[11][2]), \"+f\"(d[11][1]), \"+f\"(d[11][3])\n      :",
            ),
            mutant(
                "sums begin afresh",
                "{.reg .pred p; setp.eq.u32 p, 0, 0;\"\n      \"wgmma.mma_async.sync.aligned.m64n96k16",
                "{.reg .pred p; setp.ne.u32 p, 0, 0;\"\n      \"wgmma.mma_async.sync.aligned.m64n96k16",
            ),
            mutant("the other parity", "\"r\"(parity)", "\"r\"(parity ^ 1)"),
            mutant("row and column are swapped", "{%3, %4}], [%2]", "{%4, %3}], [%2]"),
            mutant(
                "one group too few is waited for",
                "wait_group.sync.aligned %0;\" ::\"n\"(PENDING)",
                "wait_group.sync.aligned %0;\" ::\"n\"(PENDING + 1)",
            ),
            mutant("stores are not fenced", "fence.proxy.async.shared::cta;", ""),
        ],
    },
    Broken {
        source: Source::ATTENTION_BWD_KV_HOPPER,
        kernel: "attention_bwd_kv_hopper_d64",
        run: |gpu| {
            let (heads, plan) = (heads(3, 1, 64), Plan::for_trees(&cuda_attention_backward::group()));
            cuda_attention_backward::run_in(gpu, Passes::Two, heads, &plan, &inputs(heads, plan.num_tokens())).map(|_| ())
        },
        mutants: &[
            mutant("head and token are swapped", "{%3, %4, %5}], [%2]", "{%3, %5, %4}], [%2]"),
            mutant(
                "two of three coordinates",
                "tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}]",
                "tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}]",
            ),
            mutant("registers of a are swapped", "{%32, %33, %34, %35}, %36", "{%32, %34, %33, %35}, %36"),
            mutant("what is kept", "setp.ne.b32 p, %34, 0;", "setp.eq.b32 p, %34, 0;"),
            mutant("fewer bytes are announced", "\"r\"(bytes)", "\"r\"(bytes - 16)"),
        ],
    },
    Broken {
        source: Source::ATTENTION_BWD_HOPPER,
        kernel: "attention_bwd_hopper_d64",
        run: |gpu| {
            let (heads, plan) = (heads(3, 1, 64), Plan::for_trees(&cuda_attention_backward::group()));
            cuda_attention_backward::run_in(gpu, Passes::One, heads, &plan, &inputs(heads, plan.num_tokens())).map(|_| ())
        },
        mutants: &[
            mutant("a is not by rows", "p, 1, 1, %35, %36;}", "p, 1, 1, 0, %36;}"),
            mutant("another number is waited for", "ld.acquire.gpu.global.u32 %0, [%1];", "ld.acquire.gpu.global.u32 %0, [%1+2];"),
            mutant(
                "registers of more than there are",
                "setmaxnreg.inc.sync.aligned.u32 %0;\" ::\"n\"(REGISTERS)",
                "setmaxnreg.inc.sync.aligned.u32 %0;\" ::\"n\"(REGISTERS + 8)",
            ),
            mutant("stores are not fenced", "fence.proxy.async.shared::cta;", ""),
        ],
    },
    Broken {
        source: Source::CONFORMANCE_HOPPER,
        kernel: "",
        run: |gpu| conformance::run(gpu).map(|_| ()),
        mutants: &[
            mutant("registers of a are swapped", "{%64, %65, %66, %67}, %68", "{%64, %66, %65, %67}, %68"),
            mutant("b is transposed", "%68, p, 1, 1, %69;}", "%68, p, 1, 1, 0;}"),
            mutant(
                "sums of two rows are swapped",
                "\"+f\"(d[15][1]), \"+f\"(d[15][2]), \"+f\"(d[15][3])\n      :",
                "\"+f\"(d[15][2]), \"+f\"(d[15][1]), \"+f\"(d[15][3])\n      :",
            ),
            mutant(
                "sums begin afresh",
                "{.reg .pred p; setp.eq.u32 p, 0, 0;\"\n      \"wgmma.mma_async.sync.aligned.m64n128k16",
                "{.reg .pred p; setp.ne.u32 p, 0, 0;\"\n      \"wgmma.mma_async.sync.aligned.m64n128k16",
            ),
            mutant("all threads of the block meet", "\"r\"(id), \"r\"(threads)", "\"r\"(id), \"r\"(384)"),
            mutant("stores are not fenced", "fence.proxy.async.shared::cta;", ""),
        ],
    },
    Broken {
        source: Source::CONFORMANCE_TILES,
        kernel: "",
        run: |gpu| conformance::run(gpu).map(|_| ()),
        mutants: &[
            mutant("no .trans", "x4.trans.shared.b16 [%0]", "x4.shared.b16 [%0]"),
            mutant(".trans where there is none", "m8n8.x4.shared.b16 [%0]", "m8n8.x4.trans.shared.b16 [%0]"),
            mutant("row and column are swapped", "[%0, {%2, %3}], [%1]", "[%0, {%3, %2}], [%1]"),
            mutant("stores are in no group", "cp.async.bulk.commit_group;", ""),
            mutant("what is read is not waited for", "cp.async.bulk.wait_group.read %0;", "// %0"),
            mutant(
                "one group too few is waited for",
                "wait_group.read %0;\" ::\"n\"(PENDING)",
                "wait_group.read %0;\" ::\"n\"(PENDING + 1)",
            ),
            mutant("the wrong rank", "mov.u32 %0, %%cluster_ctarank;", "mov.u32 %0, %%ctaid.x;"),
            mutant("nobody comes to the cluster's barrier", "barrier.cluster.arrive.release.aligned;", ""),
            mutant("nobody waits for the cluster", "barrier.cluster.wait.acquire.aligned;", ""),
            mutant("arrives in the own block", "_, [there];}", "_, [%0];}"),
            mutant("place and rank are swapped", "there, %0, %1;", "there, %1, %0;"),
            mutant("the other parity for the cluster", "\"r\"(phase)", "\"r\"(phase ^ 1)"),
            mutant("one look at the cluster's is enough", "while (!ended);", "while (false);"),
            mutant(
                "to the own block alone",
                "bytes.multicast::cluster [%0], [%2, {%3, %4}], [%1], %5;",
                "bytes [%0], [%2, {%3, %4}], [%1];",
            ),
            mutant("to other blocks", "\"h\"(ranks)", "\"h\"((u16)(ranks ^ 1))"),
            mutant("what has been read is taken for there", "cp.async.bulk.wait_group %0;", "cp.async.bulk.wait_group.read %0;"),
            mutant("stores are not fenced", "fence.proxy.async.shared::cta;", ""),
        ],
    },
];

#[test]
fn mistakes_in_hopper_s_assembly_are_found() {
    // As above; the launches take other sources' kernels too.
    if witness::gpu(true).is_none() {
        return;
    }
    let run = |of: &Broken, mutant: &Mutant| {
        let source = if of.kernel.is_empty() { of.source } else { narrow(of.source, of.kernel) };
        let source = broken(source, mutant);
        (of.run)(&witness::gpu_of(emulator::all_kernels(), source).expect("there is a compiler"))
    };
    // What is taken for a mistake is not all that there is.
    HOPPER_MISTAKES.par_iter().for_each(|of| {
        run(of, &mutant("nothing", "| 1ull << 62", "| 1ull << 62")).unwrap_or_else(|e| panic!("{}: {e}", of.kernel));
    });
    let all = HOPPER_MISTAKES.par_iter().flat_map(|of| of.mutants.par_iter().map(move |mutant| (of, mutant)));
    all.for_each(|(of, mutant)| {
        let error = run(of, mutant).expect_err(mutant.name).to_string();
        println!("{}, {}: {error}", of.kernel, mutant.name);
        assert!(error.contains("differ in") || error.contains("PTX line"), "{}: {error}", mutant.name);
    });
}

/// PTX is made without a look into assembly: a typing error there must reach the assembler of the very architecture.
#[test]
fn typing_errors_in_assembly_do_not_compile() {
    let Some(nvrtc) = witness::nvrtc() else { return };
    let source = broken(Source::CONFORMANCE, &mutant("no such shape", "mma.sync.aligned.m16n8k16", "mma.sync.aligned.m16n8k17"));
    let error = sorft_native::tensor::cuda::compile(nvrtc, source, ARCHITECTURE).expect_err("no such shape").to_string();
    assert!(error.contains("m16n8k17"), "{error}");
}
