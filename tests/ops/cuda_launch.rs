//! The launch path: what does not fit is an error that says what, before or instead of a launch.

use crate::emulator::{self, KernelText};
use sorft_native::tensor::cuda::{Buffer, DType, Emulation, Gpu, Kernel, Launch, Source, probe};
use sorft_native::tensor::ops::rmsnorm::cuda as rmsnorm_cuda;
use std::sync::Arc;

fn gpu() -> Arc<Gpu> {
    emulator::gpu(Emulation::default())
}

const SUM: Kernel = Kernel { source: Source::RMSNORM, name: "rmsnorm_bwd_dw_sum" };

fn message(launch: Launch) -> String {
    launch.run().expect_err("the launch does not fit").to_string()
}

#[test]
fn buffers_round_to_bf16_and_back() {
    let gpu = gpu();
    let data = [0.0, -1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::INFINITY, 3.0e-41];
    let bf16 = Buffer::from_f32(&gpu, DType::Bf16, &data).expect("uploaded");
    assert_eq!(bf16.bytes(), 12);
    let back = bf16.to_f32().expect("downloaded");
    assert_eq!(back[..5], [0.0, -1.0, 1.0, 1.0 + 1.0 / 64.0, f32::INFINITY]);
    let f32s = Buffer::from_f32(&gpu, DType::F32, &data).expect("uploaded");
    assert_eq!(f32s.to_f32().expect("downloaded"), data);
    assert_eq!(Buffer::zeros(&gpu, DType::Bf16, 3).expect("cleared").to_f32().expect("downloaded"), [0.0; 3]);
    assert!(Buffer::from_f32(&gpu, DType::F32, &[]).expect("allocated").to_f32().expect("downloaded").is_empty());
}

#[test]
fn a_download_of_unwritten_memory_is_an_error() {
    let buffer = Buffer::uninit(&gpu(), DType::F32, 10).expect("allocated");
    let message = buffer.to_f32().expect_err("nothing was written").to_string();
    assert!(message.contains("never written: element 0 of 10"), "{message}");
}

#[test]
fn a_kernel_may_have_one_argument() {
    let text = "#include \"sorft.cuh\"\nextern \"C\" __global__ void __launch_bounds__(32) one(u32 *out) { out[threadIdx.x] = threadIdx.x; }\nSORFT_EXPORT(one)\n";
    let kernels = KernelText { name: "one.cu".to_owned(), defines: Vec::new(), text: text.to_owned() };
    let gpu = emulator::open(&emulator::library(&[kernels]), Emulation::default());
    let mut out = Buffer::uninit(&gpu, DType::U32, 32).expect("allocated");
    let kernel = Kernel { source: Source { file: "one.cu", text }, name: "one" };
    Launch::new(&gpu, kernel, [1, 1, 1], [32, 1, 1], 0).output("out", &mut out, DType::U32, 32).run().expect("it runs");
    assert_eq!(out.to_u32().expect("downloaded"), (0..32).collect::<Vec<u32>>());
}

#[test]
fn arguments_are_checked_against_the_stated_shapes() {
    let gpu = gpu();
    let mut dw = Buffer::zeros(&gpu, DType::F32, 8).expect("cleared");
    let partial = Buffer::zeros(&gpu, DType::F32, 8).expect("cleared");
    let launch = || Launch::new(&gpu, SUM, [1, 1, 1], [128, 1, 1], 0);

    launch()
        .output("dw", &mut dw, DType::F32, 8)
        .input("partial", &partial, DType::F32, 8)
        .dim("chunks", 1)
        .dim("cols", 8)
        .run()
        .expect("it fits");

    let short = message(launch().output("dw", &mut dw, DType::F32, 9));
    assert_eq!(short, "kernels/rmsnorm.cu: rmsnorm_bwd_dw_sum: dw holds 8 numbers where the kernel takes 9");
    let dtype = message(launch().output("dw", &mut dw, DType::Bf16, 8));
    assert!(dtype.contains("dw holds f32 where the kernel takes bf16"), "{dtype}");
    let other = Buffer::zeros(&self::gpu(), DType::F32, 8).expect("cleared");
    let elsewhere = message(launch().input("partial", &other, DType::F32, 8));
    assert!(elsewhere.contains("partial is memory of another device"), "{elsewhere}");
    let wide = message(launch().dim("cols", 1 << 31));
    assert!(wide.contains("cols = 2147483648"), "{wide}");
}

