// atomic.cpp - atomics. Fibers give way only inside the engine, so a plain read and write is one step.
#include <cstring>

#include "engine.hpp"

namespace emu {
namespace {

template <class T>
T combine(AtomicOp op, T old, T operand, T compare) {
  switch (op) {
    case AtomicOp::Add:
      // Integers wrap round, as on a GPU.
      if constexpr (std::is_integral_v<T>) return static_cast<T>(static_cast<std::make_unsigned_t<T>>(old) + static_cast<std::make_unsigned_t<T>>(operand));
      else return old + operand;
    case AtomicOp::Min: return operand < old ? operand : old;
    case AtomicOp::Max: return old < operand ? operand : old;
    case AtomicOp::Exchange: return operand;
    case AtomicOp::CompareExchange: return old == compare ? operand : old;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == AtomicOp::And) return old & operand;
    if (op == AtomicOp::Or) return old | operand;
    if (op == AtomicOp::Xor) return old ^ operand;
  }
  engine->fail("this atomic does not exist for this type");
}

template <class T>
uint64_t apply(void *address, AtomicOp op, uint64_t operand, uint64_t compare, uint32_t pc) {
  engine->access(address, sizeof(T), Access::Atomic, true, pc);
  if (engine->options.check) engine->races.atomic(engine->current(), reinterpret_cast<uintptr_t>(address));
  T old;
  memcpy(&old, address, sizeof(T));
  const T now = combine<T>(op, old, from_bits<T>(operand), from_bits<T>(compare));
  memcpy(address, &now, sizeof(T));
  engine->wake_watchers(address);
  return to_bits(old);
}

}  // namespace

uint64_t atomic(void *address, AtomicType type, AtomicOp op, uint64_t operand, uint64_t compare) {
  const uint32_t pc = EMU_CALLER;
  switch (type) {
    case AtomicType::I32: return apply<int>(address, op, operand, compare, pc);
    case AtomicType::U32: return apply<unsigned>(address, op, operand, compare, pc);
    case AtomicType::U64: return apply<unsigned long long>(address, op, operand, compare, pc);
    case AtomicType::F32: return apply<float>(address, op, operand, compare, pc);
  }
  engine->fail("an atomic of an unknown type");
}

void add_release(uint32_t *number, uint32_t more) {
  const uint32_t pc = EMU_CALLER;
  if (engine->options.check) engine->races.fence(engine->current());
  apply<unsigned>(number, AtomicOp::Add, more, 0, pc);
}

// A thread that waits is woken by atomics on the number alone: if none comes, it is a deadlock.
void wait_for(const uint32_t *number, uint32_t least) {
  const uint32_t pc = EMU_CALLER;
  for (;;) {
    engine->access(number, sizeof(*number), Access::Atomic, true, pc);
    uint32_t now;
    memcpy(&now, number, sizeof(now));
    if (now >= least) break;
    engine->watch(number, pc);
  }
  if (engine->options.check) engine->races.acquire(engine->current(), reinterpret_cast<uintptr_t>(number));
}

}  // namespace emu
