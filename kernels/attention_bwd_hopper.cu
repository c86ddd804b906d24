// attention_bwd_hopper.cu - attention_bwd.cu's gradients on sm_90a in one pass: scores are formed once for dk, dv and dq.
//
// A block has 128 keys, two pages of a history that lie one after another, 64 for each of the two warpgroups that multiply, and takes every tile of 64 pairs
// that sees them, the last tile of the batch first. dk and dv stay in registers. The gradients of scores go through shared memory, as a left operand by
// rows, for the tile's share of dq, of which a warpgroup has 64 columns at a time (heads of 64: each every other tile).
//
// Order of sums. The blocks that a tile meets are those of its history, and add to its dq by turns, the first keys first: a block waits until the number of
// turns that the tile has had is its own, takes the sums so far into its accumulators, goes on with them, and puts them back, or rounds them to dq if its
// turn is the last. So dq is one chain over all keys, as in two passes, and its bits are the same; no float is added atomically. Sums under way lie as a
// warpgroup's threads hold them, 16 bytes of a thread side by side with its neighbour's.
//
// Nobody waits for a block that has not begun: blocks take their work from a counter, and work comes in order of first positions, so that what a turn waits
// for was taken before. That is also the order from the most tiles to the fewest, and by it and by the last tile first a turn is rarely waited for: where a
// head's blocks run at the same time, each is a tile behind the one before it.
//
// Equations, shapes and the meaning of a NaN: attention_bwd.cu and attention_bwd_hopper.cuh.
//
// Operations: 5 products of 2 T H D for each key seen, 218 us at 790 TFLOP/s for one causal sequence of 4096 with 32 heads of 64 (two passes: 304). Bytes
// for 64 pairs and 128 keys: 2 * 64 * 2 D of pairs, 2 * 64 * 4 D of sums of dq, 96 KiB for D = 128, nearly all by way of L2: 4.1 TB/s of it at 450 TFLOP/s
// on 132 multiprocessors. Not measured on a chip yet.
#include "sorft.cuh"
#include "hopper.cuh"
#include "attention.cuh"
#include "attention_bwd.cuh"
#include "attention_hopper.cuh"
#include "attention_bwd_hopper.cuh"

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

constexpr u32 NO_PAGE = 0xffffffffu;

template <int D>
struct OnePass {
  static constexpr int STAGES = 2, STAGE_BYTES = 2 * Tile<D>::BYTES, SCORE_BYTES = ROWS * ROW_BYTES;
  // Where they begin, in bytes: the pages' keys at 0, their values, stages of pairs, two turns of both pages' gradients of scores.
  static constexpr int VALUES = 2 * Tile<D>::BYTES, PAIRS_AT = 4 * Tile<D>::BYTES, SCORES = PAIRS_AT + STAGES * STAGE_BYTES;
  // Registers of a thread that copies, and of one that multiplies: with two of those 3 * 168, which the block has.
  static constexpr int COPYING = D == 128 ? 24 : 40, MULTIPLYING = (3 * 168 - COPYING) / 2;
};

// What a block does: up to two pages, with the position of the first one's first slot and the slots filled of each; its turn in every tile's dq; the tiles.
struct KeyBlock {
  u32 pages[2];
  int begin, turn, slots[2];
  const u32 *tiles;
  int count;

  __device__ __forceinline__ KeyBlock(const u32 *blocks, const u32 *all_tiles, const u32 *starts, int block) {
    const u32 *own = blocks + (i64)block * 6;
    pages[0] = own[0], pages[1] = own[1];
    begin = (int)own[2], turn = (int)own[3];
    slots[0] = (int)own[4], slots[1] = (int)own[5];
    tiles = all_tiles + (i64)starts[block] * 4;
    count = (int)(starts[block + 1] - starts[block]);
  }

  // (Choices: an array that is indexed would lie in memory.)
  __device__ __forceinline__ u32 page(int g) const { return g ? pages[1] : pages[0]; }
  __device__ __forceinline__ int filled(int g) const { return g ? slots[1] : slots[0]; }

  // Of a tile the first token, how many, which tile of the batch it is, and the last turn that its dq has.
  __device__ __forceinline__ int token(int n) const { return (int)tiles[4 * n]; }
  __device__ __forceinline__ int rows(int n) const { return (int)tiles[4 * n + 1]; }
  __device__ __forceinline__ i64 tile(int n) const { return tiles[4 * n + 2]; }
  __device__ __forceinline__ bool ends(int n) const { return (int)tiles[4 * n + 3] == turn; }
};

// Gradients of queries: finished ones, sums under way [tiles, H_kv, blocks of columns, 64 * 64], and how often the sums of a tile have been added to
// [tiles, H_kv], once for each block of columns.
struct Turns {
  bf16 *dq;
  float *sums;
  u32 *taken;
};

