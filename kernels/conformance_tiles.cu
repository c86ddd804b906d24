// conformance_tiles.cu - the wrappers of hopper_store.cuh and hopper_cluster.cuh, as conformance_hopper.cu has those of hopper.cuh.
//
// Arrays of u32 are bits.
#include "sorft.cuh"
#include "hopper.cuh"

#if defined(SORFT_HOPPER)
namespace conformance_tiles {

constexpr int GROUP = 128, ROW_BYTES = 128;

// Four pieces by a warp, to rows in an order that the kernel is given, and out as they lie.
template <bool TRANSPOSED>
__device__ __forceinline__ void store_pieces(u32 *out, const u32 *in, const u32 *order) {
  SORFT_SMEM(u32, rows, 128);
  const int lane = threadIdx.x;
  out += blockIdx.x * 128, in += blockIdx.x * 128;
  u32 pieces[4];
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) pieces[i] = in[4 * lane + i];
  u32 *row = rows + 4 * order[blockIdx.x * 32 + lane];
  if (TRANSPOSED) ptx::stmatrix_trans(row, pieces);
  else ptx::stmatrix(row, pieces);
  __syncwarp();
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) out[32 * i + lane] = rows[32 * i + lane];
}

// Box b of the block, of `rows` rows, to where `at` says, by a thread of its own each; two boxes share their place in shared memory, one after another.
__device__ __forceinline__ void store_boxes(const TensorMap &map, const u32 *in, const u32 *at, int rows, int boxes) {
  SORFT_DYN_SMEM(u32, tile);
  const int words = rows * (ROW_BYTES / 4);
  in += (i64)blockIdx.x * boxes * words, at += blockIdx.x * boxes * 2;
  for (int b = 0; b < boxes; b++) {
    u32 *to = tile + b % 2 * words;
    if (threadIdx.x == 0) ptx::store_wait_read<1>();
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += GROUP) to[i] = in[b * words + i];
    ptx::fence_async_proxy();
    __syncthreads();
    if (threadIdx.x != 0) continue;
    ptx::store_box(map, (int)at[2 * b], (int)at[2 * b + 1], to);
    ptx::store_commit();
  }
  if (threadIdx.x == 0) ptx::store_wait_read<0>();
}

// The block's box there and back: what has arrived is what its thread reads again, then the others.
__device__ __forceinline__ void there_and_back(u32 *out, const TensorMap &map, const bf16 *matrix, const u32 *in, int rows) {
  SORFT_DYN_SMEM(u32, tile);
  const int words = rows * (ROW_BYTES / 4);
  out += blockIdx.x * words, in += blockIdx.x * words, matrix += blockIdx.x * words * 2;
  for (int i = threadIdx.x; i < words; i += GROUP) tile[i] = in[i];
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::store_box(map, 0, (int)blockIdx.x * rows, tile);
    ptx::store_commit();
    ptx::store_wait<0>();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += GROUP) out[i] = load_vec<u32>(matrix + 2 * i);
}

// ---------------------------------------------------------------------------------------------------------------------------- clusters

constexpr u32 OF_CLUSTER = 4;

__device__ __forceinline__ void meet() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

__device__ __forceinline__ void make_barrier(u64 *barrier, u32 count) {
  if (threadIdx.x == 0) {
    ptx::barrier_init(barrier, count);
    ptx::fence_barriers();
  }
}

// Blocks of a cluster hand words on, each to the one before it, and meet in between. board [2, blocks, 128].
__device__ __forceinline__ void hand_round(u32 *out, u32 *board, const u32 *in, int rounds) {
  const u32 rank = ptx::cluster_rank(), own = blockIdx.x * GROUP + threadIdx.x, size = gridDim.x * GROUP;
  const u32 next = (blockIdx.x - rank + (rank + 1) % OF_CLUSTER) * GROUP + threadIdx.x;
  u32 word = in[own];
  for (int r = 0; r < rounds; r++) {
    u32 *words = board + r % 2 * size;
    words[own] = word;
    meet();
    word = word * 3 + words[next];
  }
  out[own] = word;
}

// Two blocks hand words to one another; who has written its own arrives at both barriers. board [2, blocks, 128].
__device__ __forceinline__ void hand_over(u32 *out, u32 *board, const u32 *in, int rounds) {
  SORFT_SMEM(u64, told, 1);
  const u32 rank = ptx::cluster_rank(), own = blockIdx.x * GROUP + threadIdx.x, size = gridDim.x * GROUP;
  make_barrier(told, 2 * GROUP);
  meet();
  u32 word = in[own];
  for (int r = 0; r < rounds; r++) {
    u32 *words = board + r % 2 * size;
    words[own] = word;
    ptx::arrive_at(told, rank);
    ptx::arrive_at(told, rank ^ 1);
    ptx::wait_for_cluster(told, r & 1);
    word = word * 3 + words[(blockIdx.x ^ 1) * GROUP + GROUP - 1 - threadIdx.x];
  }
  out[own] = word;
  meet();  // nobody arrives in what has ended
}

