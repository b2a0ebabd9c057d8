// How well blocks of one picture lie on another after a shift each, and which way to go from there: what a step of
// Lucas and Kanade's search needs.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

struct BlockSums {
  const float* before;   // [H, W]
  const float* after;    // [H, W], read bilinearly; pixels beyond its edge are those at the edge
  const float* across;   // [H, W], slope of `before` along x
  const float* down;     // [H, W], and along y
  const float* vectors;  // [2, R, C] (x, y) in pixels; R and C are H and W over `side`, rounded up
  float* out;            // [3, R, C]: means over each block of across * off, down * off and |off|,
                         // where off(p) = before(p) - after(p + vector)
  int64_t height, width, side;
};

VK_CPU_KERNEL(block_sums, (const BlockSums& a))

}  // namespace vk
