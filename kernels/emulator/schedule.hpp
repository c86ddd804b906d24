// schedule.hpp - which of the threads that could go on does so next.
//
// A CUDA program may not depend on this choice, so tests run each kernel under several. The race checker finds a missing barrier under any of
// them; the schedules are there for what only shows in the numbers, and for deadlocks that depend on order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

struct Thread;

enum class Schedule : uint32_t {
  Fifo = 0,         // in order of readiness, lowest index first
  Reversed = 1,     // the same, highest index first
  NewestFirst = 2,  // the thread that became ready last: one runs as far ahead as it can
  Random = 3,
};

// xorshift64*: for schedules, where only repeatability matters.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull) {
    if (state_ == 0) state_ = 1;
  }
  uint64_t below(uint64_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1dull >> 32) % bound;
  }

 private:
  uint64_t state_;
};

// The threads that are ready to run.
class ReadyQueue {
 public:
  ReadyQueue(Schedule schedule, Random &random) : schedule_(schedule), random_(random) {}

  // A thread has become ready.
  void push(Thread *thread) { threads_.push_back(thread); }

  // A thread gives way: whatever the schedule, those already waiting come before it.
  void push_last(Thread *thread);

  // Takes the next thread, or null.
  Thread *pop();

  // Whether the thread that completes a warp operation goes on at once, or lets the schedule choose.
  bool in_order() const { return schedule_ == Schedule::Fifo || schedule_ == Schedule::Reversed; }

  Schedule schedule() const { return schedule_; }

 private:
  Schedule schedule_;
  Random &random_;
  std::vector<Thread *> threads_;
  size_t head_ = 0;  // threads before this were taken (in the orders that take from the front)
};

}  // namespace emu
