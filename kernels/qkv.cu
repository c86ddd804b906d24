// qkv.cu - all that lies between the products q, k, v and attention when decoding, in one launch: the norms of heads, where the model has them, the turn
// by the position, and keys and values to their pages.
//
//   n = bf16(x rstd w), rstd = 1 / sqrt(mean(x^2) + eps)     for each head x of q and of k, each with its own w; n = x where there is none
//   q = bf16(n turned), keys = bf16(n turned)                rope.cu has the turn
//   values = v
//
// Shapes: q [T, H, D], turned in place, k, v [T, H_kv, D] bf16; w_q, w_k [D] bf16, or null; angles [T, 2, D / 2] f32; keys, values and slots as in
// kv_pages.cu. D is a multiple of 16, at most 256. Of a row whose page is NOWHERE nothing is written but q.
//
// Order of sums: that of rmsnorm.cu with a warp a row, and all bits those of the launches of rmsnorm.cu, rope.cu and kv_pages.cu: lane t of a head's warp
// has the numbers 8 t.., and gets the other numbers of its pairs, half a head away, by shuffles.
// Bytes: 4 (H + 2 H_kv) D a token, and 4 D of angles for each head, by L1. At 64 tokens, H = 14, H_kv = 2, D = 64: 0.1 us at 4.3 TB/s, so that what it
// takes is a launch and two reads one after the other. Not measured on a chip yet.
#include "sorft.cuh"
#include "kv_pages.cuh"
#include "rmsnorm.cuh"
#include "rope.cuh"

namespace qkv {

constexpr int WARPS = 4;

// The lane's numbers of a head x with its norm by w (where there is one), turned by its token's angles [2, D / 2].
__device__ __forceinline__ Vec8 turned(const bf16 *x, const bf16 *w, const float *angles, int dim, float eps) {
  const int lane = threadIdx.x % 32, first = lane * VEC, half = dim / 2, pairs = half / VEC;
  const bool inside = first < dim, low = lane < pairs;
  // All that is read is asked for before the first of it is waited for.
  Vec8 own = {}, weights = {}, cosines = {}, sines = {};
  if (inside) {
    own = load8(x, first, dim, true);
    if (w) weights = load8(w, first, dim, true);
    const float *row = angles + (low ? first : first - half);
    SORFT_UNROLL
    for (int j = 0; j < VEC; j++) cosines.v[j] = row[j], sines.v[j] = row[half + j];
  }
  if (w) {
    rmsnorm::scale(own, rmsnorm::reciprocal_root(warp_sum(rmsnorm::add_squares(0.0f, own)), dim, eps), weights);
    round8(own);
  }
  SORFT_UNROLL
  for (int j = 0; j < VEC; j++) {
    const float other = __shfl_sync(FULL_WARP, own.v[j], low ? lane + pairs : lane - pairs);
    float p = low ? own.v[j] : other, q = low ? other : own.v[j];
    rope::turn(p, q, cosines.v[j], sines.v[j]);
    own.v[j] = low ? p : q;
  }
  return own;
}

}  // namespace qkv

// A warp a head: of each token those of q, then those of k, then those of v. Grid: ceil(T (H + 2 H_kv) / 4).
extern "C" __global__ void __launch_bounds__(128)
qkv_bf16(bf16 *q, bf16 *__restrict__ keys, bf16 *__restrict__ values, const bf16 *__restrict__ k, const bf16 *__restrict__ v,
         const bf16 *__restrict__ w_q, const bf16 *__restrict__ w_k, const float *__restrict__ angles, const u32 *__restrict__ slots,
         i32 tokens, i32 heads, i32 kv_heads, i32 dim, float eps) {
  ptx::begin_after_earlier_launches(q, k, v);
  const i64 unit = (i64)blockIdx.x * qkv::WARPS + threadIdx.x / 32, token = unit / (heads + 2 * kv_heads);
  if (token >= tokens) return;  // a whole warp
  const int head = (int)(unit % (heads + 2 * kv_heads)), kv_head = (head - heads) % kv_heads, first = threadIdx.x % 32 * VEC;
  const bool query = head < heads, inside = first < dim;
  const bf16 *from = q + (token * heads + head) * dim;
  bf16 *to = q + (token * heads + head) * dim;
  if (!query) {
    const u32 page = slots[2 * token], slot = slots[2 * token + 1];
    if (page == kv_pages::NOWHERE) return;
    const i64 source = (token * kv_heads + kv_head) * dim, place = kv_pages::place(page, slot, kv_head, kv_heads, dim);
    if (head >= heads + kv_heads) {
      if (inside) store_vec(values + place + first, load_vec<bf16x8>(v + source + first));
      return;
    }
    from = k + source;
    to = keys + place;
  }
  Vec8 y = qkv::turned(from, query ? w_q : w_k, angles + token * dim, dim, eps);
  if (inside) store8(to, y, first, dim, true);
}
SORFT_EXPORT(qkv_bf16)
