// linear_hopper.cuh - products of matrices by TMA and wgmma, for linear_hopper.cu and head_hopper.cu: tiles of 128 x 256 outputs, operands in chunks of
// 64 terms.
//
// A sum is one chain: products of 16 terms, one after another in the order of the terms, as in linear.cuh.
//
// A block stays on its multiprocessor and takes tile after tile. Of its three warpgroups one copies, one thread of it: four stages of 64 terms, each with
// a barrier that says it is full and one that says it is free; two multiply, 64 rows each, with one group of products under way while they wait for the
// next stage. So the copies of the next tile go on while this one is stored.
//
// Two blocks may be a cluster (BLOCKS = 2): they take two tiles one below the other, which share 256 columns. Each loads its own 128 rows and half of the
// columns, and those for both; a stage is free when both blocks have left it. The products of a stage take 1024 cycles (128 x 256 x 64 at 2048 a cycle), so a
// block alone reads 48 bytes of L2 a cycle, 16 of rows and 32 of columns; of two, each reads 16 and 16. Not measured on a chip. Which of the two a
// shape gets, src/tensor/ops/matmul/cuda/hopper.rs says; no bit depends on it.
#pragma once
#include "hopper.cuh"

#if defined(SORFT_HOPPER)
namespace linear_hopper {

constexpr int ROWS = 128, COLUMNS = 256, CHUNK = 64, STAGES = 4, GROUP = 128;
constexpr int SIDE_BYTES = ROWS * CHUNK * 2, STAGE_BYTES = 3 * SIDE_BYTES;  // 128 rows, and two times 128 columns
constexpr int BOX_BYTES = CHUNK * CHUNK * 2;  // of an operand by rows: 64 terms of 64 rows; of outputs: 64 rows of 64 columns
static_assert(COLUMNS == 2 * ROWS, "a box by terms is either side's");

// Behind the stages each warpgroup that multiplies has two boxes for outputs of bf16: 4 x 48 + 2 x 2 x 8 = 224 KiB of the 227 that a block can have. (A tile's
// outputs are 64 KiB: room for all at once would cost a stage.)
constexpr int OUT_BYTES = 2 * BOX_BYTES;

// The two sides of a product: by terms a box is 64 terms of 128 rows; by rows, 64 rows of 64 terms.
struct Side {
  const TensorMap *a, *b;
};

template <int BLOCKS>
struct Stages {
  u8 *memory;
  u64 *full, *free;
  int rank;  // of the block in its cluster
  int stage = 0, turn = 0;  // turn: where the next box of outputs lies
  u32 parity = 0;

