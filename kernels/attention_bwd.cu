// attention_bwd.cu - attention's gradients, with the scores computed again from the saved logs of the sums of exponentials.
//
//   p_j = e^{s_j - lse},  dp_j = do . v_j,  delta = do . o,  ds_j = p_j (dp_j - delta) scale
//   dq = bf16(sum_j bf16(ds_j) k_j),  dk_j = sum over queries bf16(ds_j) q,  dv_j = sum over queries bf16(p_j) do
//
// Shapes as in attention.cu; do like o, dq like q; delta, lse [T, H] f32; dk, dv in pages [pages, H_kv, 64, D] f32, which kv_pages.cu folds and
// brings to tokens.
//
// Order of sums. Two passes, so that no two blocks write the same number and no atomics are needed. dq: a block for the items of the forward
// pass, page after page, 16 keys at a time. dk and dv: a block for each page and kv head, over the runs of queries that the host lists, the
// batch's last tile of them first, 16 pairs at a time: keys are the rows there, so that p and ds need not leave the registers to become left
// operands.
//
// Floor: 7 products of 2 T H D operations for each key seen (attention_bwd_hopper.cu needs 5, in one pass and with the same order of sums). In bf16 at 790 TFLOP/s, one causal
// sequence of 4096, 32 heads of 64: 304 us. Not measured on a chip yet.
#include "sorft.cuh"
#include "attention.cuh"
#include "attention_bwd.cuh"

namespace attention {

struct Gradients {
  const bf16 *d_o, *q, *keys, *values;
  const float *lse, *delta;
  const u32 *positions;
  int heads, kv_heads;
  float scale;
};

// dq of an item's pairs. A lane has two of the warp's 16 rows, and a quarter of their keys.
template <int D>
__device__ __forceinline__ void query_gradients(bf16 *dq, const Gradients &a, const u32 *items, const u32 *rows_table, const u32 *pages_table) {
  constexpr int PAGE = ROWS * D;
  SORFT_DYN_SMEM(bf16, shared);
  const Item item(items);
  const int kv_head = blockIdx.y, group = a.heads / a.kv_heads, pairs = item.rows * group;
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const u32 *rows = rows_table + item.first_row, *pages = pages_table + item.first_page;
  bf16 *queries = shared, *d_outs = shared + PAGE, *stages = shared + 2 * PAGE;
  const float scale_log2 = a.scale * LOG2_E;
  // Where a pair's row is, in q and in lse. Not kept over the loop: registers are what there is least of.
  const auto row_of = [&](int pair) { return (i64)rows[pair / group] * a.heads + kv_head * group + pair % group; };
  int position[2];
  float lse[2], delta[2];
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = row + lane / 4 + 8 * r;
    const bool valid = pair < pairs;
    position[r] = valid ? (int)a.positions[rows[pair / group]] : -1;
    lse[r] = valid ? a.lse[row_of(pair)] * LOG2_E : 0.0f;
    delta[r] = valid ? a.delta[row_of(pair)] : 0.0f;
  }
  copy_pairs<D, ROWS>(queries, a.q, rows, pairs, group, a.heads, kv_head * group);
  copy_pairs<D, ROWS>(d_outs, a.d_o, rows, pairs, group, a.heads, kv_head * group);
  const int last = (item.end - 1) / ROWS;
  copy_page<D>(stages, a.keys, a.values, pages[0], a.kv_heads, kv_head, item.end);
  ptx::cp_async_commit();
  float sum[D / 8][4];
  tile::clear(sum);
  for (int t = 0; t <= last; t++) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // the tile has landed for all, and all have left the other stage
    const bf16 *stage = stages + t % 2 * 2 * PAGE;
    if (t < last) {
      copy_page<D>(stages + (t + 1) % 2 * 2 * PAGE, a.keys, a.values, pages[t + 1], a.kv_heads, kv_head, item.end - (t + 1) * ROWS);
      ptx::cp_async_commit();
    }
    float s[8][4], dp[8][4];
    tile::clear(s);
    tile::clear(dp);
    tile::multiply_transposed<D>(s, queries, row, stage, 0);
    tile::multiply_transposed<D>(dp, d_outs, row, stage + PAGE, 0);
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        const bool seen = t * ROWS + j * 8 + lane % 4 * 2 + e % 2 <= position[e / 2];
        const float p = probability(s[j][e], scale_log2, lse[e / 2]);
        s[j][e] = seen ? score_gradient(p, dp[j][e], delta[e / 2], a.scale) : 0.0f;
      }
    }
    tile::multiply_accumulator<D>(sum, s, stage, 0);
  }
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const int pair = row + lane / 4 + 8 * r;
    if (pair >= pairs) continue;
    const i64 at = row_of(pair);
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++) store_vec(dq + at * D + 8 * j + lane % 4 * 2, to_bf16x2(sum[j][2 * r], sum[j][2 * r + 1]));
  }
}

