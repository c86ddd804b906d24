// cluster.cpp - blocks that run at the same time and reach each other's shared memory.
//
// What orders memory between them is what orders it on a chip: the cluster's barrier, and arrivals at another block's barrier that somebody waits for with
// the scope of the cluster. A block that ends must know of everything that others do to its shared memory: whatever comes after, or beside, is an
// error.
#include <algorithm>

#include "engine.hpp"

namespace emu {
namespace {

constexpr uint32_t WHOLE = 0xffffffffu;

uint32_t threads_of(const Cluster &cluster) { return static_cast<uint32_t>(cluster.blocks.size()) * engine->block_size; }

void complete_arrival(Warp &warp, uint32_t mask) {
  for (uint32_t lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Thread &thread = *warp.lanes[lane];
    Cluster &cluster = *thread.block->cluster;
    const std::string who = engine->name(thread) + " at " + at(engine->current().waiting_pc);
    if (thread.in_cluster_barrier) engine->fail("barrier.cluster.arrive: twice without barrier.cluster.wait, by " + who);
    for (const Block *block : cluster.blocks)
      if (block->live < block->threads.size())
        engine->fail(format("divergent cluster: %s, but threads of block (%u,%u,%u) have ended without it", who.c_str(), block->index.x,
                            block->index.y, block->index.z));
    thread.in_cluster_barrier = true;
    thread.cluster_phase = cluster.phase;
    if (engine->options.check) cluster.told = join(cluster.told, engine->races.release(thread));
    if (++cluster.arrived < threads_of(cluster)) continue;
    cluster.arrived = 0;
    cluster.phase++;
    cluster.tells = join(cluster.tells, cluster.told);
    cluster.told = nullptr;
    std::vector<Thread *> waiting;
    waiting.swap(cluster.waiting);
    engine->wake_all(waiting);
  }
}

void complete_nothing(Warp &, uint32_t) {}

}  // namespace

uint32_t cluster_rank() { return engine->current().block->rank; }

void cluster_arrive() {
  const uint32_t pc = EMU_CALLER;
  engine->current().waiting_pc = pc;
  collective("barrier.cluster.arrive", WHOLE, nullptr, complete_arrival, pc);
}

void cluster_wait() {
  const uint32_t pc = EMU_CALLER;
  Thread &thread = engine->current();
  Cluster &cluster = *thread.block->cluster;
  collective("barrier.cluster.wait", WHOLE, nullptr, complete_nothing, pc);
  if (!thread.in_cluster_barrier)
    engine->fail(format("barrier.cluster.wait: without barrier.cluster.arrive, by %s at %s", engine->name(thread).c_str(), at(pc).c_str()));
  while (cluster.phase == thread.cluster_phase) {
    cluster.waiting.push_back(&thread);
    engine->wait("barrier.cluster.wait", 0, pc);
  }
  thread.in_cluster_barrier = false;
  if (engine->options.check) engine->races.acquire(thread, cluster.tells);
}

Block &peer(Thread &thread, uint32_t rank, const char *what, uint32_t pc) {
  const Cluster &cluster = *thread.block->cluster;
  const std::string who = engine->name(thread) + " at " + at(pc);
  if (rank >= cluster.blocks.size()) engine->fail(format("%s: no block %u in a cluster of %zu, by %s", what, rank, cluster.blocks.size(), who.c_str()));
  Block &block = *cluster.blocks[rank];
  if (block.live == 0)
    engine->fail(format("%s: block (%u,%u,%u) has ended, and its shared memory is gone, by %s", what, block.index.x, block.index.y, block.index.z,
                        who.c_str()));
  return block;
}

const void *peer_place(const Thread &thread, const Block &block, const void *pointer, const char *what, uint32_t pc) {
  const SharedMemory &own = thread.block->shared;
  if (!own.contains(reinterpret_cast<uintptr_t>(pointer)))
    engine->fail(format("%s: not shared memory of the block, by %s at %s", what, engine->name(thread).c_str(), at(pc).c_str()));
  return block.shared.base() + (static_cast<const uint8_t *>(pointer) - own.base());
}

void mbarrier_arrive_at(uint64_t *pointer, uint32_t rank) {
  const uint32_t pc = EMU_CALLER;
  const char *const what = "mbarrier.arrive of another block";
  Thread &thread = engine->current();
  Block &block = peer(thread, rank, what, pc);
  MBarrier &barrier = barrier_at(block, peer_place(thread, block, pointer, what, pc), what, pc);
  check_announced(barrier, what, pc);
  if (engine->options.check) engine->races.arrive_from_afar(thread, block, barrier, pc);
  barrier.missing--;
  end_phase_if_complete(barrier);
}

// The last thread of a block has ended.
void Engine::end_block(Block &block) {
  const auto of = [&](const PendingTile &tile) { return tile.block == &block; };
  const std::string who = format("block (%u,%u,%u)", block.index.x, block.index.y, block.index.z);
  if (std::any_of(tiles.begin(), tiles.end(), of)) fail(who + " ends with tiles on their way to its shared memory");
  if (options.check) races.end(block);
}

}  // namespace emu
