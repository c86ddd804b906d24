// attention_bwd_q_hopper.cu - attention_bwd.cu's pass for dq on sm_90a: pages and pairs by TMA, products by warpgroups.
//
// An item has up to 128 pairs here. Two warpgroups multiply, 64 pairs each, and share the pages that a third one copies, three stages of them. The scores of
// page t + 1 and its dp are put on the tensor cores before page t's share of dq, and exponentials are formed meanwhile.
//
// Slots of a page beyond an item's keys may hold anything: their scores are masked, and their keys set to zero in shared memory first.
//
// Bytes: a block reads 4 D for each key of its item (for 128 pairs), nearly all of it out of L2. Operations: 3 of the 7 products of attention_bwd.cu, 2 T H D
// for each key seen; the floor of both passes is 304 us at 790 TFLOP/s for one causal sequence of 4096 with 32 heads of 64. Not measured on a chip yet.
#include "sorft.cuh"
#include "hopper.cuh"
#include "attention.cuh"
#include "attention_bwd.cuh"
#include "attention_hopper.cuh"
#include "attention_bwd_hopper.cuh"

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

using attention::Item;

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
    const int row = a.row_of_page(pages[t]);
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
    if (filled < ROWS) clear_behind<D>(keys, filled, 1, thread + group * GROUP, groups * GROUP);
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
    ptx::give_registers<24>();  // 24 + 2 * 240 of a thread are the 3 * 168 that the block has
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

}  // namespace attention_bwd_hopper
#endif

// Boxes of the maps: of keys and values, which are [pages * H_kv * 64, D], 64 rows; of q and d_o, which are [T, H, D], the kv head's heads and as many tokens
// as fill 128 pairs.
//
// Grid: (items, kv heads). Block: 384 threads. Dynamic shared memory: two tiles of 128 pairs and three stages of a page, 80 KiB for D = 64, else 160.
#define ATTENTION_BWD_Q_HOPPER(D)                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                                                            \
  attention_bwd_q_hopper_d##D(bf16 *__restrict__ dq, const SORFT_GRID_CONSTANT TensorMap d_o, const SORFT_GRID_CONSTANT TensorMap q,              \
                              const SORFT_GRID_CONSTANT TensorMap keys, const SORFT_GRID_CONSTANT TensorMap values,                               \
                              const float *__restrict__ lse, const float *__restrict__ delta, const u32 *__restrict__ positions,                  \
                              const u32 *__restrict__ items, const u32 *__restrict__ rows, const u32 *__restrict__ pages, i32 heads,              \
                              i32 kv_heads, float scale) {                                                                                        \
    ATTENTION_BWD_Q_HOPPER_BODY(D);                                                                                                               \
  }                                                                                                                                               \
  SORFT_EXPORT(attention_bwd_q_hopper_d##D)

#if defined(SORFT_HOPPER)
#define ATTENTION_BWD_Q_HOPPER_BODY(D) attention_bwd_hopper::query_gradients<D>(dq, ATTENTION_BWD_ARGUMENTS(blockIdx.y), items, rows, pages)
#else
#define ATTENTION_BWD_Q_HOPPER_BODY(D)
#endif

ATTENTION_BWD_Q_HOPPER(64)
ATTENTION_BWD_Q_HOPPER(96)
ATTENTION_BWD_Q_HOPPER(128)
