// sorft.cuh - what every kernel includes first: integer names, the bf16 type, vector loads and fixed-order reductions.
//
// The same sources are compiled by two compilers: NVRTC on a machine with a GPU, and a host C++ compiler with SORFT_EMULATOR defined, for the
// emulator that runs them in tests (kernels/emulator/). So a kernel
//   * includes no header of the CUDA toolkit (NVRTC brings none) and no standard header;
//   * is `extern "C" __global__ void __launch_bounds__(N) name(...)`, takes pointers, i32, u32, i64 and f32 only, and is followed by
//     SORFT_EXPORT(name);
//   * declares shared memory only by SORFT_SMEM and SORFT_DYN_SMEM, and reads or writes vectors only by load_vec and store_vec;
//   * keeps inline PTX in ptx.cuh.
// Tiles for tensor cores are in tile.cuh, which this file includes too.
//
// Products and sums are not contracted into fused multiply-adds behind our back (`--fmad=false`, `-ffp-contract=off`): where one is wanted,
// the source says fmaf. So the bits of a result are a property of the source, the same in every instantiation and in the emulator.
#pragma once

#if defined(SORFT_EMULATOR)
#include "emulator/device.hpp"
#else
// Entry points need nothing on a GPU; for the emulator this adds a shim that takes an argument array as cuLaunchKernel does.
#define SORFT_EXPORT(name)
// A shared array of n elements.
#define SORFT_SMEM(T, name, n) __shared__ T name[n]
// The shared memory whose size the launch gives; once a kernel.
#define SORFT_DYN_SMEM(T, name)                                      \
  extern __shared__ __align__(1024) unsigned char sorft_dyn_smem_[]; \
  T *name = reinterpret_cast<T *>(sorft_dyn_smem_)
#define SORFT_UNROLL _Pragma("unroll")
#define SORFT_NO_UNROLL _Pragma("unroll 1")
#endif

using i32 = int;
using i64 = long long;
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 FULL_WARP = 0xffffffffu;

// ---------------------------------------------------------------------------------------------------------------------------- bf16

// The upper half of an f32. Arithmetic is done in f32; a bf16 is only stored.
struct bf16 {
  u16 bits;
};

// Eight bf16 in one 16-byte access, the widest there is.
struct alignas(16) bf16x8 {
  bf16 v[8];
};

#include "ptx.cuh"

__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 to_bf16(float x) { return bf16{(u16)ptx::cvt_bf16x2(x, 0.0f)}; }

// -------------------------------------------------------------------------------------------------------------------- vector access

// One access of sizeof(V) bytes; p must be aligned to that. (The emulator must see the whole width, whatever its compiler makes of it.)
template <class V, class T>
__device__ __forceinline__ V load_vec(const T *p) {
#if defined(SORFT_EMULATOR)
  V v;
  emu::load(&v, p, sizeof(V));
  return v;
#else
  return *reinterpret_cast<const V *>(p);
#endif
}

template <class V, class T>
__device__ __forceinline__ void store_vec(T *p, const V &v) {
#if defined(SORFT_EMULATOR)
  emu::store(p, &v, sizeof(V));
#else
  *reinterpret_cast<V *>(p) = v;
#endif
}

// Two bf16 in one 4-byte access: a lane's share of a row of an accumulator.
struct alignas(4) bf16x2 {
  bf16 v[2];
};
__device__ __forceinline__ bf16x2 to_bf16x2(float lo, float hi) {
  const u32 pair = ptx::cvt_bf16x2(lo, hi);
  return bf16x2{{bf16{(u16)pair}, bf16{(u16)(pair >> 16)}}};
}

// Eight neighbouring columns of a row in f32; columns past the row's end are zero.
constexpr int VEC = 8;
struct Vec8 {
  float v[VEC];
};

