// race.hpp - which accesses are ordered, by happens-before.
//
// Every thread counts its own steps: its clock goes up at each point where it lets others know what it did (a barrier, __syncwarp, a fence).
// An access is stamped with the clock of its thread. It is ordered before another thread's step if that thread has been told of a clock at
// least as high: by a barrier of the block, by a __syncwarp, or, from block to block, by an atomic after a fence. Shuffles and votes move
// values but order no memory. For each element of memory the last write and the reads since are kept, and a new access must be ordered after
// those it conflicts with. So a missing barrier is found whatever the schedule, even where the numbers happen to come out right.
//
// Limits: of the reads of one element by other blocks only the last is kept.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emu {

struct Thread;
struct Block;
struct MBarrier;
class Engine;

constexpr uint32_t MAX_THREADS = 1024;  // of a block
// Clocks of a block beside those of its threads: one for the tiles that land at each of its mbarriers.
constexpr uint32_t AGENTS = 16;

// A step of a thread: who (block * MAX_THREADS + thread), its clock (0: no access), and the code address.
struct Stamp {
  uint32_t who = 0, clock = 0, pc = 0;
};

// What is known of one element of memory.
struct Cell {
  Stamp write, read, far_read;  // the last write; a read since; the last read since by another block than `read`'s
  uint32_t launch = 0;          // stamps of an earlier launch mean nothing: launches are ordered
  uint32_t wrote_in = 0;        // the launch of the last write by a kernel
  uint32_t readers = 0;         // if not 0, `read`'s block has read with several threads: ReaderSets index + 1
  bool written = false;         // ever, by the host or a kernel
  bool atomic = false;          // the last write was an atomic
  bool in_flight = false;       // the last write is an asynchronous copy that nobody has waited for
  uint8_t leaving = 0;          // stores by TMA that may still read it
};

// For each block, clocks of its threads. Immutable once shared.
using Knowledge = std::map<uint32_t, std::vector<uint32_t>>;
using KnowledgePtr = std::shared_ptr<const Knowledge>;

// The union of what two know; either may be null.
KnowledgePtr join(const KnowledgePtr &a, const KnowledgePtr &b);

// A thread's side of happens-before.
struct ThreadClock {
  uint32_t clock = 1;
  uint32_t *known = nullptr;  // clocks of the block's threads that this thread was told of, beyond the last barrier
  KnowledgePtr acquired;      // through atomics
  KnowledgePtr fenced;        // what its next atomic passes on: what was known at the last fence
  uint32_t proxy_fenced = 0;  // its clock at its last fence.proxy.async
};

// A block's side: the matrix behind `known`, and all clocks at the last barrier, which every thread knows.
struct BlockClock {
  size_t width = 0;  // clocks: the threads', then the agents'
  std::vector<uint32_t> matrix, at_barrier;
  uint32_t barriers = 0;
};

enum class Access { Read, Write, Atomic };

class RaceChecker {
 public:
  explicit RaceChecker(Engine &engine) : engine_(engine) {}

  // A block is about to start.
  void start(Block &block);

  // Notes an access to one element; fails if it conflicts with an earlier one. `place` is called for the message only.
  template <class Place>
  void touch(Cell &cell, Thread &thread, Access access, uint32_t pc, const Place &place) {
    if (cell.in_flight) in_flight(thread, pc, cell.write, place());
    if (access != Access::Read && cell.leaving) leaving(thread, pc, cell.read, place());
    if (access != Access::Write && !cell.written) unwritten(thread, pc, place());
    if (cell.write.clock && !(access == Access::Atomic && cell.atomic) && !ordered(thread, cell.write))
      race(access == Access::Read ? "read after write" : "write after write", thread, pc, cell.write, place());
    if (access == Access::Read) return note_read(cell, thread, pc);
    if (const Stamp *read = unordered_read(cell, thread)) race("write after read", thread, pc, *read, place());
    note_write(cell, thread, access, pc);
  }

  // The asynchronous copy to this element has landed: from now on it is a write of the thread that waited for it.
  void land(Cell &cell, const Thread &thread, uint32_t pc);

  // A tile has landed at the barrier, as a write of its agent.
  void tile_landed(MBarrier &barrier);
  void land_by_agent(Cell &cell, const Block &block, const MBarrier &barrier, uint32_t pc);
  // What the thread knows is passed on by the end of the barrier's phase; the thread learns what ended phases pass on.
  void arrive(Thread &thread, MBarrier &barrier);
  void end_phase(MBarrier &barrier);
  void learn(Thread &thread, const MBarrier &barrier);
  // Whether what a product or a store by TMA reads is visible to it: written by a tile's copy, or fenced by the thread that wrote it.
  void check_proxy(const Thread &reader, const Cell &cell, const char *what, uint32_t pc) const;
  // Whether the thread has been told of the last write to what is read for it.
  void check_known(const Thread &thread, const Cell &cell, uint32_t pc) const;
  // All that the thread knows, to be passed on; and what others have passed on so. Blocks of a cluster do.
  KnowledgePtr release(Thread &thread);
  void acquire(Thread &thread, const KnowledgePtr &what);
  // The same of a thread that arrives at a barrier of a block of its cluster.
  void arrive_from_afar(Thread &thread, const Block &block, MBarrier &barrier, uint32_t pc);
  // A block has ended: what others have done to its shared memory must be known to one of its threads.
  void end(const Block &block) const;
  // Some threads of a block have met.
  void meet(const std::vector<Thread *> &threads);

  // All threads of a block have met.
  void barrier(Block &block);
  // The lanes of `mask` have met.
  void warp_barrier(Thread *const *lanes, uint32_t mask);
  // What the thread knows from here on may be passed on by its atomics.
  void fence(Thread &thread);
  // The thread learns what earlier atomics on this address passed on, and passes on what it knew at its last fence.
  void atomic(Thread &thread, uintptr_t address);
  // The thread learns what earlier atomics on this address passed on.
  void acquire(Thread &thread, uintptr_t address);

 private:
  struct ReaderSet {
    uint32_t barriers;
    std::vector<Stamp> by_thread;
    std::vector<uint16_t> readers;  // the threads that have a stamp: few, so they are all that is looked at

    void put(uint32_t thread, const Stamp &stamp) {
      if (!by_thread[thread].clock) readers.push_back(static_cast<uint16_t>(thread));
      by_thread[thread] = stamp;
    }
  };

  bool ordered(const Thread &thread, const Stamp &stamp) const;
  const Stamp *unordered_read(const Cell &cell, const Thread &thread) const;
  void note_read(Cell &cell, Thread &thread, uint32_t pc);
  void note_write(Cell &cell, Thread &thread, Access access, uint32_t pc);
  uint32_t new_reader_set(const Thread &thread);
  [[noreturn]] void race(const char *kind, const Thread &thread, uint32_t pc, const Stamp &earlier, const std::string &place) const;
  [[noreturn]] void in_flight(const Thread &thread, uint32_t pc, const Stamp &copy, const std::string &place) const;
  [[noreturn]] void leaving(const Thread &thread, uint32_t pc, const Stamp &read, const std::string &place) const;
  [[noreturn]] void unwritten(const Thread &thread, uint32_t pc, const std::string &place) const;

  Engine &engine_;
  std::vector<ReaderSet> reader_sets_;
  std::vector<uint32_t> free_sets_;
  std::map<uintptr_t, KnowledgePtr> published_;  // by address of an atomic
  KnowledgePtr joined_[3];                       // the last two that one thread of many has joined, and what came of it
};

}  // namespace emu
