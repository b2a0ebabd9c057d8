// Who owns what
//   forward   thread n: Gaussian n at every moment, its parameters in registers
//   backward  the same; the block (kSliceBlock Gaussians) adds what goes to a moment and writes it to `partial`
//   moments   thread t adds the blocks in ascending order: the same bits on every run
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/slice_spacetime/slice_spacetime.h"
#include "ops/slice_spacetime/slice_spacetime_math.h"

namespace vk {
namespace {

constexpr int kThreads = kSliceBlock;

template <class Real>
__global__ void slice_spacetime_forward_kernel(const Real* __restrict__ means, const Real* __restrict__ cholesky,
                                               const Real* __restrict__ times, Real* __restrict__ means2d,
                                               Real* __restrict__ cholesky2d, Real* __restrict__ weight, int64_t count,
                                               int64_t moments) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= count) return;
  const Slice<Real> s = slice_of(cholesky + n * 6);
  const Real x = means[n * 3], y = means[n * 3 + 1], centre = means[n * 3 + 2];
  cholesky2d[n * 3] = s.alive ? s.l11 * s.q11 : s.l11;
  cholesky2d[n * 3 + 1] = s.alive ? s.l21 * s.q11 + s.l22 * s.q21 : s.l21;
  cholesky2d[n * 3 + 2] = s.alive ? s.l22 * s.q22 : s.l22;
  for (int64_t t = 0; t < moments; ++t) {
    const Real ahead = times[t] - centre;
    store_vec<2>(means2d + (t * count + n) * 2,
                 Vec<Real, 2>{{s.alive ? x + s.gain_x * ahead : x, s.alive ? y + s.gain_y * ahead : y}});
    weight[t * count + n] = s.alive ? std::exp(-ahead * ahead / (2 * s.variance)) : Real(0);
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    slice_spacetime_backward_kernel(const Real* __restrict__ grad_means2d, const Real* __restrict__ grad_cholesky2d,
                                    const Real* __restrict__ grad_weight, const Real* __restrict__ means,
                                    const Real* __restrict__ cholesky, const Real* __restrict__ times,
                                    Real* __restrict__ grad_means, Real* __restrict__ grad_cholesky,
                                    double* __restrict__ partial, int64_t count, int64_t moments) {
  __shared__ double scratch[32];
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const bool inside = thread < count;
  const int64_t n = inside ? thread : count - 1;
  const Slice<Real> s = slice_of(cholesky + n * 6);
  const Real centre = means[n * 3 + 2];
  Real dx = 0, dy = 0, dt = 0, to_gain_x = 0, to_gain_y = 0, to_variance = 0;
  for (int64_t t = 0; t < moments; ++t) {
    const Vec<Real, 2> g = load_vec<2>(grad_means2d + (t * count + n) * 2);
    const Real ahead = times[t] - centre;
    const Real slope = grad_weight[t * count + n] * std::exp(-ahead * ahead / (2 * s.variance)) * ahead / s.variance;
    const Real to_ahead = g[0] * s.gain_x + g[1] * s.gain_y - slope;
    dx += g[0], dy += g[1], dt -= to_ahead;
    to_gain_x += g[0] * ahead, to_gain_y += g[1] * ahead;
    to_variance += slope * ahead;
    const double sum = block_sum(inside && s.alive ? double(to_ahead) : 0.0, scratch);
    if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * moments + t] = sum;
    __syncthreads();
  }
  if (!inside) return;
  const Real c[3] = {grad_cholesky2d[n * 3], grad_cholesky2d[n * 3 + 1], grad_cholesky2d[n * 3 + 2]};
  Real dl[6];
  slice_backward(s, to_gain_x, to_gain_y, to_variance / (2 * s.variance), c, dl);
#pragma unroll
  for (int i = 0; i < 6; ++i) grad_cholesky[n * 6 + i] = dl[i];
  grad_means[n * 3] = s.alive ? dx : Real(0);
  grad_means[n * 3 + 1] = s.alive ? dy : Real(0);
  grad_means[n * 3 + 2] = s.alive ? dt : Real(0);
}

template <class Real>
__global__ void slice_spacetime_moments_kernel(const double* __restrict__ partial, Real* __restrict__ grad_times,
                                               int64_t blocks, int64_t moments) {
  const int64_t t = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= moments) return;
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * moments + t];
  grad_times[t] = Real(sum);
}

template <class Real>
void launch_forward(const SliceSpacetime& a, vk_stream_t stream) {
  const auto in = [](const void* p) { return static_cast<const Real*>(p); };
  const auto out = [](void* p) { return static_cast<Real*>(p); };
  VK_LAUNCH((slice_spacetime_forward_kernel<Real>), unsigned((a.count + kThreads - 1) / kThreads), kThreads, 0, stream,
            in(a.means), in(a.cholesky), in(a.times), out(a.means2d), out(a.cholesky2d), out(a.weight), a.count,
            a.moments);
}

template <class Real>
void launch_backward(const SliceSpacetimeBackward& a, vk_stream_t stream) {
  const auto in = [](const void* p) { return static_cast<const Real*>(p); };
  const auto out = [](void* p) { return static_cast<Real*>(p); };
  const int64_t blocks = (a.count + kThreads - 1) / kThreads;
  if (blocks > 0)
    VK_LAUNCH((slice_spacetime_backward_kernel<Real>), unsigned(blocks), kThreads, 0, stream, in(a.grad_means2d),
              in(a.grad_cholesky2d), in(a.grad_weight), in(a.means), in(a.cholesky), in(a.times), out(a.grad_means),
              out(a.grad_cholesky), a.partial, a.count, a.moments);
  if (a.moments > 0)
    VK_LAUNCH((slice_spacetime_moments_kernel<Real>), unsigned((a.moments + kThreads - 1) / kThreads), kThreads, 0,
              stream, static_cast<const double*>(a.partial), out(a.grad_times), blocks, a.moments);
}

}  // namespace

void slice_spacetime_cuda(const SliceSpacetime& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.count == 0) return;
  a.element == Element::f64 ? launch_forward<double>(a, stream) : launch_forward<float>(a, stream);
}

void slice_spacetime_backward_cuda(const SliceSpacetimeBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  a.element == Element::f64 ? launch_backward<double>(a, stream) : launch_backward<float>(a, stream);
}

}  // namespace vk
