// zoo.cu - small kernels, each with one mistake (compiled with MISTAKE=1) or without (MISTAKE=0): what the emulator's checker must find, and
// what it must not. The line that it has to name carries the mark "HERE". All take (out, in, n) and blocks of 128 threads.
#include "sorft.cuh"

#define KERNEL extern "C" __global__ void __launch_bounds__(128)

// Threads exchange values through shared memory without waiting for each other.
KERNEL missing_syncthreads(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 128);
  s[threadIdx.x] = in[threadIdx.x];
  if (!MISTAKE) __syncthreads();
  out[threadIdx.x] = s[127 - threadIdx.x];  // HERE
}
SORFT_EXPORT(missing_syncthreads)

// The same memory is used again while others still read it.
KERNEL missing_second_syncthreads(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 1);
  float sum = 0.0f;
  for (int i = 0; i < n; i++) {
    if (threadIdx.x == 0) s[0] = in[i];  // HERE
    __syncthreads();
    sum += s[0];  // HERE
    if (!MISTAKE) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
SORFT_EXPORT(missing_second_syncthreads)

// A shuffle moves values but orders no memory: lanes of a warp need __syncwarp.
KERNEL missing_syncwarp(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 128);
  s[threadIdx.x] = in[threadIdx.x];
  float v = __shfl_xor_sync(FULL_WARP, in[threadIdx.x], 1);
  if (!MISTAKE) __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1] + v;  // HERE
}
SORFT_EXPORT(missing_syncwarp)

// One warp waits where the whole block has to.
KERNEL syncwarp_for_syncthreads(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 128);
  s[threadIdx.x] = in[threadIdx.x];
  if (MISTAKE) __syncwarp();
  else __syncthreads();
  out[threadIdx.x] = s[(threadIdx.x + 32) % 128];  // HERE
}
SORFT_EXPORT(syncwarp_for_syncthreads)

// All read, then one writes after a __syncwarp that orders it after its own warp alone.
KERNEL write_after_all_read(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 1);
  if (threadIdx.x == 0) s[0] = in[0];
  __syncthreads();
  out[threadIdx.x] = s[0];  // HERE
  if (MISTAKE) __syncwarp();
  else __syncthreads();
  if (threadIdx.x == 127) s[0] = 2.0f;  // HERE
}
SORFT_EXPORT(write_after_all_read)

KERNEL out_of_bounds(float *out, const float *in, i32 n) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  if (MISTAKE ? i <= n : i < n) out[i] = 1.0f;  // HERE
}
SORFT_EXPORT(out_of_bounds)

KERNEL shared_out_of_bounds(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 128);
  s[threadIdx.x + MISTAKE] = 1.0f;  // HERE
  out[threadIdx.x] = s[threadIdx.x + MISTAKE];
}
SORFT_EXPORT(shared_out_of_bounds)

KERNEL dynamic_out_of_bounds(float *out, const float *in, i32 n) {
  SORFT_DYN_SMEM(float, d);  // 128 floats
  SORFT_SMEM(float, s, 128);
  s[threadIdx.x] = 0.0f;
  d[threadIdx.x + MISTAKE] = 1.0f;  // HERE
  out[threadIdx.x] = s[threadIdx.x];
}
SORFT_EXPORT(dynamic_out_of_bounds)

KERNEL misaligned(float *out, const float *in, i32 n) {
  const float4 v = load_vec<float4>(in + (MISTAKE ? 1 : 4) + threadIdx.x % 8 * 4);  // HERE
  out[threadIdx.x] = v.x + v.w;
}
SORFT_EXPORT(misaligned)

KERNEL unwritten_shared(float *out, const float *in, i32 n) {
  SORFT_SMEM(float, s, 128);
  if (!MISTAKE || threadIdx.x < 127) s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = s[127 - threadIdx.x];  // HERE
}
SORFT_EXPORT(unwritten_shared)

// `out` comes in unwritten.
KERNEL unwritten_global(float *out, const float *in, i32 n) {
  if (!MISTAKE) out[threadIdx.x] = 0.0f;
  out[threadIdx.x] += in[threadIdx.x];  // HERE
}
SORFT_EXPORT(unwritten_global)

KERNEL divergent_shuffle(float *out, const float *in, i32 n) {
  float v = in[threadIdx.x];
  if (!MISTAKE || threadIdx.x % 32 < 16) v += __shfl_xor_sync(FULL_WARP, v, 1);  // HERE
  out[threadIdx.x] = v;
}
SORFT_EXPORT(divergent_shuffle)

