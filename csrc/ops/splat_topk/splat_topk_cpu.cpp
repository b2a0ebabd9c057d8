// Who owns what
//   forward    a thread owns a tile of 64x64 pixels and walks its ellipses in ascending index. Every 4x4-pixel block
//              keeps its K largest weights and their indices, largest first, one 16-lane vector per place; a new
//              weight sinks past the larger ones, and past equal ones, whose index is lower.
//   backward   one pass finds every pixel's total weight and mean of g . colour; then a thread owns a Gaussian and
//   gathers over
//              its footprint, over the pixels that list it.
#include "core/parallel.h"
#include "core/tile_walk.h"
#include "ops/splat_topk/splat_topk.h"

namespace vk::VK_ISA {
namespace {

Room<Ellipse> all_ellipses(const SplatTopk& a) {
  Room<Ellipse> ellipses(a.count);
  parallel_for((a.count + 15) / 16, 64, [&](int64_t i0, int64_t i1) {
    const int64_t begin = i0 * 16, end = std::min(i1 * 16, a.count);
    make_ellipses(a.means, a.shapes, a.opacities, nullptr, a.conic ? ShapeForm::conic : ShapeForm::cholesky,
                  a.pixel_center, begin, end, ellipses.get());
    hide_if_not_finite(a.colors, a.channels, begin, end, ellipses.get());
  });
  return ellipses;
}

/// An index in a lane of floats: moved, never computed with.
inline float as_lane(int32_t i) {
  float f;
  std::memcpy(&f, &i, sizeof f);
  return f;
}

/// The chosen of one pixel: n of them, by ascending index.
struct Chosen {
  int n = 0;
  int32_t index[kSplatTopkMost];
  float weight[kSplatTopkMost];
  void insert(int32_t i, float w) {
    int k = n++;
    for (; k > 0 && index[k - 1] > i; --k) index[k] = index[k - 1], weight[k] = weight[k - 1];
    index[k] = i;
    weight[k] = w;
  }
};

void write_pixel(const SplatTopkForward& a, const Chosen& chosen, int64_t pixel) {
  float total = kSplatTopkEpsilon;
  for (int k = 0; k < chosen.n; ++k) total += chosen.weight[k];
  const float scale = 1.0f / total;
  float* out = a.image + pixel * a.channels;
  for (int64_t ch = 0; ch < a.channels; ++ch) out[ch] = 0;
  for (int k = 0; k < chosen.n; ++k) {
    const float* color = a.colors + chosen.index[k] * a.channels;
    const float w = chosen.weight[k] * scale;
    for (int64_t ch = 0; ch < a.channels; ++ch) out[ch] += w * color[ch];
  }
  for (int64_t k = 0; k < a.top; ++k) a.index[pixel * a.top + k] = k < chosen.n ? chosen.index[k] : -1;
}

void render_tile(const SplatTopkForward& a, const Ellipse* ellipses, const TileLists& lists, int64_t t) {
  const int top = int(a.top);
  const ImageTile tile = tile_of(t, TileGrid(a.height, a.width));
  Room<V16> frame(kTileArea * 2 * top);  // a block: weights, indices
  for (int64_t k = 0; k < kTileArea * 2 * top; ++k) frame[k] = V16(0.0f);
  lists.for_each(t, [&](int32_t i) {
    const Ellipse& e = ellipses[i];
    const V16 faint(kFaint);
    each_block(e, Sheared(e), tile, [&](int row, int column, const V16&, const V16&, const V16& log_weight) {
      V16 *weights = &frame[tile.block(row, column) * 2 * top], *indices = weights + top;
      V16 w = keep_ge(log_weight, faint, exp2_within(log_weight)), index(as_lane(e.index));
      for (int k = 0; k < top; ++k) {
        const V16 kept = weights[k], kept_index = indices[k];
        weights[k] = max(kept, w);
        indices[k] = select_ge(kept, w, kept_index, index);
        index = select_ge(kept, w, index, kept_index);
        w = min(kept, w);
      }
    });
    return true;
  });
  each_row(tile, a.height, a.width, [&](int block, int row, int64_t pixel, int64_t n) {
    const float *weights = reinterpret_cast<const float*>(&frame[block * 2 * top]) + 4 * row,
                *indices = weights + 16 * top;
    for (int64_t x = 0; x < n; ++x) {
      Chosen chosen;
      for (int k = 0; k < top && weights[16 * k + x] > 0; ++k) {
        int32_t i;
        std::memcpy(&i, indices + 16 * k + x, sizeof i);
        chosen.insert(i, weights[16 * k + x]);
      }
      write_pixel(a, chosen, pixel + x);
    }
  });
}

// ---- backward

/// o exp(-sigma) at one pixel.
float weight_at(const Ellipse& e, const Sheared& s, float px, float py) {
  const float x = px - e.x, t = py - e.y - s.slope * x;
  return std::exp2(s.lift + s.k1 * x * x + s.k2 * t * t);
}

inline double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t k = 0; k < n; ++k) sum += double(a[k]) * b[k];
  return sum;
}

/// scale [pixels] = 1 / total weight, mean [pixels] = sum of weight times g . colour, over the total weight.
void weigh_pixels(const SplatTopkBackward& a, const Ellipse* ellipses, double* scale, double* mean) {
  const int64_t rows = a.images * a.height;
  parallel_for(rows, 1 + 1024 / (a.width + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t p = r0 * a.width; p < r1 * a.width; ++p) {
      const float* grad = a.grad_image + p * a.channels;
      double total = kSplatTopkEpsilon, sum = 0;
      for (int64_t k = 0; k < a.top; ++k) {
        const int32_t i = a.index[p * a.top + k];
        if (uint32_t(i) >= uint64_t(a.count)) continue;
        const Ellipse& e = ellipses[i];
        const float w = weight_at(e, Sheared(e), float(p % a.width), float(p / a.width % a.height));
        total += w;
        sum += w * dot(grad, a.colors + i * a.channels, a.channels);
      }
      scale[p] = 1.0 / total;
      mean[p] = sum / total;
    }
  });
}

