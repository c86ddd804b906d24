// head.cuh - the softmax of logits in strips of 64 columns, for head.cu and head_hopper.cu: the same numbers in the same lanes, the same order of sums.
#pragma once

namespace head {

// The logit of a column that is not there.
__device__ __forceinline__ float nothing() { return __uint_as_float(0xff800000u); }

// The sums of some logits.
struct Part {
  float max, sum, weighted;
};

__device__ __forceinline__ Part merge(Part a, Part b) {
  if (b.max == nothing()) return a;
  if (a.max == nothing()) return b;
  const float max = a.max > b.max ? a.max : b.max;
  const float da = a.max - max, db = b.max - max;
  const float ea = exp_f32(da), eb = exp_f32(db);
  return {max, a.sum * ea + b.sum * eb, ea * (a.weighted + a.sum * da) + eb * (b.weighted + b.sum * db)};
}

// The sums of a strip, of which this lane has 16 logits, z(0) to z(15), and the other three of its four lanes the others. Logits past the last are
// nothing().
template <class Logit>
__device__ __forceinline__ Part strip(const Logit &z) {
  Part p = {z(0), 0.0f, 0.0f};
  SORFT_UNROLL
  for (int i = 1; i < 16; i++) p.max = z(i) > p.max ? z(i) : p.max;
  SORFT_UNROLL
  for (int mask = 1; mask <= 2; mask <<= 1) {
    const float other = __shfl_xor_sync(FULL_WARP, p.max, mask);
    p.max = other > p.max ? other : p.max;
  }
  SORFT_UNROLL
  for (int i = 0; i < 16; i++) {
    const float d = z(i) - p.max, e = exp_f32(d);
    const bool there = z(i) != nothing();
    p.sum += there ? e : 0.0f;
    p.weighted = there ? fmaf(e, d, p.weighted) : p.weighted;
  }
  SORFT_UNROLL
  for (int mask = 1; mask <= 2; mask <<= 1) {
    p.sum += __shfl_xor_sync(FULL_WARP, p.sum, mask);
    p.weighted += __shfl_xor_sync(FULL_WARP, p.weighted, mask);
  }
  return p;
}

// The gradient of a row's logits, from its seeds: a, b, MAX, ln SUM, 1 / SUM, entropy.
struct RowGradient {
  float t, a, b, max, shift, inv_sum;
  int target;

  __device__ __forceinline__ RowGradient(const float *temperature, const u32 *targets, const float *seeds, i64 row) {
    const float *s = seeds + row * 6;
    t = temperature[row], target = (int)targets[row];
    a = s[0], b = s[1], max = s[2], shift = s[5] - s[3], inv_sum = s[4];
  }

  // dz of a column, for the product h . w of it.
  __device__ __forceinline__ float at(float product, int column) const {
    const float d = product / t - max;
    const float p = exp_f32(d) * inv_sum;
    const float g = -p * (a + b * (d + shift));
    return column == target ? g + a : g;
  }
};

}  // namespace head
