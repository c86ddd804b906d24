// adamw.cu - one fused AdamW step (Loshchilov and Hutter 2019) in PyTorch's order of operations, with the clip scale and the decay.
//
//   g' = g clip;  m += (1 - b1)(g' - m);  v = b2 v + (1 - b2) g'^2
//   p = p decay - step_size * (m / (sqrt(v) / bias2_sqrt + eps));  w = bf16(p)
//
// Shapes: all [n]; p (the master weight), g, m, v f32, w (what the model computes with) bf16. The bits of p, m and v are those of the
// processor's op (src/tensor/ops/adamw/mod.rs).
//
// Bytes moved at N parameters (H200: 4.3 TB/s measured copy): 30N. At 135 M: 0.94 ms; at 1.5 G: 10.5 ms.
//
// adamw_8bit: the same on a matrix [rows, cols] whose moments are kept as codes [rows, cols], a byte each, with an f32 scale for each block of
// up to 256 columns of a row, [rows, ceil(cols / 256)]. The code, the rounding and its random numbers are explained in
// src/tensor/ops/adamw/codes.rs; bits are the processor's here too. A warp updates a block: the moments are decoded, stepped in f32, and
// coded anew by the block's new largest magnitudes (a maximum has no order). Bytes: 18N and 16 a block; at 1.5 G: 6.3 ms. Not measured on a
// chip: by the size of its code some 150 instructions a number, about what an H200 issues in that time.
#include "sorft.cuh"