// Pages are there; of a stage: what earlier turns have added to the tile's dq is there.
struct KeyBarriers {
  u64 *pages, *turn;
  TileBarriers tiles;
};

// Run r of tile n, of up to `most` tokens.
__device__ __forceinline__ Run run_of(const KeyBlock &own, int n, int r, int most, int tokens) {
  const int left = own.rows(n) - r * most;
  if (left <= 0) return {tokens, 0};
  return {own.token(n) + r * most, left < most ? left : most};
}

// The copying warpgroup: one thread has TMA bring the pages and then pairs, two warps note what is known of them, a thread waits for turns.
template <int D, int PAIRS>
__device__ __forceinline__ void load_keys(u8 *shared, Known *known, const KeyBarriers &b, const Gradients &a, const KeyBlock &own, const u32 *taken,
                                          int tokens) {
  using P = OnePass<D>;
  const int thread = threadIdx.x % GROUP, most = PAIRS / a.of_token();
  const auto run = [&](int n, int r) { return run_of(own, n, r, most, tokens); };
  if (thread == 0) {
    const int pages = own.page(1) == NO_PAGE ? 1 : 2;
    ptx::arrive_and_expect(b.pages, pages * 2 * Tile<D>::BYTES);
    for (int g = 0; g < pages; g++) {
      load_tile<D>(shared + g * Tile<D>::BYTES, *a.keys, b.pages, a.row_of_page(own.page(g)));
      load_tile<D>(shared + P::VALUES + g * Tile<D>::BYTES, *a.values, b.pages, a.row_of_page(own.page(g)));
    }
    load_tiles<D, PAIRS, P::STAGES>(shared + P::PAIRS_AT, b.tiles, a, own.count, run);
  } else if (thread >= 32 && thread < 32 + ROWS) {
    know_tiles<PAIRS, P::STAGES>(known, b.tiles, a, thread - 32, own.count, run);
  } else if (thread == 32 + ROWS) {
    Turn<P::STAGES> stage;
    for (int n = 0; n < own.count; n++, stage.next()) {
      ptx::wait(&b.tiles.free[stage.stage], stage.parity ^ 1);
      ptx::wait_for(taken + own.tile(n) * a.kv_heads + a.kv_head, own.turn * Tile<D>::BLOCKS);
      ptx::arrive(&b.turn[stage.stage]);
    }
  }
}

// A warpgroup at work: 64 of the block's keys, and of a tile's dq 64 columns.
template <int D, int PAIRS>
struct KeyWorker {
  using P = OnePass<D>;
  const Gradients &a;
  const KeyBarriers &barriers;
  const KeyBlock &own;
  const Turns &turns;
  const KeyRows &rows;
  u8 *shared;
  const Known *known;
  int group;

  // Sets to zero what TMA has not brought and nobody has written: dq is a sum over all of the block's keys, of which those beyond count 0.
  __device__ __forceinline__ void clear_pages() const {
    u8 *keys = shared + group * Tile<D>::BYTES;
    if (own.filled(group) < ROWS) clear_behind<D>(keys, own.filled(group), 2 + group, rows.thread, GROUP);
    if (own.page(group) == NO_PAGE) clear_behind<D>(keys + P::VALUES, 0, 2 + group, rows.thread, GROUP);
  }

