// launch.cpp - runs the blocks of a launch, and says what went wrong.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <utility>

#include "engine.hpp"

namespace emu {

__thread Engine *engine = nullptr;

namespace {

thread_local StackPool stacks;

// Where this library lies in memory.
struct Image {
  uintptr_t begin = 0, end = 0;

  Image() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void *>(&emu_abi_version), &info)) return;
    begin = end = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info *library, size_t, void *self) {
          Image *image = static_cast<Image *>(self);
          if (library->dlpi_addr != image->begin) return 0;
          for (int i = 0; i < library->dlpi_phnum; i++) {
            const auto &part = library->dlpi_phdr[i];
            if (part.p_type == PT_LOAD) image->end = std::max<uintptr_t>(image->end, library->dlpi_addr + part.p_vaddr + part.p_memsz);
          }
          return 1;
        },
        this);
  }
};

const Image &image() {
  static const Image IMAGE;
  return IMAGE;
}

uint32_t count(const uint32_t dims[3]) { return dims[0] * dims[1] * dims[2]; }

size_t unfinished_copies(const Thread &thread) {
  size_t n = thread.copies.size();
  for (const auto &group : thread.groups) n += group.size();
  return n;
}

Dim3 unflatten(uint32_t linear, const uint32_t dims[3]) {
  return {linear % dims[0], linear / dims[0] % dims[1], linear / dims[0] / dims[1]};
}

// What a driver would refuse. Empty if there is nothing.
std::string refusal(const Launch &launch, const Options &options) {
  for (int i = 0; i < 3; i++)
    if (launch.grid[i] == 0 || launch.block[i] == 0) return "launch refused: a dimension of the grid or block is zero";
  const uint64_t threads = (uint64_t)launch.block[0] * launch.block[1] * launch.block[2];
  if (threads > MAX_THREADS) return format("launch refused: a block of %llu threads, the most is %u", (unsigned long long)threads, MAX_THREADS);
  if (launch.grid[0] > 0x7fffffffu || launch.grid[1] > 65535 || launch.grid[2] > 65535) return "launch refused: the grid goes over the limits of CUDA";
  if ((uint64_t)launch.grid[0] * launch.grid[1] * launch.grid[2] > UINT32_MAX / MAX_THREADS) return "launch refused: too many blocks for the emulator";
  if (launch.shared_bytes > SharedMemory::LIMIT)
    return format("launch refused: %u bytes of shared memory, the most is %zu", launch.shared_bytes, SharedMemory::LIMIT);
  if (launch.cluster == 0 || launch.cluster > 8 || launch.grid[0] % launch.cluster)
    return format("launch refused: a grid of %u blocks along x in clusters of %u", launch.grid[0], launch.cluster);
  if (options.schedule > static_cast<uint32_t>(Schedule::Random)) return format("no schedule %u", options.schedule);
  return "";
}

}  // namespace

uint32_t relative_pc(const void *return_address) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) - image().begin - 1);  // - 1: inside the call
}

std::string at(uint32_t pc) { return format("{pc:%#x}", pc); }

bool in_image(uintptr_t address) { return address - image().begin < image().end - image().begin; }

std::string format(const char *text, ...) {
  char buffer[1024];
  va_list values;
  va_start(values, text);
  vsnprintf(buffer, sizeof(buffer), text, values);
  va_end(values);
  return buffer;
}

Engine::Engine(Device &on, const Launch &shape, const Options &how, void (*entry)(void **), void **arguments)
    : device(on),
      launch(shape),
      options(how),
      random(how.seed),
      ready(static_cast<Schedule>(how.schedule), random),
      races(*this),
      block_size(count(shape.block)),
      entry_(entry),
      arguments_(arguments) {}

