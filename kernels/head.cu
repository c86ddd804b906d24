// head.cu - the fused head: linear + log-softmax + gather + entropy in chunks of the vocabulary. The logits are never stored (but for sampling).
//
// With z_rj = h_r . w_j / T_r, per row r and chunk of 2048 columns:
//
//   forward     max = max_j z_j,  sum = sum_j e^{z_j - max},  weighted = sum_j e^{z_j - max} (z_j - max),  and z of the target
//   backward    p_j = e^{z_j - MAX} / SUM;   dz_j = -p_j (a + b (z_j - MAX - ln SUM + entropy)) + [j = target] a
//               dh += dz w;   dw += dz' h  (linear.cu)
//
// with a = d_logprob / T, b = d_entropy / T; MAX and SUM are the whole row's. Chunks are summed in f64 (row_softmax.cuh), in training
// and in sampling alike, so the two agree to the bit; the host takes logarithms.
//
// Shapes: h [rows, K], w [V, K], dz [rows, width] bf16; temperature, target_z [rows], sums [rows, chunks, 3], logits [rows, V], dh [rows, K] f32;
// targets [rows]; seeds [rows, 6]: a, b, MAX, ln SUM, 1 / SUM, entropy. K, V and width are multiples of 8.
//
// Order of sums. A logit is linear.cu's sum. Strips of 64 columns: a lane of four adds its 16 logits in order (columns 8 j + 2 t, + 1), then a
// tree over the four; two strips are merged, and the sixteen pairs of a chunk in order. So a row's numbers follow from the row and V.
//
// Operations: forward 2 rows V K, backward 6 (with the product computed again). Bytes: h and w once. Floor at 790 TFLOP/s for 16384 rows, V =
// 151936, K = 896: 5.6 ms forward, 16.9 ms backward. Not measured on a chip yet.
#include "sorft.cuh"
#include "linear.cuh"
#include "head.cuh"
#include "row_softmax.cuh"

namespace head {

constexpr int CHUNK = 2048, SIDE = linear::SIDE, STAGED = 2 * linear::STAGES * linear::TILE;

// What a thread's numbers of row `i` of its four belong to.
struct Row {
  int half, pair, in_block, row;
};
__device__ __forceinline__ Row row_of(int i) {
  const int half = i / 2, pair = i % 2;
  const int in_block = threadIdx.x / 64 * 32 + half * 16 + pair * 8 + threadIdx.x % 32 / 4;
  return {half, pair, in_block, (int)blockIdx.x * SIDE + in_block};
}

__device__ __forceinline__ int column_of(int first, int j) { return first + threadIdx.x / 32 % 2 * 64 + 8 * j + threadIdx.x % 4 * 2; }

}  // namespace head

// parts [rows, ceil(V / 128), 3]: the sums of each 128 columns. Grid: (ceil(rows / 128), ceil(V / 128)). Dynamic shared memory: 99 KiB. targets
// and logits may be null.
extern "C" __global__ void __launch_bounds__(256, 1)
head_fwd_bf16(float *__restrict__ parts, float *__restrict__ target_z, float *__restrict__ logits, const bf16 *__restrict__ h,
              const bf16 *__restrict__ w, const float *__restrict__ temperature, const u32 *__restrict__ targets, i32 rows, i32 vocab, i32 k) {
  SORFT_DYN_SMEM(bf16, shared);
  head::Part *strips = reinterpret_cast<head::Part *>(shared + head::STAGED);  // [2][128]: the left strip's and the right one's
  const linear::Place at = linear::own_place();
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, true>(total, shared, {h, rows, k}, {w, vocab, k}, at, k);
  if (logits)
    linear::each_pair(total, at, rows, vocab,
                      [=](i64 row, int column, float lo, float hi) { store_vec(logits + row * vocab + column, float2{lo, hi}); });
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) {
    const head::Row r = head::row_of(i);
    const bool inside = r.row < rows;
    const float t = inside ? temperature[r.row] : 1.0f;
    const int target = inside && targets ? (int)targets[r.row] : -1;
    float z[16];
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int column = head::column_of(at.column, j);
      SORFT_UNROLL
      for (int e = 0; e < 2; e++) {
        z[2 * j + e] = column + e < vocab ? total[r.half][j][2 * r.pair + e] / t : head::nothing();
        if (column + e == target) target_z[r.row] = z[2 * j + e];
      }
    }
    const head::Part part = head::strip([&](int i) { return z[i]; });
    if (threadIdx.x % 4 == 0) strips[threadIdx.x / 32 % 2 * head::SIDE + r.in_block] = part;
  }
  __syncthreads();  // both strips' sums are there
  const i64 row = at.row + threadIdx.x;
  if (threadIdx.x < head::SIDE && row < rows) {
    const head::Part p = head::merge(strips[threadIdx.x], strips[head::SIDE + threadIdx.x]);
    float *to = parts + (row * gridDim.y + blockIdx.y) * 3;
    to[0] = p.max, to[1] = p.sum, to[2] = p.weighted;
  }
}
SORFT_EXPORT(head_fwd_bf16)

