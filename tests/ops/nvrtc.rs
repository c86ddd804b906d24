//! Every kernel source through NVRTC, for every generation of chips it has code for. Needs the compiler's library, but no GPU.

use crate::resources::{self, ARCHITECTURES, Row, Table};
use crate::witness::{compiled, nvrtc};
use rayon::prelude::*;
use sorft_native::tensor::cuda::{Compiled, Source, compile};

/// What ptxas said of each kernel in a log.
fn rows(log: &str, architecture: usize) -> Table {
    let (mut table, mut kernel, mut row) = (Table::new(), None, Row::default());
    for line in log.lines() {
        let number = |before: &str| {
            let digits = line.split(before).next()?.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?;
            line.contains(before).then(|| digits.parse::<u32>().ok())?
        };
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            kernel = name.split('\'').next();
        } else if let (Some(stored), Some(loaded)) = (number("bytes spill stores"), number("bytes spill loads")) {
            row.spilled = stored.max(loaded).max(number("bytes stack frame").unwrap_or(0));
        } else if let (Some(registers), Some(name)) = (number("registers"), kernel) {
            row.registers = registers;
            row.fixed = number("bytes smem").unwrap_or(0);
            table.insert((name.to_owned(), architecture), std::mem::take(&mut row));
        }
    }
    table
}

#[test]
fn every_kernel_compiles_for_every_architecture_within_its_resources() {
    let Some(nvrtc) = nvrtc() else { return };
    println!("{nvrtc:?}");
    let cases: Vec<(Source, usize)> = Source::ALL.into_iter().flat_map(|s| (0..ARCHITECTURES.len()).map(move |a| (s, a))).collect();
    let check = |(source, architecture): &(Source, usize)| {
        let name = ARCHITECTURES[*architecture];
        let compiled = compiled(*source, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let Compiled { cubin, log, .. } = &*compiled;
        assert_eq!(&cubin[..4], b"\x7fELF", "{} for {name} is a CUBIN", source.file);
        let rows = rows(log, *architecture);
        // Without these lines the checks would pass on anything.
        let entries = compiled.ptx.matches(".visible .entry ").count();
        assert!(
            entries > 0 && rows.len() == entries,
            "{} for {name}: the log tells of {} of {entries} kernels:\n{log}",
            source.file,
            rows.len()
        );
        rows.iter().for_each(|((kernel, _), row)| assert_eq!(row.spilled, 0, "{kernel} spills on {name}:\n{log}"));
        // C75xx: wgmma made serial, and other losses that ptxas tells of.
        assert!(!log.contains("(C75"), "{} for {name}:\n{log}", source.file);
        rows
    };
    resources::check_compiled(cases.par_iter().flat_map_iter(check).collect());
}

#[test]
fn a_mistake_in_a_kernel_is_an_error_with_the_compiler_s_log() {
    let Some(nvrtc) = nvrtc() else { return };
    let bad = Source { file: "bad.cu", text: "extern \"C\" __global__ void k(float *x) { x[0] = y; }" };
    let error = compile(nvrtc, bad, "sm_80").expect_err("y is not declared").to_string();
    assert!(error.starts_with("kernels/bad.cu") && error.contains("identifier \"y\" is undefined"), "{error}");
    let unknown = compile(nvrtc, Source::RMSNORM, "sm_30").expect_err("no longer supported").to_string();
    assert!(unknown.contains("cannot compile for sm_30"), "{unknown}");
}
