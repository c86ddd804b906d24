// api.hpp - the C interface of the emulator library, as src/tensor/cuda/emulator.rs declares it. Change both, and ABI_VERSION with them.
//
// Functions that can fail return 0 for success and leave a message in emu_error(device) otherwise. A place in the code reads `{pc:0x...}` in
// a message: an offset into this library, which the caller turns into file:line. A device may be used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

constexpr uint32_t ABI_VERSION = 3;

struct Device;

// How a launch is run and watched.
struct Options {
  uint64_t seed;      // of the random schedule and of preemption
  uint32_t schedule;  // see schedule.hpp
  uint32_t check;     // 0: bounds and alignment only; 1: races and uninitialised reads too
  uint32_t preempt;   // a thread is set aside after one access in this many, at random; 0: never
  uint32_t resident;  // how many blocks run side by side
};

struct Launch {
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t shared_bytes;
  uint32_t arguments;  // how many
  uint32_t cluster;    // blocks of a cluster, neighbours along x; 1: none
  uint32_t early;      // 1: may begin before the launches before it have ended, back to the last one that may not
  uint64_t pointers;   // bit i: argument i is a pointer
};

struct Stats {
  uint64_t switches;  // from one fiber to another
  uint64_t accesses;  // loads and stores that were checked
};

}  // namespace emu

#pragma GCC visibility push(default)
extern "C" {
uint32_t emu_abi_version();
emu::Device *emu_open();
void emu_close(emu::Device *device);
const char *emu_error(const emu::Device *device);
// `grain`: size of an element; two threads may write neighbouring elements, but not parts of one.
void *emu_alloc(emu::Device *device, size_t bytes, size_t grain);
int emu_free(emu::Device *device, void *address);
int emu_write(emu::Device *device, void *to, const void *host, size_t bytes);
int emu_read(emu::Device *device, void *host, const void *from, size_t bytes);
int emu_zero(emu::Device *device, void *to, size_t bytes);
int emu_launch(emu::Device *device, void (*entry)(void **), const emu::Launch *launch, void **arguments, const emu::Options *options,
               emu::Stats *stats);
}
#pragma GCC visibility pop
