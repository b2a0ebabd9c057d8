// The sum renderer's inner loops over 4x4-pixel blocks: weights of one ellipse along a row of blocks, adding an ellipse
// to a framebuffer tile, and gathering a gradient over an ellipse's footprint.
//
// Along a row the exponent of a block follows from the one before by two additions; rows of kLong blocks and more
// multiply the exponential itself along (G *= R, R *= Q), started afresh every kRestart blocks.
#pragma once
#include "core/ellipse.h"
#include "core/tile_lists.h"

namespace vk {
namespace {

constexpr int kLong = 4;
constexpr int kRestart = 8;

struct Lanes {
  V16 x = load(kLaneX), y = load(kLaneY), xx = x * x, xy = x * y, yy = y * y;
};

class BlockRow {
 public:
  VK_INLINE BlockRow(const Ellipse& e, const Lanes& lanes)
      : e_(e),
        lanes_(lanes),
        inside_(V16(e.ka) * lanes.xx + (V16(e.kb) * lanes.xy + V16(e.kc) * lanes.yy)),
        // exponent(X + 4) - exponent(X) = ka (8 (X + lx) + 16) + 4 kb (Y + ly)
        step_(V16(8.0f * e.ka) * lanes.x + V16(4.0f * e.kb) * lanes.y),
        limit_(e.limit) {}

  /// Multiplying along is safe where an exponent of the support lies at most 60 below where its run began, and one
  /// that underflowed at the beginning cannot come back into the support: flat ellipses of ordinary weight.
  bool gentle() const { return e_.ka > -0.023f && e_.limit > -10.0f; }

  /// f(block, X, G): X = x of the block's corner - mean, G = exp(-sigma) inside the support, 0 outside.
  template <class F>
  VK_INLINE void walk(int row, int left, int right, F f) const {
    const float y = float(kBlock * row) - e_.y;
    if (right - left >= kLong && gentle())
      walk_long(y, left, right, f);
    else
      walk_short(y, left, right, f);
  }
  template <class F>
  VK_INLINE void walk_short(float y, int left, int right, F f) const {
    float x = float(kBlock * left) - e_.x;
    V16 p = exponent(x, y), d = step(x, y);
    const V16 bend(32.0f * e_.ka);
    for (int b = left;; ++b) {
      f(b, x, keep_ge(p, limit_, exp2(p)));
      if (b == right) return;
      p = p + d;
      d = d + bend;
      x += kBlock;
    }
  }

 private:
  VK_INLINE V16 exponent(float x, float y) const {
    const float base = (e_.ka * x + e_.kb * y) * x + e_.kc * y * y;
    const float u = 2.0f * e_.ka * x + e_.kb * y, v = 2.0f * e_.kc * y + e_.kb * x;
    return madd(lanes_.y, V16(v), madd(lanes_.x, V16(u), inside_ + V16(base)));
  }
  VK_INLINE V16 step(float x, float y) const { return step_ + V16(e_.ka * (8.0f * x + 16.0f) + 4.0f * e_.kb * y); }

  template <class F>
  VK_INLINE void walk_long(float y, int left, int right, F f) const {
    const V16 ratio2 = exp2(V16(32.0f * e_.ka)), least = exp2(limit_);
    for (int b = left; b <= right;) {
      float x = float(kBlock * b) - e_.x;
      const int end = b + kRestart <= right ? b + kRestart : right + 1;
      V16 g = exp2(exponent(x, y)), r = exp2(step(x, y));
      for (;;) {
        f(b, x, keep_ge(g, least, g));
        if (++b == end) break;
        g = g * r;
        r = r * ratio2;
        x += kBlock;
      }
    }
  }

