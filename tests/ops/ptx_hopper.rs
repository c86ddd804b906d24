//! The interpreter's instructions of sm_90a by themselves, on small texts, against what the PTX manual says in words written here once more.

use crate::ptx::{Memory, Module, Shape};
use half::bf16;

const OUT: u64 = 0x10000;
const IN: u64 = 0x20000;

/// Runs a kernel `k(out, map of in)`: `out` of some words for each thread, `in` of bf16 `[rows, columns]`, of which a box has `box_rows` rows. %r1 is the
/// thread, %r2 a barrier's address, %r3 that of dynamic memory, %rd3 the map; `store` is what each thread leaves.
struct Kernel<'a> {
    body: &'a str,
    store: &'a str,
    threads: u32,
    words: usize,
    input: Vec<f32>,
    columns: usize,
    box_rows: u64,
}

impl Kernel<'_> {
    fn run(&self) -> Result<Vec<u32>, String> {
        self.run_in_cluster(1)
    }

    /// The same by so many blocks of one cluster, %r39 each.
    fn run_in_cluster(&self, blocks: u32) -> Result<Vec<u32>, String> {
        let mut memory = Memory::default();
        let bytes = 4 * self.words * (self.threads * blocks) as usize;
        memory.add(OUT, bytes);
        memory.add(IN, 2 * self.input.len());
        for (to, x) in memory.bytes(IN, 2 * self.input.len())?.chunks_exact_mut(2).zip(&self.input) {
            to.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
        }
        let (columns, rows) = (self.columns as u64, self.input.len().checked_div(self.columns).unwrap_or(0) as u64);
        let mut map = vec![0; 128];
        let words = [0x7061_6d20_656c_6974, IN, columns, rows, 2 * columns, self.box_rows];
        map.chunks_exact_mut(8).zip(words).for_each(|(to, word): (_, u64)| to.copy_from_slice(&word.to_le_bytes()));
        let registers = ".reg .pred %p<9>;\n.reg .b32 %r<40>;\n.reg .f32 %f<40>;\n.reg .b64 %rd<40>;\n.shared .align 8 .b8 barrier[16];\n";
        let start = "ld.param.u64 %rd1, [k_param_0];\nmov.b64 %rd2, k_param_1;\ncvta.param.u64 %rd3, %rd2;\nmov.u32 %r1, %tid.x;\n\
            mov.u64 %rd4, barrier;\ncvt.u32.u64 %r2, %rd4;\nmov.u64 %rd5, dynamic;\ncvt.u32.u64 %r3, %rd5;\nmov.u32 %r39, %ctaid.x;\n";
        let end = format!(
            "mad.lo.u32 %r38, %r39, {}, %r1;\nmul.wide.u32 %rd6, %r38, {};\nadd.s64 %rd6, %rd6, %rd1;\n{}\nret;\n",
            self.threads,
            4 * self.words,
            self.store
        );
        let module = Module::parse(&format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 dynamic[];\n.visible .entry k(\n.param .u64 k_param_0,\n\
            .param .align 64 .b8 k_param_1[128]\n)\n.explicitcluster\n.reqnctapercluster {blocks}, 1, 1\n.maxntid 384, 1, 1\n.minnctapersm 1\n{{\n{registers}{start}{}\n{end}}}\n",
            self.body
        ))?;
        let shape = Shape { grid: [blocks, 1, 1], block: [self.threads, 1, 1], dynamic: 32768 };
        module.launch("k", &shape, &[OUT.to_le_bytes().to_vec(), map], &mut memory)?;
        Ok(memory.bytes(OUT, bytes)?.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four"))).collect())
    }
}

/// What a body of `threads` threads does that needs no memory.
fn run(body: &str, threads: u32) -> Result<Vec<u32>, String> {
    Kernel { body, store: "st.global.u32 [%rd6], %r1;", threads, words: 1, input: Vec::new(), columns: 0, box_rows: 0 }.run()
}

fn refused(body: &str, threads: u32, what: &str) {
    let error = run(body, threads).expect_err("a mistake");
    assert!(error.contains(what) && error.contains("PTX line"), "{body}: {error}");
}

