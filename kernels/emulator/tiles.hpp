// tiles.hpp - boxes of a tensor, as TMA copies them between device memory and shared memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace emu {

struct Block;

// A matrix of bf16 in device memory, or planes of such matrices, as TMA sees them; src/tensor/cuda/emulator.rs makes it, in the place of the driver's
// 128 bytes. Strides in bytes; a matrix has no plane.
struct TileMap {
  static constexpr uint64_t MAGIC = 0x70616d20656c6974ull;
  uint64_t magic, address;
  uint64_t columns, rows, stride, box_rows;
  uint64_t planes, plane_stride, box_planes;

  uint64_t rows_of_box() const { return box_rows * (planes ? box_planes : 1); }
};

constexpr uint32_t BOX_ROW_BYTES = 128;  // of a box with the 128-byte swizzle, the only one there is here

// A box at a place of a tensor, and where it lies in shared memory.
struct Box {
  uint8_t *shared;
  TileMap map;
  int x, y, z;

  uint64_t bytes() const { return map.rows_of_box() * BOX_ROW_BYTES; }
};

// Calls each(place in shared memory, place in device memory or null outside the tensor) for the 16-byte pieces of a box.
template <class Each>
void each_piece(const Box &box, const Each &each) {
  const TileMap &map = box.map;
  for (uint32_t row = 0; row < map.rows_of_box(); row++) {
    const int64_t y = (int64_t)box.y + row % map.box_rows, z = (int64_t)box.z + row / map.box_rows;
    for (uint32_t piece = 0; piece < BOX_ROW_BYTES / 16; piece++) {
      const int64_t x = (int64_t)box.x + piece * 8;
      uint8_t *place = box.shared + row * BOX_ROW_BYTES + ((piece ^ (row & 7)) << 4);
      const bool in_plane = y >= 0 && y < (int64_t)map.rows && x >= 0 && x < (int64_t)map.columns;
      const bool inside = in_plane && z >= 0 && z < (int64_t)std::max<uint64_t>(map.planes, 1);
      each(place, inside ? reinterpret_cast<uint8_t *>(map.address) + z * map.plane_stride + y * map.stride + 2 * x : nullptr);
    }
  }
}

// A tile on its way to shared memory.
struct PendingTile {
  Box box;
  Block *block;            // whose shared memory
  std::ptrdiff_t barrier;  // of the block's mbarriers
  uint32_t pc;
};

// A tile on its way to device memory: first its bytes are read, then they arrive.
struct PendingStore {
  Box box;
  uint32_t pc;
  bool read;
  std::vector<uint8_t> bytes;  // of the pieces inside the tensor, once they have been read
};

// The stores of one commit.
using StoreGroup = std::vector<PendingStore>;

}  // namespace emu
