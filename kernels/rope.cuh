// rope.cuh - the turn of a pair by its angle, for rope.cu and qkv.cu.
#pragma once

namespace rope {

__device__ __forceinline__ void turn(float &low, float &high, float cosine, float sine) {
  const float p = low, q = high;
  low = p * cosine - q * sine;
  high = q * cosine + p * sine;
}

}  // namespace rope
