// Who owns what
//   forward   thread n of grid row b: Gaussian n, one camera after the other
//   backward  the same; its gradients stay in registers over the cameras. Where a camera wants a gradient the block
//             (kProjectBlock Gaussians) adds its sixteen numbers and writes them to `partial`
//   cameras   one thread per (camera, number) adds the blocks in ascending order: the same bits on every run
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/project_gaussians/project_gaussians.h"
#include "ops/project_gaussians/project_gaussians_math.h"

namespace vk {
namespace {

constexpr int kThreads = kProjectBlock;

template <bool kQuats, class Real>
__device__ __forceinline__ void load_shape(const Real* shapes, const Real* scales, int64_t at, Real* shape) {
  if constexpr (kQuats) {
    const Real *q = shapes + at * 4, *s = scales + at * 3;
    Real length, u[9];
    quaternion_frame(q[0], q[1], q[2], q[3], length, u);
#pragma unroll
    for (int i = 0; i < 9; ++i) shape[i] = u[i] * s[i % 3];
  } else {
#pragma unroll
    for (int i = 0; i < 6; ++i) shape[i] = shapes[at * 6 + i];
  }
}

template <bool kQuats, bool kOrtho, class Real>
__global__ void __launch_bounds__(kThreads)
    project_gaussians_forward_kernel(const Real* __restrict__ means, const Real* __restrict__ shapes,
                                     const Real* __restrict__ scales, const Real* __restrict__ viewmats,
                                     const Real* __restrict__ Ks, Real* __restrict__ means2d, Real* __restrict__ conics,
                                     Real* __restrict__ depths, Real* __restrict__ extents,
                                     Real* __restrict__ compensations, ProjectLimits<Real> limits, int64_t count,
                                     int64_t views) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  if (n >= count) return;
  const int64_t own = b * count + n;
  Real shape[kQuats ? 9 : 6];
  load_shape<kQuats>(shapes, scales, own, shape);
  const Real x = means[own * 3], y = means[own * 3 + 1], z = means[own * 3 + 2];
  for (int64_t c = 0; c < views; ++c) {
    const int64_t view = b * views + c, at = view * count + n;
    const Camera<Real> camera = load_camera(viewmats + view * 16, Ks + view * 9, limits.width, limits.height);
    Splat<Real> s;
    Projected<Real> o;
    place<kQuats, kOrtho>(camera, x, y, z, shape, limits.eps2d, s);
    project(camera, limits, s, o);
    store_vec<2>(means2d + at * 2, Vec<Real, 2>{{o.u, o.v}});
    conics[at * 3] = o.conic[0], conics[at * 3 + 1] = o.conic[1], conics[at * 3 + 2] = o.conic[2];
    depths[at] = o.depth;
    store_vec<2>(extents + at * 2, Vec<Real, 2>{{o.extent[0], o.extent[1]}});
    compensations[at] = o.compensation;
  }
}

template <class Real>
struct BackwardArguments {
  const Real *grad_means2d, *grad_conics, *grad_depths, *grad_extents, *grad_compensations;
  const Real *means, *shapes, *scales, *viewmats, *Ks, *extents;
  Real *grad_means, *grad_shapes, *grad_scales;
  double* partial;
  Real width, height, eps2d;
  int64_t count, views;
};

template <bool kQuats, bool kOrtho, class Real>
__global__ void __launch_bounds__(kThreads) project_gaussians_backward_kernel(BackwardArguments<Real> a) {
  constexpr int kShape = kQuats ? 9 : 6;
  __shared__ double warp_sums[kThreads / 32 * kProjectCamera];
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, b = blockIdx.y;
  const bool inside = n < a.count;
  const int64_t own = b * a.count + (inside ? n : a.count - 1);
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  Real shape[kShape], dshape[kShape] = {}, dm[3] = {};
  load_shape<kQuats>(a.shapes, a.scales, own, shape);
  const Real m[3] = {a.means[own * 3], a.means[own * 3 + 1], a.means[own * 3 + 2]};
  bool any = false;
  for (int64_t c = 0; c < a.views; ++c) {
    const int64_t view = b * a.views + c, at = view * a.count + (inside ? n : a.count - 1);
    const Camera<Real> camera = load_camera(a.viewmats + view * 16, a.Ks + view * 9, a.width, a.height);
    const Vec<Real, 2> mean = load_vec<2>(a.grad_means2d + at * 2), extent = load_vec<2>(a.grad_extents + at * 2);
    const bool seen = inside && a.extents[at * 2] > 0;
    any |= seen;
    const Projected<Real> g{mean[0],
                            mean[1],
                            {a.grad_conics[at * 3], a.grad_conics[at * 3 + 1], a.grad_conics[at * 3 + 2]},
                            a.grad_depths[at],
                            {extent[0], extent[1]},
                            a.grad_compensations[at]};
    Splat<Real> s;
    Real dcamera[kProjectCamera];
    place<kQuats, kOrtho>(camera, m[0], m[1], m[2], shape, a.eps2d, s);
    project_backward<kQuats, kOrtho>(camera, s, g, m, shape, seen, dm, dshape, dcamera);
    if (a.partial) {
#pragma unroll
      for (int d = 0; d < kProjectCamera; ++d) {
        const double sum = warp_sum(double(dcamera[d]));
        if (lane == 0) warp_sums[warp * kProjectCamera + d] = sum;
      }
      __syncthreads();
      if (threadIdx.x < kProjectCamera) {
        double sum = 0;
        for (int w = 0; w < kThreads / 32; ++w) sum += warp_sums[w * kProjectCamera + threadIdx.x];
        a.partial[((b * gridDim.x + blockIdx.x) * a.views + c) * kProjectCamera + threadIdx.x] = sum;
      }
      __syncthreads();
    }
  }
  if (!inside) return;
#pragma unroll
  for (int i = 0; i < 3; ++i) a.grad_means[own * 3 + i] = dm[i];
  if constexpr (kQuats) {
    Real q[4], scale[3], dq[4], dscale[3];
#pragma unroll
    for (int i = 0; i < 4; ++i) q[i] = a.shapes[own * 4 + i];
#pragma unroll
    for (int i = 0; i < 3; ++i) scale[i] = a.scales[own * 3 + i];
    frame_backward(q, scale, dshape, dq, dscale);
#pragma unroll
    for (int i = 0; i < 4; ++i) a.grad_shapes[own * 4 + i] = any ? dq[i] : Real(0);
#pragma unroll
    for (int i = 0; i < 3; ++i) a.grad_scales[own * 3 + i] = any ? dscale[i] : Real(0);
  } else {
#pragma unroll
    for (int i = 0; i < 6; ++i) a.grad_shapes[own * 6 + i] = dshape[i];
  }
}

/// Zeros elsewhere: the last row of a viewmat, the fixed numbers of a K.
template <class Real>
__global__ void project_gaussians_cameras_kernel(const double* __restrict__ partial, Real* __restrict__ grad_viewmats,
                                                 Real* __restrict__ grad_Ks, int64_t blocks, int64_t views,
                                                 int64_t all) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= all * 25) return;
  const int64_t view = i / 25, b = view / views, c = view % views;
  const int slot = int(i % 25);
  int d = -1;
  if (slot < 12) d = slot % 4 < 3 ? slot / 4 * 3 + slot % 4 : 9 + slot / 4;
  if (slot == 16) d = 12;
  if (slot == 20) d = 13;
  if (slot == 18) d = 14;
  if (slot == 21) d = 15;
  double sum = 0;
  if (d >= 0)
    for (int64_t block = 0; block < blocks; ++block)
      sum += partial[((b * blocks + block) * views + c) * kProjectCamera + d];
  (slot < 16 ? grad_viewmats + view * 16 + slot : grad_Ks + view * 9 + slot - 16)[0] = Real(sum);
}