// Each block loads a box for those of `ranks`; what has come from whom lies in the order of their ranks, and ones where nothing has.
__device__ __forceinline__ void load_for_others(u32 *out, const TensorMap &map, const u32 *at, const u32 *ranks, int rows) {
  SORFT_DYN_SMEM(u32, tiles);
  SORFT_SMEM(u64, full, 1);
  const u32 rank = ptx::cluster_rank(), first = blockIdx.x - rank;
  const int words = rows * (ROW_BYTES / 4);
  for (int i = threadIdx.x; i < (int)OF_CLUSTER * words; i += GROUP) tiles[i] = 0xffffffffu;
  ptx::fence_async_proxy();
  make_barrier(full, 1);
  meet();
  if (threadIdx.x == 0) {
    u32 boxes = 0;
    for (u32 i = 0; i < OF_CLUSTER; i++) boxes += ranks[first + i] >> rank & 1;
    ptx::arrive_and_expect(full, boxes * rows * ROW_BYTES);
    ptx::load_box_to_all(tiles + rank * words, map, full, (int)at[2 * blockIdx.x], (int)at[2 * blockIdx.x + 1], (u16)ranks[blockIdx.x]);
  }
  ptx::wait(full, 0);
  for (int i = threadIdx.x; i < (int)OF_CLUSTER * words; i += GROUP) out[(i64)blockIdx.x * OF_CLUSTER * words + i] = tiles[i];
  meet();
}

}  // namespace conformance_tiles
#define CONFORMANCE_TILES_BODY(...) conformance_tiles::__VA_ARGS__
#else
#define CONFORMANCE_TILES_BODY(...)
#endif

// One warp a block. in, out [blocks, 128]: four registers of each lane; rows of 16 bytes. order [blocks, 32]: which row is a lane's.
extern "C" __global__ void __launch_bounds__(32)
conformance_hopper_stmatrix(u32 *__restrict__ out, const u32 *__restrict__ in, const u32 *__restrict__ order) {
  CONFORMANCE_TILES_BODY(store_pieces<false>(out, in, order));
}
SORFT_EXPORT(conformance_hopper_stmatrix)

extern "C" __global__ void __launch_bounds__(32)
conformance_hopper_stmatrix_trans(u32 *__restrict__ out, const u32 *__restrict__ in, const u32 *__restrict__ order) {
  CONFORMANCE_TILES_BODY(store_pieces<true>(out, in, order));
}
SORFT_EXPORT(conformance_hopper_stmatrix_trans)

// Boxes of `rows` rows: in [blocks, boxes, rows, 32] as they lie in shared memory, at [blocks, boxes, 2] columns and rows. Dynamic shared memory: two boxes.
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_store(const SORFT_GRID_CONSTANT TensorMap map, const u32 *__restrict__ in, const u32 *__restrict__ at, i32 rows, i32 boxes) {
  CONFORMANCE_TILES_BODY(store_boxes(map, in, at, rows, boxes));
}
SORFT_EXPORT(conformance_hopper_store)

// in, out [blocks, rows, 32]; the map is of `matrix`, [blocks rows, 64], which is read behind the stores: no __restrict__.
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_back(u32 *out, const SORFT_GRID_CONSTANT TensorMap map, const bf16 *matrix, const u32 *in, i32 rows) {
  CONFORMANCE_TILES_BODY(there_and_back(out, map, matrix, in, rows));
}
SORFT_EXPORT(conformance_hopper_back)

// in, out [blocks, 128], board [2, blocks, 128], by clusters of four.
extern "C" __global__ void SORFT_CLUSTER(4) __launch_bounds__(128) conformance_hopper_cluster(u32 *out, u32 *board, const u32 *in, i32 rounds) {
  CONFORMANCE_TILES_BODY(hand_round(out, board, in, rounds));
}
SORFT_EXPORT_CLUSTER(conformance_hopper_cluster, 4)

// The same by pairs.
extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(128) conformance_hopper_arrivals(u32 *out, u32 *board, const u32 *in, i32 rounds) {
  CONFORMANCE_TILES_BODY(hand_over(out, board, in, rounds));
}
SORFT_EXPORT_CLUSTER(conformance_hopper_arrivals, 2)

// at [blocks, 2], ranks [blocks], out [blocks, 4, rows, 32]. Dynamic shared memory: four boxes.
extern "C" __global__ void SORFT_CLUSTER(4) __launch_bounds__(128)
conformance_hopper_multicast(u32 *__restrict__ out, const SORFT_GRID_CONSTANT TensorMap map, const u32 *__restrict__ at, const u32 *__restrict__ ranks,
                             i32 rows) {
  CONFORMANCE_TILES_BODY(load_for_others(out, map, at, ranks, rows));
}
SORFT_EXPORT_CLUSTER(conformance_hopper_multicast, 4)
