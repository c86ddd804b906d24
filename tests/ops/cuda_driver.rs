//! The driver path, against a stand-in for the driver and the compiler (`tests/support/driver.cpp`) that runs kernels on the emulator.
//!
//! The stand-in has to be found as `libcuda.so` when the process starts to look, so each case runs this test binary again, with an
//! environment of its own.

use crate::cuda_attention_backward;
use crate::emulator::{self, KernelText};
use sorft_native::tensor::cuda::{Arena, Buffer, DType, Emulation, Gpu, Graph, Source, probe};
use sorft_native::tensor::ops::rmsnorm::cuda::{self as rmsnorm_cuda, RowChunks};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

const MACHINE: &str = "SORFT_STANDIN";

/// A folder with the stand-in as `libcuda.so`.
fn standin(defines: &[&str]) -> tempfile::TempDir {
    let mut texts: Vec<KernelText> =
        Source::ALL.iter().map(|s| KernelText { name: s.file.to_owned(), defines: Vec::new(), text: s.text.to_owned() }).collect();
    texts.push(KernelText {
        name: "driver.cpp".to_owned(),
        defines: defines.iter().map(|&d| d.to_owned()).collect(),
        text: include_str!("../support/driver.cpp").to_owned(),
    });
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::copy(emulator::library(&texts), folder.path().join("libcuda.so")).expect("copied");
    folder
}

/// Runs the test `case` of this binary on a machine that the stand-in makes up.
fn run_on(machine: &str, folder: &Path, case: &str) -> Output {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", case, "--nocapture"])
        .env(MACHINE, machine)
        .env("LD_LIBRARY_PATH", folder)
        .env("SORFT_NVRTC_PATH", folder.join("libcuda.so"))
        .env("SORFT_CACHE", folder.join("cache"))
        .output()
        .expect("this binary runs")
}

fn expect_success(output: Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text
}

/// The machine that this process is to run on, if it was started for that.
fn machine() -> Option<String> {
    std::env::var(MACHINE).ok()
}

type Numbers = [Vec<f32>; 4];

/// All kernels of RMSNorm: y, rstd, dx, dw.
fn rmsnorm(gpu: &Arc<Gpu>) -> sorft_native::Result<Numbers> {
    let (rows, cols) = (5, 576);
    let numbers = |by: usize| (0..rows * cols).map(|i| ((i * by) % 31) as f32 / 8.0 - 1.5).collect::<Vec<_>>();
    let upload = |data: &[f32]| Buffer::from_f32(gpu, DType::Bf16, data);
    let (x, dy, w) = (upload(&numbers(7))?, upload(&numbers(11))?, upload(&numbers(5)[..cols])?);
    let (y, rstd) = rmsnorm_cuda::forward(gpu, &x, &w, rows, cols, 1e-6)?;
    let mut dw = Buffer::zeros(gpu, DType::F32, cols)?;
    let chunks = RowChunks::new(gpu, &[0..3, 3..5], 1)?;
    let dx = rmsnorm_cuda::backward(gpu, &dy, &x, &w, &rstd, rows, cols, None, Some((&mut dw, &chunks)))?;
    gpu.synchronize()?;
    Ok([y.to_f32()?, rstd.to_f32()?, dx.to_f32()?, dw.to_f32()?])
}

#[test]
fn ops_run_through_the_driver_and_everything_is_released() {
    const CASE: &str = "cuda_driver::ops_run_through_the_driver_and_everything_is_released";
    if machine().is_some() {
        let probe = probe();
        assert_eq!(probe.first_usable(), Some(0), "{probe:?}");
        assert_eq!(probe.gpus[0].info.name, "Stand-in");
        let gpu = Gpu::open(0).expect("opened");
        assert_eq!(gpu.info().compute_capability, (9, 0));
        let expected = rmsnorm(&emulator::gpu(Emulation::default())).expect("the emulator runs");
        // From other threads too: the context has to be made current there.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert_eq!(rmsnorm(&gpu).expect("the driver runs"), expected));
            }
        });
        return;
    }
    let folder = standin(&[]);
    for machine in ["gpu", "no_pools", "no_pinned"] {
        let text = expect_success(run_on(machine, folder.path(), CASE));
        assert!(text.contains("stand-in driver: all released"), "{text}");
    }
    let cached: Vec<_> = std::fs::read_dir(folder.path().join("cache/kernels")).expect("the cache").collect();
    assert_eq!(cached.len(), 1, "one entry a source that was used");
    // Compiled once, loaded from then on.
    expect_success(run_on("no_compiler", folder.path(), CASE));
}

