// Which ellipses touch which tile of which image, in ascending order, in memory that stays proportional to the number
// of ellipses: one that touches more than kWide tiles goes to a list of wide ones, which every tile walks too.
//
// Buckets do not depend on the number of threads: each thread counts, and then fills, for a contiguous range of items.
#pragma once
#include <algorithm>
#include <vector>

#include "core/ellipse.h"
#include "core/parallel.h"
#include "core/scratch.h"

namespace vk {
namespace {

// A tile in blocks: with three or four numbers for each pixel it stays in the nearest cache.
constexpr int kTileColumns = 16, kTileRows = 16, kTileArea = kTileColumns * kTileRows;

/// Items 0..count-1 sorted into buckets, ascending within each. visit(begin, end, put, again) calls put(bucket, item)
/// for every place of the items in [begin, end), twice with the same outcome; `again` the second time.
class Buckets {
 public:
  template <class Visit>
  Buckets(int64_t count, int64_t buckets, int64_t most_places, Visit visit)
      : start_(size_t(buckets) + 1), items_(size_t(std::max<int64_t>(1, count * most_places))) {
    const int parts = count < 4096 ? 1 : max_threads();
    std::vector<int32_t> cursor(size_t(parts * buckets), 0);
    const auto each_part = [&](auto f) {
      parallel_for(parts, 1, [&](int64_t p0, int64_t p1) {
        for (int64_t p = p0; p < p1; ++p) f(cursor.data() + p * buckets, count * p / parts, count * (p + 1) / parts);
      });
    };
    each_part([&](int32_t* own, int64_t begin, int64_t end) {
      visit(begin, end, [own](int64_t bucket, int64_t) { ++own[bucket]; }, false);
    });
    int32_t total = 0;
    for (int64_t b = 0; b < buckets; ++b) {
      start_[size_t(b)] = total;
      for (int p = 0; p < parts; ++p) {
        int32_t& c = cursor[size_t(p * buckets + b)];
        const int32_t n = c;
        c = total;
        total += n;
      }
    }
    start_[size_t(buckets)] = total;
    each_part([&](int32_t* own, int64_t begin, int64_t end) {
      visit(
          begin, end, [own, this](int64_t bucket, int64_t item) { items_[size_t(own[bucket]++)] = int32_t(item); },
          true);
    });
  }
  const int32_t* begin(int64_t bucket) const { return items_.data() + start_[size_t(bucket)]; }
  const int32_t* end(int64_t bucket) const { return items_.data() + start_[size_t(bucket) + 1]; }
  int64_t total() const { return start_.back(); }

 private:
  std::vector<int32_t> start_;  // [buckets + 1]
  Scratch<int32_t> items_;
};

/// The tiles of an image of given size.
struct TileGrid {
  TileGrid(int64_t height, int64_t width)
      : block_columns(int((width + kBlock - 1) / kBlock)),
        block_rows(int((height + kBlock - 1) / kBlock)),
        columns((block_columns + kTileColumns - 1) / kTileColumns),
        rows((block_rows + kTileRows - 1) / kTileRows) {}
  int64_t tiles() const { return int64_t(columns) * rows; }
  int block_columns, block_rows, columns, rows;
};

/// A tile in blocks, inclusive.
struct Tile {
  Tile(int row0, int row1, int column0, int column1) : row0(row0), row1(row1), column0(column0), column1(column1) {}
  Tile(const TileGrid& grid, int64_t t)
      : row0(int(t / grid.columns) * kTileRows),
        row1(std::min(row0 + kTileRows, grid.block_rows) - 1),
        column0(int(t % grid.columns) * kTileColumns),
        column1(std::min(column0 + kTileColumns, grid.block_columns) - 1) {}
  int row0, row1, column0, column1;
};

class TileLists {
 public:
  static constexpr int kWide = 16;

