// memory.cpp - allocations, and the check of every access.
#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine.hpp"

namespace emu {

// What nobody has written yet reads as NaN, in bf16 and in f32, even where the checker is off.
constexpr int POISON = 0xff;

Buffer *Device::at_or_below(uintptr_t address) const {
  const auto after = std::upper_bound(buffers.begin(), buffers.end(), address,
                                      [](uintptr_t a, const std::unique_ptr<Buffer> &buffer) { return a < buffer->begin; });
  return after == buffers.begin() ? nullptr : (after - 1)->get();
}

Buffer *Device::holding(uintptr_t address, size_t bytes, const char *what) {
  Buffer *buffer = at_or_below(address);
  if (buffer && address <= buffer->end && bytes <= buffer->end - address) return buffer;
  error = format("%s of %zu bytes outside every buffer", what, bytes);
  return nullptr;
}

SharedMemory::SharedMemory() : memory_(static_cast<uint8_t *>(aligned_alloc(1024, CAPACITY)), free) {}

void SharedMemory::reset(size_t dynamic_bytes, bool check) {
  arrays_.clear();
  cells_.clear();
  end_ = static_bytes_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  check_ = check;
  array(nullptr, "dynamic shared memory", dynamic_bytes, 1024);
}

uint8_t *SharedMemory::array(const void *site, const char *name, size_t bytes, size_t align) {
  for (Array &array : arrays_)
    if (array.site == site) {
      if (!site) array.name = name;  // the kernel's own name for its dynamic memory
      return memory_.get() + array.offset;
    }
  if (site) static_bytes_ += bytes;
  if (static_bytes_ > STATIC_LIMIT || static_bytes_ + dynamic_bytes_ > LIMIT) return nullptr;
  const size_t offset = (end_ + align - 1) / align * align;
  end_ = offset + bytes + GAP;
  if (end_ > CAPACITY) return nullptr;
  memset(memory_.get() + offset, POISON, bytes);
  arrays_.push_back({site, name, offset, bytes});
  if (check_) cells_.resize((end_ + GRAIN - 1) / GRAIN);
  return memory_.get() + offset;
}

const char *SharedMemory::find(uintptr_t address, size_t bytes, size_t &offset) const {
  const size_t at = address - reinterpret_cast<uintptr_t>(memory_.get());
  for (const Array &array : arrays_)
    if (at >= array.offset && at + bytes <= array.offset + array.bytes) {
      offset = at - array.offset;
      return array.name;
    }
  return nullptr;
}

void Engine::access_shared(Thread &thread, Block &block, uintptr_t address, size_t bytes, Access access, uint32_t pc) {
  size_t offset = 0;
  const char *array = block.shared.find(address, bytes, offset);
  if (!array) fail(format("%zu bytes outside every shared array of the block, by %s at %s", bytes, name(thread).c_str(), at(pc).c_str()));
  if (!options.check) return;
  if (bytes < SharedMemory::GRAIN) fail(format("the race checker sees shared memory in elements of %zu bytes, at %s", SharedMemory::GRAIN, at(pc).c_str()));
  const Cell *end = block.shared.cell(address + bytes - 1) + 1;
  for (Cell *cell = block.shared.cell(address); cell != end; cell++, offset += SharedMemory::GRAIN)
    races.touch(*cell, thread, access, pc, [&] { return format("shared `%s` byte %#zx", array, offset); });
}

void Engine::access_shared(Thread &thread, const void *pointer, size_t bytes, Access access, uint32_t pc, const char *what) {
  access_shared(thread, *thread.block, pointer, bytes, access, pc, what);
}

void Engine::access_shared(Thread &thread, Block &block, const void *pointer, size_t bytes, Access access, uint32_t pc, const char *what) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  stats.accesses++;
  if (!block.shared.contains(address))
    fail(format("%s: not shared memory of the block, by %s at %s", what, name(thread).c_str(), at(pc).c_str()));
  access_shared(thread, block, address, bytes, access, pc);
}

