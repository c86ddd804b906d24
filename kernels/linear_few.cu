// linear_few.cu - linear.cu's forward product for few rows, as decoding has them: small tiles, so that many blocks share the reading of w. Several
// products of one x are one launch, and so are the two of a SwiGLU with what follows them: a step of decoding is bound by how many launches there are.
//
//   linear_few          y_p = bf16(x w_p' + scale_p s_p b_p' + bias_p)     for up to three parts p: q, k and v, or their adapters' x a'
//   linear_few_swiglu   y = bf16(silu(gate) up), swiglu.cu's               gate and up such products, each rounded to bf16
//
// Shapes as in linear.cu: x [M, K], w [N, K], y [M, N], bias [N], s [M, R], b [N, R] bf16, N, R and scale of each part its own. Without an adapter s is
// null; a part that is not there has N = 0. K, N and R are multiples of 8.
//
// Order of sums: linear.cu's, the same bits, and those of separate launches. A tile is 16 rows of x by 16 of w for one warp (up to 16 rows), 64 by 32
// for two, or 128 by 64 for four, where there are blocks of them for all of a chip. What bounds few rows is reading w, so a block has seven chunks of 64
// terms on the way at any time (three of the largest tile), and the first of w before the launches before this one have ended. For SwiGLU the rows of w
// are eight of the gate's and the same eight of up's by turns, so that a lane has both sums of an output. Bytes: 2 N K for all w, and by L2 2 N K for each row
// of tiles and 2 M K for each column. Floors at 4.3 TB/s, K = 896: q, k and v of 1152 outputs 0.5 us, gate and up of 4864 each 4.1 us. With 256 rows gate and
// up take 105 MB from L2 by the largest tile, which is more: some 19 us at 5.5 TB/s (209 MB by that of 64 by 32). Not measured on a chip yet.
#include "sorft.cuh"
#include "linear.cuh"

namespace linear_few {

using linear::CHUNK;
using linear::Operand;
// Chunks of both sides that a block has room for: Tile::stages of src/tensor/ops/matmul/cuda/few.rs.
template <int ROWS>
constexpr int STAGES_OF = ROWS > 64 ? 4 : 8;

// A product's own operands.
struct Layer {
  const bf16 *w, *bias, *s, *b;
  int rank;
  float scale;
};

// A product of a launch that has several.
struct Part {
  bf16 *y;
  int n;
  Layer layer;
};

// A row's numbers, or what may be named in their place.
struct Row {
  const bf16 *numbers;
  bool there;
};

// Rows first.. of a matrix.
struct Rows {
  Operand o;
  int first;
  __device__ __forceinline__ Row operator()(int row) const {
    const bool there = first + row < o.outer;
    return {there ? o.numbers + (i64)(first + row) * o.stride : o.numbers, there};
  }
};

// Of every 16 rows eight from `a` and the same eight from `b`, from row `first` of both on.
struct Pairs {
  Operand a, b;
  int first;
  __device__ __forceinline__ Row operator()(int row) const { return Rows{row % 16 < 8 ? a : b, first}(row / 16 * 8 + row % 8); }
};

// COUNT rows, terms term..term + 64, to a tile; zeros outside.
template <int COUNT, int THREADS, class From>
__device__ __forceinline__ void copy_rows(bf16 *to, const From &from, int term, int terms) {
  SORFT_UNROLL
  for (int i = 0; i < COUNT * (CHUNK / 8) / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, row = at / (CHUNK / 8), chunk = at % (CHUNK / 8);
    const Row own = from(row);
    const bool valid = term + 8 * chunk < terms && own.there;
    ptx::cp_async(to + tile::place<CHUNK>(row, chunk), valid ? own.numbers + (term + 8 * chunk) : own.numbers, valid);
  }
}

// One warp's sums: ROWS x 16, in two halves of eight columns.
template <int ROWS>
using Sums = float[ROWS / 16][2][4];

// Which half's sums a product is of.
enum Half { FIRST, SECOND, BOTH };

// sum += rows of `a` times rows of `b` over terms 0..terms.
template <int ROWS, int COLUMNS, Half HALF, class From>
__device__ __forceinline__ void add_product(Sums<ROWS> &sum, bf16 *shared, const Rows &a, const From &b, int terms) {
  constexpr int THREADS = 2 * COLUMNS, STAGE = (ROWS + COLUMNS) * CHUNK, STAGES = STAGES_OF<ROWS>;
  const int chunks = (terms + CHUNK - 1) / CHUNK, warp = threadIdx.x / 32;
  Rows left = a;
  const auto copy_left = [&](int c) {
    if (c < chunks) copy_rows<ROWS, THREADS>(shared + c % STAGES * STAGE, left, c * CHUNK, terms);
    ptx::cp_async_commit();  // also of nothing, so that groups are counted in chunks
  };
  const auto copy_right = [&](int c) {
    if (c < chunks) copy_rows<COLUMNS, THREADS>(shared + c % STAGES * STAGE + ROWS * CHUNK, b, c * CHUNK, terms);
  };
  __syncthreads();  // an earlier product has left the stages
  // Weights are on the way while earlier launches still work on what they are multiplied with.
  SORFT_UNROLL
  for (int c = 0; c < STAGES - 1; c++) copy_right(c);
  ptx::wait_for_earlier_launches(left.o.numbers);
  SORFT_UNROLL
  for (int c = 0; c < STAGES - 1; c++) copy_left(c);
  for (int c = 0; c < chunks; c++) {
    ptx::cp_async_wait<STAGES - 2>();
    __syncthreads();  // chunk c has landed for all, and all have left the stage that is filled next
    copy_right(c + STAGES - 1);
    copy_left(c + STAGES - 1);
    const bf16 *stage = shared + c % STAGES * STAGE;
    SORFT_UNROLL
    for (int k = 0; k < CHUNK / 16; k++) {
      u32 y[4];
      tile::load_b_rows<CHUNK>(y, stage + ROWS * CHUNK, 16 * warp, k);
      SORFT_UNROLL
      for (int i = 0; i < ROWS / 16; i++) {
        u32 x[4];
        tile::load_a<CHUNK>(x, stage, 16 * i, k);
        if (HALF != SECOND) ptx::mma(sum[i][0], x, y[0], y[1]);
        if (HALF != FIRST) ptx::mma(sum[i][1], x, y[2], y[3]);
      }
    }
  }
  ptx::cp_async_wait<0>();
}

// sum += scale s b', where the layer has an adapter. Nothing has been added before.
template <int ROWS, int COLUMNS, Half HALF, class From>
__device__ __forceinline__ void add_adapter(Sums<ROWS> &sum, bf16 *shared, const Layer &l, const From &b, int row, int m) {
  if (!l.s) return;
  add_product<ROWS, COLUMNS, HALF>(sum, shared, {{l.s, m, l.rank}, row}, b, l.rank);
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) {
    SORFT_UNROLL
    for (int e = HALF == SECOND ? 4 : 0; e < (HALF == FIRST ? 4 : 8); e++) sum[i][e / 4][e % 4] *= l.scale;
  }
}

