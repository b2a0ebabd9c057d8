// Who owns what
//   both       a thread owns a tile of 64x64 pixels and walks its ellipses, nearest first. What a pixel has come to
//              lies in a framebuffer of 4x4-pixel blocks (one 16-lane vector per block and quantity), at home in the
//              L2 cache, until the tile is done.
//   forward    a block holds the transmittance and the colours. A finished pixel keeps its transmittance with the
//              sign turned; a block of finished pixels is passed over, a tile of them ends the walk.
//   backward   the same walk with the same arithmetic, hence the same decisions; a block holds the transmittance,
//              what is still to come seen through the gradient, and the gradient. The sums of one ellipse in one tile
//              go to a slot of its own; then a thread owns an ellipse and adds up its slots in the order of tiles.
#include <cstring>
#include <memory>

#include "core/parallel.h"
#include "core/tile_walk.h"
#include "ops/splat_alpha/depth_order.h"
#include "ops/splat_alpha/splat_alpha.h"

namespace vk::VK_ISA {
namespace {

constexpr float kMost = 0.99f;
constexpr float kGoesOn = 1.00000005e-4f;  // the least transmittance that does not finish a pixel
static_assert(kGoesOn > 1e-4f && kGoesOn < 1.0000002e-4f);

/// The ellipses in the order that `order` says.
Room<Ellipse> sorted_ellipses(const SplatAlpha& a, const int32_t* order) {
  Room<Ellipse> ellipses(a.count);
  parallel_for((a.count + 15) / 16, 64, [&](int64_t i0, int64_t i1) {
    const int64_t begin = i0 * 16, end = std::min(i1 * 16, a.count);
    make_ellipses(a.means, a.shapes, a.opacities, order, a.conic ? ShapeForm::conic : ShapeForm::cholesky,
                  a.pixel_center, begin, end, ellipses.get());
    hide_if_not_finite(a.colors, a.channels, begin, end, ellipses.get());
  });
  return ellipses;
}

inline V16 absolute(V16 v) {
  VK_EACH_PART v.p[i] = (PartF)((PartI)v.p[i] & INT32_MAX);
  return v;
}

/// 1 / v, good to a unit in the last place or two.
inline V16 reciprocal(const V16& v) {
#if defined(__AVX512F__)
  V16 r;
  r.p[0] = (PartF)_mm512_maskz_rcp14_ps(0xffff, (__m512)v.p[0]);
  return r * (V16(2.0f) - v * r);
#else
  return V16(1.0f) / v;
#endif
}

/// Sends light through one more Gaussian. `alpha` counts where log_weight >= log2(1/255) in pixels that go on;
/// `through` is what of the light it keeps. Finished pixels get a negative sign. false: none of them goes on.
inline bool attenuate(V16& light, const V16& log_weight, const V16& alpha, V16& through, V16& next) {
#if defined(__AVX512F__)
  const __m512 before = (__m512)light.p[0];
  const __mmask16 seen = _mm512_cmp_ps_mask((__m512)log_weight.p[0], _mm512_set1_ps(kFaint), _CMP_GE_OQ);
  const __m512 kept = _mm512_maskz_mul_ps(seen, (__m512)alpha.p[0], before), rest = _mm512_sub_ps(before, kept);
  const __mmask16 ends = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(kGoesOn), _CMP_NGE_UQ);
  through.p[0] = (PartF)_mm512_maskz_mov_ps(_mm512_knot(ends), kept);
  next.p[0] = (PartF)rest;
  light.p[0] = (PartF)_mm512_castsi512_ps(
      _mm512_mask_or_epi32(_mm512_castps_si512(rest), ends, _mm512_castps_si512(before), _mm512_set1_epi32(INT32_MIN)));
  return ends != 0xffff;
#else
  const V16 goes_on(kGoesOn);
  V16 finished = light;
  VK_EACH_PART finished.p[i] = (PartF)((PartI)light.p[i] | INT32_MIN);
  const V16 kept = keep_ge(log_weight, V16(kFaint), alpha) * light;
  next = light - kept;
  through = keep_ge(next, goes_on, kept);
  light = select_ge(next, goes_on, next, finished);
  return any_ge(next, goes_on);
#endif
}

/// Transmittance 1 in the pixels of the image, finished pixels beyond its edges.
void open_block(int block, const ImageTile& tile, int64_t height, int64_t width, V16& light) {
  const int64_t y0 = int64_t(tile.row0 + block / kTileColumns) * kBlock;
  const int64_t x0 = int64_t(tile.column0 + block % kTileColumns) * kBlock;
  if (y0 + kBlock <= height && x0 + kBlock <= width) {
    light = V16(1.0f);
    return;
  }
  float lanes[16];
  for (int k = 0; k < 16; ++k) lanes[k] = y0 + k / 4 < height && x0 + k % 4 < width ? 1.0f : -1.0f;
  light = load(lanes);
}

// ---- forward

/// C: number of channels, or 0 for any.
template <int C>
void render_tile(const SplatAlphaForward& a, const Ellipse* ellipses, const TileLists& lists, int64_t t) {
  const int64_t channels = C ? C : a.channels, stride = 1 + channels;
  const ImageTile tile = tile_of(t, TileGrid(a.height, a.width));
  Room<V16> frame(kTileArea * stride);  // a block: transmittance, colours
  uint8_t closed[kTileArea];            // blocks of finished pixels only
  int open = 0;
  for (int block = 0; block < kTileArea; ++block) {
    V16* here = &frame[block * stride];
    open_block(block, tile, a.height, a.width, here[0]);
    closed[block] = !any_ge(here[0], V16(0.0f));
    open += !closed[block];
    for (int64_t ch = 0; ch < channels; ++ch) here[1 + ch] = V16(0.0f);
  }
  lists.for_each(t, [&](int32_t i) {
    const Ellipse& e = ellipses[i];
    const float* color = a.colors + e.index * channels;
    V16 c[C ? C : 1];
    for (int ch = 0; ch < C; ++ch) c[ch] = V16(color[ch]);
    const bool may_cut = e.weight > kMost;
    each_block(e, Sheared(e), tile, [&](int row, int column, const V16&, const V16&, const V16& log_weight) {
      const int block = tile.block(row, column);
      if (closed[block]) return;
      V16* here = &frame[block * stride];
      V16 alpha = exp2_within(log_weight), w, next;
      if (may_cut) alpha = min(alpha, V16(kMost));
      if (!attenuate(here[0], log_weight, alpha, w, next)) {
        closed[block] = 1;
        --open;
      }
      if constexpr (C > 0)
        for (int ch = 0; ch < C; ++ch) here[1 + ch] = madd(w, c[ch], here[1 + ch]);
      else
        for (int64_t ch = 0; ch < channels; ++ch) here[1 + ch] = madd(w, V16(color[ch]), here[1 + ch]);
    });
    return open > 0;
  });
  const float* back = a.background ? a.background + (a.background_rows > 1 ? tile.image : 0) * channels : nullptr;
  for (int block = 0; block < kTileArea; ++block) {
    V16* here = &frame[block * stride];
    const V16 light = absolute(here[0]);
    here[0] = V16(1.0f) - light;
    if (back)
      for (int64_t ch = 0; ch < channels; ++ch) here[1 + ch] = madd(light, V16(back[ch]), here[1 + ch]);
  }
  each_row(tile, a.height, a.width, [&](int block, int row, int64_t pixel, int64_t n) {
    const V16* here = &frame[block * stride];
    put_row<1>(here, row, 1, n, a.alpha + pixel);
    put_row<C>(here + 1, row, channels, n, a.image + pixel * channels);
  });
}

template <int C>
void render(const SplatAlphaForward& a, const Ellipse* ellipses, const TileLists& lists) {
  parallel_each(a.images * TileGrid(a.height, a.width).tiles(),
                [&](int64_t t) { render_tile<C>(a, ellipses, lists, t); });
}

// ---- backward

/// What the tiles sum up about one ellipse, s weighting the sheared coordinates; then the sums of its colours.
enum Sum : int { s_1, s_x, s_t, s_xx, s_xt, s_tt, abs_x, abs_y, kSums };

/// Where the sums of an ellipse in a tile go. Ellipses of many tiles would need too much room at once: their tiles
/// are summed in rounds of a fixed number of tiles.
class Slots {
 public:
  Slots(const Ellipse* ellipses, const SplatAlpha& a)
      : count_(a.count),
        size_((kSums + a.channels + 3) / 4 * 4),
        columns_(TileGrid(a.height, a.width).columns),
        rows_(TileGrid(a.height, a.width).rows),
        tiles_(a.images * TileGrid(a.height, a.width).tiles()),
        start_(a.count) {
    int64_t narrow = 0;
    for (int64_t i = 0; i < a.count; ++i) {
      const Box box = box_of(ellipses[i]);
      if (box.tiles() > TileLists::kWide) {
        start_[i] = ~wide_++;
      } else {
        start_[i] = narrow;
        narrow += box.tiles();
      }
    }
    round_ = wide_ ? std::clamp<int64_t>(kRoundFloats / (wide_ * size_), TileLists::kWide, tiles_) : tiles_;
    narrow_.reset(new float[size_t(narrow * size_)]);
    wide_round_.reset(new float[size_t(wide_ * size_ * (wide_ ? round_ : 0))]);
    wide_total_.reset(new float[size_t(wide_ * size_)]());
  }

