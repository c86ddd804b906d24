// attention_hopper.cu - attention.cu's forward pass over whole histories on sm_90a: pages by TMA, products by warpgroups.
//
// Equations, shapes, items and the order of sums are attention.cu's, and so are the bits where a chip's wgmma has those of its mma.sync. An item has up to
// 128 pairs here: two warpgroups multiply, 64 pairs each, and share the pages that a third one copies. Keys and values of a page have barriers of
// their own, so that scores do not wait for values.
//
// A warpgroup puts the next tile's scores and this tile's values on the tensor cores together, and forms exponentials meanwhile: those of tile t + 1
// while the outputs of tile t are multiplied.
//
// Slots of a page that nobody has written may hold anything: their scores are masked, and their values are set to zero in shared memory first.
//
// Operations: 2 T H D for each key seen and product. Floor in bf16 at 790 TFLOP/s for one causal sequence of 4096 with 32 heads of 64: 87 us. Not
// measured on a chip yet.
#include "sorft.cuh"
#include "hopper.cuh"
#include "attention.cuh"
#include "softmax.cuh"
#include "attention_hopper.cuh"

#if defined(SORFT_HOPPER)
namespace attention_hopper {

using attention::Item;

template <int D>
struct Layout {
  static constexpr int STAGES = D == 64 ? 4 : 2;
  static constexpr int QUERIES = 0, PAGES = MAX_GROUPS * Tile<D>::BYTES;  // where they begin, in bytes
  static constexpr int BEFORE = PAGES + STAGES * 2 * Tile<D>::BYTES, BEFORE_BYTES = 4 * ROWS * D;
};

struct Arguments {
  const bf16 *q;
  const TensorMap *keys, *values;
  const u32 *positions, *items, *rows, *pages;
  int heads, kv_heads;
  float scale_log2;
};

// Barriers of the stages: a page's keys are there, its values are there, both have been read.
struct Barriers {
  u64 *keys, *values, *free;
};

template <int D>
__device__ __forceinline__ u8 *page_at(u8 *shared, int stage) { return shared + Layout<D>::PAGES + stage * 2 * Tile<D>::BYTES; }

// The copying thread: the item's pages, one after another.
template <int D>
__device__ __forceinline__ void load_pages(u8 *shared, const Barriers &b, const Arguments &a, const Item &item) {
  using L = Layout<D>;
  Turn<L::STAGES> turn;  // tile t of the item lies in stage (t - first) % STAGES
  for (int t = item.begin / ROWS; t <= (item.end - 1) / ROWS; t++, turn.next()) {
    const int row = ((int)a.pages[item.first_page + t] * a.kv_heads + (int)blockIdx.y) * ROWS;
    u8 *to = page_at<D>(shared, turn.stage);
    ptx::wait(&b.free[turn.stage], turn.parity ^ 1);
    ptx::arrive_and_expect(&b.keys[turn.stage], Tile<D>::BYTES);
    load_tile<D>(to, *a.keys, &b.keys[turn.stage], row);
    ptx::arrive_and_expect(&b.values[turn.stage], Tile<D>::BYTES);
    load_tile<D>(to + Tile<D>::BYTES, *a.values, &b.values[turn.stage], row);
  }
}

// One warpgroup at work: 64 pairs of an item.
template <int D>
struct Worker {
  using L = Layout<D>;
  const Arguments &a;
  const Barriers &barriers;
  const Item &item;
  u8 *shared;
  int group, groups;  // which it is, and how many there are
  int thread, position[2], least;  // least: of the warp's positions; where there is no pair, the item's last
  Turn<L::STAGES> turn;

  // The first pair of this thread's warp; a lane has rows lane / 4 and + 8 of its 16.
  __device__ __forceinline__ int pair_of(int r) const { return group * ROWS + thread / 32 * 16 + thread % 32 / 4 + 8 * r; }