/// The first thread makes a barrier for `count` arrivals.
fn barrier(count: u32) -> String {
    format!(
        "setp.ne.s32 %p1, %r1, 0;\nmov.u32 %r4, {count};\n@!%p1 mbarrier.init.shared::cta.b64 [%r2], %r4;\nfence.mbarrier_init.release.cluster;\nbar.sync 0;\n"
    )
}

const ARRIVE: &str = "mbarrier.arrive.shared::cta.b64 _, [%r2];\n";

fn wait(parity: u32) -> String {
    format!(
        "{{ .reg .pred p; .reg .b32 q; mov.u32 q, {parity}; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 p, [%r2], q; @!p bra AGAIN; }}\n"
    )
}

#[test]
fn phases_end_when_all_have_arrived() {
    let both = format!("{}{ARRIVE}{}{ARRIVE}{}", barrier(64), wait(0), wait(1));
    assert!(run(&both, 64).is_ok());
    assert!(run(&format!("{}{}", barrier(64), wait(1)), 64).is_ok(), "before the first phase has ended, parity 1 is past");
    refused(&format!("{}{ARRIVE}{}", barrier(65), wait(0)), 64, "misses 1 of 65 arrivals and 0 bytes");
    refused(&format!("{}{ARRIVE}", barrier(0)), 32, "a barrier for 0 arrivals");
    refused(ARRIVE, 32, "no barrier was initialised");
    refused(&format!("{}{}", barrier(1), barrier(1)), 32, "initialised already");
    refused(&format!("{}st.shared.u32 [%r2], %r1;\n{ARRIVE}", barrier(32)), 32, "written over");
    let expect = "mov.u32 %r4, 600000;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], %r4;\n";
    refused(&format!("{}{expect}", barrier(32)), 32, "cannot count 1200000 bytes");
    let expect = expect.replace("600000", "16");
    refused(&format!("{}{expect}{ARRIVE}", barrier(32)), 32, "has all 32 arrivals of its phase already");
    refused(&format!("{}{expect}{}", barrier(32), wait(0)), 32, "misses 0 of 32 arrivals and 512 bytes");
}

#[test]
fn named_barriers_have_their_count() {
    let sync = |id: u32, threads: u32| format!("mov.u32 %r4, {id};\nmov.u32 %r5, {threads};\nbar.sync %r4, %r5;\n");
    assert!(run(&sync(1, 96), 96).is_ok());
    refused(&sync(1, 64), 96, "96 threads wait at barrier 1, which is for 64");
    refused(&sync(1, 128), 96, "128 threads at barrier 1");
    refused(&sync(16, 96), 96, "barrier 16 of 96 threads");
    refused(&format!("setp.gt.u32 %p1, %r1, 30;\n@%p1 ret;\n{}", sync(1, 32)), 32, "divergent");
}

#[test]
fn registers_come_from_the_block_s_pool() {
    // 168 a thread: what one warpgroup of three gives back is enough for two to have 240 if it keeps 24.
    let of = |keep: u32| {
        format!(
            "setp.lt.u32 %p1, %r1, 256;\n@%p1 bra $more;\nsetmaxnreg.dec.sync.aligned.u32 {keep};\nbra.uni $done;\n$more:\nsetmaxnreg.inc.sync.aligned.u32 240;\n$done:\n"
        )
    };
    assert!(run(&of(24), 384).is_ok());
    refused(&of(32), 384, "wait for 72 registers more a thread, where 40 are free");
    refused("setmaxnreg.dec.sync.aligned.u32 176;\n", 384, "fewer registers: 176 in the place of 168");
    assert!(run("setmaxnreg.dec.sync.aligned.u32 20;\n", 384).is_err());
}

/// One thread has a box of the map land in dynamic memory, and all wait for it.
fn load(at: [i32; 2], bytes: u32) -> String {
    let [x, y] = at;
    format!(
        "{}@%p1 bra $wait;\nmov.u32 %r6, {bytes};\nmov.u32 %r7, {x};\nmov.u32 %r8, {y};\n\
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], %r6;\n\
        cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3], [%rd3, {{%r7, %r8}}], [%r2];\n$wait:\n{}",
        barrier(1),
        wait(0)
    )
}

