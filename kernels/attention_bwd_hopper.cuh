// attention_bwd_hopper.cuh - what attention's two backward passes for sm_90a share: their arguments, and pairs by TMA.
//
// A token's pairs, which are the query heads of one kv head, lie side by side, so a box of tokens, those heads and 64 columns is a tile of pairs. Its rows
// are as many as whole tokens fill; the rest of a stage is set to zero once. A box may bring pairs of tokens behind the run, and zeros behind the last
// token: they see no key, so they add exactly 0 as long as they are finite (see below).
//
// Equations, shapes, runs and the order of sums are attention_bwd.cu's, and so are the bits where a chip's wgmma has those of its mma.sync: a product's sums
// are one chain over its terms, 16 at a time, whichever instruction forms them; what comes between is attention_bwd.cuh's.
//
// Not finite: attention_bwd.cu loads zeros in the place of pairs behind a run. Here a box brings them as they are, and for dk and dv they are multiplied by
// 0, so that a NaN in the rows of another tree in the same box spreads to this one. Such a step is skipped as a whole, whichever tree it came from.
#pragma once

#if defined(SORFT_HOPPER)
namespace attention_bwd_hopper {

using namespace attention_hopper;
using attention::LOG2_E;

struct Gradients {
  const TensorMap *d_o, *q, *keys, *values;
  const float *lse, *delta;
  const u32 *positions;
  int heads, kv_heads;
  float scale;

  __device__ __forceinline__ int of_token() const { return heads / kv_heads; }
  __device__ __forceinline__ int first_head() const { return blockIdx.y * of_token(); }
};

// Copies pairs from a token on: blocks of columns lie `block` bytes apart.
template <int D>
__device__ __forceinline__ void load_pairs(u8 *to, int block, const TensorMap &map, u64 *barrier, int head, int token) {
  SORFT_UNROLL
  for (int i = 0; i < Tile<D>::BLOCKS; i++) ptx::load_box(to + i * block, map, barrier, 64 * i, head, token);
}

// Sets to zero, of each of AREAS runs of SIZE rows, those that no box fills. By THREADS threads; a __syncthreads before use.
template <int AREAS, int SIZE, int THREADS>
__device__ __forceinline__ void clear_padding(u8 *areas, int filled) {
  const int chunks = (SIZE - filled) * (ROW_BYTES / 16);
  for (int i = threadIdx.x; i < AREAS * chunks; i += THREADS)
    store_vec(areas + (i / chunks * SIZE + filled) * ROW_BYTES + i % chunks * 16, uint4{0, 0, 0, 0});
  ptx::fence_async_proxy();
}

}  // namespace attention_bwd_hopper
#endif

#if defined(SORFT_HOPPER)
#define ATTENTION_BWD_ARGUMENTS \
  { &d_o, &q, &keys, &values, lse, delta, positions, heads, kv_heads, scale }
#endif
