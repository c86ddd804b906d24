// mbarrier.cpp - barriers in shared memory, and the copies of whole tiles (TMA) that arrive at them.
//
// A phase of a barrier ends when as many threads have arrived as it was made for, and as many bytes as they announced. Who waits for the end of
// a phase learns what those who arrived knew. A tile lands as late as it may: when no thread can go on, or, under the random schedule, at any
// moment before; until its barrier's phase has ended nobody may touch it.
#include <algorithm>
#include <cstring>

#include "engine.hpp"

namespace emu {
namespace {

constexpr uint32_t BOX_ROW_BYTES = 128;  // of a tile with the 128-byte swizzle, the only one there is here

MBarrier &barrier_at(const void *pointer, const char *what, uint32_t pc) {
  Thread &thread = engine->current();
  engine->access_shared(thread, pointer, 8, Access::Read, pc, what);
  for (MBarrier &barrier : thread.block->mbarriers)
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

// Calls each(place in shared memory, place in device memory or null for zeros) for the 16-byte pieces of a tile.
template <class Each>
void each_piece(const PendingTile &tile, const Each &each) {
  const TileMap &map = tile.map;
  for (uint32_t row = 0; row < map.rows_of_box(); row++) {
    const int64_t y = (int64_t)tile.y + row % map.box_rows, z = (int64_t)tile.z + row / map.box_rows;
    for (uint32_t piece = 0; piece < BOX_ROW_BYTES / 16; piece++) {
      const int64_t x = (int64_t)tile.x + piece * 8;
      uint8_t *to = tile.to + row * BOX_ROW_BYTES + ((piece ^ (row & 7)) << 4);
      const bool in_plane = y >= 0 && y < (int64_t)map.rows && x >= 0 && x < (int64_t)map.columns;
      const bool inside = in_plane && z >= 0 && z < (int64_t)std::max<uint64_t>(map.planes, 1);
      each(to, inside ? reinterpret_cast<const uint8_t *>(map.address) + z * map.plane_stride + y * map.stride + 2 * x : nullptr);
    }
  }
}

}  // namespace

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
  MBarrier &barrier = barrier_at(pointer, "mbarrier.arrive", pc);
  Thread &thread = engine->current();
  if (engine->options.check) engine->races.arrive(thread, barrier);
  barrier.bytes += bytes;
  barrier.missing--;
  end_phase_if_complete(barrier);
}

void mbarrier_wait(uint64_t *pointer, uint32_t parity) {
  const uint32_t pc = EMU_CALLER;
  MBarrier &barrier = barrier_at(pointer, "mbarrier.try_wait", pc);
  Thread &thread = engine->current();
  if (parity > 1) engine->fail(format("mbarrier.try_wait: a parity is 0 or 1, at %s", at(pc).c_str()));
  while ((barrier.phase & 1) == parity) {
    barrier.waiting.push_back(&thread);
    engine->wait("mbarrier.try_wait", 0, pc);
  }
  if (engine->options.check) engine->races.learn(thread, barrier);
}

void load_tile(void *to, const void *map, uint64_t *pointer, int x, int y, int z, bool planes) {
  const uint32_t pc = EMU_CALLER;
  MBarrier &barrier = barrier_at(pointer, "cp.async.bulk.tensor", pc);
  Thread &thread = engine->current();
  PendingTile tile{thread.block, static_cast<uint8_t *>(to), {}, &barrier - thread.block->mbarriers.data(), x, y, z, pc};
  memcpy(&tile.map, map, sizeof(tile.map));
  const std::string who = engine->name(thread) + " at " + at(pc);
  if (tile.map.magic != TileMap::MAGIC) engine->fail("cp.async.bulk.tensor: not a tensor map, by " + who);
  if (planes != (tile.map.planes != 0)) engine->fail("cp.async.bulk.tensor: the map has another number of dimensions, by " + who);
  if (reinterpret_cast<uintptr_t>(to) % 1024) engine->fail("cp.async.bulk.tensor: a swizzled tile starts at a multiple of 1024 bytes, by " + who);
  if (x % 8) engine->fail(format("cp.async.bulk.tensor: column %d is no multiple of 8, by %s", x, who.c_str()));
  each_piece(tile, [&](uint8_t *place, const uint8_t *from) {
    engine->access_shared(thread, place, 16, Access::Write, pc, "cp.async.bulk.tensor");
    if (from) engine->access(from, 16, Access::Read, false, pc);
    engine->set_in_flight(*thread.block, place, 16);
  });
  engine->tiles.push_back(tile);
}

// Some tile that is on its way lands. False if there is none.
bool Engine::land_tile() {
  if (tiles.empty()) return false;
  const size_t which = ready.in_order() ? 0 : random.below(tiles.size());
  const PendingTile tile = tiles[which];
  tiles.erase(tiles.begin() + static_cast<std::ptrdiff_t>(which));
  MBarrier &barrier = tile.block->mbarriers[tile.barrier];
  if (options.check) races.tile_landed(barrier);
  each_piece(tile, [&](uint8_t *place, const uint8_t *from) {
    if (from) memcpy(place, from, 16);
    else memset(place, 0, 16);
    if (!options.check) return;
    for (uint32_t i = 0; i < 16; i += SharedMemory::GRAIN)
      races.land_by_agent(*tile.block->shared.cell(reinterpret_cast<uintptr_t>(place) + i), *tile.block, barrier, tile.pc);
  });
  barrier.bytes -= static_cast<int64_t>(tile.map.rows_of_box() * BOX_ROW_BYTES);
  end_phase_if_complete(barrier);
  return true;
}

// The writes that this thread has made by ordinary stores are there for what reads shared memory beside the threads: TMA and wgmma.
void fence_async_proxy() {
  Thread &thread = engine->current();
  thread.clock.proxy_fenced = thread.clock.clock++;
}

}  // namespace emu
