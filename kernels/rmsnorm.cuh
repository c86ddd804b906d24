// rmsnorm.cuh - the arithmetic of RMSNorm's forward pass, for rmsnorm.cu and qkv.cu.
#pragma once

namespace rmsnorm {

// sum + the squares of v, in order.
__device__ __forceinline__ float add_squares(float sum, const Vec8 &v) {
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) sum = fmaf(v.v[j], v.v[j], sum);
  return sum;
}

// 1 / sqrt(mean + eps), for the sum of a row's squares.
__device__ __forceinline__ float reciprocal_root(float sum, int cols, float eps) { return 1.0f / sqrtf(sum / (float)cols + eps); }

// v = v rstd w.
__device__ __forceinline__ void scale(Vec8 &v, float rstd, const Vec8 &w) {
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) v.v[j] = v.v[j] * rstd * w.v[j];
}

}  // namespace rmsnorm