  /// offsets: [images + 1], the ellipses of each image; null: one image with all of them.
  TileLists(const Ellipse* ellipses, int64_t count, const int64_t* offsets, int64_t images, const TileGrid& grid)
      : ellipses_(ellipses),
        grid_(grid),
        images_(images),
        boxes_(size_t(count)),
        buckets_(count, images * (grid.tiles() + 1), kWide, [&](int64_t begin, int64_t end, auto put, bool again) {
          if (!again) find_boxes(begin, end);
          visit(begin, end, offsets, put);
        }) {}

  const TileGrid& grid() const { return grid_; }

  /// f(position of the ellipse) for all that may touch the tile, ascending. f returns false to stop. soon(position) is
  /// called some time before, to fetch what f will read besides the ellipse.
  template <class F, class Soon>
  void for_each(int64_t tile, F f, Soon soon) const {
    const int32_t *item = buckets_.begin(tile), *end = buckets_.end(tile);
    const int64_t list = wide_list(tile / grid_.tiles());
    for (const int32_t* wide = buckets_.begin(list); wide < buckets_.end(list); ++wide) {
      for (; item < end && *item < *wide; ++item)
        if (!f(*item)) return;
      if (!f(*wide)) return;
    }
    for (; item < end; ++item) {
      const int32_t next = item[item + kAhead < end ? kAhead : 0];
      __builtin_prefetch(ellipses_ + next);
      soon(next);
      if (!f(*item)) return;
    }
  }

  template <class F>
  void for_each(int64_t tile, F f) const {
    for_each(tile, f, [](int32_t) {});
  }

  /// How many ellipses for_each may visit in that tile (an upper bound).
  int64_t count(int64_t tile) const {
    const int64_t list = wide_list(tile / grid_.tiles());
    return buckets_.end(tile) - buckets_.begin(tile) + (buckets_.end(list) - buckets_.begin(list));
  }

 private:
  static constexpr int kAhead = 8;
  struct Box {
    int16_t x0, x1, y0, y1;  // tiles, inclusive; an image has at most 2^20 / 64 along a side
  };
  Range columns_of(const Ellipse& e) const { return tile_range(e.x, e.half_width, grid_.columns, kTileColumns); }
  Range rows_of(const Ellipse& e) const { return tile_range(e.y, e.half_height, grid_.rows, kTileRows); }
  static Range tile_range(float centre, float half, int tiles, int blocks) {
    const Range b = block_range(centre, half, 0, tiles * blocks - 1);
    return b.first > b.last ? b : Range{b.first / blocks, b.last / blocks};
  }
  int64_t wide_list(int64_t image) const { return images_ * grid_.tiles() + image; }
  void find_boxes(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      const Range x = columns_of(ellipses_[i]), y = rows_of(ellipses_[i]);
      boxes_[size_t(i)] = {int16_t(x.first), int16_t(x.last), int16_t(y.first), int16_t(y.last)};
    }
  }
  template <class Put>
  void visit(int64_t begin, int64_t end, const int64_t* offsets, Put put) const {
    int64_t image = 0;
    for (int64_t i = begin; i < end; ++i) {
      while (offsets && i >= offsets[image + 1]) ++image;
      const Box box = boxes_[size_t(i)];
      const Range x{box.x0, box.x1}, y{box.y0, box.y1};
      if (x.first > x.last || y.first > y.last) continue;
      if ((x.last - x.first + 1) * (y.last - y.first + 1) > kWide) {
        put(wide_list(image), i);
        continue;
      }
      for (int r = y.first; r <= y.last; ++r)
        for (int c = x.first; c <= x.last; ++c) put(image * grid_.tiles() + int64_t(r) * grid_.columns + c, i);
    }
  }

  const Ellipse* ellipses_;
  TileGrid grid_;
  int64_t images_;
  Scratch<Box> boxes_;
  Buckets buckets_;  // a list of positions for each tile, then one of the wide ellipses of each image
};

}  // namespace
}  // namespace vk
