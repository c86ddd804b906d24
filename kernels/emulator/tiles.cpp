// tiles.cpp - TMA: copies of whole tiles, as late as they may be.
//
// A tile lands in shared memory when no thread can go on, or, under the random schedule, at any moment before; until its barrier's phase has ended
// nobody may touch it. A tile that leaves is read when its thread waits for that (wait_group.read) and no sooner, and arrives in device memory when
// its thread waits for all (wait_group), or behind everything else; until then nobody may change the one or touch the other.
#include <cstring>

#include "engine.hpp"

namespace emu {
namespace {

// A box as an instruction names it, checked.
Box box_of(const char *what, const void *shared, const void *map, int x, int y, int z, bool planes, uint32_t pc) {
  Box box{static_cast<uint8_t *>(const_cast<void *>(shared)), {}, x, y, z};
  memcpy(&box.map, map, sizeof(box.map));
  const auto fail = [&](const std::string &wrong) {
    engine->fail(format("%s: %s, by %s at %s", what, wrong.c_str(), engine->name(engine->current()).c_str(), at(pc).c_str()));
  };
  if (box.map.magic != TileMap::MAGIC) fail("not a tensor map");
  if (planes != (box.map.planes != 0)) fail("the map has another number of dimensions");
  if (reinterpret_cast<uintptr_t>(shared) % 1024) fail("a swizzled tile starts at a multiple of 1024 bytes");
  if (x % 8) fail(format("column %d is no multiple of 8", x));
  return box;
}

// TMA reads the source of a store.
void read_source(Thread &thread, PendingStore &store) {
  each_piece(store.box, [&](uint8_t *place, const uint8_t *to) {
    engine->set_leaving(*thread.block, place, 16, -1);
    engine->access_shared(thread, place, 16, Access::Read, store.pc, "cp.async.bulk.tensor to device memory");
    if (to) store.bytes.insert(store.bytes.end(), place, place + 16);
  });
  store.read = true;
}

// A copy to a block's shared memory is under way.
void start_tile(Thread &thread, Block &block, const Box &box, const void *pointer, const char *what, uint32_t pc) {
  MBarrier &barrier = barrier_at(block, pointer, what, pc);
  check_announced(barrier, what, pc);
  each_piece(box, [&](uint8_t *place, const uint8_t *from) {
    engine->access_shared(thread, block, place, 16, Access::Write, pc, what);
    if (from) engine->access(from, 16, Access::Read, false, pc);
    engine->set_in_flight(block, place, 16);
  });
  engine->tiles.push_back({box, &block, &barrier - block.mbarriers.data(), pc});
}

}  // namespace

void load_tile(void *to, const void *map, uint64_t *pointer, int x, int y, int z, bool planes) {
  const uint32_t pc = EMU_CALLER;
  const char *const what = "cp.async.bulk.tensor";
  Thread &thread = engine->current();
  start_tile(thread, *thread.block, box_of(what, to, map, x, y, z, planes, pc), pointer, what, pc);
}

void load_tile_to_all(void *to, const void *map, uint64_t *pointer, int x, int y, uint32_t ranks) {
  const uint32_t pc = EMU_CALLER;
  const char *const what = "cp.async.bulk.tensor.multicast";
  Thread &thread = engine->current();
  const Box own = box_of(what, to, map, x, y, 0, false, pc);
  if (!ranks) engine->fail(format("%s: to nobody, by %s at %s", what, engine->name(thread).c_str(), at(pc).c_str()));
  for (uint32_t rank = 0; ranks >> rank; rank++) {
    if (!(ranks >> rank & 1)) continue;
    Block &block = peer(thread, rank, what, pc);
    Box box = own;
    box.shared = static_cast<uint8_t *>(const_cast<void *>(peer_place(thread, block, to, what, pc)));
    start_tile(thread, block, box, peer_place(thread, block, pointer, what, pc), what, pc);
  }
}

// Some tile that is on its way lands. False if there is none.
bool Engine::land_tile() {
  if (tiles.empty()) return false;
  const size_t which = ready.in_order() ? 0 : random.below(tiles.size());
  const PendingTile tile = tiles[which];
  tiles.erase(tiles.begin() + static_cast<std::ptrdiff_t>(which));
  MBarrier &barrier = tile.block->mbarriers[tile.barrier];
  if (options.check) races.tile_landed(barrier);
  each_piece(tile.box, [&](uint8_t *place, const uint8_t *from) {
    if (from) memcpy(place, from, 16);
    else memset(place, 0, 16);
    if (!options.check) return;
    for (uint32_t i = 0; i < 16; i += SharedMemory::GRAIN)
      races.land_by_agent(*tile.block->shared.cell(reinterpret_cast<uintptr_t>(place) + i), *tile.block, barrier, tile.pc);
  });
  barrier.bytes -= static_cast<int64_t>(tile.box.bytes());
  end_phase_if_complete(barrier);
  return true;
}

void store_tile(const void *map, int x, int y, const void *from) {
  const uint32_t pc = EMU_CALLER;
  const char *const what = "cp.async.bulk.tensor to device memory";
  Thread &thread = engine->current();
  PendingStore store{box_of(what, from, map, x, y, 0, false, pc), pc, false, {}};
  each_piece(store.box, [&](uint8_t *place, uint8_t *to) {
    engine->access_shared(thread, place, 16, Access::Read, pc, what);
    engine->check_proxy(thread, place, 16, pc);
    engine->set_leaving(*thread.block, place, 16, 1);
    if (!to) return;
    engine->access(to, 16, Access::Write, false, pc);
    engine->set_in_flight(to, 16);
  });
  thread.stores.push_back(std::move(store));
}

void commit_stores() {
  Thread &thread = engine->current();
  thread.store_groups.push_back(std::move(thread.stores));
  thread.stores.clear();
}

void wait_for_stores(uint32_t pending, bool read) {
  Thread &thread = engine->current();
  const size_t count = thread.store_groups.size(), done = count - std::min<size_t>(count, pending);
  for (size_t i = 0; i < done; i++)
    for (PendingStore &store : thread.store_groups[i]) {
      if (!store.read) read_source(thread, store);
      if (!read) engine->land_store(store, &thread);
    }
  if (!read) thread.store_groups.erase(thread.store_groups.begin(), thread.store_groups.begin() + static_cast<std::ptrdiff_t>(done));
}

void Engine::land_store(const PendingStore &store, const Thread *thread) {
  const uint8_t *from = store.bytes.data();
  each_piece(store.box, [&](uint8_t *, uint8_t *to) {
    if (!to) return;
    memcpy(to, from, 16);
    from += 16;
    if (thread) land_copy(to, 16, *thread, store.pc);
  });
}

// Stores may arrive after their thread has ended, but not read what may be another block's then.
void Engine::end_stores(Thread &thread) {
  bool unread = !thread.stores.empty();
  for (StoreGroup &group : thread.store_groups)
    for (PendingStore &store : group) {
      unread |= !store.read;
      unlanded.push_back(std::move(store));
    }
  thread.store_groups.clear();
  if (unread) fail(format("%s ends with stores of tiles that may still read its block's shared memory", name(thread).c_str()));
}

// The writes that this thread has made by ordinary stores are there for what reads shared memory beside the threads: TMA and wgmma.
void fence_async_proxy() {
  Thread &thread = engine->current();
  thread.clock.proxy_fenced = thread.clock.clock++;
}

}  // namespace emu