#[test]
fn tiles_have_zeros_outside_and_are_swizzled() {
    let (columns, rows, box_rows) = (72, 11, 16);
    let input: Vec<f32> = (0..rows * columns).map(|i| (i % 251 + 1) as f32).collect();
    for at in [[0, 0], [64, 3], [-8, -2], [16, 9]] {
        let copy = "shl.b32 %r9, %r1, 4;\nadd.s32 %r9, %r9, %r3;\nld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r9];\nst.global.v4.u32 [%rd6], {%r10, %r11, %r12, %r13};";
        let body = load(at, 128 * box_rows as u32);
        let kernel = Kernel {
            body: &body,
            store: copy,
            threads: 8 * box_rows as u32,
            words: 4,
            input: input.clone(),
            columns,
            box_rows: box_rows as u64,
        };
        let got = kernel.run().expect("it runs");
        for (row, column) in (0..box_rows).flat_map(|row| (0..64).map(move |column| (row, column))) {
            let (y, x) = (at[1] + row as i32, at[0] + column as i32);
            let inside = (0..rows as i32).contains(&y) && (0..columns as i32).contains(&x);
            let want = if inside { input[y as usize * columns + x as usize] } else { 0.0 };
            let number = row * 64 + ((column / 8) ^ (row % 8)) * 8 + column % 8;
            let bits = got[number / 2] >> (16 * (number % 2)) & 0xffff;
            assert_eq!(bf16::from_bits(bits as u16).to_f32(), want, "row {row}, column {column} of the box at {at:?}");
        }
        // Without a wait the place holds nothing yet, and the block ends too early.
        let (early, _) = body.split_once("$wait:").expect("a label");
        let error = Kernel { body: &format!("{early}$wait:\n"), ..kernel }.run().expect_err("no wait");
        assert!(error.contains("before a tile has landed"), "{error}");
    }
}

/// d [64, 8] of a warpgroup: a and b are two boxes of 64 x 64, the second 8192 bytes on; `left` is the left operand and `flags` end the instruction.
fn product(left: &str, flags: &str, tail: &str) -> Kernel<'static> {
    let numbers = |i: usize| (i * 7 % 31) as f32 - 15.0;
    let body = format!(
        "{}shr.u64 %rd7, %rd5, 4;\nor.b64 %rd8, %rd7, {};\nadd.s64 %rd9, %rd8, 512;\nsetp.eq.s32 %p2, %r3, %r3;\nmov.f32 %f1, 0f3F800000;\nmov.f32 %f2, %f1;\n\
        mov.f32 %f3, %f1;\nmov.f32 %f4, %f1;\nmov.u32 %r20, 1065369472;\nmov.u32 %r21, 0;\nmov.u32 %r22, 0;\nmov.u32 %r23, 0;\n\
        wgmma.fence.sync.aligned;\nwgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f1, %f2, %f3, %f4}}, {left}, %rd9, %p2, {flags};\n{tail}",
        load([0, 0], 16384),
        (1u64 << 62) + (64 << 32)
    );
    Kernel {
        body: body.leak(),
        store: "st.global.v4.f32 [%rd6], {%f1, %f2, %f3, %f4};",
        threads: 128,
        words: 4,
        input: (0..128 * 64).map(numbers).collect(),
        columns: 64,
        box_rows: 128,
    }
}

const WAIT: &str = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n";

#[test]
fn products_are_those_of_both_layouts() {
    for (left, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let kernel = product("%rd8", &format!("1, 1, {left}, {right}"), WAIT);
        let got = kernel.run().expect("it runs");
        let number = |by_rows: i32, first: usize, row: usize, term: usize| {
            let (y, x) = if by_rows == 1 { (term, row) } else { (row, term) };
            kernel.input[(first + y) * 64 + x]
        };
        for (thread, i) in (0..128).flat_map(|thread| (0..4).map(move |i| (thread, i))) {
            let (row, column) = (thread / 32 * 16 + thread % 32 / 4 + i / 2 * 8, thread % 4 * 2 + i % 2);
            let want = (0..16).fold(1.0, |sum, term| sum + number(left, 0, row, term) * number(right, 64, column, term));
            assert_eq!(f32::from_bits(got[4 * thread + i]), want, "row {row}, column {column}, layouts {left} and {right}");
        }
    }
    // The left operand in registers: only the first, 1.0 at an even term and what the halves of 1065369472 have.
    let kernel = product("{%r20, %r21, %r22, %r23}", "1, 1, 0", WAIT);
    let got = kernel.run().expect("it runs");
    let [even, odd] = [1_065_369_472u32 << 16, 1_065_369_472 & 0xffff_0000].map(f32::from_bits);
    for thread in 0..128 {
        let column = thread % 4 * 2;
        // Each lane's pair is terms 2t and 2t + 1 of its row, so a row has all of the first 8 terms.
        let want = (0..4)
            .fold(1.0, |sum, t| sum + even * kernel.input[(64 + column) * 64 + 2 * t] + odd * kernel.input[(64 + column) * 64 + 2 * t + 1]);
        assert_eq!([f32::from_bits(got[4 * thread]), f32::from_bits(got[4 * thread + 2])], [want, 1.0], "thread {thread}");
    }
}

