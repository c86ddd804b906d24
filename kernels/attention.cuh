// attention.cuh - what attention's forward and backward kernels share: items of work, and how rows and pages come to shared memory.
#pragma once

namespace attention {

using tile::LN_2;
using tile::LOG2_E;
using tile::ROWS;
using tile::THREADS;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// What a block does for one kv head; attention.cu tells of the numbers.
struct Item {
  int first_row, rows, first_page, begin, end;

  __device__ __forceinline__ explicit Item(const u32 *items) {
    const u32 *own = items + (i64)blockIdx.x * 5;
    first_row = (int)own[0];
    rows = (int)own[1];
    first_page = (int)own[2];
    begin = (int)own[3];
    end = (int)own[4];
  }
};

// Starts copying the pairs' rows of x [T, H, D] to a tile; zeros where there is no pair.
template <int D, int PAIRS>
__device__ __forceinline__ void copy_pairs(bf16 *to, const bf16 *x, const u32 *rows, int pairs, int group, int heads, int first_head) {
  constexpr int CHUNKS = D / 8;
  SORFT_UNROLL
  for (int i = 0; i < PAIRS * CHUNKS / THREADS; i++) {
    const int at = threadIdx.x + i * THREADS, pair = at / CHUNKS, chunk = at % CHUNKS;
    const bool valid = pair < pairs;
    const bf16 *from = valid ? x + ((i64)rows[pair / group] * heads + first_head + pair % group) * D + chunk * 8 : x;
    ptx::cp_async(to + tile::place<D>(pair, chunk), from, valid);
  }
}

// A page's keys and values to a stage; slots at and beyond `end` are not read.
template <int D>
__device__ __forceinline__ void copy_page(bf16 *stage, const bf16 *keys, const bf16 *values, u32 page, int kv_heads, int kv_head, int rows) {
  const i64 from = ((i64)page * kv_heads + kv_head) * ROWS * D;
  tile::copy_rows<D>(stage, keys + from, rows);
  tile::copy_rows<D>(stage + ROWS * D, values + from, rows);
}

}  // namespace attention
