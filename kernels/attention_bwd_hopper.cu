// attention_bwd_hopper.cu - attention_bwd.cu's two passes on sm_90a: pages and pairs by TMA, products by warpgroups.
//
// Equations, shapes, runs and the order of sums are attention_bwd.cu's, and so are the bits where a chip's wgmma has those of its mma.sync: a product's sums
// are one chain over its terms, 16 at a time, whichever instruction forms them; what comes between is attention_bwd.cuh's.
//
// dq: an item has up to 128 pairs here. Two warpgroups multiply, 64 pairs each, and share the pages that a third one copies, three stages of them. The
// scores of page t + 1 and its dp are put on the tensor cores before page t's share of dq, and exponentials are formed meanwhile.
//
// dk and dv: a block has a page's 64 keys for one warpgroup that multiplies, so that p and ds are left operands out of registers, and 64 pairs a stage,
// in two stages; another warpgroup copies them. Two such blocks share a multiprocessor: one multiplies while the other forms exponentials.
//
// A token's pairs, which are the query heads of one kv head, lie side by side, so a box of tokens, those heads and 64 columns is a tile of pairs. Its rows
// are as many as whole tokens fill; the rest of a stage is set to zero once. A box may bring pairs of tokens behind the run, and zeros behind the last
// token: they see no key, so they add exactly 0. Slots of a page beyond an item's keys may hold anything: their scores are masked, and their keys set
// to zero in shared memory first.
//
// Bytes: a block of the first pass reads 4 D for each key of its item (for 128 pairs), one of the second 4 D for each pair of its runs (for 64 keys), nearly
// all of it out of L2.
// Operations and floor are attention_bwd.cu's: 7 products of 2 T H D for each key seen, 304 us at 790 TFLOP/s for one causal sequence of 4096 with
// 32 heads of 64. Not measured on a chip yet.
#include "sorft.cuh"
#include "hopper.cuh"
#include "attention.cuh"
#include "attention_bwd.cuh"

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

using attention::Item;
using attention::LOG2_E;
using attention::ROWS;
constexpr int GROUP = 128, MAX_GROUPS = 2, ROW_BYTES = 128;

struct Gradients {
  const TensorMap *d_o, *q, *keys, *values;
  const float *lse, *delta;
  const u32 *positions;
  int heads, kv_heads;
  float scale;

  __device__ __forceinline__ int of_token() const { return heads / kv_heads; }
  __device__ __forceinline__ int first_head() const { return blockIdx.y * of_token(); }
};

// Numbers of a head's width come in blocks of 64 columns, the last filled with zeros; of a tile of 64 rows:
template <int D>
struct Tile {
  static constexpr int BLOCKS = (D + 63) / 64, BLOCK_BYTES = ROWS * ROW_BYTES, BYTES = BLOCKS * BLOCK_BYTES;
};

// A run of stages, one after another.
template <int STAGES>
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Copies a page's keys or values.
template <int D>
__device__ __forceinline__ void load_tile(u8 *to, const TensorMap &map, u64 *barrier, int row) {
  SORFT_UNROLL
  for (int i = 0; i < Tile<D>::BLOCKS; i++) ptx::load_box(to + i * Tile<D>::BLOCK_BYTES, map, barrier, 64 * i, row);
}

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

// Issues s = a b' of [64, D] and [64, D]. A_BLOCK: bytes from a block of columns of a to the next.
template <int D, int A_BLOCK>
__device__ __forceinline__ void issue_transposed(float (&s)[8][4], const u8 *a, const u8 *b) {
  ptx::wgmma_fence();
  SORFT_UNROLL
  for (int k = 0; k < D / 16; k++) {
    const u64 left = ptx::describe(a + k / 4 * A_BLOCK + k % 4 * 32, 0, 1024);
    ptx::wgmma<false, false>(s, left, ptx::describe(b + k / 4 * Tile<D>::BLOCK_BYTES + k % 4 * 32, 0, 1024), k > 0);
  }
  ptx::wgmma_commit();
}

// Issues sum += x b of [64, 64] in registers and [64, D].
template <int D>
__device__ __forceinline__ void issue_sum(float (&sum)[D / 8][4], const u32 (&x)[4][4], const u8 *b) {
  ptx::wgmma_fence();
  SORFT_UNROLL
  for (int k = 0; k < 4; k++) ptx::wgmma<true>(sum, x[k], ptx::describe(b + k * 2048, Tile<D>::BLOCK_BYTES, 1024));
  ptx::wgmma_commit();
}

