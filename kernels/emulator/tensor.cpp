// tensor.cpp - what a warp does together on 8 x 8 and 16 x 16 pieces: ldmatrix, stmatrix and mma.sync.
//
// Which lane holds which number is as the PTX manual draws it ("Matrix fragments for mma.m16n8k16", "ldmatrix", "stmatrix"): lane 4g + t holds, of each
// 8 x 8 piece, columns 2t and 2t + 1 of row g.
#include <cstring>

#include "engine.hpp"

namespace emu {
namespace {

constexpr uint32_t WHOLE = 0xffffffffu;

struct LoadOperand {
  const uint8_t *row;
  uint32_t *out;
};

// Calls each(thread, its operand, which of its 16-bit halves, place) for the numbers of four pieces, whose rows' addresses the lanes give.
template <class Operand, class Each>
void each_number(Warp &warp, const char *name, bool transposed, uint32_t pc, const Each &each) {
  const auto row = [&](uint32_t i) { return static_cast<Operand *>(warp.lanes[i]->operand)->row; };
  for (uint32_t i = 0; i < 32; i++)
    if (reinterpret_cast<uintptr_t>(row(i)) % 16 != 0)
      engine->fail(format("%s: the address of a row is a multiple of 16, by %s at %s", name, engine->name(*warp.lanes[i]).c_str(), at(pc).c_str()));
  for (uint32_t lane = 0; lane < 32; lane++)
    for (uint32_t half = 0; half < 8; half++) {
      const uint32_t along = lane % 4 * 2 + half % 2, across = lane / 4;
      const auto place = row(half / 2 * 8 + (transposed ? along : across)) + 2 * (transposed ? across : along);
      each(*warp.lanes[lane], *static_cast<Operand *>(warp.lanes[lane]->operand), half, place);
    }
}

// Each number is a read of the lane that receives it, wherever its address came from: so a row that was written without a meeting of the
// two lanes is found.
template <bool TRANSPOSED>
void complete_load(Warp &warp, uint32_t) {
  const char *const name = TRANSPOSED ? "ldmatrix.trans" : "ldmatrix";
  const uint32_t pc = engine->current().waiting_pc;
  each_number<LoadOperand>(warp, name, TRANSPOSED, pc, [&](Thread &thread, LoadOperand &own, uint32_t half, const uint8_t *from) {
    engine->access_shared(thread, from, 2, Access::Read, pc, name);
    memcpy(reinterpret_cast<uint16_t *>(own.out) + half, from, 2);
  });
}

struct StoreOperand {
  uint8_t *row;
  const uint32_t *in;
};

// Each number is a write of the lane that had it.
template <bool TRANSPOSED>
void complete_store(Warp &warp, uint32_t) {
  const char *const name = TRANSPOSED ? "stmatrix.trans" : "stmatrix";
  const uint32_t pc = engine->current().waiting_pc;
  each_number<StoreOperand>(warp, name, TRANSPOSED, pc, [&](Thread &thread, const StoreOperand &own, uint32_t half, uint8_t *to) {
    engine->access_shared(thread, to, 2, Access::Write, pc, name);
    memcpy(to, reinterpret_cast<const uint16_t *>(own.in) + half, 2);
  });
}

struct MultiplyOperand {
  float *d;
  const uint32_t *a;
  uint32_t b[2];
};

double low(uint32_t pair) { return from_bits<float>(pair << 16); }
double high(uint32_t pair) { return from_bits<float>(pair & 0xffff0000u); }

// Whether all is zero, and whether all is finite, in a line of 16 numbers.
struct Line {
  bool zero = true, finite = true;
  void take(uint32_t pair) {
    zero &= (pair & 0x7fff7fffu) == 0;
    finite &= (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u;
  }
};

// Sums in f64 and rounds once: at least as exact as the hardware, whose way of rounding is not published. Products with a line of zeros, of
// which tiles at the edge of a matrix are full, are not formed.
void complete_multiply(Warp &warp, uint32_t) {
  double a[16][16], b[8][16];
  Line rows[16], columns[8];
  for (uint32_t lane = 0; lane < 32; lane++) {
    const auto &own = *static_cast<MultiplyOperand *>(warp.lanes[lane]->operand);
    const uint32_t g = lane / 4, t = lane % 4 * 2;
    for (uint32_t piece = 0; piece < 4; piece++) {
      double *at = &a[g + piece % 2 * 8][t + piece / 2 * 8];
      at[0] = low(own.a[piece]);
      at[1] = high(own.a[piece]);
      rows[g + piece % 2 * 8].take(own.a[piece]);
    }
    for (uint32_t piece = 0; piece < 2; piece++) {
      b[g][t + piece * 8] = low(own.b[piece]);
      b[g][t + piece * 8 + 1] = high(own.b[piece]);
      columns[g].take(own.b[piece]);
    }
  }
  for (uint32_t lane = 0; lane < 32; lane++) {
    float *d = static_cast<MultiplyOperand *>(warp.lanes[lane]->operand)->d;
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      const double *x = a[row], *y = b[column];
      double sum = d[i] + 0.0;
      if ((rows[row].zero && columns[column].finite) || (columns[column].zero && rows[row].finite)) {
        d[i] = static_cast<float>(sum);
        continue;
      }
      for (uint32_t k = 0; k < 16; k++) sum += x[k] * y[k];
      d[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void load_matrices(uint32_t (&out)[4], const void *row, bool transposed) {
  const uint32_t pc = EMU_CALLER;
  LoadOperand own{static_cast<const uint8_t *>(row), out};
  engine->current().waiting_pc = pc;
  if (transposed) collective("ldmatrix.trans", WHOLE, &own, complete_load<true>, pc);
  else collective("ldmatrix", WHOLE, &own, complete_load<false>, pc);
}

void store_matrices(void *row, const uint32_t (&in)[4], bool transposed) {
  const uint32_t pc = EMU_CALLER;
  StoreOperand own{static_cast<uint8_t *>(row), in};
  engine->current().waiting_pc = pc;
  if (transposed) collective("stmatrix.trans", WHOLE, &own, complete_store<true>, pc);
  else collective("stmatrix", WHOLE, &own, complete_store<false>, pc);
}

void multiply_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MultiplyOperand own{d, a, {b0, b1}};
  collective("mma.m16n8k16", WHOLE, &own, complete_multiply, EMU_CALLER);
}

}  // namespace emu
