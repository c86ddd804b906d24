// engine.hpp - one launch under way: its blocks, warps and threads.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api.hpp"
#include "device.hpp"
#include "fiber.hpp"
#include "memory.hpp"
#include "race.hpp"
#include "schedule.hpp"
#include "tiles.hpp"

namespace emu {

enum class State : uint8_t { Running, Waiting, Done };

struct Warp;

// An asynchronous copy that has not landed: `read` bytes come from memory, the rest of `bytes` are zeros.
struct PendingCopy {
  void *to;
  const void *from;
  uint32_t bytes, read, pc;
};

// A barrier in shared memory.
struct MBarrier {
  const void *place = nullptr;
  uint32_t agent = 0;  // which of the block's clocks stands for the tiles that land here
  uint32_t count = 0, missing = 0, phase = 0, landed = 0;
  int64_t bytes = 0;  // announced and not yet there
  std::vector<Thread *> waiting;
  bool announced = false;             // fence.mbarrier_init has followed
  std::vector<uint32_t> told, tells;  // what those knew who arrived in this phase; what all phases that have ended pass on
  KnowledgePtr told_of_blocks, tells_of_blocks;  // the same, of what they had learned of other blocks by atomics
  KnowledgePtr told_afar, tells_afar; // the same of other blocks' threads who arrived
  std::vector<Stamp> afar;            // their last arrivals
};

// A product of a warpgroup that has been issued: d [64, columns] (+)= a b, as one lane has it.
struct PendingProduct {
  float *d;
  const uint32_t *a_registers;  // or null: then `a` describes it
  uint64_t a, b;
  uint32_t columns, pc;
  bool a_by_rows, b_by_rows, keep;
  std::vector<float> sums;  // what d held, while it may not be read
};

// A CUDA thread.
struct Thread {
  Fiber fiber;
  Block *block = nullptr;
  Warp *warp = nullptr;
  uint8_t *stack = nullptr;
  uint32_t index = 0;  // in its block
  uint32_t lane = 0;
  State state = State::Running;
  const char *waiting_in = nullptr;  // the operation, while it waits
  uint32_t waiting_pc = 0;
  uint32_t waiting_mask = 0;
  void *operand = nullptr;  // of the warp operation it takes part in
  ThreadClock clock;
  bool in_cluster_barrier = false;  // has arrived and not waited
  uint32_t cluster_phase = 0;       // in which it has arrived
  std::vector<PendingCopy> copies;                // since the last commit
  std::vector<std::vector<PendingCopy>> groups;   // committed, oldest first
  StoreGroup stores;                              // of tiles, since the last commit
  std::vector<StoreGroup> store_groups;           // committed, oldest first
  std::vector<PendingProduct> products;           // oldest first
  std::vector<uint32_t> product_groups;           // how many of them each commit closed
  bool products_fenced = false;
  bool waited = false;  // for earlier launches

  uint32_t who() const;
};

// A warp operation that some of its lanes have reached.
struct Collective {
  const char *name;
  uint32_t mask, arrived;
  void (*complete)(Warp &warp, uint32_t mask);
};

struct Warp {
  Thread *lanes[32] = {};
  uint32_t absent = 0;  // lanes that the block's size leaves empty
  uint32_t exited = 0;
  std::vector<Collective> open;
};

// Blocks that run at the same time; where a kernel has no clusters, one.
struct Cluster {
  std::vector<Block *> blocks;            // by rank
  uint32_t arrived = 0, phase = 0;        // threads in the cluster's barrier; how often all have been
  std::vector<Thread *> waiting;
  KnowledgePtr told, tells;               // what those know who have arrived; what phases that have ended pass on
};

struct Block {
  Cluster *cluster = nullptr;
  uint32_t rank = 0;  // in it
  uint32_t linear = 0;
  Dim3 index = {};
  bool waited = false;  // one of its threads, for earlier launches
  uint32_t live = 0;     // threads that have not ended
  uint32_t arrived = 0;  // threads that wait in the block's barrier
  Reduce reduce = Reduce::None;
  int reduced = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  BlockClock clock;
  SharedMemory shared;
  std::vector<MBarrier> mbarriers;
  std::vector<Thread *> at_named[16];  // who waits in which named barrier
};

inline uint32_t Thread::who() const { return block->linear * MAX_THREADS + index; }

class Engine {
 public:
  Engine(Device &on, const Launch &shape, const Options &how, void (*entry)(void **), void **arguments);

  // Runs all blocks. False if something was wrong: then the message is in the device's error.
  bool run(Stats &stats);

  // ---- called from a kernel's threads
  Thread &current() { return *current_; }
  bool inside_kernel() const { return current_ != nullptr; }
  // Lets others run until the thread is woken.
  void wait(const char *what, uint32_t mask, uint32_t pc);
  // Lets others run for a while.
  void give_way();
  void wake(Thread &thread);
  // Waits for the next atomic on an address; such an atomic wakes those who wait for it.
  void watch(const void *address, uint32_t pc);
  void wake_watchers(const void *address);
  // Wakes the others of a warp operation or barrier, in the schedule's order.
  void wake_all(const std::vector<Thread *> &threads);
  [[noreturn]] void fail(std::string message);