  const Ellipse& e_;
  const Lanes& lanes_;
  V16 inside_, step_, limit_;
};

/// Calls f(row, left, right) for the rows of blocks of a clipped window that an ellipse touches. A small footprint is
/// taken as a rectangle: finding its spans would cost more than its empty corners.
template <class F>
VK_INLINE void each_block_row(const Ellipse& e, int row0, int row1, int column0, int column1, F f) {
  const Range rows = block_range(e.y, e.half_height, row0, row1);
  if (rows.first > rows.last) return;
  const Range columns = block_range(e.x, e.half_width, column0, column1);
  if (columns.first > columns.last) return;
  if (columns.last - columns.first < kLong && rows.last - rows.first < kLong) {
    for (int r = rows.first; r <= rows.last; ++r) f(r, columns.first, columns.last);
    return;
  }
  alignas(64) int32_t left[16], right[16];
  for (int top = rows.first; top <= rows.last; top += 16) {
    block_spans(e, top, column0, column1, left, right);
    for (int r = top; r <= (top + 15 < rows.last ? top + 15 : rows.last); ++r)
      if (left[r - top] <= right[r - top]) f(r, left[r - top], right[r - top]);
  }
}

/// Adds one ellipse to a tile's `frame`, [kTileBlocks * kTileBlocks][C][16].
template <int C>
inline void add_ellipse(const Ellipse& e, const float* color, const Tile& tile, const Lanes& lanes, float* frame) {
  V16 c[C];
  for (int ch = 0; ch < C; ++ch) c[ch] = V16(color[ch] * e.weight);
  const BlockRow row(e, lanes);
  each_block_row(e, tile.row0, tile.row1, tile.column0, tile.column1, [&](int r, int left, int right) {
    float* line = frame + ((r - tile.row0) * kTileBlocks - tile.column0) * C * 16;
    row.walk(r, left, right, [&](int b, float, const V16& g) {
      float* block = line + b * C * 16;
      for (int ch = 0; ch < C; ++ch) store(block + ch * 16, madd(g, c[ch], load(block + ch * 16)));
    });
  });
}

/// Moments of s = G sum_ch d[ch] color[ch] about the mean, without the weight:
/// [0] s, [1] s dx, [2] s dy, [3] s dx^2, [4] s dx dy, [5] s dy^2.
struct Moments {
  float m[6];
};

/// d: the gradient image in blocks, [block rows][block columns][channels][16]. C: channels, or 0 for any number.
/// sums: room for `channels` vectors; colors_out[ch] = sum of G d[ch].
template <int C>
inline Moments gather_ellipse(const Ellipse& e, const float* color, int64_t channels, const float* d,
                              const TileGrid& grid, const Lanes& lanes, V16* sums, float* colors_out) {
  if constexpr (C > 0) channels = C;
  V16 local[C ? C : 1], c[C ? C : 1];
  if constexpr (C > 0)
    for (int ch = 0; ch < C; ++ch) local[ch] = V16(0.0f), c[ch] = V16(color[ch]);
  else
    for (int64_t ch = 0; ch < channels; ++ch) sums[ch] = V16(0.0f);
  // Moments over the block corners (X, Y); the place within the block comes in at the end, lane by lane.
  V16 m0(0.0f), mx(0.0f), my(0.0f), mxx(0.0f), mxy(0.0f), myy(0.0f);
  const BlockRow walker(e, lanes);
  each_block_row(e, 0, grid.block_rows - 1, 0, grid.block_columns - 1, [&](int r, int left, int right) {
    const float* line = d + int64_t(r) * grid.block_columns * channels * 16;
    V16 n0(0.0f), nx(0.0f), nxx(0.0f);
    walker.walk(r, left, right, [&](int b, float x, const V16& g) {
      const float* block = line + b * channels * 16;
      V16 t(0.0f);
      if constexpr (C > 0) {
        for (int ch = 0; ch < C; ++ch) {
          const V16 v = load(block + ch * 16);
          local[ch] = madd(g, v, local[ch]);
          t = ch == 0 ? v * c[0] : madd(v, c[ch], t);
        }
      } else {
        for (int64_t ch = 0; ch < channels; ++ch) {
          const V16 v = load(block + ch * 16);
          sums[ch] = madd(g, v, sums[ch]);
          t = madd(v, V16(color[ch]), t);
        }
      }
      const V16 s = t * g, sx = s * V16(x);
      n0 = n0 + s;
      nx = nx + sx;
      nxx = madd(sx, V16(x), nxx);
    });
    const V16 y(float(kBlock * r) - e.y), ny = y * n0;
    m0 = m0 + n0;
    mx = mx + nx;
    mxx = mxx + nxx;
    my = my + ny;
    mxy = madd(y, nx, mxy);
    myy = madd(y, ny, myy);
  });
  const V16 lx = lanes.x, ly = lanes.y;
  V16 total[8] = {m0,
                  madd(lx, m0, mx),
                  madd(ly, m0, my),
                  madd(lx, madd(lx, m0, mx + mx), mxx),
                  mxy + madd(ly, mx, lx * madd(ly, m0, my)),
                  madd(ly, madd(ly, m0, my + my), myy),
                  V16(0.0f),
                  V16(0.0f)};
  if constexpr (C == 1 || C == 2)
    for (int ch = 0; ch < C; ++ch) total[6 + ch] = local[ch];
  float out[8];
  sum8(total, out);
  if constexpr (C == 1 || C == 2) {
    for (int ch = 0; ch < C; ++ch) colors_out[ch] = out[6 + ch];
  } else {
    for (int64_t ch = 0; ch < channels; ch += 8) {
      V16 v[8];
      for (int k = 0; k < 8; ++k) v[k] = ch + k >= channels ? V16(0.0f) : C ? local[k % (C ? C : 1)] : sums[ch + k];
      float s[8];
      sum8(v, s);
      for (int64_t k = 0; k < 8 && ch + k < channels; ++k) colors_out[ch + k] = s[k];
    }
  }
  return {{out[0], out[1], out[2], out[3], out[4], out[5]}};
}

/// d mean = conic * first moments (of the weighted s).
inline void mean_gradient(const Ellipse& e, const Moments& s, float* out) {
  constexpr float kLn2 = 0.693147181f;
  const float a = -2.0f * kLn2 * e.ka, b = -kLn2 * e.kb, c = -2.0f * kLn2 * e.kc;
  out[0] = e.weight * (a * s.m[1] + b * s.m[2]);
  out[1] = e.weight * (b * s.m[1] + c * s.m[2]);
}

inline void conic_gradient(const Ellipse& e, const Moments& s, float* out) {
  out[0] = -0.5f * e.weight * s.m[3];
  out[1] = -e.weight * s.m[4];
  out[2] = -0.5f * e.weight * s.m[5];
}

/// From the gradient of the conic (a, b, c) to that of the Cholesky factor l: dSigma = -conic dConic conic.
inline void cholesky_gradient(const float* l, const float* d_conic, float* out) {
  const float l1 = l[0], l2 = l[1], l3 = l[2], inverse = 1.0f / (l1 * l1 * l3 * l3);
  const float a = (l2 * l2 + l3 * l3) * inverse, b = -l1 * l2 * inverse, c = l1 * l1 * inverse;
  const float ga = d_conic[0], gb = 0.5f * d_conic[1], gc = d_conic[2];
  const float t00 = a * ga + b * gb, t01 = a * gb + b * gc, t10 = b * ga + c * gb, t11 = b * gb + c * gc;
  const float s00 = -(t00 * a + t01 * b), s01 = -(t00 * b + t01 * c), s11 = -(t10 * b + t11 * c);
  out[0] = 2.0f * (s00 * l1 + s01 * l2);
  out[1] = 2.0f * (s01 * l1 + s11 * l2);
  out[2] = 2.0f * s11 * l3;
}

/// Positions of the ellipses that are felt, grouped by the tile that holds their centre: neighbours read the same
/// pixels. One bucket for each tile.
inline Buckets by_place(const Ellipse* ellipses, int64_t count, const TileGrid& grid) {
  return Buckets(count, grid.tiles(), 1, [=](int64_t begin, int64_t end, auto put) {
    for (int64_t i = begin; i < end; ++i) {
      const Ellipse& e = ellipses[i];
      if (e.half_height < 0) continue;
      const float x = e.x * (1.0f / kTile), y = e.y * (1.0f / kTile);
      const int c = x > 0 ? (x < float(grid.columns - 1) ? int(x) : grid.columns - 1) : 0;
      const int r = y > 0 ? (y < float(grid.rows - 1) ? int(y) : grid.rows - 1) : 0;
      put(int64_t(r) * grid.columns + c, i);
    }
  });
}

}  // namespace
}  // namespace vk
