// linear.cu - the products of a linear layer by tensor cores, each with the term of a LoRA adapter in the same launch.
//
//   forward            y = bf16(x w' + scale s b' + bias)      s = bf16(x a')
//   gradient of x      dx = bf16(dy w + scale t a)             t = bf16(dy b)
//   gradient of w      dw += dy' x                             (of b: db += scale dy' s; of a: da += scale t' x)
//
// Shapes: x, dx [M, K], w [N, K], y, dy [M, N], bias [N], a [R, K], b [N, R], s, t [M, R] bf16; dw, da, db f32. s and t come from launches of
// their own (w = a; w = b). Without an adapter s, t are null. K, N and R are multiples of 8.
//
// Order of sums. The contraction is cut in chunks of 64: a chunk is four products of 16 terms on the tensor cores, from zero, and chunk sums are
// added in order (docs/exactness.md). The adapter's chunks follow, each times scale. So a number depends on its row of x and its row of w alone,
// not on M, nor on which rows are in the block. Over tokens, for dw, the host lists the chunks, counted from the start of each tree, and
// they are added to dw one after another: cutting a batch between trees changes no bit.
//
// Block: 128 x 128 outputs, eight warps of 32 x 64; operands by asynchronous copies, two chunks ahead. Operations: 2 M N K each (+ 2 M N R); bytes
// at least 2 (M K + N K + M N). Floor at 790 TFLOP/s for M = N = K = 4096: 174 us. Not measured on a chip yet.
#include "sorft.cuh"
#include "linear.cuh"

// Grids: (ceil(rows / 128), ceil(columns / 128)) of the output. Dynamic shared memory: 96 KiB.

extern "C" __global__ void __launch_bounds__(256)
linear_fwd_bf16(bf16 *__restrict__ y, const bf16 *__restrict__ x, const bf16 *__restrict__ w, const bf16 *__restrict__ bias,
                const bf16 *__restrict__ s, const bf16 *__restrict__ b, i32 m, i32 n, i32 k, i32 rank, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, true>(total, shared, {x, m, k}, {w, n, k}, at, k, 1.0f);
  if (s) linear::add_product<true, true>(total, shared, {s, m, rank}, {b, n, rank}, at, rank, scale);
  linear::each_pair(total, at, m, n, [=](i64 row, i64 column, float lo, float hi) {
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
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, false>(total, shared, {dy, m, n}, {w, k, k}, at, n, 1.0f);
  if (t) linear::add_product<true, false>(total, shared, {t, m, rank}, {a, k, k}, at, rank, scale);
  linear::each_pair(total, at, m, k, [=](i64 row, i64 column, float lo, float hi) { store_vec(dx + row * k + column, to_bf16x2(lo, hi)); });
}
SORFT_EXPORT(linear_dx_bf16)

// dw [N, K] += scale dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(256)
linear_dw_f32(float *__restrict__ dw, const bf16 *__restrict__ dy, const bf16 *__restrict__ x, const u32 *__restrict__ chunks, i32 count, i32 n,
              i32 k, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums total;
  linear::clear(total);
  linear::each_pair(total, at, n, k, [=](i64 row, i64 column, float &lo, float &hi) {
    const float2 before = load_vec<float2>(dw + row * k + column);
    lo = before.x, hi = before.y;
  });
  const auto chunk_at = [chunks](int c) { return linear::Chunk{(i64)chunks[2 * c], (int)chunks[2 * c + 1]}; };
  linear::add_product<false, false>(total, shared, {dy, n, n}, {x, k, k}, at, count, scale, chunk_at);
  linear::each_pair(total, at, n, k, [=](i64 row, i64 column, float lo, float hi) { store_vec(dw + row * k + column, float2{lo, hi}); });
}
SORFT_EXPORT(linear_dw_f32)
