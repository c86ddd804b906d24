// linear_few.cu - linear.cu's forward product for few rows, as decoding has them: small tiles, so that many blocks share the reading of w.
//
//   y = bf16(x w' + scale s b' + bias)
//
// Shapes as in linear.cu: x [M, K], w [N, K], y [M, N], bias [N], s [M, R], b [N, R] bf16. Without an adapter s is null. K, N and R are multiples of 8.
//
// Order of sums: linear.cu's, the same bits. A tile is 16 x 16 outputs for one warp (up to 16 rows), or 64 x 32 for two: what bounds few rows is
// reading w, so a block has seven chunks of 64 terms on the way at any time. Bytes: 2 N K, and 2 M K for each column of tiles.
// Floor at 4.3 TB/s for N = 4864, K = 896: 2 us. Not measured on a chip yet.
#include "sorft.cuh"
#include "linear.cuh"

namespace linear_few {

using linear::CHUNK;
using linear::Operand;
constexpr int STAGES = 8;

// COUNT rows first.. of an operand, terms term..term + 64, to a tile; zeros outside.
template <int COUNT, int THREADS>
__device__ __forceinline__ void copy_rows(bf16 *to, const Operand &o, int first, int term, int terms) {
  SORFT_UNROLL
  for (int i = 0; i < COUNT * (CHUNK / 8) / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, row = at / (CHUNK / 8), chunk = at % (CHUNK / 8);
    const bool valid = term + 8 * chunk < terms && first + row < o.outer;
    ptx::cp_async(to + tile::place<CHUNK>(row, chunk), valid ? o.numbers + (i64)(first + row) * o.stride + (term + 8 * chunk) : o.numbers, valid);
  }
}

// One warp's sums: ROWS x 16 outputs.
template <int ROWS>
using Sums = float[ROWS / 16][2][4];

// sum += rows row.. of `a` times rows column.. of `b` over terms 0..terms.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void add_product(Sums<ROWS> &sum, bf16 *shared, const Operand &a, const Operand &b, int row, int column, int terms) {
  constexpr int THREADS = 2 * COLUMNS, STAGE = (ROWS + COLUMNS) * CHUNK;
  const int chunks = (terms + CHUNK - 1) / CHUNK, warp = threadIdx.x / 32;
  const auto copy = [&](int c) {
    if (c < chunks) {
      bf16 *stage = shared + c % STAGES * STAGE;
      copy_rows<ROWS, THREADS>(stage, a, row, c * CHUNK, terms);
      copy_rows<COLUMNS, THREADS>(stage + ROWS * CHUNK, b, column, c * CHUNK, terms);
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
    const bf16 *stage = shared + c % STAGES * STAGE;
    SORFT_UNROLL
    for (int k = 0; k < CHUNK / 16; k++) {
      u32 y[4];
      tile::load_b_rows<CHUNK>(y, stage + ROWS * CHUNK, 16 * warp, k);
      SORFT_UNROLL
      for (int i = 0; i < ROWS / 16; i++) {
        u32 x[4];
        tile::load_a<CHUNK>(x, stage, 16 * i, k);
        ptx::mma(sum[i][0], x, y[0], y[1]);
        ptx::mma(sum[i][1], x, y[2], y[3]);
      }
    }
  }
  ptx::cp_async_wait<0>();
}

struct Arguments {
  const bf16 *x, *w, *bias, *s, *b;
  int m, n, k, rank;
  float scale;
};

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void forward(bf16 *y, const Arguments &a) {
  SORFT_DYN_SMEM(bf16, shared);
  const int row = (int)blockIdx.y * ROWS, column = (int)blockIdx.x * COLUMNS;
  Sums<ROWS> sum;
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) tile::clear(sum[i]);
  if (a.s) {
    add_product<ROWS, COLUMNS>(sum, shared, {a.s, a.m, a.rank}, {a.b, a.n, a.rank}, row, column, a.rank);
    SORFT_UNROLL
    for (int i = 0; i < ROWS / 16; i++) {
      SORFT_UNROLL
      for (int e = 0; e < 8; e++) sum[i][e / 4][e % 4] *= a.scale;
    }
  }
  add_product<ROWS, COLUMNS>(sum, shared, {a.x, a.m, a.k}, {a.w, a.n, a.k}, row, column, a.k);
  const int lane = threadIdx.x % 32;
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) {
    SORFT_UNROLL
    for (int j = 0; j < 2; j++) {
      SORFT_UNROLL
      for (int r = 0; r < 2; r++) {
        const int at_row = row + 16 * i + 8 * r + lane / 4, at_column = column + threadIdx.x / 32 * 16 + 8 * j + lane % 4 * 2;
        if (at_row >= a.m || at_column >= a.n) continue;
        float lo = sum[i][j][2 * r], hi = sum[i][j][2 * r + 1];
        if (a.bias) lo += to_f32(a.bias[at_column]), hi += to_f32(a.bias[at_column + 1]);
        store_vec(y + (i64)at_row * a.n + at_column, to_bf16x2(lo, hi));
      }
    }
  }
}

}  // namespace linear_few

// Grid: (ceil(N / columns of a tile), ceil(M / rows of a tile)). Dynamic shared memory: eight stages of a tile's operands.
#define LINEAR_FEW(ROWS, COLUMNS)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(2 * COLUMNS)                                                                              \
  linear_few_##ROWS##x##COLUMNS(bf16 *__restrict__ y, const bf16 *__restrict__ x, const bf16 *__restrict__ w,                            \
                                const bf16 *__restrict__ bias, const bf16 *__restrict__ s, const bf16 *__restrict__ b, i32 m, i32 n,     \
                                i32 k, i32 rank, float scale) {                                                                          \
    linear_few::forward<ROWS, COLUMNS>(y, {x, w, bias, s, b, m, n, k, rank, scale});                                                     \
  }                                                                                                                                      \
  SORFT_EXPORT(linear_few_##ROWS##x##COLUMNS)

LINEAR_FEW(16, 16)
LINEAR_FEW(64, 32)
