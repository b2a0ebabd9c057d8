// One Gaussian in one camera, forward and backward: scalars in, scalars out, no branch that a vector could not take
// as a select. The CPU kernel runs it over lanes, the CUDA kernel in a thread. Everything is in an anonymous
// namespace: see core/dispatch.h.
#pragma once
#include <cmath>

#include "core/half.h"

// Small loops have to be gone before the compiler looks at the loop over lanes.
#if defined(__CUDACC__)
#define VK_UNROLL _Pragma("unroll")
#else
#define VK_UNROLL _Pragma("GCC unroll 16")
#endif

namespace vk {
namespace {

template <class Real>
struct Camera {
  Real r[9], t[3];
  Real fx, fy, cx, cy;
  Real low_x, high_x, low_y, high_y;  // of x / z and y / z inside the Jacobian
};

template <class Real>
struct ProjectLimits {
  Real width, height, eps2d, near_plane, far_plane, radius_clip;
};

template <class Real>
VK_HD Camera<Real> load_camera(const Real* view, const Real* k, Real width, Real height) {
  Camera<Real> c;
  VK_UNROLL
  for (int i = 0; i < 3; ++i) {
    VK_UNROLL
    for (int j = 0; j < 3; ++j) c.r[3 * i + j] = view[4 * i + j];
    c.t[i] = view[4 * i + 3];
  }
  c.fx = k[0], c.fy = k[4], c.cx = k[2], c.cy = k[5];
  const Real margin = Real(0.15);  // 30 % of half the image
  c.low_x = -(c.cx + margin * width) / c.fx, c.high_x = (width - c.cx + margin * width) / c.fx;
  c.low_y = -(c.cy + margin * height) / c.fy, c.high_y = (height - c.cy + margin * height) / c.fy;
  return c;
}

/// What both passes know of a Gaussian in a camera.
template <class Real>
struct Splat {
  Real x, y, z;             // in the camera
  Real inverse, ux, uy;     // 1 / z and the clamped x / z, y / z (ortho: 1, 0, 0)
  Real free_x, free_y;      // 1 where the clamp did nothing
  Real j00, j02, j11, j12;  // Jacobian
  Real chain[6];            // J R
  Real v[6];                // J R M (quaternions), or J R Sigma (covariances)
  Real xx, xy, yy, a, c;    // covariance; a = xx + eps2d, c = yy + eps2d
  Real det, share;          // of the blurred covariance; det(cov) / det
};

template <class Real>
VK_HD void quaternion_frame(Real w, Real x, Real y, Real z, Real& length, Real* u) {
  length = std::sqrt(w * w + x * x + y * y + z * z);
  const Real n = 1 / length;
  w *= n, x *= n, y *= n, z *= n;
  u[0] = 1 - 2 * (y * y + z * z), u[1] = 2 * (x * y - w * z), u[2] = 2 * (x * z + w * y);
  u[3] = 2 * (x * y + w * z), u[4] = 1 - 2 * (x * x + z * z), u[5] = 2 * (y * z - w * x);
  u[6] = 2 * (x * z - w * y), u[7] = 2 * (y * z + w * x), u[8] = 1 - 2 * (x * x + y * y);
}

/// `shape`: the nine of M, or the six of Sigma.
template <bool kQuats, bool kOrtho, class Real>
VK_HD void place(const Camera<Real>& k, Real mx, Real my, Real mz, const Real* shape, Real eps2d, Splat<Real>& s) {
  s.x = k.r[0] * mx + k.r[1] * my + k.r[2] * mz + k.t[0];
  s.y = k.r[3] * mx + k.r[4] * my + k.r[5] * mz + k.t[1];
  s.z = k.r[6] * mx + k.r[7] * my + k.r[8] * mz + k.t[2];
  if constexpr (kOrtho) {
    s.inverse = 1, s.ux = 0, s.uy = 0, s.free_x = 0, s.free_y = 0;
  } else {
    s.inverse = 1 / s.z;
    const Real ux = s.x * s.inverse, uy = s.y * s.inverse;
    s.free_x = (ux >= k.low_x) & (ux <= k.high_x) ? Real(1) : Real(0);
    s.free_y = (uy >= k.low_y) & (uy <= k.high_y) ? Real(1) : Real(0);
    const Real below_x = ux < k.high_x ? ux : k.high_x, below_y = uy < k.high_y ? uy : k.high_y;
    s.ux = below_x > k.low_x ? below_x : k.low_x;
    s.uy = below_y > k.low_y ? below_y : k.low_y;
  }
  s.j00 = k.fx * s.inverse, s.j11 = k.fy * s.inverse;
  s.j02 = -s.j00 * s.ux, s.j12 = -s.j11 * s.uy;
  VK_UNROLL
  for (int i = 0; i < 3; ++i) {
    s.chain[i] = s.j00 * k.r[i] + s.j02 * k.r[6 + i];
    s.chain[3 + i] = s.j11 * k.r[3 + i] + s.j12 * k.r[6 + i];
  }
  Real sharp;
  if constexpr (kQuats) {
    VK_UNROLL
    for (int i = 0; i < 3; ++i) {
      s.v[i] = s.chain[0] * shape[i] + s.chain[1] * shape[3 + i] + s.chain[2] * shape[6 + i];
      s.v[3 + i] = s.chain[3] * shape[i] + s.chain[4] * shape[3 + i] + s.chain[5] * shape[6 + i];
    }
    s.xx = s.v[0] * s.v[0] + s.v[1] * s.v[1] + s.v[2] * s.v[2];
    s.xy = s.v[0] * s.v[3] + s.v[1] * s.v[4] + s.v[2] * s.v[5];
    s.yy = s.v[3] * s.v[3] + s.v[4] * s.v[4] + s.v[5] * s.v[5];
    // xx yy - xy^2 as the squared cross product of V's rows: nothing cancels.
    const Real c0 = s.v[1] * s.v[5] - s.v[2] * s.v[4], c1 = s.v[2] * s.v[3] - s.v[0] * s.v[5];
    const Real c2 = s.v[0] * s.v[4] - s.v[1] * s.v[3];
    sharp = c0 * c0 + c1 * c1 + c2 * c2;
  } else {
    VK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Real* r = s.chain + 3 * i;
      s.v[3 * i] = r[0] * shape[0] + r[1] * shape[1] + r[2] * shape[2];
      s.v[3 * i + 1] = r[0] * shape[1] + r[1] * shape[3] + r[2] * shape[4];
      s.v[3 * i + 2] = r[0] * shape[2] + r[1] * shape[4] + r[2] * shape[5];
    }
    s.xx = s.v[0] * s.chain[0] + s.v[1] * s.chain[1] + s.v[2] * s.chain[2];
    s.xy = s.v[0] * s.chain[3] + s.v[1] * s.chain[4] + s.v[2] * s.chain[5];
    s.yy = s.v[3] * s.chain[3] + s.v[4] * s.chain[4] + s.v[5] * s.chain[5];
    sharp = s.xx * s.yy - s.xy * s.xy;
  }
  s.a = s.xx + eps2d, s.c = s.yy + eps2d;
  s.det = sharp + eps2d * (s.xx + s.yy) + eps2d * eps2d;
  s.share = sharp / s.det;
}

constexpr double kExtent = 3.33;  // standard deviations: exp(-3.33^2 / 2) is just below 1/255
constexpr double kFloor = 0.005;  // of the compensation

template <class Real>
struct Projected {
  Real u, v, conic[3], depth, extent[2], compensation;
};

template <class Real>
VK_HD void project(const Camera<Real>& k, const ProjectLimits<Real>& l, const Splat<Real>& s, Projected<Real>& o) {
  const Real u = k.fx * s.x * s.inverse + k.cx, v = k.fy * s.y * s.inverse + k.cy;
  const Real ex = Real(kExtent) * std::sqrt(s.a), ey = Real(kExtent) * std::sqrt(s.c);
  const Real rx = std::ceil(ex), ry = std::ceil(ey);
  // A comparison with NaN is false, a difference with itself of inf or NaN is not 0.
  const Real odd = (u - u) + (v - v) + (ex - ex) + (ey - ey) + (s.det - s.det);
  const bool seen = (s.z >= l.near_plane) & (s.z <= l.far_plane) & (s.det > 0) & (s.a > 0) & (s.c > 0) & (odd == 0) &
                    ((rx > l.radius_clip) | (ry > l.radius_clip)) & (u + rx > 0) & (u - rx < l.width) & (v + ry > 0) &
                    (v - ry < l.height);
  const Real scale = 1 / s.det;
  const Real bounded = s.share > Real(kFloor * kFloor) ? s.share : Real(kFloor * kFloor);
  const Real zero = 0;
  o.u = seen ? u : zero, o.v = seen ? v : zero;
  o.conic[0] = seen ? s.c * scale : zero, o.conic[1] = seen ? -s.xy * scale : zero;
  o.conic[2] = seen ? s.a * scale : zero;
  o.depth = seen ? s.z : zero;
  o.extent[0] = seen ? ex : zero, o.extent[1] = seen ? ey : zero;
  o.compensation = seen ? std::sqrt(bounded) : zero;
}

/// Adds to dm [3] and to dshape (the nine of M or the six of Sigma); writes dcamera (R, t, focal, centre).
template <bool kQuats, bool kOrtho, class Real>
VK_HD void project_backward(const Camera<Real>& k, const Splat<Real>& s, const Projected<Real>& g, const Real* m,
                            const Real* shape, bool seen, Real* dm, Real* dshape, Real* dcamera) {
  const Real zero = 0;
  // D, symmetric, with dL = trace(D dcov): -Q G Q from the conic Q, then compensation and extents.
  const Real n = 1 / s.det, q0 = s.c * n, q1 = -s.xy * n, q2 = s.a * n, half = g.conic[1] / 2;
  const Real m00 = g.conic[0] * q0 + half * q1, m01 = g.conic[0] * q1 + half * q2;
  const Real m10 = half * q0 + g.conic[2] * q1, m11 = half * q1 + g.conic[2] * q2;
  const bool open = s.share > Real(kFloor * kFloor);
  const Real w = open ? g.compensation * n / (2 * std::sqrt(s.share)) : zero;
  const Real e = Real(kExtent / 2);
  const Real d0 = -(q0 * m00 + q1 * m10) + w * (s.yy - s.share * s.c) + g.extent[0] * e / std::sqrt(s.a);
  const Real d1 = -(q0 * m01 + q1 * m11) - w * (1 - s.share) * s.xy;
  const Real d2 = -(q1 * m01 + q2 * m11) + w * (s.xx - s.share * s.a) + g.extent[1] * e / std::sqrt(s.c);
  // 2 D V: to V itself with quaternions, to J R with covariances (V = J R Sigma and Sigma is symmetric).
  Real dv[6], dchain[6];
  VK_UNROLL
  for (int i = 0; i < 3; ++i) {
    dv[i] = 2 * (d0 * s.v[i] + d1 * s.v[3 + i]);
    dv[3 + i] = 2 * (d1 * s.v[i] + d2 * s.v[3 + i]);
  }
  if constexpr (kQuats) {
    VK_UNROLL
    for (int i = 0; i < 3; ++i) {
      dchain[i] = dv[0] * shape[3 * i] + dv[1] * shape[3 * i + 1] + dv[2] * shape[3 * i + 2];
      dchain[3 + i] = dv[3] * shape[3 * i] + dv[4] * shape[3 * i + 1] + dv[5] * shape[3 * i + 2];
      VK_UNROLL
      for (int j = 0; j < 3; ++j) dshape[3 * i + j] += seen ? s.chain[i] * dv[j] + s.chain[3 + i] * dv[3 + j] : zero;
    }
  } else {
    VK_UNROLL
    for (int i = 0; i < 6; ++i) dchain[i] = dv[i];
    Real left[6];  // D J R
    VK_UNROLL
    for (int i = 0; i < 3; ++i) {
      left[i] = d0 * s.chain[i] + d1 * s.chain[3 + i];
      left[3 + i] = d1 * s.chain[i] + d2 * s.chain[3 + i];
    }
    const Real* c = s.chain;
    dshape[0] += seen ? c[0] * left[0] + c[3] * left[3] : zero;
    dshape[1] += seen ? 2 * (c[0] * left[1] + c[3] * left[4]) : zero;
    dshape[2] += seen ? 2 * (c[0] * left[2] + c[3] * left[5]) : zero;
    dshape[3] += seen ? c[1] * left[1] + c[4] * left[4] : zero;
    dshape[4] += seen ? 2 * (c[1] * left[2] + c[4] * left[5]) : zero;
    dshape[5] += seen ? c[2] * left[2] + c[5] * left[5] : zero;
  }
  const Real dj00 = dchain[0] * k.r[0] + dchain[1] * k.r[1] + dchain[2] * k.r[2];
  const Real dj11 = dchain[3] * k.r[3] + dchain[4] * k.r[4] + dchain[5] * k.r[5];
  const Real dj02 = dchain[0] * k.r[6] + dchain[1] * k.r[7] + dchain[2] * k.r[8];
  const Real dj12 = dchain[3] * k.r[6] + dchain[4] * k.r[7] + dchain[5] * k.r[8];
  Real dx = g.u * s.j00, dy = g.v * s.j11, dz = g.depth;
  Real dfx = (g.u * s.x + dj00) * s.inverse, dfy = (g.v * s.y + dj11) * s.inverse, dcx = g.u, dcy = g.v;
  if constexpr (!kOrtho) {
    const Real dux = -dj02 * s.j00, duy = -dj12 * s.j11;
    const Real free_x = s.free_x * dux, free_y = s.free_y * duy;
    dx += free_x * s.inverse, dy += free_y * s.inverse;
    const Real tx = g.u * s.x + dj00 - dj02 * s.ux, ty = g.v * s.y + dj11 - dj12 * s.uy;
    dz -= (tx * k.fx + ty * k.fy + free_x * s.x + free_y * s.y) * s.inverse * s.inverse;
    // A clamped ratio is (constant - centre) / focal.
    const Real stuck_x = (dux - free_x) / k.fx, stuck_y = (duy - free_y) / k.fy;
    dfx = tx * s.inverse - stuck_x * s.ux, dfy = ty * s.inverse - stuck_y * s.uy;
    dcx -= stuck_x, dcy -= stuck_y;
  }
  VK_UNROLL
  for (int i = 0; i < 3; ++i) {
    dm[i] += seen ? k.r[i] * dx + k.r[3 + i] * dy + k.r[6 + i] * dz : zero;
    dcamera[i] = seen ? s.j00 * dchain[i] + dx * m[i] : zero;
    dcamera[3 + i] = seen ? s.j11 * dchain[3 + i] + dy * m[i] : zero;
    dcamera[6 + i] = seen ? s.j02 * dchain[i] + s.j12 * dchain[3 + i] + dz * m[i] : zero;
  }
  dcamera[9] = seen ? dx : zero, dcamera[10] = seen ? dy : zero, dcamera[11] = seen ? dz : zero;
  dcamera[12] = seen ? dfx : zero, dcamera[13] = seen ? dfy : zero;
  dcamera[14] = seen ? dcx : zero, dcamera[15] = seen ? dcy : zero;
}

/// From M = U diag(scale), U of the normalised quaternion q, to both.
template <class Real>
VK_HD void frame_backward(const Real* q, const Real* scale, const Real* dframe, Real* dq, Real* dscale) {
  Real length, u[9], g[9];
  quaternion_frame(q[0], q[1], q[2], q[3], length, u);
  VK_UNROLL
  for (int j = 0; j < 3; ++j) {
    dscale[j] = u[j] * dframe[j] + u[3 + j] * dframe[3 + j] + u[6 + j] * dframe[6 + j];
    VK_UNROLL
    for (int i = 0; i < 3; ++i) g[3 * i + j] = dframe[3 * i + j] * scale[j];
  }
  const Real n = 1 / length, w = q[0] * n, x = q[1] * n, y = q[2] * n, z = q[3] * n;
  const Real dw = 2 * (z * (g[3] - g[1]) + y * (g[2] - g[6]) + x * (g[7] - g[5]));
  const Real dx = 2 * (y * (g[1] + g[3]) + z * (g[2] + g[6]) + w * (g[7] - g[5]) - 2 * x * (g[4] + g[8]));
  const Real dy = 2 * (x * (g[1] + g[3]) + z * (g[5] + g[7]) + w * (g[2] - g[6]) - 2 * y * (g[0] + g[8]));
  const Real dz = 2 * (x * (g[2] + g[6]) + y * (g[5] + g[7]) + w * (g[3] - g[1]) - 2 * z * (g[0] + g[4]));
  const Real along = w * dw + x * dx + y * dy + z * dz;
  dq[0] = (dw - w * along) * n, dq[1] = (dx - x * along) * n;
  dq[2] = (dy - y * along) * n, dq[3] = (dz - z * along) * n;
}

}  // namespace
}  // namespace vk