// The pairs of one entry of `runs`: rows first.. of the batch, count of them.
template <int D, int PAIRS>
__device__ __forceinline__ void load_pairs(bf16 *stage, Pairs<PAIRS> *known, const Gradients &a, const u32 *run) {
  const int group = a.heads / a.kv_heads, first_head = blockIdx.y * group, first = (int)run[0], pairs = (int)run[1] * group;
  constexpr int CHUNKS = D / 8;
  SORFT_UNROLL
  for (int i = 0; i < PAIRS * CHUNKS / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, pair = at / CHUNKS, chunk = at % CHUNKS;
    const bool valid = pair < pairs;
    const i64 from = valid ? ((i64)(first + pair / group) * a.heads + first_head + pair % group) * D + chunk * 8 : 0;
    ptx::cp_async(stage + tile::place<D>(pair, chunk), a.q + from, valid);
    ptx::cp_async(stage + PAIRS * D + tile::place<D>(pair, chunk), a.d_o + from, valid);
  }
  const int pair = threadIdx.x;
  if (pair < PAIRS) {
    const bool valid = pair < pairs;
    const i64 token = first + pair / group, at = token * a.heads + first_head + pair % group;
    known->take(pair, valid, a.lse, a.delta, a.positions, token, at);
  }
}

// dk and dv of a page. A warp has 16 of its keys.
template <int D, int PAIRS>
__device__ __forceinline__ void page_gradients(float *dk, float *dv, const Gradients &a, const u32 *pages, const u32 *runs, const u32 *starts) {
  constexpr int PAGE = ROWS * D, STAGE = 2 * PAIRS * D;
  SORFT_DYN_SMEM(bf16, shared);
  SORFT_SMEM(Pairs<PAIRS>, known, 2);
  const int kv_head = blockIdx.y, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16;
  const u32 page = blockIdx.x, first = starts[page], last = starts[page + 1];
  const int position = (int)pages[2 * page] + row, filled = (int)pages[2 * page + 1];
  const float scale_log2 = a.scale * LOG2_E;
  bf16 *keys = shared, *values = shared + PAGE, *stages = shared + 2 * PAGE;
  float key_sum[D / 8][4], value_sum[D / 8][4];
  tile::clear(key_sum);
  tile::clear(value_sum);
  copy_page<D>(keys, a.keys, a.values, page, a.kv_heads, kv_head, filled);
  if (first < last) load_pairs<D>(stages, known, a, runs + 2 * first);
  ptx::cp_async_commit();
  for (u32 i = first; i < last; i++) {
    ptx::cp_async_wait<0>();
    __syncthreads();  // the pairs have landed for all, and all have left the other stage
    const bf16 *q = stages + (i - first) % 2 * STAGE, *d_o = q + PAIRS * D;
    const Pairs<PAIRS> &own = known[(i - first) % 2];
    if (i + 1 < last) {
      const u32 other = (i + 1 - first) % 2;
      load_pairs<D>(stages + other * STAGE, known + other, a, runs + 2 * (i + 1));
      ptx::cp_async_commit();
    }
    float p[PAIRS / 8][4], ds[PAIRS / 8][4];
    tile::clear(p);
    tile::clear(ds);
    tile::multiply_transposed<D>(p, keys, row, q, 0);
    tile::multiply_transposed<D>(ds, values, row, d_o, 0);
    SORFT_UNROLL
    for (int j = 0; j < PAIRS / 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) {
        const int pair = j * 8 + lane % 4 * 2 + e % 2;
        const bool seen = position + lane / 4 + e / 2 * 8 <= own.position[pair];
        p[j][e] = seen ? probability(p[j][e], scale_log2, own.lse[pair]) : 0.0f;
        ds[j][e] = seen ? score_gradient(p[j][e], ds[j][e], own.delta[pair], a.scale) : 0.0f;
      }
    }
    tile::multiply_accumulator<D>(value_sum, p, d_o, 0);
    tile::multiply_accumulator<D>(key_sum, ds, q, 0);
  }
  ptx::cp_async_wait<0>();  // of a page that nobody reads
  SORFT_UNROLL
  for (int r = 0; r < 2; r++) {
    const i64 to = (((i64)page * a.kv_heads + kv_head) * ROWS + row + lane / 4 + 8 * r) * D + lane % 4 * 2;
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++) {
      store_vec(dk + to + 8 * j, float2{key_sum[j][2 * r], key_sum[j][2 * r + 1]});
      store_vec(dv + to + 8 * j, float2{value_sum[j][2 * r], value_sum[j][2 * r + 1]});
    }
  }
}

}  // namespace attention

