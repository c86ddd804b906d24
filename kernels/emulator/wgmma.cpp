// wgmma.cpp - products by a warpgroup: operands in shared memory as descriptors tell, sums in registers, done as late as they may be.
//
// Each of the four warps forms its 16 rows of the 64. A product reads its operands when it is issued and when it is waited for: whatever happens to
// them in between is found. Its sums are NaN until then. Layouts are those of the PTX manual ("Matrix fragments for wgmma.mma_async", "Strides"),
// with the 128-byte swizzle: by terms (K-major), 8 rows of 64 terms are 1024 bytes, the next 8 follow at the second stride; by rows (MN-major),
// 8 terms of 64 rows are 1024 bytes, the next 8 terms follow at the second stride, the next 64 rows at the first.
#include <cstring>

#include "engine.hpp"

namespace emu {
namespace {

constexpr uint32_t WHOLE = 0xffffffffu;

// Where number (row, term) of an operand lies.
struct Operand {
  const uint8_t *arena;
  uint64_t descriptor;
  bool by_rows;

  const uint8_t *at(uint32_t row, uint32_t term) const {
    const uint32_t start = (descriptor & 0x3fff) << 4, first = (descriptor >> 16 & 0x3fff) << 4, second = (descriptor >> 32 & 0x3fff) << 4;
    const uint32_t place = by_rows ? start + row / 64 * first + term / 8 * second + term % 8 * 128 + row % 64 * 2
                                   : start + row / 8 * second + row % 8 * 128 + term * 2;
    return arena + (place ^ (place >> 3 & 0x70));
  }
};

// The lanes of a warp read a product's operands: its own 16 rows of a, all of b.
template <class Each>
void each_number(const Block &block, const PendingProduct &p, uint32_t warp, const Each &each) {
  const Operand a{block.shared.base(), p.a, p.a_by_rows}, b{block.shared.base(), p.b, p.b_by_rows};
  if (!p.a_registers)
    for (uint32_t row = 0; row < 16; row++)
      for (uint32_t term = 0; term < 16; term++) each(0, row, term, a.at(warp % 4 * 16 + row, term));
  for (uint32_t row = 0; row < p.columns; row++)
    for (uint32_t term = 0; term < 16; term++) each(1, row, term, b.at(row, term));
}

// Products are the warp's: its first lane stands for it. All lanes must know that the operands are there. Of each 16 bytes the first number is
// looked at, or all: when the product is carried out, once in the warpgroup.
void check_reads(Warp &warp, const PendingProduct &p, bool all) {
  Thread &first = *warp.lanes[0];
  each_number(*first.block, p, first.index / 32, [&](int, uint32_t row, uint32_t term, const uint8_t *place) {
    if (!all && reinterpret_cast<uintptr_t>(place) % 16 != 0) return;
    engine->access_shared(first, place, 2, Access::Read, p.pc, "wgmma");
    if (!engine->options.check) return;
    const Cell &cell = *first.block->shared.cell(reinterpret_cast<uintptr_t>(place));
    engine->races.check_proxy(first, cell, "a product", p.pc);
    engine->races.check_known(*warp.lanes[(row * 2 + term / 8) % 32], cell, p.pc);
  });
}

float number(const uint8_t *place) {
  uint16_t bits;
  memcpy(&bits, place, 2);
  return from_bits<float>((uint32_t)bits << 16);
}

// What a lane holds between issue and wait: the accumulator itself is NaN.
void hide(PendingProduct &p) {
  p.sums.assign(p.d, p.d + p.columns / 2);
  for (uint32_t i = 0; i < p.columns / 2; i++) p.d[i] = __builtin_nanf("");
}

void carry_out(Warp &warp, size_t index) {
  const PendingProduct &first = warp.lanes[0]->products[index];
  const uint32_t columns = first.columns;
  check_reads(warp, first, warp.lanes[0]->index / 32 % 4 == 0);
  static thread_local std::vector<double> a(16 * 16), b(256 * 16);
  each_number(*warp.lanes[0]->block, first, warp.lanes[0]->index / 32, [&](int which, uint32_t row, uint32_t term, const uint8_t *place) {
    (which ? b : a)[row * 16 + term] = number(place);
  });
  if (first.a_registers)
    for (uint32_t l = 0; l < 32; l++)
      for (uint32_t piece = 0; piece < 4; piece++) {
        const uint32_t pair = warp.lanes[l]->products[index].a_registers[piece];
        double *at = &a[(l / 4 + piece % 2 * 8) * 16 + l % 4 * 2 + piece / 2 * 8];
        at[0] = from_bits<float>(pair << 16), at[1] = from_bits<float>(pair & 0xffff0000u);
      }
  // Rows and columns of zeros, of which tiles at the edge of a matrix are full, add nothing to what is finite.
  const auto plain = [](const double *line, bool &zero) {
    bool finite = true;
    zero = true;
    for (uint32_t k = 0; k < 16; k++) zero &= line[k] == 0.0, finite &= line[k] - line[k] == 0.0;
    return finite;
  };
  bool row_zero[16], column_zero[256], finite = true;
  for (uint32_t row = 0; row < 16; row++) finite &= plain(&a[row * 16], row_zero[row]);
  for (uint32_t column = 0; column < columns; column++) finite &= plain(&b[column * 16], column_zero[column]);
  for (uint32_t l = 0; l < 32; l++) {
    PendingProduct &own = warp.lanes[l]->products[index];
    for (uint32_t i = 0; i < columns / 2; i++) {
      const uint32_t row = l / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + l % 4 * 2 + i % 2;
      double sum = own.keep ? (double)own.sums[i] + 0.0 : 0.0;
      const double *x = &a[row * 16], *y = &b[column * 16];
      if (!(finite && (row_zero[row] || column_zero[column])))
        for (uint32_t k = 0; k < 16; k++) sum += x[k] * y[k];
      own.sums[i] = static_cast<float>(sum);
    }
  }
}

void complete_issue(Warp &warp, uint32_t) {
  const PendingProduct &first = *static_cast<PendingProduct *>(warp.lanes[0]->operand);
  for (uint32_t l = 0; l < 32; l++) {
    Thread &lane = *warp.lanes[l];
    const PendingProduct &p = *static_cast<PendingProduct *>(lane.operand);
    const bool same = p.a == first.a && p.b == first.b && p.columns == first.columns && p.keep == first.keep && p.a_by_rows == first.a_by_rows &&
                      p.b_by_rows == first.b_by_rows;
    if (!same) engine->fail(format("wgmma: lanes of a warp differ in their descriptors, by %s at %s", engine->name(lane).c_str(), at(p.pc).c_str()));
    if (!lane.products_fenced)
      engine->fail(format("wgmma: no wgmma.fence since the sums were last touched, by %s at %s", engine->name(lane).c_str(), at(p.pc).c_str()));
    lane.products.push_back(p);
    PendingProduct &own = lane.products.back();
    // The sums so far: in the accumulator, or in the product before this one.
    bool pending = false;
    for (size_t i = 0; i + 1 < lane.products.size(); i++) pending |= lane.products[i].d == own.d;
    if (!pending) hide(own);
  }
  check_reads(warp, first, false);
}

struct WaitOperand {
  uint32_t pending;
};

void complete_wait(Warp &warp, uint32_t) {
  const uint32_t pending = static_cast<WaitOperand *>(warp.lanes[0]->operand)->pending;
  while (warp.lanes[0]->product_groups.size() > pending) {
    const uint32_t count = warp.lanes[0]->product_groups.front();
    for (uint32_t i = 0; i < count; i++) {
      carry_out(warp, 0);
      for (uint32_t l = 0; l < 32; l++) {
        Thread &lane = *warp.lanes[l];
        PendingProduct done = std::move(lane.products.front());
        lane.products.erase(lane.products.begin());
        // On to the next product with this accumulator, or to the thread.
        PendingProduct *next = nullptr;
        for (PendingProduct &p : lane.products)
          if (!next && p.d == done.d) next = &p;
        if (next) next->sums = std::move(done.sums);
        else memcpy(done.d, done.sums.data(), done.sums.size() * sizeof(float));
      }
    }
    for (uint32_t l = 0; l < 32; l++) warp.lanes[l]->product_groups.erase(warp.lanes[l]->product_groups.begin());
  }
  for (uint32_t l = 0; l < 32; l++) warp.lanes[l]->products_fenced = false;
}

void issue(PendingProduct product, const char *operands_at) {
  if ((!product.a_registers && product.a >> 62 != 1) || product.b >> 62 != 1)
    engine->fail("wgmma: the emulator knows the 128-byte swizzle alone, at " + at(product.pc));
  collective(operands_at, WHOLE, &product, complete_issue, product.pc);
}

}  // namespace

void wgmma_fence() { engine->current().products_fenced = true; }

void wgmma(float *d, uint32_t columns, uint64_t a, bool a_by_rows, uint64_t b, bool b_by_rows, bool keep) {
  issue({d, nullptr, a, b, columns, EMU_CALLER, a_by_rows, b_by_rows, keep, {}}, "wgmma.mma_async");
}

void wgmma_registers(float *d, uint32_t columns, const uint32_t *a, uint64_t b, bool b_by_rows, bool keep) {
  issue({d, a, 0, b, columns, EMU_CALLER, false, b_by_rows, keep, {}}, "wgmma.mma_async with registers");
}

void wgmma_commit() {
  Thread &thread = engine->current();
  uint32_t grouped = 0;
  for (const uint32_t n : thread.product_groups) grouped += n;
  thread.product_groups.push_back(static_cast<uint32_t>(thread.products.size()) - grouped);
}

void wgmma_wait(uint32_t pending) {
  WaitOperand own{pending};
  collective("wgmma.wait_group", WHOLE, &own, complete_wait, EMU_CALLER);
}

uint32_t shared_offset(const void *pointer) {
  const SharedMemory &shared = engine->current().block->shared;
  if (!shared.contains(reinterpret_cast<uintptr_t>(pointer))) engine->fail("an address outside shared memory, at " + at(EMU_CALLER));
  return static_cast<uint32_t>(static_cast<const uint8_t *>(pointer) - shared.base());
}

}  // namespace emu