// Two halves of a warp meet in different operations.
KERNEL mixed_warp_operations(float *out, const float *in, i32 n) {
  float v = in[threadIdx.x];
  if (MISTAKE && threadIdx.x % 32 < 16) v += (float)__ballot_sync(FULL_WARP, v > 0.0f);  // HERE
  else v += __shfl_xor_sync(FULL_WARP, v, 1);                                            // HERE
  out[threadIdx.x] = v;
}
SORFT_EXPORT(mixed_warp_operations)

KERNEL shuffle_from_outside(float *out, const float *in, i32 n) {
  float v = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) v += __shfl_xor_sync(0xffffu, v, MISTAKE ? 16 : 8);  // HERE
  out[threadIdx.x] = v;
}
SORFT_EXPORT(shuffle_from_outside)

KERNEL half_barrier(float *out, const float *in, i32 n) {
  if (!MISTAKE || threadIdx.x < 64) __syncthreads();  // HERE
  out[threadIdx.x] = in[threadIdx.x];
}
SORFT_EXPORT(half_barrier)

// Half of a warp waits for its other lanes, which wait for the block.
KERNEL deadlock(float *out, const float *in, i32 n) {
  if (MISTAKE && threadIdx.x < 16) __syncwarp();  // HERE
  __syncthreads();                                // HERE
  out[threadIdx.x] = in[threadIdx.x];
}
SORFT_EXPORT(deadlock)

// Two blocks add to the same place (`out` comes in as zeros).
KERNEL block_race(float *out, const float *in, i32 n) {
  if (MISTAKE) out[threadIdx.x] += in[threadIdx.x];  // HERE
  else atomicAdd(&out[threadIdx.x], in[threadIdx.x]);
}
SORFT_EXPORT(block_race)

// The last block to finish sums what all left behind: allowed by the fence and the counter. out: [4 + blocks * 128 + 128], zeros.
KERNEL last_block_without_fence(float *out, const float *in, i32 n) {
  SORFT_SMEM(int, last, 1);
  out[4 + blockIdx.x * 128 + threadIdx.x] = in[threadIdx.x];  // HERE
  if (!MISTAKE) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last[0] = atomicAdd(reinterpret_cast<u32 *>(out), 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last[0]) return;
  float sum = 0.0f;
  for (u32 b = 0; b < gridDim.x; b++) sum += out[4 + b * 128 + threadIdx.x];  // HERE
  out[4 + gridDim.x * 128 + threadIdx.x] = sum;
}
SORFT_EXPORT(last_block_without_fence)

// Which block is the last one is taken from its index, not from the counter.
KERNEL last_block_by_index(float *out, const float *in, i32 n) {
  SORFT_SMEM(int, last, 1);
  out[4 + blockIdx.x * 128 + threadIdx.x] = in[threadIdx.x];  // HERE
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last[0] = MISTAKE ? blockIdx.x == 0 : atomicAdd(reinterpret_cast<u32 *>(out), 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last[0]) return;
  float sum = 0.0f;
  for (u32 b = 0; b < gridDim.x; b++) sum += out[4 + b * 128 + threadIdx.x];  // HERE
  out[4 + gridDim.x * 128 + threadIdx.x] = sum;
}
SORFT_EXPORT(last_block_by_index)

// The counter is touched before the block's other threads have written.
KERNEL counter_before_barrier(float *out, const float *in, i32 n) {
  SORFT_SMEM(int, last, 1);
  out[4 + blockIdx.x * 128 + threadIdx.x] = in[threadIdx.x];  // HERE
  __threadfence();
  if (!MISTAKE) __syncthreads();
  if (threadIdx.x == 0) last[0] = atomicAdd(reinterpret_cast<u32 *>(out), 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last[0]) return;
  float sum = 0.0f;
  for (u32 b = 0; b < gridDim.x; b++) sum += out[4 + b * 128 + threadIdx.x];  // HERE
  out[4 + gridDim.x * 128 + threadIdx.x] = sum;
}
SORFT_EXPORT(counter_before_barrier)