// Numbers as left operands: an accumulator's layout is that of one.
__device__ __forceinline__ void pack(u32 (&packed)[4][4], const float (&x)[8][4]) {
  SORFT_UNROLL
  for (int k = 0; k < 4; k++) {
    SORFT_UNROLL
    for (int i = 0; i < 4; i++) packed[k][i] = ptx::cvt_bf16x2(x[2 * k + i / 2][i % 2 * 2], x[2 * k + i / 2][i % 2 * 2 + 1]);
  }
}

// ------------------------------------------------------------------------------------------------------------------------------ dq

template <int D>
struct QueryPass {
  static constexpr int STAGES = 3, PAIRS = MAX_GROUPS * ROWS, BLOCK_BYTES = PAIRS * ROW_BYTES;
  static constexpr int D_OUTS = Tile<D>::BLOCKS * BLOCK_BYTES, PAGES = 2 * D_OUTS;  // where they begin, in bytes; queries at 0

  static __device__ __forceinline__ u8 *page_at(u8 *shared, int stage) { return shared + PAGES + stage * 2 * Tile<D>::BYTES; }
};

// Queries and gradients of outputs are there; of a stage: its keys are, its values are, both have been read.
struct QueryBarriers {
  u64 *pairs, *keys, *values, *free;
};

// The copying thread: the item's pairs, then its pages, one after another.
template <int D>
__device__ __forceinline__ void load_item(u8 *shared, const QueryBarriers &b, const Gradients &a, const Item &item, int token, const u32 *pages) {
  using P = QueryPass<D>;
  ptx::arrive_and_expect(b.pairs, 2 * Tile<D>::BLOCKS * (P::PAIRS / a.of_token() * a.of_token()) * ROW_BYTES);
  load_pairs<D>(shared, P::BLOCK_BYTES, *a.q, b.pairs, a.first_head(), token);
  load_pairs<D>(shared + P::D_OUTS, P::BLOCK_BYTES, *a.d_o, b.pairs, a.first_head(), token);
  Turn<P::STAGES> turn;
  for (int t = 0; t <= (item.end - 1) / ROWS; t++, turn.next()) {
    const int row = ((int)pages[t] * a.kv_heads + (int)blockIdx.y) * ROWS;
    u8 *to = P::page_at(shared, turn.stage);
    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
    ptx::arrive_and_expect(&b.keys[turn.stage], Tile<D>::BYTES);
    load_tile<D>(to, *a.keys, &b.keys[turn.stage], row);
    ptx::arrive_and_expect(&b.values[turn.stage], Tile<D>::BYTES);
    load_tile<D>(to + Tile<D>::BYTES, *a.values, &b.values[turn.stage], row);
  }
}

// One warpgroup at work: 64 pairs of an item, of which a lane has rows lane / 4 and + 8 of its warp's 16.
template <int D>
struct QueryWorker {
  using P = QueryPass<D>;
  const Gradients &a;
  const QueryBarriers &barriers;
  const Item &item;
  u8 *shared;
  int group, groups;  // which it is, and how many there are
  int thread, token;  // of the item, its first
  int position[2];
  float lse[2], delta[2];
  Turn<P::STAGES> turn;

  __device__ __forceinline__ int pair_of(int r) const { return group * ROWS + thread / 32 * 16 + thread % 32 / 4 + 8 * r; }
  __device__ __forceinline__ i64 row_of(int pair) const {
    return (i64)(token + pair / a.of_token()) * a.heads + a.first_head() + pair % a.of_token();
  }

