// Masks from a field of 32-bit scores: of `length` candidates the `count` with the smallest (score, position) are
// masked. Positions differ, so the count is always exact; both index lists ascend.
//
//   token axis of one sample:  groups runs of `length` tokens, each with its own selection,
//                              or one selection of `length` cells that `repeat` frames share
//   tube          (1, H*W, T)    score = random word of the cell
//   random        (1, T*H*W, 1)  score = random word of the token
//   running_cell  (T, H*W, 1)    score = place of the cell in its 2 x 2 cycle (2 bits), random (30 bits)
//   block         (1, H*W, T)    score = outside all rectangles (1 bit), random (31 bits)
//   scores        (G, N/G, 1)    score = the given float's bits in an order-preserving form
//
// Random words (csrc/core/philox.h, key = seed): cell p of group g of sample b is word p % 4 of counter
// (p / 4, g, b, kCells); draw j of sample b is counter (j, 0, b, kSample).
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/philox.h"

namespace vk {

enum class MaskKind : int { tube, random, running_cell, block, scores };
constexpr uint32_t kCells = 0, kSample = 1;
constexpr int kMaxBlocks = 128;

struct TokenMask {
  MaskKind kind;
  const int64_t* seed;    // [1]; null for scores
  const float* scores;    // [B, groups * length]; null for the random kinds
  const int32_t* counts;  // [B], masked candidates of each selection, held to [low, high]; null: all `high`
  int32_t* visible;       // [B, groups * repeat * (length - low)], -1 behind the last
  int32_t* masked;        // [B, groups * repeat * high], -1 behind the last
  int64_t batch, groups, length, repeat, low, high;
  int32_t height, width;        // of the cells, for running_cell and block
  int32_t blocks, block_sizes;  // rectangles per sample; choices of their size
  int32_t sizes[64];            // height and width of each choice
  bool largest;                 // scores: mask the largest
};

/// Place of cell (y, x) in the cycle of four, before the frame and the phase are added.
VK_HD uint32_t running_cell_place(uint32_t y, uint32_t x, int32_t height, int32_t width) {
  return height == 1 || width == 1 ? x + y : y % 2 * 2 + x % 2;
}

/// Smaller comes first in masking; NaN ranks as the lowest score, both zeros are one score.
VK_HD uint32_t score_key(float score, bool largest) {
  uint32_t bits = bit_cast<uint32_t>(score);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    bits = 0;  // NaN
  else if (bits & 0x80000000u)
    bits = bits == 0x80000000u ? 0x80000000u : ~bits;
  else
    bits |= 0x80000000u;
  return largest ? ~bits : bits;
}

VK_CPU_KERNEL(token_mask, (const TokenMask& a))

void token_mask_cuda(const TokenMask& a, void* stream);

}  // namespace vk
