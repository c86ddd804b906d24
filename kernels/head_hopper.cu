// head_hopper.cu - head.cu's products on sm_90a, by TMA and wgmma: the same equations, shapes and order of sums, and so the same bits where a chip's
// wgmma has those of its mma.sync. It need not: training and sampling both come here.
//
// A tile is 128 rows x 256 columns of the vocabulary, four strips of 64: a lane has of each what it has in head.cu, so a row's parts are formed
// without leaving the registers of its four lanes.
//
// Operations: forward 2 rows V K, dz the same, dh the same. Floor at 790 TFLOP/s for 16384 rows, V = 151936, K = 896: 5.6 ms each. Not measured on a
// chip yet.
#include "sorft.cuh"
#include "linear_hopper.cuh"
#include "head.cuh"

#if defined(SORFT_HOPPER)
namespace head_hopper {

using namespace linear_hopper;

// A product over whole chunks of terms.
template <int BLOCKS, bool B_BY_ROWS>
struct Product {
  Side side;
  int terms;

  __device__ __forceinline__ void load(Stages<BLOCKS> &s, int row, int column) const {
    for (int term = 0; term < terms; term += CHUNK) load_chunk<false, B_BY_ROWS>(s, side, row, column, term);
  }
  // sum (+)= the product: with `keep` it goes on from what it is.
  __device__ __forceinline__ void add(Sums &sum, Stages<BLOCKS> &s, int group, bool keep) const {
    add_product<false, B_BY_ROWS>(sum, s, group, chunks_of(terms), keep, 0, 1.0f, [](int) { return CHUNK; });
  }
};

// The first of this lane's two rows of a tile; the other is 8 below.
__device__ __forceinline__ int first_row(int row, int group) { return row + 64 * group + threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4; }

__device__ __forceinline__ void swap(float &a, float &b) {
  const float c = a;
  a = b, b = c;
}

// The sums of the 64 columns first.., whose products are sum[FROM].. of the lane's upper row; leaves z there.
template <int FROM>
__device__ __forceinline__ head::Part front_strip(Sums &sum, int first, int vocab, float t, int target, float *target_z) {
  SORFT_UNROLL
  for (int j = 0; j < 8; j++) {
    SORFT_UNROLL
    for (int e = 0; e < 2; e++) {
      const int at = first + 8 * j + threadIdx.x % 4 * 2 + e;
      float &z = sum[FROM + j][e];
      z = at < vocab ? z / t : head::nothing();
      if (at == target) *target_z = z;
    }
  }
  return head::strip([&](int i) { return sum[FROM + i / 2][i % 2]; });
}

// The sums of the strips of a tile's rows.
template <int BLOCKS>
__device__ __forceinline__ void forward(float *parts, float *target_z, float *logits, const Side &side, const float *temperature, const u32 *targets,
                                        int rows, int vocab, int k) {
  const Product<BLOCKS, false> product{side, k};
  const int parts_of_row = (vocab + 127) / 128;
  each_tile<BLOCKS>(
      rows, vocab, [&](Stages<BLOCKS> &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages<BLOCKS> &stages, int group, int row, int column) {
        Sums sum;
        product.add(sum, stages, group, false);
        if (logits)
          each_pair(sum, group, row, column, rows, vocab,
                    [=](i64 r, int c, float lo, float hi) { store_vec(logits + r * vocab + c, float2{lo, hi}); });
        // One row and 128 columns at a time, those in front: whatever is unrolled further takes more registers than there are.
        SORFT_NO_UNROLL
        for (int r = 0; r < 2; r++) {
          const int own = first_row(row, group) + 8 * r;
          const bool inside = own < rows;
          const float t = inside ? temperature[own] : 1.0f;
          const int target = inside && targets ? (int)targets[own] : -1;
          SORFT_NO_UNROLL
          for (int half = 0; half < 2; half++) {
            const int part = column / 128 + half;
            const head::Part p = head::merge(front_strip<0>(sum, 128 * part, vocab, t, target, target_z + own),
                                             front_strip<8>(sum, 128 * part + 64, vocab, t, target, target_z + own));
            if (inside && part < parts_of_row && threadIdx.x % 4 == 0) {
              float *to = parts + ((i64)own * parts_of_row + part) * 3;
              to[0] = p.max, to[1] = p.sum, to[2] = p.weighted;
            }
            SORFT_UNROLL
            for (int j = 0; j < 16; j++) swap(sum[j][0], sum[j + 16][0]), swap(sum[j][1], sum[j + 16][1]);
          }
          SORFT_UNROLL
          for (int j = 0; j < COLUMNS / 8; j++) sum[j][0] = sum[j][2], sum[j][1] = sum[j][3];
        }
      });
}

template <int BLOCKS>
__device__ __forceinline__ void gradient_of_z(const TensorMap &dz, const Side &side, const float *temperature, const u32 *targets, const float *seeds,
                                              int rows, int k, int first, int width) {
  const Product<BLOCKS, false> product{side, k};
  each_tile<BLOCKS>(
      rows, width, [&](Stages<BLOCKS> &stages, int row, int column) { product.load(stages, row, first + column); },
      [&](Stages<BLOCKS> &stages, int group, int row, int column) {
        Sums sum;
        product.add(sum, stages, group, false);
        SORFT_UNROLL
        for (int r = 0; r < 2; r++) {
          const int own = first_row(row, group) + 8 * r;
          if (own >= rows) continue;
          const head::RowGradient gradient(temperature, targets, seeds, own);
          SORFT_UNROLL
          for (int j = 0; j < COLUMNS / 8; j++) {
            SORFT_UNROLL
            for (int e = 0; e < 2; e++) {
              float &z = sum[j][2 * r + e];
              z = gradient.at(z, first + column + 8 * j + threadIdx.x % 4 * 2 + e);
            }
          }
        }
        store_outputs(sum, stages, dz, group, row, column, rows, width, [](int, float &, float &) {});
      });
}

template <int BLOCKS>
__device__ __forceinline__ void gradient_of_h(float *dh, const Side &side, int rows, int width, int k) {
  const Product<BLOCKS, true> product{side, width};
  each_tile<BLOCKS>(
      rows, k, [&](Stages<BLOCKS> &stages, int row, int column) { product.load(stages, row, column); },
      [&](Stages<BLOCKS> &stages, int group, int row, int column) {
        Sums sum;
        tile::clear(sum);
        each_pair(sum, group, row, column, rows, k, [=](i64 r, int c, float &lo, float &hi) {
          const float2 before = load_vec<float2>(dh + r * k + c);
          lo = before.x, hi = before.y;
        });
        product.add(sum, stages, group, true);
        each_pair(sum, group, row, column, rows, k, [=](i64 r, int c, float lo, float hi) { store_vec(dh + r * k + c, float2{lo, hi}); });
      });
}

}  // namespace head_hopper
#define HEAD_HOPPER_BODY(...) head_hopper::__VA_ARGS__
#else
#define HEAD_HOPPER_BODY(...)
#endif