  // A load or store of a kernel; `aligned`: it is one machine access, which must be aligned to its size.
  void access(const void *address, size_t bytes, Access access, bool aligned, uint32_t pc);
  // The same of shared memory, by any thread of the block; other memory is a mistake of `what`.
  void access_shared(Thread &thread, const void *address, size_t bytes, Access access, uint32_t pc, const char *what);
  // The same of a block of the thread's cluster.
  void access_shared(Thread &thread, Block &block, const void *address, size_t bytes, Access access, uint32_t pc, const char *what);
  // An asynchronous copy to shared memory is under way, and has landed for the thread that waited for it.
  void start_copy(const PendingCopy &copy);
  void set_in_flight(Block &block, const void *address, uint32_t bytes);
  void land_copy(const PendingCopy &copy);
  // The same of one to device memory.
  void set_in_flight(const void *address, uint32_t bytes);
  void land_copy(const void *address, uint32_t bytes, const Thread &thread, uint32_t pc);
  // One store by TMA more (or less) has to read these bytes of shared memory.
  void set_leaving(Block &block, const void *address, uint32_t bytes, int more);
  // Whether what the thread has TMA read is there for TMA.
  void check_proxy(const Thread &thread, const void *address, uint32_t bytes, uint32_t pc);
  // What a store has read arrives; `thread` has waited for it, if anyone has.
  void land_store(const PendingStore &store, const Thread *thread);

  // ---- for messages
  std::string name(const Thread &thread) const { return name(thread.who()); }
  std::string name(uint32_t who) const;
  std::string name(const Buffer &buffer) const;

  Device &device;
  const Launch &launch;
  const Options &options;
  Random random;
  ReadyQueue ready;
  RaceChecker races;
  Stats stats = {};
  uint32_t block_size;
  std::vector<PendingTile> tiles;
  std::vector<PendingStore> unlanded;  // of threads that have ended

 private:
  static void fiber_main();
  bool land_tile();
  void end_stores(Thread &thread);
  Thread *next_thread();
  void start_cluster(uint32_t cluster, uint32_t linear);
  void start_block(Block &block, uint32_t linear, uint32_t slot);
  void end_block(Block &block);
  void end_thread();
  void switch_away();
  void access_shared(Thread &thread, Block &block, uintptr_t address, size_t bytes, Access access, uint32_t pc);
  void check_begun(const Cell &cell, Access access, uint32_t pc, const Buffer &buffer, uintptr_t address);
  void access_global(uintptr_t address, size_t bytes, Access access, uint32_t pc);
  template <class Each>
  void each_cell(const void *address, size_t bytes, const Each &each);
  std::string place_in(const Buffer &buffer, uintptr_t address) const;
  std::string deadlock() const;

  void (*entry_)(void **);
  void **arguments_;
  Fiber main_;
  Thread *current_ = nullptr;
  std::vector<std::unique_ptr<Block>> slots_;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // of so many slots each
  std::map<const void *, std::vector<Thread *>> watchers_;
  Buffer *last_buffer_ = nullptr;
  bool failed_ = false;
  bool block_ended_ = false;
};

// The barrier at a place of a block's shared memory, which the current thread looks at; and the end of its phase, if nothing is missing.
MBarrier &barrier_at(Block &block, const void *pointer, const char *what, uint32_t pc);
void end_phase_if_complete(MBarrier &barrier);
// Fails if no fence.mbarrier_init has followed its initialisation.
void check_announced(const MBarrier &barrier, const char *what, uint32_t pc);

// The block of a rank in the thread's cluster, which has not ended; and where in its shared memory lies what lies here in the own one.
Block &peer(Thread &thread, uint32_t rank, const char *what, uint32_t pc);
const void *peer_place(const Thread &thread, const Block &block, const void *pointer, const char *what, uint32_t pc);

// A warp operation: waits for every lane of `mask`, then the last one carries it out for all (`complete`) from their operands.
void collective(const char *name, uint32_t mask, void *operand, void (*complete)(Warp &, uint32_t), uint32_t pc);

// The launch under way on this operating-system thread; null outside one. (__thread: never constructed, so never a call to find out.)
extern __thread Engine *engine;

// A code address as an offset into this library, as messages give it.
uint32_t relative_pc(const void *return_address);
#define EMU_CALLER (::emu::relative_pc(__builtin_return_address(0)))
std::string at(uint32_t pc);
// Whether the address lies in this library's image: a constant of a kernel.
bool in_image(uintptr_t address);
__attribute__((format(printf, 1, 2))) std::string format(const char *text, ...);

}  // namespace emu
