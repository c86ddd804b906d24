// sample.cu - what of the logits on a device the processor needs to choose tokens (ops/sample), so that whole rows stay where they are.
//
//   without filters   the chunk of 2048 columns that holds the token, which the chunk sums of the head tell
//   with filters      the logits from a floor on, each with its token, in the vocabulary's order: no token below the floor can pass the filters.
//                     Top-k's floor is the k-th of the maxima of pieces of 64 columns: at least k logits are no smaller.
//
// Shapes: logits [rows, V] f32, V a multiple of 8; floors [rows] f32, infinite for a row that is to keep none; counts, first [rows, ceil(V / 2048)];
// peaks [rows, ceil(V / 64)]; ids and values as long as all counts together, the chunks of all rows one after another from `first` on.
//
// Nothing is rounded, and nothing depends on an order. Bytes: the logits once for the maxima, once for the counts, once to keep; floor for 256 rows
// of 151936: 3 x 156 MB, 0.1 ms at 4.8 TB/s. Over the bus: 9.5 KB of maxima a row and 8 bytes a logit kept, where the row has 608 KB. Not measured
// on a chip yet.
#include "sorft.cuh"

namespace sample {

constexpr int CHUNK = 2048, PIECE = 64, THREADS = 256, WARPS = THREADS / 32, EACH = CHUNK / THREADS;

// Less than every logit.
__device__ __forceinline__ float nothing() { return __uint_as_float(0xff800000u); }

// The columns of a chunk that are this thread's.
struct Share {
  i64 first;
  bool there;  // V is a multiple of 8, so all of them are or none
  float v[EACH];
};

__device__ __forceinline__ Share share(const float *row, i32 vocab) {
  Share s;
  s.first = (i64)blockIdx.y * CHUNK + threadIdx.x * EACH;
  s.there = s.first < vocab;
  SORFT_UNROLL
  for (int i = 0; i < EACH; i += 4) {
    const float4 part = s.there ? load_vec<float4>(row + s.first + i) : float4{nothing(), nothing(), nothing(), nothing()};
    s.v[i] = part.x, s.v[i + 1] = part.y, s.v[i + 2] = part.z, s.v[i + 3] = part.w;
  }
  return s;
}

// How many of the share pass the floor.
__device__ __forceinline__ u32 passing(const Share &s, float floor) {
  u32 n = 0;
  SORFT_UNROLL
  for (int i = 0; i < EACH; i++) n += s.there && s.v[i] >= floor;
  return n;
}

// How many the threads before this one have, if this one has n; `total` becomes the block's. `scratch` holds WARPS numbers.
__device__ __forceinline__ u32 before(u32 n, u32 *scratch, u32 &total) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 upto = n;
  SORFT_UNROLL
  for (int delta = 1; delta < 32; delta <<= 1) {
    const u32 other = __shfl_up_sync(FULL_WARP, upto, delta);
    if (lane >= (u32)delta) upto += other;
  }
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  u32 base = 0;
  total = 0;
  SORFT_UNROLL
  for (u32 w = 0; w < WARPS; w++) {
    if (w < warp) base += scratch[w];
    total += scratch[w];
  }
  return base + upto - n;
}

}  // namespace sample

// The chunk of a row's logits that holds its token: out [rows, 2048] = logits[row, 2048 chunk[row]..]; zeros past the last. Grid: (rows, 2).
extern "C" __global__ void __launch_bounds__(256)
sample_chunk_f32(float *__restrict__ out, const float *__restrict__ logits, const u32 *__restrict__ chunk, i32 vocab) {
  const i64 row = blockIdx.x;
  const int at = (blockIdx.y * 256 + threadIdx.x) * 4;
  const i64 column = (i64)chunk[row] * sample::CHUNK + at;
  const float4 v = column < vocab ? load_vec<float4>(logits + row * vocab + column) : float4{0.0f, 0.0f, 0.0f, 0.0f};
  store_vec(out + row * sample::CHUNK + at, v);
}
SORFT_EXPORT(sample_chunk_f32)

// The largest logit of each piece: a warp a piece. Grid: (rows, ceil(pieces / 8)).
extern "C" __global__ void __launch_bounds__(256)
sample_peaks_f32(float *__restrict__ peaks, const float *__restrict__ logits, i32 vocab, i32 pieces) {
  const i64 row = blockIdx.x;
  const int piece = blockIdx.y * sample::WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (piece >= pieces) return;
  float top = sample::nothing();
  SORFT_UNROLL
  for (int i = 0; i < sample::PIECE; i += 32) {
    const i64 column = (i64)piece * sample::PIECE + i + lane;
    if (column < vocab) top = fmaxf(top, logits[row * vocab + column]);
  }
  SORFT_UNROLL
  for (int mask = 16; mask > 0; mask >>= 1) top = fmaxf(top, __shfl_xor_sync(FULL_WARP, top, mask));
  if (lane == 0) peaks[row * pieces + piece] = top;
}
SORFT_EXPORT(sample_peaks_f32)

// How many logits of each chunk pass the row's floor. Grid: (rows, chunks).
extern "C" __global__ void __launch_bounds__(256)
sample_count_f32(u32 *__restrict__ counts, const float *__restrict__ logits, const float *__restrict__ floors, i32 vocab) {
  SORFT_SMEM(u32, scratch, sample::WARPS);
  const i64 row = blockIdx.x;
  u32 total;
  sample::before(sample::passing(sample::share(logits + row * vocab, vocab), floors[row]), scratch, total);
  if (threadIdx.x == 0) counts[row * gridDim.y + blockIdx.y] = total;
}
SORFT_EXPORT(sample_count_f32)

// Those logits and their tokens, from `first` of the row's chunk on. Grid: (rows, chunks).
extern "C" __global__ void __launch_bounds__(256)
sample_keep_f32(u32 *__restrict__ ids, float *__restrict__ values, const float *__restrict__ logits, const float *__restrict__ floors,
                const u32 *__restrict__ first, i32 vocab) {
  SORFT_SMEM(u32, scratch, sample::WARPS);
  const i64 row = blockIdx.x;
  const float floor = floors[row];
  const sample::Share s = sample::share(logits + row * vocab, vocab);
  u32 total;
  i64 at = first[row * gridDim.y + blockIdx.y] + (i64)sample::before(sample::passing(s, floor), scratch, total);
  SORFT_UNROLL
  for (int i = 0; i < sample::EACH; i++) {
    if (!s.there || s.v[i] < floor) continue;
    ids[at] = (u32)(s.first + i);
    values[at] = s.v[i];
    at++;
  }
}
SORFT_EXPORT(sample_keep_f32)
