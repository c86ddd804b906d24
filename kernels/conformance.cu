// conformance.cu - every wrapper of ptx.cuh by itself, on bits that the host gives: what src/tensor/cuda/conformance.rs compares with the words
// of the PTX manual, on a chip and, as long as there is none, on the emulator (the wrappers' host twins) and by the PTX.
//
// Shapes: a block is one warp, and has its own part of each array; `n` counts numbers of element-wise kernels. All arrays are bits, as u32.
#include "sorft.cuh"

namespace conformance {

constexpr int LANES = 32, GROUPS = 3;

// A row of ldmatrix, and what one cp.async copies.
struct alignas(16) Row {
  u32 v[4];
};

__device__ __forceinline__ Row row_at(const u32 *p) { return load_vec<Row>(p); }

// Rows of 16 bytes to shared memory as they are, and from there by ldmatrix: lane l asks for row rows[l].
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(u32 *out, const u32 *in, const u32 *rows, Row *tile) {
  const u32 lane = threadIdx.x, at = blockIdx.x * LANES + lane;
  store_vec(tile + lane, row_at(in + 4 * at));
  __syncwarp();
  u32 got[4];
  if (TRANSPOSED) ptx::ldmatrix_trans(got, tile + rows[at]);
  else ptx::ldmatrix(got, tile + rows[at]);
  store_vec(out + 4 * at, Row{{got[0], got[1], got[2], got[3]}});
}

}  // namespace conformance

// out [n] = the pair (in[2 i], in[2 i + 1]). Grid: ceil(n / 32).
extern "C" __global__ void __launch_bounds__(32) conformance_cvt_bf16x2(u32 *__restrict__ out, const u32 *__restrict__ in, i32 n) {
  const int i = blockIdx.x * conformance::LANES + threadIdx.x;
  if (i < n) out[i] = ptx::cvt_bf16x2(__uint_as_float(in[2 * i]), __uint_as_float(in[2 * i + 1]));
}
SORFT_EXPORT(conformance_cvt_bf16x2)

extern "C" __global__ void __launch_bounds__(32) conformance_ex2(u32 *__restrict__ out, const u32 *__restrict__ in, i32 n) {
  const int i = blockIdx.x * conformance::LANES + threadIdx.x;
  if (i < n) out[i] = __float_as_uint(ptx::ex2(__uint_as_float(in[i])));
}
SORFT_EXPORT(conformance_ex2)

extern "C" __global__ void __launch_bounds__(32) conformance_lg2(u32 *__restrict__ out, const u32 *__restrict__ in, i32 n) {
  const int i = blockIdx.x * conformance::LANES + threadIdx.x;
  if (i < n) out[i] = __float_as_uint(ptx::lg2(__uint_as_float(in[i])));
}
SORFT_EXPORT(conformance_lg2)

// in, out [blocks, 32, 4]; rows [blocks, 32] below 32.
extern "C" __global__ void __launch_bounds__(32)
conformance_ldmatrix(u32 *__restrict__ out, const u32 *__restrict__ in, const u32 *__restrict__ rows) {
  SORFT_SMEM(conformance::Row, tile, conformance::LANES);
  conformance::load_matrices<false>(out, in, rows, tile);
}
SORFT_EXPORT(conformance_ldmatrix)

extern "C" __global__ void __launch_bounds__(32)
conformance_ldmatrix_trans(u32 *__restrict__ out, const u32 *__restrict__ in, const u32 *__restrict__ rows) {
  SORFT_SMEM(conformance::Row, tile, conformance::LANES);
  conformance::load_matrices<true>(out, in, rows, tile);
}
SORFT_EXPORT(conformance_ldmatrix_trans)

// Fragments of each lane: a, c, out [blocks, 32, 4], b [blocks, 32, 2].
extern "C" __global__ void __launch_bounds__(32)
conformance_mma(u32 *__restrict__ out, const u32 *__restrict__ a, const u32 *__restrict__ b, const u32 *__restrict__ c) {
  const u32 at = blockIdx.x * conformance::LANES + threadIdx.x;
  u32 x[4];
  float d[4];
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) x[i] = a[4 * at + i], d[i] = __uint_as_float(c[4 * at + i]);
  ptx::mma(d, x, b[2 * at], b[2 * at + 1]);
  SORFT_UNROLL
  for (int i = 0; i < 4; i++) out[4 * at + i] = __float_as_uint(d[i]);
}
SORFT_EXPORT(conformance_mma)

// Three groups of copies, waited for one after another: out [blocks, 3, 32, 4] is row from[b, g, l] of in [_, 4], zeros where that is 2^32 - 1. The last
// group is read by the opposite lane.
extern "C" __global__ void __launch_bounds__(32)
conformance_cp_async(u32 *__restrict__ out, const u32 *__restrict__ in, const u32 *__restrict__ from) {
  using namespace conformance;
  SORFT_SMEM(Row, tile, GROUPS *LANES);
  const u32 lane = threadIdx.x, at = blockIdx.x * GROUPS * LANES + lane;
  SORFT_UNROLL
  for (int g = 0; g < GROUPS; g++) {
    const u32 row = from[at + g * LANES];
    const bool valid = row != 0xffffffffu;
    ptx::cp_async(tile + g * LANES + lane, in + (valid ? 4 * row : 0), valid);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<2>();
  store_vec(out + 4 * at, load_vec<Row>(tile + lane));
  ptx::cp_async_wait<1>();
  store_vec(out + 4 * (at + LANES), load_vec<Row>(tile + LANES + lane));
  ptx::cp_async_wait<0>();
  __syncwarp();
  store_vec(out + 4 * (at + 2 * LANES), load_vec<Row>(tile + 2 * LANES + (31 - lane)));
}
SORFT_EXPORT(conformance_cp_async)

// Blocks by turns, which they take as they begin: in its turn t a block makes words = 3 words + in[t], and leaves them in out[t]. out, in [blocks, 32];
// state [2 + 32], all 0 at first: how many have begun, how many are done, the words.
extern "C" __global__ void __launch_bounds__(32)
conformance_turns(u32 *__restrict__ out, u32 *__restrict__ state, const u32 *__restrict__ in) {
  SORFT_SMEM(u32, begun, 1);
  const u32 lane = threadIdx.x;
  if (lane == 0) {
    begun[0] = atomicAdd(state, 1u);
    ptx::wait_for(state + 1, begun[0]);
  }
  __syncwarp();
  const u32 at = begun[0] * conformance::LANES + lane, word = 3 * state[2 + lane] + in[at];
  out[at] = state[2 + lane] = word;
  __syncwarp();
  if (lane == 0) ptx::add_release(state + 1, 1);
}
SORFT_EXPORT(conformance_turns)

// One of several launches that follow one another: out[i] = a long chain of steps from in[n - 1 - i], which another block of the launch before has made.
extern "C" __global__ void __launch_bounds__(32) conformance_follow(u32 *__restrict__ out, const u32 *__restrict__ in, i32 n) {
  ptx::let_next_begin();
  const int i = blockIdx.x * conformance::LANES + threadIdx.x;
  ptx::wait_for_earlier_launches(in);
  if (i >= n) return;
  u32 word = in[n - 1 - i];
  SORFT_NO_UNROLL
  for (int step = 0; step < 1000; step++) word = word * 1664525u + 1013904223u;
  out[i] = word;
}
SORFT_EXPORT(conformance_follow)