/// Maps for TMA, of matrices and of planes, are those that the emulator makes for itself.
#[test]
fn tensor_maps_are_made_by_the_driver() {
    const CASE: &str = "cuda_driver::tensor_maps_are_made_by_the_driver";
    if machine().is_some() {
        let gpu = Gpu::open(0).expect("opened");
        assert!(gpu.is_hopper());
        let quick = Emulation { check: false, ..Emulation::default() };
        assert_eq!(cuda_attention_backward::small(&gpu), cuda_attention_backward::small(&emulator::gpu(quick)));
        return;
    }
    expect_success(run_on("gpu", standin(&[]).path(), CASE));
}

#[test]
fn what_is_missing_is_said() {
    const CASE: &str = "cuda_driver::what_is_missing_is_said";
    if let Some(machine) = machine() {
        let probe = probe();
        let opened = Gpu::open(0);
        let error = match &opened {
            Ok(gpu) => rmsnorm(gpu).expect_err("something is missing").to_string(),
            Err(e) => e.to_string(),
        };
        println!("{machine}: {error}");
        let expected = match machine.as_str() {
            "no_device" => "there is a CUDA driver but no CUDA device",
            "turing" => "cuda:0: Stand-in has compute capability 7.5; the kernels need 8.0 (Ampere) or later",
            "cuda11" => "NVRTC 13.0 is newer than the driver, which runs code of CUDA 11 and older",
            "no_memory" => "bytes: out of memory",
            "no_compiler" => "kernels/rmsnorm.cu: nvrtcCompileProgram",
            "old_driver" => "the CUDA driver (CUDA 13.0) is too old: it has no cuMemAllocAsync",
            other => panic!("no machine {other}"),
        };
        assert!(error.contains(expected) && error.contains("\n  "), "{error}");
        if matches!(machine.as_str(), "no_device" | "turing" | "cuda11" | "old_driver") {
            assert_eq!(probe.first_usable(), None, "{probe:?}");
        }
        if machine == "turing" {
            let error = Gpu::open(1).expect_err("there is one device").to_string();
            assert!(error.contains("cuda:1: no such device: there are 1"), "{error}");
        }
        return;
    }
    let folder = standin(&[]);
    for machine in ["no_device", "turing", "cuda11", "no_memory", "no_compiler"] {
        expect_success(run_on(machine, folder.path(), CASE));
    }
    expect_success(run_on("old_driver", standin(&["OLD_DRIVER"]).path(), CASE));
}

/// A kernel that fails on the device is an error at the next wait, and the process goes on.
#[test]
fn a_failed_launch_is_an_error_later() {
    const CASE: &str = "cuda_driver::a_failed_launch_is_an_error_later";
    if machine().is_some() {
        let gpu = Gpu::open(0).expect("opened");
        let x = Buffer::from_f32(&gpu, DType::Bf16, &[1.0; 64]).expect("uploaded");
        let rstd = Buffer::from_f32(&gpu, DType::F32, &[1.0; 1]).expect("uploaded");
        // The chunks' bounds are data, which no launch can check: these reach past the rows.
        let wrong = Buffer::from_u32(&gpu, &[0, 1 << 30]).expect("uploaded");
        let mut partial = Buffer::uninit(&gpu, DType::F32, 64).expect("allocated");
        let kernel = sorft_native::tensor::cuda::Kernel { source: Source::RMSNORM, name: "rmsnorm_bwd_dw_partial_bf16" };
        sorft_native::tensor::cuda::Launch::new(&gpu, kernel, [1, 1, 1], [64, 1, 1], 2048)
            .output("partial", &mut partial, DType::F32, 64)
            .input("dy", &x, DType::Bf16, 64)
            .input("x", &x, DType::Bf16, 64)
            .input("rstd", &rstd, DType::F32, 1)
            .input("bounds", &wrong, DType::U32, 2)
            .dim("cols", 64)
            .run()
            .expect("queued");
        let error = partial.to_f32().expect_err("the kernel failed").to_string();
        assert!(error.contains("cuda:0: downloading") || error.contains("cuda:0: running what was queued"), "{error}");
        return;
    }
    expect_success(run_on("gpu", standin(&[]).path(), CASE));
}

