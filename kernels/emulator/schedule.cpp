// schedule.cpp - the ready queue under each schedule.
#include "schedule.hpp"

#include <utility>

namespace emu {

void ReadyQueue::push_last(Thread *thread) {
  if (schedule_ == Schedule::NewestFirst) threads_.insert(threads_.begin(), thread);
  else threads_.push_back(thread);
}

Thread *ReadyQueue::pop() {
  const size_t waiting = threads_.size() - head_;
  if (waiting == 0) return nullptr;
  if (in_order()) {
    Thread *thread = threads_[head_++];
    if (head_ > 4096 && head_ * 2 > threads_.size()) {
      threads_.erase(threads_.begin(), threads_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return thread;
  }
  if (schedule_ == Schedule::Random) std::swap(threads_[random_.below(waiting)], threads_.back());
  Thread *thread = threads_.back();
  threads_.pop_back();
  return thread;
}

}  // namespace emu