// Each alone and, as `_pair`, by clusters of two blocks. Grid: blocks that stay, of pairs an even number. Block: 384 threads. Dynamic shared memory: 192 KiB,
// for dz 224.

// parts [rows, ceil(V / 128), 3]: the sums of each 128 columns. Boxes of the maps: 128 rows. targets and logits may be null.
extern "C" __global__ void __launch_bounds__(384, 1)
head_fwd_hopper(float *__restrict__ parts, float *__restrict__ target_z, float *__restrict__ logits, const SORFT_GRID_CONSTANT TensorMap h,
                const SORFT_GRID_CONSTANT TensorMap w, const float *__restrict__ temperature, const u32 *__restrict__ targets, i32 rows, i32 vocab,
                i32 k) {
  HEAD_HOPPER_BODY(forward<1>(parts, target_z, logits, {&h, &w}, temperature, targets, rows, vocab, k));
}
SORFT_EXPORT(head_fwd_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
head_fwd_hopper_pair(float *__restrict__ parts, float *__restrict__ target_z, float *__restrict__ logits, const SORFT_GRID_CONSTANT TensorMap h,
                     const SORFT_GRID_CONSTANT TensorMap w, const float *__restrict__ temperature, const u32 *__restrict__ targets, i32 rows,
                     i32 vocab, i32 k) {
  HEAD_HOPPER_BODY(forward<2>(parts, target_z, logits, {&h, &w}, temperature, targets, rows, vocab, k));
}
SORFT_EXPORT_CLUSTER(head_fwd_hopper_pair, 2)

// dz [rows, width] of columns first.. of the vocabulary. As above; boxes of dz have 64 rows.
extern "C" __global__ void __launch_bounds__(384, 1)
head_dz_hopper(const SORFT_GRID_CONSTANT TensorMap dz, const SORFT_GRID_CONSTANT TensorMap h, const SORFT_GRID_CONSTANT TensorMap w,
               const float *__restrict__ temperature, const u32 *__restrict__ targets, const float *__restrict__ seeds, i32 rows, i32 k, i32 first,
               i32 width) {
  HEAD_HOPPER_BODY(gradient_of_z<1>(dz, {&h, &w}, temperature, targets, seeds, rows, k, first, width));
}
SORFT_EXPORT(head_dz_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
head_dz_hopper_pair(const SORFT_GRID_CONSTANT TensorMap dz, const SORFT_GRID_CONSTANT TensorMap h, const SORFT_GRID_CONSTANT TensorMap w,
                    const float *__restrict__ temperature, const u32 *__restrict__ targets, const float *__restrict__ seeds, i32 rows, i32 k,
                    i32 first, i32 width) {
  HEAD_HOPPER_BODY(gradient_of_z<2>(dz, {&h, &w}, temperature, targets, seeds, rows, k, first, width));
}
SORFT_EXPORT_CLUSTER(head_dz_hopper_pair, 2)

// dh [rows, K] += dz [rows, width] w [width, K], whose map begins at the chunk's first row. Boxes: 128 rows of dz, 64 of w.
extern "C" __global__ void __launch_bounds__(384, 1)
head_dh_hopper(float *__restrict__ dh, const SORFT_GRID_CONSTANT TensorMap dz, const SORFT_GRID_CONSTANT TensorMap w, i32 rows, i32 width, i32 k) {
  HEAD_HOPPER_BODY(gradient_of_h<1>(dh, {&dz, &w}, rows, width, k));
}
SORFT_EXPORT(head_dh_hopper)

extern "C" __global__ void SORFT_CLUSTER(2) __launch_bounds__(384, 1)
head_dh_hopper_pair(float *__restrict__ dh, const SORFT_GRID_CONSTANT TensorMap dz, const SORFT_GRID_CONSTANT TensorMap w, i32 rows, i32 width,
                    i32 k) {
  HEAD_HOPPER_BODY(gradient_of_h<2>(dh, {&dz, &w}, rows, width, k));
}
SORFT_EXPORT_CLUSTER(head_dh_hopper_pair, 2)
