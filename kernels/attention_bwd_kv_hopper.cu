// attention_bwd_kv_hopper.cu - attention_bwd.cu's pass for dk and dv on sm_90a: pages and pairs by TMA, products by warpgroups.
//
// A block has a page's 64 keys for one warpgroup that multiplies, so that p and ds are left operands out of registers, and 64 pairs a stage, in two stages;
// another warpgroup copies them. Two such blocks share a multiprocessor: one multiplies while the other forms exponentials.
//
// Bytes: a block reads 4 D for each pair of its runs (for 64 keys), nearly all of it out of L2. Operations: 4 of the 7 products of attention_bwd.cu, 2 T H D
// for each key seen; floor in attention_bwd_q_hopper.cu. Not measured on a chip yet.
#include "sorft.cuh"
#include "hopper.cuh"
#include "attention.cuh"
#include "attention_bwd.cuh"
#include "attention_hopper.cuh"
#include "attention_bwd_hopper.cuh"

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

template <int D>
struct PagePass {
  static constexpr int STAGES = 2, STAGE_BYTES = 2 * Tile<D>::BYTES, PAIRS_AT = 2 * Tile<D>::BYTES;  // the keys at 0, then the values
};

// A page's runs: entries first.. of the table up to last. Tiles of 64 pairs are one run of up to 64 pairs or two of up to 32.
struct Runs {
  const u32 *table;
  u32 first, last;
  int tokens;  // of the batch: a run that is not there begins behind them

  __device__ __forceinline__ Run at(u32 i) const {
    if (i >= last) return {tokens, 0};
    return {(int)table[2 * i], (int)table[2 * i + 1]};
  }
  __device__ __forceinline__ int tiles(u32 runs) const { return (int)((last - first + runs - 1) / runs); }
};

// The copying warpgroup: one thread has TMA bring the page and then pairs, two warps note what is known of them.
template <int D, int PAIRS>
__device__ __forceinline__ void load_runs(u8 *shared, Known *known, u64 *page, const TileBarriers &b, const Gradients &a, const Runs &runs) {
  using P = PagePass<D>;
  constexpr u32 RUNS = ROWS / PAIRS;
  const int thread = threadIdx.x % GROUP;
  const auto run = [&](int n, int r) { return runs.at(runs.first + n * RUNS + r); };
  if (thread == 0) {
    ptx::arrive_and_expect(page, 2 * Tile<D>::BYTES);
    load_tile<D>(shared, *a.keys, page, a.row_of_page(blockIdx.x));
    load_tile<D>(shared + Tile<D>::BYTES, *a.values, page, a.row_of_page(blockIdx.x));
    load_tiles<D, PAIRS, P::STAGES>(shared + P::PAIRS_AT, b, a, runs.tiles(RUNS), run);
  } else if (thread >= 32 && thread < 32 + ROWS) {
    know_tiles<PAIRS, P::STAGES>(known, b, a, thread - 32, runs.tiles(RUNS), run);
  }
}

// The warpgroup at work: dk and dv of the page's keys, over `tiles` tiles of pairs.
template <int D, int PAIRS>
__device__ __forceinline__ void sum_tiles(float (&key_sum)[D / 8][4], float (&value_sum)[D / 8][4], const u8 *shared, const Known *known,
                                          const TileBarriers &barriers, const KeyRows &rows, int tiles) {
  using P = PagePass<D>;
  tile::clear(key_sum);
  tile::clear(value_sum);
  Turn<P::STAGES> turn;
  for (int n = 0; n < tiles; n++, turn.next()) {
    const u8 *q = shared + P::PAIRS_AT + turn.stage * P::STAGE_BYTES, *d_o = q + Tile<D>::BYTES;
    const Known &own = known[turn.stage];
    float s[8][4], dp[8][4], x[8][4];
    u32 p[4][4], ds[4][4];
    ptx::wait(&barriers.full[turn.stage], turn.parity);
    const bool all = rows.all_seen<PAIRS>(own);
    issue_transposed<D, Tile<D>::BLOCK_BYTES>(s, shared, q);
    issue_transposed<D, Tile<D>::BLOCK_BYTES>(dp, shared + Tile<D>::BYTES, d_o);
    ptx::wgmma_wait<1>();  // the scores are there
    rows.probabilities(x, s, own, all);
    pack(p, x);
    issue_sum<D>(value_sum, p, d_o);
    ptx::wgmma_wait<1>();  // dp is there
    rows.gradients(x, dp, own, all);
    pack(ds, x);
    issue_sum<D>(key_sum, ds, q);
    ptx::wgmma_wait<0>();
    __syncwarp();  // all lanes have read what is known of the pairs
    if (rows.thread % 32 == 0) ptx::arrive(&barriers.free[turn.stage]);
  }
}

