// linear.cuh - products of matrices by tensor cores, for linear.cu and head.cu: 128 x 128 outputs a block, operands in chunks of 64 terms.
//
// A sum is one chain: products of 16 terms on the tensor cores, one after another in the order of the terms (docs/exactness.md). So a number
// depends on its row of one side and its row of the other alone, not on how many rows there are, nor on which are in the block.
#pragma once

namespace linear {

constexpr int SIDE = 128, CHUNK = 64, THREADS = 256, STAGES = 3;
constexpr int TILE = SIDE * CHUNK;

// One side of a product. By rows: the contraction's terms lie one after another, [outer, terms]; by columns: [terms, outer].
struct Operand {
  const bf16 *numbers;
  int outer, stride;
};

// Which terms a chunk has: count of them, at most 64.
struct Chunk {
  int first, count;
};

// The chunks of a table [count, 2]: first term, how many.
struct ChunkTable {
  const u32 *table;
  __device__ __forceinline__ Chunk operator()(int c) const { return {(int)table[2 * c], (int)table[2 * c + 1]}; }
};

// A chunk's terms of 128 rows (or columns) first.. to a tile; zeros outside.
template <bool BY_ROWS>
__device__ __forceinline__ void copy_tile(bf16 *to, const Operand &o, int first, Chunk chunk) {
  constexpr int WIDTH = BY_ROWS ? CHUNK : SIDE;
  SORFT_UNROLL
  for (int i = 0; i < TILE / 8 / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, row = at / (WIDTH / 8), column = at % (WIDTH / 8) * 8;
    const int term = BY_ROWS ? column : row;
    const int outer = first + (BY_ROWS ? row : column);
    const bool valid = term < chunk.count && outer < o.outer;
    const i64 from = BY_ROWS ? (i64)outer * o.stride + (chunk.first + term) : (i64)(chunk.first + term) * o.stride + outer;
    ptx::cp_async(to + tile::place<WIDTH>(row, column / 8), valid ? o.numbers + from : o.numbers, valid);
  }
}

// A warp's 32 x 64 outputs: two times 16 rows.
using Sums = float[2][8][4];

__device__ __forceinline__ void clear(Sums &total) {
  tile::clear(total[0]);
  tile::clear(total[1]);
}

// total += factor sum.
__device__ __forceinline__ void add_scaled(Sums &total, float factor, const Sums &sum) {
  SORFT_UNROLL
  for (int half = 0; half < 2; half++) {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) total[half][j][e] += factor * sum[half][j][e];
    }
  }
}

// sum *= factor.
__device__ __forceinline__ void scale(Sums &sum, float factor) {
  SORFT_UNROLL
  for (int half = 0; half < 2; half++) {
    SORFT_UNROLL
    for (int j = 0; j < 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) sum[half][j][e] *= factor;
    }
  }
}

// sum += rows (or columns) row.. of `a` times columns column.. of `b`, over a chunk.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void multiply(Sums &sum, const bf16 *a, int row, const bf16 *b, int column) {
  SORFT_UNROLL
  for (int k = 0; k < CHUNK / 16; k++) {
    u32 x[2][4];
    SORFT_UNROLL
    for (int half = 0; half < 2; half++) {
      if (A_BY_ROWS) tile::load_a<CHUNK>(x[half], a, row + 16 * half, k);
      else tile::load_a_columns<SIDE>(x[half], a, 16 * k, row / 8 + 2 * half);
    }
    SORFT_UNROLL
    for (int j = 0; j < 8; j += 2) {
      u32 y[4];
      if (B_BY_ROWS) tile::load_b_rows<CHUNK>(y, b, column + 8 * j, k);
      else tile::load_b<SIDE>(y, b, 16 * k, column / 8 + j);
      SORFT_UNROLL
      for (int half = 0; half < 2; half++) {
        ptx::mma(sum[half][j], x[half], y[0], y[1]);
        ptx::mma(sum[half][j + 1], x[half], y[2], y[3]);
      }
    }
  }
}

// Which 128 rows of `a` and of `b` a block multiplies.
struct Place {
  int row, column;
};

// The block's own by its index, where the grid is that of the outputs.
__device__ __forceinline__ Place own_place() { return {(int)blockIdx.x * SIDE, (int)blockIdx.y * SIDE}; }

// Calls use(stage) for each chunk of a and b, once it lies in shared memory for all; `chunk_at` tells its terms.
template <bool A_BY_ROWS, bool B_BY_ROWS, class ChunkAt, class Use>
__device__ __forceinline__ void each_chunk(bf16 *shared, const Operand &a, const Operand &b, Place at, int chunks, const ChunkAt &chunk_at,
                                           const Use &use) {
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
    use(shared + c % STAGES * 2 * TILE);
  }
  ptx::cp_async_wait<0>();
}

// sum += a b, chunk after chunk.
template <bool A_BY_ROWS, bool B_BY_ROWS, class ChunkAt>
__device__ __forceinline__ void add_product(Sums &sum, bf16 *shared, const Operand &a, const Operand &b, Place at, int chunks,
                                            const ChunkAt &chunk_at) {
  const int warp = threadIdx.x / 32, row = warp / 2 * 32, column = warp % 2 * 64;
  each_chunk<A_BY_ROWS, B_BY_ROWS>(shared, a, b, at, chunks, chunk_at,
                                   [&](const bf16 *stage) { multiply<A_BY_ROWS, B_BY_ROWS>(sum, stage, row, stage + TILE, column); });
}

// The same over terms 0..terms.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void add_product(Sums &sum, bf16 *shared, const Operand &a, const Operand &b, Place at, int terms) {
  const auto chunk_at = [terms](int c) { return Chunk{c * CHUNK, min(CHUNK, terms - c * CHUNK)}; };
  add_product<A_BY_ROWS, B_BY_ROWS>(sum, shared, a, b, at, (terms + CHUNK - 1) / CHUNK, chunk_at);
}

// Calls put(row, column, sums of that column and the next) for the block's outputs inside [m, n].
template <class Put>
__device__ __forceinline__ void each_pair(Sums &total, Place at, int m, int n, const Put &put) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  SORFT_UNROLL
  for (int half = 0; half < 2; half++) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int row = at.row + warp / 2 * 32 + half * 16 + r * 8 + lane / 4;
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        const int column = at.column + warp % 2 * 64 + 8 * j + lane % 4 * 2;
        if (row < m && column < n) put(row, column, total[half][j][2 * r], total[half][j][2 * r + 1]);
      }
    }
  }
}

}  // namespace linear
