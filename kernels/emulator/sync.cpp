// sync.cpp - where threads meet: the block's barrier and warp operations.
#include <algorithm>

#include "engine.hpp"

namespace emu {
namespace {

// The others of a meeting; the one that completed it is running already.
std::vector<Thread *> others(const Warp &warp, uint32_t mask) {
  std::vector<Thread *> threads;
  for (uint32_t lane = 0; lane < 32; lane++)
    if ((mask >> lane & 1) && warp.lanes[lane] != &engine->current()) threads.push_back(warp.lanes[lane]);
  return threads;
}

}  // namespace

void collective(const char *name, uint32_t mask, void *operand, void (*complete)(Warp &, uint32_t), uint32_t pc) {
  Thread &thread = engine->current();
  Warp &warp = *thread.warp;
  const auto who = [&] { return engine->name(thread) + " at " + at(pc); };
  thread.operand = operand;
  mask &= ~warp.absent;
  if (!(mask >> thread.lane & 1)) engine->fail(format("%s: mask %#x leaves out the lane that calls, %s", name, mask, who().c_str()));
  if (mask & warp.exited)
    engine->fail(format("divergent warp: %s with mask %#x by %s, but lanes %#x of the warp have ended", name, mask, who().c_str(), mask & warp.exited));
  size_t k = 0;
  while (k < warp.open.size() && !(warp.open[k].mask & mask)) k++;
  if (k < warp.open.size() && (warp.open[k].mask != mask || warp.open[k].name != name)) {
    const Collective &other = warp.open[k];
    const Thread *first = warp.lanes[__builtin_ctz(other.arrived)];
    engine->fail(format("divergent warp: %s is in %s with mask %#x, while %s is in %s with mask %#x at %s", who().c_str(), name, mask,
                        engine->name(*first).c_str(), other.name, other.mask, at(first->waiting_pc).c_str()));
  }
  if (k == warp.open.size()) warp.open.push_back({name, mask, 0, complete});
  warp.open[k].arrived |= 1u << thread.lane;
  if (warp.open[k].arrived != mask) return engine->wait(name, mask, pc);
  warp.open.erase(warp.open.begin() + static_cast<std::ptrdiff_t>(k));
  complete(warp, mask);
  engine->wake_all(others(warp, mask));
  if (!engine->ready.in_order()) engine->give_way();
}

namespace {

struct ShuffleOperand {
  Shuffle kind;
  uint64_t in, out;
  int operand, width;
};

void complete_shuffle(Warp &warp, uint32_t mask) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    ShuffleOperand &own = *static_cast<ShuffleOperand *>(warp.lanes[lane]->operand);
    const int first = lane & ~(own.width - 1), last = first + own.width - 1;
    int source = lane;
    switch (own.kind) {
      case Shuffle::Index: source = first + (own.operand & (own.width - 1)); break;
      case Shuffle::Up: source = lane - own.operand; break;
      case Shuffle::Down: source = lane + own.operand; break;
      case Shuffle::Xor: source = lane ^ own.operand; break;
    }
    // Outside its segment a lane keeps its own value; xor alone may reach into an earlier one.
    if (source > last || source < 0 || (source < first && own.kind != Shuffle::Xor)) source = lane;
    if (!(mask >> source & 1))
      engine->fail(format("a shuffle reads lane %d, which does not take part (mask %#x), by %s at %s", source, mask,
                          engine->name(*warp.lanes[lane]).c_str(), at(engine->current().waiting_pc).c_str()));
    own.out = static_cast<ShuffleOperand *>(warp.lanes[source]->operand)->in;
  }
}

struct VoteOperand {
  uint64_t value;
  uint32_t out;
};

void complete_ballot(Warp &warp, uint32_t mask) {
  uint32_t votes = 0;
  for (uint32_t lane = 0; lane < 32; lane++)
    if ((mask >> lane & 1) && static_cast<VoteOperand *>(warp.lanes[lane]->operand)->value) votes |= 1u << lane;
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) static_cast<VoteOperand *>(warp.lanes[lane]->operand)->out = votes;
}

void complete_match(Warp &warp, uint32_t mask) {
  for (uint32_t a = 0; a < 32; a++) {
    if (!(mask >> a & 1)) continue;
    VoteOperand &own = *static_cast<VoteOperand *>(warp.lanes[a]->operand);
    for (uint32_t b = 0; b < 32; b++)
      if ((mask >> b & 1) && static_cast<VoteOperand *>(warp.lanes[b]->operand)->value == own.value) own.out |= 1u << b;
  }
}

