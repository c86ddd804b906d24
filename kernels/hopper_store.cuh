// hopper_store.cuh - how a tile leaves a multiprocessor on sm_90a: fragments to shared memory by stmatrix, boxes to device memory by TMA; each with its
// host twin. Part of hopper.cuh; not to be included alone.
//
// Who stores by TMA must know that what it stores lies in shared memory: its writers have met fence_async_proxy and then it has met them.
#pragma once

#if defined(SORFT_HOPPER)
namespace ptx {

// stmatrix.x4: four 8 x 8 pieces of 16-bit numbers, ldmatrix the other way. Lane 8i + r gives the address of row r of piece i; lane 4g + t has, in in[i],
// columns 2t and 2t + 1 of row g.
__device__ __forceinline__ void stmatrix(void *row, const u32 (&in)[4]) {
#if defined(SORFT_EMULATOR)
  emu::store_matrices(row, in, false);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(in[0]), "r"(in[1]), "r"(in[2]),
               "r"(in[3])
               : "memory");
#endif
}

// stmatrix.x4.trans: the same of each piece transposed: in[i] has rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void stmatrix_trans(void *row, const u32 (&in)[4]) {
#if defined(SORFT_EMULATOR)
  emu::store_matrices(row, in, true);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(in[0]), "r"(in[1]), "r"(in[2]),
               "r"(in[3])
               : "memory");
#endif
}

// cp.async.bulk.tensor: a box (1024-aligned, swizzled as load_box leaves it) to column x, row y of the matrix; nothing outside it.
__device__ __forceinline__ void store_box(const TensorMap &map, int x, int y, const void *from) {
#if defined(SORFT_EMULATOR)
  emu::store_tile(&map, x, y, from);
#else
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
#endif
}

// cp.async.bulk.commit_group: this thread's stores since the last one are a group.
__device__ __forceinline__ void store_commit() {
#if defined(SORFT_EMULATOR)
  emu::commit_stores();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// cp.async.bulk.wait_group.read: all groups of this thread but the last PENDING have been read, so their shared memory may be written again. Before the
// block ends, this of all.
template <int PENDING>
__device__ __forceinline__ void store_wait_read() {
#if defined(SORFT_EMULATOR)
  emu::wait_for_stores(PENDING, true);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
#endif
}

// cp.async.bulk.wait_group: all groups of this thread but the last PENDING have arrived, for this thread.
template <int PENDING>
__device__ __forceinline__ void store_wait() {
#if defined(SORFT_EMULATOR)
  emu::wait_for_stores(PENDING, false);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

}  // namespace ptx
#endif