// Columns first..first + 8 of a row of `cols` bf16. `whole`: the row starts at a multiple of 16 bytes and cols % 8 == 0.
__device__ __forceinline__ Vec8 load8(const bf16 *row, int first, int cols, bool whole) {
  Vec8 r;
  if (whole) {
    const bf16x8 packed = load_vec<bf16x8>(row + first);
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++) r.v[j] = to_f32(packed.v[j]);
  } else {
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++) r.v[j] = first + j < cols ? to_f32(row[first + j]) : 0.0f;
  }
  return r;
}

// Rounds v to bf16, and leaves the rounded values in v.
__device__ __forceinline__ bf16x8 round8(Vec8 &v) {
  bf16x8 packed;
  SORFT_UNROLL
  for (int j = 0; j < VEC; j += 2) {
    const u32 pair = ptx::cvt_bf16x2(v.v[j], v.v[j + 1]);
    packed.v[j].bits = (u16)pair;
    packed.v[j + 1].bits = (u16)(pair >> 16);
  }
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) v.v[j] = to_f32(packed.v[j]);
  return packed;
}

// Rounds v to bf16, stores it, and leaves the rounded values in v.
__device__ __forceinline__ void store8(bf16 *row, Vec8 &v, int first, int cols, bool whole) {
  const bf16x8 packed = round8(v);
  if (whole) {
    store_vec(row + first, packed);
  } else {
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++)
      if (first + j < cols) row[first + j] = packed.v[j];
  }
}

// -------------------------------------------------------------------------------------------------------------------------- functions

// e^x with a relative error below 2 units in the last place, the bits of the processor's side (src/tensor/cpu/vector.rs): x = n ln 2 + r, a
// polynomial of degree 7 for e^r, 2^n through the exponent. 0 below -86.6, infinite above 88.72, NaN for NaN.
__device__ __forceinline__ float exp_f32(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits of the mantissa
  const float clamped = x < -86.6f ? -86.6f : x > 88.72f ? 88.72f : x;
  const float t = fmaf(clamped, 1.44269504f, round);
  const float n = t - round;
  const float r = fmaf(n, -1.4286068e-6f, fmaf(n, -0.69314575f, clamped));
  float p = 1.0f / 5040.0f;
  p = fmaf(p, r, 1.0f / 720.0f);
  p = fmaf(p, r, 1.0f / 120.0f);
  p = fmaf(p, r, 1.0f / 24.0f);
  p = fmaf(p, r, 1.0f / 6.0f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r, 1.0f);
  p = fmaf(p, r, 1.0f);
  // 2^n as 2^(n-1) * 2, so that n = 128 does not overflow the exponent field.
  const float half = __uint_as_float((__float_as_uint(t) - __float_as_uint(round) + 126u) << 23);
  const float e = p * half * 2.0f;
  if (x < -86.6f) return 0.0f;
  if (x > 88.72f) return __uint_as_float(0x7f800000u);
  return x == x ? e : x;
}

// 1 / (1 + e^-x).
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

// x / (1 + e^-x), by which a SwiGLU's gate lets through.
__device__ __forceinline__ float swish(float x) { return x * sigmoid(x); }

// ------------------------------------------------------------------------------------------------------------------------- reductions

// The sum over a warp, the same tree in every lane: all lanes get the same bits.
__device__ __forceinline__ float warp_sum(float v) {
  SORFT_UNROLL
  for (int mask = 16; mask > 0; mask >>= 1) v += __shfl_xor_sync(FULL_WARP, v, mask);
  return v;
}

// The largest number of a warp, in every lane.
__device__ __forceinline__ float warp_max(float v) {
  SORFT_UNROLL
  for (int mask = 16; mask > 0; mask >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, mask));
  return v;
}

// The sum over the WARPS warps of a block: warp sums first, then those in a tree of their own. `scratch` holds WARPS floats; it may be used
// again after the call. Every thread of the block takes part and gets the same bits.
template <int WARPS>
__device__ __forceinline__ float block_sum(float v, float *scratch) {
  static_assert(WARPS <= 32, "one warp sums the warps");
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = warp_sum(lane < WARPS ? scratch[lane] : 0.0f);
  __syncthreads();
  return v;
}

#include "tile.cuh"