// The sums of chunks of 2048 columns: a thread for each row and chunk. Grid: ceil(rows * chunks / 128).
extern "C" __global__ void __launch_bounds__(128)
head_chunk_sums_f32(float *__restrict__ sums, const float *__restrict__ parts, i32 rows, i32 chunks, i32 tiles) {
  ptx::begin_after_earlier_launches(parts);
  const i64 at = (i64)blockIdx.x * 128 + threadIdx.x;
  if (at >= (i64)rows * chunks) return;
  const i64 row = at / chunks;
  const int first = (int)(at % chunks) * (head::CHUNK / head::SIDE), end = min(first + head::CHUNK / head::SIDE, tiles);
  head::Part p = {head::nothing(), 0.0f, 0.0f};
  for (int i = first; i < end; i++) {
    const float *part = parts + (row * tiles + i) * 3;
    p = head::merge(p, {part[0], part[1], part[2]});
  }
  float *to = sums + at * 3;
  to[0] = p.max, to[1] = p.sum, to[2] = p.weighted;
}
SORFT_EXPORT(head_chunk_sums_f32)

// softmax [rows, 3] f64: MAX, SUM and the weighted sum of a row, its chunks one after another. Grid: ceil(rows / 128).
extern "C" __global__ void __launch_bounds__(128)
head_softmax_f64(double *__restrict__ softmax, const float *__restrict__ sums, i32 rows, i32 chunks) {
  const i64 row = (i64)blockIdx.x * 128 + threadIdx.x;
  if (row >= rows) return;
  const float *own = sums + 3 * row * chunks;
  double max = (double)head::nothing(), sum = 0.0, weighted = 0.0;
  for (int c = 0; c < chunks; c++) max = (double)own[3 * c] > max ? (double)own[3 * c] : max;
  for (int c = 0; c < chunks; c++) {
    const double shift = (double)own[3 * c] - max;
    sum += row_softmax::mass(own[3 * c], own[3 * c + 1], max);
    weighted += row_softmax::exp_f64(shift) * ((double)own[3 * c + 2] + (double)own[3 * c + 1] * shift);
  }
  double *to = softmax + 3 * row;
  to[0] = max, to[1] = sum, to[2] = weighted;
}
SORFT_EXPORT(head_softmax_f64)

// dz of columns first.. of the vocabulary. Grid: (ceil(rows / 128), ceil(width / 128)). Dynamic shared memory: 96 KiB.
extern "C" __global__ void __launch_bounds__(256, 1)
head_dz_bf16(bf16 *__restrict__ dz, const bf16 *__restrict__ h, const bf16 *__restrict__ w, const float *__restrict__ temperature,
             const u32 *__restrict__ targets, const float *__restrict__ seeds, i32 rows, i32 vocab, i32 k, i32 first, i32 width) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = {(int)blockIdx.x * head::SIDE, first + (int)blockIdx.y * head::SIDE};
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, true>(total, shared, {h, rows, k}, {w, vocab, k}, at, k);
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) {
    const head::Row r = head::row_of(i);
    if (r.row >= rows) continue;
    const head::RowGradient gradient(temperature, targets, seeds, r.row);
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      const int column = head::column_of(at.column, j);
      if (column >= first + width) continue;
      const float lo = gradient.at(total[r.half][j][2 * r.pair], column), hi = gradient.at(total[r.half][j][2 * r.pair + 1], column + 1);
      store_vec(dz + (i64)r.row * width + (column - first), to_bf16x2(lo, hi));
    }
  }
}
SORFT_EXPORT(head_dz_bf16)

// dh [rows, K] += dz [rows, width] w [width, K]. Grid: (ceil(rows / 128), ceil(K / 128)). Dynamic shared memory: 96 KiB.
extern "C" __global__ void __launch_bounds__(256, 1)
head_dh_f32(float *__restrict__ dh, const bf16 *__restrict__ dz, const bf16 *__restrict__ w, i32 rows, i32 width, i32 k) {
  SORFT_DYN_SMEM(bf16, shared);
  const linear::Place at = linear::own_place();
  linear::Sums total;
  linear::clear(total);
  linear::each_pair(total, at, rows, k, [=](i64 row, int column, float &lo, float &hi) {
    const float2 before = load_vec<float2>(dh + row * k + column);
    lo = before.x, hi = before.y;
  });
  linear::add_product<true, false>(total, shared, {dz, rows, width}, {w, k, k}, at, width);
  linear::each_pair(total, at, rows, k, [=](i64 row, int column, float lo, float hi) { store_vec(dh + row * k + column, float2{lo, hi}); });
}
SORFT_EXPORT(head_dh_f32)
