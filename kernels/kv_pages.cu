// kv_pages.cu - keys and values into their pages of 64 positions, and a prompt's partial last page to its children.
//
// Shapes: k, v [T, H_kv, D] bf16; keys, values [pages, H_kv, 64, D] bf16; D a multiple of 8. slots [T, 2]: the page and the slot in it of each
// token, or NOWHERE for a row that only fills a batch of fixed size; copies [n, 3]: from page, to page, how many slots. Bytes: 8 H_kv D a token, and 8 H_kv D a copied slot; each number is moved once.
#include "sorft.cuh"
#include "kv_pages.cuh"

// Grid: (tokens, ceil(H_kv D / 8 / 128)).
extern "C" __global__ void __launch_bounds__(128)
kv_write_bf16(bf16 *__restrict__ keys, bf16 *__restrict__ values, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
              const u32 *__restrict__ slots, i32 kv_heads, i32 dim) {
  const int column = (int)(blockIdx.y * 128 + threadIdx.x) * VEC;
  if (column >= kv_heads * dim || slots[2 * (i64)blockIdx.x] == kv_pages::NOWHERE) return;
  const i64 token = blockIdx.x, from = token * kv_heads * dim + column;
  const i64 to = kv_pages::place(slots[2 * token], slots[2 * token + 1], column / dim, kv_heads, dim) + column % dim;
  store_vec(keys + to, load_vec<bf16x8>(k + from));
  store_vec(values + to, load_vec<bf16x8>(v + from));
}
SORFT_EXPORT(kv_write_bf16)

// Grid: (copies, kv heads). The copies of a batch do not depend on each other unless a child's copy is copied again: those are launches
// of their own.
extern "C" __global__ void __launch_bounds__(128)
kv_copy_bf16(bf16 *keys, bf16 *values, const u32 *__restrict__ copies, i32 kv_heads, i32 dim) {
  const u32 *own = copies + (i64)blockIdx.x * 3;
  const i64 size = (i64)64 * dim, from = ((i64)own[0] * kv_heads + blockIdx.y) * size, to = ((i64)own[1] * kv_heads + blockIdx.y) * size;
  for (int i = threadIdx.x * VEC; i < (int)own[2] * dim; i += 128 * VEC) {
    store_vec(keys + to + i, load_vec<bf16x8>(keys + from + i));
    store_vec(values + to + i, load_vec<bf16x8>(values + from + i));
  }
}
SORFT_EXPORT(kv_copy_bf16)

// What reached a child's copy of a partial page is added to the parent's, the last copy first: dk, dv [pages, H_kv, 64, D] f32. The copies of
// tree t are starts[t]..starts[t + 1]. A thread has one place of all pages, so it meets nobody.
// Grid: (trees, kv heads, ceil(64 D / 128)).
extern "C" __global__ void __launch_bounds__(128)
kv_fold_f32(float *__restrict__ dk, float *__restrict__ dv, const u32 *__restrict__ copies, const u32 *__restrict__ starts, i32 kv_heads,
            i32 dim) {
  const int place = (int)(blockIdx.z * 128 + threadIdx.x);
  if (place >= 64 * dim) return;
  const u32 first = starts[blockIdx.x];
  for (u32 i = starts[blockIdx.x + 1]; i > first; i--) {
    const u32 *own = copies + (i64)(i - 1) * 3;
    if (place / dim >= (int)own[2]) continue;
    const i64 to = ((i64)own[0] * kv_heads + blockIdx.y) * 64 * dim + place, from = ((i64)own[1] * kv_heads + blockIdx.y) * 64 * dim + place;
    dk[to] += dk[from];
    dv[to] += dv[from];
  }
}
SORFT_EXPORT(kv_fold_f32)

// k, v [T, H_kv, D] bf16 from pages of f32: the other way round, rounded once. Grid: (tokens, ceil(H_kv D / 8 / 128)).
extern "C" __global__ void __launch_bounds__(128)
kv_read_f32(bf16 *__restrict__ k, bf16 *__restrict__ v, const float *__restrict__ keys, const float *__restrict__ values,
            const u32 *__restrict__ slots, i32 kv_heads, i32 dim) {
  const int column = (int)(blockIdx.y * 128 + threadIdx.x) * VEC;
  if (column >= kv_heads * dim) return;
  const i64 token = blockIdx.x, to = token * kv_heads * dim + column;
  const i64 from = kv_pages::place(slots[2 * token], slots[2 * token + 1], column / dim, kv_heads, dim) + column % dim;
  SORFT_UNROLL
  for (int j = 0; j < VEC; j += 4) {
    const float4 x = load_vec<float4>(keys + from + j), y = load_vec<float4>(values + from + j);
    store_vec(k + to + j, to_bf16x2(x.x, x.y));
    store_vec(k + to + j + 2, to_bf16x2(x.z, x.w));
    store_vec(v + to + j, to_bf16x2(y.x, y.y));
    store_vec(v + to + j + 2, to_bf16x2(y.z, y.w));
  }
}
SORFT_EXPORT(kv_read_f32)
