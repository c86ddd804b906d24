// memory.hpp - device memory and shared memory: what is allocated, and what is known of every element.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api.hpp"
#include "race.hpp"

namespace emu {

// An allocation of device memory. A kernel gets its true host address; whatever lies around it belongs to no buffer.
struct Buffer {
  uintptr_t begin, end;
  uint32_t grain_shift;  // log2 of the element's size
  std::vector<Cell> cells;
  std::unique_ptr<uint8_t, void (*)(void *)> memory;

  size_t cell_of(uintptr_t address) const { return (address - begin) >> grain_shift; }
};

// A stand-in for a GPU: its memory, and the message of the last failure.
struct Device {
  std::vector<std::unique_ptr<Buffer>> buffers;  // by address
  std::string error;
  uint32_t launches = 0;
  uint32_t unordered_from = 0;  // the first launch that one which begins early need not come after

  // The buffer with the greatest start at or below `address`, or null: the one that holds it, or that it runs past.
  Buffer *at_or_below(uintptr_t address) const;
  // The buffer that holds all of `address .. address + bytes`; otherwise null, with a message left in `error`.
  Buffer *holding(uintptr_t address, size_t bytes, const char *what);
};

// The shared memory of one resident block. Arrays lie apart from each other, so that running off the end of one is seen.
class SharedMemory {
 public:
  static constexpr size_t LIMIT = 227 * 1024;        // of one block, the most any supported chip gives
  static constexpr size_t STATIC_LIMIT = 48 * 1024;  // of the arrays declared in the source
  static constexpr size_t GRAIN = 2;                 // bytes of one cell

  SharedMemory();

  // A new block: forgets all arrays and everything written.
  void reset(size_t dynamic_bytes, bool check);
  // The array declared at `site` (null: the dynamic one), laid out when its first thread comes by; null if it does not fit.
  uint8_t *array(const void *site, const char *name, size_t bytes, size_t align);

  const uint8_t *base() const { return memory_.get(); }
  bool contains(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(memory_.get()) < CAPACITY; }
  Cell *cell(uintptr_t address) { return &cells_[(address - reinterpret_cast<uintptr_t>(memory_.get())) / GRAIN]; }
  // Name of the array that holds all these bytes, or null, with the bytes' offset in it.
  const char *find(uintptr_t address, size_t bytes, size_t &offset) const;

 private:
  struct Array {
    const void *site;
    const char *name;
    size_t offset, bytes;
  };
  static constexpr size_t CAPACITY = 320 * 1024;  // LIMIT and the gaps
  static constexpr size_t GAP = 64;

  std::unique_ptr<uint8_t, void (*)(void *)> memory_;
  std::vector<Array> arrays_;
  std::vector<Cell> cells_;
  size_t end_ = 0, static_bytes_ = 0, dynamic_bytes_ = 0;
  bool check_ = false;
};

}  // namespace emu