void complete_warp_barrier(Warp &warp, uint32_t mask) {
  if (engine->options.check) engine->races.warp_barrier(warp.lanes, mask);
}

void complete_block_barrier(Block &block) {
  std::vector<Thread *> waiting;
  for (Thread &t : block.threads)
    if (&t != &engine->current()) waiting.push_back(&t);
  block.arrived = 0;
  if (engine->options.check) engine->races.barrier(block);
  engine->wake_all(waiting);
}

}  // namespace

int block_barrier(Reduce reduce, int value) {
  Thread &thread = engine->current();
  Block &block = *thread.block;
  const uint32_t pc = EMU_CALLER;
  if (block.live < block.threads.size())
    engine->fail(format("divergent block: %s waits in __syncthreads at %s, but %zu threads of the block have ended without it",
                        engine->name(thread).c_str(), at(pc).c_str(), block.threads.size() - block.live));
  if (block.arrived == 0) {
    block.reduce = reduce;
    block.reduced = reduce == Reduce::And ? 1 : 0;
  }
  if (block.reduce != reduce)
    engine->fail(format("divergent block: %s is in another kind of __syncthreads than the threads that wait, at %s", engine->name(thread).c_str(),
                        at(pc).c_str()));
  const int truth = value != 0;
  if (reduce == Reduce::Or) block.reduced |= truth;
  if (reduce == Reduce::And) block.reduced &= truth;
  if (reduce == Reduce::Count) block.reduced += truth;
  if (++block.arrived < block.threads.size()) {
    int result = 0;
    thread.operand = &result;
    engine->wait("__syncthreads", 0, pc);
    return result;
  }
  const int result = block.reduced;
  for (Thread &t : block.threads)
    if (&t != &thread) *static_cast<int *>(t.operand) = result;
  complete_block_barrier(block);
  if (!engine->ready.in_order()) engine->give_way();
  return result;
}

void named_barrier(uint32_t id, uint32_t count) {
  Thread &thread = engine->current();
  const uint32_t pc = EMU_CALLER;
  if (id > 15 || count == 0 || count % 32 || count > thread.block->threads.size())
    engine->fail(format("bar.sync %u, %u: there are 16 barriers, for whole warps of the block, at %s", id, count, at(pc).c_str()));
  std::vector<Thread *> &waiting = thread.block->at_named[id];
  if (waiting.size() + 1 < count) {
    waiting.push_back(&thread);
    return engine->wait("bar.sync", 0, pc);
  }
  std::vector<Thread *> others;
  others.swap(waiting);
  std::vector<Thread *> all = others;
  all.push_back(&thread);
  if (engine->options.check) engine->races.meet(all);
  engine->wake_all(others);
  if (!engine->ready.in_order()) engine->give_way();
}

void warp_barrier(uint32_t mask) { collective("__syncwarp", mask, nullptr, complete_warp_barrier, EMU_CALLER); }

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int operand, int width) {
  static const char *const NAMES[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
  const uint32_t pc = EMU_CALLER;
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    engine->fail(format("a shuffle's width is a power of two up to 32, not %d, at %s", width, at(pc).c_str()));
  ShuffleOperand own{kind, value, value, operand, width};
  engine->current().waiting_pc = pc;
  collective(NAMES[static_cast<int>(kind)], mask, &own, complete_shuffle, pc);
  return own.out;
}

uint32_t ballot(uint32_t mask, bool predicate) {
  VoteOperand own{predicate, 0};
  collective("__ballot_sync", mask, &own, complete_ballot, EMU_CALLER);
  return own.out;
}

uint32_t match_any(uint32_t mask, uint64_t value) {
  VoteOperand own{value, 0};
  collective("__match_any_sync", mask, &own, complete_match, EMU_CALLER);
  return own.out;
}

// On a GPU this depends on how the warp has diverged; here every lane that has not ended counts.
uint32_t active_mask() {
  const Warp &warp = *engine->current().warp;
  return ~(warp.absent | warp.exited);
}

void thread_fence() {
  if (engine->options.check) engine->races.fence(engine->current());
}

void yield() { engine->give_way(); }

}  // namespace emu
