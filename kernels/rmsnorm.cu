// rmsnorm.cu - RMSNorm (Zhang and Sennrich 2019), forward and backward, with the residual addition before it and its gradient after it.
//
//   forward    h = bf16(x + residual)                         (h = x where there is no residual)
//              rstd = 1 / sqrt(mean(h^2) + eps)
//              y = bf16(h * rstd * w)
//   backward   dx = bf16(rstd * (dy w - h rstd^2 mean(dy w h)))   (then dx = bf16(dx + d_residual), where there is one)
//              dw += sum over rows of dy h rstd
//
// Shapes: x, residual, h, y, dy, dx, d_residual [rows, cols] bf16; w [cols] bf16; rstd [rows] f32; dw [cols] f32. Sums are f32. What is
// rounded to bf16 is what the lines above say and nothing else, so that the fused variants give the bits of the separate ops.
//
// Order of sums. A row belongs to a team of TEAM threads; thread t sums the vectors t, t + TEAM, ... of 8 neighbouring columns in order, then
// a fixed tree over the team. TEAM follows from the width, so a row's bits do not depend on the other rows. dw is summed over chunks of rows
// that never cross a tree of the batch: inside a chunk PARTS row sums in order, those in order, and the chunks one after another onto dw. So
// cutting a batch between two trees changes no bit.
//
// Bytes moved and floors at N rows of H columns (H200: 4.3 TB/s measured copy):
//   forward 4NH (+4NH with the residual), backward 6NH for dx (+2NH with d_residual); dw reads 4NH and writes 4H a chunk of rows. A row is
//   read again from L1 for the second pass. At 16384 x 2048: forward 31 us, dx 47 us, dw 31 us.
#include "sorft.cuh"
#include "rmsnorm.cuh"

namespace rmsnorm {

constexpr int WARP_ROWS = 4;  // rows of a block whose teams are warps
constexpr int BLOCK = 256;    // threads of a block whose team is the block
constexpr int PARTS = 8;      // row sums of a chunk that are formed side by side for dw

// The threads that share one row, and which row it is. A whole team has the same `live`; teams of warps past the last row idle.
template <int TEAM>
struct Team {
  static constexpr int WARPS = TEAM / 32;
  i64 row;
  int rank;

  __device__ __forceinline__ Team() {
    row = TEAM == 32 ? (i64)blockIdx.x * WARP_ROWS + threadIdx.x / 32 : (i64)blockIdx.x;
    rank = threadIdx.x % TEAM;
  }

  __device__ __forceinline__ float sum(float v, float *scratch) const {
    if constexpr (TEAM == 32) return warp_sum(v);
    else return block_sum<WARPS>(v, scratch);
  }
};

template <int TEAM>
__device__ __forceinline__ void forward(bf16 *y, float *rstd, bf16 *h, const bf16 *x, const bf16 *residual, const bf16 *w, int rows, int cols,
                                        float eps) {
  SORFT_SMEM(float, scratch, Team<TEAM>::WARPS);
  const Team<TEAM> team;
  if (TEAM == 32 && team.row >= rows) return;  // a whole warp, and warps do not meet in this variant
  const bool whole = cols % VEC == 0;
  const i64 base = team.row * cols;
  float sum = 0.0f;
  for (int c = team.rank * VEC; c < cols; c += TEAM * VEC) {
    Vec8 v = load8(x + base, c, cols, whole);
    if (residual) {
      const Vec8 r = load8(residual + base, c, cols, whole);
      SORFT_UNROLL
      for (int j = 0; j < VEC; j++) v.v[j] += r.v[j];
      store8(h + base, v, c, cols, whole);
    }
    sum = add_squares(sum, v);
  }
  const float r = reciprocal_root(team.sum(sum, scratch), cols, eps);
  if (team.rank == 0) rstd[team.row] = r;
  const bf16 *normed = residual ? h : x;  // a thread reads back only what it wrote itself
  for (int c = team.rank * VEC; c < cols; c += TEAM * VEC) {
    Vec8 v = load8(normed + base, c, cols, whole);
    scale(v, r, load8(w, c, cols, whole));
    store8(y + base, v, c, cols, whole);
  }
}

template <int TEAM>
__device__ __forceinline__ void backward_dx(bf16 *dx, const bf16 *dy, const bf16 *h, const bf16 *w, const float *rstd, const bf16 *d_residual,
                                            int rows, int cols) {
  SORFT_SMEM(float, scratch, Team<TEAM>::WARPS);
  const Team<TEAM> team;
  if (TEAM == 32 && team.row >= rows) return;
  const bool whole = cols % VEC == 0;
  const i64 base = team.row * cols;
  float sum = 0.0f;
  for (int c = team.rank * VEC; c < cols; c += TEAM * VEC) {
    const Vec8 g = load8(dy + base, c, cols, whole), s = load8(w, c, cols, whole), v = load8(h + base, c, cols, whole);
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++) sum = fmaf(g.v[j] * s.v[j], v.v[j], sum);
  }
  const float mean = team.sum(sum, scratch) / (float)cols;
  const float r = rstd[team.row], k = r * r * mean;
  for (int c = team.rank * VEC; c < cols; c += TEAM * VEC) {
    const Vec8 g = load8(dy + base, c, cols, whole), s = load8(w, c, cols, whole), v = load8(h + base, c, cols, whole);
    Vec8 d;
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++) d.v[j] = r * (g.v[j] * s.v[j] - v.v[j] * k);
    if (d_residual) {
      const Vec8 q = load8(d_residual + base, c, cols, whole);
      SORFT_UNROLL
      for (int j = 0; j < VEC; j++) d.v[j] = to_f32(to_bf16(d.v[j])) + q.v[j];
    }
    store8(dx + base, d, c, cols, whole);
  }
}

}  // namespace rmsnorm

