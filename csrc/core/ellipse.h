// What a rasteriser keeps of one 2D Gaussian, and where in the image it is felt.
//
//   exponent(dx, dy) = ka dx^2 + kb dx dy + kc dy^2          log2 of exp(-sigma); d = pixel - mean
//   support          = exponent >= limit, limit = -log2(255 weight): where weight * exp(-sigma) >= 1/255
//
// The support is an ellipse. Rasterisers visit it as spans of 4x4-pixel blocks, one per row of blocks. Spans are
// a little generous; the test of the exponent itself decides for each pixel.
// A Gaussian with non-finite numbers, no area, or a weight below 1/255 is felt nowhere (half_height < 0).
#pragma once
#include <cmath>
#include <limits>

#include "core/vec.h"

namespace vk {
namespace {

constexpr float kLog2E = 1.44269504f;
constexpr int kBlock = 4;  // pixels along each side of a block; a block's pixels are the lanes of a V16, row by row
alignas(64) constexpr float kLaneX[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
alignas(64) constexpr float kLaneY[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

struct alignas(64) Ellipse {
  float x, y;                     // mean, in units where pixel i has its centre at i
  float ka, kb, kc;               // exponent
  float limit;                    // of the exponent
  float half_width, half_height;  // of the support's bounding box; negative: felt nowhere
  float slope;                    // centre of a row of pixels: slope * dy
  float q0, q1;                   // half length of a row of pixels: sqrt(q0 - q1 dy^2)
  float dy_right;                 // where the support is furthest right (furthest left at -dy_right)
  float weight;                   // opacity, or 1
  int32_t index;                  // of the Gaussian in the caller's arrays
  float k1, shear;                // exponent = k1 dx^2 + kc (dy - shear dx)^2
};

enum class ShapeForm : uint8_t { cholesky, conic };

/// Ellipses [begin, end) of Gaussians means [N, 2], shapes [N, 3], opacities [N] or null. `order`: item i is Gaussian
/// order[i]; null: item i is Gaussian i.
inline void make_ellipses(const float* means, const float* shapes, const float* opacities, const int32_t* order,
                          ShapeForm form, float pixel_center, int64_t begin, int64_t end, Ellipse* out) {
  constexpr int kLanes = 16;
  constexpr float kFar = 1e9f;
  float in[6][kLanes], res[12][kLanes];
  for (int64_t i0 = begin; i0 < end; i0 += kLanes) {
    const int count = int(end - i0 < kLanes ? end - i0 : kLanes);
    for (int k = 0; k < kLanes; ++k) {
      const int64_t i = i0 + (k < count ? k : 0), g = order ? order[i] : i;
      in[0][k] = means[2 * g];
      in[1][k] = means[2 * g + 1];
      in[2][k] = shapes[3 * g];
      in[3][k] = shapes[3 * g + 1];
      in[4][k] = shapes[3 * g + 2];
      in[5][k] = opacities ? opacities[g] : 1.0f;
    }
    float power[kLanes];  // log2(255 weight)
    for (int k = 0; k < kLanes; ++k) power[k] = opacities ? std::log2(255.0f * in[5][k]) : 7.99435344f;
#pragma omp simd
    for (int k = 0; k < kLanes; ++k) {
      const float s0 = in[2][k], s1 = in[3][k], s2 = in[4][k];
      float a, b, c, xx, yy, determinant, valid;  // conic, diagonal of the covariance, determinant of the conic
      if (form == ShapeForm::cholesky) {
        xx = s0 * s0;
        const float xy = s0 * s1, root = s0 * s2;
        yy = s1 * s1 + s2 * s2;
        const float inverse = 1.0f / (root * root);
        a = yy * inverse;
        b = -xy * inverse;
        c = xx * inverse;
        determinant = inverse;
        valid = root * root;
      } else {
        a = s0, b = s1, c = s2;
        determinant = a * c - b * b;
        valid = a > 0 && c > 0 ? determinant : -1.0f;
        const float inverse = 1.0f / determinant;
        xx = c * inverse;
        yy = a * inverse;
      }
      const float reach = 2.0f * 0.693147181f * power[k];  // 2 sigma at the edge
      const float w = std::sqrt(reach * xx), h = std::sqrt(reach * yy);
      // One comparison chain that is false for every NaN and infinity.
      const bool felt = valid > 0 && determinant > 0 && determinant < 1e30f && power[k] >= 0 && power[k] < 64.0f &&
                        w < kFar && h < kFar && std::fabs(in[0][k]) < kFar && std::fabs(in[1][k]) < kFar;
      const float ia = 1.0f / a;
      res[0][k] = -0.5f * kLog2E * a;
      res[1][k] = -kLog2E * b;
      res[2][k] = -0.5f * kLog2E * c;
      res[3][k] = -power[k];
      res[4][k] = felt ? w : -1.0f;
      res[5][k] = felt ? h : -1.0f;
      res[6][k] = -b * ia;
      res[7][k] = reach * ia;
      res[8][k] = determinant * ia * ia;
      res[9][k] = -b / c * w;
      res[10][k] = -0.5f * kLog2E * (form == ShapeForm::cholesky ? 1.0f / xx : determinant / c);
      res[11][k] = -b / c;
    }
    for (int k = 0; k < count; ++k) {
      const int64_t i = i0 + k;
      out[i] = {in[0][k] - pixel_center,
                in[1][k] - pixel_center,
                res[0][k],
                res[1][k],
                res[2][k],
                res[3][k],
                res[4][k],
                res[5][k],
                res[6][k],
                res[7][k],
                res[8][k],
                res[9][k],
                in[5][k],
                order ? order[i] : int32_t(i),
                res[10][k],
                res[11][k]};
    }
  }
}

/// First and last row of blocks that the support may touch, clipped to [lo, hi]; first > last where there is none.
struct Range {
  int first, last;
};
VK_INLINE Range block_range(float centre, float half, int lo, int hi) {
  if (half < 0) return {1, 0};
  const float low = (centre - half + 0.999f) * 0.25f, high = (centre + half + 0.001f) * 0.25f;
  // Where the support ends before `lo` or begins after `hi` this comes out as last < first, without a branch.
  const float below = float(lo), above = float(hi);
  const float from = low > below ? low : below, to = high < above ? high : above;
  return {int(from < above + 1 ? from : above + 1), int((to > below - 1 ? to : below - 1) + 1.0f) - 1};
}

/// left[j] .. right[j]: the blocks of block row `row0 + j` (16 of them) that the support touches, clipped to
/// [lo, hi]; left > right where there are none.
VK_INLINE void block_spans(const Ellipse& e, int row0, int lo, int hi, I16& left, I16& right) {
  static const float kRows[16] = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60};
  const V16 top = load(kRows) + V16(float(kBlock * row0) - e.y);
  const V16 d0 = max(top, V16(-e.half_height)), d1 = min(top + V16(float(kBlock - 1)), V16(e.half_height));
  const auto half = [&](const V16& d) { return root(max(V16(e.q0) - V16(e.q1) * d * d, V16(1e-30f))); };
  const V16 h0 = half(d0), h1 = half(d1), c0 = V16(e.slope) * d0, c1 = V16(e.slope) * d1;
  V16 far_right = max(c0 + h0, c1 + h1), far_left = min(c0 - h0, c1 - h1);
  // A row of blocks that holds the extreme point reaches to it.
  const V16 turn(e.dy_right), back(-e.dy_right);
  far_right = select_ge(turn, d0, select_ge(d1, turn, V16(e.half_width), far_right), far_right);
  far_left = select_ge(back, d0, select_ge(d1, back, V16(-e.half_width), far_left), far_left);
  // Pixels ceil(x + far_left) .. floor(x + far_right), in blocks; shifted by one block so that truncation is floor.
  const V16 low(float(kBlock * (lo - 1))), high(float(kBlock * (hi + 2)));
  const V16 base(float(-kBlock * (lo - 1)));
  const V16 l = min(max(V16(e.x + 0.999f) + far_left, low), high) + base;
  V16 r = min(max(V16(e.x + 0.001f) + far_right, low), high) + base;
  r = select_ge(d1, d0, r, V16(0.0f));  // no row of pixels in reach
  I16 li = truncate(l * V16(0.25f)), ri = truncate(r * V16(0.25f));
  const PartI shift = PartI{} + (lo - 1), first = PartI{} + lo, last = PartI{} + hi;
  VK_EACH_PART {
    const PartI a = li.p[i] + shift, b = ri.p[i] + shift;
    li.p[i] = a > first ? a : first;
    ri.p[i] = b < last ? b : last;
  }
  left = li;
  right = ri;
}
VK_INLINE void block_spans(const Ellipse& e, int row0, int lo, int hi, int32_t* left, int32_t* right) {
  I16 l, r;
  block_spans(e, row0, lo, hi, l, r);
  store(left, l);
  store(right, r);
}

}  // namespace
}  // namespace vk
