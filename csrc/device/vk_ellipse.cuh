// One 2D Gaussian as the rasterisers see it, and which of its pixels lie in a rectangle.
//
//   p = dx, q = dy - slope dx, d = pixel - mean          exponent = k1 p^2 + k2 q^2 = log2 exp(-sigma)
//
// The sheared coordinates have no cross term, so nothing cancels however thin and tilted the ellipse. The support is
// exponent >= limit, limit = -log2(255 weight). Rectangles are tested a little generously; the exponent decides.
#pragma once
#include "device/vk_device.cuh"

namespace vk {

struct Ellipse2 {
  float x, y;  // mean, in units where pixel i has its centre at i
  float k1, k2, slope, limit, weight;
  float half_width, half_height;  // of the support's bounding box; negative: felt nowhere
  float lean, q0, q1, dy_right;   // a row dy of the support is lean dy -+ sqrt(q0 - q1 dy^2), rightmost at dy_right
};

constexpr float kHalfLog2E = 0.72134752f;  // log2(e) / 2
constexpr float kTwoLn2 = 1.38629436f;

__device__ __forceinline__ Ellipse2 make_ellipse(const float* means, const float* shapes, const float* opacities,
                                                 bool conic, float pixel_center, int64_t i) {
  constexpr float kFar = 1e9f;
  const float mx = means[2 * i], my = means[2 * i + 1];
  const float s0 = shapes[3 * i], s1 = shapes[3 * i + 1], s2 = shapes[3 * i + 2];
  const float weight = opacities ? opacities[i] : 1.0f;
  const float power = opacities ? log2f(255.0f * weight) : 7.99435344f;
  float xx, yy, xy, steep, flat, determinant, slope;  // covariance; 1 / variance of p and of q; determinant of conic
  bool valid;
  if (conic) {
    determinant = s0 * s2 - s1 * s1;
    valid = s0 > 0 && s2 > 0 && determinant > 0;
    xx = s2 / determinant, yy = s0 / determinant, xy = -s1 / determinant;
    steep = determinant / s2, flat = s2, slope = -s1 / s2;
  } else {
    const float root = s0 * s2;
    valid = root * root > 0;
    determinant = 1.0f / (root * root);
    xx = s0 * s0, yy = s1 * s1 + s2 * s2, xy = s0 * s1;
    steep = 1.0f / xx, flat = 1.0f / (s2 * s2), slope = s1 / s0;
  }
  const float reach = kTwoLn2 * power;  // 2 sigma at the edge
  Ellipse2 e;
  e.x = mx - pixel_center;
  e.y = my - pixel_center;
  e.k1 = -kHalfLog2E * steep;
  e.k2 = -kHalfLog2E * flat;
  e.slope = slope;
  e.limit = -power;
  e.weight = weight;
  const float w = sqrtf(reach * xx), h = sqrtf(reach * yy);
  // One chain of comparisons that is false for every NaN and infinity.
  const bool felt = valid && determinant > 0 && determinant < 1e30f && power >= 0 && power < 64.0f && w < kFar &&
                    h < kFar && fabsf(mx) < kFar && fabsf(my) < kFar;
  e.half_width = felt ? w : -1.0f;
  e.half_height = felt ? h : -1.0f;
  e.lean = xy / yy;
  e.q0 = reach / (yy * determinant);
  e.q1 = 1.0f / (yy * yy * determinant);
  e.dy_right = xy / xx * w;
  return e;
}

struct Span {
  int first, last;  // inclusive; first > last: none
};

/// Whole numbers in [centre - half, centre + half], a thousandth more, within [lo, hi].
__device__ __forceinline__ Span span_between(float low, float high, int lo, int hi) {
  low = ceilf(low - 1e-3f);
  high = floorf(high + 1e-3f);
  if (!(high >= float(lo) && low <= float(hi))) return {1, 0};
  return {low <= float(lo) ? lo : int(low), high >= float(hi) ? hi : int(high)};
}
__device__ __forceinline__ Span rows_of(const Ellipse2& e, int lo, int hi) {
  if (e.half_height < 0) return {1, 0};
  return span_between(e.y - e.half_height, e.y + e.half_height, lo, hi);
}
__device__ __forceinline__ Span columns_of(const Ellipse2& e, int lo, int hi) {
  if (e.half_height < 0) return {1, 0};
  return span_between(e.x - e.half_width, e.x + e.half_width, lo, hi);
}

/// Columns, within [lo, hi], that the support touches in the rows [top, bottom].
__device__ __forceinline__ Span columns_in_rows(const Ellipse2& e, int top, int bottom, int lo, int hi) {
  if (e.half_height < 0) return {1, 0};
  const float d0 = fmaxf(float(top) - e.y, -e.half_height), d1 = fminf(float(bottom) - e.y, e.half_height);
  if (d0 > d1 + 1e-3f) return {1, 0};
  const float h0 = sqrtf(fmaxf(e.q0 - e.q1 * d0 * d0, 0.0f)), h1 = sqrtf(fmaxf(e.q0 - e.q1 * d1 * d1, 0.0f));
  const float c0 = e.lean * d0, c1 = e.lean * d1;
  // Rows that hold the extreme point reach to it.
  const float right = d0 <= e.dy_right && e.dy_right <= d1 ? e.half_width : fmaxf(c0 + h0, c1 + h1);
  const float left = d0 <= -e.dy_right && -e.dy_right <= d1 ? -e.half_width : fminf(c0 - h0, c1 - h1);
  // Far from its edge a long ellipse's rounding grows with its size.
  const float slack = 1e-5f * e.half_width;
  return span_between(e.x + left - slack, e.x + right + slack, lo, hi);
}

/// What the gradient of a Gaussian is made of: sums over its pixels of s = G (grad . color), without the weight.
struct SplatMoments {
  float s, p, q, pp, pq, qq;
};

/// Gradients of mean (2) and shape (3). `shape`: the three numbers that made `e`.
__device__ __forceinline__ void shape_gradients(const Ellipse2& e, const SplatMoments& m, bool conic,
                                                const float* shape, float* grad_mean, float* grad_shape) {
  const float w = e.weight, flat = -e.k2 / kHalfLog2E, steep = -e.k1 / kHalfLog2E;
  grad_mean[0] = w * (steep * m.p - e.slope * flat * m.q);
  grad_mean[1] = w * flat * m.q;
  if (conic) {
    grad_shape[0] = -0.5f * w * m.pp;
    grad_shape[1] = -w * (m.pq + e.slope * m.pp);
    grad_shape[2] = -0.5f * w * (m.qq + e.slope * (2.0f * m.pq + e.slope * m.pp));
  } else {
    // u = p / l11 and t = q / l22 are what the factor makes of d: sigma = (u^2 + t^2) / 2.
    const float l1 = shape[0], l2 = shape[1], l3 = shape[2];
    const float uu = m.pp / (l1 * l1), ut = m.pq / (l1 * l3), tt = m.qq / (l3 * l3);
    grad_shape[0] = w * (uu - ut * l2 / l3) / l1;
    grad_shape[1] = w * ut / l3;
    grad_shape[2] = w * tt / l3;
  }
}

/// Index of the image that row i belongs to. Never outside [0, images), whatever `offsets` holds.
__device__ __forceinline__ int64_t image_of(const int64_t* offsets, int64_t images, int64_t i) {
  if (!offsets) return 0;
  int64_t low = 0, high = images - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= i)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace vk
