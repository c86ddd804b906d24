// device.hpp - what a kernel source sees instead of CUDA when it is compiled for the emulator.
//
// Kernels are compiled as C++ with -fsanitize=thread and without libtsan: the compiler then calls __tsan_read4 and the like before every load
// and store, and memory.cpp defines those. So this header only has to supply what CUDA C++ adds to the language: thread indices, shared
// memory, barriers, warp operations, atomics and a few intrinsics. Everything with state lives in the engine, behind the functions declared
// here; the engine itself is compiled without the sanitizer.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define SORFT_UNROLL
#define SORFT_NO_UNROLL

struct bf16;
struct TensorMap;

namespace emu {

struct Dim3 {
  unsigned x, y, z;
};

struct Thread;

// Lies at the top of the fiber's own stack, whose size is a power of two and which is aligned to it. So a kernel finds its indices from its
// frame address, and reading them is an access to its own stack, which is never checked.
struct ThreadView {
  Dim3 thread, block, block_dim, grid_dim;
};
constexpr size_t STACK_BYTES = 64 * 1024;
constexpr size_t VIEW_BYTES = 64;
static_assert(sizeof(ThreadView) <= VIEW_BYTES, "the view fits its place on the stack");

inline __attribute__((always_inline)) const ThreadView &view() {
  const uintptr_t frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  return *reinterpret_cast<const ThreadView *>((frame & ~(uintptr_t)(STACK_BYTES - 1)) + STACK_BYTES - VIEW_BYTES);
}

// ---- memory (memory.cpp)
void load(void *value, const void *from, size_t bytes);
void store(void *to, const void *value, size_t bytes);
void *dynamic_shared(const char *name);
void *static_shared(const void *site, const char *name, size_t bytes, size_t align);

// ---- barriers and warp operations (sync.cpp)
enum class Reduce { None, Or, And, Count };
int block_barrier(Reduce reduce, int value);
void warp_barrier(uint32_t mask);
enum class Shuffle { Index, Up, Down, Xor };
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int operand, int width);
uint32_t ballot(uint32_t mask, bool predicate);
uint32_t match_any(uint32_t mask, uint64_t value);
uint32_t active_mask();
void thread_fence();
void yield();

// ---- atomics (atomic.cpp)
enum class AtomicOp { Add, Min, Max, And, Or, Xor, Exchange, CompareExchange };
enum class AtomicType { I32, U32, U64, F32 };
uint64_t atomic(void *address, AtomicType type, AtomicOp op, uint64_t operand, uint64_t compare);
void add_release(uint32_t *number, uint32_t more);
void wait_for(const uint32_t *number, uint32_t least);
void wait_for_earlier_launches();

// ---- tensor cores (tensor.cpp): a whole warp together; each lane gets and gives its fragment
void load_matrices(uint32_t (&out)[4], const void *row, bool transposed);
void store_matrices(void *row, const uint32_t (&in)[4], bool transposed);
void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

// ---- asynchronous copies to shared memory (async.cpp)
void copy_async(void *to, const void *from, uint32_t bytes, uint32_t read);
void commit_copies();
void wait_for_copies(uint32_t pending);

// ---- barriers in shared memory (mbarrier.cpp), named ones (sync.cpp), copies of whole tiles both ways (tiles.cpp)
void mbarrier_init(uint64_t *barrier, uint32_t count);
void mbarrier_arrive(uint64_t *barrier, uint32_t bytes);
void mbarrier_wait(uint64_t *barrier, uint32_t parity, bool of_cluster = false);
void fence_barriers();
void load_tile(void *to, const void *map, uint64_t *barrier, int x, int y, int z, bool planes);
void load_tile_to_all(void *to, const void *map, uint64_t *barrier, int x, int y, uint32_t ranks);
void store_tile(const void *map, int x, int y, const void *from);
void commit_stores();
void wait_for_stores(uint32_t pending, bool read);
void fence_async_proxy();
void named_barrier(uint32_t id, uint32_t count);

// ---- clusters of blocks (cluster.cpp)
uint32_t cluster_rank();
void cluster_arrive();
void cluster_wait();
void mbarrier_arrive_at(uint64_t *barrier, uint32_t rank);