  int64_t size() const { return size_; }

  /// tile_done(t) for every tile, in parallel; sums of wide ellipses are taken in between.
  template <class F>
  void each_tile(const Ellipse* ellipses, const int64_t* offsets, int64_t tiles_per_image, F tile_done) {
    for (int64_t t0 = 0; t0 < tiles_; t0 += round_) {
      const int64_t t1 = std::min(tiles_, t0 + round_);
      parallel_each(t1 - t0, [&](int64_t k) { tile_done(t0 + k); });
      if (!wide_) continue;
      parallel_for(count_, 4096, [&](int64_t i0, int64_t i1) {
        for (int64_t i = i0; i < i1; ++i) {
          if (start_[i] >= 0) continue;
          int64_t image = 0;
          if (offsets)
            while (offsets[image + 1] <= i) ++image;
          const int64_t first = std::max(t0, image * tiles_per_image),
                        last = std::min(t1, (image + 1) * tiles_per_image);
          float* total = wide_total_.get() + ~start_[i] * size_;
          for (int64_t t = first; t < last; ++t) add(total, at(i, ellipses[i], t, 0, 0));
        }
      });
    }
  }

  /// The slot of ellipse i in tile t = (row, column).
  float* at(int64_t i, const Ellipse& e, int64_t t, int row, int column) const {
    if (start_[i] < 0) return wide_round_.get() + ((t % round_) * wide_ + ~start_[i]) * size_;
    const Box box = box_of(e);
    return narrow_.get() +
           (start_[i] + (row - box.y.first) * (box.x.last - box.x.first + 1) + column - box.x.first) * size_;
  }