// Calls put(i, r, row) for the lane's rows among m from `row` on: sums 2 r and 2 r + 1 of piece i are of that one.
template <int ROWS, class Put>
__device__ __forceinline__ void each_row(int row, int m, const Put &put) {
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) {
    SORFT_UNROLL
    for (int r = 0; r < 2; r++) {
      const int at_row = row + 16 * i + 8 * r + (int)threadIdx.x % 32 / 4;
      if (at_row < m) put(i, r, at_row);
    }
  }
}

// A row's sums of two neighbouring columns with their bias, rounded.
__device__ __forceinline__ bf16x2 rounded(const float (&sum)[4], int r, const bf16 *bias, int column) {
  float lo = sum[2 * r], hi = sum[2 * r + 1];
  if (bias) lo += to_f32(bias[column]), hi += to_f32(bias[column + 1]);
  return to_bf16x2(lo, hi);
}

// The block's part, and its first column there: each part has blocks for whole tiles of its columns.
template <int COLUMNS>
__device__ __forceinline__ Part own_part(const Part &a, const Part &b, const Part &c, int &column) {
  const auto width = [](int n) { return (n + COLUMNS - 1) / COLUMNS * COLUMNS; };
  column = (int)blockIdx.x * COLUMNS;
  if (column < width(a.n)) return a;
  column -= width(a.n);
  if (column < width(b.n)) return b;
  column -= width(b.n);
  return c;
}

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void forward(const bf16 *x, int m, int k, const Part &part, int column) {
  SORFT_DYN_SMEM(bf16, shared);
  ptx::let_next_begin();
  const int row = (int)blockIdx.y * ROWS, n = part.n;
  const Layer &l = part.layer;
  Sums<ROWS> sum;
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) tile::clear(sum[i]);
  add_adapter<ROWS, COLUMNS, BOTH>(sum, shared, l, Rows{{l.b, n, l.rank}, column}, row, m);
  add_product<ROWS, COLUMNS, BOTH>(sum, shared, {{x, m, k}, row}, Rows{{l.w, n, k}, column}, k);
  each_row<ROWS>(row, m, [&](int i, int r, int at_row) {
    SORFT_UNROLL
    for (int j = 0; j < 2; j++) {
      const int at_column = column + (int)threadIdx.x / 32 * 16 + 8 * j + (int)threadIdx.x % 4 * 2;
      if (at_column < n) store_vec(part.y + (i64)at_row * n + at_column, rounded(sum[i][j], r, l.bias, at_column));
    }
  });
}