  __device__ __forceinline__ void know_pairs() {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int pair = pair_of(r);
      const bool valid = pair < item.rows * a.of_token();
      position[r] = valid ? (int)a.positions[token + pair / a.of_token()] : -1;
      lse[r] = valid ? a.lse[row_of(pair)] * LOG2_E : 0.0f;
      delta[r] = valid ? a.delta[row_of(pair)] : 0.0f;
    }
  }

  // Issues the raw scores of page t, and dp.
  __device__ __forceinline__ void issue_products(float (&s)[8][4], float (&dp)[8][4], const Turn<P::STAGES> &at, int t) {
    u8 *keys = P::page_at(shared, at.stage);
    ptx::wait(&barriers.keys[at.stage], at.parity);
    const int filled = item.end - t * ROWS;
    if (filled < ROWS) {
      for (int i = filled * 8 + thread + group * GROUP; i < ROWS * 8; i += groups * GROUP) {
        SORFT_UNROLL
        for (int b = 0; b < Tile<D>::BLOCKS; b++) store_vec(keys + b * Tile<D>::BLOCK_BYTES + 16 * i, uint4{0, 0, 0, 0});
      }
      ptx::fence_async_proxy();
      ptx::named_barrier(1, groups * GROUP);
    }
    const u8 *pairs = shared + group * ROWS * ROW_BYTES;
    issue_transposed<D, P::BLOCK_BYTES>(s, pairs, keys);
    ptx::wait(&barriers.values[at.stage], at.parity);
    issue_transposed<D, P::BLOCK_BYTES>(dp, pairs + P::D_OUTS, keys + Tile<D>::BYTES);
  }

  // Probabilities from raw scores. (A copy: registers of a product are left alone while another one is under way.)
  __device__ __forceinline__ void take_scores(float (&p)[8][4], const float (&s)[8][4]) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) p[j][e] = attention::probability(s[j][e], a.scale * LOG2_E, lse[e / 2]);
    }
  }

  // Gradients of raw scores of page t, in the place of probabilities.
  __device__ __forceinline__ void take_products(float (&p)[8][4], const float (&dp)[8][4], int t) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        const bool seen = t * ROWS + j * 8 + thread % 4 * 2 + e % 2 <= position[e / 2];
        p[j][e] = seen ? attention::score_gradient(p[j][e], dp[j][e], delta[e / 2], a.scale) : 0.0f;
      }
    }
  }

  // Frees the page in turn, and goes on to the next.
  __device__ __forceinline__ void leave_page() {
    if (thread % 32 == 0) ptx::arrive(&barriers.free[turn.stage]);
    turn.next();
  }

  __device__ __forceinline__ void run(float (&sum)[D / 8][4]) {
    float s[8][4], dp[8][4], p[8][4];
    u32 ds[4][4];
    Turn<P::STAGES> ahead = turn;
    const int last = (item.end - 1) / ROWS;
    know_pairs();
    tile::clear(sum);
    ptx::wait(barriers.pairs, 0);
    issue_products(s, dp, ahead, 0);
    ptx::wgmma_wait<0>();
    take_scores(p, s);
    take_products(p, dp, 0);
    pack(ds, p);
    for (int t = 0; t < last; t++) {
      ahead.next();
      issue_products(s, dp, ahead, t + 1);
      issue_sum<D>(sum, ds, P::page_at(shared, turn.stage));
      ptx::wgmma_wait<2>();  // the scores are there; dp and dq are still being formed
      take_scores(p, s);
      ptx::wgmma_wait<1>();  // so is dp
      take_products(p, dp, t + 1);
      ptx::wgmma_wait<0>();
      leave_page();
      pack(ds, p);
    }
    issue_sum<D>(sum, ds, P::page_at(shared, turn.stage));
    ptx::wgmma_wait<0>();
  }

  __device__ __forceinline__ void store(bf16 *dq, const float (&sum)[D / 8][4]) const {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int pair = pair_of(r);
      if (pair >= item.rows * a.of_token()) continue;
      bf16 *to = dq + row_of(pair) * D + thread % 4 * 2;
      SORFT_UNROLL
      for (int j = 0; j < D / 8; j++) store_vec(to + 8 * j, to_bf16x2(sum[j][2 * r], sum[j][2 * r + 1]));
    }
  }
};

