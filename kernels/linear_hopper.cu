// linear_hopper.cu - linear.cu's products on sm_90a: tiles by TMA, products by warpgroups, the same equations and the same order of sums.
//
//   forward            y = bf16(x w' + scale s b' + bias)
//   gradient of x      dx = bf16(dy w + scale t a)
//   gradient of w      dw += dy' x
//
// Shapes as in linear.cu. A sum is one chain of products of 16 terms, the adapter's first. Whether a chip's wgmma gives the bits of its mma.sync is
// found out on the chip (src/tensor/ops/matmul/cuda.rs), since decoding takes linear_few.cu.
//
// A block stays on its multiprocessor and takes every gridDim.x-th tile of 128 x 256 outputs. Of its three warpgroups one copies, one thread of it: four
// stages of 64 terms, each with a barrier that says it is full and one that says it is free; two multiply, 64 rows each, with one group of
// products under way while they wait for the next stage. So the copies of the next tile go on while this one is stored.
//
// Operations: 2 M N K each (+ 2 M N R). From memory 48 KiB for each 4.2 million operations. Floor at 790 TFLOP/s for M = N = K = 4096: 174 us. Not
// measured on a chip yet.
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
    ptx::give_registers<40>();
    if (threadIdx.x != 2 * GROUP) return;
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) load(stages, t % down * ROWS, t / down * COLUMNS);
  } else {
    ptx::take_registers<232>();
    for (int t = blockIdx.x; t < tiles; t += gridDim.x) compute(stages, group, t % down * ROWS, t / down * COLUMNS);
  }
}

__device__ __forceinline__ int chunks_of(int terms) { return (terms + CHUNK - 1) / CHUNK; }

// A product with the adapter's term: its chunks come first.
template <bool B_BY_ROWS>
struct WithAdapter {
  Side own, adapter;
  int terms, rank;
  float scale;

  __device__ __forceinline__ void load(Stages &s, int row, int column) const {
    for (int term = 0; term < rank; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, adapter, row, column, term);
    for (int term = 0; term < terms; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, own, row, column, term);
  }

  __device__ __forceinline__ void compute(Sums &sum, Stages &s, int group) const {
    const int first = chunks_of(rank);
    add_product<false, B_BY_ROWS>(sum, s, group, first + chunks_of(terms), false, first, scale, [](int) { return CHUNK; });
  }
};

}  // namespace linear_hopper
#endif

// Grid: blocks that stay, at most one for each tile. Block: 384 threads. Dynamic shared memory: 192 KiB. Boxes of the maps: x, s: 128 rows; w, b: 256
// rows in the forward product, 64 in dx's; dy and x for dw: 64. Without an adapter rank is 0.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_fwd_hopper(bf16 *__restrict__ y, const SORFT_GRID_CONSTANT TensorMap x, const SORFT_GRID_CONSTANT TensorMap w, const bf16 *__restrict__ bias,
                  const SORFT_GRID_CONSTANT TensorMap s, const SORFT_GRID_CONSTANT TensorMap b, i32 m, i32 n, i32 k, i32 rank, float scale) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const WithAdapter<false> product{{&x, &w}, {&s, &b}, k, rank, scale};
  each_tile(
      m, n, [&](Stages &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        product.compute(sum, stages, group);
        each_pair(sum, group, row, column, m, n, [=](i64 r, int c, float lo, float hi) {
          if (bias) lo += to_f32(bias[c]), hi += to_f32(bias[c + 1]);
          store_vec(y + r * n + c, to_bf16x2(lo, hi));
        });
      });
#endif
}
SORFT_EXPORT(linear_fwd_hopper)

extern "C" __global__ void __launch_bounds__(384, 1)
linear_dx_hopper(bf16 *__restrict__ dx, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap w,
                 const SORFT_GRID_CONSTANT TensorMap t, const SORFT_GRID_CONSTANT TensorMap a, i32 m, i32 n, i32 k, i32 rank, float scale) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const WithAdapter<true> product{{&dy, &w}, {&t, &a}, n, rank, scale};
  each_tile(
      m, k, [&](Stages &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        product.compute(sum, stages, group);
        each_pair(sum, group, row, column, m, k, [=](i64 r, int c, float lo, float hi) { store_vec(dx + r * k + c, to_bf16x2(lo, hi)); });
      });
#endif
}
SORFT_EXPORT(linear_dx_hopper)

// dw [N, K] += dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_dw_hopper(float *__restrict__ dw, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap x,
                 const u32 *__restrict__ chunks, i32 count, i32 n, i32 k) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const Side own{&dy, &x};
  each_tile(
      n, k,
      [&](Stages &stages, int row, int column) {
        for (int c = 0; c < count; c++) load_chunk<true, true>(stages, own, row, column, (int)chunks[2 * c]);
      },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        tile::clear(sum);
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float &lo, float &hi) {
          const float2 before = load_vec<float2>(dw + r * k + c);
          lo = before.x, hi = before.y;
        });
        add_product<true, true>(sum, stages, group, count, true, 0, 1.0f, [&](int c) { return (int)chunks[2 * c + 1]; });
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float lo, float hi) { store_vec(dw + r * k + c, float2{lo, hi}); });
      });
#endif
}
SORFT_EXPORT(linear_dw_hopper)
