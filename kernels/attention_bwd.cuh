// attention_bwd.cuh - the arithmetic that attention's backward kernels share: the same on the same layout of numbers, by mma.sync or by wgmma.
#pragma once

namespace attention {

// The probability of a key, from its raw score and the log of the sum of exponentials, in base 2.
__device__ __forceinline__ float probability(float score, float scale_log2, float lse) { return ptx::ex2(fmaf(score, scale_log2, -lse)); }

// The gradient of a raw score.
__device__ __forceinline__ float score_gradient(float p, float dp, float delta, float scale) { return p * (dp - delta) * scale; }

// What a block knows of the pairs of a stage. (Aligned, since two neighbours are read at once.)
template <int PAIRS>
struct alignas(16) Pairs {
  float lse[PAIRS], delta[PAIRS];  // lse in base 2, infinite where there is no pair: then every probability is 0
  int position[PAIRS];             // -1 where there is no pair, so that it sees nothing

  // Pair `pair` of the stage: the token's head at `at`.
  __device__ __forceinline__ void take(int pair, bool valid, const float *lses, const float *deltas, const u32 *positions, i64 token, i64 at) {
    lse[pair] = valid ? lses[at] * LOG2_E : -minus_infinity();
    delta[pair] = valid ? deltas[at] : 0.0f;
    position[pair] = valid ? (int)positions[token] : -1;
  }
};

}  // namespace attention
