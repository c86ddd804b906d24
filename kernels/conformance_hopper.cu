// conformance_hopper.cu - the wrappers of hopper.cuh, each with those alone that it cannot do without, as conformance.cu has those of ptx.cuh: what
// src/tensor/cuda/conformance/ compares with the words of the PTX manual, on a chip and, as long as there is none, on the emulator and by the PTX.
//
// Arrays of u32 are bits. Fragments of a product lie as the manual numbers them, thread after thread of the warpgroup.
#include "sorft.cuh"
#include "hopper.cuh"

#if defined(SORFT_HOPPER)
namespace conformance_hopper {

constexpr int GROUP = 128, ROW_BYTES = 128, BOX_BYTES = 64 * ROW_BYTES;

template <int N>
__device__ __forceinline__ void make_barriers(u64 *barriers, u32 count) {
  if (threadIdx.x == 0) {
    SORFT_UNROLL
    for (int i = 0; i < N; i++) ptx::barrier_init(&barriers[i], count);
    ptx::fence_barriers();
  }
  __syncthreads();
}

// A box of some rows to shared memory that was full of ones, and out as it lies there: load(to, barrier) has it copied.
template <class Load>
__device__ __forceinline__ void copy_box(u32 *out, int rows, const Load &load) {
  SORFT_DYN_SMEM(u32, tile);
  SORFT_SMEM(u64, full, 1);
  const int words = rows * (ROW_BYTES / 4);
  for (int i = threadIdx.x; i < words; i += GROUP) tile[i] = 0xffffffffu;
  ptx::fence_async_proxy();
  make_barriers<1>(full, 1);
  if (threadIdx.x == 0) {
    ptx::arrive_and_expect(full, rows * ROW_BYTES);
    load(tile, full);
  }
  ptx::wait(full, 0);
  for (int i = threadIdx.x; i < words; i += GROUP) out[blockIdx.x * words + i] = tile[i];
}

// ------------------------------------------------------------------------------------------------------------------------------ phases

constexpr int STAGES = 2, STAGE_BYTES = 2 * 8 * ROW_BYTES, KNOWN = 64, STEPS = 100, ROUND_WORDS = STAGE_BYTES / 4 + KNOWN;

// Takes a while, and leaves nothing to guess. (Xorshift.)
__device__ __forceinline__ u32 stepped(u32 x) {
  SORFT_NO_UNROLL
  for (int i = 0; i < STEPS; i++) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
  }
  return x;
}

// Round r brings rows 16 r.. of the matrix as two boxes, and 64 words that two warps form; a phase ends with the bytes and all three arrivals.
__device__ __forceinline__ void run_rounds(u32 *out, const TensorMap &map, const u32 *seeds, int rounds) {
  SORFT_DYN_SMEM(u8, tiles);
  SORFT_SMEM(u32, known, STAGES * KNOWN);
  SORFT_SMEM(u64, full, STAGES);
  SORFT_SMEM(u64, free, STAGES);
  make_barriers<STAGES>(full, 3);
  make_barriers<STAGES>(free, GROUP / 32);
  const int thread = threadIdx.x % GROUP, warp = thread / 32;
  const bool reads = threadIdx.x < GROUP;
  for (int r = 0; r < rounds; r++) {
    const int stage = r % STAGES;
    const u32 parity = r / STAGES & 1;
    u8 *tile = tiles + stage * STAGE_BYTES;
    if (reads) {
      u32 *to = out + r * ROUND_WORDS;
      ptx::wait(&full[stage], parity);
      for (int i = thread; i < STAGE_BYTES / 4; i += GROUP) to[i] = reinterpret_cast<const u32 *>(tile)[i];
      if (thread < KNOWN) to[STAGE_BYTES / 4 + thread] = known[stage * KNOWN + thread];
      __syncwarp();
      if (thread % 32 == 0) ptx::arrive(&free[stage]);
    } else if (thread == 0) {
      ptx::wait(&free[stage], parity ^ 1);
      ptx::arrive_and_expect(&full[stage], STAGE_BYTES);
      ptx::load_box(tile, map, &full[stage], 0, 16 * r);
      ptx::load_box(tile + STAGE_BYTES / 2, map, &full[stage], 0, 16 * r + 8);
    } else if (warp == 1 || warp == 2) {
      ptx::wait(&free[stage], parity ^ 1);
      known[stage * KNOWN + thread - 32] = stepped(seeds[r * KNOWN + thread - 32]);
      __syncwarp();
      if (thread % 32 == 0) ptx::arrive(&full[stage]);
    }
  }
}

// ----------------------------------------------------------------------------------------------------- named barriers and registers

