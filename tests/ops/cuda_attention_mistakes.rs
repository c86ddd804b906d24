//! Mistakes planted in the kernels of attention's gradients: the checker objects or the numbers are wrong, under every schedule that is tried.

use crate::attention::{heads, tree};
use crate::cuda_attention::{Mutant, broken, inputs, mutant};
use crate::cuda_attention_backward::{BOUND, Way, processor, run_backward};
use crate::cuda_checker::modes;
use crate::emulator;
use crate::support::error;
use sorft_native::Result;
use sorft_native::tensor::cuda::{Emulation, Gpu, Source};
use sorft_native::tensor::ops::attention::Heads;
use sorft_native::tensor::plan::Plan;
use std::sync::Arc;

#[test]
fn every_mistake_is_found() {
    let mutants = [
        mutant("queries: no barrier", "__syncthreads();  // the tile has landed for all", "// the tile has landed for all"),
        mutant("queries: one stage", "(t + 1) % 2 * 2 * PAGE", "t % 2 * 2 * PAGE"),
        mutant("queries: one key too many", "<= position[e / 2];", "<= position[e / 2] + 1;"),
        mutant("queries: no delta", "dp[j][e], delta[e / 2], a.scale", "dp[j][e], 0.0f, a.scale"),
        mutant("queries: the other row's sum", "lse[e / 2]);", "lse[1 - e / 2]);"),
        mutant("queries: a row too many", "item.end - (t + 1) * ROWS", "item.end + 1 - (t + 1) * ROWS"),
        mutant("pages: no barrier", "__syncthreads();  // the pairs have landed for all", "// the pairs have landed for all"),
        mutant("pages: one stage", "const u32 other = (i + 1 - first) % 2;", "const u32 other = (i - first) % 2;"),
        mutant("pages: one stage of what is known", "known + other, a", "known + 1 - other, a"),
        mutant(
            "pages: waits too little",
            "ptx::cp_async_wait<0>();\n    __syncthreads();  // the pairs",
            "ptx::cp_async_wait<1>();\n    __syncthreads();  // the pairs",
        ),
        mutant("pages: no mask", "position + lane / 4 + e / 2 * 8 <= own.position[pair]", "own.position[pair] >= 0"),
        mutant("pages: the pair's neighbour", "const int pair = j * 8 + lane % 4 * 2 + e % 2;", "const int pair = j * 8 + lane % 4 * 2;"),
        mutant("pages: unwritten slots", "page, a.kv_heads, kv_head, filled)", "page, a.kv_heads, kv_head, ROWS)"),
        mutant("pages: the last run is lost", "i < last; i++) {\n    ptx", "i + 1 < last; i++) {\n    ptx"),
        mutant("delta: half of a row", "c < dim; c += 64", "c < dim / 2; c += 64"),
    ];
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    // Whose pages begin unwritten, so that reading too much of them is found.
    let modes: Vec<Emulation> = modes().into_iter().step_by(3).collect();
    each_is_found(Source::ATTENTION_BWD, Way::Ampere, "struct Gradients {", &mutants, heads(3, 1, 64), &plan, &modes);
}

