// fiber.cpp - stacks and switches.
#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace emu {

#if defined(EMU_HAVE_UCONTEXT)

void prepare(Fiber &fiber, uint8_t *bottom, uint8_t *top, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = static_cast<size_t>(top - bottom);
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void switch_fiber(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

#else

// Saves the registers that the System V ABI lets a callee expect to find again, and the stack pointer; loads the other fiber's.
// (swapcontext would do, but enters the kernel twice: about twenty times slower.)
extern "C" void emu_switch_stack(void **save, void *load);
asm(R"(
.text
.hidden emu_switch_stack
.globl emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack
)");

void prepare(Fiber &fiber, uint8_t *, uint8_t *top, void (*entry)()) {
  void **sp = reinterpret_cast<void **>(top);
  *--sp = nullptr;  // where `entry` would return to; and after `ret` the stack is as the ABI wants it at a function's start
  *--sp = reinterpret_cast<void *>(entry);
  for (int saved = 0; saved < 6; saved++) *--sp = nullptr;
  fiber.stack_pointer = sp;
}

void switch_fiber(Fiber &from, Fiber &to) { emu_switch_stack(&from.stack_pointer, to.stack_pointer); }

#endif

uint8_t *StackPool::stack(size_t index) {
  while (chunks_.size() * CHUNK <= index) {
    const size_t bytes = STACK_BYTES * (CHUNK + 1);  // one more, to be able to align
    void *mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
      perror("emulator: no memory for stacks");
      abort();
    }
    const uintptr_t base = (reinterpret_cast<uintptr_t>(mapping) + STACK_BYTES - 1) & ~(uintptr_t)(STACK_BYTES - 1);
    for (size_t i = 0; i < CHUNK; i++) mprotect(reinterpret_cast<void *>(base + i * STACK_BYTES), 4096, PROT_NONE);
    chunks_.push_back({mapping, reinterpret_cast<uint8_t *>(base)});
  }
  return chunks_[index / CHUNK].first + index % CHUNK * STACK_BYTES;
}

void StackPool::clear() {
  for (const Chunk &chunk : chunks_) munmap(chunk.mapping, STACK_BYTES * (CHUNK + 1));
  chunks_.clear();
}

}  // namespace emu
