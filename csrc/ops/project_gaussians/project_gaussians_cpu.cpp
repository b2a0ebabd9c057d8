// kLanes Gaussians at a time are turned into columns, so that one loop over lanes does the arithmetic of all of them;
// the loop over cameras is inside, so that their gradients meet in registers and cache. The loops over lanes say
// ivdep, not omp simd: under the latter GCC keeps the small arrays of a lane in memory and gives up.
//
// Gradients of cameras: each lane keeps a sum over its kProjectBlock / kLanes Gaussians, lanes are added in order, the
// blocks in order after all of them are done: the same bits for any number of threads.
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "ops/project_gaussians/project_gaussians.h"
#include "ops/project_gaussians/project_gaussians_math.h"

namespace vk::VK_ISA {
namespace {

constexpr int kLanes = 64;

/// n <= kLanes rows of `width` numbers as columns; the lanes behind n repeat the last row.
template <int kWidth, class Real>
void load(const Real* rows, int n, Real (*columns)[kLanes]) {
  for (int d = 0; d < kWidth; ++d) {
    for (int i = 0; i < n; ++i) columns[d][i] = rows[i * kWidth + d];
    for (int i = n; i < kLanes; ++i) columns[d][i] = columns[d][n - 1];
  }
}

template <int kWidth, class Real>
void store(Real* rows, int n, const Real (*columns)[kLanes]) {
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < kWidth; ++d) rows[i * kWidth + d] = columns[d][i];
}

/// Columns of the nine of M (quaternions) or the six of Sigma.
template <bool kQuats, class Real>
void load_shapes(const Real* shapes, const Real* scales, int64_t first, int n, Real (*shape)[kLanes]) {
  if constexpr (kQuats) {
    Real q[4][kLanes], s[3][kLanes];
    load<4>(shapes + first * 4, n, q);
    load<3>(scales + first * 3, n, s);
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) {
      Real length, u[9];
      quaternion_frame(q[0][i], q[1][i], q[2][i], q[3][i], length, u);
      VK_UNROLL
      for (int d = 0; d < 9; ++d) shape[d][i] = u[d] * s[d % 3][i];
    }
  } else {
    load<6>(shapes + first * 6, n, shape);
  }
}

template <bool kQuats, bool kOrtho, class Real>
void forward(const ProjectGaussians& a) {
  constexpr int kShape = kQuats ? 9 : 6;
  const int64_t groups = (a.count + kLanes - 1) / kLanes;
  const ProjectLimits<Real> limits{Real(a.width),      Real(a.height),    Real(a.eps2d),
                                   Real(a.near_plane), Real(a.far_plane), Real(a.radius_clip)};
  parallel_for(a.batch * groups, 1 + 16384 / (kLanes * (a.views + 1)), [&](int64_t g0, int64_t g1) {
    for (int64_t group = g0; group < g1; ++group) {
      const int64_t b = group / groups, n0 = group % groups * kLanes;
      const int n = int(a.count - n0 < kLanes ? a.count - n0 : kLanes);
      Real m[3][kLanes], shape[kShape][kLanes];
      load<3>(static_cast<const Real*>(a.means) + (b * a.count + n0) * 3, n, m);
      load_shapes<kQuats>(static_cast<const Real*>(a.shapes), static_cast<const Real*>(a.scales), b * a.count + n0, n,
                          shape);
      for (int64_t c = 0; c < a.views; ++c) {
        const int64_t view = b * a.views + c, at = view * a.count + n0;
        const Camera<Real> camera = load_camera(static_cast<const Real*>(a.viewmats) + view * 16,
                                                static_cast<const Real*>(a.Ks) + view * 9, limits.width, limits.height);
        Real mean[2][kLanes], conic[3][kLanes], depth[1][kLanes], extent[2][kLanes], compensation[1][kLanes];
#pragma GCC ivdep
        for (int i = 0; i < kLanes; ++i) {
          Real own[kShape];
          VK_UNROLL
          for (int d = 0; d < kShape; ++d) own[d] = shape[d][i];
          Splat<Real> s;
          Projected<Real> o;
          place<kQuats, kOrtho>(camera, m[0][i], m[1][i], m[2][i], own, limits.eps2d, s);
          project(camera, limits, s, o);
          mean[0][i] = o.u, mean[1][i] = o.v, depth[0][i] = o.depth, compensation[0][i] = o.compensation;
          conic[0][i] = o.conic[0], conic[1][i] = o.conic[1], conic[2][i] = o.conic[2];
          extent[0][i] = o.extent[0], extent[1][i] = o.extent[1];
        }
        store<2>(static_cast<Real*>(a.means2d) + at * 2, n, mean);
        store<3>(static_cast<Real*>(a.conics) + at * 3, n, conic);
        store<1>(static_cast<Real*>(a.depths) + at, n, depth);
        store<2>(static_cast<Real*>(a.extents) + at * 2, n, extent);
        store<1>(static_cast<Real*>(a.compensations) + at, n, compensation);
      }
    }
  });
}