namespace adamw {

constexpr int LANES = 4;  // numbers of one 16-byte access

struct alignas(16) Four {
  float v[LANES];
};
struct alignas(8) Four16 {
  bf16 v[LANES];
};

struct Scalars {
  float decay, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, bias2_sqrt, clip;
};

__device__ __forceinline__ void step(float &p, float g, float &m, float &v, const Scalars &s) {
  g = g * s.clip;
  m = fmaf(s.one_minus_beta1, g - m, m);
  v = v * s.beta2 + g * g * s.one_minus_beta2;
  p = p * s.decay - s.step_size * (m / (sqrtf(v) / s.bias2_sqrt + s.eps));
}

// ---- moments in 8 bits

constexpr int BLOCK = 256;           // columns that share a scale
constexpr int EACH = BLOCK / 32;     // columns of a lane
constexpr int FIRST = 6, SECOND = 7; // bits of the code below the exponent's

struct alignas(8) Codes {
  u8 v[EACH];
};

__device__ __forceinline__ float power_of_two(int n) { return __uint_as_float((u32)(127 + n) << 23); }

// The part of the scale that code k stands for.
template <int F>
__device__ __forceinline__ float level(u32 k) {
  const float number = (float)(int)k;
  const int f = (int)(__float_as_uint(number) >> 23) - 127;
  const float rest = (number + 1.0f) * power_of_two(-f) - 1.0f;
  const float x = (15.0f * rest + 1.0f) * power_of_two(4 * (f - F - 1));
  return k == 0 ? 0.0f : x;
}

// The code of x in [0, 1], rounded up where u is below the way to the level above.
template <int F>
__device__ __forceinline__ u32 code(float x, float u) {
  const int e = min(max(126 - (int)(__float_as_uint(x) >> 23), 0) >> 2, F);
  const int f = F - e;
  const float y = x * power_of_two(4 * (e + 1));
  const float way = f == 0 ? y * (1.0f / 16.0f) : (y - 1.0f) * (1.0f / 15.0f) * power_of_two(f);
  const int whole = (int)way;
  const int up = u < way - (float)whole;
  return (u32)min((1 << f) - 1 + whole + up, (2 << F) - 1);
}

__device__ __forceinline__ float first(u8 code, float scale) {
  const float x = level<FIRST>(code & 0x7fu) * scale;
  return __uint_as_float(__float_as_uint(x) | (u32)(code & 0x80u) << 24);
}

__device__ __forceinline__ float second(u8 code, float scale) { return level<SECOND>(code) * scale; }

// The low 12 random bits round a first moment, the high 20 a second one.
__device__ __forceinline__ u8 code_first(float m, float inverse, u32 bits) {
  const float u = ((float)(int)(bits & 0xfffu) + 0.5f) * power_of_two(-12);
  return (u8)(code<FIRST>(fminf(fabsf(m) * inverse, 1.0f), u) | (__float_as_uint(m) >> 24 & 0x80u));
}

__device__ __forceinline__ u8 code_second(float v, float inverse, u32 bits) {
  const float u = ((float)(int)(bits >> 12) + 0.5f) * power_of_two(-20);
  return (u8)max(code<SECOND>(fminf(v * inverse, 1.0f), u), (u32)(v > 0.0f));
}

// A block's scale by its largest magnitude; 0 for a block of zeros.
__device__ __forceinline__ float scale_of(float largest) { return largest == 0.0f ? 0.0f : fmaxf(largest, power_of_two(-120)); }
__device__ __forceinline__ float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

// Philox-4x32-10 (Salmon et al. 2011), as src/tensor/philox.rs has it.
__device__ __forceinline__ uint4 philox(u32 k0, u32 k1, uint4 c) {
  SORFT_UNROLL
  for (int round = 0; round < 10; round++) {
    const u64 p0 = (u64)c.x * 0xD2511F53u, p1 = (u64)c.z * 0xCD9E8D57u;
    c = uint4{(u32)(p1 >> 32) ^ c.y ^ k0, (u32)p1, (u32)(p0 >> 32) ^ c.w ^ k1, (u32)p0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace adamw

// A thread updates 4 parameters. Grid: ceil(n / 1024).
extern "C" __global__ void __launch_bounds__(256)
adamw_f32(float *__restrict__ p, bf16 *__restrict__ w, float *__restrict__ m, float *__restrict__ v, const float *__restrict__ g, i64 n,
          float decay, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float step_size, float bias2_sqrt, float clip) {
  using namespace adamw;
  const Scalars s = {decay, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, bias2_sqrt, clip};
  const i64 first = ((i64)blockIdx.x * 256 + threadIdx.x) * LANES;
  if (first >= n) return;
  if (n - first >= LANES) {
    Four p4 = load_vec<Four>(p + first), m4 = load_vec<Four>(m + first), v4 = load_vec<Four>(v + first);
    const Four g4 = load_vec<Four>(g + first);
    Four16 w4;
    SORFT_UNROLL
    for (int j = 0; j < LANES; j++) {
      step(p4.v[j], g4.v[j], m4.v[j], v4.v[j], s);
      w4.v[j] = to_bf16(p4.v[j]);
    }
    store_vec(p + first, p4);
    store_vec(m + first, m4);
    store_vec(v + first, v4);
    store_vec(w + first, w4);
    return;
  }
  for (i64 i = first; i < n; i++) {
    float p1 = p[i], m1 = m[i], v1 = v[i];
    step(p1, g[i], m1, v1, s);
    p[i] = p1;
    m[i] = m1;
    v[i] = v1;
    w[i] = to_bf16(p1);
  }
}
SORFT_EXPORT(adamw_f32)

// A warp updates a block, a lane 8 neighbouring columns. Grid: ceil(rows ceil(cols / 256) / 8).
extern "C" __global__ void __launch_bounds__(256)
adamw_8bit(float *__restrict__ p, bf16 *__restrict__ w, u8 *__restrict__ m, u8 *__restrict__ v, float *__restrict__ m_scale,
           float *__restrict__ v_scale, const float *__restrict__ g, i32 rows, i32 cols, float decay, float one_minus_beta1, float beta2,
           float one_minus_beta2, float eps, float step_size, float bias2_sqrt, float clip, u32 key0, u32 key1, u32 counter, u32 tensor) {
  using namespace adamw;
  const Scalars s = {decay, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, bias2_sqrt, clip};
  const int lane = threadIdx.x % 32, in_row = (cols + BLOCK - 1) / BLOCK;
  const i64 block = (i64)blockIdx.x * 8 + threadIdx.x / 32;
  if (block >= (i64)rows * in_row) return;
  const u32 row = (u32)(block / in_row);
  const int column = (int)(block % in_row) * BLOCK + lane * EACH;
  const int count = max(min(cols - column, EACH), 0);
  const i64 first_number = (i64)row * cols + column;
  const bool whole = cols % EACH == 0 && count == EACH;
  const float m_old = m_scale[block], v_old = v_scale[block];

  Codes m8 = {}, v8 = {};
  float p8[EACH] = {}, g8[EACH] = {}, m32[EACH], v32[EACH];
  if (whole) {
    m8 = load_vec<Codes>(m + first_number), v8 = load_vec<Codes>(v + first_number);
    SORFT_UNROLL
    for (int i = 0; i < EACH; i += LANES) {
      const Four p4 = load_vec<Four>(p + first_number + i), g4 = load_vec<Four>(g + first_number + i);
      SORFT_UNROLL
      for (int j = 0; j < LANES; j++) p8[i + j] = p4.v[j], g8[i + j] = g4.v[j];
    }
  } else {
    SORFT_UNROLL
    for (int j = 0; j < EACH; j++)
      if (j < count) {
        const i64 at = first_number + j;
        m8.v[j] = m[at], v8.v[j] = v[at], p8[j] = p[at], g8[j] = g[at];
      }
  }

  float m_top = 0.0f, v_top = 0.0f;
  SORFT_UNROLL
  for (int j = 0; j < EACH; j++) {
    m32[j] = first(m8.v[j], m_old), v32[j] = second(v8.v[j], v_old);
    step(p8[j], g8[j], m32[j], v32[j], s);
    m_top = fmaxf(m_top, fabsf(m32[j])), v_top = fmaxf(v_top, v32[j]);  // columns beyond the last are zeros, and stay so
  }
  const float m_new = scale_of(warp_max(m_top)), v_new = scale_of(warp_max(v_top));
  const float m_inverse = inverse_of(m_new), v_inverse = inverse_of(v_new);
  SORFT_UNROLL
  for (int i = 0; i < EACH; i += 4) {
    const uint4 r = philox(key0, key1, uint4{(u32)(column + i) / 4, row, counter, tensor});
    const u32 bits[4] = {r.x, r.y, r.z, r.w};
    SORFT_UNROLL
    for (int j = 0; j < 4; j++) {
      m8.v[i + j] = code_first(m32[i + j], m_inverse, bits[j]);
      v8.v[i + j] = code_second(v32[i + j], v_inverse, bits[j]);
    }
  }

  if (whole) {
    store_vec(m + first_number, m8);
    store_vec(v + first_number, v8);
    bf16x8 w8;
    SORFT_UNROLL
    for (int i = 0; i < EACH; i += LANES) {
      Four p4;
      SORFT_UNROLL
      for (int j = 0; j < LANES; j++) p4.v[j] = p8[i + j], w8.v[i + j] = to_bf16(p8[i + j]);
      store_vec(p + first_number + i, p4);
    }
    store_vec(w + first_number, w8);
  } else {
    SORFT_UNROLL
    for (int j = 0; j < EACH; j++)
      if (j < count) {
        const i64 at = first_number + j;
        m[at] = m8.v[j], v[at] = v8.v[j], p[at] = p8[j], w[at] = to_bf16(p8[j]);
      }
  }
  __syncwarp();  // every lane has read the old scales
  if (lane == 0) m_scale[block] = m_new, v_scale[block] = v_new;
}
SORFT_EXPORT(adamw_8bit)