void Engine::start_copy(const PendingCopy &copy) {
  access_shared(current(), copy.to, copy.bytes, Access::Write, copy.pc, "cp.async");
  if (copy.read) access(copy.from, copy.read, Access::Read, false, copy.pc);
  set_in_flight(*current().block, copy.to, copy.bytes);
}

void Engine::set_in_flight(Block &block, const void *address, uint32_t bytes) {
  if (!options.check) return;
  const uintptr_t to = reinterpret_cast<uintptr_t>(address);
  for (uint32_t i = 0; i < bytes; i += SharedMemory::GRAIN) block.shared.cell(to + i)->in_flight = true;
}

// The cells of device memory that was accessed in this launch.
template <class Each>
void Engine::each_cell(const void *pointer, size_t bytes, const Each &each) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Buffer &buffer = *device.at_or_below(address);
  const size_t last = buffer.cell_of(address + bytes - 1);
  for (size_t i = buffer.cell_of(address); i <= last; i++) each(buffer.cells[i]);
}

void Engine::set_in_flight(const void *address, uint32_t bytes) {
  if (options.check) each_cell(address, bytes, [](Cell &cell) { cell.in_flight = true; });
}

void Engine::land_copy(const void *address, uint32_t bytes, const Thread &thread, uint32_t pc) {
  if (!options.check) return;
  each_cell(address, bytes, [&](Cell &cell) {
    races.land(cell, thread, pc);
    cell.wrote_in = device.launches;
  });
}

void Engine::set_leaving(Block &block, const void *address, uint32_t bytes, int more) {
  if (!options.check) return;
  const uintptr_t from = reinterpret_cast<uintptr_t>(address);
  for (uint32_t i = 0; i < bytes; i += SharedMemory::GRAIN) block.shared.cell(from + i)->leaving += static_cast<uint8_t>(more);
}

void Engine::check_proxy(const Thread &thread, const void *address, uint32_t bytes, uint32_t pc) {
  if (!options.check) return;
  const uintptr_t from = reinterpret_cast<uintptr_t>(address);
  for (uint32_t i = 0; i < bytes; i += SharedMemory::GRAIN) races.check_proxy(thread, *thread.block->shared.cell(from + i), "a store by TMA", pc);
}

void Engine::land_copy(const PendingCopy &copy) {
  memcpy(copy.to, copy.from, copy.read);
  memset(static_cast<uint8_t *>(copy.to) + copy.read, 0, copy.bytes - copy.read);
  if (!options.check) return;
  const uintptr_t to = reinterpret_cast<uintptr_t>(copy.to);
  SharedMemory &shared = current().block->shared;
  for (uint32_t i = 0; i < copy.bytes; i += SharedMemory::GRAIN) races.land(*shared.cell(to + i), current(), copy.pc);
}

std::string Engine::name(const Buffer &buffer) const {
  for (uint32_t i = 0; i < launch.arguments; i++)
    if (launch.pointers >> i & 1) {
      uintptr_t pointer;
      memcpy(&pointer, arguments_[i], sizeof(pointer));
      if (pointer == buffer.begin) return format("argument %u", i);
    }
  return "a buffer that is no argument";
}

std::string Engine::place_in(const Buffer &buffer, uintptr_t address) const {
  return name(buffer) + format(" byte %#zx", (size_t)(address - buffer.begin));
}

// A launch that begins early has, until it waits, only what no launch that may still run writes.
void Engine::check_begun(const Cell &cell, Access access, uint32_t pc, const Buffer &buffer, uintptr_t address) {
  if (!launch.early || current().waited || (access == Access::Read && cell.wrote_in < device.unordered_from)) return;
  const bool reads = access == Access::Read;
  fail(format("too early: %s %s%s before griddepcontrol.wait, by %s at %s", reads ? "read of" : "write to", place_in(buffer, address).c_str(),
              reads ? ", which an earlier launch writes," : "", name(current()).c_str(), at(pc).c_str()));
}

void wait_for_earlier_launches() { engine->current().waited = engine->current().block->waited = true; }