  __device__ __forceinline__ void load_queries() {
    const int of_token = a.heads / a.kv_heads, pairs = item.rows * of_token;
    const u32 *rows = a.rows + item.first_row;
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) position[r] = pair_of(r) < pairs ? (int)a.positions[rows[pair_of(r) / of_token]] : item.end - 1;
    least = min(position[0], position[1]);
    SORFT_UNROLL
    for (int other = 4; other < 32; other *= 2) least = min(least, __shfl_xor_sync(FULL_WARP, least, other));
    bf16 *to = reinterpret_cast<bf16 *>(shared + L::QUERIES + group * Tile<D>::BYTES);
    SORFT_UNROLL
    for (int i = 0; i < ROWS * D / 8 / GROUP; i++) {
      const int at = thread + i * GROUP, row = at / (D / 8), chunk = at % (D / 8), pair = group * ROWS + row;
      const bool valid = pair < pairs;
      const i64 head = valid ? (i64)rows[pair / of_token] * a.heads + blockIdx.y * of_token + pair % of_token : 0;
      ptx::cp_async(to + chunk / 8 * (Tile<D>::BLOCK_BYTES / 2) + tile::place<64>(row, chunk % 8), a.q + head * D + chunk * 8, valid);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    ptx::fence_async_proxy();
    ptx::named_barrier(1 + group, GROUP);
  }

  // Issues s = q k' of the page in turn.
  __device__ __forceinline__ void issue_scores(float (&s)[8][4], const Turn<L::STAGES> &at) {
    const u8 *queries = shared + L::QUERIES + group * Tile<D>::BYTES, *keys = page_at<D>(shared, at.stage);
    ptx::wait(&barriers.keys[at.stage], at.parity);
    issue_transposed<D, Tile<D>::BLOCK_BYTES>(s, queries, keys);
  }

  // Issues out += p v of the page in turn.
  __device__ __forceinline__ void issue_values(float (&out)[D / 8][4], const u32 (&p)[4][4], int t) {
    u8 *values = page_at<D>(shared, turn.stage) + Tile<D>::BYTES;
    ptx::wait(&barriers.values[turn.stage], turn.parity);
    const int filled = item.end - t * ROWS;
    if (filled < ROWS) clear_behind<D>(values, filled, 3, thread + group * GROUP, groups * GROUP);
    issue_sum<D>(out, p, values);
  }

  // Takes the scores of tile t, -inf where masked, to e. (A copy: registers of a product are left alone while another one is under way.)
  template <bool MASKED>
  __device__ __forceinline__ void take_scores(attention::State<D> &state, float (&e)[8][4], const float (&s)[8][4], int t, float (&shrinks)[2]) const {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int i = 0; i < 4; i++)
        e[j][i] = MASKED && t * ROWS + j * 8 + thread % 4 * 2 + i % 2 > position[i / 2] ? attention::minus_infinity() : s[j][i];
    }
    state.take_scores(e, a.scale_log2, shrinks);
  }

  // The same, by the shorter way where all of the warp's pairs see the whole tile, as most do: comparing is a sixth of a tile's instructions.
  __device__ __forceinline__ void exponentials(attention::State<D> &state, float (&e)[8][4], const float (&s)[8][4], int t, float (&shrinks)[2]) const {
    if (t * ROWS + ROWS <= least + 1) take_scores<false>(state, e, s, t, shrinks);
    else take_scores<true>(state, e, s, t, shrinks);
  }

  // Frees the page in turn, and goes on to the next.
  __device__ __forceinline__ void leave_page() {
    if (thread % 32 == 0) ptx::arrive(&barriers.free[turn.stage]);
    turn.next();
  }

  // The state of this warp's 16 pairs after the item's keys.
  __device__ __forceinline__ void run(attention::State<D> &state) {
    load_queries();
    attention::Before<D> before;
    before.out = reinterpret_cast<float *>(shared + L::BEFORE + group * L::BEFORE_BYTES);
    const int first = item.begin / ROWS, last = (item.end - 1) / ROWS;
    float s[8][4], e[8][4], shrinks[2];
    u32 p[4][4];
    Turn<L::STAGES> ahead = turn;
    state.clear();
    issue_scores(s, ahead);
    ptx::wgmma_wait<0>();
    exponentials(state, e, s, first, shrinks);
    pack(p, e);
    for (int t = first; t < last; t++) {
      ahead.next();
      issue_scores(s, ahead);
      issue_values(state.out, p, t);
      const bool split_ends = (t + 1) % (attention::SPLIT / ROWS) == 0;
      if (split_ends) {
        ptx::wgmma_wait<0>();
        state.finish_sums();
        if (before.any) before.join(state, a.scale_log2);
        before.keep(state);
        state.clear();
        exponentials(state, e, s, t + 1, shrinks);
      } else {
        ptx::wgmma_wait<1>();  // the scores are there; the values are still being multiplied
        exponentials(state, e, s, t + 1, shrinks);
        ptx::wgmma_wait<0>();
        state.shrink_outputs(shrinks);
      }
      leave_page();
      pack(p, e);
    }
    issue_values(state.out, p, last);
    ptx::wgmma_wait<0>();
    leave_page();
    state.finish_sums();
    if (before.any) before.join(state, a.scale_log2);
  }
};