/// Uploads do not wait, however late the device gets to them: more of them than the staging memory holds, from memory that is reused at once.
#[test]
fn uploads_are_what_was_uploaded() {
    const CASE: &str = "cuda_driver::uploads_are_what_was_uploaded";
    if machine().is_some() {
        let gpu = Gpu::open(0).expect("opened");
        let mut data = vec![0u32; 300_000];
        let mut buffers = Vec::new();
        for i in 0..9 {
            data.fill(i);
            buffers.push(Buffer::from_u32(&gpu, &data[..300_000 - i as usize]).expect("uploaded"));
        }
        let large = Buffer::from_u32(&gpu, &vec![77; 2_000_000]).expect("uploaded");
        data.fill(99);
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.to_u32().expect("downloaded").iter().all(|x| *x == i as u32), "buffer {i}");
        }
        assert!(large.to_u32().expect("downloaded").iter().all(|x| *x == 77));
        return;
    }
    let folder = standin(&[]);
    for machine in ["gpu", "no_pools", "no_pinned"] {
        expect_success(run_on(machine, folder.path(), CASE));
    }
}

/// The norm of the norm of what lies in x.
fn norms(gpu: &Arc<Gpu>, x: &Buffer, w: &Buffer) -> sorft_native::Result<Buffer> {
    let (y, _) = rmsnorm_cuda::forward(gpu, x, w, 2, 64, 1e-6)?;
    Ok(rmsnorm_cuda::forward(gpu, &y, w, 2, 64, 1e-6)?.0)
}

/// Recorded launches are queued one by one the first time, as a graph from then on; where the driver makes none, one by one for good, and why is
/// said once. The numbers are those of the launches themselves.
#[test]
fn recorded_launches_become_a_graph() {
    const CASE: &str = "cuda_driver::recorded_launches_become_a_graph";
    let refusals = [
        ("no_capture", "cuda:0: beginning a capture: stand-in error"),
        ("broken_capture", "cuda:0: ending a capture: stand-in error"),
        ("no_instantiate", "cuda:0: making a graph of 2 launches: out of memory"),
        ("old_graphs", "the CUDA driver (CUDA 13.0) has no cuGraphInstantiateWithFlags"),
    ];
    if let Some(machine) = machine() {
        let gpu = Gpu::open(0).expect("opened");
        let x = |step: usize| (0..128).map(|i| ((i * (step + 3)) % 29) as f32 / 8.0 - 1.5).collect::<Vec<_>>();
        let w = Buffer::from_f32(&gpu, DType::Bf16, &x(7)[..64]).expect("uploaded");
        let mut input = Buffer::uninit(&gpu, DType::Bf16, 128).expect("allocated");
        let mut arena = Arena::default();
        let (mut graph, y) = Graph::record(&gpu, &mut arena, || norms(&gpu, &input, &w)).expect("recorded");
        assert_eq!(graph.len(), 2);
        for step in 0..4 {
            input.upload_f32(&x(step)).expect("uploaded");
            graph.launch().expect("queued");
            let got = y.to_f32().expect("downloaded");
            assert_eq!(got, norms(&gpu, &input, &w).expect("queued").to_f32().expect("downloaded"), "step {step}");
            println!("\n{machine}: step {step}");
        }
        let warning = gpu.graph_warning();
        match refusals.iter().find(|r| r.0 == machine) {
            None => assert_eq!(warning, None),
            Some((_, why)) => {
                let warning = warning.expect("why there is no graph");
                assert!(warning.starts_with("the launches of decoding are queued one by one") && warning.contains(why), "{warning}");
                assert_eq!(gpu.graph_warning(), None, "once");
            }
        }
        return;
    }
    let folder = standin(&[]);
    let text = expect_success(run_on("gpu", folder.path(), CASE));
    let said: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("stand-in driver: ").or(l.strip_prefix("gpu: "))).collect();
    let graph = "launches a graph";
    let want = [
        "step 0",
        "begins a capture",
        "ends a capture of 2 launches, 1 of them early",
        "instantiates",
        graph,
        "step 1",
        graph,
        "step 2",
        graph,
        "step 3",
    ];
    assert_eq!(sorted_streams(&said), sorted_streams(&want), "{text}");
    assert!(text.contains("all released"), "{text}");
    // A driver that refuses them early is given them as they are.
    let text = expect_success(run_on("no_early", folder.path(), CASE));
    assert!(
        text.contains("ends a capture of 1 launches, 0 of them early") && text.contains("ends a capture of 2 launches, 0 of them early"),
        "{text}"
    );
    assert!(text.contains(graph) && text.contains("all released"), "{text}");
    for (machine, _) in &refusals[..3] {
        let text = expect_success(run_on(machine, folder.path(), CASE));
        assert!(!text.contains("launches a graph") && text.contains("all released"), "{text}");
    }
    expect_success(run_on("old_graphs", standin(&["OLD_GRAPHS"]).path(), CASE));
}

