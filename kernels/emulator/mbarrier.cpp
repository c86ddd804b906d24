// mbarrier.cpp - barriers in shared memory.
//
// A phase of a barrier ends when as many threads have arrived as it was made for, and as many bytes as they announced. Who waits for the end of
// a phase learns what those who arrived knew; of what threads of other blocks knew, only if it waits with the scope of the cluster.
#include "engine.hpp"

namespace emu {

MBarrier &barrier_at(Block &block, const void *pointer, const char *what, uint32_t pc) {
  Thread &thread = engine->current();
  engine->access_shared(thread, block, pointer, 8, Access::Read, pc, what);
  for (MBarrier &barrier : block.mbarriers)
    if (barrier.place == pointer) return barrier;
  engine->fail(format("%s: no mbarrier was initialised here, by %s at %s", what, engine->name(thread).c_str(), at(pc).c_str()));
}

void end_phase_if_complete(MBarrier &barrier) {
  if (barrier.missing != 0 || barrier.bytes != 0) return;
  barrier.phase++;
  barrier.missing = barrier.count;
  if (engine->options.check) engine->races.end_phase(barrier);
  std::vector<Thread *> waiting;
  waiting.swap(barrier.waiting);
  engine->wake_all(waiting);
}

void check_announced(const MBarrier &barrier, const char *what, uint32_t pc) {
  if (barrier.announced) return;
  engine->fail(format("%s: no fence.mbarrier_init has followed the initialisation of the mbarrier, by %s at %s", what,
                      engine->name(engine->current()).c_str(), at(pc).c_str()));
}

void fence_barriers() {
  for (MBarrier &barrier : engine->current().block->mbarriers) barrier.announced = true;
}

void mbarrier_init(uint64_t *pointer, uint32_t count) {
  const uint32_t pc = EMU_CALLER;
  Thread &thread = engine->current();
  engine->access_shared(thread, pointer, 8, Access::Write, pc, "mbarrier.init");
  Block &block = *thread.block;
  if (reinterpret_cast<uintptr_t>(pointer) % 8) engine->fail(format("mbarrier.init: misaligned, at %s", at(pc).c_str()));
  if (count == 0) engine->fail(format("mbarrier.init: a barrier for nobody, at %s", at(pc).c_str()));
  for (const MBarrier &barrier : block.mbarriers)
    if (barrier.place == pointer) engine->fail(format("mbarrier.init: initialised already, at %s", at(pc).c_str()));
  if (block.mbarriers.size() == AGENTS) engine->fail(format("mbarrier.init: the emulator knows at most %u of a block", AGENTS));
  MBarrier barrier;
  barrier.place = pointer;
  barrier.agent = static_cast<uint32_t>(block.mbarriers.size());
  barrier.count = barrier.missing = count;
  barrier.told.assign(block.clock.width, 0);
  barrier.tells.assign(block.clock.width, 0);
  block.mbarriers.push_back(std::move(barrier));
}

void mbarrier_arrive(uint64_t *pointer, uint32_t bytes) {
  const uint32_t pc = EMU_CALLER;
  Thread &thread = engine->current();
  MBarrier &barrier = barrier_at(*thread.block, pointer, "mbarrier.arrive", pc);
  if (engine->options.check) engine->races.arrive(thread, barrier);
  barrier.bytes += bytes;
  barrier.missing--;
  end_phase_if_complete(barrier);
}

void mbarrier_wait(uint64_t *pointer, uint32_t parity, bool of_cluster) {
  const uint32_t pc = EMU_CALLER;
  Thread &thread = engine->current();
  MBarrier &barrier = barrier_at(*thread.block, pointer, "mbarrier.try_wait", pc);
  if (parity > 1) engine->fail(format("mbarrier.try_wait: a parity is 0 or 1, at %s", at(pc).c_str()));
  while ((barrier.phase & 1) == parity) {
    barrier.waiting.push_back(&thread);
    engine->wait("mbarrier.try_wait", 0, pc);
  }
  if (!engine->options.check) return;
  engine->races.learn(thread, barrier);
  if (of_cluster) engine->races.acquire(thread, barrier.tells_afar);
}

}  // namespace emu