/// All gradients of Gaussian e.index. `sums` [C]: room.
void gather(const SplatTopkBackward& a, const Ellipse& e, int64_t image, const double* scale, const double* mean,
            double* sums) {
  const int64_t g = e.index;
  const float* color = a.colors + g * a.channels;
  const Sheared k(e);
  double s_1 = 0, s_x = 0, s_t = 0, s_xx = 0, s_xt = 0, s_tt = 0;
  for (int64_t ch = 0; ch < a.channels; ++ch) sums[ch] = 0;
  const int rows = int((a.height + kBlock - 1) / kBlock), columns = int((a.width + kBlock - 1) / kBlock);
  const Range range = block_range(e.y, e.half_height, 0, rows - 1);
  const V16 faint(kFaint);
  for (int row0 = range.first; row0 <= range.last; row0 += kTileRows) {
    const ImageTile band{image, 0, 0, row0, std::min(row0 + kTileRows - 1, range.last), 0, columns - 1};
    each_block(e, k, band, [&](int row, int column, const V16& x, const V16& t, const V16& log_weight) {
      float weights[16], xs[16], ts[16];
      store(weights, keep_ge(log_weight, faint, exp2_within(log_weight)));
      store(xs, x);
      store(ts, t);
      for (int lane = 0; lane < 16; ++lane) {
        const int64_t py = row * kBlock + lane / kBlock, px = column * kBlock + lane % kBlock;
        if (!(weights[lane] > 0) || py >= a.height || px >= a.width) continue;
        const int64_t p = (image * a.height + py) * a.width + px;
        const int32_t* index = a.index + p * a.top;
        bool chosen = false;
        for (int64_t j = 0; j < a.top; ++j) chosen |= index[j] == int32_t(g);
        if (!chosen) continue;
        const float* grad = a.grad_image + p * a.channels;
        const double share = weights[lane] * scale[p];
        for (int64_t ch = 0; ch < a.channels; ++ch) sums[ch] += share * grad[ch];
        const double s = share * (dot(grad, color, a.channels) - mean[p]), sx = s * xs[lane], st = s * ts[lane];
        s_1 += s;
        s_x += sx;
        s_t += st;
        s_xx += sx * xs[lane];
        s_xt += sx * ts[lane];
        s_tt += st * ts[lane];
      }
    });
  }
  const double ax = -2 * kLn2 * k.k1, at = -2 * kLn2 * k.k2, m = k.slope;
  a.grad_means[2 * g] = float(ax * s_x - m * at * s_t);
  a.grad_means[2 * g + 1] = float(at * s_t);
  float* d_shape = a.grad_shapes + 3 * g;
  if (a.conic) {
    d_shape[0] = float(-0.5 * s_xx);
    d_shape[1] = float(-(s_xt + m * s_xx));
    d_shape[2] = float(-0.5 * (s_tt + 2 * m * s_xt + m * m * s_xx));
  } else {
    // sigma = (u^2 + v^2) / 2 with u = X / l1, v = t / l3
    const float* l = a.shapes + 3 * g;
    const double i1 = 1.0 / l[0], i3 = 1.0 / l[2], uv = s_xt * i1 * i3;
    d_shape[0] = float((s_xx * i1 * i1 - uv * l[1] * i3) * i1);
    d_shape[1] = float(uv * i3);
    d_shape[2] = float(s_tt * i3 * i3 * i3);
  }
  if (a.grad_opacities) a.grad_opacities[g] = float(s_1 / e.weight);
  for (int64_t ch = 0; ch < a.channels; ++ch) a.grad_colors[g * a.channels + ch] = float(sums[ch]);
}

}  // namespace

void splat_topk(const SplatTopkForward& a) {
  if (a.images * a.height * a.width == 0) return;
  const Room<Ellipse> ellipses = all_ellipses(a);
  const TileLists lists(ellipses.get(), a.count, a.offsets, a.images, TileGrid(a.height, a.width));
  parallel_each(a.images * TileGrid(a.height, a.width).tiles(),
                [&](int64_t t) { render_tile(a, ellipses.get(), lists, t); });
}

void splat_topk_backward(const SplatTopkBackward& a) {
  std::fill_n(a.grad_means, a.count * 2, 0.0f);
  std::fill_n(a.grad_shapes, a.count * 3, 0.0f);
  std::fill_n(a.grad_colors, a.count * a.channels, 0.0f);
  if (a.grad_opacities) std::fill_n(a.grad_opacities, a.count, 0.0f);
  const int64_t pixels = a.images * a.height * a.width;
  if (a.count * pixels == 0) return;
  const Room<Ellipse> ellipses = all_ellipses(a);
  const Room<double> scale(pixels), mean(pixels);
  weigh_pixels(a, ellipses.get(), scale.get(), mean.get());
  constexpr int64_t kChunk = 64;
  parallel_each((a.count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const Room<double> sums(a.channels);
    int64_t image = 0;
    for (int64_t i = chunk * kChunk; i < std::min(a.count, (chunk + 1) * kChunk); ++i) {
      while (a.offsets && i >= a.offsets[image + 1]) ++image;
      if (ellipses[i].half_height >= 0) gather(a, ellipses[i], image, scale.get(), mean.get(), sums.get());
    }
  });
}

}  // namespace vk::VK_ISA