#[test]
fn the_geometry_is_checked_against_the_device() {
    let gpu = gpu();
    let launch = |grid, block, shared| message(Launch::new(&gpu, SUM, grid, block, shared));
    assert!(launch([0, 1, 1], [128, 1, 1], 0).contains("grid.x = 0"));
    assert!(launch([1, 65536, 1], [128, 1, 1], 0).contains("grid.y = 65536"));
    assert!(launch([1, 1, 1], [64, 32, 1], 0).contains("threads of a block = 2048"));
    assert!(launch([1, 1, 1], [128, 1, 1], 1 << 20).contains("shared memory in bytes = 1048576"));
}

#[test]
fn the_arguments_spell_the_kernel_s_signature() {
    let gpu = gpu();
    let mut dw = Buffer::zeros(&gpu, DType::F32, 8).expect("cleared");
    let mut partial = Buffer::zeros(&gpu, DType::F32, 8).expect("cleared");
    // A dimension forgotten, and a buffer given as output where the kernel only reads it.
    let forgotten = message(
        Launch::new(&gpu, SUM, [1, 1, 1], [128, 1, 1], 0)
            .output("dw", &mut dw, DType::F32, 8)
            .output("partial", &mut partial, DType::F32, 8)
            .dim("cols", 8),
    );
    assert!(forgotten.contains("the launch's arguments are (mf mf i); the kernel takes (mf cf i i)"), "{forgotten}");
    let unknown = message(Launch::new(&gpu, Kernel { source: Source::RMSNORM, name: "no_such" }, [1, 1, 1], [32, 1, 1], 0));
    assert!(unknown.contains("no such kernel"), "{unknown}");
}

#[test]
fn an_op_refuses_buffers_of_other_shapes() {
    let gpu = gpu();
    let x = Buffer::from_f32(&gpu, DType::Bf16, &[1.0; 16]).expect("uploaded");
    let w = Buffer::from_f32(&gpu, DType::Bf16, &[1.0; 7]).expect("uploaded");
    let error = rmsnorm_cuda::forward(&gpu, &x, &w, 2, 8, 1e-6).expect_err("w is too short").to_string();
    assert!(error.contains("w holds 7 numbers where the kernel takes 8"), "{error}");
    let (y, rstd) = rmsnorm_cuda::forward(&gpu, &x, &w, 0, 7, 1e-6).expect("no rows are no work");
    assert!(y.is_empty() && rstd.is_empty());
}

#[test]
fn a_library_that_is_no_emulator_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("libemulator.so");
    std::fs::write(&file, "no library").expect("written");
    // SAFETY: not a library at all, so nothing of it runs.
    let error = unsafe { Gpu::emulated(&file, Emulation::default()) }.expect_err("not a library").to_string();
    assert!(error.contains("not the kernels' emulator"), "{error}");
}

/// Whatever this machine has, looking at it neither fails nor panics, and what is missing comes with something to do.
#[test]
fn probing_never_panics() {
    let probe = probe();
    println!("{probe:?}");
    match &probe.driver {
        Err(e) => assert!(probe.gpus.is_empty() && e.to_string().contains('\n'), "{e}"),
        Ok(_) => assert!(!probe.gpus.is_empty()),
    }
    let missing = Gpu::open(99).expect_err("no machine has a hundred devices");
    assert_eq!(missing.exit_code(), 1);
}
