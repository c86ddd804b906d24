// tile.cuh - 64-row tiles of bf16 in shared memory, and their fragments for tensor cores. Part of sorft.cuh; not to be included alone.
//
// A tile is [rows, D] with its 16-byte chunks swizzled, so that the eight rows which one phase of ldmatrix reads lie in different banks.
// Fragment layouts are those of mma.m16n8k16: in lane 4g + t an accumulator's four numbers are rows g, g, g + 8, g + 8 and columns 2t, 2t + 1.
#pragma once

namespace tile {

constexpr int ROWS = 64;
constexpr int THREADS = 128;  // four warps of 16 rows
constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Where the chunk of eight columns 8 * chunk.. of a row lies, in elements.
template <int D>
__device__ __forceinline__ int place(int row, int chunk) {
  static_assert(D == 32 || D == 64 || D == 96 || D == 128, "the swizzle is made for these widths");
  // Rows of 128 or 256 bytes all start in bank 0; rows of 192 (or 64) bytes start in banks 0 and 16 by turns.
  const int turn = D % 64 == 0 ? row & 7 : row >> 1 & 3;
  return row * D + ((chunk ^ turn) << 3);
}

// A [16, 16] from rows row.. and columns 16 k.. of a tile.
template <int D>
__device__ __forceinline__ void load_a(u32 (&a)[4], const bf16 *t, int row, int k) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix(a, t + place<D>(row + lane % 16, 2 * k + lane / 16));
}

// B [16, 16] whose columns are rows row.. of a tile, over the tile's columns 16 k..: for products with a transposed tile. b[0], b[1] belong
// to the first eight columns, b[2], b[3] to the others.
template <int D>
__device__ __forceinline__ void load_b_rows(u32 (&b)[4], const bf16 *t, int row, int k) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix(b, t + place<D>(row + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}

// B [16, 16] from rows row.. and columns 8 chunk.. of a tile.
template <int D>
__device__ __forceinline__ void load_b(u32 (&b)[4], const bf16 *t, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_trans(b, t + place<D>(row + lane % 16, chunk + lane / 16));
}

// A [16, 16] whose rows are columns 8 chunk.. of a tile, over the tile's rows row..: the left operand of a product with a transposed tile.
template <int D>
__device__ __forceinline__ void load_a_columns(u32 (&a)[4], const bf16 *t, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  ptx::ldmatrix_trans(a, t + place<D>(row + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2));
}

template <int N>
__device__ __forceinline__ void clear(float (&c)[N][4]) {
  SORFT_UNROLL
  for (int j = 0; j < N; j++) {
    SORFT_UNROLL
    for (int e = 0; e < 4; e++) c[j][e] = 0.0f;
  }
}

// c [16, 8 N] += rows row.. of `a` times the transpose of rows from.. of `b`: N / 2 times 16 rows.
template <int D, int N>
__device__ __forceinline__ void multiply_transposed(float (&c)[N][4], const bf16 *a, int row, const bf16 *b, int from) {
  SORFT_UNROLL
  for (int k = 0; k < D / 16; k++) {
    u32 x[4];
    load_a<D>(x, a, row, k);
    SORFT_UNROLL
    for (int j = 0; j < N; j += 2) {
      u32 y[4];
      load_b_rows<D>(y, b, from + 8 * j, k);
      ptx::mma(c[j], x, y[0], y[1]);
      ptx::mma(c[j + 1], x, y[2], y[3]);
    }
  }
}

// c [16, D] += bf16(p) [16, 8 N] times rows from.. of `b`: an accumulator's layout is that of a left operand.
template <int D, int N>
__device__ __forceinline__ void multiply_accumulator(float (&c)[D / 8][4], const float (&p)[N][4], const bf16 *b, int from) {
  SORFT_UNROLL
  for (int k = 0; k < N / 2; k++) {
    const float(&lo)[4] = p[2 * k], (&hi)[4] = p[2 * k + 1];
    const u32 x[4] = {ptx::cvt_bf16x2(lo[0], lo[1]), ptx::cvt_bf16x2(lo[2], lo[3]), ptx::cvt_bf16x2(hi[0], hi[1]),
                      ptx::cvt_bf16x2(hi[2], hi[3])};
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j += 2) {
      u32 y[4];
      load_b<D>(y, b, from + 16 * k, j);
      ptx::mma(c[j], x, y[0], y[1]);
      ptx::mma(c[j + 1], x, y[2], y[3]);
    }
  }
}

// Starts copying `rows` rows of D numbers, which lie one after another, to a tile of 64; zeros from row `rows` on.
template <int D>
__device__ __forceinline__ void copy_rows(bf16 *to, const bf16 *from, int rows) {
  constexpr int CHUNKS = D / 8;
  SORFT_UNROLL
  for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
    ptx::cp_async(to + place<D>(row, chunk), row < rows ? from + row * D + chunk * 8 : from, row < rows);
  }
}

}  // namespace tile
