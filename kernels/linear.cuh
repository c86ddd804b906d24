// linear.cuh - products of matrices by tensor cores, for linear.cu and head.cu: 128 x 128 outputs a block, the contraction in chunks of 64 terms.
//
// A chunk is four products of 16 terms on the tensor cores, from zero, and chunk sums are added in order (docs/exactness.md). So a number
// depends on its row of one side and its row of the other alone, not on how many rows there are, nor on which are in the block.
#pragma once

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

// Which 128 rows of `a` and of `b` a block multiplies.
struct Place {
  i64 row, column;
};

// The block's own by its index, where the grid is that of the outputs.
__device__ __forceinline__ Place own_place() { return {(i64)blockIdx.x * SIDE, (i64)blockIdx.y * SIDE}; }

// total += factor a b, chunk after chunk: `chunk_at` tells the terms of each.
template <bool A_BY_ROWS, bool B_BY_ROWS, class ChunkAt>
__device__ __forceinline__ void add_product(Sums &total, bf16 *shared, const Operand &a, const Operand &b, Place at, int chunks, float factor,
                                            const ChunkAt &chunk_at) {
  const int warp = threadIdx.x / 32, row = warp / 2 * 32, column = warp % 2 * 64;
  const auto copy = [&](int c) {
    if (c < chunks) {
      bf16 *stage = shared + c % STAGES * 2 * TILE;
      copy_tile<A_BY_ROWS>(stage, a, at.row, chunk_at(c));
      copy_tile<B_BY_ROWS>(stage + TILE, b, at.column, chunk_at(c));
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
__device__ __forceinline__ void add_product(Sums &total, bf16 *shared, const Operand &a, const Operand &b, Place at, int terms, float factor) {
  const auto chunk_at = [terms](int c) { return Chunk{(i64)c * CHUNK, min(CHUNK, terms - c * CHUNK)}; };
  add_product<A_BY_ROWS, B_BY_ROWS>(total, shared, a, b, at, (terms + CHUNK - 1) / CHUNK, factor, chunk_at);
}

// Calls put(row, column, sums of that column and the next) for the block's outputs inside [m, n].
template <class Put>
__device__ __forceinline__ void each_pair(Sums &total, Place at, i64 m, i64 n, const Put &put) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  SORFT_UNROLL
  for (int half = 0; half < 2; half++) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const i64 row = at.row + warp / 2 * 32 + half * 16 + r * 8 + lane / 4;
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        const i64 column = at.column + warp % 2 * 64 + 8 * j + lane % 4 * 2;
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

