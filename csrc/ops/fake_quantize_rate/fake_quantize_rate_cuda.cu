// Who owns what
//   pieces   a block per (piece of a row, row); thread t owns the numbers t, t + kThreads, ... of the piece, one after
//            the other in memory over the warp, and its part of the piece's sums
//   rows     a warp per row adds what the pieces left, lane l those of l, l + 32, ..., in double
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/fake_quantize_rate/fake_quantize_rate.h"

namespace vk {
namespace {

constexpr int kThreads = 256;

/// The middle interval: twice the mass beyond either end, as such and less one.
struct Middle {
  float near, far, near_less_one, far_less_one;

  __device__ __forceinline__ Middle(float m, float a) {
    const float to_near = (m - 0.5f) * a, to_far = (-0.5f - m) * a;
    near = expf(to_near);
    far = expf(to_far);
    near_less_one = expm1f(to_near);
    far_less_one = expm1f(to_far);
  }
  __device__ __forceinline__ float mass() const { return -0.5f * (near_less_one + far_less_one); }
  __device__ __forceinline__ float nats() const {
    const float miss = 0.5f * (near + far);
    return miss < 0.5f ? -log1pf(-miss) : -logf(mass());
  }
};

template <class T, bool kRound>
__global__ void __launch_bounds__(kThreads) fake_quantize_rate_forward_kernel(FakeQuantizeRate a) {
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, piece = blockIdx.y;
  const int64_t begin = row * a.count + piece * kRateChunk;
  const int64_t left = a.count - piece * kRateChunk, size = left < kRateChunk ? left : kRateChunk;
  const T* x = static_cast<const T*>(a.x) + begin;
  T* value = static_cast<T*>(a.value) + begin;
  const LaplaceRow shared(a.step[row], a.spread[row]);
  float nats = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const float z = to_float(x[i]) / shared.step;
    const float q = kRound ? rintf(z) : z + a.noise[begin + i], m = fabsf(q);
    value[i] = from_float<T>(q * shared.step);
    if (m < 0.5f)
      nats += kRound ? shared.zero : Middle(m, shared.a).nats();
    else
      nats += (m - 0.5f) * shared.a + shared.tail;
  }
  nats = block_sum(nats, scratch);
  if (threadIdx.x == 0) a.sums[row * gridDim.y + piece] = double(nats);
}

template <class T, bool kRound>
__global__ void __launch_bounds__(kThreads) fake_quantize_rate_backward_kernel(FakeQuantizeRateBackward a) {
  __shared__ float scratch_step[32];
  __shared__ float scratch_rate[32];
  const int64_t row = blockIdx.x, piece = blockIdx.y;
  const int64_t begin = row * a.in.count + piece * kRateChunk;
  const int64_t left = a.in.count - piece * kRateChunk, size = left < kRateChunk ? left : kRateChunk;
  const T* x = static_cast<const T*>(a.in.x) + begin;
  const T* grad_value = static_cast<const T*>(a.grad_value) + begin;
  T* grad_x = static_cast<T*>(a.grad_x) + begin;
  const LaplaceRow shared(a.in.step[row], a.in.spread[row]);
  const float to_z = a.grad_bits[row] * kInverseLn2 / shared.step;
  float by_step = 0, by_rate = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const float z = to_float(x[i]) / shared.step, g = to_float(grad_value[i]);
    const float noise = kRound ? 0.0f : a.in.noise[begin + i];
    const float q = kRound ? rintf(z) : z + noise, m = fabsf(q);
    float slope = shared.a, of_rate = m + shared.tail_by_rate;
    if (m < 0.5f) {
      if (kRound) {
        slope = 0;
        of_rate = shared.zero_by_rate;
      } else {
        const Middle middle(m, shared.a);
        const float halved = 0.5f / middle.mass();
        slope = (middle.near_less_one - middle.far_less_one) * halved * shared.a;
        of_rate = -(middle.near * (0.5f - m) + middle.far * (0.5f + m)) * halved;
      }
    }
    slope = copysignf(slope, q) * to_z;
    grad_x[i] = from_float<T>(g + slope);
    by_step += g * (kRound ? q - z : noise) - slope * z;
    by_rate += of_rate;
  }
  by_step = block_sum(by_step, scratch_step);
  by_rate = block_sum(by_rate, scratch_rate);
  if (threadIdx.x == 0) {
    const int64_t at = row * gridDim.y + piece, all = int64_t(gridDim.x) * gridDim.y;
    a.in.sums[at] = double(by_step);
    a.in.sums[all + at] = double(by_rate);
  }
}