template <int D>
__device__ __forceinline__ void query_gradients(bf16 *dq, const Gradients &a, const u32 *items, const u32 *rows, const u32 *pages) {
  using P = QueryPass<D>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full_pairs, 1);
  SORFT_SMEM(u64, full_keys, P::STAGES);
  SORFT_SMEM(u64, full_values, P::STAGES);
  SORFT_SMEM(u64, free, P::STAGES);
  const Item item(items);
  const QueryBarriers barriers{full_pairs, full_keys, full_values, free};
  const int token = (int)rows[item.first_row];  // an item's tokens lie one after another
  const int groups = item.rows * a.of_token() > ROWS ? 2 : 1, group = threadIdx.x / GROUP;
  if (threadIdx.x == 0) {
    ptx::barrier_init(full_pairs, 1);
    SORFT_UNROLL
    for (int i = 0; i < P::STAGES; i++) {
      ptx::barrier_init(&full_keys[i], 1);
      ptx::barrier_init(&full_values[i], 1);
      ptx::barrier_init(&free[i], groups * GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  clear_padding<2 * Tile<D>::BLOCKS, P::PAIRS, 3 * GROUP>(shared, P::PAIRS / a.of_token() * a.of_token());
  __syncthreads();
  if (group == MAX_GROUPS) {
    ptx::give_registers<32>();
    if (threadIdx.x == MAX_GROUPS * GROUP) load_item<D>(shared, barriers, a, item, token, pages + item.first_page);
  } else {
    ptx::take_registers<240>();
    if (group >= groups) return;
    QueryWorker<D> worker{a, barriers, item, shared, group, groups, (int)threadIdx.x % GROUP, token, {}, {}, {}, {}};
    float sum[D / 8][4];
    worker.run(sum);
    worker.store(dq, sum);
  }
}

// ------------------------------------------------------------------------------------------------------------------------------ dk, dv

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
    ptx::give_registers<24>();
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
// as fill 128 pairs for dq, PAIRS for dk and dv.
//
// dq. Grid: (items, kv heads). Block: 384 threads. Dynamic shared memory: two tiles of 128 pairs and three stages of a page, 80 KiB for D = 64, else 160.
// dk, dv. Grid: (pages, kv heads). Block: 256 threads. pages, runs and starts as in attention_bwd.cu. Dynamic shared memory: a page and two stages of two
// tiles of 64 pairs, 48 KiB for D = 64, else 96.
#define ATTENTION_BACKWARD_HOPPER(D, PAIRS)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                                                            \
  attention_bwd_q_hopper_d##D(bf16 *__restrict__ dq, const SORFT_GRID_CONSTANT TensorMap d_o, const SORFT_GRID_CONSTANT TensorMap q,              \
                              const SORFT_GRID_CONSTANT TensorMap keys, const SORFT_GRID_CONSTANT TensorMap values,                               \
                              const float *__restrict__ lse, const float *__restrict__ delta, const u32 *__restrict__ positions,                  \
                              const u32 *__restrict__ items, const u32 *__restrict__ rows, const u32 *__restrict__ pages, i32 heads,              \
                              i32 kv_heads, float scale) {                                                                                        \
    ATTENTION_BWD_Q_HOPPER_BODY(D);                                                                                                               \
  }                                                                                                                                               \
  SORFT_EXPORT(attention_bwd_q_hopper_d##D)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                                                            \
  attention_bwd_kv_hopper_d##D(float *__restrict__ dk, float *__restrict__ dv, const SORFT_GRID_CONSTANT TensorMap d_o,                           \
                               const SORFT_GRID_CONSTANT TensorMap q, const SORFT_GRID_CONSTANT TensorMap keys,                                   \
                               const SORFT_GRID_CONSTANT TensorMap values, const float *__restrict__ lse, const float *__restrict__ delta,        \
                               const u32 *__restrict__ positions, i32 tokens, const u32 *__restrict__ pages,                                      \
                               const u32 *__restrict__ runs, const u32 *__restrict__ starts, i32 heads, i32 kv_heads, float scale) {                 \
    ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS);                                                                                                       \
  }                                                                                                                                               \
  SORFT_EXPORT(attention_bwd_kv_hopper_d##D)

#if defined(SORFT_HOPPER)
#define ATTENTION_BWD_ARGUMENTS \
  { &d_o, &q, &keys, &values, lse, delta, positions, heads, kv_heads, scale }
#define ATTENTION_BWD_Q_HOPPER_BODY(D) attention_bwd_hopper::query_gradients<D>(dq, ATTENTION_BWD_ARGUMENTS, items, rows, pages)
#define ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS) \
  attention_bwd_hopper::page_gradients<D, PAIRS>(dk, dv, ATTENTION_BWD_ARGUMENTS, pages, runs, starts, tokens)
#else
#define ATTENTION_BWD_Q_HOPPER_BODY(D)
#define ATTENTION_BWD_KV_HOPPER_BODY(D, PAIRS)
#endif

ATTENTION_BACKWARD_HOPPER(64, 64)
ATTENTION_BACKWARD_HOPPER(96, 32)
ATTENTION_BACKWARD_HOPPER(128, 32)
