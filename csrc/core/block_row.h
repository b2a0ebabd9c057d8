// The sum renderer's inner loops: adding ellipses to a framebuffer tile, and gathering a gradient over footprints.
#pragma once
#include "core/block_list.h"
#include "core/tile_lists.h"

namespace vk {
namespace {

/// Adds ellipses to a tile's `frame`, [kTileArea][C][16].
template <int C>
class TilePainter {
 public:
  VK_INLINE void add(const Ellipse& e, const float* color, const Tile& tile, float* frame) {
    for (int ch = 0; ch < C; ++ch) list_.new_color()[ch] = color[ch] * (1.0f / 255.0f);
    list_.add(e, tile.row0, tile.row1, tile.column0, tile.column1);
    if (list_.full()) flush(frame);
  }
  void flush(float* frame) {
    list_.fill();
    list_.each([&](const BlockPlace& place, const V16&, const V16& g) {
      float* block = frame + place.frame;
      const float* color = list_.color(place);
      for (int ch = 0; ch < C; ++ch) store(block + ch * 16, madd(g, V16(color[ch]), load(block + ch * 16)));
    });
    list_.clear();
  }

 private:
  static constexpr int kBatch = 8;
  BlockList<kBatch, C * 16> list_;
};

/// Sums over the footprint of one Gaussian of s = w sum_ch d[ch] color[ch], d the gradient image, w its weight; in
/// sheared coordinates, where its covariance is diagonal: t = dy - shear dx.
enum FootprintSum : int { sum_x, sum_t, sum_xx, sum_xt, sum_tt, kFootprintSums };

/// Gathers over footprints. C: channels, or 0 for any number.
template <int C>
class FootprintGatherer {
 public:
  FootprintGatherer(int64_t channels, const TileGrid& grid)
      : channels_(C ? C : channels), grid_(grid), colors_(size_t(channels_)), sums_(size_t(channels_)) {}

  /// blocks: the gradient image of e, [block rows][block columns][channels][16]. done(e, sums, colors) with the sums
  /// named above and colors[ch] = sum of w d[ch] is called now or in a later add() or in flush().
  template <class Done>
  VK_INLINE void add(const Ellipse& e, const float* color, const float* blocks, Done done) {
    const Range rows = block_range(e.y, e.half_height, 0, grid_.block_rows - 1);
    const Range columns = block_range(e.x, e.half_width, 0, grid_.block_columns - 1);
    bool first = true;
    for (int r = rows.first; r <= rows.last; r += kSide)
      for (int c = columns.first; c <= columns.last; c += kSide) {
        const int r1 = std::min(r + kSide - 1, rows.last), c1 = std::min(c + kSide - 1, columns.last);
        windows_[list_.ellipses()] = {&e, color, blocks + (int64_t(r) * grid_.block_columns + c) * channels_ * 16,
                                      first, r1 == rows.last && c1 == columns.last};
        list_.add(e, r, r1, c, c1);
        if (list_.full()) flush(done);
        first = false;
      }
    if (!first) return;
    const float none[kFootprintSums] = {};
    std::fill_n(colors_.data(), channels_, 0.0f);
    done(e, none, colors_.data());
  }

  template <class Done>
  void flush(Done done) {
    list_.fill();
    for (int i = 0; i < list_.ellipses(); ++i) {
      const Window& window = windows_[i];
      if (window.first) {
        for (Sums& s : totals_) s = {};
        if constexpr (C == 0)
          for (int64_t ch = 0; ch < channels_; ++ch) sums_[size_t(ch)] = {};
      }
      gather(i, window);
      if (window.last) finish(*window.ellipse, done);
    }
    list_.clear();
  }

 private:
  static constexpr int kBatch = 8, kSide = BlockList<kBatch, 0>::kSide;
  static constexpr int kTotals = (kFootprintSums + C + 7) / 8 * 8;
  struct Window {
    const Ellipse* ellipse;
    const float *color, *blocks;
    bool first, last;  // of its ellipse
  };

