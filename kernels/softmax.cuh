// softmax.cuh - the running softmax of attention's forward kernels: a tile of scores after another, and splits that are merged.
//
// Online softmax as in FlashAttention-2 (Dao 2023). A warp has 16 rows, in the layout of mma.m16n8k16's and wgmma's accumulators: so the kernels for
// either do the same arithmetic on the same numbers.
#pragma once

namespace attention {

constexpr int SPLIT = 256;  // keys; SPLIT of src/tensor/ops/attention/cuda/work.rs

// The softmax of 16 rows, in units of raw scores. A lane has two of them, g and g + 8: a quarter of their keys and outputs.
template <int D>
struct State {
  float max[2], sum[2], out[D / 8][4];

  __device__ __forceinline__ void clear() {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) max[r] = minus_infinity(), sum[r] = 0.0f;
    tile::clear(out);
  }

  // Takes a tile's raw scores, -inf where masked; leaves e^{(s - max) scale} in them, and in `shrinks` what the outputs so far shrink by.
  __device__ __forceinline__ void take_scores(float (&s)[8][4], float scale_log2, float (&shrinks)[2]) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      float top = max[r];
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 1));
      top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, 2));
      const float shrink = factor(max[r], top, scale_log2), shift = top == minus_infinity() ? 0.0f : -top * scale_log2;
      max[r] = top;
      float part = 0.0f;
      SORFT_UNROLL
      for (int j = 0; j < 8; j++) {
        SORFT_UNROLL
        for (int e = 2 * r; e < 2 * r + 2; e++) {
          s[j][e] = ptx::ex2(fmaf(s[j][e], scale_log2, shift));
          part += s[j][e];
        }
      }
      sum[r] = fmaf(sum[r], shrink, part);
      shrinks[r] = shrink;
    }
  }

  __device__ __forceinline__ void shrink_outputs(const float (&shrinks)[2]) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      SORFT_UNROLL
      for (int j = 0; j < D / 8; j++) out[j][2 * r] *= shrinks[r], out[j][2 * r + 1] *= shrinks[r];
    }
  }

  // Both, where the outputs are at hand.
  __device__ __forceinline__ void add_scores(float (&s)[8][4], float scale_log2) {
    float shrinks[2];
    take_scores(s, scale_log2, shrinks);
    shrink_outputs(shrinks);
  }

  // The lanes of a quad add what each has summed.
  __device__ __forceinline__ void finish_sums() {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 1);
      sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 2);
    }
  }

  // What a sum with maximum `from` shrinks by where the maximum is `to`: exactly 1 if they are equal, 0 for an empty sum.
  static __device__ __forceinline__ float factor(float from, float to, float scale_log2) {
    return from == to ? 1.0f : ptx::ex2((from - to) * scale_log2);
  }
};

// The sums of two runs of keys, each relative to its own maximum, as one: `a` came before `b`.
struct Merge {
  float max, of_a, of_b;

  __device__ __forceinline__ Merge(float a, float b, float scale_log2)
      : max(fmaxf(a, b)), of_a(State<64>::factor(a, max, scale_log2)), of_b(State<64>::factor(b, max, scale_log2)) {}
  __device__ __forceinline__ float sum(float a, float b) const { return fmaf(a, of_a, b * of_b); }
};

// The splits before the present one, for one thread of a warpgroup: its numbers lie THREADS apart in shared memory, and nobody else reads them.
template <int D>
struct Before {
  float *out;
  float max[2], sum[2];
  bool any = false;

  // state = what came before and state, in this order.
  __device__ __forceinline__ void join(State<D> &state, float scale_log2) const {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const Merge merge(max[r], state.max[r], scale_log2);
      state.max[r] = merge.max;
      state.sum[r] = merge.sum(sum[r], state.sum[r]);
      SORFT_UNROLL
      for (int j = 0; j < D / 8; j++) {
        SORFT_UNROLL
        for (int e = 2 * r; e < 2 * r + 2; e++) state.out[j][e] = merge.sum(out[(j * 4 + e) * THREADS + threadIdx.x % THREADS], state.out[j][e]);
      }
    }
  }

  __device__ __forceinline__ void keep(const State<D> &state) {
    any = true;
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) max[r] = state.max[r], sum[r] = state.sum[r];
    SORFT_UNROLL
    for (int j = 0; j < D / 8; j++) {
      SORFT_UNROLL
      for (int e = 0; e < 4; e++) out[(j * 4 + e) * THREADS + threadIdx.x % THREADS] = state.out[j][e];
    }
  }
};

// Natural log of the sum of exponentials.
__device__ __forceinline__ float log_sum_exp(float max, float sum, float scale_log2) { return fmaf(max, scale_log2, ptx::lg2(sum)) * LN_2; }

}  // namespace attention