// delta [T * H] = do . o. A warp a pair, four a block; columns 2 lane, 2 lane + 64 of a row in order, then a tree over the warp.
extern "C" __global__ void __launch_bounds__(128)
attention_delta(float *__restrict__ delta, const bf16 *__restrict__ d_o, const bf16 *__restrict__ o, i32 pairs, i32 dim) {
  const i64 pair = (i64)blockIdx.x * 4 + threadIdx.x / 32;
  if (pair >= pairs) return;
  float sum = 0.0f;
  for (int c = 2 * (threadIdx.x % 32); c < dim; c += 64) {
    const bf16x2 x = load_vec<bf16x2>(d_o + pair * dim + c), y = load_vec<bf16x2>(o + pair * dim + c);
    sum = fmaf(to_f32(x.v[0]), to_f32(y.v[0]), sum);
    sum = fmaf(to_f32(x.v[1]), to_f32(y.v[1]), sum);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[pair] = sum;
}
SORFT_EXPORT(attention_delta)

// dq. Grid: (items, kv heads). Dynamic shared memory: 12 x 64 x D bytes.
// dk, dv. Grid: (pages, kv heads). pages [n, 2]: the position of a page's first slot, and how many slots are filled. runs [m, 2]: first row and
// how many, at most PAIRS / group; those of a page are starts[page]..starts[page + 1]. Dynamic shared memory: (256 + 8 PAIRS) x D bytes.
#define ATTENTION_BACKWARD(D, PAIRS)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(128, 2)                                                                                    \
  attention_bwd_q_d##D(bf16 *__restrict__ dq, const bf16 *__restrict__ d_o, const bf16 *__restrict__ q, const bf16 *__restrict__ keys,    \
                       const bf16 *__restrict__ values, const float *__restrict__ lse, const float *__restrict__ delta,                   \
                       const u32 *__restrict__ positions, const u32 *__restrict__ items, const u32 *__restrict__ rows,                    \
                       const u32 *__restrict__ pages, i32 heads, i32 kv_heads, float scale) {                                             \
    attention::query_gradients<D>(dq, {d_o, q, keys, values, lse, delta, positions, heads, kv_heads, scale}, items, rows, pages);         \
  }                                                                                                                                       \
  SORFT_EXPORT(attention_bwd_q_d##D)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(128, 2)                                                                                    \
  attention_bwd_kv_d##D(float *__restrict__ dk, float *__restrict__ dv, const bf16 *__restrict__ d_o, const bf16 *__restrict__ q,         \
                        const bf16 *__restrict__ keys, const bf16 *__restrict__ values, const float *__restrict__ lse,                    \
                        const float *__restrict__ delta, const u32 *__restrict__ positions, const u32 *__restrict__ pages,                \
                        const u32 *__restrict__ runs, const u32 *__restrict__ starts, i32 heads, i32 kv_heads, float scale) {             \
    attention::page_gradients<D, PAIRS>(dk, dv, {d_o, q, keys, values, lse, delta, positions, heads, kv_heads, scale}, pages, runs,       \
                                        starts);                                                                                          \
  }                                                                                                                                       \
  SORFT_EXPORT(attention_bwd_kv_d##D)

ATTENTION_BACKWARD(64, 64)
ATTENTION_BACKWARD(96, 32)
ATTENTION_BACKWARD(128, 32)