template <bool kQuats, bool kOrtho, class Real>
void backward_lanes(const ProjectGaussiansBackward& a, int64_t b, int64_t n0, int n, double* partial) {
  constexpr int kShape = kQuats ? 9 : 6;
  const int64_t first = b * a.count + n0;
  const Real eps2d = Real(a.eps2d);
  Real m[3][kLanes], shape[kShape][kLanes], dm[3][kLanes] = {}, dshape[kShape][kLanes] = {}, any[kLanes] = {};
  load<3>(static_cast<const Real*>(a.means) + first * 3, n, m);
  load_shapes<kQuats>(static_cast<const Real*>(a.shapes), static_cast<const Real*>(a.scales), first, n, shape);
  for (int64_t c = 0; c < a.views; ++c) {
    const int64_t view = b * a.views + c, at = view * a.count + n0;
    const Camera<Real> camera = load_camera(static_cast<const Real*>(a.viewmats) + view * 16,
                                            static_cast<const Real*>(a.Ks) + view * 9, Real(a.width), Real(a.height));
    Real mean[2][kLanes], conic[3][kLanes], depth[1][kLanes], extent[2][kLanes], compensation[1][kLanes];
    Real old[2][kLanes], dcamera[kProjectCamera][kLanes];
    load<2>(static_cast<const Real*>(a.grad_means2d) + at * 2, n, mean);
    load<3>(static_cast<const Real*>(a.grad_conics) + at * 3, n, conic);
    load<1>(static_cast<const Real*>(a.grad_depths) + at, n, depth);
    load<2>(static_cast<const Real*>(a.grad_extents) + at * 2, n, extent);
    load<1>(static_cast<const Real*>(a.grad_compensations) + at, n, compensation);
    load<2>(static_cast<const Real*>(a.extents) + at * 2, n, old);
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) {
      Real own[kShape], to_mean[3], to_shape[kShape], to_camera[kProjectCamera];
      VK_UNROLL
      for (int d = 0; d < kShape; ++d) own[d] = shape[d][i], to_shape[d] = dshape[d][i];
      VK_UNROLL
      for (int d = 0; d < 3; ++d) to_mean[d] = dm[d][i];
      const Real point[3] = {m[0][i], m[1][i], m[2][i]};
      const bool seen = old[0][i] > 0;
      const Projected<Real> g{mean[0][i],
                              mean[1][i],
                              {conic[0][i], conic[1][i], conic[2][i]},
                              depth[0][i],
                              {extent[0][i], extent[1][i]},
                              compensation[0][i]};
      Splat<Real> s;
      place<kQuats, kOrtho>(camera, point[0], point[1], point[2], own, eps2d, s);
      project_backward<kQuats, kOrtho>(camera, s, g, point, own, seen, to_mean, to_shape, to_camera);
      any[i] = seen ? Real(1) : any[i];
      VK_UNROLL
      for (int d = 0; d < kShape; ++d) dshape[d][i] = to_shape[d];
      VK_UNROLL
      for (int d = 0; d < 3; ++d) dm[d][i] = to_mean[d];
      VK_UNROLL
      for (int d = 0; d < kProjectCamera; ++d) dcamera[d][i] = to_camera[d];
    }
    if (partial)
      for (int d = 0; d < kProjectCamera; ++d) {
        double sum = 0;
        for (int i = 0; i < n; ++i) sum += double(dcamera[d][i]);
        partial[c * kProjectCamera + d] += sum;
      }
  }
  store<3>(static_cast<Real*>(a.grad_means) + first * 3, n, dm);
  if constexpr (kQuats) {
    Real q[4][kLanes], s[3][kLanes], dq[4][kLanes], ds[3][kLanes];
    load<4>(static_cast<const Real*>(a.shapes) + first * 4, n, q);
    load<3>(static_cast<const Real*>(a.scales) + first * 3, n, s);
#pragma GCC ivdep
    for (int i = 0; i < kLanes; ++i) {
      const Real quat[4] = {q[0][i], q[1][i], q[2][i], q[3][i]}, scale[3] = {s[0][i], s[1][i], s[2][i]};
      Real dframe[9], to_quat[4], to_scale[3];
      VK_UNROLL
      for (int d = 0; d < 9; ++d) dframe[d] = dshape[d][i];
      frame_backward(quat, scale, dframe, to_quat, to_scale);
      VK_UNROLL
      for (int d = 0; d < 4; ++d) dq[d][i] = any[i] > 0 ? to_quat[d] : Real(0);
      VK_UNROLL
      for (int d = 0; d < 3; ++d) ds[d][i] = any[i] > 0 ? to_scale[d] : Real(0);
    }
    store<4>(static_cast<Real*>(a.grad_shapes) + first * 4, n, dq);
    store<3>(static_cast<Real*>(a.grad_scales) + first * 3, n, ds);
  } else {
    store<6>(static_cast<Real*>(a.grad_shapes) + first * 6, n, dshape);
  }
}