#[test]
fn products_are_waited_for_and_fenced() {
    let refused = |kernel: Kernel, what: &str| {
        let error = kernel.run().expect_err("a mistake");
        assert!(error.contains(what) && error.contains("PTX line"), "{what}: {error}");
    };
    let flags = "1, 1, 0, 0";
    refused(product("%rd8", flags, "wgmma.commit_group.sync.aligned;\n"), "has not been waited for");
    refused(product("%rd8", flags, "wgmma.wait_group.sync.aligned 0;\n"), "has not been waited for");
    refused(product("{%r20, %r21, %r22, %r23}", "1, 1, 0", &format!("mov.u32 %r22, 5;\n{WAIT}")), "has not been waited for");
    assert!(product("{%r20, %r21, %r22, %r23}", "1, 1, 0", &format!("mov.u32 %r9, %r22;\n{WAIT}")).run().is_ok(), "a may be read");
    for (from, to, what) in [
        ("wgmma.fence.sync.aligned;\n", "", "no wgmma.fence before the first product"),
        ("wgmma.fence.sync.aligned;\n", "wgmma.fence.sync.aligned;\nmov.f32 %f2, %f1;\n", "no wgmma.fence since a register"),
        ("add.s64 %rd9, %rd8, 512;", "add.s64 %rd9, %rd8, %rd3;", "only the 128-byte swizzle"),
        ("wgmma.fence.sync.aligned;\n", "setp.gt.u32 %p3, %r1, 30;\n@%p3 ret;\nwgmma.fence.sync.aligned;\n", "divergent"),
        ("wgmma.fence.sync.aligned;\n", "setp.gt.u32 %p3, %r1, 95;\n@%p3 ret;\nwgmma.fence.sync.aligned;\n", "never came here"),
        ("wgmma.fence.sync.aligned;\n", "setp.gt.u32 %p2, %r1, 95;\nwgmma.fence.sync.aligned;\n", "differ in their operands"),
        ("wgmma.fence.sync.aligned;\n", "setp.gt.u32 %p2, %r1, 17;\nwgmma.fence.sync.aligned;\n", "lanes of a warp differ"),
        ("wgmma.fence.sync.aligned;\n", "st.shared.u32 [%r3], %r1;\nwgmma.fence.sync.aligned;\n", "no fence.proxy.async since thread 31"),
        ("{%f1, %f2, %f3, %f4}, ", "{%f1, %f2, %f3, %f3}, ", "twice in d"),
        ("1, 1, 0, 0", "1, -1, 0, 0", "unknown instruction"),
    ] {
        let kernel = product("%rd8", flags, WAIT);
        let body = kernel.body.replacen(from, to, 1);
        refused(Kernel { body: &body, ..kernel }, what);
    }
}

/// A box of 8 rows, whose words 256 threads write, to the map's matrix and, of that, back.
fn leave(fence: &str, wait: &str) -> Result<Vec<u32>, String> {
    let body = format!(
        "shl.b32 %r9, %r1, 2;\nadd.s32 %r9, %r9, %r3;\nst.shared.u32 [%r9], %r1;\n{fence}bar.sync 0;\nsetp.ne.s32 %p1, %r1, 0;\n@%p1 bra $there;\n\
        mov.u32 %r7, 0;\nmov.u32 %r8, 1;\ncp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd3, {{%r7, %r8}}], [%r3];\n\
        cp.async.bulk.commit_group;\n{wait}$there:\nbar.sync 0;\nmul.wide.u32 %rd8, %r1, 4;\nadd.s64 %rd8, %rd8, {IN};\nld.global.u32 %r10, [%rd8];\n"
    );
    let store = "st.global.u32 [%rd6], %r10;";
    Kernel { body: &body, store, threads: 256, words: 1, input: vec![0.0; 8 * 64], columns: 64, box_rows: 8 }.run()
}

