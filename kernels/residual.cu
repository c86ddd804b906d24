// residual.cu - sums and roundings of activations: gradients that meet, the bias's gradient, f32 to bf16.
//
//   add      x = bf16(x + y)                                       x, y [n] bf16
//   round    y = bf16(x)                                           x [n] f32, y [n] bf16
//   bias     db_n = db_n + (sum over chunk c of dy_tn), c = 0, 1, ..   dy [T, N] bf16, db [N] f32, bounds [chunks + 1]
//
// Order of sums. The bias's gradient: a thread adds its column's tokens of a chunk one after another, then the chunks' sums in order; chunks never
// cross a tree, so cutting a batch between trees changes no bit.
//
// Bytes: add 6 n, round 6 n, bias 2 T N. At 4.3 TB/s and n = 16384 x 4096: 94 us.
#include "sorft.cuh"

// Numbers of a block of 256 threads: 8 each. Grid: ceil(n / 2048).
extern "C" __global__ void __launch_bounds__(256) add_bf16(bf16 *__restrict__ x, const bf16 *__restrict__ y, i64 n) {
  const i64 first = ((i64)blockIdx.x * 256 + threadIdx.x) * VEC;
  if (first >= n) return;
  const int count = (int)min(n - first, (i64)VEC);
  Vec8 a = load8(x + first, 0, count, count == VEC);
  const Vec8 b = load8(y + first, 0, count, count == VEC);
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) a.v[j] += b.v[j];
  store8(x + first, a, 0, count, count == VEC);
}
SORFT_EXPORT(add_bf16)

// Grid: ceil(n / 2048).
extern "C" __global__ void __launch_bounds__(256) round_bf16(bf16 *__restrict__ y, const float *__restrict__ x, i64 n) {
  const i64 first = ((i64)blockIdx.x * 256 + threadIdx.x) * VEC;
  if (first >= n) return;
  const int count = (int)min(n - first, (i64)VEC);
  Vec8 v;
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) v.v[j] = j < count ? x[first + j] : 0.0f;
  store8(y + first, v, 0, count, count == VEC);
}
SORFT_EXPORT(round_bf16)

// A thread for each column. Grid: ceil(N / 64).
extern "C" __global__ void __launch_bounds__(64)
bias_bwd_f32(float *__restrict__ db, const bf16 *__restrict__ dy, const u32 *__restrict__ bounds, i32 chunks, i32 cols) {
  const int column = blockIdx.x * 64 + threadIdx.x;
  if (column >= cols) return;
  float total = db[column];
  for (int c = 0; c < chunks; c++) {
    float sum = 0.0f;
    for (u32 t = bounds[c]; t < bounds[c + 1]; t++) sum += to_f32(dy[(i64)t * cols + column]);
    total += sum;
  }
  db[column] = total;
}
SORFT_EXPORT(bias_bwd_f32)