// Two groups of 128 hand words on at barriers of their own, not as often, and then together; 128 threads more go past all of them.
__device__ __forceinline__ void hand_on(u32 *out, const u32 *in) {
  SORFT_SMEM(u32, words, 2 * GROUP);
  const int at = threadIdx.x, group = at / GROUP, next = group * GROUP + (at + 1) % GROUP;
  u32 word = in[at];
  if (group < 2) {
    for (int r = 0; r < 3 + 2 * group; r++) {
      words[at] = word;
      ptx::named_barrier(1 + group, GROUP);
      word = word * 3 + words[next];
      ptx::named_barrier(1 + group, GROUP);
    }
    words[at] = word;
    ptx::named_barrier(3, 2 * GROUP);
    word = word * 5 + words[2 * GROUP - 1 - at];
  }
  out[at] = word;
}

constexpr int HELD = 192;

// Of the 3 * 168 registers that a block's threads have, 24 + 2 * 240: those who take them hold 192 words each at a time. (No __restrict__: nothing is loaded behind
// the barrier.)
__device__ __forceinline__ void move_registers(u32 *out, const u32 *in) {
  out += blockIdx.x * (2 * GROUP * HELD + GROUP);
  if (threadIdx.x >= 2 * GROUP) {
    ptx::give_registers<24>();
    const int at = 2 * GROUP * HELD + threadIdx.x - 2 * GROUP;
    out[at] = ~in[at];
    return;
  }
  ptx::take_registers<240>();
  u32 held[HELD];
  SORFT_UNROLL
  for (int j = 0; j < HELD; j++) held[j] = in[j * 2 * GROUP + threadIdx.x];
  ptx::named_barrier(1, 2 * GROUP);  // all have been loaded before the first is stored
  SORFT_UNROLL
  for (int j = 0; j < HELD; j++) held[j] += held[(j + HELD / 2) % HELD] * 3;
  SORFT_UNROLL
  for (int j = 0; j < HELD; j++) out[j * 2 * GROUP + threadIdx.x] = held[j];
}

// ---------------------------------------------------------------------------------------------------------------------------- products

// An operand of 64 terms: by terms one box of all rows, by rows boxes of 64 rows.
template <bool BY_ROWS, int ROWS>
struct Side {
  static constexpr int BOXES = BY_ROWS ? (ROWS + 63) / 64 : 1, BYTES = BY_ROWS ? BOXES * BOX_BYTES : ROWS * ROW_BYTES;

  static __device__ __forceinline__ void load(u8 *to, const TensorMap &map, u64 *barrier) {
    SORFT_UNROLL
    for (int i = 0; i < BOXES; i++) ptx::load_box(to + i * BOX_BYTES, map, barrier, 64 * i, 0);
  }
  // Terms 16 k..: 32 bytes of each row, or two times 8 lines of 128 bytes.
  static __device__ __forceinline__ u64 describe(const u8 *p, int k) { return ptx::describe(p + k * (BY_ROWS ? 2048 : 32), BOX_BYTES, 1024); }
};

// out = c and then `products` products, one after another, each waited for: product(sums, k) fences and issues the k-th.
template <int N, class Product>
__device__ __forceinline__ void multiply(u32 *out, const u32 *c, int products, const Product &product) {
  float sum[N / 8][4];
  const int at = threadIdx.x * (N / 2);
  SORFT_UNROLL
  for (int i = 0; i < N / 2; i++) sum[i / 4][i % 4] = __uint_as_float(c[at + i]);
  SORFT_NO_UNROLL
  for (int k = 0; k < products; k++) {
    product(sum, k);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
  }
  SORFT_UNROLL
  for (int i = 0; i < N / 2; i++) out[at + i] = __float_as_uint(sum[i / 4][i % 4]);
}

// Both operands by TMA.
template <int N, bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void described(u32 *out, const TensorMap &left, const TensorMap &right, const u32 *c, int products, bool keep) {
  using A = Side<A_BY_ROWS, 64>;
  using B = Side<B_BY_ROWS, N>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full, 1);
  u8 *a = shared, *b = shared + A::BYTES;
  make_barriers<1>(full, 1);
  if (threadIdx.x == 0) {
    ptx::arrive_and_expect(full, A::BYTES + B::BYTES);
    A::load(a, left, full);
    B::load(b, right, full);
  }
  ptx::wait(full, 0);
  multiply<N>(out, c, products, [&](float(&sum)[N / 8][4], int k) {
    ptx::wgmma_fence();
    ptx::wgmma<A_BY_ROWS, B_BY_ROWS>(sum, A::describe(a, k), B::describe(b, k), keep || k > 0);
  });
}

