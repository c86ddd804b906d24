// ptx.cuh - every inline-PTX instruction of the kernels, once, behind a named wrapper with a host twin for the emulator.
//
// A wrapper takes ordinary values and generic pointers, never raw shared addresses, so that both sides have one signature. The twin computes
// what the PTX manual says of the instruction, NaNs included. Part of sorft.cuh; not to be included alone.
#pragma once

namespace ptx {

// cvt.rn.bf16x2.f32: two f32 to bf16, to nearest even, `lo` in the low half. A NaN becomes 0x7fff.
__device__ __forceinline__ u32 cvt_bf16x2(float lo, float hi) {
#if defined(SORFT_EMULATOR)
  return (u32)emu::round_to_bf16(lo) | (u32)emu::round_to_bf16(hi) << 16;
#else
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(hi), "f"(lo));
  return packed;
#endif
}

// ex2.approx.ftz.f32: 2^x within 2 units in the last place; exactly 1 for 0, 0 for -inf. (The twin rounds correctly: other last bits.)
__device__ __forceinline__ float ex2(float x) {
#if defined(SORFT_EMULATOR)
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// lg2.approx.ftz.f32: log2 x, absolute error below 2^-22 near 1; -inf for 0 and subnormal numbers.
__device__ __forceinline__ float lg2(float x) {
#if defined(SORFT_EMULATOR)
  return log2f(fabsf(x) < 1.17549435e-38f ? 0.0f : x);
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

#if !defined(SORFT_EMULATOR)
__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }
#endif

// ldmatrix.x4: four 8 x 8 pieces of 16-bit numbers. Lane 8i + r gives the address of row r of piece i; lane 4g + t receives, in out[i],
// columns 2t and 2t + 1 of row g.
__device__ __forceinline__ void ldmatrix(u32 (&out)[4], const void *row) {
#if defined(SORFT_EMULATOR)
  emu::load_matrices(out, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// ldmatrix.x4.trans: the same of each piece transposed: rows 2t and 2t + 1 of column g.
__device__ __forceinline__ void ldmatrix_trans(u32 (&out)[4], const void *row) {
#if defined(SORFT_EMULATOR)
  emu::load_matrices(out, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// mma.sync.m16n8k16: d [16, 8] f32 += a [16, 16] b [16, 8], both bf16.
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(SORFT_EMULATOR)
  emu::multiply_16x8x16(d, a, b0, b1);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// cp.async.cg: 16 bytes to shared memory, past L1; zeros if not `valid` (then `from` is not read, but must be an aligned address).
__device__ __forceinline__ void cp_async(void *to, const void *from, bool valid) {
#if defined(SORFT_EMULATOR)
  emu::copy_async(to, from, 16, valid ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
#endif
}

// cp.async.commit_group: the copies since the last one are a group.
__device__ __forceinline__ void cp_async_commit() {
#if defined(SORFT_EMULATOR)
  emu::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// cp.async.wait_group: all groups of this thread but the last PENDING have landed, for this thread.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
#if defined(SORFT_EMULATOR)
  emu::wait_for_copies(PENDING);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// red.release.gpu: adds to a number in device memory. Who has waited for the sum sees all that this thread knew before.
__device__ __forceinline__ void add_release(u32 *number, u32 more) {
#if defined(SORFT_EMULATOR)
  emu::add_release(number, more);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(number), "r"(more) : "memory");
#endif
}

// ld.acquire.gpu, again and again: waits until a number in device memory, which others only make larger by add_release, is at least `least`. The blocks that
// this waits for must be at work or done.
__device__ __forceinline__ void wait_for(const u32 *number, u32 least) {
#if defined(SORFT_EMULATOR)
  emu::wait_for(number, least);
#else
  u32 now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(number) : "memory");
  } while (now < least);
#endif
}

// griddepcontrol.launch_dependents: as far as this block is concerned, the launch that follows may begin, where it was launched to do so (Launch::waits).
__device__ __forceinline__ void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Loads by this pointer stay behind the assembly before it: a compiler may move those of numbers that the kernel only reads past anything else.
template <class Pointer>
__device__ __forceinline__ void hold(Pointer &p) {
#if !defined(SORFT_EMULATOR)
  // As an address of global memory, or what is known of the pointer would be lost.
  size_t address = __cvta_generic_to_global(p);
  asm volatile("" : "+l"(address)::"memory");
  p = static_cast<Pointer>(__cvta_global_to_generic(address));
#endif
}

// griddepcontrol.wait: the launches before this one have ended, and what they wrote is there. Until then only what none of them writes may be read. The
// pointers are those to what they write.
template <class... Pointer>
__device__ __forceinline__ void wait_for_earlier_launches(Pointer &...written) {
#if defined(SORFT_EMULATOR)
  emu::wait_for_earlier_launches();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  (hold(written), ...);
}

// For a kernel that has nothing to do before.
template <class... Pointer>
__device__ __forceinline__ void begin_after_earlier_launches(Pointer &...written) {
  let_next_begin();
  wait_for_earlier_launches(written...);
}

}  // namespace ptx
