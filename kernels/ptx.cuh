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

}  // namespace ptx