void Engine::access_global(uintptr_t address, size_t bytes, Access access, uint32_t pc) {
  Buffer *buffer = last_buffer_;
  if (!buffer || address < buffer->begin || address >= buffer->end) buffer = last_buffer_ = device.at_or_below(address);
  if (!buffer || address + bytes > buffer->end) {
    if (access == Access::Read && in_image(address)) return;
    const char *what = access == Access::Read ? "read" : "write";
    const std::string near = buffer ? format("%zu bytes past the end of %s (%zu bytes)", (size_t)(address + bytes - buffer->end),
                                             name(*buffer).c_str(), (size_t)(buffer->end - buffer->begin))
                                    : "no buffer lies below it";
    fail(format("out of bounds: %s of %zu bytes, %s, by %s at %s", what, bytes, near.c_str(), name(current()).c_str(), at(pc).c_str()));
  }
  if (!options.check) return;
  const size_t grain = (size_t)1 << buffer->grain_shift;
  if (bytes < grain) fail(format("access of %zu bytes to part of an element of %s, at %s", bytes, place_in(*buffer, address).c_str(), at(pc).c_str()));
  const size_t last = buffer->cell_of(address + bytes - 1);
  for (size_t i = buffer->cell_of(address); i <= last; i++) {
    Cell &cell = buffer->cells[i];
    if (cell.launch != device.launches) {
      const bool written = cell.written;
      const uint32_t wrote_in = cell.wrote_in;
      cell = Cell();
      cell.written = written;
      cell.wrote_in = wrote_in;
      cell.launch = device.launches;
    }
    check_begun(cell, access, pc, *buffer, address);
    if (access != Access::Read) cell.wrote_in = device.launches;
    races.touch(cell, current(), access, pc, [&] { return place_in(*buffer, buffer->begin + i * grain); });
  }
}

void Engine::access(const void *pointer, size_t bytes, Access access, bool aligned, uint32_t pc) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(current_->stack) < STACK_BYTES) return;
  stats.accesses++;
  if (aligned && address % bytes != 0)
    fail(format("misaligned access of %zu bytes at an address that is %zu past a multiple of it, by %s at %s", bytes, (size_t)(address % bytes),
                name(current()).c_str(), at(pc).c_str()));
  Block &own = *current_->block;
  if (own.shared.contains(address)) {
    access_shared(*current_, own, address, bytes, access, pc);
  } else {
    for (const auto &block : slots_)
      if (block->shared.contains(address))
        fail(format("access to another block's shared memory, by %s at %s", name(current()).c_str(), at(pc).c_str()));
    access_global(address, bytes, access, pc);
  }
  if (options.preempt && random.below(options.preempt) == 0) give_way();
}

void load(void *value, const void *from, size_t bytes) {
  engine->access(from, bytes, Access::Read, true, EMU_CALLER);
  memcpy(value, from, bytes);
}

void store(void *to, const void *value, size_t bytes) {
  engine->access(to, bytes, Access::Write, true, EMU_CALLER);
  memcpy(to, value, bytes);
}

static void *shared_array(const void *site, const char *name, size_t bytes, size_t align, uint32_t pc) {
  Thread &thread = engine->current();
  uint8_t *array = thread.block->shared.array(site, name, bytes, align);
  if (!array)
    engine->fail(format("shared memory: `%s` (%zu bytes) goes over the limit of %zu bytes declared or %zu bytes in all, at %s", name, bytes,
                        SharedMemory::STATIC_LIMIT, SharedMemory::LIMIT, at(pc).c_str()));
  return array;
}

void *dynamic_shared(const char *name) { return shared_array(nullptr, name, 0, 1, EMU_CALLER); }

void *static_shared(const void *site, const char *name, size_t bytes, size_t align) {
  return shared_array(site, name, bytes, align, EMU_CALLER);
}

}  // namespace emu

// ---- the host's side of memory
using namespace emu;