// A warp a row, four rows a block: narrow rows (a per-head norm). Grid: ceil(rows / 4).
extern "C" __global__ void __launch_bounds__(128)
rmsnorm_fwd_bf16_warp(bf16 *__restrict__ y, float *__restrict__ rstd, bf16 *h, const bf16 *__restrict__ x, const bf16 *__restrict__ residual,
                      const bf16 *__restrict__ w, i32 rows, i32 cols, float eps) {
  ptx::begin_after_earlier_launches(x, residual);
  rmsnorm::forward<32>(y, rstd, h, x, residual, w, rows, cols, eps);
}
SORFT_EXPORT(rmsnorm_fwd_bf16_warp)

// A block a row. Grid: rows.
extern "C" __global__ void __launch_bounds__(256)
rmsnorm_fwd_bf16_block(bf16 *__restrict__ y, float *__restrict__ rstd, bf16 *h, const bf16 *__restrict__ x, const bf16 *__restrict__ residual,
                       const bf16 *__restrict__ w, i32 rows, i32 cols, float eps) {
  ptx::begin_after_earlier_launches(x, residual);
  rmsnorm::forward<rmsnorm::BLOCK>(y, rstd, h, x, residual, w, rows, cols, eps);
}
SORFT_EXPORT(rmsnorm_fwd_bf16_block)

extern "C" __global__ void __launch_bounds__(128)
rmsnorm_bwd_dx_bf16_warp(bf16 *__restrict__ dx, const bf16 *__restrict__ dy, const bf16 *__restrict__ h, const bf16 *__restrict__ w,
                         const float *__restrict__ rstd, const bf16 *__restrict__ d_residual, i32 rows, i32 cols) {
  rmsnorm::backward_dx<32>(dx, dy, h, w, rstd, d_residual, rows, cols);
}
SORFT_EXPORT(rmsnorm_bwd_dx_bf16_warp)

extern "C" __global__ void __launch_bounds__(256)
rmsnorm_bwd_dx_bf16_block(bf16 *__restrict__ dx, const bf16 *__restrict__ dy, const bf16 *__restrict__ h, const bf16 *__restrict__ w,
                          const float *__restrict__ rstd, const bf16 *__restrict__ d_residual, i32 rows, i32 cols) {
  rmsnorm::backward_dx<rmsnorm::BLOCK>(dx, dy, h, w, rstd, d_residual, rows, cols);
}
SORFT_EXPORT(rmsnorm_bwd_dx_bf16_block)

// partial[chunk, cols]: the sum over the rows of each chunk of dy h rstd. Chunk i holds the rows bounds[i]..bounds[i + 1].
// Grid: (ceil(cols / 64), chunks); block: 8 vectors of columns x PARTS parts. Part p sums the rows p, p + PARTS, ... of the chunk in order.
// Dynamic shared memory: PARTS x 64 floats.
extern "C" __global__ void __launch_bounds__(64)
rmsnorm_bwd_dw_partial_bf16(float *__restrict__ partial, const bf16 *__restrict__ dy, const bf16 *__restrict__ h,
                            const float *__restrict__ rstd, const u32 *__restrict__ bounds, i32 cols) {
  using namespace rmsnorm;
  constexpr int COLUMNS = 64;
  SORFT_DYN_SMEM(float, parts);  // [PARTS][COLUMNS]
  const int part = threadIdx.x / (COLUMNS / VEC), local = threadIdx.x % (COLUMNS / VEC) * VEC;
  const int first = (int)blockIdx.x * COLUMNS + local;
  const bool whole = cols % VEC == 0;
  const i64 chunk = blockIdx.y, end = bounds[chunk + 1];
  Vec8 sum = {};
  if (first < cols) {
    for (i64 row = (i64)bounds[chunk] + part; row < end; row += PARTS) {
      const Vec8 g = load8(dy + row * cols, first, cols, whole), v = load8(h + row * cols, first, cols, whole);
      const float r = rstd[row];
      SORFT_UNROLL
      for (int j = 0; j < VEC; j++) sum.v[j] = fmaf(g.v[j], v.v[j] * r, sum.v[j]);
    }
  }
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) parts[part * COLUMNS + local + j] = sum.v[j];
  __syncthreads();
  const int c = (int)blockIdx.x * COLUMNS + (int)threadIdx.x;
  if (c >= cols) return;
  float total = 0.0f;
  SORFT_UNROLL
  for (int p = 0; p < PARTS; p++) total += parts[p * COLUMNS + threadIdx.x];
  partial[chunk * cols + c] = total;
}
SORFT_EXPORT(rmsnorm_bwd_dw_partial_bf16)

// dw[cols] += the chunks' sums, one after another. Grid: ceil(cols / 128).
extern "C" __global__ void __launch_bounds__(128)
rmsnorm_bwd_dw_sum(float *__restrict__ dw, const float *__restrict__ partial, i32 chunks, i32 cols) {
  const int c = (int)(blockIdx.x * 128 + threadIdx.x);
  if (c >= cols) return;
  float total = dw[c];
  for (int i = 0; i < chunks; i++) total += partial[(i64)i * cols + c];
  dw[c] = total;
}
SORFT_EXPORT(rmsnorm_bwd_dw_sum)