// Correct only: what warp and block operations return. out[0..12 * 128].
KERNEL values(float *out, const float *in, i32 n) {
  const int t = threadIdx.x, lane = t % 32;
  out[t] = (float)__shfl_sync(FULL_WARP, lane, 5);
  out[128 + t] = (float)__shfl_up_sync(FULL_WARP, lane, 3);
  out[256 + t] = (float)__shfl_down_sync(FULL_WARP, lane, 3, 8);
  out[384 + t] = (float)__shfl_xor_sync(FULL_WARP, lane, 9);
  out[512 + t] = (float)__popc(__ballot_sync(FULL_WARP, lane % 3 == 0));
  out[640 + t] = (float)__popc(__match_any_sync(FULL_WARP, lane % 5));
  out[768 + t] = (float)__any_sync(FULL_WARP, lane == 31) + 2.0f * (float)__all_sync(FULL_WARP, lane < 31);
  out[896 + t] = (float)__syncthreads_count(t % 4 == 0);
  out[1024 + t] = (float)__syncthreads_or(t == 77) + 2.0f * (float)__syncthreads_and(t != 77);
  SORFT_SMEM(u32, counter, 1);
  if (t == 0) counter[0] = 0;
  __syncthreads();
  atomicAdd(counter, (u32)t);
  __syncthreads();
  out[1152 + t] = (float)counter[0];
  SORFT_SMEM(float, scratch, 4);
  out[1280 + t] = block_sum<4>(in[t], scratch);
  out[1408 + t] = lane < 16 ? (float)__shfl_xor_sync(0xffffu, lane, 8) : (float)__shfl_xor_sync(0xffff0000u, lane, 8);
}
SORFT_EXPORT(values)

// An asynchronous copy is waited for by nobody before it is read, not even by the thread that asked for it.
KERNEL copy_not_waited_for(float *out, const float *in, i32 n) {
  SORFT_DYN_SMEM(float, s);
  if (threadIdx.x < 32) ptx::cp_async(s + 4 * threadIdx.x, in + 4 * threadIdx.x, true);
  ptx::cp_async_commit();
  if (!MISTAKE) ptx::cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];  // HERE
  ptx::cp_async_wait<0>();
}
SORFT_EXPORT(copy_not_waited_for)

// Two groups are under way, and the wait leaves the one that is needed among those that may be.
KERNEL copy_waited_for_too_late(float *out, const float *in, i32 n) {
  SORFT_DYN_SMEM(float, s);
  for (int half = 0; half < 2; half++) {
    if (threadIdx.x / 16 == half) ptx::cp_async(s + 4 * threadIdx.x, in + 4 * threadIdx.x, true);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<MISTAKE ? 2 : 1>();
  __syncthreads();
  const float first = s[threadIdx.x % 64];  // HERE
  ptx::cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = first + s[threadIdx.x];
}
SORFT_EXPORT(copy_waited_for_too_late)

// A thread's own wait tells other threads nothing.
KERNEL copy_without_barrier(float *out, const float *in, i32 n) {
  SORFT_DYN_SMEM(float, s);
  if (threadIdx.x < 32) ptx::cp_async(s + 4 * threadIdx.x, in + 4 * threadIdx.x, true);  // HERE
  ptx::cp_async_commit();
  if (MISTAKE) __syncthreads();
  ptx::cp_async_wait<0>();
  if (!MISTAKE) __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];  // HERE
}
SORFT_EXPORT(copy_without_barrier)

// A copy is on its way to a place that others still read.
KERNEL copy_over_what_is_read(float *out, const float *in, i32 n) {
  SORFT_DYN_SMEM(float, s);
  s[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float before = s[127 - threadIdx.x];  // HERE
  if (!MISTAKE) __syncthreads();
  if (threadIdx.x < 32) ptx::cp_async(s + 4 * threadIdx.x, in + 4 * threadIdx.x, true);  // HERE
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = before + s[threadIdx.x];
}
SORFT_EXPORT(copy_over_what_is_read)

// ldmatrix brings lanes what other lanes have written.
KERNEL ldmatrix_without_syncwarp(float *out, const float *in, i32 n) {
  SORFT_SMEM(bf16x8, s, 128);
  for (int i = 0; i < VEC; i++) s[threadIdx.x].v[i] = to_bf16(in[threadIdx.x]);
  if (!MISTAKE) __syncwarp();
  u32 pieces[4];
  ptx::ldmatrix(pieces, s + threadIdx.x);  // HERE
  out[threadIdx.x] = to_f32(bf16{(u16)pieces[threadIdx.x % 4]});
}
SORFT_EXPORT(ldmatrix_without_syncwarp)

// mma.sync is for whole warps.
KERNEL mma_by_half_a_warp(float *out, const float *in, i32 n) {
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const u32 a[4] = {0, 0, 0, 0};
  if (!MISTAKE || threadIdx.x % 32 < 16) ptx::mma(d, a, 0, 0);
  else __syncwarp();  // HERE
  out[threadIdx.x] = d[0] + in[threadIdx.x];
}
SORFT_EXPORT(mma_by_half_a_warp)
