// hopper_cluster.cuh - blocks of a cluster on sm_90a: they run at the same time, meet at a barrier of their own, arrive at each other's barriers in shared
// memory and load each other's tiles; each with its host twin. Part of hopper.cuh; not to be included alone.
//
// A kernel of clusters is `extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(N) name(...)`, followed by SORFT_EXPORT_CLUSTER(name, 2); its grid is
// a multiple of that along x, and neighbours are a cluster. The shared memory of another block is reached by these wrappers alone. A block stays until the
// others are done with its shared memory: both ends of a kernel are a meeting of the cluster.
#pragma once

// The kernel's blocks come in clusters; on chips without them its body is empty, and so is this.
#if defined(SORFT_HOPPER) && !defined(SORFT_EMULATOR)
#define SORFT_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define SORFT_CLUSTER(blocks)
#endif

// SORFT_EXPORT of such a kernel: the emulator has to be told.
#if defined(SORFT_EMULATOR)
#define SORFT_EXPORT_CLUSTER(name, blocks) \
  SORFT_EXPORT(name)                       \
  SORFT_EXPORTED uint32_t name##__emu_cluster() { return blocks; }
#else
#define SORFT_EXPORT_CLUSTER(name, blocks)
#endif

#if defined(SORFT_HOPPER)
namespace ptx {

// %cluster_ctarank: which of its cluster the block is.
__device__ __forceinline__ u32 cluster_rank() {
#if defined(SORFT_EMULATOR)
  return emu::cluster_rank();
#else
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

// barrier.cluster.arrive: what this thread has done is seen by those who wait. All threads of the cluster, whole warps.
__device__ __forceinline__ void cluster_arrive() {
#if defined(SORFT_EMULATOR)
  emu::cluster_arrive();
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

// barrier.cluster.wait: until all threads of the cluster have arrived, this one too.
__device__ __forceinline__ void cluster_wait() {
#if defined(SORFT_EMULATOR)
  emu::cluster_wait();
#else
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// mapa and mbarrier.arrive: arrives at the barrier that lies, in the block of this rank, where `barrier` lies in the own one.
__device__ __forceinline__ void arrive_at(u64 *barrier, u32 rank) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_arrive_at(reinterpret_cast<uint64_t *>(barrier), rank);
#else
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
#endif
}

// As `wait` for the phase of this parity, where other blocks arrive too: what they have done is seen.
__device__ __forceinline__ void wait_for_cluster(u64 *barrier, u32 phase) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_wait(reinterpret_cast<uint64_t *>(barrier), phase, true);
#else
  u32 ended;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(phase)
        : "memory");
  } while (!ended);
#endif
}

// load_box to all blocks of `ranks`, a bit each: to the same place of each one's shared memory, and each one's barrier is told of the bytes.
__device__ __forceinline__ void load_box_to_all(void *to, const TensorMap &map, u64 *barrier, int x, int y, u16 ranks) {
#if defined(SORFT_EMULATOR)
  emu::load_tile_to_all(to, &map, reinterpret_cast<uint64_t *>(barrier), x, y, ranks);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%2, {%3, %4}], [%1], %5;" ::"r"(
          shared_address(to)),
      "r"(shared_address(barrier)), "l"(&map), "r"(x), "r"(y), "h"(ranks)
      : "memory");
#endif
}

}  // namespace ptx
#endif