  // A row of shared memory has a key's 64 pairs, its 16-byte chunks exchanged as wgmma reads them.
  __device__ __forceinline__ void put_scores(const u32 (&ds)[4][4], u8 *to) const {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int key = KeyRows::row_of(rows.thread) + 8 * r;
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) store_vec(to + key * ROW_BYTES + ((j ^ key % 8) << 4) + rows.thread % 4 * 4, ds[j / 2][j % 2 * 2 + r]);
    }
  }

  __device__ __forceinline__ float *sums_at(int n, int columns) const {
    return turns.sums + (((own.tile(n) * a.kv_heads + a.kv_head) * Tile<D>::BLOCKS + columns) * GROUP * 8 + rows.thread) * 4;
  }

  // Issues this block's share of dq: sum += ds' keys over both pages, for 64 columns.
  __device__ __forceinline__ void add_queries(float (&sum)[8][4], int n, int columns, const u8 *scores) const {
    if (own.turn == 0) {
      tile::clear(sum);
    } else {
      const float *from = sums_at(n, columns);
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        const float4 before = load_vec<float4>(from + j * GROUP * 4);
        sum[j][0] = before.x, sum[j][1] = before.y, sum[j][2] = before.z, sum[j][3] = before.w;
      }
    }
    ptx::wgmma_fence();
    SORFT_UNROLL
    for (int k = 0; k < 8; k++) {
      const u8 *keys = shared + k / 4 * Tile<D>::BYTES + columns * Tile<D>::BLOCK_BYTES + k % 4 * 2048;
      ptx::wgmma<true, true>(sum, ptx::describe(scores + k * 2048, P::SCORE_BYTES, 1024), ptx::describe(keys, Tile<D>::BLOCK_BYTES, 1024), true);
    }
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void finish_queries(const float (&sum)[8][4], int n, int columns) const {
    const int most = PAIRS / a.of_token();
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int pair = KeyRows::row_of(rows.thread) + 8 * r, in_run = pair % PAIRS;
      const Run run = run_of(own, n, pair / PAIRS, most, 0);
      if (in_run >= run.rows * a.of_token()) continue;
      const i64 row = (i64)(run.token + in_run / a.of_token()) * a.heads + a.first_head() + in_run % a.of_token();
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        const int column = 64 * columns + 8 * j + rows.thread % 4 * 2;
        if (column < D) store_vec(turns.dq + row * D + column, to_bf16x2(sum[j][2 * r], sum[j][2 * r + 1]));
      }
    }
  }

  // Puts the sums where the next turn finds them, and ends this one.
  __device__ __forceinline__ void pass_on(const float (&sum)[8][4], int n, int columns) const {
    float *to = sums_at(n, columns);
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) store_vec(to + j * GROUP * 4, float4{sum[j][0], sum[j][1], sum[j][2], sum[j][3]});
    ptx::named_barrier(2 + group, GROUP);  // the whole warpgroup has
    if (rows.thread == 0) ptx::add_release(turns.taken + own.tile(n) * a.kv_heads + a.kv_head, 1);
  }

  __device__ __forceinline__ void run(float (&key_sum)[D / 8][4], float (&value_sum)[D / 8][4]) const {
    const u8 *keys = shared + group * Tile<D>::BYTES;
    tile::clear(key_sum);
    tile::clear(value_sum);
    ptx::wait(barriers.pages, 0);
    clear_pages();
    Turn<P::STAGES> turn;
    for (int n = 0; n < own.count; n++, turn.next()) {
      const u8 *q = shared + P::PAIRS_AT + turn.stage * P::STAGE_BYTES, *d_o = q + Tile<D>::BYTES;
      u8 *scores = shared + P::SCORES + n % 2 * 2 * P::SCORE_BYTES;
      const int columns = (group + n) % 2;
      const bool adds = columns < Tile<D>::BLOCKS;
      float s[8][4], dp[8][4], x[8][4];
      u32 p[4][4], ds[4][4];
      ptx::wait(&barriers.tiles.full[turn.stage], turn.parity);
      const bool all = rows.all_seen<PAIRS>(known[turn.stage]);
      issue_transposed<D, Tile<D>::BLOCK_BYTES>(s, keys, q);
      issue_transposed<D, Tile<D>::BLOCK_BYTES>(dp, keys + P::VALUES, d_o);
      ptx::wgmma_wait<1>();  // the scores are there
      rows.probabilities(x, s, known[turn.stage], all);
      pack(p, x);
      issue_sum<D>(value_sum, p, d_o);
      ptx::wgmma_wait<1>();  // dp is there
      rows.gradients(x, dp, known[turn.stage], all);
      pack(ds, x);
      put_scores(ds, scores + group * P::SCORE_BYTES);
      ptx::fence_async_proxy();
      issue_sum<D>(key_sum, ds, q);
      ptx::named_barrier(1, MAX_GROUPS * GROUP);  // both pages' gradients of scores are there; those of the tile before the last have been read
      float sum[8][4];
      if (adds) {
        ptx::wait(&barriers.turn[turn.stage], turn.parity);
        add_queries(sum, n, columns, scores);
      }
      ptx::wgmma_wait<0>();
      // (What is known of the pairs all lanes have read before they met.)
      if (rows.thread % 32 == 0) ptx::arrive(&barriers.tiles.free[turn.stage]);
      if (!adds) continue;
      if (own.ends(n)) finish_queries(sum, n, columns);
      else pass_on(sum, n, columns);
    }
  }
};