  /// All tiles' sums of ellipse i; `room` for size() floats.
  const float* total(int64_t i, const Ellipse& e, float* room) const {
    if (start_[i] < 0) return wide_total_.get() + ~start_[i] * size_;
    const int64_t n = box_of(e).tiles();
    const float* slot = narrow_.get() + start_[i] * size_;
    if (n == 1) return slot;
    std::memset(room, 0, size_t(size_) * sizeof(float));
    for (int64_t k = 0; k < n; ++k) add(room, slot + k * size_);
    return room;
  }

 private:
  static constexpr int64_t kRoundFloats = 1 << 22;
  struct Box {
    Range x, y;
    int64_t tiles() const {
      return x.first > x.last || y.first > y.last ? 0 : int64_t(x.last - x.first + 1) * (y.last - y.first + 1);
    }
  };
  Box box_of(const Ellipse& e) const {  // as TileLists has it
    const Range x = block_range(e.x, e.half_width, 0, columns_ * kTileColumns - 1);
    const Range y = block_range(e.y, e.half_height, 0, rows_ * kTileRows - 1);
    if (x.first > x.last || y.first > y.last) return {{1, 0}, {1, 0}};
    return {{x.first / kTileColumns, x.last / kTileColumns}, {y.first / kTileRows, y.last / kTileRows}};
  }
  void add(float* to, const float* from) const {
    for (int64_t k = 0; k < size_; ++k) to[k] += from[k];
  }