// a [64, 64] by the threads' own stores: what fence.proxy.async is for.
__device__ __forceinline__ void stored(u32 *out, const bf16 *left, const TensorMap &right, const u32 *c, int products, bool keep) {
  using A = Side<false, 64>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full, 1);
  u8 *a = shared, *b = shared + A::BYTES;
  for (int i = threadIdx.x; i < 64 * 8; i += GROUP)
    store_vec(reinterpret_cast<bf16 *>(a) + tile::place<64>(i / 8, i % 8), load_vec<bf16x8>(left + 8 * i));
  ptx::fence_async_proxy();
  make_barriers<1>(full, 1);
  if (threadIdx.x == 0) {
    ptx::arrive_and_expect(full, A::BYTES);
    A::load(b, right, full);
  }
  ptx::wait(full, 0);
  multiply<64>(out, c, products, [&](float(&sum)[8][4], int k) {
    ptx::wgmma_fence();
    ptx::wgmma<false, false>(sum, A::describe(a, k), A::describe(b, k), keep || k > 0);
  });
}

// a in registers, b by rows.
template <int N>
__device__ __forceinline__ void from_registers(u32 *out, const u32 *a, const TensorMap &right, const u32 *c, int products) {
  using B = Side<true, N>;
  SORFT_DYN_SMEM(u8, b);
  SORFT_SMEM(u64, full, 1);
  make_barriers<1>(full, 1);
  if (threadIdx.x == 0) {
    ptx::arrive_and_expect(full, B::BYTES);
    B::load(b, right, full);
  }
  ptx::wait(full, 0);
  multiply<N>(out, c, products, [&](float(&sum)[N / 8][4], int k) {
    u32 x[4];
    SORFT_UNROLL
    for (int i = 0; i < 4; i++) x[i] = a[(k * GROUP + threadIdx.x) * 4 + i];
    ptx::wgmma_fence();  // behind what has written a's registers too
    ptx::wgmma<true>(sum, x, B::describe(b, k));
  });
}

// a b' of [64, 64 chunks] both, by wgmma, four products a group, and, of the same shared memory, by mma.sync: the same products in the same order. At least
// one chunk.
__device__ __forceinline__ void by_both(u32 *out, u32 *other, const TensorMap &left, const TensorMap &right, int chunks) {
  using S = Side<false, 64>;
  SORFT_DYN_SMEM(u8, shared);
  SORFT_SMEM(u64, full, STAGES);
  make_barriers<STAGES>(full, 1);
  const auto load = [&](int c) {
    if (threadIdx.x != 0 || c >= chunks) return;
    u8 *to = shared + c % STAGES * 2 * BOX_BYTES;
    u64 *barrier = &full[c % STAGES];
    ptx::arrive_and_expect(barrier, 2 * BOX_BYTES);
    ptx::load_box(to, left, barrier, 64 * c, 0);
    ptx::load_box(to + BOX_BYTES, right, barrier, 64 * c, 0);
  };
  float sum[8][4], own[8][4];
  tile::clear(own);
  load(0);
  for (int c = 0; c < chunks; c++) {
    const u8 *a = shared + c % STAGES * 2 * BOX_BYTES, *b = a + BOX_BYTES;
    ptx::wait(&full[c % STAGES], c / STAGES & 1);
    ptx::wgmma_fence();
    SORFT_UNROLL
    for (int k = 0; k < 4; k++) ptx::wgmma<false, false>(sum, S::describe(a, k), S::describe(b, k), c > 0 || k > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    __syncthreads();  // nobody needs the chunk before any more
    load(c + 1);
    tile::multiply_transposed<64>(own, reinterpret_cast<const bf16 *>(a), (int)threadIdx.x / 32 * 16, reinterpret_cast<const bf16 *>(b), 0);
  }
  const int at = threadIdx.x * 32;
  SORFT_UNROLL
  for (int i = 0; i < 32; i++) {
    out[at + i] = __float_as_uint(sum[i / 4][i % 4]);
    other[at + i] = __float_as_uint(own[i / 4][i % 4]);
  }
}

}  // namespace conformance_hopper
#define CONFORMANCE_HOPPER_BODY(...) conformance_hopper::__VA_ARGS__
#else
#define CONFORMANCE_HOPPER_BODY(...)
#endif

// Boxes of `rows` rows of a matrix: at [blocks, 2] has columns and rows; out [blocks, rows, 32].
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_matrix(u32 *__restrict__ out, const SORFT_GRID_CONSTANT TensorMap map, const u32 *__restrict__ at, i32 rows) {
  at += 2 * blockIdx.x;
  CONFORMANCE_HOPPER_BODY(copy_box(out, rows, [&](void *to, u64 *barrier) { ptx::load_box(to, map, barrier, (int)at[0], (int)at[1]); }));
}
SORFT_EXPORT(conformance_hopper_matrix)

