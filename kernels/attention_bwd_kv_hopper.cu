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

// A page is there; of a stage: its pairs are, they have been read.
struct PageBarriers {
  u64 *page, *full, *free;
};

using Known = attention::Pairs<ROWS>;

// A page's runs: entries first.. of the table up to last. Tiles of 64 pairs are one run of up to 64 pairs or two of up to 32.
struct Runs {
  const u32 *table;
  u32 first, last;
  int tokens;  // of the batch: a run that is not there begins behind them

  __device__ __forceinline__ int token(u32 i) const { return i < last ? (int)table[2 * i] : tokens; }
  __device__ __forceinline__ int rows(u32 i) const { return i < last ? (int)table[2 * i + 1] : 0; }
};

// The copying warpgroup: one thread has TMA bring the page and then pairs, stage after stage, two warps what is known of them.
template <int D, int PAIRS>
__device__ __forceinline__ void load_runs(u8 *shared, Known *known, const PageBarriers &b, const Gradients &a, const Runs &runs) {
  using P = PagePass<D>;
  constexpr int RUNS = ROWS / PAIRS;
  const int thread = threadIdx.x % GROUP, of_token = a.of_token();
  Turn<P::STAGES> turn;
  if (thread == 0) {
    const int row = ((int)blockIdx.x * a.kv_heads + (int)blockIdx.y) * ROWS;
    ptx::arrive_and_expect(b.page, 2 * Tile<D>::BYTES);
    load_tile<D>(shared, *a.keys, b.page, row);
    load_tile<D>(shared + Tile<D>::BYTES, *a.values, b.page, row);
    for (u32 i = runs.first; i < runs.last; i += RUNS, turn.next()) {
      u8 *to = shared + P::PAIRS_AT + turn.stage * P::STAGE_BYTES;
      u64 *full = &b.full[turn.stage];
      ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
      ptx::arrive_and_expect(full, 2 * Tile<D>::BLOCKS * RUNS * (PAIRS / of_token * of_token) * ROW_BYTES);
      SORFT_UNROLL
      for (int r = 0; r < RUNS; r++) {
        load_pairs<D>(to + r * PAIRS * ROW_BYTES, Tile<D>::BLOCK_BYTES, *a.q, full, a.first_head(), runs.token(i + r));
        load_pairs<D>(to + Tile<D>::BYTES + r * PAIRS * ROW_BYTES, Tile<D>::BLOCK_BYTES, *a.d_o, full, a.first_head(), runs.token(i + r));
      }
    }
  } else if (thread >= 32 && thread < 32 + ROWS) {
    const int pair = thread - 32, run = pair / PAIRS, own = pair % PAIRS;
    for (u32 i = runs.first + run; i < runs.last + run; i += RUNS, turn.next()) {
      ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
      const i64 token = runs.token(i) + own / of_token;
      known[turn.stage].take(pair, own < runs.rows(i) * of_token, a.lse, a.delta, a.positions, token,
                             token * a.heads + a.first_head() + own % of_token);
      __syncwarp();
      if (thread % 32 == 0) ptx::arrive(&b.full[turn.stage]);
    }
  }
}

// The warpgroup at work: 64 keys, of which a lane has rows lane / 4 and + 8 of its warp's 16.
template <int D, int PAIRS>
struct PageWorker {
  using P = PagePass<D>;
  const PageBarriers &barriers;
  u8 *shared;
  const Known *known;
  int thread;    // its first warp is the block's
  int position;  // of the lane's first key
  float scale;