  int64_t count_, size_;
  int columns_, rows_;
  int64_t tiles_, wide_ = 0, round_ = 0;
  Room<int64_t> start_;  // first slot of an ellipse, or ~(place among the wide ones)
  std::unique_ptr<float[]> narrow_, wide_round_, wide_total_;
};

/// The totals of n sums.
inline void sum_all(const Sums* v, int64_t n, float* out) {
  for (int64_t k = 0; k < n; k += 8) {
    Sums eight[8];
    float sums[8];
    for (int j = 0; j < 8; ++j) eight[j] = k + j < n ? v[k + j] : Sums();
    sum8(eight, sums);
    std::memcpy(out + k, sums, size_t(std::min<int64_t>(8, n - k)) * sizeof(float));
  }
}

/// C: number of channels, or 0 for any. `through_light` [C]: sum over the tile of T_final g.
template <int C, bool kAbsolute>
void gather_tile(const SplatAlphaBackward& a, const Ellipse* ellipses, const TileLists& lists, const Slots& slots,
                 int64_t t, float* through_light) {
  const int64_t channels = C ? C : a.channels, stride = 2 + channels;
  const ImageTile tile = tile_of(t, TileGrid(a.height, a.width));
  Room<V16> frame(kTileArea * stride);  // a block: transmittance, what is to come, gradient
  Room<Sums> sums(channels);
  Room<V16> seen(channels + 2);
  uint8_t closed[kTileArea];  // blocks of finished pixels only
  int open = 0;
  for (int block = 0; block < kTileArea; ++block) {
    V16* here = &frame[block * stride];
    open_block(block, tile, a.height, a.width, here[0]);
    closed[block] = !any_ge(here[0], V16(0.0f));
    open += !closed[block];
    const int64_t y0 = int64_t(tile.row0 + block / kTileColumns) * kBlock;
    const int64_t x0 = int64_t(tile.column0 + block % kTileColumns) * kBlock;
    const int64_t rows = std::min<int64_t>(kBlock, a.height - y0), n = std::min<int64_t>(kBlock, a.width - x0);
    if (rows < kBlock || n < kBlock) {
      for (int64_t k = 1; k < stride; ++k) here[k] = V16(0.0f);
      for (int64_t k = 0; k < channels + 2; ++k) seen[k] = V16(0.0f);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t pixel = (tile.image * a.height + y0 + row) * a.width + x0;
      get_row<C>(a.grad_image + pixel * channels, int(row), channels, n, here + 2);
      get_row<C>(a.image + pixel * channels, int(row), channels, n, &seen[0]);
      get_row<1>(a.alpha + pixel, int(row), 1, n, &seen[channels]);
      if (a.grad_alpha) get_row<1>(a.grad_alpha + pixel, int(row), 1, n, &seen[channels + 1]);
    }
    if (rows <= 0 || n <= 0) continue;
    const V16 final = V16(1.0f) - seen[channels];
    V16 rest = a.grad_alpha ? V16(0.0f) - seen[channels + 1] * final : V16(0.0f);
    for (int64_t ch = 0; ch < channels; ++ch) rest = madd(here[2 + ch], seen[ch], rest);
    here[1] = rest;
  }
  lists.for_each(t, [&](int32_t i) {
    const Ellipse& e = ellipses[i];
    float* slot = slots.at(i, e, t, tile.row, tile.column);
    if (open == 0) {
      std::memset(slot, 0, size_t(slots.size()) * sizeof(float));
      return true;
    }
    const float* color = a.colors + e.index * channels;
    Sums dc[C ? C : 1], m[kSums];
    V16 c[C ? C : 1];
    for (int ch = 0; ch < C; ++ch) c[ch] = V16(color[ch]);
    if constexpr (C == 0)
      for (int64_t ch = 0; ch < channels; ++ch) sums[ch] = {};
    const Sheared k(e);
    // conic d = (ax X - am t, at t)
    const V16 ax(-2.0f * kLn2 * k.k1), at(-2.0f * kLn2 * k.k2), am = at * V16(k.slope);
    const bool may_cut = e.weight > kMost;
    each_block(e, k, tile, [&](int row, int column, const V16& x, const V16& y, const V16& log_weight) {
      const int block = tile.block(row, column);
      if (closed[block]) return;
      V16* here = &frame[block * stride];
      const V16 raw = exp2_within(log_weight);
      V16 w, next;
      if (!attenuate(here[0], log_weight, may_cut ? min(raw, V16(kMost)) : raw, w, next)) {
        closed[block] = 1;
        --open;
      }
      V16 along(0.0f);
      if constexpr (C > 0) {
        for (int ch = 0; ch < C; ++ch) {
          const V16 g = here[2 + ch];
          along = ch == 0 ? g * c[0] : madd(g, c[ch], along);
          dc[ch].add(w, g);
        }
      } else {
        for (int64_t ch = 0; ch < channels; ++ch) {
          const V16 g = here[2 + ch];
          along = madd(g, V16(color[ch]), along);
          sums[ch].add(w, g);
        }
      }
      // alpha d alpha = w (along - rest / next), because next = light (1 - alpha)
      const V16 rest = here[1] - w * along;
      here[1] = rest;
      V16 s = w * (along - rest * reciprocal(next));
      if (may_cut) s = keep_ge(V16(kMost), raw, s);
      const V16 sx = s * x, sy = s * y;
      m[s_1].add(s);
      m[s_x].add(sx);
      m[s_t].add(sy);
      m[s_xx].add(sx, x);
      m[s_xt].add(sx, y);
      m[s_tt].add(sy, y);
      if constexpr (kAbsolute) {
        m[abs_x].add(absolute(ax * sx - am * sy));
        m[abs_y].add(absolute(at * sy));
      }
    });
    sum8(m, slot);
    sum_all(C ? dc : sums.get(), channels, slot + kSums);
    return true;
  });
  // 1 - alpha would have lost the digits of a small transmittance.
  for (int64_t ch = 0; ch < channels; ++ch) sums[ch] = {};
  for (int block = 0; block < kTileArea; ++block) {
    const V16* here = &frame[block * stride];
    const V16 light = absolute(here[0]);
    for (int64_t ch = 0; ch < channels; ++ch) sums[ch].add(light, here[2 + ch]);
  }
  sum_all(sums.get(), channels, through_light);
}

/// From the sums of one ellipse to the gradients of its parameters.
void finish(const SplatAlphaBackward& a, const Ellipse& e, const float* m) {
  const int64_t g = e.index;
  float *d_mean = a.grad_means + 2 * g, *d_shape = a.grad_shapes + 3 * g, *d_color = a.grad_colors + g * a.channels;
  if (e.half_height < 0) {
    d_mean[0] = d_mean[1] = d_shape[0] = d_shape[1] = d_shape[2] = a.grad_opacities[g] = 0;
    for (int64_t ch = 0; ch < a.channels; ++ch) d_color[ch] = 0;
    if (a.absgrad) a.absgrad[2 * g] = a.absgrad[2 * g + 1] = 0;
    return;
  }
  const Sheared k(e);
  const float ax = -2.0f * kLn2 * k.k1, at = -2.0f * kLn2 * k.k2;
  d_mean[0] = ax * m[s_x] - k.slope * at * m[s_t];
  d_mean[1] = at * m[s_t];
  if (a.conic) {
    d_shape[0] = -0.5f * m[s_xx];
    d_shape[1] = -(m[s_xt] + k.slope * m[s_xx]);
    d_shape[2] = -0.5f * (m[s_tt] + 2.0f * k.slope * m[s_xt] + k.slope * k.slope * m[s_xx]);
  } else {
    // sigma = (u^2 + v^2) / 2 with u = X / l1, v = t / l3
    const float *l = a.shapes + 3 * g, i1 = 1.0f / l[0], i3 = 1.0f / l[2];
    const float uv = m[s_xt] * i1 * i3;
    d_shape[0] = (m[s_xx] * i1 * i1 - uv * l[1] * i3) * i1;
    d_shape[1] = uv * i3;
    d_shape[2] = m[s_tt] * i3 * i3 * i3;
  }
  a.grad_opacities[g] = m[s_1] / e.weight;
  for (int64_t ch = 0; ch < a.channels; ++ch) d_color[ch] = m[kSums + ch];
  if (a.absgrad) {
    a.absgrad[2 * g] = m[abs_x];
    a.absgrad[2 * g + 1] = m[abs_y];
  }
}

template <int C>
void gather(const SplatAlphaBackward& a, const Ellipse* ellipses, const TileLists& lists) {
  Slots slots(ellipses, a);
  const int64_t tiles = a.images * TileGrid(a.height, a.width).tiles();
  Room<float> through_light(tiles * a.channels);
  slots.each_tile(ellipses, a.offsets, TileGrid(a.height, a.width).tiles(), [&](int64_t t) {
    float* light = &through_light[t * a.channels];
    if (a.absgrad)
      gather_tile<C, true>(a, ellipses, lists, slots, t, light);
    else
      gather_tile<C, false>(a, ellipses, lists, slots, t, light);
  });
  parallel_for(a.count, 1024, [&](int64_t i0, int64_t i1) {
    Room<float> room(slots.size());
    for (int64_t i = i0; i < i1; ++i) finish(a, ellipses[i], slots.total(i, ellipses[i], room.get()));
  });
  if (!a.grad_background) return;
  for (int64_t row = 0; row < a.background_rows; ++row)
    for (int64_t ch = 0; ch < a.channels; ++ch) {
      const int64_t per_row = a.background_rows > 1 ? TileGrid(a.height, a.width).tiles() : tiles;
      double sum = 0;
      for (int64_t t = row * per_row; t < (row + 1) * per_row; ++t) sum += through_light[t * a.channels + ch];
      a.grad_background[row * a.channels + ch] = float(sum);
    }
}

}  // namespace