/// Mistakes with pages and pairs by TMA and products by warpgroups.
#[test]
fn every_mistake_on_hopper_is_found() {
    // In the headers that the two passes share.
    let of_both = [
        mutant("padding is not cleared", "    store_vec(areas", "    if (false) store_vec(areas"),
        mutant("padding is not fenced", "  ptx::fence_async_proxy();\n}", "}"),
        mutant("no fence of the sums", "  ptx::wgmma_fence();\n  SORFT_UNROLL\n  for (int k = 0; k < 4", "  for (int k = 0; k < 4"),
        mutant("the next columns lie elsewhere", "BLOCK_BYTES + k % 4 * 32", "BLOCK_BYTES + k % 4 * 16"),
        mutant("the next terms lie elsewhere", "b + k * 2048", "b + k * 1024"),
    ];
    let of_queries = [
        mutant("queries: do not wait for pairs", "    ptx::wait(barriers.pairs, 0);\n", ""),
        mutant("queries: do not wait for keys", "    ptx::wait(&barriers.keys[at.stage], at.parity);\n", ""),
        mutant("queries: do not wait for values", "    ptx::wait(&barriers.values[at.stage], at.parity);\n", ""),
        mutant("queries: fewer bytes are announced", "&b.keys[turn.stage], Tile<D>::BYTES);", "&b.keys[turn.stage], 16);"),
        mutant("queries: scores are not waited for", "ptx::wgmma_wait<2>();  // the scores", "// the scores"),
        mutant("queries: dp is not waited for", "ptx::wgmma_wait<1>();  // so is dp", "// so is dp"),
        mutant("queries: zeros are not fenced", "  ptx::fence_async_proxy();\n  ptx::named_barrier", "  ptx::named_barrier"),
        mutant("queries: each group has its own zeros", "named_barrier(id, threads)", "named_barrier(id + thread / GROUP, GROUP)"),
        mutant("queries: both take the first pairs", "*pairs = shared + group * ROWS * ROW_BYTES", "*pairs = shared"),
        mutant("queries: one key too many", "<= position[e / 2];", "<= position[e / 2] + 1;"),
        mutant("queries: another page", "a.row_of_page(pages[t])", "a.row_of_page(pages[0])"),
        mutant("queries: a pair too many is written", "if (pair >= item.rows * a.of_token())", "if (pair > item.rows * a.of_token())"),
    ];
    let of_pages = [
        mutant("pages: do not wait for the page", "    ptx::wait(page, 0);\n", ""),
        mutant("pages: do not wait for pairs", "    ptx::wait(&barriers.full[turn.stage], turn.parity);\n", ""),
        mutant(
            "pages: no wait for a free stage",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    ptx::arrive_and_expect(full",
            "    ptx::arrive_and_expect(full",
        ),
        mutant(
            "pages: what is known is written too early",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    const Run at",
            "    const Run at",
        ),
        mutant("pages: pairs without what is known of them", "TILE_ARRIVALS = 3;", "TILE_ARRIVALS = 1;"),
        mutant(
            "pages: a warp does not wait for itself",
            "    __syncwarp();\n    if (pair % 32 == 0) ptx::arrive(&b",
            "    if (pair % 32 == 0) ptx::arrive(&b",
        ),
        mutant("pages: a warp is still reading", "    __syncwarp();  // all lanes", "    // all lanes"),
        mutant("pages: pairs are freed too early", "    ptx::wgmma_wait<0>();\n    __syncwarp();", "    __syncwarp();"),
        mutant("pages: no mask", "if (all) take_scores<false>", "if (true) take_scores<false>"),
        mutant(
            "pages: the last run is lost",
            "n < tiles; n++, turn.next()) {\n    const u8",
            "n + 1 < tiles; n++, turn.next()) {\n    const u8",
        ),
    ];
    let of_stages = [
        mutant("parities stay", "stage = 0, parity ^= 1", "stage = 0"),
        mutant(
            "queries: no wait for a free page",
            "    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);\n    ptx::arrive_and_expect(&b.keys",
            "    ptx::arrive_and_expect(&b.keys",
        ),
        mutant("queries: a page is freed by half", "groups * GROUP / 32);", "groups * GROUP / 64);"),
        mutant(
            "queries: a page is freed too early",
            "ptx::wgmma_wait<0>();\n      leave_page();",
            "leave_page();\n      ptx::wgmma_wait<0>();",
        ),
    ];
    // Of kernels whose tiles have two runs.
    let of_two_runs = [
        mutant("pages: one run in the place of two", "to + r * PAIRS * ROW_BYTES, Tile", "to, Tile"),
        mutant("pages: a run that is not there", "return {tokens, 0};", "return {tokens, 32};"),
    ];
    let modes = [modes()[0], modes()[4]];
    let plan = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    let (queries, pages) = (Source::ATTENTION_BWD_Q_HOPPER, Source::ATTENTION_BWD_KV_HOPPER);
    each_is_found(queries, Way::TwoPasses, "struct QueryBarriers {", &[&of_both[..], &of_queries].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, Way::TwoPasses, "struct Runs {", &[&of_both[..], &of_pages].concat(), heads(3, 1, 64), &plan, &modes);
    each_is_found(pages, Way::TwoPasses, "struct Runs {", &of_two_runs, heads(3, 1, 96), &plan, &modes);
    // Stages of the first pass are used again behind the third page.
    let plan = Plan::for_trees(&[tree(&[(None, 194)])]);
    each_is_found(queries, Way::TwoPasses, "struct QueryBarriers {", &of_stages, heads(1, 1, 64), &plan, &modes);
}

/// Mistakes of the pass that forms all gradients at once.
#[test]
fn every_mistake_in_one_pass_is_found() {
    let of_turns = [
        mutant("a turn is not waited for", "      ptx::wait_for(taken", "      if (false) ptx::wait_for(taken"),
        mutant("the thread that waits is not waited for", "        ptx::wait(&barriers.turn[turn.stage], turn.parity);\n", ""),
        mutant(
            "it waits for no free stage",
            "      ptx::wait(&b.tiles.free[stage.stage], stage.parity ^ 1);\n      ptx::wait_for",
            "      ptx::wait_for",
        ),
        mutant("sums begin afresh", "if (own.turn == 0)", "if (true)"),
        mutant(
            "sums are not released",
            "ptx::add_release(turns.taken + own.tile(n) * a.kv_heads + a.kv_head, 1)",
            "atomicAdd(turns.taken + own.tile(n) * a.kv_heads + a.kv_head, 1u)",
        ),
        mutant("a turn ends too early", "    ptx::named_barrier(2 + group, GROUP);  // the whole warpgroup has\n", ""),
        mutant("a turn does not end", "if (rows.thread == 0) ptx::add_release", "if (false) ptx::add_release"),
        mutant("the last turn is one before", "== turn; }", "<= turn + 1; }"),
        mutant("another tile's sums", "turns.sums + (((own.tile(n)", "turns.sums + (((own.tile(0)"),
        mutant("another place in the sums", "from + j * GROUP * 4", "from + j * GROUP"),
    ];
    let of_pages = [
        mutant("do not wait for pages", "    ptx::wait(barriers.pages, 0);\n", ""),
        mutant("do not wait for pairs", "      ptx::wait(&barriers.tiles.full[turn.stage], turn.parity);\n", ""),
        mutant("keys beyond are not cleared", "if (own.filled(group) < ROWS) clear_behind", "if (false) clear_behind"),
        mutant("a missing page is not cleared", "if (own.page(group) == NO_PAGE) clear_behind", "if (false) clear_behind"),
        mutant("the scores are not waited for", "ptx::wgmma_wait<1>();  // the scores", "// the scores"),
        mutant("dp is not waited for", "ptx::wgmma_wait<1>();  // dp", "// dp"),
        mutant("gradients of scores are not fenced", "      ptx::fence_async_proxy();\n      issue_sum", "      issue_sum"),
        mutant(
            "the other page's are not waited for",
            "ptx::named_barrier(1, MAX_GROUPS * GROUP);",
            "ptx::named_barrier(4 + group, GROUP);",
        ),
        mutant("one turn of them", "shared + P::SCORES + n % 2 * 2 * P::SCORE_BYTES", "shared + P::SCORES"),
        mutant("their chunks are not exchanged", "(j ^ key % 8) << 4", "j << 4"),
        mutant("of one page", "k < 8; k++) {\n      const u8 *keys", "k < 4; k++) {\n      const u8 *keys"),
        mutant("both have the first page's positions", ": own.begin + group * ROWS;", ": own.begin;"),
        mutant("no mask", "if (all) take_scores<false>", "if (true) take_scores<false>"),
        mutant("a tile that does not see all is not masked", "+ ROWS <= least + 1", "+ ROWS <= least + ROWS"),
        mutant("where there is no pair something is seen", "-minus_infinity();", "0.0f;"),
        mutant(
            "both have the first page",
            "const u8 *keys = shared + group * Tile<D>::BYTES;\n    tile",
            "const u8 *keys = shared;\n    tile",
        ),
        mutant("pairs are freed too early", "      ptx::wgmma_wait<0>();\n      // (What", "      // (What"),
        mutant("a pair too many is written", "if (in_run >= run.rows", "if (in_run > run.rows"),
        mutant(
            "the last tile is lost",
            "n < own.count; n++, turn.next()) {\n      const u8",
            "n + 1 < own.count; n++, turn.next()) {\n      const u8",
        ),
    ];
    // Of heads whose queries have two blocks of columns, and whose tiles have two runs.
    let of_columns = [
        mutant(
            "both add to the first columns",
            "turns.sums + (((own.tile(n) * a.kv_heads + a.kv_head) * Tile<D>::BLOCKS + columns)",
            "turns.sums + (((own.tile(n) * a.kv_heads + a.kv_head) * Tile<D>::BLOCKS)",
        ),
        mutant("both have the first columns of the keys", " + columns * Tile<D>::BLOCK_BYTES + k % 4", " + k % 4"),
        mutant("columns beyond the head are written", "if (column < D)", "if (true)"),
        mutant("one run in the place of two", "own.token(n) + r * most, left", "own.token(n), left"),
    ];
    let (source, way) = (Source::ATTENTION_BWD_HOPPER, Way::OnePass);
    let modes = modes();
    let found_in = [modes[0], modes[4]];
    let unbroken = "struct KeyBarriers {";
    // Two blocks of two pages, the second of the last not full; then blocks of one page each, the last of two answers.
    let long = Plan::for_trees(&[tree(&[(None, 194)])]);
    let branched = Plan::for_trees(&[tree(&[(None, 70), (Some(0), 2)])]);
    each_is_found(source, way, unbroken, &of_turns, heads(1, 1, 64), &long, &found_in);
    each_is_found(source, way, unbroken, &of_pages, heads(3, 1, 64), &branched_and_long(), &found_in);
    each_is_found(source, way, unbroken, &of_columns, heads(3, 1, 96), &branched, &found_in);
    // What has to be seen where blocks are at work side by side.
    let half = [mutant("half a turn is enough", "own.turn * Tile<D>::BLOCKS", "own.turn")];
    each_is_found(source, way, unbroken, &half, heads(3, 1, 96), &branched, &modes[5..]);
    // Work by the block's number is right as long as blocks begin in that order, and else waits for what has not begun.
    let by_number = [mutant("work by the block's number", "begun[0] = atomicAdd(counters, 1u)", "begun[0] = blockIdx.x")];
    each_is_found(source, way, unbroken, &by_number, heads(1, 1, 64), &long, &modes[1..2]);
}

/// A history of two blocks of two pages, and two of one page each.
fn branched_and_long() -> Plan {
    Plan::for_trees(&[tree(&[(None, 150)]), tree(&[(None, 70), (Some(0), 2)])])
}

#[allow(clippy::too_many_arguments)] // what a mistake is looked for with
fn each_is_found(source: Source, way: Way, unbroken: &'static str, mutants: &[Mutant], heads: Heads, plan: &Plan, found_in: &[Emulation]) {
    let x = inputs(heads, plan.num_tokens());
    let reference = processor(heads, plan, &x);
    let right = |gpu: &Arc<Gpu>| -> Result<bool> {
        let got = run_backward(gpu, way, heads, plan, &x, &reference)?;
        Ok(got.iter().zip(&reference.gradients).all(|(got, want)| error(got, want) <= BOUND))
    };
    let unbroken = broken(source, &mutant("nothing", unbroken, unbroken), heads.head_dim);
    for mode in modes() {
        assert!(right(&emulator::open(&unbroken, way.on(mode))).expect("the kernel itself raises no alarm"), "and its numbers are right");
    }
    for mutant in mutants {
        let library = broken(source, mutant, heads.head_dim);
        for &mode in found_in {
            assert!(!right(&emulator::open(&library, way.on(mode))).unwrap_or(false), "{} under {mode:?}", mutant.name);
        }
    }
}