  __device__ __forceinline__ u8 *a() const { return memory + stage * STAGE_BYTES; }
  __device__ __forceinline__ u8 *b() const { return a() + SIDE_BYTES; }
  // A warpgroup's next box of outputs: its two take turns, whatever tile they are of.
  __device__ __forceinline__ bf16 *next_box(int group) {
    turn ^= BOX_BYTES;
    return reinterpret_cast<bf16 *>(memory + STAGES * STAGE_BYTES + group * OUT_BYTES + turn);
  }
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// 128 rows of a side, to this block or to both of its cluster.
template <bool BY_ROWS, bool TO_BOTH>
__device__ __forceinline__ void load_side(u8 *to, const TensorMap &map, u64 *barrier, int first, int term) {
  const auto load = [&](u8 *place, int x, int y) {
    if (TO_BOTH) ptx::load_box_to_all(place, map, barrier, x, y, 3);
    else ptx::load_box(place, map, barrier, x, y);
  };
  if (!BY_ROWS) load(to, term, first);
  SORFT_UNROLL
  for (int i = 0; i < (BY_ROWS ? ROWS / 64 : 0); i++) load(to + i * BOX_BYTES, first + 64 * i, term);
}

// The copying thread's part of a chunk whose first term is `term`.
template <bool A_BY_ROWS, bool B_BY_ROWS, int BLOCKS>
__device__ __forceinline__ void load_chunk(Stages<BLOCKS> &s, const Side &side, int row, int column, int term) {
  u64 *full = &s.full[s.stage], *free = &s.free[s.stage];
  if (BLOCKS == 1) ptx::wait(free, s.parity ^ 1);
  else ptx::wait_for_cluster(free, s.parity ^ 1);
  ptx::arrive_and_expect(full, STAGE_BYTES);
  load_side<A_BY_ROWS, false>(s.a(), *side.a, full, row, term);
  SORFT_UNROLL
  for (int i = 0; i < 2 / BLOCKS; i++) {
    const int half = BLOCKS == 1 ? i : s.rank;
    load_side<B_BY_ROWS, BLOCKS == 2>(s.b() + half * SIDE_BYTES, *side.b, full, column + half * ROWS, term);
  }
  s.next();
}

// A thread's sums of its warpgroup's 64 x 256 outputs: sum[j] are row lane / 4 (and + 8) of its warp's 16, columns 8 j + 2 (lane % 4) (and + 1).
using Sums = float[COLUMNS / 8][4];

// This warpgroup's part of a stage, `count` terms of which are meant.
template <bool A_BY_ROWS, bool B_BY_ROWS, int BLOCKS>
__device__ __forceinline__ void multiply(Sums &sum, const Stages<BLOCKS> &s, int group, int count, bool keep) {
  u8 *a = s.a() + group * BOX_BYTES;  // 64 rows of 64 terms either way
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

// A warp has read a stage: one lane tells those who fill it.
template <int BLOCKS>
__device__ __forceinline__ void leave(u64 *free) {
  if (threadIdx.x % 32 != 0) return;
  if (BLOCKS == 1) {
    ptx::arrive(free);
  } else {
    SORFT_UNROLL
    for (int rank = 0; rank < BLOCKS; rank++) ptx::arrive_at(free, rank);
  }
}

// A multiplying warpgroup's part of a tile: sum (+)= a b over the chunks, count_of(c) terms of chunk c; what the first `scaled` chunks have come to
// is multiplied by scale.
template <bool A_BY_ROWS, bool B_BY_ROWS, int BLOCKS, class CountOf>
__device__ __forceinline__ void add_product(Sums &sum, Stages<BLOCKS> &s, int group, int chunks, bool keep, int scaled, float scale,
                                            const CountOf &count_of) {
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
    if (before) leave<BLOCKS>(before);  // the products before these have read their stage
    before = &s.free[s.stage];
  }
  ptx::wgmma_wait<0>();
  if (before) leave<BLOCKS>(before);
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

// bf16 outputs of this warpgroup to the matrix [m, n] of `to`, whose boxes have 64 rows; finish(column, the sums of that column and the next) first. 64
// columns at a time go through shared memory: while TMA reads one box the next is written.
template <int BLOCKS, class Finish>
__device__ __forceinline__ void store_outputs(Sums &sum, Stages<BLOCKS> &s, const TensorMap &to, int group, int row, int column, int m, int n,
                                              const Finish &finish) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % GROUP / 32;
  const bool speaks = threadIdx.x % GROUP == 0;
  row += 64 * group;
  SORFT_UNROLL
  for (int b = 0; b < COLUMNS / 64; b++) {
    if (row >= m || column + 64 * b >= n) continue;
    bf16 *box = s.next_box(group);
    if (speaks) ptx::store_wait_read<1>();
    ptx::named_barrier(1 + group, GROUP);  // what was in this box has been read
    SORFT_UNROLL
    for (int k = 0; k < 4; k++) {
      u32 pieces[4];
      SORFT_UNROLL
      for (int i = 0; i < 4; i++) {
        const int j = 8 * b + 2 * k + i / 2;
        float lo = sum[j][i % 2 * 2], hi = sum[j][i % 2 * 2 + 1];
        finish(column + 8 * j + lane % 4 * 2, lo, hi);
        pieces[i] = ptx::cvt_bf16x2(lo, hi);
      }
      ptx::stmatrix(box + tile::place<64>(16 * warp + lane % 16, 2 * k + lane / 16), pieces);
    }
    ptx::fence_async_proxy();
    ptx::named_barrier(1 + group, GROUP);
    if (!speaks) continue;
    ptx::store_box(to, column + 64 * b, row, box);
    ptx::store_commit();
  }
}

// All threads of the cluster meet.
template <int BLOCKS>
__device__ __forceinline__ void meet() {
  if (BLOCKS == 1) return __syncthreads();
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// Runs the block: load(stages, row, column) for each of its tiles in the copying thread, compute(stages, group, row, column) in the warpgroups that
// multiply. Tiles of one column of tiles come one after another, so that blocks at work at a time share them. Where the last row of tiles has no
// partner, a block of its cluster has a tile of nothing: zeros come, and no output lies inside.
template <int BLOCKS, class Load, class Compute>
__device__ __forceinline__ void each_tile(int m, int n, const Load &load, const Compute &compute) {
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full, STAGES);
  SORFT_SMEM(u64, free, STAGES);
  if (threadIdx.x == 0) {
    SORFT_UNROLL
    for (int i = 0; i < STAGES; i++) {
      ptx::barrier_init(&full[i], 1);
      ptx::barrier_init(&free[i], BLOCKS * 2 * GROUP / 32);  // a lane of each warp that multiplies
    }
    ptx::fence_barriers();
  }
  meet<BLOCKS>();
  const int down = ((m + ROWS - 1) / ROWS + BLOCKS - 1) / BLOCKS, tiles = down * ((n + COLUMNS - 1) / COLUMNS), group = threadIdx.x / GROUP;
  const int rank = BLOCKS == 1 ? 0 : (int)ptx::cluster_rank(), first = blockIdx.x / BLOCKS, step = gridDim.x / BLOCKS;
  Stages<BLOCKS> stages{shared, full, free, rank};
  if (group == 2) {
    ptx::give_registers<24>();  // 24 + 2 * 240 of a thread are the 3 * 168 that the block has
    if (threadIdx.x == 2 * GROUP)
      for (int t = first; t < tiles; t += step) load(stages, (t % down * BLOCKS + rank) * ROWS, t / down * COLUMNS);
    __syncwarp();
  } else {
    ptx::take_registers<240>();
    for (int t = first; t < tiles; t += step) compute(stages, group, (t % down * BLOCKS + rank) * ROWS, t / down * COLUMNS);
    if (threadIdx.x % GROUP == 0) ptx::store_wait_read<0>();
  }
  if (BLOCKS > 1) meet<BLOCKS>();  // nobody arrives at a barrier of a block that has ended
}

__device__ __forceinline__ int chunks_of(int terms) { return (terms + CHUNK - 1) / CHUNK; }

}  // namespace linear_hopper
#endif