// The same of planes, `rows` rows in all: at [blocks, 3].
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_planes(u32 *__restrict__ out, const SORFT_GRID_CONSTANT TensorMap map, const u32 *__restrict__ at, i32 rows) {
  at += 3 * blockIdx.x;
  CONFORMANCE_HOPPER_BODY(
      copy_box(out, rows, [&](void *to, u64 *barrier) { ptx::load_box(to, map, barrier, (int)at[0], (int)at[1], (int)at[2]); }));
}
SORFT_EXPORT(conformance_hopper_planes)

// Boxes of 8 rows of a matrix [16 rounds, 64]; seeds [rounds, 64]; out [rounds, 512 + 64]: the tile as it lies, and the seeds after their steps.
extern "C" __global__ void __launch_bounds__(256)
conformance_hopper_phases(u32 *__restrict__ out, const SORFT_GRID_CONSTANT TensorMap map, const u32 *__restrict__ seeds, i32 rounds) {
  CONFORMANCE_HOPPER_BODY(run_rounds(out, map, seeds, rounds));
}
SORFT_EXPORT(conformance_hopper_phases)

// in, out [384].
extern "C" __global__ void __launch_bounds__(384) conformance_hopper_named_barrier(u32 *__restrict__ out, const u32 *__restrict__ in) {
  CONFORMANCE_HOPPER_BODY(hand_on(out, in));
}
SORFT_EXPORT(conformance_hopper_named_barrier)

// in [192 * 256 + 128], out [blocks, 192 * 256 + 128].
extern "C" __global__ void __launch_bounds__(384, 1) conformance_hopper_registers(u32 *out, const u32 *in) {
  CONFORMANCE_HOPPER_BODY(move_registers(out, in));
}
SORFT_EXPORT(conformance_hopper_registers)

// Products of 64 terms at the most, of one warpgroup: a [64, 64], b [N, 64], by rows turned over; c and out [128, N / 2] are fragments. Boxes: of b by terms
// N rows, else 64.
#define CONFORMANCE_HOPPER_PRODUCT(name, N, A_BY_ROWS, B_BY_ROWS)                                                                         \
  extern "C" __global__ void __launch_bounds__(128)                                                                                       \
  name(u32 *__restrict__ out, const SORFT_GRID_CONSTANT TensorMap a, const SORFT_GRID_CONSTANT TensorMap b, const u32 *__restrict__ c,    \
       i32 products, i32 keep) {                                                                                                          \
    CONFORMANCE_HOPPER_BODY(described<N, A_BY_ROWS, B_BY_ROWS>(out, a, b, c, products, keep != 0));                                       \
  }                                                                                                                                       \
  SORFT_EXPORT(name)

CONFORMANCE_HOPPER_PRODUCT(conformance_hopper_64_terms_terms, 64, false, false)
CONFORMANCE_HOPPER_PRODUCT(conformance_hopper_256_terms_terms, 256, false, false)
CONFORMANCE_HOPPER_PRODUCT(conformance_hopper_256_terms_rows, 256, false, true)
CONFORMANCE_HOPPER_PRODUCT(conformance_hopper_256_rows_rows, 256, true, true)

// The same with a in device memory.
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_stored(u32 *__restrict__ out, const bf16 *__restrict__ a, const SORFT_GRID_CONSTANT TensorMap b, const u32 *__restrict__ c,
                          i32 products, i32 keep) {
  CONFORMANCE_HOPPER_BODY(stored(out, a, b, c, products, keep != 0));
}
SORFT_EXPORT(conformance_hopper_stored)

// With a in registers: fragments [products, 128, 4].
#define CONFORMANCE_HOPPER_FROM_REGISTERS(name, N)                                                                                \
  extern "C" __global__ void __launch_bounds__(128)                                                                               \
  name(u32 *__restrict__ out, const u32 *__restrict__ a, const SORFT_GRID_CONSTANT TensorMap b, const u32 *__restrict__ c,        \
       i32 products) {                                                                                                            \
    CONFORMANCE_HOPPER_BODY(from_registers<N>(out, a, b, c, products));                                                           \
  }                                                                                                                               \
  SORFT_EXPORT(name)

CONFORMANCE_HOPPER_FROM_REGISTERS(conformance_hopper_64_registers, 64)
CONFORMANCE_HOPPER_FROM_REGISTERS(conformance_hopper_96_registers, 96)
CONFORMANCE_HOPPER_FROM_REGISTERS(conformance_hopper_128_registers, 128)

// a, b [64, 64 chunks], by terms; out, other [128, 32] fragments.
extern "C" __global__ void __launch_bounds__(128)
conformance_hopper_chain(u32 *__restrict__ out, u32 *__restrict__ other, const SORFT_GRID_CONSTANT TensorMap a,
                         const SORFT_GRID_CONSTANT TensorMap b, i32 chunks) {
  CONFORMANCE_HOPPER_BODY(by_both(out, other, a, b, chunks));
}
SORFT_EXPORT(conformance_hopper_chain)
