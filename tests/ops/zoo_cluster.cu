// zoo_cluster.cu - as zoo_hopper.cu, of clusters of two blocks.
#include "sorft.cuh"
#include "hopper.cuh"

#define PARAMETERS u32 *out, const bf16 *matrix, const SORFT_GRID_CONSTANT TensorMap to, const SORFT_GRID_CONSTANT TensorMap from, i32 n
#define CLUSTER extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(128)
#if defined(SORFT_HOPPER)

constexpr int WORDS = 256;  // of a tile

__device__ __forceinline__ void meet() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// A barrier for `count` arrivals, which the cluster knows of when it has met.
__device__ __forceinline__ void make_barrier(u64 *barrier, u32 count) {
  if (threadIdx.x == 0) {
    ptx::barrier_init(barrier, count);
    ptx::fence_barriers();
  }
}

// Blocks hand on words by device memory; their barrier orders that.
CLUSTER cluster_without_barrier(PARAMETERS) {
  out[128 * blockIdx.x + threadIdx.x] = threadIdx.x;  // HERE
  if (!MISTAKE) meet();
  const u32 word = out[128 * (blockIdx.x ^ 1) + threadIdx.x];  // HERE
  meet();
  out[128 * blockIdx.x + threadIdx.x] = word;
}
SORFT_EXPORT_CLUSTER(cluster_without_barrier, 2)

// Who has arrived may go on, but not yet with what the others have done.
CLUSTER cluster_used_before_the_wait(PARAMETERS) {
  out[128 * blockIdx.x + threadIdx.x] = threadIdx.x;  // HERE
  ptx::cluster_arrive();
  if (!MISTAKE) ptx::cluster_wait();
  const u32 word = out[128 * (blockIdx.x ^ 1) + threadIdx.x];  // HERE
  if (MISTAKE) ptx::cluster_wait();
  meet();
  out[128 * blockIdx.x + threadIdx.x] = word;
}
SORFT_EXPORT_CLUSTER(cluster_used_before_the_wait, 2)

// One block meets oftener than the other.
CLUSTER cluster_barrier_by_one_block(PARAMETERS) {
  meet();
  if (MISTAKE && blockIdx.x == 0) meet();  // HERE
}
SORFT_EXPORT_CLUSTER(cluster_barrier_by_one_block, 2)

// Half of a warp ends before the others meet.
CLUSTER cluster_barrier_by_half_a_warp(PARAMETERS) {
  if (MISTAKE && threadIdx.x % 32 < 16) return;
  meet();  // HERE
}
SORFT_EXPORT_CLUSTER(cluster_barrier_by_half_a_warp, 2)

CLUSTER cluster_arrives_twice(PARAMETERS) {
  ptx::cluster_arrive();
  if (MISTAKE) ptx::cluster_arrive();  // HERE
  ptx::cluster_wait();
}
SORFT_EXPORT_CLUSTER(cluster_arrives_twice, 2)

// Words in device memory, and an arrival at the other block's barrier that tells of them.
template <class Wait>
__device__ __forceinline__ void hand_over(u32 *out, u64 *told, const Wait &wait) {
  make_barrier(told, 128);
  meet();
  out[128 * blockIdx.x + threadIdx.x] = threadIdx.x;
  ptx::arrive_at(told, ptx::cluster_rank() ^ 1);
  wait();
  const u32 word = out[128 * (blockIdx.x ^ 1) + threadIdx.x];
  meet();
  out[128 * blockIdx.x + threadIdx.x] = word;
}

// The wait is for the block alone.
CLUSTER arrival_in_the_block_alone(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  hand_over(out, told, [&] {  // HERE
    if (MISTAKE) ptx::wait(told, 0);
    else ptx::wait_for_cluster(told, 0);
  });
}
SORFT_EXPORT_CLUSTER(arrival_in_the_block_alone, 2)

// Nobody waits.
CLUSTER arrival_not_waited_for(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  hand_over(out, told, [&] {  // HERE
    if (!MISTAKE) ptx::wait_for_cluster(told, 0);
  });
}
SORFT_EXPORT_CLUSTER(arrival_not_waited_for, 2)

// The other block's barrier need not be there yet.
CLUSTER arrival_before_the_barrier(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  make_barrier(told, 128);
  if (MISTAKE) __syncthreads();
  else meet();
  ptx::arrive_at(told, ptx::cluster_rank() ^ 1);  // HERE
  ptx::wait_for_cluster(told, 0);
  meet();
}
SORFT_EXPORT_CLUSTER(arrival_before_the_barrier, 2)

// A barrier that other blocks need not see yet.
CLUSTER arrival_without_fence(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  if (threadIdx.x == 0) {
    ptx::barrier_init(told, 128);
    if (!MISTAKE) ptx::fence_barriers();
  }
  meet();
  ptx::arrive_at(told, ptx::cluster_rank() ^ 1);  // HERE
  ptx::wait_for_cluster(told, 0);
  meet();
}
SORFT_EXPORT_CLUSTER(arrival_without_fence, 2)

