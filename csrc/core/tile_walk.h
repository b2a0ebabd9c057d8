// The walk over one tile: its blocks of 4x4 pixels, what an ellipse weighs in each, and the way between blocks and rows
// of the image.
//
// The exponent is taken in sheared coordinates, X = dx and t = dy - slope dx, where it is k1 X^2 + k2 t^2: without the
// cross term nothing cancels, however thin and tilted the ellipse.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>

#include "core/tile_lists.h"

namespace vk {
namespace {

constexpr float kLn2 = 0.693147181f;

/// Memory as it comes.
template <class T>
class Room {
 public:
  explicit Room(int64_t n) : at_(new T[size_t(n)]) {}
  T* get() const { return at_.get(); }
  T& operator[](int64_t i) const { return at_[size_t(i)]; }

 private:
  std::unique_ptr<T[]> at_;
};

/// A tile in blocks, inclusive, and where it is.
struct ImageTile {
  int64_t image;
  int row, column;                   // of tiles
  int row0, row1, column0, column1;  // blocks, inclusive
  int block(int row, int column) const { return (row - row0) * kTileColumns + column - column0; }
};

inline ImageTile tile_of(int64_t t, const TileGrid& grid) {
  const int64_t place = t % grid.tiles();
  const Tile tile(grid, place);
  return {t / grid.tiles(), int(place / grid.columns), int(place % grid.columns), tile.row0, tile.row1, tile.column0,
          tile.column1};
}

constexpr float kFaint = -7.99435344f;  // log2(1 / 255): a weight below is not felt

/// log2 of the weight at (X, t) = lift + k1 X^2 + k2 t^2,   t = dy - slope X
struct Sheared {
  float k1, k2, slope, lift;
  explicit Sheared(const Ellipse& e)
      : k1(e.q1 * e.ka * e.ka / e.kc), k2(e.kc), slope(-0.5f * e.kb / e.kc), lift(kFaint - e.limit) {}
};

/// f(row, column, X, t, log2 of the weight) for the blocks of a tile that the ellipse touches. From one block of a row
/// to the next the logarithm takes two additions. Always inlined: what f sums up stays in registers.
template <class F>
[[gnu::always_inline]] inline void each_block(const Ellipse& e, const Sheared& k, const ImageTile& tile, F f) {
  const Range rows = block_range(e.y, e.half_height, tile.row0, tile.row1);
  if (rows.first > rows.last) return;
  alignas(64) int32_t left[16], right[16];
  block_spans(e, tile.row0, tile.column0, tile.column1, left, right);
  const V16 lane_x = load(kLaneX), lane_y = load(kLaneY), k1(k.k1), k2(k.k2), back(-k.slope), lift(k.lift);
  const V16 over(kBlock), down(-kBlock * k.slope);
  // The step from X to X + 4, and how it changes from block to block.
  const float bend = k.k1 + k.k2 * k.slope * k.slope;
  const V16 step_x(8.0f * k.k1), step_t(-8.0f * k.k2 * k.slope), step_1(16.0f * bend), bend_2(32.0f * bend);
  for (int r = rows.first; r <= rows.last; ++r) {
    const int first = left[r - tile.row0], last = right[r - tile.row0];
    if (first > last) continue;
    V16 x = lane_x + V16(float(kBlock * first) - e.x), t = madd(x, back, lane_y + V16(float(kBlock * r) - e.y));
    V16 log_weight = madd(k1 * x, x, madd(k2 * t, t, lift)), step = madd(step_x, x, madd(step_t, t, step_1));
    for (int b = first;; ++b) {
      f(r, b, x, t, log_weight);
      if (b == last) break;
      x = x + over;
      t = t + down;
      log_weight = log_weight + step;
      step = step + bend_2;
    }
  }
}

/// A Gaussian with a colour that is not finite is felt nowhere.
inline void hide_if_not_finite(const float* colors, int64_t channels, int64_t begin, int64_t end, Ellipse* ellipses) {
  for (int64_t i = begin; i < end; ++i) {
    const float* color = colors + ellipses[i].index * channels;
    float zero = 0;  // NaN if one of them is not finite
    for (int64_t ch = 0; ch < channels; ++ch) zero += color[ch] * 0.0f;
    if (zero != 0) ellipses[i].half_width = ellipses[i].half_height = -1;
  }
}

typedef float Quad __attribute__((vector_size(16)));

inline Quad load_quad(const V16* v, int row) {
  Quad q;
  std::memcpy(&q, reinterpret_cast<const float*>(v) + 4 * row, sizeof q);
  return q;
}

/// Row `row` of a block of C channels to its pixels in the image, and back; n < 4 pixels at the right edge.
template <int C>
inline void put_row(const V16* block, int row, int64_t channels, int64_t n, float* out) {
  if constexpr (C == 3) {
    if (n == kBlock) {
      const Quad r = load_quad(block, row), g = load_quad(block + 1, row), b = load_quad(block + 2, row);
      const Quad rg = __builtin_shufflevector(r, g, 0, 4, 1, 5), rg2 = __builtin_shufflevector(r, g, 2, 6, 3, 7);
      const Quad q[3] = {__builtin_shufflevector(rg, __builtin_shufflevector(b, r, 0, 5, 0, 5), 0, 1, 4, 5),
                         __builtin_shufflevector(__builtin_shufflevector(g, b, 1, 5, 1, 5), rg2, 0, 1, 4, 5),
                         __builtin_shufflevector(__builtin_shufflevector(b, rg2, 2, 6, 7, 3), b, 0, 1, 2, 7)};
      std::memcpy(out, q, sizeof q);
      return;
    }
  }
  const float* lanes = reinterpret_cast<const float*>(block) + 4 * row;
  for (int64_t x = 0; x < n; ++x)
    for (int64_t ch = 0; ch < channels; ++ch) out[x * channels + ch] = lanes[ch * 16 + x];
}

template <int C>
inline void get_row(const float* in, int row, int64_t channels, int64_t n, V16* block) {
  float* lanes = reinterpret_cast<float*>(block) + 4 * row;
  if constexpr (C == 3) {
    if (n == kBlock) {
      Quad q[3];
      std::memcpy(q, in, sizeof q);  // r0 g0 b0 r1 | g1 b1 r2 g2 | b2 r3 g3 b3
      const Quad low = __builtin_shufflevector(q[0], q[1], 0, 3, 6, 6),
                 r = __builtin_shufflevector(low, q[2], 0, 1, 2, 5);
      const Quad mid = __builtin_shufflevector(q[0], q[1], 1, 4, 7, 7),
                 g = __builtin_shufflevector(mid, q[2], 0, 1, 2, 6);
      const Quad top = __builtin_shufflevector(q[0], q[1], 2, 5, 5, 5),
                 b = __builtin_shufflevector(top, q[2], 0, 1, 4, 7);
      std::memcpy(lanes, &r, sizeof r);
      std::memcpy(lanes + 16, &g, sizeof g);
      std::memcpy(lanes + 32, &b, sizeof b);
      return;
    }
  }
  for (int64_t x = 0; x < n; ++x)
    for (int64_t ch = 0; ch < channels; ++ch) lanes[ch * 16 + x] = in[x * channels + ch];
}

/// f(block, row of pixels in it, first pixel in the image, pixels) for all rows of all blocks of a tile.
template <class F>
inline void each_row(const ImageTile& tile, int64_t height, int64_t width, F f) {
  for (int64_t y = tile.row0 * kBlock; y < std::min<int64_t>(height, (tile.row1 + 1) * kBlock); ++y)
    for (int64_t b = tile.column0; b <= tile.column1; ++b)
      f(int((y / kBlock - tile.row0) * kTileColumns + b - tile.column0), int(y % kBlock),
        (tile.image * height + y) * width + b * kBlock, std::min<int64_t>(kBlock, width - b * kBlock));
}

}  // namespace
}  // namespace vk
