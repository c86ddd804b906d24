//! The linear layer's kernels for Hopper, by TMA and wgmma: the bits of the others, under every schedule, and every mistake found.

use crate::cuda_attention::mutant;
use crate::cuda_checker::modes;
use crate::cuda_matmul::{Case, compare, each_is_found, on_ampere, processor, run, zeros};
use crate::emulator;
use crate::support::bits;
use sorft_native::tensor::cuda::Source;

/// By TMA and wgmma: tiles that are not full, more chunks than stages, a tree's last chunk in the middle of the tokens. The bits are those that
/// mma.sync gives.
#[test]
fn hopper_s_products_equal_the_others_under_every_schedule() {
    hopper_equals_ampere(&Case::new(261, 72, 328, 16, vec![0..7, 7..261]));
}

/// By two blocks that load their columns together: every product; more tiles than one for each; the last row of tiles without a partner, and an
/// odd number of boxes of outputs in each.
#[test]
fn pairs_of_blocks_equal_the_others_under_every_schedule() {
    hopper_equals_ampere(&Case::new(200, 136, 264, 16, vec![0..7, 7..200]));
    hopper_equals_ampere(&Case::new(1029, 136, 72, 8, vec![0..64]));
}

fn hopper_equals_ampere(case: &Case) {
    let want = processor(case);
    let mut first = None;
    for mode in [on_ampere(modes()[0])].into_iter().chain(modes()) {
        let gpu = emulator::gpu(mode);
        assert_eq!(gpu.is_hopper(), first.is_some());
        let mut dw = zeros(&gpu, case);
        let got = run(&gpu, case, &mut dw).unwrap_or_else(|e| panic!("{mode:?}: {e}"));
        let dw = dw.to_f32().expect("downloaded");
        compare(case, &got, &dw, &want);
        let got = [bits(&got[0]), bits(&got[1]), bits(&dw)];
        assert!(*first.get_or_insert(got.clone()) == got, "{mode:?}: other bits");
    }
}

#[test]
fn every_mistake_on_hopper_is_found() {
    let mutants = [
        mutant("does not wait for a free stage", "if (BLOCKS == 1) ptx::wait(free, s.parity ^ 1);", "if (BLOCKS == 1) {}"),
        mutant("does not wait for a full stage", "    ptx::wait(&s.full[s.stage], s.parity);\n", ""),
        mutant("the parity of the wrong phase", "ptx::wait(free, s.parity ^ 1)", "ptx::wait(free, s.parity)"),
        mutant("parities stay", "stage = 0, parity ^= 1", "stage = 0"),
        mutant("a stage is freed before it was read", "    ptx::wgmma_wait<1>();\n", ""),
        mutant("this stage is freed, not the one before", "leave<BLOCKS>(before);  // the", "leave<BLOCKS>(&s.free[s.stage]);  // the"),
        mutant("the last products are not waited for", "  ptx::wgmma_wait<0>();\n  if (before", "  if (before"),
        mutant("a stage is freed by half", "BLOCKS * 2 * GROUP / 32);", "BLOCKS * GROUP / 32);"),
        mutant("fewer bytes are announced", "ptx::arrive_and_expect(full, STAGE_BYTES)", "ptx::arrive_and_expect(full, SIDE_BYTES)"),
        mutant("barriers before they are made", "    ptx::fence_barriers();\n  }\n  meet<BLOCKS>();", "    ptx::fence_barriers();\n  }"),
        mutant("no fence of the zeros", "0, 0, 0, 0});\n    ptx::fence_async_proxy();\n", "0, 0, 0, 0});\n"),
        mutant("no meeting behind the zeros", "    ptx::named_barrier(1 + group, GROUP);\n  }\n", "  }\n"),
        mutant("the next tree's tokens", "for (int i = count * 8", "for (int i = CHUNK * 8"),
        mutant("no fence of the sums", "  ptx::wgmma_fence();\n", ""),
        mutant("both groups take the first rows", "s.a() + group * BOX_BYTES;", "s.a();"),
        mutant("the next 16 terms lie elsewhere", "s.b() + k * (B_BY_ROWS ? 2048 : 32)", "s.b() + k * (B_BY_ROWS ? 1024 : 32)"),
        mutant("the next 64 rows lie elsewhere", "32), BOX_BYTES, 1024);\n    ptx::wgmma", "32), 1024, 1024);\n    ptx::wgmma"),
        mutant("sums go on from the last tile", "keep || k > 0", "true"),
        mutant("no scale", "sum[i / 4][i % 4] *= scale", "sum[i / 4][i % 4] *= 1.0f"),
        mutant("a row too many is written", "if (at_row < m &&", "if (at_row <= m &&"),
        mutant("the second box lies on the first", "load(to + i * BOX_BYTES, first + 64 * i, term)", "load(to, first + 64 * i, term)"),
        mutant("an output's box is not waited for", "    if (speaks) ptx::store_wait_read<1>();\n", ""),
        mutant("one box too few is waited for", "ptx::store_wait_read<1>()", "ptx::store_wait_read<2>()"),
        mutant("not all meet before a box is written", "    ptx::named_barrier(1 + group, GROUP);  // what", "    // what"),
        mutant("outputs are not fenced", "    }\n    ptx::fence_async_proxy();\n", "    }\n"),
        mutant("not all meet before a box is stored", "    ptx::named_barrier(1 + group, GROUP);\n    if (!speaks)", "    if (!speaks)"),
        mutant("outputs are in no group", "    ptx::store_commit();\n", ""),
        mutant("the block ends too early", "    if (threadIdx.x % GROUP == 0) ptx::store_wait_read<0>();\n", ""),
        mutant("a box is written twice running", "    turn ^= BOX_BYTES;\n", ""),
        mutant("both groups share their boxes", "group * OUT_BYTES", "0 * group"),
        mutant("rows are exchanged", "place<64>(16 * warp + lane % 16, 2 * k", "place<64>(16 * warp + (lane ^ 8) % 16, 2 * k"),
        mutant("columns are exchanged", "2 * k + lane / 16), pieces", "2 * k + 1 - lane / 16), pieces"),
        mutant("the other group's rows", "  row += 64 * group;\n", "  row += 64 * (1 - group);\n"),
        mutant("no bias", "if (!bias || column >= n) return;", "return;"),
        mutant("bias of columns that are not there", "if (!bias || column >= n) return;", "if (!bias) return;"),
    ];
    let case = Case::new(261, 72, 136, 16, vec![0..7, 7..261]);
    each_is_found(Source::LINEAR_HOPPER, "struct Side {", &mutants, &case, (9, 0));
}

