// linear_hopper.cu - linear.cu's products on sm_90a: tiles by TMA, products by warpgroups, the same equations and the same order of sums.
//
//   forward            y = bf16(x w' + scale s b' + bias)
//   gradient of x      dx = bf16(dy w + scale t a)
//   gradient of w      dw += dy' x
//
// Shapes as in linear.cu. A sum is one chain of products of 16 terms, the adapter's first. Whether a chip's wgmma gives the bits of its mma.sync is
// found out on the chip (src/tensor/ops/matmul/cuda.rs), since decoding takes linear_few.cu.
//
// Operations: 2 M N K each (+ 2 M N R). From memory 48 KiB for each 4.2 million operations. Floor at 790 TFLOP/s for M = N = K = 4096: 174 us. Not
// measured on a chip yet.
#include "sorft.cuh"
#include "linear_hopper.cuh"

#if defined(SORFT_HOPPER)
namespace linear_hopper {

// A product with the adapter's term: its chunks come first.
template <bool B_BY_ROWS>
struct WithAdapter {
  Side own, adapter;
  int terms, rank;
  float scale;

  __device__ __forceinline__ void load(Stages &s, int row, int column) const {
    for (int term = 0; term < rank; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, adapter, row, column, term);
    for (int term = 0; term < terms; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, own, row, column, term);
  }

  __device__ __forceinline__ void compute(Sums &sum, Stages &s, int group) const {
    const int first = chunks_of(rank);
    add_product<false, B_BY_ROWS>(sum, s, group, first + chunks_of(terms), false, first, scale, [](int) { return CHUNK; });
  }
};

}  // namespace linear_hopper
#endif

// Grid: blocks that stay, at most one for each tile. Block: 384 threads. Dynamic shared memory: 192 KiB. Boxes of the maps: x, s: 128 rows; w, b: 256
// rows in the forward product, 64 in dx's; dy and x for dw: 64. Without an adapter rank is 0.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_fwd_hopper(bf16 *__restrict__ y, const SORFT_GRID_CONSTANT TensorMap x, const SORFT_GRID_CONSTANT TensorMap w, const bf16 *__restrict__ bias,
                  const SORFT_GRID_CONSTANT TensorMap s, const SORFT_GRID_CONSTANT TensorMap b, i32 m, i32 n, i32 k, i32 rank, float scale) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const WithAdapter<false> product{{&x, &w}, {&s, &b}, k, rank, scale};
  each_tile(
      m, n, [&](Stages &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        product.compute(sum, stages, group);
        each_pair(sum, group, row, column, m, n, [=](i64 r, int c, float lo, float hi) {
          if (bias) lo += to_f32(bias[c]), hi += to_f32(bias[c + 1]);
          store_vec(y + r * n + c, to_bf16x2(lo, hi));
        });
      });
#endif
}
SORFT_EXPORT(linear_fwd_hopper)

extern "C" __global__ void __launch_bounds__(384, 1)
linear_dx_hopper(bf16 *__restrict__ dx, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap w,
                 const SORFT_GRID_CONSTANT TensorMap t, const SORFT_GRID_CONSTANT TensorMap a, i32 m, i32 n, i32 k, i32 rank, float scale) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const WithAdapter<true> product{{&dy, &w}, {&t, &a}, n, rank, scale};
  each_tile(
      m, k, [&](Stages &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        product.compute(sum, stages, group);
        each_pair(sum, group, row, column, m, k, [=](i64 r, int c, float lo, float hi) { store_vec(dx + r * k + c, to_bf16x2(lo, hi)); });
      });
#endif
}
SORFT_EXPORT(linear_dx_hopper)

// dw [N, K] += dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_dw_hopper(float *__restrict__ dw, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap x,
                 const u32 *__restrict__ chunks, i32 count, i32 n, i32 k) {
#if defined(SORFT_HOPPER)
  using namespace linear_hopper;
  const Side own{&dy, &x};
  each_tile(
      n, k,
      [&](Stages &stages, int row, int column) {
        for (int c = 0; c < count; c++) load_chunk<true, true>(stages, own, row, column, (int)chunks[2 * c]);
      },
      [&](Stages &stages, int group, int row, int column) {
        Sums sum;
        tile::clear(sum);
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float &lo, float &hi) {
          const float2 before = load_vec<float2>(dw + r * k + c);
          lo = before.x, hi = before.y;
        });
        add_product<true, true>(sum, stages, group, count, true, 0, 1.0f, [&](int c) { return (int)chunks[2 * c + 1]; });
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float lo, float hi) { store_vec(dw + r * k + c, float2{lo, hi}); });
      });
#endif
}
SORFT_EXPORT(linear_dw_hopper)
