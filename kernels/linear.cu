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

namespace linear {

constexpr int SIDE = 128, CHUNK = 64, THREADS = 256, STAGES = 3;
constexpr int TILE = SIDE * CHUNK;

// One side of a product. By rows: the contraction's terms lie one after another, [outer, terms]; by columns: [terms, outer].
struct Operand {
  const bf16 *numbers;
  i64 outer, stride;
};

// Which terms a chunk has: count of them, at most 64.
struct Chunk {
  i64 first;
  int count;
};

// A chunk's terms of 128 rows (or columns) first.. to a tile; zeros outside.
template <bool BY_ROWS>
__device__ __forceinline__ void copy_tile(bf16 *to, const Operand &o, i64 first, Chunk chunk) {
  constexpr int WIDTH = BY_ROWS ? CHUNK : SIDE;
  SORFT_UNROLL
  for (int i = 0; i < TILE / 8 / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, row = at / (WIDTH / 8), column = at % (WIDTH / 8) * 8;
    const int term = BY_ROWS ? column : row;
    const i64 outer = first + (BY_ROWS ? row : column);
    const bool valid = term < chunk.count && outer < o.outer;
    const i64 from = BY_ROWS ? outer * o.stride + chunk.first + term : (chunk.first + term) * o.stride + outer;
    ptx::cp_async(to + tile::place<WIDTH>(row, column / 8), valid ? o.numbers + from : o.numbers, valid);
  }
}

// sum [16, 64] = rows (or columns) row.. of `a` times columns column.. of `b`, over a chunk.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void multiply(float (&sum)[8][4], const bf16 *a, int row, const bf16 *b, int column) {
  tile::clear(sum);
  SORFT_UNROLL
  for (int k = 0; k < CHUNK / 16; k++) {
    u32 x[4];
    if (A_BY_ROWS) tile::load_a<CHUNK>(x, a, row, k);
    else tile::load_a_columns<SIDE>(x, a, 16 * k, row / 8);
    SORFT_UNROLL
    for (int j = 0; j < 8; j += 2) {
      u32 y[4];
      if (B_BY_ROWS) tile::load_b_rows<CHUNK>(y, b, column + 8 * j, k);
      else tile::load_b<SIDE>(y, b, 16 * k, column / 8 + j);
      ptx::mma(sum[j], x, y[0], y[1]);
      ptx::mma(sum[j + 1], x, y[2], y[3]);
    }
  }
}

// A warp's 32 x 64 outputs: two times 16 rows.
using Sums = float[2][8][4];

// total += factor a b, chunk after chunk: `chunk_at` tells the terms of each.
template <bool A_BY_ROWS, bool B_BY_ROWS, class ChunkAt>
__device__ __forceinline__ void add_product(Sums &total, bf16 *shared, const Operand &a, const Operand &b, int chunks, float factor,
                                            const ChunkAt &chunk_at) {
  const int warp = threadIdx.x / 32, row = warp / 2 * 32, column = warp % 2 * 64;
  const auto copy = [&](int c) {
    if (c < chunks) {
      bf16 *stage = shared + c % STAGES * 2 * TILE;
      copy_tile<A_BY_ROWS>(stage, a, (i64)blockIdx.x * SIDE, chunk_at(c));
      copy_tile<B_BY_ROWS>(stage + TILE, b, (i64)blockIdx.y * SIDE, chunk_at(c));
    }
    ptx::cp_async_commit();  // also of nothing, so that groups are counted in chunks
  };
  __syncthreads();  // an earlier product has left the stages
  SORFT_UNROLL
  for (int c = 0; c < STAGES - 1; c++) copy(c);
  for (int c = 0; c < chunks; c++) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();  // chunk c has landed for all, and all have left the stage that is filled next
    copy(c + STAGES - 1);
    const bf16 *stage = shared + c % STAGES * 2 * TILE;
    SORFT_UNROLL
    for (int half = 0; half < 2; half++) {
      float sum[8][4];
      multiply<A_BY_ROWS, B_BY_ROWS>(sum, stage, row + 16 * half, stage + TILE, column);
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        SORFT_UNROLL
        for (int e = 0; e < 4; e++) total[half][j][e] += factor * sum[j][e];
      }
    }
  }
  ptx::cp_async_wait<0>();
}