template <int D, int PAIRS>
__device__ __forceinline__ void key_gradients(const Turns &turns, float *dk, float *dv, const Gradients &a, const KeyBlock &own, u8 *shared,
                                              int tokens) {
  using P = OnePass<D>;
  SORFT_SMEM(Known, known, P::STAGES);
  SORFT_SMEM(u64, full_pages, 1);
  SORFT_SMEM(u64, turn, P::STAGES);
  SORFT_SMEM(u64, full, P::STAGES);
  SORFT_SMEM(u64, free, P::STAGES);
  const KeyBarriers barriers{full_pages, turn, {full, free}};
  const int group = threadIdx.x / GROUP;
  if (threadIdx.x == 0) {
    ptx::barrier_init(full_pages, 1);
    SORFT_UNROLL
    for (int i = 0; i < P::STAGES; i++) {
      ptx::barrier_init(&turn[i], 1);
      ptx::barrier_init(&full[i], TILE_ARRIVALS);
      ptx::barrier_init(&free[i], MAX_GROUPS * GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  clear_padding<P::STAGES * 2 * Tile<D>::BLOCKS * (ROWS / PAIRS), PAIRS, 3 * GROUP>(shared + P::PAIRS_AT, PAIRS / a.of_token() * a.of_token());
  __syncthreads();
  if (group == MAX_GROUPS) {
    ptx::give_registers<P::COPYING>();
    load_keys<D, PAIRS>(shared, known, barriers, a, own, turns.taken, tokens);
  } else {
    ptx::take_registers<P::MULTIPLYING>();
    const int thread = (int)threadIdx.x % GROUP;
    // A page that is not there lies behind all tokens: nobody sees it.
    const int first = own.page(group) == NO_PAGE ? 1 << 30 : own.begin + group * ROWS;
    const KeyRows rows{thread, first + KeyRows::row_of(thread), a.scale};
    const KeyWorker<D, PAIRS> worker{a, barriers, own, turns, rows, shared, known, group};
    float key_sum[D / 8][4], value_sum[D / 8][4];
    worker.run(key_sum, value_sum);
    if (own.page(group) == NO_PAGE) return;
    const i64 at = (i64)a.row_of_page(own.page(group)) * D;
    rows.store<D>(dk + at, key_sum);
    rows.store<D>(dv + at, value_sum);
  }
}

}  // namespace attention_bwd_hopper
#endif

// Boxes of the maps: of keys and values, which are [pages * H_kv * 64, D], 64 rows; of q and d_o, which are [T, H, D], the kv head's heads and as many tokens
// as fill PAIRS pairs.
//
// Grid: blocks of keys times kv heads. Block: 384 threads. counters: how many blocks have begun, then a tile's and kv head's turns, all 0 at first. sums: as
// Turns says. blocks [blocks, 6], in order of first positions: two pages (the second may be missing), the first position, the turn, slots filled of each.
// tiles [.., 4]: first token, tokens, number, last turn; starts [blocks + 1]: where each block's tiles begin. Dynamic shared memory: keys and values of two
// pages, two stages of two tiles of 64 pairs, and 32 KiB: 96 KiB for D = 64, else 160.
#define ATTENTION_BWD_HOPPER(D, PAIRS)                                                                                                            \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                                                            \
  attention_bwd_hopper_d##D(bf16 *__restrict__ dq, float *__restrict__ dk, float *__restrict__ dv, float *__restrict__ sums,                      \
                            u32 *__restrict__ counters, const SORFT_GRID_CONSTANT TensorMap d_o, const SORFT_GRID_CONSTANT TensorMap q,           \
                            const SORFT_GRID_CONSTANT TensorMap keys, const SORFT_GRID_CONSTANT TensorMap values,                                 \
                            const float *__restrict__ lse, const float *__restrict__ delta, const u32 *__restrict__ positions, i32 tokens,        \
                            const u32 *__restrict__ blocks, const u32 *__restrict__ tiles, const u32 *__restrict__ starts, i32 heads,             \
                            i32 kv_heads, float scale) {                                                                                          \
    ATTENTION_BWD_HOPPER_BODY(D, PAIRS);                                                                                                          \
  }                                                                                                                                               \
  SORFT_EXPORT(attention_bwd_hopper_d##D)

#if defined(SORFT_HOPPER)
#define ATTENTION_BWD_HOPPER_BODY(D, PAIRS)                                                                                                       \
  SORFT_DYN_SMEM(u8, shared);                                                                                                                     \
  SORFT_SMEM(u32, begun, 1);                                                                                                                      \
  if (threadIdx.x == 0) begun[0] = atomicAdd(counters, 1u);                                                                                       \
  __syncthreads();                                                                                                                                \
  const u32 work = begun[0];                                                                                                                      \
  const attention_bwd_hopper::KeyBlock own(blocks, tiles, starts, (int)(work / (u32)kv_heads));                                                   \
  attention_bwd_hopper::key_gradients<D, PAIRS>({dq, sums, counters + 1}, dk, dv, ATTENTION_BWD_ARGUMENTS(work % (u32)kv_heads), own, shared, tokens)
#else
#define ATTENTION_BWD_HOPPER_BODY(D, PAIRS)
#endif

ATTENTION_BWD_HOPPER(64, 64)
ATTENTION_BWD_HOPPER(96, 32)
ATTENTION_BWD_HOPPER(128, 32)
