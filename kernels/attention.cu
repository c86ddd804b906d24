// attention.cu - causal attention with grouped heads over a forest of segments, forward: training, prefill and decode.
//
//   s_j = (q . k_j) scale,  p_j = e^{s_j} / sum_i e^{s_i},  o = bf16(sum_j bf16(e^{s_j - m}) v_j / sum_j e^{s_j - m}),  lse = ln sum_j e^{s_j}
//
// over the keys j at positions 0..=position of the token along its path in the forest. Online softmax as in FlashAttention-2 (Dao 2023).
//
// Shapes: q, o [T, H, D] bf16; lse [T, H] f32; keys, values [pages, H_kv, 64, D] bf16: pages of 64 absolute positions; positions [T].
//
// An item is work for one block and kv head: up to 64 pairs (a token and one of the kv head's query heads; pair i is token rows[i / group])
// against a run of pages that all its tokens share. Its five numbers: first entry of `rows`, tokens, first entry of `pages` (that of position
// 0), first key position (on a split's start), one past the last. Keys beyond `position` are masked; those beyond the item are not read,
// so unwritten slots may hold anything. In `split`, an item without tokens fills a table of fixed size, and a token without entries has no history.
//
// Order of sums. Tiles of 64 keys at absolute positions, one after another; a tile is 16 keys at a time on the tensor cores, and the sum of
// exponentials a fixed tree over a quad. Every SPLIT keys the state (max, sum, output) is merged into the states before it and begins afresh.
// So whether one block goes through all splits (`whole`) or each is a block of its own (`split`, then `merge`), and whoever else is in the
// block, a token's bits are the same: they depend on its history alone. What a token does not see adds exactly 0.
//
// Bytes and floor: 2 T H D operations for each key seen; in decode 4 H_kv D bytes a key, once for all tokens of an item. In bf16 at 790
// TFLOP/s: 2 x 4096^2 x 32 x 64 operations (one causal sequence, both products) 87 us. Not measured on a chip yet.
#include "sorft.cuh"
#include "attention.cuh"
#include "softmax.cuh"

namespace attention {

struct Arguments {
  const bf16 *q, *keys, *values;
  const u32 *positions, *items, *rows, *pages;
  int heads, kv_heads;
  float scale_log2;
};

// The state of this warp's 16 pairs after the item's keys.
template <int D>
__device__ __forceinline__ void run_item(State<D> &state, const Arguments &a, const Item &item, bf16 *shared) {
  constexpr int PAGE = ROWS * D;
  const int kv_head = blockIdx.y, group = a.heads / a.kv_heads, pairs = item.rows * group;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const u32 *rows = a.rows + item.first_row, *pages = a.pages + item.first_page;
  bf16 *queries = shared, *stages = shared + 2 * PAGE;  // the queries' place is twice their size: Before takes it over
  Before<D> before;
  before.out = reinterpret_cast<float *>(shared);
  int position[2];
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = row + lane / 4 + 8 * r;
    position[r] = pair < pairs ? (int)a.positions[rows[pair / group]] : 0;
  }
  copy_pairs<D, ROWS>(queries, a.q, rows, pairs, group, a.heads, kv_head * group);
  const int first = item.begin / ROWS, last = (item.end - 1) / ROWS;
  copy_page<D>(stages, a.keys, a.values, pages[first], a.kv_heads, kv_head, item.end - first * ROWS);
  ptx::cp_async_commit();
  state.clear();
  u32 q[D / 16][4];
  for (int t = first; t <= last; t++) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // the tile has landed for all, and all have left the other stage
    const bf16 *stage = stages + (t - first) % 2 * 2 * PAGE;
    if (t < last) {
      const int next = t + 1;
      copy_page<D>(stages + (next - first) % 2 * 2 * PAGE, a.keys, a.values, pages[next], a.kv_heads, kv_head, item.end - next * ROWS);
      ptx::cp_async_commit();
    }
    if (t == first) {
      SORFT_UNROLL
      for (int k = 0; k < D / 16; k++) tile::load_a<D>(q[k], queries, row, k);
    }
    float s[8][4];
    tile::clear(s);
    SORFT_UNROLL
    for (int k = 0; k < D / 16; k++) {
      SORFT_UNROLL
      for (int j = 0; j < 8; j += 2) {
        u32 b[4];
        tile::load_b_rows<D>(b, stage, 8 * j, k);
        ptx::mma(s[j], q[k], b[0], b[1]);
        ptx::mma(s[j + 1], q[k], b[2], b[3]);
      }
    }
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++)
        if (t * ROWS + j * 8 + lane % 4 * 2 + e % 2 > position[e / 2]) s[j][e] = minus_infinity();
    }
    state.add_scores(s, a.scale_log2);
    tile::multiply_accumulator<D>(state.out, s, stage + PAGE, 0);
    if ((t + 1) % (SPLIT / ROWS) == 0 && t < last) {
      state.finish_sums();
      if (before.any) before.join(state, a.scale_log2);
      before.keep(state);
      state.clear();
    }
  }
  state.finish_sums();
  if (before.any) before.join(state, a.scale_log2);
}

