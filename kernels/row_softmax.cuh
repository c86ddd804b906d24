// row_softmax.cuh - a row's softmax in f64 from the sums of its chunks of the vocabulary, for head.cu (training) and sample.cu: the same numbers in
// the same order of sums, those of Softmax::of of src/tensor/ops/token_logprob/mod.rs.
#pragma once

namespace row_softmax {

// e^x with a relative error below 2 units in the last place, the bits of exp64 of src/tensor/cpu/vector.rs: x = n ln 2 + r, a polynomial of degree 13
// for e^r, 2^n through the exponent. 0 below -708, NaN for NaN.
__device__ __forceinline__ double exp_f64(double x) {
  const double round = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer in the low bits of the mantissa
  const double clamped = x < -708.0 ? -708.0 : x > 709.0 ? 709.0 : x;
  const double t = fma(clamped, 1.4426950408889634, round);
  const double n = t - round;
  const double r = fma(n, -1.9082149292705877e-10, fma(n, -6.931471803691238e-1, clamped));
  double p = 1.0 / 6227020800.0;
  p = fma(p, r, 1.0 / 479001600.0);
  p = fma(p, r, 1.0 / 39916800.0);
  p = fma(p, r, 1.0 / 3628800.0);
  p = fma(p, r, 1.0 / 362880.0);
  p = fma(p, r, 1.0 / 40320.0);
  p = fma(p, r, 1.0 / 5040.0);
  p = fma(p, r, 1.0 / 720.0);
  p = fma(p, r, 1.0 / 120.0);
  p = fma(p, r, 1.0 / 24.0);
  p = fma(p, r, 1.0 / 6.0);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  const u64 power = ((u64)__double_as_longlong(t) - (u64)__double_as_longlong(round) + 1023) << 52;
  if (x < -708.0) return 0.0;
  return x == x ? p * __longlong_as_double((i64)power) : x;
}

// What a chunk with these sums has of the row's sum.
__device__ __forceinline__ double mass(float chunk_max, float chunk_sum, double max) {
  return exp_f64((double)chunk_max - max) * (double)chunk_sum;
}

}  // namespace row_softmax
