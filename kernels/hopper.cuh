// hopper.cuh - the instructions of sm_90a: barriers in shared memory, copies of tiles by TMA, products by a warpgroup; each with its host twin.
//
// For the sources that have code for Hopper alone. On other chips SORFT_HOPPER is not defined and their entries are empty: they are never
// launched there. Layouts of operands in shared memory are those with the 128-byte swizzle: rows of 64 bf16, the 16-byte chunks of row r
// exchanged by r % 8, which is also what tile::place<64> says.
#pragma once

#if defined(SORFT_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SORFT_HOPPER 1
#endif

// A matrix of bf16 in device memory, or planes of such matrices, with the size of the boxes to copy: what the driver's cuTensorMapEncodeTiled makes. Passed by value.
struct alignas(64) TensorMap {
  u64 words[16];
};

#if defined(SORFT_EMULATOR)
#define SORFT_GRID_CONSTANT
#else
#define SORFT_GRID_CONSTANT __grid_constant__
#endif

#if defined(SORFT_HOPPER)
namespace ptx {

// mbarrier.init: a barrier whose phases end when `count` threads have arrived. By one thread; fence_barriers and a __syncthreads before use.
__device__ __forceinline__ void barrier_init(u64 *barrier, u32 count) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_init(reinterpret_cast<uint64_t *>(barrier), count);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// fence.mbarrier_init: the initialisation is there for TMA and for other blocks of the cluster.
__device__ __forceinline__ void fence_barriers() {
#if defined(SORFT_EMULATOR)
  emu::fence_barriers();
#else
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// mbarrier.arrive: what this thread has done is seen by those who wait for the phase.
__device__ __forceinline__ void arrive(u64 *barrier) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_arrive(reinterpret_cast<uint64_t *>(barrier), 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// mbarrier.arrive.expect_tx: the same, and the phase does not end before `bytes` have been copied.
__device__ __forceinline__ void arrive_and_expect(u64 *barrier, u32 bytes) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_arrive(reinterpret_cast<uint64_t *>(barrier), bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#endif
}

// Waits until the phase of this parity has ended: 0 for the first phase, 1 for the second, ...; before the first phase has ended, 1 is past.
__device__ __forceinline__ void wait(u64 *barrier, u32 parity) {
#if defined(SORFT_EMULATOR)
  emu::mbarrier_wait(reinterpret_cast<uint64_t *>(barrier), parity);
#else
  u32 done;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
#endif
}

// cp.async.bulk.tensor: the box at column x, row y to shared memory (1024-aligned), zeros outside the matrix; arrives at the barrier in bytes.
__device__ __forceinline__ void load_box(void *to, const TensorMap &map, u64 *barrier, int x, int y) {
#if defined(SORFT_EMULATOR)
  emu::load_tile(to, &map, reinterpret_cast<uint64_t *>(barrier), x, y, 0, false);
#else
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y)
               : "memory");
#endif
}

// The same of a map of planes: the box at column x, row y, plane z; its rows lie one after another, plane after plane.
__device__ __forceinline__ void load_box(void *to, const TensorMap &map, u64 *barrier, int x, int y, int z) {
#if defined(SORFT_EMULATOR)
  emu::load_tile(to, &map, reinterpret_cast<uint64_t *>(barrier), x, y, z, true);
#else
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(&map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
#endif
}

// fence.proxy.async: this thread's stores to shared memory are there for TMA and wgmma, once whoever issues those has met it.
__device__ __forceinline__ void fence_async_proxy() {
#if defined(SORFT_EMULATOR)
  emu::fence_async_proxy();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// bar.sync: `threads` of the block meet at barrier `id` (1 to 15; 0 is __syncthreads').
__device__ __forceinline__ void named_barrier(int id, int threads) {
#if defined(SORFT_EMULATOR)
  emu::named_barrier(id, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// setmaxnreg: the warpgroup gives registers back, or takes what others have given.
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
  static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "as the PTX manual asks");
#if !defined(SORFT_EMULATOR)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
  static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "as the PTX manual asks");
#if !defined(SORFT_EMULATOR)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// An operand of wgmma at `p` with the 128-byte swizzle; strides in bytes. By terms: 8 rows are 1024 bytes, the next 8 lie `second` bytes on. By rows:
// 8 terms of 64 rows are 1024 bytes, the next 8 terms lie `second` bytes on, the next 64 rows `first`.
__device__ __forceinline__ u64 describe(const void *p, u32 first, u32 second) {
#if defined(SORFT_EMULATOR)
  const u32 address = emu::shared_offset(p);
#else
  const u32 address = shared_address(p);
#endif
  return (u64)(address >> 4 & 0x3fff) | (u64)(first >> 4 & 0x3fff) << 16 | (u64)(second >> 4 & 0x3fff) << 32 | 1ull << 62;
}

// wgmma.fence: before a warpgroup's first product, and after its threads have touched the sums.
__device__ __forceinline__ void wgmma_fence() {
#if defined(SORFT_EMULATOR)
  emu::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// wgmma.commit_group: the products since the last one are a group.
__device__ __forceinline__ void wgmma_commit() {
#if defined(SORFT_EMULATOR)
  emu::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// wgmma.wait_group: all groups but the last PENDING are done.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
#if defined(SORFT_EMULATOR)
  emu::wgmma_wait(PENDING);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// wgmma.mma_async m64nNk16: d [64, N] f32 (+)= a [64, 16] b [16, N], bf16, by a warpgroup; d[j] has columns 8 j.. in the layout of mma.m16n8k16, each warp 16
// rows. Operands lie in shared memory as `describe` says, or a in registers as mma.m16n8k16's. BY_ROWS: numbers along a row of the tile are other rows
// (or columns) of d, not terms. Without `keep` d is overwritten. Registers may be touched again behind wgmma_wait.

// d [64, 64].
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void wgmma(float (&d)[8][4], u64 a, u64 b, bool keep) {
#if defined(SORFT_EMULATOR)
  emu::wgmma(&d[0][0], 64, a, A_BY_ROWS, b, B_BY_ROWS, keep);
#else
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %34, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31},"
      " %32, %33, p, 1, 1, %35, %36;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
      : "l"(a), "l"(b), "r"((int)keep), "n"((int)A_BY_ROWS), "n"((int)B_BY_ROWS));
#endif
}

// d [64, 256].
template <bool A_BY_ROWS, bool B_BY_ROWS>
__device__ __forceinline__ void wgmma(float (&d)[32][4], u64 a, u64 b, bool keep) {
#if defined(SORFT_EMULATOR)
  emu::wgmma(&d[0][0], 256, a, A_BY_ROWS, b, B_BY_ROWS, keep);
#else
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %130, 0;"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127},"
      " %128, %129, p, 1, 1, %131, %132;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
        "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]),
        "+f"(d[16][0]), "+f"(d[16][1]), "+f"(d[16][2]), "+f"(d[16][3]), "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]), "+f"(d[17][3]),
        "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]), "+f"(d[19][0]), "+f"(d[19][1]), "+f"(d[19][2]), "+f"(d[19][3]),
        "+f"(d[20][0]), "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]), "+f"(d[21][0]), "+f"(d[21][1]), "+f"(d[21][2]), "+f"(d[21][3]),
        "+f"(d[22][0]), "+f"(d[22][1]), "+f"(d[22][2]), "+f"(d[22][3]), "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]),
        "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), "+f"(d[25][0]), "+f"(d[25][1]), "+f"(d[25][2]), "+f"(d[25][3]),
        "+f"(d[26][0]), "+f"(d[26][1]), "+f"(d[26][2]), "+f"(d[26][3]), "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]), "+f"(d[27][3]),
        "+f"(d[28][0]), "+f"(d[28][1]), "+f"(d[28][2]), "+f"(d[28][3]), "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]),
        "+f"(d[30][0]), "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), "+f"(d[31][0]), "+f"(d[31][1]), "+f"(d[31][2]), "+f"(d[31][3])
      : "l"(a), "l"(b), "r"((int)keep), "n"((int)A_BY_ROWS), "n"((int)B_BY_ROWS));
#endif
}

// d [64, 64] += a b, a in registers.
template <bool B_BY_ROWS>
__device__ __forceinline__ void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b) {
#if defined(SORFT_EMULATOR)
  emu::wgmma_registers(&d[0][0], 64, a, b, B_BY_ROWS, true);
#else
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31},"
      " {%32, %33, %34, %35}, %36, p, 1, 1, %37;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)B_BY_ROWS));
#endif
}

// d [64, 96] += a b, a in registers.
template <bool B_BY_ROWS>
__device__ __forceinline__ void wgmma(float (&d)[12][4], const u32 (&a)[4], u64 b) {
#if defined(SORFT_EMULATOR)
  emu::wgmma_registers(&d[0][0], 96, a, b, B_BY_ROWS, true);
#else
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47},"
      " {%48, %49, %50, %51}, %52, p, 1, 1, %53;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)B_BY_ROWS));
#endif
}

// d [64, 128] += a b, a in registers.
template <bool B_BY_ROWS>
__device__ __forceinline__ void wgmma(float (&d)[16][4], const u32 (&a)[4], u64 b) {
#if defined(SORFT_EMULATOR)
  emu::wgmma_registers(&d[0][0], 128, a, b, B_BY_ROWS, true);
#else
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0;"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63},"
      " {%64, %65, %66, %67}, %68, p, 1, 1, %69;}"
      :
        "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
        "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
        "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
        "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
        "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
        "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)B_BY_ROWS));
#endif
}

}  // namespace ptx
#endif

#include "hopper_store.cuh"
#include "hopper_cluster.cuh"
