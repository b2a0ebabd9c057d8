// Marks the `count` scores of largest magnitude.
//
//   mask[i] = 1 where |scores[i]| is among the `count` largest; of equal ones the lowest indices are taken.
//
// NaN counts as larger than infinity, and all NaN as equal. No byte is read or written outside the arguments.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

constexpr int kMaskChunk = 4096;  // scores of a GPU block; vidkernels/ops/top_k_mask/op.py says the same
constexpr int kMaskDigits = 4, kMaskBins = 256;

struct TopKMask {
  const void* scores;  // [N], float32, float16 or bfloat16
  uint8_t* mask;       // [N], 0 or 1
  uint32_t* scratch;   // GPU: [scratch_size()]
  int64_t length, count;
  Element element;

  int64_t chunks() const { return (length + kMaskChunk - 1) / kMaskChunk; }
  /// Histograms of four digits, prefix and remainder after each, ties of each chunk.
  int64_t scratch_size() const { return kMaskDigits * kMaskBins + 2 * (kMaskDigits + 1) + chunks(); }
};

/// Integers in the order of the magnitudes.
VK_HD uint32_t mask_key(float score) {
  const uint32_t bits = bit_cast<uint32_t>(score) & 0x7fffffffu;
  return bits < 0x7f800001u ? bits : 0x7f800001u;
}

VK_CPU_KERNEL(top_k_mask, (const TopKMask& a))

void top_k_mask_cuda(const TopKMask& a, void* stream);

}  // namespace vk