#[test]
fn tiles_leave_when_they_are_waited_for() {
    let fence = "fence.proxy.async.shared::cta;\n";
    let got = leave(fence, "cp.async.bulk.wait_group 0;\n").expect("it runs");
    for (row, word) in (0..8).flat_map(|row| (0..32).map(move |word| (row, word))) {
        // From row 1 of the matrix on; what lies below it is left out.
        let want = if row == 0 { 0 } else { 32 * (row - 1) + ((word / 4) ^ (row - 1)) * 4 + word % 4 };
        assert_eq!(got[row * 32 + word], want as u32, "row {row}, word {word}");
    }
    let early = leave(fence, "cp.async.bulk.wait_group.read 0;\n").expect("it runs");
    assert!(early.iter().all(|word| *word == 0), "read, and not there yet");
    for (fence, wait, what) in [
        ("", "cp.async.bulk.wait_group 0;\n", "no fence.proxy.async since thread"),
        (fence, "cp.async.bulk.wait_group 1;\n", "before the store of PTX line"),
        (fence, "", "before the store of PTX line"),
    ] {
        let error = leave(fence, wait).expect_err("a mistake");
        assert!(error.contains(what) && error.contains("PTX line"), "{what}: {error}");
    }
}

const MEET: &str = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";

/// What a body does in two blocks of 32 threads, each of which leaves the rank of its block.
fn by_two(body: &str) -> Result<Vec<u32>, String> {
    let store = "mov.u32 %r10, %cluster_ctarank;\nst.global.u32 [%rd6], %r10;";
    Kernel { body, store, threads: 32, words: 1, input: Vec::new(), columns: 0, box_rows: 0 }.run_in_cluster(2)
}

#[test]
fn blocks_of_a_cluster_meet_and_arrive_at_each_other_s_barriers() {
    let arrive = |rank: &str| {
        format!(
            "mov.u32 %r11, %cluster_ctarank;\nxor.b32 %r11, %r11, {rank};\nmapa.shared::cluster.u32 %r12, %r2, %r11;\nmbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r12];\n"
        )
    };
    let acquire = wait(0).replace("try_wait.parity", "try_wait.parity.acquire.cluster");
    let right = format!("{}{MEET}{}{acquire}{MEET}", barrier(32), arrive("1"));
    let ranks: Vec<u32> = [0, 1].into_iter().flat_map(|rank| [rank; 32]).collect();
    assert_eq!(by_two(&right).expect("it runs"), ranks);
    let half = format!("setp.ne.s32 %p2, %r39, 0;\n@%p2 bra $past;\n{MEET}$past:\n");
    for (body, what) in [
        (right.replacen(MEET, "", 1), "no barrier was initialised"),
        (right.replace("fence.mbarrier_init.release.cluster;\n", ""), "no fence.mbarrier_init"),
        (format!("{}{MEET}{}{MEET}", barrier(32), arrive("3")), "in a cluster of 2"),
        (format!("{}{MEET}{}", barrier(32), arrive("1")), "has ended"),
        (right.replace(&arrive("1"), ""), "misses 32 of 32 arrivals"),
        (half, "the cluster, 32 of whose 64 threads are there"),
        ("barrier.cluster.arrive.release.aligned;\n".repeat(2), "twice without"),
        ("barrier.cluster.wait.acquire.aligned;\n".to_owned(), "without barrier.cluster.arrive"),
        (format!("setp.gt.u32 %p2, %r1, 30;\n@%p2 ret;\n{MEET}"), "divergent"),
    ] {
        let error = by_two(&body).expect_err("a mistake");
        assert!(error.contains(what) && error.contains("PTX line"), "{what}: {error}");
    }
}
