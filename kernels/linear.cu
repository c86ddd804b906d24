// linear.cu - the products of a linear layer by tensor cores, each with the term of a LoRA adapter in the same launch.
//
//   forward            y = bf16(x w' + scale s b' + bias)      s = bf16(x a')
//   gradient of x      dx = bf16(dy w + scale t a)             t = bf16(dy b)
//   gradient of w      dw += dy' x                             (of b: db += scale dy' s; of a: da += scale t' x)
//
// Shapes: x, dx [M, K], w [N, K], y, dy [M, N], bias [N], a [R, K], b [N, R], s, t [M, R] bf16; dw, da, db f32. s and t come from launches of
// their own (w = a; w = b). Without an adapter s, t are null. K, N and R are multiples of 8.
//
// Order of sums. One chain: products of 16 terms on the tensor cores, in the order of the terms; where there is an adapter its terms come first, and
// what they have come to is multiplied by scale. So a number depends on its row of x and its row of w alone, not on M, nor on which rows are in
// the block: linear_few.cu gives the same bits for few rows. Over tokens, for dw, the host lists chunks of at most 64, counted from the start
// of each tree, and the chain begins with dw as it was: cutting a batch between trees changes no bit. The gradient of an adapter, which has
// a factor, sums each chunk from zero and adds it times the factor.
//
// Block: 128 x 128 outputs, eight warps of 32 x 64; operands by asynchronous copies, two chunks ahead. Operations: 2 M N K each (+ 2 M N R); bytes
// at least 2 (M K + N K + M N). Floor at 790 TFLOP/s for M = N = K = 4096: 174 us. Not measured on a chip yet.
#include "sorft.cuh"
#include "linear.cuh"

// Grids: (ceil(rows / 128), ceil(columns / 128)) of the output. Dynamic shared memory: 96 KiB.

extern "C" __global__ void __launch_bounds__(256, 2)
linear_fwd_bf16(bf16 *__restrict__ y, const bf16 *__restrict__ x, const bf16 *__restrict__ w, const bf16 *__restrict__ bias,
                const bf16 *__restrict__ s, const bf16 *__restrict__ b, i32 m, i32 n, i32 k, i32 rank, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums sum;
  linear::clear(sum);
  if (s) {
    linear::add_product<true, true>(sum, shared, {s, m, rank}, {b, n, rank}, at, rank);
    linear::scale(sum, scale);
  }
  linear::add_product<true, true>(sum, shared, {x, m, k}, {w, n, k}, at, k);
  linear::each_pair(sum, at, m, n, [=](i64 row, int column, float lo, float hi) {
    if (bias) lo += to_f32(bias[column]), hi += to_f32(bias[column + 1]);
    store_vec(y + row * n + column, to_bf16x2(lo, hi));
  });
}
SORFT_EXPORT(linear_fwd_bf16)

extern "C" __global__ void __launch_bounds__(256)
linear_dx_bf16(bf16 *__restrict__ dx, const bf16 *__restrict__ dy, const bf16 *__restrict__ w, const bf16 *__restrict__ t,
               const bf16 *__restrict__ a, i32 m, i32 n, i32 k, i32 rank, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums sum;
  linear::clear(sum);
  if (t) {
    linear::add_product<true, false>(sum, shared, {t, m, rank}, {a, k, k}, at, rank);
    linear::scale(sum, scale);
  }
  linear::add_product<true, false>(sum, shared, {dy, m, n}, {w, k, k}, at, n);
  linear::each_pair(sum, at, m, k, [=](i64 row, int column, float lo, float hi) { store_vec(dx + row * k + column, to_bf16x2(lo, hi)); });
}
SORFT_EXPORT(linear_dx_bf16)

// Sums from and to a matrix [n, k] f32.
__device__ __forceinline__ void load_sums(linear::Sums &sum, linear::Place at, const float *dw, int n, int k) {
  linear::each_pair(sum, at, n, k, [=](i64 row, int column, float &lo, float &hi) {
    const float2 before = load_vec<float2>(dw + row * k + column);
    lo = before.x, hi = before.y;
  });
}
__device__ __forceinline__ void store_sums(linear::Sums &sum, linear::Place at, float *dw, int n, int k) {
  linear::each_pair(sum, at, n, k, [=](i64 row, int column, float lo, float hi) { store_vec(dw + row * k + column, float2{lo, hi}); });
}

// dw [N, K] += dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(256, 2)
linear_dw_f32(float *__restrict__ dw, const bf16 *__restrict__ dy, const bf16 *__restrict__ x, const u32 *__restrict__ chunks, i32 count, i32 n,
              i32 k) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums sum;
  linear::clear(sum);
  load_sums(sum, at, dw, n, k);
  linear::add_product<false, false>(sum, shared, {dy, n, n}, {x, k, k}, at, count, linear::ChunkTable{chunks});
  store_sums(sum, at, dw, n, k);
}
SORFT_EXPORT(linear_dw_f32)

// dw [N, K] += scale dy' x, chunk by chunk.
extern "C" __global__ void __launch_bounds__(256)
linear_dw_scaled_f32(float *__restrict__ dw, const bf16 *__restrict__ dy, const bf16 *__restrict__ x, const u32 *__restrict__ chunks, i32 count,
                     i32 n, i32 k, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  const int warp = threadIdx.x / 32, row = warp / 2 * 32, column = warp % 2 * 64;
  linear::Sums total, sum;
  linear::clear(total);
  load_sums(total, at, dw, n, k);
  linear::each_chunk<false, false>(shared, {dy, n, n}, {x, k, k}, at, count, linear::ChunkTable{chunks}, [&](const bf16 *stage) {
    linear::clear(sum);
    linear::multiply<false, false>(sum, stage, row, stage + linear::TILE, column);
    linear::add_scaled(total, scale, sum);
  });
  store_sums(total, at, dw, n, k);
}
SORFT_EXPORT(linear_dw_scaled_f32)