template <int D>
__device__ __forceinline__ void store(bf16 *o, float *lse, const Worker<D> &w, const attention::State<D> &state) {
  const Arguments &a = w.a;
  const int of_token = a.heads / a.kv_heads, lane = w.thread % 32;
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = w.pair_of(r);
    if (pair >= w.item.rows * of_token) continue;
    const i64 at = (i64)a.rows[w.item.first_row + pair / of_token] * a.heads + blockIdx.y * of_token + pair % of_token;
    const float inverse = 1.0f / state.sum[r];
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++)
      store_vec(o + at * D + 8 * j + lane % 4 * 2, to_bf16x2(state.out[j][2 * r] * inverse, state.out[j][2 * r + 1] * inverse));
    if (lane % 4 == 0) lse[at] = attention::log_sum_exp(state.max[r], state.sum[r], a.scale_log2);
  }
}

template <int D>
__device__ __forceinline__ void whole(bf16 *o, float *lse, const Arguments &a) {
  using L = Layout<D>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full_keys, L::STAGES);
  SORFT_SMEM(u64, full_values, L::STAGES);
  SORFT_SMEM(u64, free, L::STAGES);
  const Item item(a.items);
  const Barriers barriers{full_keys, full_values, free};
  const int groups = item.rows * (a.heads / a.kv_heads) > ROWS ? 2 : 1, group = threadIdx.x / GROUP;
  if (threadIdx.x == 0) {
    SORFT_UNROLL
    for (int i = 0; i < L::STAGES; i++) {
      ptx::barrier_init(&full_keys[i], 1);
      ptx::barrier_init(&full_values[i], 1);
      ptx::barrier_init(&free[i], groups * GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  __syncthreads();
  if (group == MAX_GROUPS) {
    ptx::give_registers<24>();  // 24 + 2 * 240 of a thread are the 3 * 168 that the block has
    if (threadIdx.x == MAX_GROUPS * GROUP) load_pages<D>(shared, barriers, a, item);
  } else {
    ptx::take_registers<240>();
    if (group >= groups) return;
    Worker<D> worker{a, barriers, item, shared, group, groups, (int)threadIdx.x % GROUP, {}, {}};
    attention::State<D> state;
    worker.run(state);
    store(o, lse, worker, state);
  }
}

}  // namespace attention_hopper
#endif

// Grid: (items, kv heads). Block: 384 threads. Boxes of the maps, which are [pages * H_kv * 64, D]: 64 rows. Dynamic shared memory: queries and states of
// two warpgroups and the stages: 112 KiB for D = 64, else 128 + 2 D / 4 KiB.
#define ATTENTION_HOPPER(D)                                                                                                                      \
  extern "C" __global__ void __launch_bounds__(384, 1)                                                                                           \
  attention_hopper_d##D(bf16 *__restrict__ o, float *__restrict__ lse, const bf16 *__restrict__ q, const SORFT_GRID_CONSTANT TensorMap keys,     \
                        const SORFT_GRID_CONSTANT TensorMap values, const u32 *__restrict__ positions, const u32 *__restrict__ items,            \
                        const u32 *__restrict__ rows, const u32 *__restrict__ pages, i32 heads, i32 kv_heads, float scale_log2) {                \
    ATTENTION_HOPPER_BODY(D);                                                                                                                    \
  }                                                                                                                                              \
  SORFT_EXPORT(attention_hopper_d##D)

#if defined(SORFT_HOPPER)
#define ATTENTION_HOPPER_BODY(D) \
  attention_hopper::whole<D>(o, lse, {q, &keys, &values, positions, items, rows, pages, heads, kv_heads, scale_log2})
#else
#define ATTENTION_HOPPER_BODY(D)
#endif

ATTENTION_HOPPER(64)
ATTENTION_HOPPER(96)
ATTENTION_HOPPER(128)