// A block ends, and the other may still arrive in its shared memory.
CLUSTER arrival_after_the_end(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  make_barrier(told, 128);
  meet();
  ptx::arrive_at(told, ptx::cluster_rank() ^ 1);  // HERE
  if (!MISTAKE) meet();
}
SORFT_EXPORT_CLUSTER(arrival_after_the_end, 2)

CLUSTER arrival_outside_the_cluster(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  make_barrier(told, 128);
  meet();
  ptx::arrive_at(told, (ptx::cluster_rank() ^ 1) + (MISTAKE ? 1 : 0));  // HERE
  meet();
}
SORFT_EXPORT_CLUSTER(arrival_outside_the_cluster, 2)

// One of the arrivals that a barrier is made for never comes.
CLUSTER arrival_that_nobody_makes(PARAMETERS) {
  SORFT_SMEM(u64, told, 1);
  make_barrier(told, 128);
  meet();
  if (!MISTAKE || blockIdx.x == 0 || threadIdx.x != 0) ptx::arrive_at(told, ptx::cluster_rank() ^ 1);
  ptx::wait_for_cluster(told, 0);  // HERE
  meet();
}
SORFT_EXPORT_CLUSTER(arrival_that_nobody_makes, 2)

// Another block's shared memory by an ordinary load.
CLUSTER load_of_another_block(PARAMETERS) {
  SORFT_SMEM(u32, words, 128);
  words[threadIdx.x] = threadIdx.x;
  if (blockIdx.x == 0 && threadIdx.x == 0) *reinterpret_cast<u32 *volatile *>(out) = words;
  meet();
  if (MISTAKE && blockIdx.x == 1) words = *reinterpret_cast<u32 *volatile *>(out);
  meet();
  const u32 word = words[threadIdx.x];  // HERE
  meet();
  out[128 * blockIdx.x + threadIdx.x] = word;
}
SORFT_EXPORT_CLUSTER(load_of_another_block, 2)

// Each block loads a tile for both, twice over; a stage is loaded again when both blocks have read it.
struct Mistakes {
  bool one_block_frees, half_of_the_bytes, no_wait, no_free, early_end, wrong_ranks;
};

__device__ __forceinline__ void load_for_both(u32 *out, const TensorMap &from, Mistakes mistakes) {
  SORFT_DYN_SMEM(u32, tiles);
  SORFT_SMEM(u64, full, 1);
  SORFT_SMEM(u64, free, 1);
  const u32 rank = ptx::cluster_rank();
  make_barrier(full, 1);
  make_barrier(free, mistakes.one_block_frees ? 4 : 8);
  meet();
  u32 sum = 0;
  for (u32 i = 0; i < 3; i++) {
    if (threadIdx.x == 0) {
      if (!mistakes.no_free) ptx::wait_for_cluster(free, (i & 1) ^ 1);
      ptx::arrive_and_expect(full, (mistakes.half_of_the_bytes ? 1 : 2) * WORDS * 4);
      ptx::load_box_to_all(tiles + rank * WORDS, from, full, 0, 16 * i + 8 * rank, mistakes.wrong_ranks ? 1 << rank : 3);
    }
    if (!mistakes.no_wait) ptx::wait(full, i & 1);
    for (int j = 0; j < 4; j++) sum += tiles[128 * j + threadIdx.x];
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::arrive_at(free, rank);
      if (!mistakes.one_block_frees) ptx::arrive_at(free, rank ^ 1);
    }
  }
  if (!mistakes.early_end) meet();
  out[128 * blockIdx.x + threadIdx.x] = sum;
}

CLUSTER multicast(PARAMETERS) {
  load_for_both(out, from, {MISTAKE, false, false, false, false, false});  // HERE
}
SORFT_EXPORT_CLUSTER(multicast, 2)

CLUSTER multicast_of_more_bytes(PARAMETERS) {
  load_for_both(out, from, {false, MISTAKE, false, false, false, false});  // HERE
}
SORFT_EXPORT_CLUSTER(multicast_of_more_bytes, 2)

CLUSTER multicast_not_waited_for(PARAMETERS) {
  load_for_both(out, from, {false, false, MISTAKE, false, false, false});  // HERE
}
SORFT_EXPORT_CLUSTER(multicast_not_waited_for, 2)

CLUSTER multicast_over_what_is_read(PARAMETERS) {
  load_for_both(out, from, {false, false, false, MISTAKE, false, false});  // HERE
}
SORFT_EXPORT_CLUSTER(multicast_over_what_is_read, 2)

CLUSTER multicast_and_an_early_end(PARAMETERS) {
  load_for_both(out, from, {false, false, false, false, MISTAKE, false});
}
SORFT_EXPORT_CLUSTER(multicast_and_an_early_end, 2)

CLUSTER multicast_to_the_own_block(PARAMETERS) {
  load_for_both(out, from, {false, false, false, false, false, MISTAKE});  // HERE
}
SORFT_EXPORT_CLUSTER(multicast_to_the_own_block, 2)

#endif
