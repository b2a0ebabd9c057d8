// A thread owns a block. All its pixels have the same fractional shift, so a row of it is read at four fixed offsets
// with fixed weights; only blocks that reach over the edge of the picture look up each pixel's place.
#include <algorithm>
#include <cmath>

#include "core/parallel.h"
#include "ops/block_sums/block_sums.h"

namespace vk::VK_ISA {
namespace {

constexpr int kLanes = 8;

struct Lanes {
  float x[kLanes] = {}, y[kLanes] = {}, size[kLanes] = {};
};

float total(const float* lanes) {
  float sum = 0;
  for (int k = 0; k < kLanes; ++k) sum += lanes[k];
  return sum;
}

struct Block {
  int64_t x0, x1, y0, y1;
  float vx, vy;
};

inline void add(Lanes& to, int k, float off, float across, float down) {
  to.x[k] += across * off;
  to.y[k] += down * off;
  to.size[k] += std::fabs(off);
}

/// All four neighbours of every shifted pixel are in the picture.
void inside(const BlockSums& a, const Block& b, Lanes& sums) {
  const float floor_x = std::floor(b.vx), floor_y = std::floor(b.vy), fx = b.vx - floor_x, fy = b.vy - floor_y;
  const float w00 = (1 - fx) * (1 - fy), w01 = fx * (1 - fy), w10 = (1 - fx) * fy, w11 = fx * fy;
  const int64_t shift = int64_t(floor_y) * a.width + int64_t(floor_x);
  for (int64_t y = b.y0; y < b.y1; ++y) {
    const float* before = a.before + y * a.width;
    const float* across = a.across + y * a.width;
    const float* down = a.down + y * a.width;
    const float* upper = a.after + y * a.width + shift;
    const float* lower = upper + a.width;
    const auto one = [&](int64_t x, int k) {
      const float seen = w00 * upper[x] + w01 * upper[x + 1] + w10 * lower[x] + w11 * lower[x + 1];
      add(sums, k, before[x] - seen, across[x], down[x]);
    };
    int64_t x = b.x0;
    for (; x + kLanes <= b.x1; x += kLanes)
      for (int k = 0; k < kLanes; ++k) one(x + k, k);
    for (; x < b.x1; ++x) one(x, 0);
  }
}

void at_edge(const BlockSums& a, const Block& b, Lanes& sums) {
  for (int64_t y = b.y0; y < b.y1; ++y) {
    const float py = std::min(std::max(0.0f, float(y) + b.vy), float(a.height - 1));
    const int64_t row = std::min(int64_t(py), a.height - 1), next_row = std::min(row + 1, a.height - 1);
    const float fy = py - float(row);
    for (int64_t x = b.x0; x < b.x1; ++x) {
      const float px = std::min(std::max(0.0f, float(x) + b.vx), float(a.width - 1));
      const int64_t column = int64_t(px), next = std::min(column + 1, a.width - 1);
      const float fx = px - float(column);
      const float* upper = a.after + row * a.width;
      const float* lower = a.after + next_row * a.width;
      const float above = upper[column] + fx * (upper[next] - upper[column]);
      const float below = lower[column] + fx * (lower[next] - lower[column]);
      const int64_t at = y * a.width + x;
      add(sums, 0, a.before[at] - (above + fy * (below - above)), a.across[at], a.down[at]);
    }
  }
}

}  // namespace

void block_sums(const BlockSums& a) {
  const int64_t rows = (a.height + a.side - 1) / a.side, columns = (a.width + a.side - 1) / a.side;
  const int64_t blocks = rows * columns;
  parallel_for(blocks, std::max<int64_t>(1, 16384 / (a.side * a.side)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t x0 = i % columns * a.side, y0 = i / columns * a.side;
      const Block b{x0,           std::min(a.width, x0 + a.side), y0, std::min(a.height, y0 + a.side),
                    a.vectors[i], a.vectors[blocks + i]};
      Lanes sums;
      const bool whole = float(b.x0) + b.vx >= 0 && float(b.y0) + b.vy >= 0 && float(b.x1) + b.vx < float(a.width) &&
                         float(b.y1) + b.vy < float(a.height);
      if (whole)
        inside(a, b, sums);
      else
        at_edge(a, b, sums);
      const float share = 1.0f / float((b.x1 - b.x0) * (b.y1 - b.y0));
      a.out[i] = total(sums.x) * share;
      a.out[blocks + i] = total(sums.y) * share;
      a.out[2 * blocks + i] = total(sums.size) * share;
    }
  });
}

}  // namespace vk::VK_ISA
