// attention_hopper.cuh - what the attention kernels for sm_90a share: tiles of 64 rows in shared memory, the stages that they come in, their products.
#pragma once

#if defined(SORFT_HOPPER)
namespace attention_hopper {

using attention::ROWS;
constexpr int GROUP = 128, MAX_GROUPS = 2, ROW_BYTES = 128;

// A head's numbers come in blocks of 64 columns, the last filled with zeros, as TMA lays them out for wgmma; of a tile of 64 rows:
template <int D>
struct Tile {
  static constexpr int BLOCKS = (D + 63) / 64, BLOCK_BYTES = ROWS * ROW_BYTES, BYTES = BLOCKS * BLOCK_BYTES;
};

// A run of stages, one after another.
template <int STAGES>
struct Turn {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// Copies a page's keys or values.
template <int D>
__device__ __forceinline__ void load_tile(u8 *to, const TensorMap &map, u64 *barrier, int row) {
  SORFT_UNROLL
  for (int i = 0; i < Tile<D>::BLOCKS; i++) ptx::load_box(to + i * Tile<D>::BLOCK_BYTES, map, barrier, 64 * i, row);
}

// Sets to zero what lies behind the first `filled` rows of a tile, which nobody has written, for the products to come. By the `threads` threads that
// multiply, of which this is number `thread`; they meet at the named barrier `id`.
template <int D>
__device__ __forceinline__ void clear_behind(u8 *tile, int filled, int id, int thread, int threads) {
  for (int i = filled * (ROW_BYTES / 16) + thread; i < ROWS * (ROW_BYTES / 16); i += threads) {
    SORFT_UNROLL
    for (int b = 0; b < Tile<D>::BLOCKS; b++) store_vec(tile + b * Tile<D>::BLOCK_BYTES + 16 * i, uint4{0, 0, 0, 0});
  }
  ptx::fence_async_proxy();
  ptx::named_barrier(id, threads);
}

// Issues s = a b' of [64, D] and [64, D]. A_BLOCK: bytes from a block of columns of a to the next.
template <int D, int A_BLOCK>
__device__ __forceinline__ void issue_transposed(float (&s)[8][4], const u8 *a, const u8 *b) {
  ptx::wgmma_fence();
  SORFT_UNROLL
  for (int k = 0; k < D / 16; k++) {
    const u64 left = ptx::describe(a + k / 4 * A_BLOCK + k % 4 * 32, 0, 1024);
    ptx::wgmma<false, false>(s, left, ptx::describe(b + k / 4 * Tile<D>::BLOCK_BYTES + k % 4 * 32, 0, 1024), k > 0);
  }
  ptx::wgmma_commit();
}

// Issues sum += x b of [64, 64] in registers and [64, D].
template <int D>
__device__ __forceinline__ void issue_sum(float (&sum)[D / 8][4], const u32 (&x)[4][4], const u8 *b) {
  ptx::wgmma_fence();
  SORFT_UNROLL
  for (int k = 0; k < 4; k++) ptx::wgmma<true>(sum, x[k], ptx::describe(b + k * 2048, Tile<D>::BLOCK_BYTES, 1024));
  ptx::wgmma_commit();
}

// Numbers as left operands: an accumulator's layout is that of one.
__device__ __forceinline__ void pack(u32 (&packed)[4][4], const float (&x)[8][4]) {
  SORFT_UNROLL
  for (int k = 0; k < 4; k++) {
    SORFT_UNROLL
    for (int i = 0; i < 4; i++) packed[k][i] = ptx::cvt_bf16x2(x[2 * k + i / 2][i % 2 * 2], x[2 * k + i / 2][i % 2 * 2 + 1]);
  }
}

}  // namespace attention_hopper
#endif
