// Which ellipses touch which tile of which image, in ascending order, in memory that stays proportional to the number
// of ellipses: one that touches more than kWide tiles goes to a list of wide ones, which every tile walks too.
//
// The lists do not depend on the number of threads: each thread counts and then fills the part of a contiguous range
// of ellipses.
#pragma once
#include <algorithm>
#include <vector>

#include "core/ellipse.h"
#include "core/parallel.h"

namespace vk {
namespace {

constexpr int kTile = 64;                    // pixels along each side of a tile
constexpr int kTileBlocks = kTile / kBlock;  // 16: the block rows of a tile fill one vector

class TileLists {
 public:
  static constexpr int kWide = 16;

  /// offsets: [images + 1], the ellipses of each image; null: one image with all of them.
  TileLists(const Ellipse* ellipses, int64_t count, const int64_t* offsets, int64_t images, int64_t height,
            int64_t width)
      : ellipses_(ellipses), columns_(int((width + kTile - 1) / kTile)), rows_(int((height + kTile - 1) / kTile)) {
    const int64_t whole[2] = {0, count};
    if (!offsets) offsets = whole;
    const int64_t tiles = images * columns_ * rows_;
    wide_.resize(size_t(images));
    start_.assign(size_t(tiles) + 1, 0);
    const int parts = count < 4096 ? 1 : max_threads();
    std::vector<std::vector<int32_t>> cursor(size_t(parts), std::vector<int32_t>(size_t(tiles), 0));
    const auto visit = [&](int part, auto&& one, auto&& wide) {
      const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
      int64_t image = 0;
      for (int64_t i = begin; i < end; ++i) {
        while (i >= offsets[image + 1]) ++image;
        const Range x = tile_range(ellipses[i].x, ellipses[i].half_width, columns_);
        const Range y = tile_range(ellipses[i].y, ellipses[i].half_height, rows_);
        if (x.first > x.last || y.first > y.last) continue;
        if ((x.last - x.first + 1) * (y.last - y.first + 1) > kWide) {
          wide(image, i);
          continue;
        }
        for (int r = y.first; r <= y.last; ++r)
          for (int c = x.first; c <= x.last; ++c) one((image * rows_ + r) * columns_ + c, i);
      }
    };
    std::vector<std::vector<std::pair<int64_t, int32_t>>> wide_parts{size_t(parts)};
    parallel_for(parts, 1, [&](int64_t p0, int64_t p1) {
      for (int64_t p = p0; p < p1; ++p)
        visit(
            int(p), [&](int64_t tile, int64_t) { ++cursor[size_t(p)][size_t(tile)]; },
            [&](int64_t image, int64_t i) { wide_parts[size_t(p)].push_back({image, int32_t(i)}); });
    });
    int64_t total = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      start_[size_t(t)] = total;
      for (auto& c : cursor) {
        const int32_t n = c[size_t(t)];
        c[size_t(t)] = int32_t(total - start_[size_t(t)]);
        total += n;
      }
    }
    start_[size_t(tiles)] = total;
    for (const auto& part : wide_parts)
      for (const auto& [image, i] : part) wide_[size_t(image)].push_back(i);
    items_.resize(size_t(total));
    parallel_for(parts, 1, [&](int64_t p0, int64_t p1) {
      for (int64_t p = p0; p < p1; ++p)
        visit(
            int(p),
            [&](int64_t tile, int64_t i) {
              items_[size_t(start_[size_t(tile)] + cursor[size_t(p)][size_t(tile)]++)] = int32_t(i);
            },
            [](int64_t, int64_t) {});
    });
  }

  int columns() const { return columns_; }
  int rows() const { return rows_; }
  int64_t tiles_per_image() const { return int64_t(columns_) * rows_; }

  /// f(position of the ellipse) for all that may touch the tile, ascending. f returns false to stop.
  template <class F>
  void for_each(int64_t tile, F f) const {
    const int32_t *item = items_.data() + start_[size_t(tile)], *end = items_.data() + start_[size_t(tile) + 1];
    const std::vector<int32_t>& wide = wide_[size_t(tile / tiles_per_image())];
    for (int32_t w : wide) {
      while (item < end && *item < w) {
        if (item + 4 < end) __builtin_prefetch(ellipses_ + item[4]);
        if (!f(*item++)) return;
      }
      if (!f(w)) return;
    }
    while (item < end) {
      if (item + 4 < end) __builtin_prefetch(ellipses_ + item[4]);
      if (!f(*item++)) return;
    }
  }

  /// How many ellipses for_each may visit in that tile (an upper bound).
  int64_t count(int64_t tile) const {
    return start_[size_t(tile) + 1] - start_[size_t(tile)] + int64_t(wide_[size_t(tile / tiles_per_image())].size());
  }

 private:
  static Range tile_range(float centre, float half, int tiles) {
    const Range b = block_range(centre, half, 0, tiles * kTileBlocks - 1);
    return b.first > b.last ? b : Range{b.first / kTileBlocks, b.last / kTileBlocks};
  }
  const Ellipse* ellipses_;
  int columns_, rows_;
  std::vector<int64_t> start_;              // [tiles + 1]
  std::vector<int32_t> items_;              // positions of ellipses, tile by tile
  std::vector<std::vector<int32_t>> wide_;  // positions, image by image
};

}  // namespace
}  // namespace vk
