// Who owns what (an element is one (n, d))
//   forward   thread: one element at every moment. Dense bases keep its twelve coefficients in registers; a spline
//             reads four per moment, neighbours of the last ones and so in cache
//   backward  dense: thread per element, twelve sums in registers. Spline: thread per coefficient, which takes the
//             moments whose four coefficients it is among
//   moments   block: kMotionBlock Gaussians, one sum per moment; then a thread per moment adds the blocks in order
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/motion_eval/motion_eval.h"

namespace vk {
namespace {

constexpr int kThreads = 256;

template <int kWidth, class Real>
__global__ void motion_eval_forward_kernel(const Real* __restrict__ coefficients, const Real* __restrict__ value,
                                           const int32_t* __restrict__ first, Real* __restrict__ out, int64_t elements,
                                           int64_t terms, int64_t dim, int64_t moments) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= elements) return;
  const int64_t n = e / dim;
  const Real* own = coefficients + n * terms * dim + (e - n * dim);
  Real c[kWidth];
  if constexpr (kWidth == kMotionDense) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) c[k] = own[k * dim];
  }
  for (int64_t t = 0; t < moments; ++t) {
    if constexpr (kWidth != kMotionDense) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) c[k] = own[(first[t] + k) * dim];
    }
    Real sum = 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum += value[t * kWidth + k] * c[k];
    out[t * elements + e] = sum;
  }
}

template <class Real>
__global__ void motion_eval_backward_dense_kernel(const Real* __restrict__ grad_out, const Real* __restrict__ value,
                                                  Real* __restrict__ grad, int64_t elements, int64_t dim,
                                                  int64_t moments) {
  const int64_t e = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (e >= elements) return;
  const int64_t n = e / dim;
  Real sum[kMotionDense] = {};
  for (int64_t t = 0; t < moments; ++t) {
    const Real g = grad_out[t * elements + e];
#pragma unroll
    for (int k = 0; k < kMotionDense; ++k) sum[k] += value[t * kMotionDense + k] * g;
  }
  Real* own = grad + n * kMotionDense * dim + (e - n * dim);
#pragma unroll
  for (int k = 0; k < kMotionDense; ++k) own[k * dim] = sum[k];
}

template <class Real>
__global__ void motion_eval_backward_spline_kernel(const Real* __restrict__ grad_out, const Real* __restrict__ value,
                                                   const int32_t* __restrict__ first, Real* __restrict__ grad,
                                                   int64_t count, int64_t terms, int64_t dim, int64_t moments) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count * terms * dim) return;
  const int64_t d = i % dim, k = i / dim % terms, n = i / dim / terms;
  Real sum = 0;
  for (int64_t t = 0; t < moments; ++t) {
    const int64_t j = k - first[t];
    if (j >= 0 && j < kMotionSpline) sum += value[t * kMotionSpline + j] * grad_out[(t * count + n) * dim + d];
  }
  grad[i] = sum;
}

template <int kWidth, class Real>
__global__ void motion_eval_speed_kernel(const Real* __restrict__ grad_out, const Real* __restrict__ coefficients,
                                         const Real* __restrict__ slope, const int32_t* __restrict__ first,
                                         double* __restrict__ partial, int64_t count, int64_t terms, int64_t dim,
                                         int64_t moments) {
  __shared__ double scratch[32];
  const int64_t n0 = int64_t(blockIdx.x) * kMotionBlock, t = blockIdx.y;
  const int64_t left = count - n0, size = (left < kMotionBlock ? left : kMotionBlock) * dim;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const int64_t n = n0 + i / dim, d = i % dim;
    const Real* own = coefficients + (n * terms + first[t]) * dim + d;
    Real speed = 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) speed += slope[t * kWidth + k] * own[k * dim];
    sum += double(grad_out[(t * count + n) * dim + d]) * double(speed);
  }
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) partial[int64_t(blockIdx.x) * moments + t] = sum;
}

template <class Real>
__global__ void motion_eval_moments_kernel(const double* __restrict__ partial, Real* __restrict__ grad_times,
                                           int64_t blocks, int64_t moments) {
  const int64_t t = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= moments) return;
  double sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * moments + t];
  grad_times[t] = Real(sum);
}

unsigned blocks_of(int64_t n) { return unsigned((n + kThreads - 1) / kThreads); }

template <int kWidth, class Real>
void launch_forward(const MotionEval& a, vk_stream_t stream) {
  const int64_t elements = a.count * a.dim;
  if (elements * a.moments == 0) return;
  VK_LAUNCH((motion_eval_forward_kernel<kWidth, Real>), blocks_of(elements), kThreads, 0, stream,
            static_cast<const Real*>(a.coefficients), static_cast<const Real*>(a.value), a.first,
            static_cast<Real*>(a.out), elements, a.terms, a.dim, a.moments);
}

template <int kWidth, class Real>
void launch_backward(const MotionEvalBackward& a, vk_stream_t stream) {
  const Real *grad_out = static_cast<const Real*>(a.grad_out), *value = static_cast<const Real*>(a.value);
  Real* grad = static_cast<Real*>(a.grad);
  const int64_t elements = a.count * a.dim, blocks = (a.count + kMotionBlock - 1) / kMotionBlock;
  if (elements > 0) {
    if constexpr (kWidth == kMotionDense)
      VK_LAUNCH((motion_eval_backward_dense_kernel<Real>), blocks_of(elements), kThreads, 0, stream, grad_out, value,
                grad, elements, a.dim, a.moments);
    else
      VK_LAUNCH((motion_eval_backward_spline_kernel<Real>), blocks_of(elements * a.terms), kThreads, 0, stream,
                grad_out, value, a.first, grad, a.count, a.terms, a.dim, a.moments);
  }
  if (!a.grad_times || a.moments == 0) return;
  if (blocks > 0)
    VK_LAUNCH((motion_eval_speed_kernel<kWidth, Real>), dim3(unsigned(blocks), unsigned(a.moments)), kThreads, 0,
              stream, grad_out, static_cast<const Real*>(a.coefficients), static_cast<const Real*>(a.slope), a.first,
              a.partial, a.count, a.terms, a.dim, a.moments);
  VK_LAUNCH((motion_eval_moments_kernel<Real>), blocks_of(a.moments), kThreads, 0, stream,
            static_cast<const double*>(a.partial), static_cast<Real*>(a.grad_times), blocks, a.moments);
}

}  // namespace

void motion_eval_cuda(const MotionEval& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const bool wide = a.element == Element::f64;
  if (a.width == kMotionDense)
    wide ? launch_forward<kMotionDense, double>(a, stream) : launch_forward<kMotionDense, float>(a, stream);
  else
    wide ? launch_forward<kMotionSpline, double>(a, stream) : launch_forward<kMotionSpline, float>(a, stream);
}

void motion_eval_backward_cuda(const MotionEvalBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const bool wide = a.element == Element::f64;
  if (a.width == kMotionDense)
    wide ? launch_backward<kMotionDense, double>(a, stream) : launch_backward<kMotionDense, float>(a, stream);
  else
    wide ? launch_backward<kMotionSpline, double>(a, stream) : launch_backward<kMotionSpline, float>(a, stream);
}

}  // namespace vk