void splat_alpha(const SplatAlphaForward& a) {
  const int64_t whole[2] = {0, a.count};
  const int64_t* offsets = a.offsets ? a.offsets : whole;
  parallel_each(a.images, [&](int64_t b) {
    depth_order(a.depths + offsets[b], offsets[b + 1] - offsets[b], offsets[b], a.order + offsets[b]);
  });
  if (a.images * a.height * a.width == 0) return;
  const Room<Ellipse> ellipses = sorted_ellipses(a, a.order);
  const TileLists lists(ellipses.get(), a.count, a.offsets, a.images, TileGrid(a.height, a.width));
  switch (a.channels) {
    case 1: return render<1>(a, ellipses.get(), lists);
    case 3: return render<3>(a, ellipses.get(), lists);
    case 4: return render<4>(a, ellipses.get(), lists);
    default: return render<0>(a, ellipses.get(), lists);
  }
}

void splat_alpha_backward(const SplatAlphaBackward& a) {
  const Room<Ellipse> ellipses = sorted_ellipses(a, a.order);
  const TileLists lists(ellipses.get(), a.count, a.offsets, a.images, TileGrid(a.height, a.width));
  switch (a.channels) {
    case 1: return gather<1>(a, ellipses.get(), lists);
    case 3: return gather<3>(a, ellipses.get(), lists);
    case 4: return gather<4>(a, ellipses.get(), lists);
    default: return gather<0>(a, ellipses.get(), lists);
  }
}

}  // namespace vk::VK_ISA
