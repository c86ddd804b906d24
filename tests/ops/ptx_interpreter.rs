//! The interpreter of PTX by itself, on small texts: what it computes and what it refuses.

use crate::ptx::{Memory, Module, Shape};

/// A kernel `k(out, in)` with this body.
fn module(body: &str) -> Result<Module, String> {
    let registers = ".reg .pred %p<9>;\n.reg .b32 %r<40>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<20>;\n";
    let start = "ld.param.u64 %rd1, [k_param_0];\nld.param.u64 %rd2, [k_param_1];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\n";
    let head = ".version 9.0\n.target sm_80\n.address_size 64\n.extern .shared .align 1024 .b8 dynamic[];\n";
    Module::parse(&format!(
        "{head}.visible .entry k(\n.param .u64 k_param_0,\n.param .u64 k_param_1\n)\n.maxntid 64, 1, 1\n{{\n{registers}{start}{body}\nret;\n}}\n"
    ))
}

/// Runs it on `threads` threads: `out` of as many numbers (or what went wrong), `in` 0, 1, 2, ...
fn run(body: &str, threads: u32) -> Result<Vec<u32>, String> {
    const OUT: u64 = 0x10000;
    const IN: u64 = 0x20000;
    let mut memory = Memory::default();
    memory.add(OUT, 4 * threads as usize);
    memory.add(IN, 4 * 64);
    for (i, word) in memory.bytes(IN, 256)?.chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&(i as u32).to_le_bytes());
    }
    let shape = Shape { grid: [1, 1, 1], block: [threads, 1, 1], dynamic: 64 };
    module(body)?.launch("k", &shape, &[OUT.to_le_bytes().to_vec(), IN.to_le_bytes().to_vec()], &mut memory)?;
    Ok(memory.bytes(OUT, 4 * threads as usize)?.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four"))).collect())
}

fn refused(body: &str, threads: u32) -> String {
    run(body, threads).expect_err("a mistake")
}

const STORE: &str = "st.global.u32 [%rd4], %r2;";

#[test]
fn what_is_not_known_is_refused_by_its_line() {
    let error = module("add.rn.f32 %f1, %f2, %f3;\nadd.f32 %f1, %f2, %f3;").err().expect("it may be contracted");
    assert!(error.contains("PTX line 21") && error.contains("add.f32"), "{error}");
    for body in [
        "add.s32 %r2, %r1;",
        "ld.global.volatile.u32 %r2, [%rd2];",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r2, %r3}, [%r1];",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, {%r1, %r2, %r3, %r4}, {%r5, %r6}, {%f1, %f2, %f3, %f4};",
        "cp.async.cg.shared.global [%r1], [%rd2], 8;",
        "bar.sync 1;",
        "mov.u32 %r99, 1;",
        "bra $nowhere;",
        ".local .b8 depot[4];",
        "ld.param.u64 %rd1, [k_param_1+4];",
    ] {
        assert!(module(body).is_err(), "{body}");
    }
}

/// Each lane goes round a loop as often as its number says; then all are together again.
#[test]
fn diverged_lanes_meet_again() {
    let body = "mov.u32 %r2, 0;\n$loop:\nsetp.ge.u32 %p1, %r2, %r1;\n@%p1 bra $done;\nadd.u32 %r2, %r2, 1;\nbra.uni $loop;\n$done:\n\
        shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;\n";
    let got = run(&format!("{body}{STORE}"), 32).expect("they meet");
    assert!(got.iter().enumerate().all(|(i, x)| *x as usize == i ^ 1), "{got:?}");
    // Those that have ended cannot.
    let error = refused(&format!("setp.gt.u32 %p1, %r1, 30;\n@%p1 ret;\n{body}{STORE}"), 32);
    assert!(error.contains("divergent"), "{error}");
    let error = refused("setp.gt.u32 %p1, %r1, 30;\n@%p1 ret;\nbar.sync 0;", 64);
    assert!(error.contains("others have ended"), "{error}");
    let error = refused("setp.lt.u32 %p1, %r1, 16;\nselp.b32 %r3, 65535, 65536, %p1;\nshfl.sync.bfly.b32 %r2, %r1, 1, 31, %r3;", 32);
    assert!(error.contains("is given by lanes"), "{error}");
}

/// Registers and labels of inline assembly are those of its braces.
#[test]
fn braces_have_names_of_their_own() {
    let scope = "{ .reg .b32 a; .reg .pred p; mov.u32 a, %r2; setp.gt.u32 p, a, 3; @p bra OUT; add.u32 a, a, 10; OUT: mov.u32 %r2, a; }\n";
    let got = run(&format!("mov.u32 %r2, %r1;\n{scope}{scope}{STORE}"), 6).expect("two scopes");
    assert_eq!(got, [10, 11, 12, 13, 4, 5]);
}

#[test]
fn accesses_are_checked() {
    assert_eq!(run(&format!("ld.global.u32 %r2, [%rd2+252];\n{STORE}"), 1), Ok(vec![63]));
    for (body, what) in [
        ("ld.global.u32 %r2, [%rd2+256];", "out of bounds"),
        ("ld.global.u32 %r2, [%rd1+-4];", "below every buffer"),
        ("ld.global.u32 %r2, [%rd2+2];", "misaligned"),
        ("st.global.v2.u32 [%rd4], {%r1, %r1};", "misaligned"),
        ("mov.u64 %rd5, dynamic;\nst.shared.u32 [%rd5+64], %r1;", "outside every array"),
        ("mov.u64 %rd5, dynamic;\nld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%rd5+56];", "misaligned"),
    ] {
        let error = refused(&format!("{body}\n{STORE}"), 2);
        assert!(error.contains(what) && error.contains("PTX line"), "{body}: {error}");
    }
}

/// A copy lands when its group is waited for, no sooner; a thread may not end before.
#[test]
fn copies_land_late() {
    let copies = "cvt.u32.u64 %r3, %rd5;\ncp.async.cg.shared.global [%r3], [%rd2], 16;\ncp.async.commit_group;\n\
        cp.async.cg.shared.global [%r3+16], [%rd2+16], 16, 4;\ncp.async.commit_group;\n";
    let with = |wait: &str, from: u32| {
        format!("mov.u64 %rd5, dynamic;\n{copies}{wait}\nld.shared.u32 %r2, [%rd5+{from}];\ncp.async.wait_group 0;\n{STORE}")
    };
    let read = |wait, from| run(&with(wait, from), 1).expect("it runs")[0];
    assert_eq!(read("", 4), u32::MAX);
    assert_eq!(read("cp.async.wait_group 2;", 4), u32::MAX);
    assert_eq!(read("cp.async.wait_group 1;", 4), 1);
    assert_eq!(read("cp.async.wait_group 1;", 16), u32::MAX);
    assert_eq!([read("cp.async.wait_group 0;", 16), read("cp.async.wait_group 0;", 20)], [4, 0]);
    let error = refused(&with("", 4).replace("cp.async.wait_group 0;", ""), 1);
    assert!(error.contains("copies under way"), "{error}");
}