  // Probabilities from raw scores. (Copies here and below: registers of a product are left alone while another one is under way.)
  __device__ __forceinline__ void take_scores(float (&p)[8][4], const float (&s)[8][4], const Known &own) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int pair = j * 8 + thread % 4 * 2;
      const float2 lse = load_vec<float2>(&own.lse[pair]);
      const int2 seer = load_vec<int2>(&own.position[pair]);
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        const bool seen = position + e / 2 * 8 <= (e % 2 ? seer.y : seer.x);
        p[j][e] = seen ? attention::probability(s[j][e], scale * LOG2_E, e % 2 ? lse.y : lse.x) : 0.0f;
      }
    }
  }

  // Gradients of raw scores, in the place of probabilities.
  __device__ __forceinline__ void take_products(float (&p)[8][4], const float (&dp)[8][4], const Known &own) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int pair = j * 8 + thread % 4 * 2;
      const float2 delta = load_vec<float2>(&own.delta[pair]);
      const int2 seer = load_vec<int2>(&own.position[pair]);
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        const bool seen = position + e / 2 * 8 <= (e % 2 ? seer.y : seer.x);
        p[j][e] = seen ? attention::score_gradient(p[j][e], dp[j][e], e % 2 ? delta.y : delta.x, scale) : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void run(float (&key_sum)[D / 8][4], float (&value_sum)[D / 8][4], const Runs &runs) {
    tile::clear(key_sum);
    tile::clear(value_sum);
    Turn<P::STAGES> turn;
    ptx::wait(barriers.page, 0);
    for (u32 i = runs.first; i < runs.last; i += ROWS / PAIRS, turn.next()) {
      const u8 *q = shared + P::PAIRS_AT + turn.stage * P::STAGE_BYTES, *d_o = q + Tile<D>::BYTES;
      const Known &own = known[turn.stage];
      float s[8][4], dp[8][4], x[8][4];
      u32 p[4][4], ds[4][4];
      ptx::wait(&barriers.full[turn.stage], turn.parity);
      issue_transposed<D, Tile<D>::BLOCK_BYTES>(s, shared, q);
      issue_transposed<D, Tile<D>::BLOCK_BYTES>(dp, shared + Tile<D>::BYTES, d_o);
      ptx::wgmma_wait<1>();  // the scores are there
      take_scores(x, s, own);
      pack(p, x);
      issue_sum<D>(value_sum, p, d_o);
      ptx::wgmma_wait<1>();  // dp is there
      take_products(x, dp, own);
      pack(ds, x);
      issue_sum<D>(key_sum, ds, q);
      ptx::wgmma_wait<0>();
      __syncwarp();  // all lanes have read what is known of the pairs
      if (thread % 32 == 0) ptx::arrive(&barriers.free[turn.stage]);
    }
  }

  __device__ __forceinline__ void store(float *to, const float (&sum)[D / 8][4]) const {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      SORFT_UNROLL
      for (int j = 0; j < D / 8; j++) store_vec(to + (8 * r) * D + 8 * j, float2{sum[j][2 * r], sum[j][2 * r + 1]});
    }
  }
};

template <int D, int PAIRS>
__device__ __forceinline__ void page_gradients(float *dk, float *dv, const Gradients &a, const u32 *pages, const u32 *runs_table, const u32 *starts,
                                               int tokens) {
  using P = PagePass<D>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(Known, known, P::STAGES);
  SORFT_SMEM(u64, full_page, 1);
  SORFT_SMEM(u64, full, P::STAGES);
  SORFT_SMEM(u64, free, P::STAGES);
  const PageBarriers barriers{full_page, full, free};
  const Runs runs{runs_table, starts[blockIdx.x], starts[blockIdx.x + 1], tokens};
  if (threadIdx.x == 0) {
    ptx::barrier_init(full_page, 1);
    SORFT_UNROLL
    for (int i = 0; i < P::STAGES; i++) {
      ptx::barrier_init(&full[i], 3);            // TMA's thread, and a lane of each warp that knows pairs
      ptx::barrier_init(&free[i], GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  clear_padding<P::STAGES * 2 * Tile<D>::BLOCKS * (ROWS / PAIRS), PAIRS, 2 * GROUP>(shared + P::PAIRS_AT, PAIRS / a.of_token() * a.of_token());
  __syncthreads();
  if (threadIdx.x >= GROUP) {
    ptx::give_registers<24>();  // 24 + 232 of a thread are the 2 * 128 that the block has
    load_runs<D, PAIRS>(shared, known, barriers, a, runs);
  } else {
    ptx::take_registers<232>();
    const int thread = (int)threadIdx.x, row = thread / 32 * 16 + thread % 32 / 4;
    PageWorker<D, PAIRS> worker{barriers, shared, known, thread, (int)pages[2 * blockIdx.x] + row, a.scale};
    float key_sum[D / 8][4], value_sum[D / 8][4];
    worker.run(key_sum, value_sum, runs);
    const i64 at = (((i64)blockIdx.x * a.kv_heads + blockIdx.y) * ROWS + row) * D + thread % 4 * 2;
    worker.store(dk + at, key_sum);
    worker.store(dv + at, value_sum);
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
  attention_bwd_hopper::page_gradients<D, PAIRS>(dk, dv, ATTENTION_BWD_ARGUMENTS, pages, runs, starts, tokens)
#else
#define ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS)
#endif

ATTENTION_BWD_KV_HOPPER(64, 64)
ATTENTION_BWD_KV_HOPPER(96, 32)
ATTENTION_BWD_KV_HOPPER(128, 32)