template <bool kQuats, bool kOrtho, class Real>
void launch_forward(const ProjectGaussians& a, vk_stream_t stream) {
  const auto in = [](const void* p) { return static_cast<const Real*>(p); };
  const auto out = [](void* p) { return static_cast<Real*>(p); };
  const ProjectLimits<Real> limits{Real(a.width),      Real(a.height),    Real(a.eps2d),
                                   Real(a.near_plane), Real(a.far_plane), Real(a.radius_clip)};
  VK_LAUNCH((project_gaussians_forward_kernel<kQuats, kOrtho, Real>),
            dim3(unsigned((a.count + kThreads - 1) / kThreads), unsigned(a.batch)), kThreads, 0, stream, in(a.means),
            in(a.shapes), in(a.scales), in(a.viewmats), in(a.Ks), out(a.means2d), out(a.conics), out(a.depths),
            out(a.extents), out(a.compensations), limits, a.count, a.views);
}

template <bool kQuats, bool kOrtho, class Real>
void launch_backward(const ProjectGaussiansBackward& a, vk_stream_t stream) {
  const auto in = [](const void* p) { return static_cast<const Real*>(p); };
  const auto out = [](void* p) { return static_cast<Real*>(p); };
  const int64_t blocks = (a.count + kThreads - 1) / kThreads, all = a.batch * a.views;
  const BackwardArguments<Real> arguments{
      in(a.grad_means2d),       in(a.grad_conics),  in(a.grad_depths), in(a.grad_extents),
      in(a.grad_compensations), in(a.means),        in(a.shapes),      in(a.scales),
      in(a.viewmats),           in(a.Ks),           in(a.extents),     out(a.grad_means),
      out(a.grad_shapes),       out(a.grad_scales), a.partial,         Real(a.width),
      Real(a.height),           Real(a.eps2d),      a.count,           a.views};
  if (a.batch * a.count > 0)
    VK_LAUNCH((project_gaussians_backward_kernel<kQuats, kOrtho, Real>), dim3(unsigned(blocks), unsigned(a.batch)),
              kThreads, 0, stream, arguments);
  if (a.partial && all > 0)
    VK_LAUNCH((project_gaussians_cameras_kernel<Real>), unsigned((all * 25 + kThreads - 1) / kThreads), kThreads, 0,
              stream, static_cast<const double*>(a.partial), out(a.grad_viewmats), out(a.grad_Ks), blocks, a.views,
              all);
}

template <class Real>
void forward_any(const ProjectGaussians& a, vk_stream_t stream) {
  if (a.scales)
    return a.ortho ? launch_forward<true, true, Real>(a, stream) : launch_forward<true, false, Real>(a, stream);
  return a.ortho ? launch_forward<false, true, Real>(a, stream) : launch_forward<false, false, Real>(a, stream);
}

template <class Real>
void backward_any(const ProjectGaussiansBackward& a, vk_stream_t stream) {
  if (a.scales)
    return a.ortho ? launch_backward<true, true, Real>(a, stream) : launch_backward<true, false, Real>(a, stream);
  return a.ortho ? launch_backward<false, true, Real>(a, stream) : launch_backward<false, false, Real>(a, stream);
}

}  // namespace

void project_gaussians_cuda(const ProjectGaussians& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.count * a.views == 0) return;
  a.element == Element::f64 ? forward_any<double>(a, stream) : forward_any<float>(a, stream);
}

void project_gaussians_backward_cuda(const ProjectGaussiansBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  a.element == Element::f64 ? backward_any<double>(a, stream) : backward_any<float>(a, stream);
}

}  // namespace vk