/// Of two blocks that load their columns together, in all three products.
#[test]
fn every_mistake_by_pairs_is_found() {
    let mutants = [
        mutant("does not wait for a free stage", "else ptx::wait_for_cluster(free, s.parity ^ 1);", ""),
        mutant("waits for its own block alone", "ptx::wait_for_cluster(free, s.parity ^ 1)", "ptx::wait(free, s.parity ^ 1)"),
        mutant("a stage is freed by one block", "BLOCKS * 2 * GROUP / 32);", "2 * GROUP / 32);"),
        mutant("a stage is freed in one block", "ptx::arrive_at(free, rank);", "ptx::arrive_at(free, 0);"),
        mutant("the first block's half twice", "half = BLOCKS == 1 ? i : s.rank;", "half = BLOCKS == 1 ? i : 0;"),
        mutant(
            "the halves are exchanged",
            "s.b() + half * SIDE_BYTES, *side.b, full, column + half",
            "s.b() + half * SIDE_BYTES, *side.b, full, column + (1 - half)",
        ),
        mutant("a half for its own block alone", "load_side<B_BY_ROWS, BLOCKS == 2>", "load_side<B_BY_ROWS, false>"),
        mutant("the rows for both too", "load_side<A_BY_ROWS, false>", "load_side<A_BY_ROWS, BLOCKS == 2>"),
        mutant("to the first block alone", "barrier, x, y, 3)", "barrier, x, y, 1)"),
        mutant(
            "the other block need not be there",
            "    ptx::fence_barriers();\n  }\n  meet<BLOCKS>();",
            "    ptx::fence_barriers();\n  }\n  __syncthreads();",
        ),
        mutant("barriers that only the own block sees", "    ptx::fence_barriers();\n  }\n  meet", "  }\n  meet"),
        mutant("a block ends before the other", "  if (BLOCKS > 1) meet<BLOCKS>();", ""),
        mutant("both have the same rows", "load(stages, (t % down * BLOCKS + rank) * ROWS", "load(stages, t % down * BLOCKS * ROWS"),
        mutant(
            "outputs lie elsewhere",
            "compute(stages, group, (t % down * BLOCKS + rank)",
            "compute(stages, group, (t % down * BLOCKS + 1 - rank)",
        ),
        mutant("a block takes every second tile", "first = blockIdx.x / BLOCKS", "first = blockIdx.x"),
    ];
    let case = Case::new(200, 136, 264, 16, vec![0..7, 7..200]);
    each_is_found(Source::LINEAR_HOPPER, "struct Side {", &mutants, &case, (9, 0));
}