__device__ __forceinline__ double added(const double* sums, int64_t count) {
  double total = 0;
  for (int64_t k = threadIdx.x; k < count; k += 32) total += sums[k];
  return warp_sum(total);
}

__global__ void fake_quantize_rate_rows_kernel(const double* sums, float* bits, int64_t pieces) {
  const int64_t row = blockIdx.x;
  const double nats = added(sums + row * pieces, pieces);
  if (threadIdx.x == 0) bits[row] = float(nats * kInverseLn2Double);
}

__global__ void fake_quantize_rate_backward_rows_kernel(FakeQuantizeRateBackward a, int64_t pieces) {
  const int64_t row = blockIdx.x;
  const double by_step = added(a.in.sums + row * pieces, pieces);
  const double by_rate = added(a.in.sums + (a.in.rows + row) * pieces, pieces);
  if (threadIdx.x > 0) return;
  const double rate = 1 / double(a.in.spread[row]);
  a.grad_step[row] = float(by_step);
  a.grad_spread[row] = float(by_rate * double(a.grad_bits[row]) * -kInverseLn2Double * rate * rate);
}

template <class T>
void launch_forward(const FakeQuantizeRate& a, const dim3& grid, vk_stream_t stream) {
  if (a.noise)
    VK_LAUNCH((fake_quantize_rate_forward_kernel<T, false>), grid, kThreads, 0, stream, a);
  else
    VK_LAUNCH((fake_quantize_rate_forward_kernel<T, true>), grid, kThreads, 0, stream, a);
}

template <class T>
void launch_backward(const FakeQuantizeRateBackward& a, const dim3& grid, vk_stream_t stream) {
  if (a.in.noise)
    VK_LAUNCH((fake_quantize_rate_backward_kernel<T, false>), grid, kThreads, 0, stream, a);
  else
    VK_LAUNCH((fake_quantize_rate_backward_kernel<T, true>), grid, kThreads, 0, stream, a);
}

}  // namespace

void fake_quantize_rate_cuda(const FakeQuantizeRate& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.rows == 0) return;
  const dim3 grid(unsigned(a.rows), unsigned(a.pieces()));
  if (a.count > 0) switch (a.element) {
      case Element::f16: launch_forward<f16>(a, grid, stream); break;
      case Element::bf16: launch_forward<bf16>(a, grid, stream); break;
      default: launch_forward<float>(a, grid, stream);
    }
  VK_LAUNCH(fake_quantize_rate_rows_kernel, unsigned(a.rows), 32, 0, stream, a.sums, a.bits, a.pieces());
}

void fake_quantize_rate_backward_cuda(const FakeQuantizeRateBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.in.rows == 0) return;
  const dim3 grid(unsigned(a.in.rows), unsigned(a.in.pieces()));
  if (a.in.count > 0) switch (a.in.element) {
      case Element::f16: launch_backward<f16>(a, grid, stream); break;
      case Element::bf16: launch_backward<bf16>(a, grid, stream); break;
      default: launch_backward<float>(a, grid, stream);
    }
  VK_LAUNCH(fake_quantize_rate_backward_rows_kernel, unsigned(a.in.rows), 32, 0, stream, a, a.in.pieces());
}

}  // namespace vk