void *emu_alloc(Device *device, size_t bytes, size_t grain) {
  constexpr size_t ALIGN = 256;  // as cuMemAlloc
  const size_t padded = (bytes + ALIGN - 1) / ALIGN * ALIGN + ALIGN;  // at least a gap between neighbours
  uint8_t *memory = static_cast<uint8_t *>(aligned_alloc(ALIGN, padded));
  if (!memory) {
    device->error = format("out of memory: %zu bytes", bytes);
    return nullptr;
  }
  memset(memory, POISON, padded);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  uint32_t shift = 0;
  while (((size_t)1 << shift) < grain) shift++;
  std::unique_ptr<Buffer> buffer(new Buffer{begin, begin + bytes, shift, {}, {memory, free}});
  buffer->cells.resize((bytes >> shift) + 1);
  const auto after = std::upper_bound(device->buffers.begin(), device->buffers.end(), begin,
                                      [](uintptr_t a, const std::unique_ptr<Buffer> &b) { return a < b->begin; });
  device->buffers.insert(after, std::move(buffer));
  return memory;
}

int emu_free(Device *device, void *address) {
  for (auto it = device->buffers.begin(); it != device->buffers.end(); ++it)
    if ((*it)->begin == reinterpret_cast<uintptr_t>(address)) {
      device->buffers.erase(it);
      return 0;
    }
  device->error = "free of an address that was not allocated, or is freed already";
  return 1;
}

static void mark_written(Buffer &buffer, uintptr_t address, size_t bytes) {
  if (bytes == 0) return;
  for (size_t i = buffer.cell_of(address), last = buffer.cell_of(address + bytes - 1); i <= last; i++) buffer.cells[i].written = true;
}

int emu_write(Device *device, void *to, const void *host, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  Buffer *buffer = device->holding(address, bytes, "upload");
  if (!buffer) return 1;
  memcpy(to, host, bytes);
  mark_written(*buffer, address, bytes);
  return 0;
}

int emu_zero(Device *device, void *to, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(to);
  Buffer *buffer = device->holding(address, bytes, "clearing");
  if (!buffer) return 1;
  memset(to, 0, bytes);
  mark_written(*buffer, address, bytes);
  return 0;
}

int emu_read(Device *device, void *host, const void *from, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(from);
  Buffer *buffer = device->holding(address, bytes, "download");
  if (!buffer) return 1;
  if (bytes) {
    for (size_t i = buffer->cell_of(address), last = buffer->cell_of(address + bytes - 1); i <= last; i++)
      if (!buffer->cells[i].written) {
        device->error = format("download of memory that was never written: element %zu of %zu", i, buffer->cell_of(buffer->end));
        return 1;
      }
  }
  memcpy(host, from, bytes);
  return 0;
}

// ---- what -fsanitize=thread calls before each load and store of a kernel
namespace {

inline void hook(const void *address, size_t bytes, Access access, bool aligned, const void *return_address) {
  if (engine && engine->inside_kernel()) engine->access(address, bytes, access, aligned, relative_pc(return_address));
}

}  // namespace

#define EMU_HOOK(name, bytes, access, aligned) \
  void __tsan_##name(void *address) { hook(address, bytes, access, aligned, __builtin_return_address(0)); }
#define EMU_HOOKS(n)                                        \
  EMU_HOOK(read##n, n, Access::Read, true)                  \
  EMU_HOOK(write##n, n, Access::Write, true)                \
  EMU_HOOK(volatile_read##n, n, Access::Read, true)         \
  EMU_HOOK(volatile_write##n, n, Access::Write, true)       \
  EMU_HOOK(unaligned_read##n, n, Access::Read, false)       \
  EMU_HOOK(unaligned_write##n, n, Access::Write, false)     \
  EMU_HOOK(unaligned_volatile_read##n, n, Access::Read, false) \
  EMU_HOOK(unaligned_volatile_write##n, n, Access::Write, false)

extern "C" {
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
void __tsan_read_range(void *address, size_t bytes) { hook(address, bytes, Access::Read, false, __builtin_return_address(0)); }
void __tsan_write_range(void *address, size_t bytes) { hook(address, bytes, Access::Write, false, __builtin_return_address(0)); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void *, void *) {}
void __tsan_init() {}
}
