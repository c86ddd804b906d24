// rope.cu - rotary position embedding (Su et al. 2021) in the half-split form of Hugging Face, in place; `sign` -1 is the gradient's turn.
//
//   y_i = bf16(x_i c_i - x_{i+h} s_i),  y_{i+h} = bf16(x_{i+h} c_i + x_i s_i)       with h = head_dim / 2, s_i = sign * sine
//
// Shapes: x [tokens, heads, 2h] bf16; angles [tokens, 2, h] f32, a row's cosines and then its sines (src/tensor/ops/rope.rs).
//
// Bytes moved at T tokens of H heads (H200: 4.3 TB/s measured copy): 8THh + 8Th. At 16384 tokens, 32 heads of 128: 64 us.
#include "sorft.cuh"
#include "rope.cuh"

// A thread turns 8 pairs. Grid: ceil(tokens * heads * ceil(h / 8) / 256).
extern "C" __global__ void __launch_bounds__(256)
rope_bf16(bf16 *__restrict__ x, const float *__restrict__ angles, i32 tokens, i32 heads, i32 half, float sign) {
  const i32 vectors = (half + VEC - 1) / VEC;
  const i64 unit = (i64)blockIdx.x * 256 + threadIdx.x;
  if (unit >= (i64)tokens * heads * vectors) return;
  const i32 first = (i32)(unit % vectors) * VEC;
  const i64 head = unit / vectors, token = head / heads;
  const bool whole = half % VEC == 0;
  bf16 *low = x + head * 2 * half, *high = low + half;
  const float *cosines = angles + token * 2 * half, *sines = cosines + half;
  Vec8 a = load8(low, first, half, whole), b = load8(high, first, half, whole);
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) {
    const bool inside = first + j < half;
    const float c = inside ? cosines[first + j] : 0.0f, s = (inside ? sines[first + j] : 0.0f) * sign;
    rope::turn(a.v[j], b.v[j], c, s);
  }
  store8(low, a, first, half, whole);
  store8(high, b, first, half, whole);
}
SORFT_EXPORT(rope_bf16)
