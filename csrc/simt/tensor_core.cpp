// mma.sync and ldmatrix: gather the fragments of 32 lanes, compute, hand out.
#include <cstring>

#include "core/half.h"
#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

struct Fragments {
  Mma kind;
  const uint32_t *a, *b;
  const float* c;
};

float half_of(Mma kind, uint32_t pair, int high) {
  const auto bits = uint16_t(high ? pair >> 16 : pair);
  return kind == Mma::m16n8k16_bf16 ? vk::to_float(vk::bf16{bits}) : vk::to_float(vk::f16{bits});
}

/// The hardware looks at the upper 19 bits of a tf32 operand.
float tf32(uint32_t bits) { return vk::bit_cast<float>(bits & 0xffffe000u); }

bool whole_warp(Lane* lanes, uint32_t mask) {
  if (mask == 0xffffffffu) return true;
  if (first_sight("collective", lanes[__builtin_ctz(mask)].pc))
    report("collective", lanes[__builtin_ctz(mask)].pc, "a tensor-core instruction needs all 32 lanes of a warp");
  return false;
}

void combine_mma(Lane* lanes, uint32_t mask) {
  if (!whole_warp(lanes, mask)) return;
  float a[16][16], b[16][8];
  const Mma kind = static_cast<const Fragments*>(lanes[0].in)->kind;
  const int depth = kind == Mma::m16n8k8_tf32 ? 8 : 16;
  for (int l = 0; l < 32; ++l) {
    const auto& f = *static_cast<const Fragments*>(lanes[l].in);
    const int g = l / 4, t = l % 4;
    if (kind == Mma::m16n8k8_tf32) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = tf32(f.a[i]);
      for (int i = 0; i < 2; ++i) b[t + i * 4][g] = tf32(f.b[i]);
      continue;
    }
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + i / 2 * 8 + h] = half_of(kind, f.a[i], h);
      for (int i = 0; i < 2; ++i) b[2 * t + i * 8 + h][g] = half_of(kind, f.b[i], h);
    }
  }
  for (int l = 0; l < 32; ++l) {
    const float* c = static_cast<const Fragments*>(lanes[l].in)->c;
    float d[4];
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      d[i] = c[i];
      for (int k = 0; k < depth; ++k) d[i] += a[row][k] * b[k][column];
    }
    std::memcpy(lanes[l].out, d, sizeof d);  // may be the lane's own c
  }
}

struct IntegerFragments {
  const uint32_t *a, *b;
  const int32_t* c;
};

/// 16 x 32 bytes times 32 x 8 signed bytes; sums wrap as the hardware's do.
void combine_mma_u8s8(Lane* lanes, uint32_t mask) {
  if (!whole_warp(lanes, mask)) return;
  uint8_t a[16][32];
  int8_t b[8][32];
  for (int l = 0; l < 32; ++l) {
    const auto& f = *static_cast<const IntegerFragments*>(lanes[l].in);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) std::memcpy(&a[g + i % 2 * 8][4 * t + i / 2 * 16], &f.a[i], 4);
    for (int i = 0; i < 2; ++i) std::memcpy(&b[g][4 * t + i * 16], &f.b[i], 4);
  }
  for (int l = 0; l < 32; ++l) {
    const int32_t* c = static_cast<const IntegerFragments*>(lanes[l].in)->c;
    uint32_t d[4];
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      d[i] = uint32_t(c[i]);
      for (int k = 0; k < 32; ++k) d[i] += uint32_t(int32_t(a[row][k]) * int32_t(b[column][k]));
    }
    std::memcpy(lanes[l].out, d, sizeof d);  // may be the lane's own c
  }
}

struct Rows {
  const void* row;
  int matrices;
  bool transposed;
};

void combine_ldmatrix(Lane* lanes, uint32_t mask) {
  if (!whole_warp(lanes, mask)) return;
  const int matrices = static_cast<const Rows*>(lanes[0].in)->matrices;
  const bool transposed = static_cast<const Rows*>(lanes[0].in)->transposed;
  for (int m = 0; m < matrices; ++m) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(tile[r], static_cast<const Rows*>(lanes[8 * m + r].in)->row, 16);
    for (int l = 0; l < 32; ++l) {
      const int row = l / 4, column = l % 4 * 2;
      const uint16_t low = transposed ? tile[column][row] : tile[row][column];
      const uint16_t high = transposed ? tile[column + 1][row] : tile[row][column + 1];
      static_cast<uint32_t*>(lanes[l].out)[m] = uint32_t(low) | uint32_t(high) << 16;
    }
  }
}

}  // namespace

void mma(Mma kind, const uint32_t* a, const uint32_t* b, const float* c, float* d, Where where) {
  const Fragments f{kind, a, b, c};
  run_collective(0xffffffffu, combine_mma, &f, d, where, __builtin_return_address(0));
}

void mma_u8s8(const uint32_t* a, const uint32_t* b, const int32_t* c, int32_t* d, Where where) {
  const IntegerFragments f{a, b, c};
  run_collective(0xffffffffu, combine_mma_u8s8, &f, d, where, __builtin_return_address(0));
}

void ldmatrix(const void* row, int matrices, bool transposed, uint32_t* out, Where where) {
  const void* pc = __builtin_return_address(0);
  Worker* w = worker();
  if (w->index(w->current) % 32 < 8 * matrices) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
      if (first_sight("misaligned", pc)) report("misaligned", pc, "ldmatrix of a row that is not 16-byte aligned");
      abandon();
    }
    if constexpr (kTrace)
      if (!w->shared.contains(row)) {
        if (first_sight("out-of-bounds", pc)) report("out-of-bounds", pc, "ldmatrix of a row outside of shared memory");
        abandon();
      }
    access(row, 16, Kind::load, pc);
  }
  const Rows rows{row, matrices, transposed};
  run_collective(0xffffffffu, combine_ldmatrix, &rows, out, where, pc);
}

}  // namespace simt
