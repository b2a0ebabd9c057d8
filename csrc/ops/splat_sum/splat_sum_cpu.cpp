// Who owns what
//   forward    a thread owns a tile of 64x64 pixels: it adds up the ellipses of the tile's list in a framebuffer of
//              4x4-pixel blocks (one 16-lane vector per block and channel, at home in the L1/L2 cache) and writes the
//              pixels out once, in [H, W, C] order.
//   backward   the gradient image is laid out in the same blocks once; then a thread owns a Gaussian and gathers over
//              its footprint. Gaussians are visited tile by tile, so that what they read is still in cache.
//
// Along a row of blocks the exponent of a block follows from the one before by two additions; rows of kLong blocks
// and more multiply the exponential itself along (G *= R, R *= Q), started afresh every kRestart blocks.
#include <vector>

#include "core/ellipse.h"
#include "core/parallel.h"
#include "core/tile_lists.h"
#include "ops/splat_sum/splat_sum.h"

namespace vk::VK_ISA {
namespace {

constexpr int kLong = 4;
constexpr int kRestart = 8;
alignas(64) constexpr float kLaneX[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
alignas(64) constexpr float kLaneY[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

struct Lanes {
  V16 x = load(kLaneX), y = load(kLaneY);
};

/// The weights of one ellipse along one row of blocks. f(block, X, G): X = pixel x of the block's corner - mean.
class BlockRow {
 public:
  BlockRow(const Ellipse& e, const Lanes& lanes)
      : e_(e), lanes_(lanes), bend_(32.0f * e.ka), limit_(e.limit), weight_(e.weight) {
    inside_ = V16(e.ka) * lanes.x * lanes.x + V16(e.kb) * lanes.x * lanes.y + V16(e.kc) * lanes.y * lanes.y;
    // exponent(X + 4) - exponent(X) = ka (8 (X + lx) + 16) + 4 kb (Y + ly)
    step_ = V16(8.0f * e.ka) * lanes.x + V16(4.0f * e.kb) * lanes.y;
    // Multiplying along is safe while the ratios stay far from overflow.
    gentle_ = -e.ka * 32.0f * (kRestart + 1) * (kRestart + 1) < 60.0f;
    if (gentle_) ratio2_ = exp2(V16(bend_));
  }

  template <class F>
  void walk(int row, int left, int right, F f) const {
    const float y = float(kBlock * row) - e_.y;
    if (gentle_ && right - left >= kLong)
      walk_long(y, left, right, f);
    else
      walk_short(y, left, right, f);
  }

 private:
  V16 exponent(float x, float y) const {
    const float base = (e_.ka * x + e_.kb * y) * x + e_.kc * y * y;
    const float u = 2.0f * e_.ka * x + e_.kb * y, v = 2.0f * e_.kc * y + e_.kb * x;
    return madd(lanes_.y, V16(v), madd(lanes_.x, V16(u), inside_ + V16(base)));
  }
  V16 step(float x, float y) const { return step_ + V16(e_.ka * (8.0f * x + 16.0f) + 4.0f * e_.kb * y); }

  template <class F>
  void walk_short(float y, int left, int right, F f) const {
    float x = float(kBlock * left) - e_.x;
    V16 p = exponent(x, y), d = step(x, y);
    for (int b = left;; ++b) {
      f(b, x, keep_ge(p, limit_, exp2(p)));
      if (b == right) return;
      p = p + d;
      d = d + bend_;
      x += kBlock;
    }
  }
  template <class F>
  void walk_long(float y, int left, int right, F f) const {
    for (int b = left; b <= right;) {
      float x = float(kBlock * b) - e_.x;
      const int end = b + kRestart <= right ? b + kRestart : right + 1;
      V16 p = exponent(x, y), d = step(x, y);
      V16 g = exp2(p), r = exp2(d);
      for (;;) {
        f(b, x, keep_ge(p, limit_, g));
        if (++b == end) break;
        p = p + d;
        d = d + bend_;
        g = g * r;
        r = r * ratio2_;
        x += kBlock;
      }
    }
  }

  const Ellipse& e_;
  const Lanes& lanes_;
  V16 inside_, step_, bend_, limit_, weight_, ratio2_;
  bool gentle_;
};

std::vector<Ellipse> all_ellipses(const SplatSum& a) {
  std::vector<Ellipse> ellipses(size_t(a.count));
  parallel_for((a.count + 15) / 16, 64, [&](int64_t i0, int64_t i1) {
    make_ellipses(a.means, a.shapes, a.opacities, nullptr, a.conic ? ShapeForm::conic : ShapeForm::cholesky,
                  a.pixel_center, i0 * 16, i1 * 16 < a.count ? i1 * 16 : a.count, ellipses.data());
  });
  return ellipses;
}

// ---- forward

struct Tile {
  int row0, row1, column0, column1;  // blocks, inclusive
};

Tile tile_of(int64_t t, const TileLists& lists, int64_t height, int64_t width) {
  const int row = int(t / lists.columns()), column = int(t % lists.columns());
  const int rows = int((height + kBlock - 1) / kBlock), columns = int((width + kBlock - 1) / kBlock);
  return {row * kTileBlocks, std::min((row + 1) * kTileBlocks, rows) - 1, column * kTileBlocks,
          std::min((column + 1) * kTileBlocks, columns) - 1};
}

/// Adds one ellipse to `frame`, [16 * 16 blocks][C][16]. C: known number of channels.
template <int C>
void add_ellipse(const Ellipse& e, const float* color, const Tile& tile, const Lanes& lanes, float* frame) {
  const Range rows = block_range(e.y, e.half_height, tile.row0, tile.row1);
  if (rows.first > rows.last) return;
  alignas(64) int32_t left[16], right[16];
  block_spans(e, tile.row0, tile.column0, tile.column1, left, right);
  V16 c[C];
  for (int ch = 0; ch < C; ++ch) c[ch] = V16(color[ch] * e.weight);
  const BlockRow row(e, lanes);
  for (int r = rows.first; r <= rows.last; ++r) {
    const int l = left[r - tile.row0], h = right[r - tile.row0];
    if (l > h) continue;
    float* line = frame + ((r - tile.row0) * kTileBlocks - tile.column0) * C * 16;
    row.walk(r, l, h, [&](int b, float, const V16& g) {
      float* block = line + b * C * 16;
      for (int ch = 0; ch < C; ++ch) store(block + ch * 16, madd(g, c[ch], load(block + ch * 16)));
    });
  }
}

/// The framebuffer's pixels to rows of the image; channels [first, first + C) of `channels`.
template <int C>
void write_tile(const float* frame, const Tile& tile, int64_t height, int64_t width, int64_t channels, float* image) {
  for (int64_t y = tile.row0 * kBlock; y < std::min<int64_t>(height, (tile.row1 + 1) * kBlock); ++y) {
    float* out = image + (y * width + tile.column0 * kBlock) * channels;
    const float* line = frame + (y / kBlock - tile.row0) * kTileBlocks * C * 16 + y % kBlock * 4;
    for (int64_t b = tile.column0; b <= tile.column1; ++b, line += C * 16) {
      const int64_t n = std::min<int64_t>(kBlock, width - b * kBlock);
      for (int64_t x = 0; x < n; ++x, out += channels)
        for (int ch = 0; ch < C; ++ch) out[ch] = line[ch * 16 + x];
    }
  }
}

/// Channels [first, first + C) of all images.
template <int C>
void forward(const SplatSumForward& a, const Ellipse* ellipses, const TileLists& lists, int64_t first) {
  const int64_t tiles = a.images * lists.tiles_per_image();
  const Lanes lanes;
  parallel_each(tiles, [&](int64_t t) {
    alignas(64) static thread_local float frame[kTileBlocks * kTileBlocks * 16 * C];
    const int64_t image = t / lists.tiles_per_image();
    const Tile tile = tile_of(t % lists.tiles_per_image(), lists, a.height, a.width);
    const float* back =
        a.background ? a.background + (a.background_rows > 1 ? image : 0) * a.channels + first : nullptr;
    for (int b = 0; b < kTileBlocks * kTileBlocks; ++b)
      for (int ch = 0; ch < C; ++ch) store(frame + (b * C + ch) * 16, V16(back ? back[ch] : 0.0f));
    lists.for_each(t, [&](int32_t i) {
      const Ellipse& e = ellipses[i];
      add_ellipse<C>(e, a.colors + int64_t(e.index) * a.channels + first, tile, lanes, frame);
      return true;
    });
    write_tile<C>(frame, tile, a.height, a.width, a.channels,
                  a.image + image * a.height * a.width * a.channels + first);
  });
}

// ---- backward

/// A gradient image in blocks: [B][block rows][block columns][C][16], zeros beyond the edges.
std::vector<float> in_blocks(const SplatSumBackward& a, int64_t rows, int64_t columns) {
  std::vector<float> blocks(size_t(a.images * rows * columns * a.channels * 16));
  parallel_for(a.images * rows, 1 + 16384 / (a.width * a.channels + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t image = r / rows, top = r % rows * kBlock;
      float* out = blocks.data() + r * columns * a.channels * 16;
      for (int64_t y = 0; y < std::min<int64_t>(kBlock, a.height - top); ++y) {
        const float* in = a.grad_image + (image * a.height + top + y) * a.width * a.channels;
        for (int64_t x = 0; x < a.width; ++x)
          for (int64_t ch = 0; ch < a.channels; ++ch)
            out[(x / kBlock * a.channels + ch) * 16 + y * kBlock + x % kBlock] = in[x * a.channels + ch];
      }
    }
  });
  return blocks;
}

/// Positions of the felt ellipses, grouped by the tile that holds their centre: neighbours read the same pixels.
std::vector<int32_t> by_place(const std::vector<Ellipse>& ellipses, int64_t height, int64_t width) {
  const int columns = int((width + kTile - 1) / kTile), rows = int((height + kTile - 1) / kTile);
  std::vector<int32_t> place(ellipses.size()), start(size_t(columns * rows) + 1, 0);
  for (size_t i = 0; i < ellipses.size(); ++i) {
    const Ellipse& e = ellipses[i];
    if (e.half_height < 0) {
      place[i] = -1;
      continue;
    }
    const int x = int(std::clamp(e.x / kTile, 0.0f, float(columns - 1)));
    const int y = int(std::clamp(e.y / kTile, 0.0f, float(rows - 1)));
    place[i] = y * columns + x;
    ++start[size_t(place[i]) + 1];
  }
  for (size_t t = 1; t < start.size(); ++t) start[t] += start[t - 1];
  std::vector<int32_t> order(size_t(start.back()));
  for (size_t i = 0; i < ellipses.size(); ++i)
    if (place[i] >= 0) order[size_t(start[size_t(place[i])]++)] = int32_t(i);
  return order;
}

/// From the gradient of the conic (a, b, c) to that of the Cholesky factor: dSigma = -conic dConic conic.
void to_cholesky(const float* l, const float* d_conic, float* out) {
  const float l1 = l[0], l2 = l[1], l3 = l[2], inverse = 1.0f / (l1 * l1 * l3 * l3);
  const float a = (l2 * l2 + l3 * l3) * inverse, b = -l1 * l2 * inverse, c = l1 * l1 * inverse;
  const float ga = d_conic[0], gb = 0.5f * d_conic[1], gc = d_conic[2];
  const float t00 = a * ga + b * gb, t01 = a * gb + b * gc, t10 = b * ga + c * gb, t11 = b * gb + c * gc;
  const float s00 = -(t00 * a + t01 * b), s01 = -(t00 * b + t01 * c), s11 = -(t10 * b + t11 * c);
  out[0] = 2.0f * (s00 * l1 + s01 * l2);
  out[1] = 2.0f * (s01 * l1 + s11 * l2);
  out[2] = 2.0f * s11 * l3;
}

/// C: number of channels, or 0 for any. `sums`: room for a.channels vectors.
template <int C>
void gather(const SplatSumBackward& a, const Ellipse& e, const float* blocks, int rows, int columns, const Lanes& lanes,
            V16* sums) {
  const int64_t channels = C ? C : a.channels;
  const float* color = a.colors + e.index * channels;
  for (int64_t ch = 0; ch < channels; ++ch) sums[ch] = V16(0.0f);
  V16 local[C ? C : 1], c[C ? C : 1];
  if constexpr (C > 0)
    for (int ch = 0; ch < C; ++ch) local[ch] = V16(0.0f), c[ch] = V16(color[ch]);
  // Moments of s over the block corners (X, Y); the place within the block comes in at the end, lane by lane.
  V16 m0(0.0f), mx(0.0f), my(0.0f), mxx(0.0f), mxy(0.0f), myy(0.0f);
  const Range range = block_range(e.y, e.half_height, 0, rows - 1);
  const BlockRow walker(e, lanes);
  alignas(64) int32_t left[16], right[16];
  for (int r0 = range.first; r0 <= range.last; r0 += 16) {
    block_spans(e, r0, 0, columns - 1, left, right);
    for (int r = r0; r <= std::min(r0 + 15, range.last); ++r) {
      const int l = left[r - r0], h = right[r - r0];
      if (l > h) continue;
      const float* line = blocks + int64_t(r) * columns * channels * 16;
      V16 n0(0.0f), nx(0.0f), nxx(0.0f);
      walker.walk(r, l, h, [&](int b, float x, const V16& g) {
        const float* block = line + b * channels * 16;
        V16 t(0.0f);
        if constexpr (C > 0) {
          for (int ch = 0; ch < C; ++ch) {
            const V16 d = load(block + ch * 16);
            local[ch] = madd(g, d, local[ch]);
            t = ch == 0 ? d * c[0] : madd(d, c[ch], t);
          }
        } else {
          for (int64_t ch = 0; ch < channels; ++ch) {
            const V16 d = load(block + ch * 16);
            sums[ch] = madd(g, d, sums[ch]);
            t = madd(d, V16(color[ch]), t);
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
    }
  }
  const V16 lx = lanes.x, ly = lanes.y;
  V16 total[8];
  total[0] = m0;
  total[1] = madd(lx, m0, mx);
  total[2] = madd(ly, m0, my);
  total[3] = madd(lx, madd(lx, m0, mx + mx), mxx);
  total[4] = mxy + madd(ly, mx, lx * madd(ly, m0, my));
  total[5] = madd(ly, madd(ly, m0, my + my), myy);
  total[6] = total[7] = V16(0.0f);
  if constexpr (C == 1 || C == 2)
    for (int ch = 0; ch < C; ++ch) total[6 + ch] = local[ch];
  float m[8];
  sum8(total, m);
  float* grad_color = a.grad_colors + e.index * channels;
  if constexpr (C == 1 || C == 2) {
    for (int ch = 0; ch < C; ++ch) grad_color[ch] = e.weight * m[6 + ch];
  } else {
    for (int64_t ch = 0; ch < channels; ch += 8) {
      V16 v[8];
      for (int k = 0; k < 8; ++k)
        v[k] = ch + k >= channels ? V16(0.0f) : C ? local[(ch + k) % (C ? C : 1)] : sums[ch + k];
      float s[8];
      sum8(v, s);
      for (int64_t k = 0; k < std::min<int64_t>(8, channels - ch); ++k) grad_color[ch + k] = e.weight * s[k];
    }
  }
  // m holds sums without the opacity; conic = -(2 ka, kb, 2 kc) ln 2.
  if (a.grad_opacities) a.grad_opacities[e.index] = m[0];
  for (float& x : m) x *= e.weight;
  constexpr float kLn2 = 0.693147181f;
  const float ca = -2.0f * kLn2 * e.ka, cb = -kLn2 * e.kb, cc = -2.0f * kLn2 * e.kc;
  a.grad_means[2 * e.index] = ca * m[1] + cb * m[2];
  a.grad_means[2 * e.index + 1] = cb * m[1] + cc * m[2];
  const float d_conic[3] = {-0.5f * m[3], -m[4], -0.5f * m[5]};
  float* d_shape = a.grad_shapes + 3 * e.index;
  if (a.conic)
    for (int k = 0; k < 3; ++k) d_shape[k] = d_conic[k];
  else
    to_cholesky(a.shapes + 3 * e.index, d_conic, d_shape);
}

template <int C>
void gather_all(const SplatSumBackward& a, const std::vector<Ellipse>& ellipses, const std::vector<float>& blocks,
                int rows, int columns) {
  const std::vector<int32_t> order = by_place(ellipses, a.height, a.width);
  const Lanes lanes;
  const int64_t chunk = 64, felt = int64_t(order.size());
  parallel_each((felt + chunk - 1) / chunk, [&](int64_t k) {
    std::vector<V16> sums(size_t(C ? C : a.channels));
    for (int64_t j = k * chunk; j < std::min(felt, (k + 1) * chunk); ++j) {
      const Ellipse& e = ellipses[size_t(order[size_t(j)])];
      int64_t image = 0;
      if (a.offsets) image = std::upper_bound(a.offsets, a.offsets + a.images + 1, int64_t(e.index)) - a.offsets - 1;
      gather<C>(a, e, blocks.data() + image * rows * columns * a.channels * 16, rows, columns, lanes, sums.data());
    }
  });
}

void sum_background(const SplatSumBackward& a) {
  const int64_t row = a.width * a.channels, rows = a.images * a.height;
  std::vector<double> partial(size_t(rows * a.channels), 0.0);
  parallel_for(rows, 1 + 16384 / (row + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t i = 0; i < row; ++i) partial[size_t(r * a.channels + i % a.channels)] += a.grad_image[r * row + i];
  });
  std::vector<double> total(size_t(a.background_rows * a.channels), 0.0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t ch = 0; ch < a.channels; ++ch)
      total[size_t((a.background_rows > 1 ? r / a.height : 0) * a.channels + ch)] +=
          partial[size_t(r * a.channels + ch)];
  for (size_t i = 0; i < total.size(); ++i) a.grad_background[i] = float(total[i]);
}

}  // namespace

void splat_sum(const SplatSumForward& a) {
  if (a.images * a.height * a.width * a.channels == 0) return;
  const auto ellipses = all_ellipses(a);
  const TileLists lists(ellipses.data(), a.count, a.offsets, a.images, a.height, a.width);
  for (int64_t first = 0; first < a.channels;) {
    const int64_t left = a.channels - first;
    const auto run = [&](auto count) {
      forward<count()>(a, ellipses.data(), lists, first);
      first += count();
    };
    if (left >= 8)
      run(std::integral_constant<int, 8>());
    else if (left >= 4)
      run(std::integral_constant<int, 4>());
    else if (left == 3)
      run(std::integral_constant<int, 3>());
    else if (left == 2)
      run(std::integral_constant<int, 2>());
    else
      run(std::integral_constant<int, 1>());
  }
}

void splat_sum_backward(const SplatSumBackward& a) {
  if (a.grad_background) sum_background(a);
  std::fill_n(a.grad_means, a.count * 2, 0.0f);
  std::fill_n(a.grad_shapes, a.count * 3, 0.0f);
  std::fill_n(a.grad_colors, a.count * a.channels, 0.0f);
  if (a.grad_opacities) std::fill_n(a.grad_opacities, a.count, 0.0f);
  if (a.count * a.images * a.height * a.width * a.channels == 0) return;
  const auto ellipses = all_ellipses(a);
  const int rows = int((a.height + kBlock - 1) / kBlock), columns = int((a.width + kBlock - 1) / kBlock);
  const auto blocks = in_blocks(a, rows, columns);
  switch (a.channels) {
    case 1: return gather_all<1>(a, ellipses, blocks, rows, columns);
    case 3: return gather_all<3>(a, ellipses, blocks, rows, columns);
    case 4: return gather_all<4>(a, ellipses, blocks, rows, columns);
    default: return gather_all<0>(a, ellipses, blocks, rows, columns);
  }
}

}  // namespace vk::VK_ISA
