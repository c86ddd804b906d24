// fiber.hpp - one fiber a CUDA thread: a stack of its own and a switch to it.
#pragma once

#include <cstdint>
#include <vector>

#include "device.hpp"

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#include <ucontext.h>
#define EMU_HAVE_UCONTEXT 1
#endif

namespace emu {

// A suspended flow of control.
struct Fiber {
#if defined(EMU_HAVE_UCONTEXT)
  ucontext_t context;
#else
  void *stack_pointer = nullptr;
#endif
};

// Makes `fiber` start `entry` (which never returns) on the stack that ends at `top`, a multiple of 16.
void prepare(Fiber &fiber, uint8_t *bottom, uint8_t *top, void (*entry)());

// Goes on with `to`; comes back when something switches to `from`.
void switch_fiber(Fiber &from, Fiber &to);

// The stacks of this operating-system thread, kept from launch to launch. Below each lies a page that nothing may touch.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool &) = delete;
  StackPool &operator=(const StackPool &) = delete;
  ~StackPool() { clear(); }

  // The lowest address of stack `index`, which is a multiple of STACK_BYTES.
  uint8_t *stack(size_t index);

  // Gives all of them back.
  void clear();

 private:
  struct Chunk {
    void *mapping;
    uint8_t *first;
  };
  static constexpr size_t CHUNK = 64;  // stacks mapped at a time
  std::vector<Chunk> chunks_;
};

}  // namespace emu