// Half as many columns as the tile has rows of w: a warp's first half of sums is the gate's, its second up's.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void forward_swiglu(bf16 *y, const bf16 *x, int m, int n, int k, const Layer &gate, const Layer &up) {
  SORFT_DYN_SMEM(bf16, shared);
  ptx::let_next_begin();
  const int row = (int)blockIdx.y * ROWS, column = (int)blockIdx.x * (COLUMNS / 2);
  Sums<ROWS> sum;
  SORFT_UNROLL
  for (int i = 0; i < ROWS / 16; i++) tile::clear(sum[i]);
  // The adapters have other rows on the left, so each is a product of its own half, with nothing in the other's place.
  add_adapter<ROWS, COLUMNS, FIRST>(sum, shared, gate, Pairs{{gate.b, n, gate.rank}, {gate.b, 0, 0}, column}, row, m);
  add_adapter<ROWS, COLUMNS, SECOND>(sum, shared, up, Pairs{{up.b, 0, 0}, {up.b, n, up.rank}, column}, row, m);
  add_product<ROWS, COLUMNS, BOTH>(sum, shared, {{x, m, k}, row}, Pairs{{gate.w, n, k}, {up.w, n, k}, column}, k);
  const int at_column = column + (int)threadIdx.x / 32 * 8 + (int)threadIdx.x % 4 * 2;
  if (at_column >= n) return;
  each_row<ROWS>(row, m, [&](int i, int r, int at_row) {
    const bf16x2 g = rounded(sum[i][0], r, gate.bias, at_column), u = rounded(sum[i][1], r, up.bias, at_column);
    const bf16x2 out = to_bf16x2(swish(to_f32(g.v[0])) * to_f32(u.v[0]), swish(to_f32(g.v[1])) * to_f32(u.v[1]));
    store_vec(y + (i64)at_row * n + at_column, out);
  });
}

}  // namespace linear_few

#define LAYER(p)                                                                                  \
  const bf16 *__restrict__ w##p, const bf16 *__restrict__ bias##p, const bf16 *__restrict__ s##p, \
      const bf16 *__restrict__ b##p, i32 rank##p, float scale##p
#define LAYER_OF(p) \
  { w##p, bias##p, s##p, b##p, rank##p, scale##p }
#define PART(p) bf16 *__restrict__ y##p, i32 n##p, LAYER(p)
#define PART_OF(p) \
  { y##p, n##p, LAYER_OF(p) }

// Grid: (the parts' ceil(N / columns of a tile) together, ceil(M / rows of a tile)). Dynamic shared memory: the stages of a tile's operands.
#define LINEAR_FEW(ROWS, COLUMNS)                                                                            \
  extern "C" __global__ void __launch_bounds__(2 * COLUMNS)                                                  \
  linear_few_##ROWS##x##COLUMNS(const bf16 *__restrict__ x, i32 m, i32 k, PART(0), PART(1), PART(2)) {       \
    int column;                                                                                              \
    const linear_few::Part part = linear_few::own_part<COLUMNS>(PART_OF(0), PART_OF(1), PART_OF(2), column); \
    linear_few::forward<ROWS, COLUMNS>(x, m, k, part, column);                                               \
  }                                                                                                          \
  SORFT_EXPORT(linear_few_##ROWS##x##COLUMNS)

// Layer 0 is the gate, layer 1 is up. Grid: (ceil(2 N / columns of a tile), ceil(M / rows of a tile)). Dynamic shared memory as above.
#define LINEAR_FEW_SWIGLU(ROWS, COLUMNS)                                                                                \
  extern "C" __global__ void __launch_bounds__(2 * COLUMNS)                                                             \
  linear_few_swiglu_##ROWS##x##COLUMNS(bf16 *__restrict__ y, const bf16 *__restrict__ x, i32 m, i32 n, i32 k, LAYER(0), \
                                       LAYER(1)) {                                                                      \
    linear_few::forward_swiglu<ROWS, COLUMNS>(y, x, m, n, k, LAYER_OF(0), LAYER_OF(1));                                 \
  }                                                                                                                     \
  SORFT_EXPORT(linear_few_swiglu_##ROWS##x##COLUMNS)

LINEAR_FEW(16, 16)
LINEAR_FEW(64, 32)
LINEAR_FEW(128, 64)
LINEAR_FEW_SWIGLU(16, 16)
LINEAR_FEW_SWIGLU(64, 32)
LINEAR_FEW_SWIGLU(128, 64)