// ---- products by a warpgroup (wgmma.cpp)
uint32_t shared_offset(const void *pointer);
void wgmma_fence();
void wgmma(float *d, uint32_t columns, uint64_t a, bool a_by_rows, uint64_t b, bool b_by_rows, bool keep);
void wgmma_registers(float *d, uint32_t columns, const uint32_t *a, uint64_t b, bool b_by_rows, bool keep);
void wgmma_commit();
void wgmma_wait(uint32_t pending);

// ---- numbers
// To nearest, ties to even, as cvt.rn.bf16.f32 does; a NaN gives 0x7fff.
inline uint16_t round_to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

template <class T>
inline uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8, "at most 64 bits");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
inline T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
__forceinline__ T shuffle_as(Shuffle kind, uint32_t mask, T value, int operand, int width) {
  return from_bits<T>(shuffle(kind, mask, to_bits(value), operand, width));
}

template <class T>
struct AtomicTypeOf;
template <>
struct AtomicTypeOf<int> {
  static constexpr AtomicType value = AtomicType::I32;
};
template <>
struct AtomicTypeOf<unsigned> {
  static constexpr AtomicType value = AtomicType::U32;
};
template <>
struct AtomicTypeOf<unsigned long long> {
  static constexpr AtomicType value = AtomicType::U64;
};
template <>
struct AtomicTypeOf<float> {
  static constexpr AtomicType value = AtomicType::F32;
};
template <class T>
__forceinline__ T atomic_as(T *address, AtomicOp op, T operand, T compare = T()) {
  return from_bits<T>(atomic(address, AtomicTypeOf<T>::value, op, to_bits(operand), to_bits(compare)));
}

// ---- entry points
// One or two letters a parameter, read by the launcher: `m` or `c` (mutable, const) and the element of a pointer; a scalar's own letter.
template <class T>
struct Letter;
#define SORFT_LETTER(T, c)           \
  template <>                        \
  struct Letter<T> {                 \
    static constexpr char value = c; \
  };
SORFT_LETTER(float, 'f')
SORFT_LETTER(int, 'i')
SORFT_LETTER(unsigned, 'u')
SORFT_LETTER(unsigned char, 'h')
SORFT_LETTER(long long, 'l')
SORFT_LETTER(double, 'd')
SORFT_LETTER(bf16, 'b')
SORFT_LETTER(TensorMap, 't')
#undef SORFT_LETTER

template <class T>
inline char *spell(char *out) {
  using Element = std::remove_pointer_t<T>;
  if (std::is_pointer_v<T>) *out++ = std::is_const_v<Element> ? 'c' : 'm';
  *out++ = Letter<std::remove_const_t<Element>>::value;
  *out++ = ' ';
  return out;
}

template <class... A>
const char *signature(void (*)(A...)) {
  static char text[3 * sizeof...(A) + 1];
  char *out = text;
  ((out = spell<A>(out)), ...);
  out[out == text ? 0 : -1] = 0;
  return text;
}

// (noipa: else a compiler moves the load of an argument into the caller, where it is taken for the kernel's.)
template <class... A, size_t... I>
__attribute__((noipa, no_sanitize("thread"))) void unpack(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A *>(arguments[I])...);
}

