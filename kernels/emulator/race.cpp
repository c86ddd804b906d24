// race.cpp - happens-before clocks and the state of each element of memory.
#include "race.hpp"

#include <algorithm>

#include "engine.hpp"

namespace emu {
namespace {

void raise(std::vector<uint32_t> &clocks, const uint32_t *other, size_t n) {
  if (clocks.size() < n) clocks.resize(n);
  for (size_t i = 0; i < n; i++) clocks[i] = std::max(clocks[i], other[i]);
}

// Several threads learn, for themselves and for what they pass on, what any of them knew.
void share(const std::vector<Thread *> &threads) {
  KnowledgePtr acquired, fenced;
  for (const Thread *t : threads) {
    acquired = join(acquired, t->clock.acquired);
    fenced = join(fenced, t->clock.fenced);
  }
  if (!acquired && !fenced) return;
  for (Thread *t : threads) {
    t->clock.acquired = acquired;
    t->clock.fenced = fenced;
  }
}

}  // namespace

KnowledgePtr join(const KnowledgePtr &a, const KnowledgePtr &b) {
  if (!a || a == b) return b;
  if (!b) return a;
  auto both = std::make_shared<Knowledge>(*a);
  for (const auto &[block, clocks] : *b) raise((*both)[block], clocks.data(), clocks.size());
  return both;
}

void RaceChecker::start(Block &block) {
  const size_t n = block.threads.size(), width = n + AGENTS;
  block.clock.width = width;
  block.clock.matrix.assign(n * width, 0);
  block.clock.at_barrier.assign(width, 0);
  block.clock.barriers = 0;
  for (size_t i = 0; i < n; i++) {
    block.threads[i].clock = ThreadClock();
    block.threads[i].clock.known = &block.clock.matrix[i * width];
  }
}

bool RaceChecker::ordered(const Thread &thread, const Stamp &stamp) const {
  if (stamp.who == thread.who()) return true;
  const uint32_t block = stamp.who / MAX_THREADS, index = stamp.who % MAX_THREADS;
  if (block == thread.block->linear && (stamp.clock <= thread.block->clock.at_barrier[index] || stamp.clock <= thread.clock.known[index]))
    return true;
  if (!thread.clock.acquired) return false;
  const auto found = thread.clock.acquired->find(block);
  return found != thread.clock.acquired->end() && index < found->second.size() && stamp.clock <= found->second[index];
}

const Stamp *RaceChecker::unordered_read(const Cell &cell, const Thread &thread) const {
  if (cell.far_read.clock && !ordered(thread, cell.far_read)) return &cell.far_read;
  if (cell.readers) {
    const ReaderSet &set = reader_sets_[cell.readers - 1];
    for (const uint16_t reader : set.readers)
      if (!ordered(thread, set.by_thread[reader])) return &set.by_thread[reader];
    return nullptr;
  }
  return cell.read.clock && !ordered(thread, cell.read) ? &cell.read : nullptr;
}

void RaceChecker::note_read(Cell &cell, Thread &thread, uint32_t pc) {
  const Stamp stamp{thread.who(), thread.clock.clock, pc};
  const bool same_block = cell.read.clock && cell.read.who / MAX_THREADS == thread.block->linear;
  if (cell.read.clock && !same_block) cell.far_read = cell.read;
  if (cell.readers) {
    // Reads from before the last barrier are ordered before this one, and so say nothing more than it does.
    ReaderSet &set = reader_sets_[cell.readers - 1];
    if (same_block && set.barriers == thread.block->clock.barriers) {
      set.put(thread.index, stamp);
    } else {
      free_sets_.push_back(cell.readers);
      cell.readers = 0;
    }
  } else if (same_block && !ordered(thread, cell.read)) {
    cell.readers = new_reader_set(thread);
    ReaderSet &set = reader_sets_[cell.readers - 1];
    set.put(cell.read.who % MAX_THREADS, cell.read);
    set.put(thread.index, stamp);
  }
  cell.read = stamp;
}

void RaceChecker::note_write(Cell &cell, Thread &thread, Access access, uint32_t pc) {
  if (cell.readers) free_sets_.push_back(cell.readers);
  cell.readers = 0;
  cell.read = cell.far_read = Stamp();
  cell.write = {thread.who(), thread.clock.clock, pc};
  cell.written = true;
  cell.atomic = access == Access::Atomic;
}

void RaceChecker::land(Cell &cell, const Thread &thread, uint32_t pc) {
  cell.in_flight = false;
  cell.write = {thread.who(), thread.clock.clock, pc};
}

uint32_t RaceChecker::new_reader_set(const Thread &thread) {
  uint32_t index;
  if (free_sets_.empty()) {
    reader_sets_.emplace_back();
    index = static_cast<uint32_t>(reader_sets_.size());
  } else {
    index = free_sets_.back();
    free_sets_.pop_back();
  }
  ReaderSet &set = reader_sets_[index - 1];
  set.barriers = thread.block->clock.barriers;
  for (const uint16_t reader : set.readers) set.by_thread[reader] = Stamp();
  set.readers.clear();
  set.by_thread.resize(std::max(set.by_thread.size(), thread.block->clock.width));
  return index;
}

void RaceChecker::barrier(Block &block) {
  std::vector<Thread *> threads;
  // What one of them has learned of tiles, all know now.
  for (Thread &t : block.threads)
    for (size_t i = block.threads.size(); i < block.clock.width; i++)
      block.clock.at_barrier[i] = std::max(block.clock.at_barrier[i], t.clock.known[i]);
  for (Thread &t : block.threads) {
    block.clock.at_barrier[t.index] = t.clock.clock++;
    threads.push_back(&t);
  }
  block.clock.barriers++;
  share(threads);
}

void RaceChecker::warp_barrier(Thread *const *lanes, uint32_t mask) {
  std::vector<Thread *> threads;
  for (uint32_t lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) threads.push_back(lanes[lane]);
  meet(threads);
}

void RaceChecker::meet(const std::vector<Thread *> &threads) {
  const size_t width = threads[0]->block->clock.width;
  std::vector<uint32_t> all(width);
  for (const Thread *t : threads) raise(all, t->clock.known, width);
  for (Thread *t : threads) all[t->index] = t->clock.clock++;
  for (Thread *t : threads) std::copy(all.begin(), all.end(), t->clock.known);
  share(threads);
}

void RaceChecker::tile_landed(MBarrier &barrier) { barrier.landed++; }

void RaceChecker::land_by_agent(Cell &cell, const Block &block, const MBarrier &barrier, uint32_t pc) {
  cell.in_flight = false;
  cell.write = {block.linear * MAX_THREADS + static_cast<uint32_t>(block.threads.size()) + barrier.agent, barrier.landed, pc};
}

void RaceChecker::arrive(Thread &thread, MBarrier &barrier) {
  raise(barrier.told, thread.block->clock.at_barrier.data(), thread.block->clock.width);
  raise(barrier.told, thread.clock.known, thread.block->clock.width);
  barrier.told[thread.index] = thread.clock.clock++;
  barrier.told_of_blocks = join(barrier.told_of_blocks, thread.clock.acquired);
}

void RaceChecker::arrive_from_afar(Thread &thread, const Block &block, MBarrier &barrier, uint32_t pc) {
  if (thread.block == &block) return arrive(thread, barrier);
  const Stamp stamp{thread.who(), thread.clock.clock, pc};
  const auto same = std::find_if(barrier.afar.begin(), barrier.afar.end(), [&](const Stamp &s) { return s.who == stamp.who; });
  if (same == barrier.afar.end()) barrier.afar.push_back(stamp);
  else *same = stamp;
  barrier.told_afar = join(barrier.told_afar, release(thread));
}

void RaceChecker::end(const Block &block) const {
  const auto known = [&](const Stamp &stamp) {
    return std::any_of(block.threads.begin(), block.threads.end(), [&](const Thread &t) { return ordered(t, stamp); });
  };
  const auto fail = [&](const std::string &what) {
    engine_.fail(format("block (%u,%u,%u) ends, and none of its threads has waited for %s", block.index.x, block.index.y, block.index.z, what.c_str()));
  };
  for (const MBarrier &barrier : block.mbarriers) {
    const uint32_t agent = block.linear * MAX_THREADS + static_cast<uint32_t>(block.threads.size()) + barrier.agent;
    if (barrier.landed && !known({agent, barrier.landed, 0})) fail("the tiles at mbarrier " + std::to_string(barrier.agent));
    for (const Stamp &stamp : barrier.afar)
      if (!known(stamp)) fail(format("the arrival of %s at %s", engine_.name(stamp.who).c_str(), at(stamp.pc).c_str()));
  }
}

void RaceChecker::end_phase(MBarrier &barrier) {
  barrier.tells_afar = join(barrier.tells_afar, barrier.told_afar);
  barrier.told_afar = nullptr;
  barrier.told[barrier.told.size() - AGENTS + barrier.agent] = barrier.landed;
  raise(barrier.tells, barrier.told.data(), barrier.told.size());
  std::fill(barrier.told.begin(), barrier.told.end(), 0);
  barrier.tells_of_blocks = join(barrier.tells_of_blocks, barrier.told_of_blocks);
}

void RaceChecker::learn(Thread &thread, const MBarrier &barrier) {
  for (size_t i = 0; i < barrier.tells.size(); i++) thread.clock.known[i] = std::max(thread.clock.known[i], barrier.tells[i]);
  thread.clock.acquired = join(thread.clock.acquired, barrier.tells_of_blocks);
}

void RaceChecker::check_known(const Thread &thread, const Cell &cell, uint32_t pc) const {
  if (cell.write.clock && !ordered(thread, cell.write)) race("read after write", thread, pc, cell.write, "an operand of a product of its warp");
}

void RaceChecker::check_proxy(const Thread &reader, const Cell &cell, const char *what, uint32_t pc) const {
  const uint32_t writer = cell.write.who % MAX_THREADS;
  const auto &threads = reader.block->threads;
  if (!cell.write.clock || writer >= threads.size() || threads[writer].clock.proxy_fenced >= cell.write.clock) return;
  engine_.fail(format("no fence.proxy.async: %s reads what %s has stored at %s, by %s at %s", what, engine_.name(cell.write.who).c_str(),
                      at(cell.write.pc).c_str(), engine_.name(reader).c_str(), at(pc).c_str()));
}

void RaceChecker::fence(Thread &thread) { thread.clock.fenced = join(thread.clock.fenced, release(thread)); }

KnowledgePtr RaceChecker::release(Thread &thread) {
  const Block &block = *thread.block;
  auto known = thread.clock.acquired ? std::make_shared<Knowledge>(*thread.clock.acquired) : std::make_shared<Knowledge>();
  std::vector<uint32_t> &own = (*known)[block.linear];
  raise(own, block.clock.at_barrier.data(), block.clock.width);
  raise(own, thread.clock.known, block.clock.width);
  own[thread.index] = thread.clock.clock++;
  return known;
}

void RaceChecker::acquire(Thread &thread, const KnowledgePtr &what) {
  auto &[before, told, both] = joined_;
  if (!both || before != thread.clock.acquired || told != what) {
    before = thread.clock.acquired;
    told = what;
    both = join(before, told);
  }
  thread.clock.acquired = both;
}

void RaceChecker::atomic(Thread &thread, uintptr_t address) {
  KnowledgePtr &here = published_[address];
  thread.clock.acquired = join(thread.clock.acquired, here);
  here = join(here, thread.clock.fenced);
}

void RaceChecker::acquire(Thread &thread, uintptr_t address) { thread.clock.acquired = join(thread.clock.acquired, published_[address]); }

void RaceChecker::race(const char *kind, const Thread &thread, uint32_t pc, const Stamp &earlier, const std::string &place) const {
  const bool one_block = earlier.who / MAX_THREADS == thread.block->linear;
  engine_.fail(format("race%s, %s: %s, by %s at %s, and before by %s at %s; nothing orders the two", one_block ? "" : " between blocks", kind,
                      place.c_str(), engine_.name(thread).c_str(), at(pc).c_str(), engine_.name(earlier.who).c_str(), at(earlier.pc).c_str()));
}

void RaceChecker::in_flight(const Thread &thread, uint32_t pc, const Stamp &copy, const std::string &place) const {
  engine_.fail(format("asynchronous copy still in flight: %s, by %s at %s; copied by %s at %s, which has not waited for it", place.c_str(),
                      engine_.name(thread).c_str(), at(pc).c_str(), engine_.name(copy.who).c_str(), at(copy.pc).c_str()));
}

void RaceChecker::leaving(const Thread &thread, uint32_t pc, const Stamp &read, const std::string &place) const {
  engine_.fail(format("a store by TMA may still read it: %s, written by %s at %s; read by %s at %s, which has not waited for that", place.c_str(),
                      engine_.name(thread).c_str(), at(pc).c_str(), engine_.name(read.who).c_str(), at(read.pc).c_str()));
}

void RaceChecker::unwritten(const Thread &thread, uint32_t pc, const std::string &place) const {
  engine_.fail(format("read of memory that was never written: %s, by %s at %s", place.c_str(), engine_.name(thread).c_str(), at(pc).c_str()));
}

}  // namespace emu
