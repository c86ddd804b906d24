// linear_hopper.cuh - products of matrices by TMA and wgmma, for linear_hopper.cu and head_hopper.cu: tiles of 128 x 256 outputs, operands in chunks of
// 64 terms.
//
// A sum is one chain: products of 16 terms, one after another in the order of the terms, as in linear.cuh.
//
// A block stays on its multiprocessor and takes every gridDim.x-th tile. Of its three warpgroups one copies, one thread of it: four stages of 64
// terms, each with a barrier that says it is full and one that says it is free; two multiply, 64 rows each, with one group of products under way
// while they wait for the next stage. So the copies of the next tile go on while this one is stored.
#pragma once
#include "hopper.cuh"

#if defined(SORFT_HOPPER)
namespace linear_hopper {

constexpr int ROWS = 128, COLUMNS = 256, CHUNK = 64, STAGES = 4, GROUP = 128;
constexpr int A_BYTES = ROWS * CHUNK * 2, B_BYTES = COLUMNS * CHUNK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
constexpr int BOX_BYTES = CHUNK * CHUNK * 2;  // of an operand by rows: 64 terms of 64 rows

// The two sides of a product: by terms a box is 64 terms of all the tile's rows; by rows, 64 rows of 64 terms.
struct Side {
  const TensorMap *a, *b;
};

struct Stages {
  u8 *memory;
  u64 *full, *free;
  int stage = 0;
  u32 parity = 0;

  __device__ __forceinline__ u8 *a() const { return memory + stage * STAGE_BYTES; }
  __device__ __forceinline__ u8 *b() const { return a() + A_BYTES; }
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

template <bool BY_ROWS, int COUNT>
__device__ __forceinline__ void load_side(u8 *to, const TensorMap &map, u64 *barrier, int first, int term) {
  if (!BY_ROWS) ptx::load_box(to, map, barrier, term, first);
  SORFT_UNROLL
  for (int i = 0; i < (BY_ROWS ? COUNT / 64 : 0); i++) ptx::load_box(to + i * BOX_BYTES, map, barrier, first + 64 * i, term);
}

// The copying thread's part of a chunk whose first term is `term`.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void load_chunk(Stages &s, const Side &side, int row, int column, int term) {
  ptx::wait(&s.free[s.stage], s.parity ^ 1);
  ptx::arrive_and_expect(&s.full[s.stage], STAGE_BYTES);
  load_side<A_BY_ROWS, ROWS>(s.a(), *side.a, &s.full[s.stage], row, term);
  load_side<B_BY_ROWS, COLUMNS>(s.b(), *side.b, &s.full[s.stage], column, term);
  s.next();
}

// A thread's sums of its warpgroup's 64 x 256 outputs: sum[j] are row lane / 4 (and + 8) of its warp's 16, columns 8 j + 2 (lane % 4) (and + 1).
using Sums = float[COLUMNS / 8][4];

// This warpgroup's part of a stage, `count` terms of which are meant.
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void multiply(Sums &sum, const Stages &s, int group, int count, bool keep) {
  u8 *a = s.a() + group * (A_BY_ROWS ? BOX_BYTES : 64 * CHUNK * 2);
  if (A_BY_ROWS && count < CHUNK) {
    // What follows a chunk of tokens belongs to another tree: here it counts for nothing.
    for (int i = count * 8 + threadIdx.x % GROUP; i < CHUNK * 8; i += GROUP) store_vec(a + 16 * i, uint4{0, 0, 0, 0});
    ptx::fence_async_proxy();
    ptx::named_barrier(1 + group, GROUP);
  }
  ptx::wgmma_fence();
  SORFT_UNROLL
  for (int k = 0; k < CHUNK / 16; k++) {
    // By terms 16 terms are 32 bytes of each row; by rows they are two times 8 lines of 128 bytes.
    const u64 from_a = ptx::describe(a + k * (A_BY_ROWS ? 2048 : 32), BOX_BYTES, 1024);
    const u64 from_b = ptx::describe(s.b() + k * (B_BY_ROWS ? 2048 : 32), BOX_BYTES, 1024);
    ptx::wgmma<A_BY_ROWS, B_BY_ROWS>(sum, from_a, from_b, keep || k > 0);
  }
  ptx::wgmma_commit();
}

// A multiplying warpgroup's part of a tile: sum (+)= a b over the chunks, count_of(c) terms of chunk c; what the first `scaled` chunks have come to
// is multiplied by scale.
template <bool A_BY_ROWS, bool B_BY_ROWS, class CountOf>
__device__ __forceinline__ void add_product(Sums &sum, Stages &s, int group, int chunks, bool keep, int scaled, float scale, const CountOf &count_of) {
  const bool speaks = threadIdx.x % 32 == 0;
  u64 *before = nullptr;
  for (int c = 0; c < chunks; c++, s.next()) {
    ptx::wait(&s.full[s.stage], s.parity);
    if (c == scaled && c > 0) {
      ptx::wgmma_wait<0>();
      SORFT_UNROLL
      for (int i = 0; i < COLUMNS / 2; i++) sum[i / 4][i % 4] *= scale;
    }
    multiply<A_BY_ROWS, B_BY_ROWS>(sum, s, group, count_of(c), keep || c > 0);
    ptx::wgmma_wait<1>();
    if (before && speaks) ptx::arrive(before);  // the products before these have read their stage
    before = &s.free[s.stage];
  }
  ptx::wgmma_wait<0>();
  if (before && speaks) ptx::arrive(before);
}

// Calls put(row, column, the sums of that column and the next) for this thread's outputs inside [m, n].
template <class Put>
__device__ __forceinline__ void each_pair(Sums &sum, int group, int row, int column, int m, int n, const Put &put) {
  const int lane = threadIdx.x % 32, first = row + 64 * group + threadIdx.x % GROUP / 32 * 16 + lane / 4;
  SORFT_UNROLL
  for (int j = 0; j < COLUMNS / 8; j++) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int at_row = first + 8 * r, at_column = column + 8 * j + lane % 4 * 2;
      if (at_row < m && at_column < n) put((i64)at_row, at_column, sum[j][2 * r], sum[j][2 * r + 1]);
    }
  }
}

// Runs the block: load(stages, row, column) for each of its tiles in the copying thread, compute(stages, group, row, column) in the warpgroups that
// multiply. Tiles of one column of tiles come one after another, so that blocks at work at a time share them.
template <class Load, class Compute>
__device__ __forceinline__ void each_tile(int m, int n, const Load &load, const Compute &compute) {
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full, STAGES);
  SORFT_SMEM(u64, free, STAGES);
  if (threadIdx.x == 0) {
    SORFT_UNROLL
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(&full[i], 1);
      ptx::barrier_init(&free[i], 2 * GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  __syncthreads();
  const int down = (m + ROWS - 1) / ROWS, tiles = down * ((n + COLUMNS - 1) / COLUMNS), group = threadIdx.x / GROUP;
  Stages stages{shared, full, free};
  if (group == 2) {
    ptx::give_registers<24>();  // 24 + 2 * 240 of a thread are the 3 * 168 that the block has
    if (threadIdx.x != 2 * GROUP) return;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) load(stages, t % down * ROWS, t / down * COLUMNS);
  } else {
    ptx::take_registers<240>();
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) compute(stages, group, t % down * ROWS, t / down * COLUMNS);
  }
}

__device__ __forceinline__ int chunks_of(int terms) { return (terms + CHUNK - 1) / CHUNK; }

}  // namespace linear_hopper
#endif
