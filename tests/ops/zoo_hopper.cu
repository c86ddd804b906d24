// zoo_hopper.cu - as zoo.cu, of tiles that leave shared memory on sm_90a.
//
// All take (out, matrix, to, from, n) and blocks of 128 threads: `to` is a map of `matrix` [64, 64], `from` one of another such; boxes of 8 rows. Each
// block has two tiles of dynamic shared memory.
#include "sorft.cuh"
#include "hopper.cuh"

#define PARAMETERS u32 *out, const bf16 *matrix, const SORFT_GRID_CONSTANT TensorMap to, const SORFT_GRID_CONSTANT TensorMap from, i32 n
#define KERNEL extern "C" __global__ void __launch_bounds__(128)
#if defined(SORFT_HOPPER)

constexpr int WORDS = 256;  // of a tile

__device__ __forceinline__ void fill(u32 *tile, u32 word) {
  tile[threadIdx.x] = word;
  tile[threadIdx.x + 128] = word;
}

// A tile is stored that TMA need not see yet.
KERNEL store_without_fence(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  if (!MISTAKE) ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_box(to, 0, 0, tile);  // HERE
  ptx::store_commit();
  ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_without_fence)

// The one who stores has not met those who wrote.
KERNEL store_without_barrier(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  ptx::fence_async_proxy();
  if (!MISTAKE) __syncthreads();
  if (threadIdx.x != 127) return;
  ptx::store_box(to, 0, 0, tile);  // HERE
  ptx::store_commit();
  ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_without_barrier)

// The tile is written again, and nobody has waited until it was read.
KERNEL store_over_what_is_read(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  for (int i = 0; i < 2; i++) {
    fill(tile, i);
    ptx::fence_async_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::store_box(to, 0, 8 * i, tile);  // HERE
      ptx::store_commit();
      if (!MISTAKE || i == 1) ptx::store_wait_read<0>();
    }
    __syncthreads();
  }
}
SORFT_EXPORT(store_over_what_is_read)

// The same, waited for by another thread than the one whose store it is.
KERNEL store_waited_for_by_another(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  for (int i = 0; i < 2; i++) {
    fill(tile, i);
    ptx::fence_async_proxy();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::store_box(to, 0, 8 * i, tile);  // HERE
      ptx::store_commit();
    }
    if (threadIdx.x == (MISTAKE && i == 0 ? 32u : 0u)) ptx::store_wait_read<0>();
    __syncthreads();
  }
}
SORFT_EXPORT(store_waited_for_by_another)

// Two stages, and one store too many may be under way.
KERNEL store_waited_for_too_late(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  for (int i = 0; i < 4; i++) {
    if (threadIdx.x == 0) {
      if (MISTAKE) ptx::store_wait_read<2>();
      else ptx::store_wait_read<1>();
    }
    __syncthreads();
    fill(tile + i % 2 * WORDS, i);
    ptx::fence_async_proxy();
    __syncthreads();
    if (threadIdx.x != 0) continue;
    ptx::store_box(to, 0, 8 * i, tile + i % 2 * WORDS);  // HERE
    ptx::store_commit();
  }
  if (threadIdx.x == 0) ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_waited_for_too_late)

// The wait and the next writes are not in order: whichever comes first, it is found.
KERNEL store_wait_without_barrier(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, 1);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::store_box(to, 0, 0, tile);  // HERE
    ptx::store_commit();
    ptx::store_wait_read<0>();
  }
  if (!MISTAKE) __syncthreads();
  fill(tile, 2);  // HERE
}
SORFT_EXPORT(store_wait_without_barrier)

// What is in no group is waited for by nobody.
KERNEL store_in_no_group(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_box(to, 0, 0, tile);
  if (!MISTAKE) ptx::store_commit();
  ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_in_no_group)

// A block ends, and its tile has not been read.
KERNEL store_not_waited_for(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_box(to, 0, 0, tile);
  ptx::store_commit();
  if (!MISTAKE) ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_not_waited_for)

// A tile that has been read has not arrived.
KERNEL store_not_arrived(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::store_box(to, 0, 0, tile);
    ptx::store_commit();
    if (MISTAKE) ptx::store_wait_read<0>();
    else ptx::store_wait<0>();
  }
  __syncthreads();
  out[threadIdx.x] = load_vec<u32>(matrix + 2 * threadIdx.x);  // HERE
}
SORFT_EXPORT(store_not_arrived)

// A tile that has arrived, for a thread that has not met the one that waited.
KERNEL store_arrived_for_another(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::store_box(to, 0, 0, tile);  // HERE
    ptx::store_commit();
    ptx::store_wait<0>();
  }
  if (!MISTAKE) __syncthreads();
  out[threadIdx.x] = load_vec<u32>(matrix + 2 * (127 - threadIdx.x));  // HERE
}
SORFT_EXPORT(store_arrived_for_another)

// Two blocks store the same rows.
KERNEL stores_that_overlap(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, blockIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_box(to, 0, MISTAKE ? 7 * blockIdx.x : 8 * blockIdx.x, tile);  // HERE
  ptx::store_commit();
  ptx::store_wait<0>();
}
SORFT_EXPORT(stores_that_overlap)

// A tile with the swizzle begins at a multiple of 1024 bytes.
KERNEL store_of_half_a_tile(PARAMETERS) {
  SORFT_DYN_SMEM(u32, tile);
  fill(tile, threadIdx.x);
  fill(tile + WORDS, threadIdx.x);
  ptx::fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  ptx::store_box(to, 0, 0, tile + (MISTAKE ? WORDS / 2 : 0));  // HERE
  ptx::store_commit();
  ptx::store_wait_read<0>();
}
SORFT_EXPORT(store_of_half_a_tile)

// Numbers of other lanes by stmatrix, read without having met.
KERNEL stmatrix_without_syncwarp(PARAMETERS) {
  SORFT_SMEM(u32, rows, 4 * 128);
  const u32 pieces[4] = {threadIdx.x, 1, 2, 3};
  ptx::stmatrix(rows + 4 * threadIdx.x, pieces);  // HERE
  if (!MISTAKE) __syncwarp();
  out[threadIdx.x] = rows[4 * threadIdx.x];  // HERE
}
SORFT_EXPORT(stmatrix_without_syncwarp)

// Rows of 16 bytes are read while they are stored.
KERNEL stmatrix_over_what_is_read(PARAMETERS) {
  SORFT_SMEM(u32, rows, 4 * 128);
  const u32 pieces[4] = {threadIdx.x, 1, 2, 3};
  for (int i = 0; i < 4; i++) rows[4 * threadIdx.x + i] = i;
  __syncwarp();
  out[threadIdx.x] = rows[4 * (threadIdx.x ^ 1)];  // HERE
  if (!MISTAKE) __syncwarp();
  ptx::stmatrix_trans(rows + 4 * threadIdx.x, pieces);  // HERE
}
SORFT_EXPORT(stmatrix_over_what_is_read)

KERNEL stmatrix_by_half_a_warp(PARAMETERS) {
  SORFT_SMEM(u32, rows, 4 * 128);
  const u32 pieces[4] = {0, 1, 2, 3};
  if (!MISTAKE || threadIdx.x % 32 < 16) ptx::stmatrix(rows + 4 * threadIdx.x, pieces);
  else __syncwarp();  // HERE
  out[threadIdx.x] = n;
}
SORFT_EXPORT(stmatrix_by_half_a_warp)

#endif