template <int D>
__device__ __forceinline__ void whole(bf16 *o, float *lse, const Arguments &a) {
  SORFT_DYN_SMEM(bf16, shared);
  const Item item(a.items);
  State<D> state;
  run_item(state, a, item, shared);
  const int group = a.heads / a.kv_heads, lane = threadIdx.x % 32;
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = threadIdx.x / 32 * 16 + lane / 4 + 8 * r;
    if (pair >= item.rows * group) continue;
    const i64 at = (i64)a.rows[item.first_row + pair / group] * a.heads + blockIdx.y * group + pair % group;
    const float inverse = 1.0f / state.sum[r];
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++)
      store_vec(o + at * D + 8 * j + lane % 4 * 2, to_bf16x2(state.out[j][2 * r] * inverse, state.out[j][2 * r + 1] * inverse));
    if (lane % 4 == 0) lse[at] = log_sum_exp(state.max[r], state.sum[r], a.scale_log2);
  }
}

// The states of one split: parts [entries of rows, H, D], states [entries of rows, H, 2] (max and sum), both f32.
template <int D>
__device__ __forceinline__ void split(float *parts, float *states, const Arguments &a) {
  SORFT_DYN_SMEM(bf16, shared);
  const Item item(a.items);
  if (item.rows == 0) return;
  State<D> state;
  run_item(state, a, item, shared);
  const int group = a.heads / a.kv_heads, lane = threadIdx.x % 32;
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = threadIdx.x / 32 * 16 + lane / 4 + 8 * r;
    if (pair >= item.rows * group) continue;
    const i64 at = (i64)(item.first_row + pair / group) * a.heads + blockIdx.y * group + pair % group;
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++)
      store_vec(parts + at * D + 8 * j + lane % 4 * 2, float2{state.out[j][2 * r], state.out[j][2 * r + 1]});
    if (lane % 4 == 0) store_vec(states + 2 * at, float2{state.max[r], state.sum[r]});
  }
}

}  // namespace attention

// Grid: (items, kv heads). Dynamic shared memory: 12 x 64 x D bytes.
#define ATTENTION_FORWARD(D)                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(128, 2)                                                                                    \
  attention_whole_d##D(bf16 *__restrict__ o, float *__restrict__ lse, const bf16 *__restrict__ q, const bf16 *__restrict__ keys,          \
                       const bf16 *__restrict__ values, const u32 *__restrict__ positions, const u32 *__restrict__ items,                 \
                       const u32 *__restrict__ rows, const u32 *__restrict__ pages, i32 heads, i32 kv_heads, float scale_log2) {          \
    attention::whole<D>(o, lse, {q, keys, values, positions, items, rows, pages, heads, kv_heads, scale_log2});                           \
  }                                                                                                                                       \
  SORFT_EXPORT(attention_whole_d##D)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(128, 2)                                                                                    \
  attention_split_d##D(float *__restrict__ parts, float *__restrict__ states, const bf16 *__restrict__ q, const bf16 *__restrict__ keys,  \
                       const bf16 *__restrict__ values, const u32 *__restrict__ positions, const u32 *__restrict__ items,                 \
                       const u32 *__restrict__ rows, const u32 *__restrict__ pages, i32 heads, i32 kv_heads, float scale_log2) {          \
    ptx::begin_after_earlier_launches(q, keys, values);                                                                                    \
    attention::split<D>(parts, states, {q, keys, values, positions, items, rows, pages, heads, kv_heads, scale_log2});                    \
  }                                                                                                                                       \
  SORFT_EXPORT(attention_split_d##D)

ATTENTION_FORWARD(64)
ATTENTION_FORWARD(96)
ATTENTION_FORWARD(128)

// o [T, H, D] and lse [T, H] from the states of each token's splits, merged one after another: those at entries order[starts[t]..starts[t + 1]]
// of `parts` and `states`; zeros where there is none. Grid: (tokens, heads); block: D / 2 threads, two columns each.
extern "C" __global__ void __launch_bounds__(64)
attention_merge(bf16 *__restrict__ o, float *__restrict__ lse, const float *__restrict__ parts, const float *__restrict__ states,
                const u32 *__restrict__ order, const u32 *__restrict__ starts, i32 heads, float scale_log2) {
  ptx::begin_after_earlier_launches(parts, states);
  const i64 token = blockIdx.x, head = blockIdx.y, width = 2 * blockDim.x, column = 2 * threadIdx.x;
  const u32 first = starts[token], end = starts[token + 1];
  float max = 0.0f, sum = 0.0f;
  float2 out = {0.0f, 0.0f};
  for (u32 i = first; i < end; i++) {
    const i64 at = (i64)order[i] * heads + head;
    const float2 state = load_vec<float2>(states + 2 * at), part = load_vec<float2>(parts + at * width + column);
    if (i == first) {
      max = state.x, sum = state.y, out = part;
    } else {
      const attention::Merge merge(max, state.x, scale_log2);
      max = merge.max;
      sum = merge.sum(sum, state.y);
      out = float2{merge.sum(out.x, part.x), merge.sum(out.y, part.y)};
    }
  }
  const i64 at = token * heads + head;
  const float inverse = first < end ? 1.0f / sum : 0.0f;
  store_vec(o + at * width + column, to_bf16x2(out.x * inverse, out.y * inverse));
  if (threadIdx.x == 0) lse[at] = attention::log_sum_exp(max, sum, scale_log2);
}
SORFT_EXPORT(attention_merge)
