// kv_pages.cuh - where keys and values lie, for kv_pages.cu and qkv.cu.
#pragma once

namespace kv_pages {

constexpr u32 NOWHERE = 0xffffffffu;  // kv::NOWHERE of src/tensor/ops/attention/cuda/kv.rs

// The first number of a head in a page's slot: [pages, H_kv, 64, D].
__device__ __forceinline__ i64 place(u32 page, u32 slot, int head, int kv_heads, int dim) {
  return (((i64)page * kv_heads + head) * 64 + slot) * dim;
}

}  // namespace kv_pages