  VK_INLINE void gather(int i, const Window& window) {
    Sums m[kFootprintSums], dc[C ? C : 1];
    V16 c[C ? C : 1];
    for (int k = 0; k < kFootprintSums; ++k) m[k] = totals_[k];
    for (int ch = 0; ch < C; ++ch) dc[ch] = totals_[kFootprintSums + ch], c[ch] = V16(window.color[ch]);
    const size_t column = size_t(channels_) * 16, row = size_t(grid_.block_columns) * column;
    list_.each(list_.begin(i), list_.begin(i + 1), [&](const BlockPlace& place, const V16& t, const V16& g) {
      const float* block = window.blocks + list_.row(place, i) * row + list_.column(place, i) * column;
      V16 along(0.0f);
      if constexpr (C > 0) {
        for (int ch = 0; ch < C; ++ch) {
          const V16 d = load(block + ch * 16);
          dc[ch].add(g, d);
          along = ch == 0 ? d * c[0] : madd(d, c[ch], along);
        }
      } else {
        for (int64_t ch = 0; ch < channels_; ++ch) {
          const V16 d = load(block + ch * 16);
          sums_[size_t(ch)].add(g, d);
          along = madd(d, V16(window.color[ch]), along);
        }
      }
      const V16 dx = list_.dx(place), s = along * g, sx = s * dx, st = s * t;
      m[sum_x].add(sx);
      m[sum_t].add(st);
      m[sum_xx].add(sx, dx);
      m[sum_xt].add(sx, t);
      m[sum_tt].add(st, t);
    });
    for (int k = 0; k < kFootprintSums; ++k) totals_[k] = m[k];
    for (int ch = 0; ch < C; ++ch) totals_[kFootprintSums + ch] = dc[ch];
  }

  template <class Done>
  VK_INLINE void finish(const Ellipse& e, Done done) {
    constexpr float kUnit = 1.0f / 255.0f;
    float out[kTotals];
    for (int k = 0; k < kTotals; k += 8) sum8(totals_ + k, out + k);
    for (int ch = 0; ch < C; ++ch) colors_[size_t(ch)] = kUnit * out[kFootprintSums + ch];
    if constexpr (C == 0)
      for (int64_t ch = 0; ch < channels_; ch += 8) {
        Sums v[8];
        float s[8];
        for (int64_t k = 0; k < 8; ++k) v[k] = ch + k < channels_ ? sums_[size_t(ch + k)] : Sums();
        sum8(v, s);
        for (int64_t k = 0; k < 8 && ch + k < channels_; ++k) colors_[size_t(ch + k)] = kUnit * s[k];
      }
    const float back = -1.0f / __builtin_sqrtf(-e.kc);  // the list's t is sqrt(-kc) (shear dx - dy)
    const float sums[kFootprintSums] = {kUnit * out[sum_x], kUnit * back * out[sum_t], kUnit * out[sum_xx],
                                        kUnit * back * out[sum_xt], kUnit * back * back * out[sum_tt]};
    done(e, sums, colors_.data());
  }

  const int64_t channels_;
  const TileGrid& grid_;
  BlockList<kBatch, 0> list_;
  Window windows_[kBatch];
  Sums totals_[kTotals];
  Scratch<float> colors_;
  Scratch<Sums> sums_;
};

/// d mean = conic * sum of s d.
inline void mean_gradient(const Ellipse& e, const float* sums, float* out) {
  constexpr float kLn2 = 0.693147181f;
  const float along_t = -2.0f * kLn2 * e.kc * sums[sum_t];
  out[0] = -2.0f * kLn2 * e.k1 * sums[sum_x] - e.shear * along_t;
  out[1] = along_t;
}

/// The conic's: -1/2 sum s dx^2, -sum s dx dy, -1/2 sum s dy^2.
inline void conic_gradient(const Ellipse& e, const float* sums, float* out) {
  const float xx = sums[sum_xx], xt = sums[sum_xt];
  out[0] = -0.5f * xx;
  out[1] = -(xt + e.shear * xx);
  out[2] = -0.5f * (sums[sum_tt] + 2.0f * e.shear * xt + e.shear * e.shear * xx);
}

/// The Cholesky factor's: sigma = (u^2 + v^2) / 2 with u = dx / l1, v = t / l3.
inline void cholesky_gradient(const float* l, const float* sums, float* out) {
  const float i1 = 1.0f / l[0], i3 = 1.0f / l[2], uv = sums[sum_xt] * i1 * i3;
  out[0] = (sums[sum_xx] * i1 * i1 - uv * l[1] * i3) * i1;
  out[1] = uv * i3;
  out[2] = sums[sum_tt] * i3 * i3 * i3;
}

/// Positions of the ellipses that are felt, grouped by the tile that holds their centre: neighbours read the same
/// pixels. One bucket for each tile.
inline Buckets by_place(const Ellipse* ellipses, int64_t count, const TileGrid& grid) {
  return Buckets(count, grid.tiles(), 1, [=](int64_t begin, int64_t end, auto put, bool) {
    for (int64_t i = begin; i < end; ++i) {
      const Ellipse& e = ellipses[i];
      if (e.half_height < 0) continue;
      const float x = e.x * (1.0f / (kTileColumns * kBlock)), y = e.y * (1.0f / (kTileRows * kBlock));
      const int c = x > 0 ? (x < float(grid.columns - 1) ? int(x) : grid.columns - 1) : 0;
      const int r = y > 0 ? (y < float(grid.rows - 1) ? int(y) : grid.rows - 1) : 0;
      put(int64_t(r) * grid.columns + c, i);
    }
  });
}

}  // namespace
}  // namespace vk
