//! Every kernel source through NVRTC, for every generation of chips it has code for. Needs the compiler's library, but no GPU.

use sorft_native::tensor::cuda::{Nvrtc, Source, compile};
use std::io::Write as _;

/// Ampere, Hopper with its own features, Blackwell with its own.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100a"];

/// The compiler; none, with a word about it, where it is missing and not required.
fn nvrtc() -> Option<Nvrtc> {
    match Nvrtc::load(None) {
        Ok(nvrtc) => Some(nvrtc),
        Err(e) => {
            assert!(std::env::var_os("SORFT_REQUIRE_NVRTC").is_none(), "SORFT_REQUIRE_NVRTC is set, but: {e}");
            // Not eprintln!, which the test harness would keep to itself.
            let note = "SKIPPED: the kernels were not compiled for a GPU (with SORFT_REQUIRE_NVRTC set, this is a failure)";
            let _ = writeln!(std::io::stderr(), "{note}\n  {e}");
            None
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    let Some(nvrtc) = nvrtc() else { return };
    println!("{nvrtc:?}");
    for source in Source::ALL {
        for architecture in ARCHITECTURES {
            let compiled = compile(&nvrtc, source, architecture).unwrap_or_else(|e| panic!("{architecture}: {e}"));
            assert_eq!(&compiled.cubin[..4], b"\x7fELF", "{} for {architecture} is a CUBIN", source.file);
            let entries = source.text.matches("SORFT_EXPORT(").count();
            // Without these lines the check below would pass on anything.
            let stack_lines: Vec<&str> = compiled.log.lines().filter(|l| l.contains("bytes stack frame")).collect();
            assert!(
                stack_lines.len() >= entries,
                "{} for {architecture}: the log tells of {entries} kernels:\n{}",
                source.file,
                compiled.log
            );
            for line in stack_lines {
                assert!(
                    line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"),
                    "{} for {architecture}: {line}",
                    source.file
                );
            }
            // C75xx: wgmma made serial, and other losses that ptxas tells of.
            assert!(!compiled.log.contains("(C75"), "{} for {architecture}:\n{}", source.file, compiled.log);
        }
    }
}

#[test]
fn a_mistake_in_a_kernel_is_an_error_with_the_compiler_s_log() {
    let Some(nvrtc) = nvrtc() else { return };
    let bad = Source { file: "bad.cu", text: "extern \"C\" __global__ void k(float *x) { x[0] = y; }" };
    let error = compile(&nvrtc, bad, "sm_80").expect_err("y is not declared").to_string();
    assert!(error.starts_with("kernels/bad.cu") && error.contains("identifier \"y\" is undefined"), "{error}");
    let unknown = compile(&nvrtc, Source::RMSNORM, "sm_30").expect_err("no longer supported").to_string();
    assert!(unknown.contains("cannot compile for sm_30"), "{unknown}");
}
