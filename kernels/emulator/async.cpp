// async.cpp - cp.async: copies to shared memory that land as late as they may.
//
// Bytes arrive when the thread that asked for them waits for their group, no sooner; until then nobody, itself included, may touch the
// place. After that they count as written by that thread, at that point: another thread still has to meet it.
#include "engine.hpp"

namespace emu {

void copy_async(void *to, const void *from, uint32_t bytes, uint32_t read) {
  const PendingCopy copy{to, from, bytes, read, EMU_CALLER};
  const auto aligned = [&](const void *p) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; };
  if (!aligned(to) || !aligned(from))
    engine->fail(format("cp.async: misaligned addresses for %u bytes, by %s at %s", bytes, engine->name(engine->current()).c_str(), at(copy.pc).c_str()));
  engine->start_copy(copy);
  engine->current().copies.push_back(copy);
}

void commit_copies() {
  Thread &thread = engine->current();
  thread.groups.push_back(std::move(thread.copies));
  thread.copies.clear();
}

void wait_for_copies(uint32_t pending) {
  Thread &thread = engine->current();
  while (thread.groups.size() > pending) {
    for (const PendingCopy &copy : thread.groups.front()) engine->land_copy(copy);
    thread.groups.erase(thread.groups.begin());
  }
}

}  // namespace emu