/// The lines of standard output, then those of standard error: which of them were written in between each other is not known.
fn sorted_streams<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let ours = |l: &&&str| l.starts_with("step");
    lines.iter().filter(ours).chain(lines.iter().filter(|l| !ours(l) && **l != "all released")).copied().collect()
}

/// What may not be recorded is refused, and so is a list that speaks of memory that is gone.
#[test]
fn recordings_are_refused_where_they_would_go_wrong() {
    let gpu = emulator::gpu(Emulation::default());
    let ones = |n: usize| Buffer::from_f32(&gpu, DType::Bf16, &vec![1.0; n]).expect("uploaded");
    let (x, w) = (ones(128), ones(64));
    let mut arena = Arena::default();
    let error = Graph::record(&gpu, &mut arena, || Buffer::from_u32(&gpu, &[1])).expect_err("an upload").to_string();
    assert!(error.contains("an upload while launches are recorded: only launches can be repeated"), "{error}");
    let error = Graph::record(&gpu, &mut arena, || x.to_f32()).expect_err("a download").to_string();
    assert!(error.contains("a download while launches are recorded"), "{error}");
    // Other threads go on as ever.
    let counts = gpu.counts();
    let (mut graph, y) = Graph::record(&gpu, &mut arena, || {
        let other = || norms(&gpu, &x, &w).and_then(|y| y.to_f32()).expect("runs");
        let elsewhere = std::thread::scope(|s| s.spawn(other).join().expect("no panic"));
        Ok((norms(&gpu, &x, &w)?, elsewhere))
    })
    .expect("recorded");
    assert_eq!((graph.len(), gpu.counts().launches - counts.launches), (2, 2));
    graph.launch().expect("runs");
    assert_eq!(y.0.to_f32().expect("downloaded"), y.1);
    // The arena's memory stays while a graph needs it; other memory does not.
    let held = arena.bytes();
    drop(arena);
    graph.launch().expect("runs");
    assert!(held > 0);
    drop(w);
    let error = graph.launch().expect_err("w is gone").to_string();
    assert!(error.contains("recorded launches name memory that was given back"), "{error}");
}

/// Graphs of one arena share its memory; a recording reuses what it has dropped itself.
#[test]
fn an_arena_is_shared() {
    let gpu = emulator::gpu(Emulation::default());
    let x = Buffer::from_f32(&gpu, DType::Bf16, &[1.5; 128]).expect("uploaded");
    let w = Buffer::from_f32(&gpu, DType::Bf16, &[0.5; 64]).expect("uploaded");
    let mut arena = Arena::default();
    let mut chain = |length: usize| {
        let record = || (0..length).try_fold(norms(&gpu, &x, &w)?, |y, _| norms(&gpu, &y, &w));
        let (graph, y) = Graph::record(&gpu, &mut arena, record).expect("recorded");
        (graph, y, arena.bytes())
    };
    let ((mut short, short_y, few), (mut long, long_y, more)) = (chain(2), chain(20));
    assert_eq!((short.len(), long.len()), (6, 42));
    assert_eq!(few, more, "no more memory for more launches");
    for _ in 0..2 {
        short.launch().expect("runs");
        let first = short_y.to_f32().expect("downloaded");
        long.launch().expect("runs");
        // The norm of a norm with these weights is a fixed point after the first.
        assert_eq!(long_y.to_f32().expect("downloaded"), first);
    }
}