// The same over terms 0..terms.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void add_product(Sums &total, bf16 *shared, const Operand &a, const Operand &b, int terms, float factor) {
  const auto chunk_at = [terms](int c) { return Chunk{(i64)c * CHUNK, min(CHUNK, terms - c * CHUNK)}; };
  add_product<A_BY_ROWS, B_BY_ROWS>(total, shared, a, b, (terms + CHUNK - 1) / CHUNK, factor, chunk_at);
}

// Calls put(row, column, sums of that column and the next) for the block's outputs inside [m, n].
template <class Put>
__device__ __forceinline__ void each_pair(Sums &total, i64 m, i64 n, const Put &put) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  SORFT_UNROLL
  for (int half = 0; half < 2; half++) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const i64 row = (i64)blockIdx.x * SIDE + warp / 2 * 32 + half * 16 + r * 8 + lane / 4;
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        const i64 column = (i64)blockIdx.y * SIDE + warp % 2 * 64 + 8 * j + lane % 4 * 2;
        if (row < m && column < n) put(row, column, total[half][j][2 * r], total[half][j][2 * r + 1]);
      }
    }
  }
}

__device__ __forceinline__ void clear(Sums &total) {
  tile::clear(total[0]);
  tile::clear(total[1]);
}

}  // namespace linear

// Grids: (ceil(rows / 128), ceil(columns / 128)) of the output. Dynamic shared memory: 96 KiB.

extern "C" __global__ void __launch_bounds__(256)
linear_fwd_bf16(bf16 *__restrict__ y, const bf16 *__restrict__ x, const bf16 *__restrict__ w, const bf16 *__restrict__ bias,
                const bf16 *__restrict__ s, const bf16 *__restrict__ b, i32 m, i32 n, i32 k, i32 rank, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, true>(total, shared, {x, m, k}, {w, n, k}, k, 1.0f);
  if (s) linear::add_product<true, true>(total, shared, {s, m, rank}, {b, n, rank}, rank, scale);
  linear::each_pair(total, m, n, [=](i64 row, i64 column, float lo, float hi) {
    if (bias) lo += to_f32(bias[column]), hi += to_f32(bias[column + 1]);
    store_vec(y + row * n + column, to_bf16x2(lo, hi));
  });
}
SORFT_EXPORT(linear_fwd_bf16)

extern "C" __global__ void __launch_bounds__(256)
linear_dx_bf16(bf16 *__restrict__ dx, const bf16 *__restrict__ dy, const bf16 *__restrict__ w, const bf16 *__restrict__ t,
               const bf16 *__restrict__ a, i32 m, i32 n, i32 k, i32 rank, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  linear::Sums total;
  linear::clear(total);
  linear::add_product<true, false>(total, shared, {dy, m, n}, {w, k, k}, n, 1.0f);
  if (t) linear::add_product<true, false>(total, shared, {t, m, rank}, {a, k, k}, rank, scale);
  linear::each_pair(total, m, k, [=](i64 row, i64 column, float lo, float hi) { store_vec(dx + row * k + column, to_bf16x2(lo, hi)); });
}
SORFT_EXPORT(linear_dx_bf16)

// dw [N, K] += scale dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(256)
linear_dw_f32(float *__restrict__ dw, const bf16 *__restrict__ dy, const bf16 *__restrict__ x, const u32 *__restrict__ chunks, i32 count, i32 n,
              i32 k, float scale) {
  SORFT_DYN_SMEM(bf16, shared);
  linear::Sums total;
  linear::clear(total);
  linear::each_pair(total, n, k, [=](i64 row, i64 column, float &lo, float &hi) {
    const float2 before = load_vec<float2>(dw + row * k + column);
    lo = before.x, hi = before.y;
  });
  const auto chunk_at = [chunks](int c) { return linear::Chunk{(i64)chunks[2 * c], (int)chunks[2 * c + 1]}; };
  linear::add_product<false, false>(total, shared, {dy, n, n}, {x, k, k}, count, scale, chunk_at);
  linear::each_pair(total, n, k, [=](i64 row, i64 column, float lo, float hi) { store_vec(dw + row * k + column, float2{lo, hi}); });
}
SORFT_EXPORT(linear_dw_f32)
