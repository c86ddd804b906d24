//! The driver path, against a stand-in for the driver and the compiler (`tests/support/driver.cpp`) that runs kernels on the emulator.
//!
//! The stand-in has to be found as `libcuda.so` when the process starts to look, so each case runs this test binary again, with an
//! environment of its own.

use crate::emulator::{self, KernelText};
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Source, probe};
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
    for machine in ["gpu", "no_pools"] {
        let text = expect_success(run_on(machine, folder.path(), CASE));
        assert!(text.contains("stand-in driver: all released"), "{text}");
    }
    let cached: Vec<_> = std::fs::read_dir(folder.path().join("cache/kernels")).expect("the cache").collect();
    assert_eq!(cached.len(), 1, "one entry a source that was used");
    // Compiled once, loaded from then on.
    expect_success(run_on("no_compiler", folder.path(), CASE));
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
