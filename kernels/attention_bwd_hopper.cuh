// attention_bwd_hopper.cuh - what attention's backward kernels for sm_90a share: their arguments, pairs by TMA, and what a warpgroup does with 64 keys.
//
// A token's pairs, which are the query heads of one kv head, lie side by side, so a box of tokens, those heads and 64 columns is a tile of pairs. Its rows
// are as many as whole tokens fill; the rest of a stage is set to zero once. A box may bring pairs of tokens behind the run, and zeros behind the last
// token: they see no key, so they add exactly 0 as long as they are finite (see below).
//
// Equations, shapes, runs and the order of sums are attention_bwd.cu's, and so are the bits where a chip's wgmma has those of its mma.sync: a product's sums
// are one chain over its terms, 16 at a time, whichever instruction forms them; what comes between is attention_bwd.cuh's.
//
// Not finite: attention_bwd.cu loads zeros in the place of pairs behind a run. Here a box brings them as they are, and for dk and dv they are multiplied by
// 0, so that a NaN in the rows of another tree in the same box spreads to this one. Such a step is skipped as a whole, whichever tree it came from.
#pragma once

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

using namespace attention_hopper;
using attention::LOG2_E;

struct Gradients {
  const TensorMap *d_o, *q, *keys, *values;
  const float *lse, *delta;
  const u32 *positions;
  int heads, kv_heads;
  float scale;
  int kv_head;  // the block's

  __device__ __forceinline__ int of_token() const { return heads / kv_heads; }
  __device__ __forceinline__ int first_head() const { return kv_head * of_token(); }
  // The page's first row in the keys and values.
  __device__ __forceinline__ int row_of_page(u32 page) const { return ((int)page * kv_heads + kv_head) * ROWS; }
};

// Copies pairs from a token on: blocks of columns lie `block` bytes apart.
template <int D>
__device__ __forceinline__ void load_pairs(u8 *to, int block, const TensorMap &map, u64 *barrier, int head, int token) {
  SORFT_UNROLL
  for (int i = 0; i < Tile<D>::BLOCKS; i++) ptx::load_box(to + i * block, map, barrier, 64 * i, head, token);
}

// Sets to zero, of each of AREAS runs of SIZE rows, those that no box fills. By THREADS threads; a __syncthreads before use.
template <int AREAS, int SIZE, int THREADS>
__device__ __forceinline__ void clear_padding(u8 *areas, int filled) {
  const int chunks = (SIZE - filled) * (ROW_BYTES / 16);
  for (int i = threadIdx.x; i < AREAS * chunks; i += THREADS)
    store_vec(areas + (i / chunks * SIZE + filled) * ROW_BYTES + i % chunks * 16, uint4{0, 0, 0, 0});
  ptx::fence_async_proxy();
}

// ------------------------------------------------------------------------------------------------ tiles of pairs, and what 64 keys make of them

using Known = attention::Pairs<ROWS>;

// Tokens of a batch one after another, whose pairs are a run of a tile. One that is not there begins behind the batch, where TMA brings zeros.
struct Run {
  int token, rows;
};

// Of each stage of tiles: a tile's pairs are there; they have been read.
struct TileBarriers {
  u64 *full, *free;
};
constexpr int TILE_ARRIVALS = 3;  // at `full`: TMA's thread, and a lane of each of the two warps that know pairs

// Of the copying warpgroup the thread that has TMA bring `tiles` tiles of pairs, stage after stage: a tile is RUNS runs of PAIRS, which run(tile, r) tells.
template <int D, int PAIRS, int STAGES, class RunOf>
__device__ __forceinline__ void load_tiles(u8 *stages, const TileBarriers &b, const Gradients &a, int tiles, const RunOf &run) {
  constexpr int RUNS = ROWS / PAIRS;
  const int of_token = a.of_token();
  Turn<STAGES> turn;
  for (int n = 0; n < tiles; n++, turn.next()) {
    u8 *to = stages + turn.stage * 2 * Tile<D>::BYTES;
    u64 *full = &b.full[turn.stage];
    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
    ptx::arrive_and_expect(full, 2 * Tile<D>::BLOCKS * RUNS * (PAIRS / of_token * of_token) * ROW_BYTES);
    SORFT_UNROLL
    for (int r = 0; r < RUNS; r++) {
      const int token = run(n, r).token;
      load_pairs<D>(to + r * PAIRS * ROW_BYTES, Tile<D>::BLOCK_BYTES, *a.q, full, a.first_head(), token);
      load_pairs<D>(to + Tile<D>::BYTES + r * PAIRS * ROW_BYTES, Tile<D>::BLOCK_BYTES, *a.d_o, full, a.first_head(), token);
    }
  }
}