template <int D, int PAIRS>
__device__ __forceinline__ void page_gradients(float *dk, float *dv, const Gradients &a, const u32 *pages, const u32 *runs_table, const u32 *starts,
                                               int tokens) {
  using P = PagePass<D>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(Known, known, P::STAGES);
  SORFT_SMEM(u64, page, 1);
  SORFT_SMEM(u64, full, P::STAGES);
  SORFT_SMEM(u64, free, P::STAGES);
  const TileBarriers barriers{full, free};
  const Runs runs{runs_table, starts[blockIdx.x], starts[blockIdx.x + 1], tokens};
  if (threadIdx.x == 0) {
    ptx::barrier_init(page, 1);
    SORFT_UNROLL
    for (int i = 0; i < P::STAGES; i++) {
      ptx::barrier_init(&full[i], TILE_ARRIVALS);
      ptx::barrier_init(&free[i], GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  clear_padding<P::STAGES * 2 * Tile<D>::BLOCKS * (ROWS / PAIRS), PAIRS, 2 * GROUP>(shared + P::PAIRS_AT, PAIRS / a.of_token() * a.of_token());
  __syncthreads();
  if (threadIdx.x >= GROUP) {
    ptx::give_registers<24>();  // 24 + 232 of a thread are the 2 * 128 that the block has
    load_runs<D, PAIRS>(shared, known, page, barriers, a, runs);
  } else {
    ptx::take_registers<232>();
    const int thread = (int)threadIdx.x;
    const KeyRows rows{thread, (int)pages[2 * blockIdx.x] + KeyRows::row_of(thread), a.scale};
    float key_sum[D / 8][4], value_sum[D / 8][4];
    ptx::wait(page, 0);
    sum_tiles<D, PAIRS>(key_sum, value_sum, shared, known, barriers, rows, runs.tiles(ROWS / PAIRS));
    const i64 at = (i64)a.row_of_page(blockIdx.x) * D;
    rows.store<D>(dk + at, key_sum);
    rows.store<D>(dv + at, value_sum);
  }
}

}  // namespace attention_bwd_hopper
#endif

// Boxes of the maps: of keys and values, which are [pages * H_kv * 64, D], 64 rows; of q and d_o, which are [T, H, D], the kv head's heads and as many tokens
// as fill PAIRS pairs.
//
// Grid: (pages, kv heads). Block: 256 threads. pages, runs and starts as in attention_bwd.cu. Dynamic shared memory: a page and two stages of two tiles of 64
// pairs, 48 KiB for D = 64, else 96.
#define ATTENTION_BWD_KV_HOPPER(D, PAIRS)                                                                                                         \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                                                            \
  attention_bwd_kv_hopper_d##D(float *__restrict__ dk, float *__restrict__ dv, const SORFT_GRID_CONSTANT TensorMap d_o,                           \
                               const SORFT_GRID_CONSTANT TensorMap q, const SORFT_GRID_CONSTANT TensorMap keys,                                   \
                               const SORFT_GRID_CONSTANT TensorMap values, const float *__restrict__ lse, const float *__restrict__ delta,        \
                               const u32 *__restrict__ positions, i32 tokens, const u32 *__restrict__ pages,                                      \
                               const u32 *__restrict__ runs, const u32 *__restrict__ starts, i32 heads, i32 kv_heads, float scale) {              \
    ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS);                                                                                                       \
  }                                                                                                                                               \
  SORFT_EXPORT(attention_bwd_kv_hopper_d##D)

#if defined(SORFT_HOPPER)
#define ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS) \
  attention_bwd_hopper::page_gradients<D, PAIRS>(dk, dv, ATTENTION_BWD_ARGUMENTS(blockIdx.y), pages, runs, starts, tokens)
#else
#define ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS)
#endif

ATTENTION_BWD_KV_HOPPER(64, 64)
ATTENTION_BWD_KV_HOPPER(96, 32)
ATTENTION_BWD_KV_HOPPER(128, 32)
