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
template <int BLOCKS, bool B_BY_ROWS>
struct WithAdapter {
  Side own, adapter;
  int terms, rank;
  float scale;

  __device__ __forceinline__ void load(Stages<BLOCKS> &s, int row, int column) const {
    for (int term = 0; term < rank; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, adapter, row, column, term);
    for (int term = 0; term < terms; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, own, row, column, term);
  }

  __device__ __forceinline__ void compute(Sums &sum, Stages<BLOCKS> &s, int group) const {
    const int first = chunks_of(rank);
    add_product<false, B_BY_ROWS>(sum, s, group, first + chunks_of(terms), false, first, scale, [](int) { return CHUNK; });
  }

  // Runs the block for outputs [m, n]; finish as store_outputs takes it.
  template <class Finish>
  __device__ __forceinline__ void run(const TensorMap &to, int m, int n, const Finish &finish) const {
    each_tile<BLOCKS>(
        m, n, [&](Stages<BLOCKS> &stages, int row, int column) { load(stages, row, column); },
        [&](Stages<BLOCKS> &stages, int group, int row, int column) {
          Sums sum;
          compute(sum, stages, group);
          store_outputs(sum, stages, to, group, row, column, m, n, finish);
        });
  }
};

template <int BLOCKS>
__device__ __forceinline__ void forward(const TensorMap &y, const Side &own, const bf16 *bias, const Side &adapter, int m, int n, int k, int rank,
                                        float scale) {
  const WithAdapter<BLOCKS, false> product{own, adapter, k, rank, scale};
  product.run(y, m, n, [=](int column, float &lo, float &hi) {
    if (!bias || column >= n) return;
    const bf16x2 pair = load_vec<bf16x2>(bias + column);
    lo += to_f32(pair.v[0]), hi += to_f32(pair.v[1]);
  });
}

template <int BLOCKS>
__device__ __forceinline__ void gradient_of_x(const TensorMap &dx, const Side &own, const Side &adapter, int m, int n, int k, int rank, float scale) {
  const WithAdapter<BLOCKS, true> product{own, adapter, n, rank, scale};
  product.run(dx, m, k, [](int, float &, float &) {});
}

template <int BLOCKS>
__device__ __forceinline__ void gradient_of_w(float *dw, const Side &own, const u32 *chunks, int count, int n, int k) {
  each_tile<BLOCKS>(
      n, k,
      [&](Stages<BLOCKS> &stages, int row, int column) {
        for (int c = 0; c < count; c++) load_chunk<true, true>(stages, own, row, column, (int)chunks[2 * c]);
      },
      [&](Stages<BLOCKS> &stages, int group, int row, int column) {
        Sums sum;
        tile::clear(sum);
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float &lo, float &hi) {
          const float2 before = load_vec<float2>(dw + r * k + c);
          lo = before.x, hi = before.y;
        });
        add_product<true, true>(sum, stages, group, count, true, 0, 1.0f, [&](int c) { return (int)chunks[2 * c + 1]; });
        each_pair(sum, group, row, column, n, k, [=](i64 r, int c, float lo, float hi) { store_vec(dw + r * k + c, float2{lo, hi}); });
      });
}

}  // namespace linear_hopper
#define LINEAR_HOPPER_BODY(...) linear_hopper::__VA_ARGS__
#else
#define LINEAR_HOPPER_BODY(...)
#endif

// Each alone and, as `_pair`, by clusters of two blocks. Grid: blocks that stay, at most one for each tile, of pairs an even number. Block: 384 threads.
// Dynamic shared memory: 224 KiB, for dw 192. Boxes of the maps: outputs 64 rows; x, s, dy, t and, in the forward product, w and b 128; w and a in dx's,
// dy and x in dw's 64. Without an adapter rank is 0.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_fwd_hopper(const SORFT_GRID_CONSTANT TensorMap y, const SORFT_GRID_CONSTANT TensorMap x, const SORFT_GRID_CONSTANT TensorMap w,
                  const bf16 *__restrict__ bias, const SORFT_GRID_CONSTANT TensorMap s, const SORFT_GRID_CONSTANT TensorMap b, i32 m, i32 n, i32 k,
                  i32 rank, float scale) {
  LINEAR_HOPPER_BODY(forward<1>(y, {&x, &w}, bias, {&s, &b}, m, n, k, rank, scale));
}
SORFT_EXPORT(linear_fwd_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
linear_fwd_hopper_pair(const SORFT_GRID_CONSTANT TensorMap y, const SORFT_GRID_CONSTANT TensorMap x, const SORFT_GRID_CONSTANT TensorMap w,
                       const bf16 *__restrict__ bias, const SORFT_GRID_CONSTANT TensorMap s, const SORFT_GRID_CONSTANT TensorMap b, i32 m, i32 n, i32 k,
                       i32 rank, float scale) {
  LINEAR_HOPPER_BODY(forward<2>(y, {&x, &w}, bias, {&s, &b}, m, n, k, rank, scale));
}
SORFT_EXPORT_CLUSTER(linear_fwd_hopper_pair, 2)

extern "C" __global__ void __launch_bounds__(384, 1)
linear_dx_hopper(const SORFT_GRID_CONSTANT TensorMap dx, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap w,
                 const SORFT_GRID_CONSTANT TensorMap t, const SORFT_GRID_CONSTANT TensorMap a, i32 m, i32 n, i32 k, i32 rank, float scale) {
  LINEAR_HOPPER_BODY(gradient_of_x<1>(dx, {&dy, &w}, {&t, &a}, m, n, k, rank, scale));
}
SORFT_EXPORT(linear_dx_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
linear_dx_hopper_pair(const SORFT_GRID_CONSTANT TensorMap dx, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap w,
                      const SORFT_GRID_CONSTANT TensorMap t, const SORFT_GRID_CONSTANT TensorMap a, i32 m, i32 n, i32 k, i32 rank, float scale) {
  LINEAR_HOPPER_BODY(gradient_of_x<2>(dx, {&dy, &w}, {&t, &a}, m, n, k, rank, scale));
}
SORFT_EXPORT_CLUSTER(linear_dx_hopper_pair, 2)

// dw [N, K] += dy' x over the chunks of tokens: chunks [count, 2], first token and how many, at most 64.
extern "C" __global__ void __launch_bounds__(384, 1)
linear_dw_hopper(float *__restrict__ dw, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap x,
                 const u32 *__restrict__ chunks, i32 count, i32 n, i32 k) {
  LINEAR_HOPPER_BODY(gradient_of_w<1>(dw, {&dy, &x}, chunks, count, n, k));
}
SORFT_EXPORT(linear_dw_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
linear_dw_hopper_pair(float *__restrict__ dw, const SORFT_GRID_CONSTANT TensorMap dy, const SORFT_GRID_CONSTANT TensorMap x,
                      const u32 *__restrict__ chunks, i32 count, i32 n, i32 k) {
  LINEAR_HOPPER_BODY(gradient_of_w<2>(dw, {&dy, &x}, chunks, count, n, k));
}
SORFT_EXPORT_CLUSTER(linear_dw_hopper_pair, 2)