std::string Engine::name(uint32_t who) const {
  const Dim3 b = unflatten(who / MAX_THREADS, launch.grid), t = unflatten(who % MAX_THREADS, launch.block);
  if (who % MAX_THREADS >= block_size) return format("block (%u,%u,%u) tile copies of mbarrier %u", b.x, b.y, b.z, who % MAX_THREADS - block_size);
  return format("block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
}

void Engine::switch_away() {
  Thread *self = current_;
  Thread *next = failed_ || block_ended_ ? nullptr : next_thread();
  if (next == self) return;
  stats.switches++;
  current_ = next;
  switch_fiber(self->fiber, next ? next->fiber : main_);
}

// The thread to run; null if none can go on, and no tile is on its way that would let one.
Thread *Engine::next_thread() {
  if (ready.schedule() == Schedule::Random && !tiles.empty() && random.below(8) == 0) land_tile();
  for (;;) {
    if (Thread *thread = ready.pop()) return thread;
    if (!land_tile()) return nullptr;
  }
}

// The fibers are left as they are: nothing on their stacks needs a destructor once the launch has failed.
void Engine::fail(std::string message) {
  if (!failed_) device.error = std::move(message);
  failed_ = true;
  for (;;) switch_away();
}

void Engine::wait(const char *what, uint32_t mask, uint32_t pc) {
  Thread &thread = *current_;
  thread.state = State::Waiting;
  thread.waiting_in = what;
  thread.waiting_mask = mask;
  thread.waiting_pc = pc;
  switch_away();
}

void Engine::give_way() {
  ready.push_last(current_);
  switch_away();
}

void Engine::wake(Thread &thread) {
  thread.state = State::Running;
  ready.push(&thread);
}

void Engine::watch(const void *address, uint32_t pc) {
  watchers_[address].push_back(current_);
  wait("ld.acquire", 0, pc);
}

void Engine::wake_watchers(const void *address) {
  const auto found = watchers_.find(address);
  if (found == watchers_.end()) return;
  const std::vector<Thread *> threads = std::move(found->second);
  watchers_.erase(found);
  wake_all(threads);
}

void Engine::wake_all(const std::vector<Thread *> &threads) {
  if (ready.schedule() == Schedule::Reversed)
    for (auto it = threads.rbegin(); it != threads.rend(); ++it) wake(**it);
  else
    for (Thread *thread : threads) wake(*thread);
}

void Engine::fiber_main() {
  engine->entry_(engine->arguments_);
  engine->end_thread();
}

void Engine::end_thread() {
  Thread &thread = *current_;
  Block &block = *thread.block;
  thread.state = State::Done;
  if (const size_t copies = unfinished_copies(thread))
    fail(format("%s ends with %zu asynchronous copies that it has not waited for", name(thread).c_str(), copies));
  end_stores(thread);
  if (!thread.products.empty())
    fail(format("%s ends with %zu products of its warpgroup that it has not waited for", name(thread).c_str(), thread.products.size()));
  if (block.arrived > 0) fail(format("divergent block: %s ends while %u threads wait in __syncthreads", name(thread).c_str(), block.arrived) + deadlock());
  for (const Collective &open : thread.warp->open)
    if (open.mask >> thread.lane & 1) fail(format("divergent warp: %s ends while others of its warp wait for it in %s", name(thread).c_str(), open.name) + deadlock());
  if (thread.in_cluster_barrier || block.cluster->arrived > 0)
    fail(format("divergent cluster: %s ends while %u threads are in barrier.cluster", name(thread).c_str(), block.cluster->arrived) + deadlock());
  thread.warp->exited |= 1u << thread.lane;
  block_ended_ = --block.live == 0;
  if (block_ended_ && launch.early && !block.waited)
    fail(format("too early: no thread of block (%u,%u,%u) has come to griddepcontrol.wait: who waits for this launch would not wait for those before it",
                block.index.x, block.index.y, block.index.z));
  if (block_ended_) end_block(block);
  for (;;) switch_away();
}

// The slots of a cluster get the blocks from `linear` on.
void Engine::start_cluster(uint32_t cluster, uint32_t linear) {
  Cluster &own = *clusters_[cluster];
  own = Cluster();
  for (uint32_t rank = 0; rank < launch.cluster; rank++) own.blocks.push_back(slots_[cluster * launch.cluster + rank].get());
  for (uint32_t rank = 0; rank < launch.cluster; rank++) {
    Block &block = *own.blocks[rank];
    block.cluster = &own;
    block.rank = rank;
    start_block(block, linear + rank, cluster * launch.cluster + rank);
  }
}

void Engine::start_block(Block &block, uint32_t linear, uint32_t slot) {
  block.linear = linear;
  block.index = unflatten(linear, launch.grid);
  block.live = block_size;
  block.arrived = 0;
  block.waited = false;
  block.threads = std::vector<Thread>(block_size);
  block.warps = std::vector<Warp>((block_size + 31) / 32);
  block.mbarriers.clear();
  for (auto &waiting : block.at_named) waiting.clear();
  block.shared.reset(launch.shared_bytes, options.check != 0);
  if (block_size % 32) block.warps.back().absent = ~0u << block_size % 32;
  std::vector<Thread *> order;
  for (uint32_t i = 0; i < block_size; i++) {
    Thread &thread = block.threads[i];
    thread.block = &block;
    thread.index = i;
    thread.lane = i % 32;
    thread.warp = &block.warps[i / 32];
    thread.warp->lanes[thread.lane] = &thread;
    thread.stack = stacks.stack((size_t)slot * block_size + i);
    uint8_t *top = thread.stack + STACK_BYTES - VIEW_BYTES;
    new (top) ThreadView{unflatten(i, launch.block), block.index, {launch.block[0], launch.block[1], launch.block[2]},
                         {launch.grid[0], launch.grid[1], launch.grid[2]}};
    prepare(thread.fiber, thread.stack, top, fiber_main);
    order.push_back(&thread);
  }
  if (options.check) races.start(block);
  wake_all(order);
}

std::string Engine::deadlock() const {
  std::string text;
  for (const auto &block : slots_) {
    // One line for each operation that threads wait in.
    std::vector<std::pair<const Thread *, uint32_t>> groups;
    for (const Thread &t : block->threads) {
      if (t.state != State::Waiting) continue;
      const auto same = [&](const auto &g) { return g.first->waiting_pc == t.waiting_pc && g.first->waiting_mask == t.waiting_mask; };
      const auto group = std::find_if(groups.begin(), groups.end(), same);
      if (group == groups.end()) groups.push_back({&t, 1});
      else group->second++;
    }
    for (const auto &[first, n] : groups)
      text += format("; %u threads, the first %s, wait in %s at %s", n, name(*first).c_str(), first->waiting_in, at(first->waiting_pc).c_str());
  }
  return text;
}

bool Engine::run(Stats &out) {
  const uint32_t total = count(launch.grid) / launch.cluster;  // clusters
  std::vector<uint32_t> order(total);
  for (uint32_t i = 0; i < total; i++) order[i] = i;
  if (ready.schedule() == Schedule::Reversed) std::reverse(order.begin(), order.end());
  if (ready.schedule() == Schedule::Random)
    for (uint32_t i = total; i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);

  device.launches++;
  if (!launch.early) device.unordered_from = device.launches;
  engine = this;
  uint32_t next = 0;
  const uint32_t resident = std::min(std::max(options.resident / launch.cluster, 1u), total);
  for (uint32_t slot = 0; slot < resident * launch.cluster; slot++) slots_.push_back(std::make_unique<Block>());
  for (uint32_t i = 0; i < resident; i++) clusters_.push_back(std::make_unique<Cluster>());
  for (uint32_t i = 0; i < resident; i++) start_cluster(i, order[next++] * launch.cluster);
  uint32_t running = resident;
  while (running > 0 && !failed_) {
    Thread *thread = next_thread();
    if (!thread) {
      device.error = "deadlock" + deadlock();
      failed_ = true;
      break;
    }
    stats.switches++;
    current_ = thread;
    switch_fiber(main_, thread->fiber);
    current_ = nullptr;
    if (!block_ended_) continue;
    block_ended_ = false;
    for (uint32_t i = 0; i < resident; i++) {
      const std::vector<Block *> &blocks = clusters_[i]->blocks;
      if (blocks[0]->threads.empty() || std::any_of(blocks.begin(), blocks.end(), [](const Block *b) { return b->live > 0; })) continue;
      if (next < total) start_cluster(i, order[next++] * launch.cluster);
      else {
        for (Block *block : blocks) block->threads.clear();
        running--;
      }
    }
  }
  if (!failed_)
    for (const PendingStore &store : unlanded) land_store(store, nullptr);
  engine = nullptr;
  out = stats;
  return !failed_;
}

}  // namespace emu

using namespace emu;

uint32_t emu_abi_version() { return ABI_VERSION; }
Device *emu_open() { return new Device(); }
void emu_close(Device *device) {
  delete device;
  // A process that opens many of these libraries would else run out of mappings, of which each stack is two.
  stacks.clear();
}
const char *emu_error(const Device *device) { return device->error.c_str(); }

int emu_launch(Device *device, void (*entry)(void **), const Launch *launch, void **arguments, const Options *options, Stats *stats) {
  device->error = refusal(*launch, *options);
  if (!device->error.empty()) return 1;
  Engine run(*device, *launch, *options, entry, arguments);
  const bool good = run.run(*stats);
  // Without the checker nothing notes what a kernel writes, so afterwards everything counts as written.
  if (!options->check)
    for (const auto &buffer : device->buffers)
      for (Cell &cell : buffer->cells) cell.written = true;
  return good ? 0 : 1;
}