template <class Real>
void sum_cameras(const ProjectGaussiansBackward& a, int64_t blocks) {
  for (int64_t view = 0; view < a.batch * a.views; ++view) {
    const int64_t b = view / a.views, c = view % a.views;
    double sum[kProjectCamera] = {};
    for (int64_t block = 0; block < blocks; ++block)
      for (int d = 0; d < kProjectCamera; ++d)
        sum[d] += a.partial[((b * blocks + block) * a.views + c) * kProjectCamera + d];
    Real* viewmat = static_cast<Real*>(a.grad_viewmats) + view * 16;
    Real* k = static_cast<Real*>(a.grad_Ks) + view * 9;
    for (int i = 0; i < 16; ++i) viewmat[i] = 0;
    for (int i = 0; i < 9; ++i) k[i] = 0;
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) viewmat[4 * i + j] = Real(sum[3 * i + j]);
      viewmat[4 * i + 3] = Real(sum[9 + i]);
    }
    k[0] = Real(sum[12]), k[4] = Real(sum[13]), k[2] = Real(sum[14]), k[5] = Real(sum[15]);
  }
}

template <bool kQuats, bool kOrtho, class Real>
void backward(const ProjectGaussiansBackward& a) {
  const int64_t blocks = (a.count + kProjectBlock - 1) / kProjectBlock;
  parallel_for(a.batch * blocks, 1 + 8192 / (kProjectBlock * (a.views + 1)), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / blocks, begin = i % blocks * kProjectBlock;
      const int64_t end = begin + kProjectBlock < a.count ? begin + kProjectBlock : a.count;
      double* partial = a.partial ? a.partial + i * a.views * kProjectCamera : nullptr;
      if (partial) std::memset(partial, 0, size_t(a.views * kProjectCamera) * sizeof(double));
      for (int64_t n0 = begin; n0 < end; n0 += kLanes)
        backward_lanes<kQuats, kOrtho, Real>(a, b, n0, int(end - n0 < kLanes ? end - n0 : kLanes), partial);
    }
  });
  if (a.partial) sum_cameras<Real>(a, blocks);
}

template <class Real>
void forward_any(const ProjectGaussians& a) {
  if (a.scales) return a.ortho ? forward<true, true, Real>(a) : forward<true, false, Real>(a);
  return a.ortho ? forward<false, true, Real>(a) : forward<false, false, Real>(a);
}

template <class Real>
void backward_any(const ProjectGaussiansBackward& a) {
  if (a.scales) return a.ortho ? backward<true, true, Real>(a) : backward<true, false, Real>(a);
  return a.ortho ? backward<false, true, Real>(a) : backward<false, false, Real>(a);
}

}  // namespace

void project_gaussians(const ProjectGaussians& a) {
  a.element == Element::f64 ? forward_any<double>(a) : forward_any<float>(a);
}

void project_gaussians_backward(const ProjectGaussiansBackward& a) {
  a.element == Element::f64 ? backward_any<double>(a) : backward_any<float>(a);
}

}  // namespace vk::VK_ISA