template <class... A>
void call(void (*kernel)(A...), void **arguments) {
  unpack(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emu

// The entry as the launcher finds it: takes an argument array as cuLaunchKernel does, and tells its signature.
#define SORFT_EXPORTED extern "C" __attribute__((visibility("default")))
#define SORFT_EXPORT(name)                                                           \
  SORFT_EXPORTED void name##__emu(void **arguments) { emu::call(name, arguments); } \
  SORFT_EXPORTED const char *name##__emu_signature() { return emu::signature(name); }

#define SORFT_DYN_SMEM(T, name) T *name = static_cast<T *>(emu::dynamic_shared(#name))
#define SORFT_SMEM(T, name, n)    \
  static const char name##_site_ = 0; \
  T *name = static_cast<T *>(emu::static_shared(&name##_site_, #name, sizeof(T) * (n), alignof(T)))

#define threadIdx (emu::view().thread)
#define blockIdx (emu::view().block)
#define blockDim (emu::view().block_dim)
#define gridDim (emu::view().grid_dim)
#define warpSize 32

// ---- CUDA's vector types and intrinsics, as far as kernels use them
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

#define SORFT_FN inline __attribute__((always_inline))
SORFT_FN void __syncthreads() { emu::block_barrier(emu::Reduce::None, 0); }
SORFT_FN int __syncthreads_or(int v) { return emu::block_barrier(emu::Reduce::Or, v); }
SORFT_FN int __syncthreads_and(int v) { return emu::block_barrier(emu::Reduce::And, v); }
SORFT_FN int __syncthreads_count(int v) { return emu::block_barrier(emu::Reduce::Count, v); }
SORFT_FN void __syncwarp(unsigned mask = 0xffffffffu) { emu::warp_barrier(mask); }
SORFT_FN void __threadfence() { emu::thread_fence(); }
SORFT_FN void __nanosleep(unsigned) { emu::yield(); }
SORFT_FN unsigned __activemask() { return emu::active_mask(); }

template <class T>
SORFT_FN T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return emu::shuffle_as(emu::Shuffle::Index, mask, v, lane, width);
}
template <class T>
SORFT_FN T __shfl_up_sync(unsigned mask, T v, int delta, int width = 32) {
  return emu::shuffle_as(emu::Shuffle::Up, mask, v, delta, width);
}
template <class T>
SORFT_FN T __shfl_down_sync(unsigned mask, T v, int delta, int width = 32) {
  return emu::shuffle_as(emu::Shuffle::Down, mask, v, delta, width);
}
template <class T>
SORFT_FN T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32) {
  return emu::shuffle_as(emu::Shuffle::Xor, mask, v, lanes, width);
}
SORFT_FN unsigned __ballot_sync(unsigned mask, int p) { return emu::ballot(mask, p != 0); }
SORFT_FN int __any_sync(unsigned mask, int p) { return emu::ballot(mask, p != 0) != 0; }
SORFT_FN int __all_sync(unsigned mask, int p) { return emu::ballot(mask, p == 0) == 0; }
template <class T>
SORFT_FN unsigned __match_any_sync(unsigned mask, T v) {
  return emu::match_any(mask, emu::to_bits(v));
}

template <class T>
SORFT_FN T atomicAdd(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Add, v); }
template <class T>
SORFT_FN T atomicMin(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Min, v); }
template <class T>
SORFT_FN T atomicMax(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Max, v); }
template <class T>
SORFT_FN T atomicAnd(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::And, v); }
template <class T>
SORFT_FN T atomicOr(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Or, v); }
template <class T>
SORFT_FN T atomicXor(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Xor, v); }
template <class T>
SORFT_FN T atomicExch(T *p, T v) { return emu::atomic_as(p, emu::AtomicOp::Exchange, v); }
template <class T>
SORFT_FN T atomicCAS(T *p, T compare, T v) { return emu::atomic_as(p, emu::AtomicOp::CompareExchange, v, compare); }

SORFT_FN float __uint_as_float(unsigned v) { return emu::from_bits<float>(v); }
SORFT_FN unsigned __float_as_uint(float v) { return (unsigned)emu::to_bits(v); }
SORFT_FN float __int_as_float(int v) { return emu::from_bits<float>((unsigned)v); }
SORFT_FN int __float_as_int(float v) { return (int)emu::to_bits(v); }
SORFT_FN double __longlong_as_double(long long v) { return emu::from_bits<double>((unsigned long long)v); }
SORFT_FN long long __double_as_longlong(double v) { return (long long)emu::to_bits(v); }
SORFT_FN int __popc(unsigned v) { return __builtin_popcount(v); }
SORFT_FN int __ffs(int v) { return __builtin_ffs(v); }
SORFT_FN int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
template <class T>
SORFT_FN T min(T a, T b) { return b < a ? b : a; }
template <class T>
SORFT_FN T max(T a, T b) { return a < b ? b : a; }