// Of the copying warpgroup the two warps that note what is known of the same tiles' pairs.
template <int PAIRS, int STAGES, class RunOf>
__device__ __forceinline__ void know_tiles(Known *known, const TileBarriers &b, const Gradients &a, int pair, int tiles, const RunOf &run) {
  // Of the pair, from its run's first token on: which token it belongs to, and its place among all pairs.
  const int token = pair % PAIRS / a.of_token(), place = token * a.heads + a.first_head() + pair % PAIRS % a.of_token();
  Turn<STAGES> turn;
  for (int n = 0; n < tiles; n++, turn.next()) {
    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
    const Run at = run(n, pair / PAIRS);
    known[turn.stage].take(pair, token < at.rows, a.lse, a.delta, a.positions, at.token + token, (i64)at.token * a.heads + place);
    __syncwarp();
    if (pair % 32 == 0) ptx::arrive(&b.full[turn.stage]);
  }
}

// A warpgroup's 64 keys, of which a lane has rows lane / 4 and + 8 of its warp's 16.
struct KeyRows {
  int thread;    // of the warpgroup
  int position;  // of the lane's first key
  float scale;

  static __device__ __forceinline__ int row_of(int thread) { return thread / 32 * 16 + thread % 32 / 4; }

  // Whether every pair of a tile sees all 64 keys: those of each run's first token do. (Where there is no pair, nothing is seen by way of an infinite lse.)
  template <int PAIRS>
  __device__ __forceinline__ bool all_seen(const Known &own) const {
    const int least = PAIRS < ROWS ? min(own.position[0], own.position[PAIRS % ROWS]) : own.position[0];
    return position - row_of(thread) + ROWS <= least + 1;
  }

  // Probabilities from raw scores. (Copies here and below: registers of a product are left alone while another one is under way.)
  template <bool MASKED>
  __device__ __forceinline__ void take_scores(float (&p)[8][4], const float (&s)[8][4], const Known &own) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int pair = j * 8 + thread % 4 * 2;
      const float2 lse = load_vec<float2>(&own.lse[pair]);
      const int2 seer = load_vec<int2>(&own.position[pair]);
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        p[j][e] = attention::probability(s[j][e], scale * LOG2_E, e % 2 ? lse.y : lse.x);
        if (MASKED && position + e / 2 * 8 > (e % 2 ? seer.y : seer.x)) p[j][e] = 0.0f;
      }
    }
  }

  // Gradients of raw scores, in the place of probabilities.
  template <bool MASKED>
  __device__ __forceinline__ void take_products(float (&p)[8][4], const float (&dp)[8][4], const Known &own) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int pair = j * 8 + thread % 4 * 2;
      const float2 delta = load_vec<float2>(&own.delta[pair]);
      const int2 seer = load_vec<int2>(&own.position[pair]);
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        p[j][e] = attention::score_gradient(p[j][e], dp[j][e], e % 2 ? delta.y : delta.x, scale);
        if (MASKED && position + e / 2 * 8 > (e % 2 ? seer.y : seer.x)) p[j][e] = 0.0f;
      }
    }
  }

  // The same, by the shorter way where every pair sees every key: on Hopper comparing costs as much as the exponential.
  __device__ __forceinline__ void probabilities(float (&p)[8][4], const float (&s)[8][4], const Known &own, bool all) const {
    if (all) take_scores<false>(p, s, own);
    else take_scores<true>(p, s, own);
  }
  __device__ __forceinline__ void gradients(float (&p)[8][4], const float (&dp)[8][4], const Known &own, bool all) const {
    if (all) take_products<false>(p, dp, own);
    else take_products<true>(p, dp, own);
  }

  // Writes the keys' sums to their page: `to` is its first number.
  template <int D>
  __device__ __forceinline__ void store(float *to, const float (&sum)[D / 8][4]) const {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      float *row = to + (row_of(thread) + 8 * r) * D + thread % 4 * 2;
      SORFT_UNROLL
      for (int j = 0; j < D / 8; j++) store_vec(row + 8 * j, float2{sum[j][2 * r], sum[j][2 * r + 1]});
    }
  }
};

}  // namespace attention_bwd_hopper
#endif

#if defined(SORFT_HOPPER)
// Of a block that works for one kv head.
#define ATTENTION_BWD_ARGUMENTS(kv_head) \
  { &d_o, &q, &keys, &values, lse, delta, positions, heads, kv_heads, scale, (int)(kv_head) }
#endif
