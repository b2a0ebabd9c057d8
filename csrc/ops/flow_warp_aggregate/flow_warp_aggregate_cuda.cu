// Eight lanes share a pixel: they take its channels in turn, so what they read lies side by side.
//   forward     a pixel's four taps of every neighbour, weighed and added
//   magnitude   the largest gradient of each image, which gives the unit of the sums
//   backward    products of the gradient with the taps give the gradients of flows and logits; what each tap gets is
//               rounded to the unit and added as an integer, so that the order of the atomics does not show
//   finish      the sums as numbers
#include <algorithm>

#include "device/vk_reduce.cuh"
#include "ops/flow_warp_aggregate/flow_warp_aggregate.h"

namespace vk {
namespace {

constexpr int kThreads = 256, kLanes = 8, kPixels = kThreads / kLanes, kOwn = kMaxNeighbours / kLanes;
constexpr float kLog2E = 1.44269504f;
constexpr uint32_t kInfinity = 0x7f800000u;
constexpr int kSumBits = 61;  // of all that lands in one place

struct Spot {
  int64_t image, pixel;
  int32_t x, y;
  int lane;
  bool there;
};

/// Lanes behind the last pixel repeat it, because all lanes of a warp take part in the shuffles.
__device__ __forceinline__ Spot spot_of(const FlowWarp& a) {
  Spot s;
  const int64_t all = a.batch * a.pixels(), number = int64_t(blockIdx.x) * kPixels + threadIdx.x / kLanes;
  const int64_t at = number < all ? number : all - 1;
  s.there = number < all;
  s.image = at / a.pixels();
  s.pixel = at % a.pixels();
  s.y = int32_t(s.pixel / a.width);
  s.x = int32_t(s.pixel % a.width);
  s.lane = int(threadIdx.x) % kLanes;
  return s;
}

/// The softmax of a pixel: share(k) = exp2((logit_k - most) log2 e) * over.
struct Softmax {
  const float* logits;
  int64_t step;
  float most, over;
  __device__ __forceinline__ float share(int64_t k) const { return exp2f((logits[k * step] - most) * kLog2E) * over; }
};

__device__ __forceinline__ Softmax softmax_of(const FlowWarp& a, const Spot& s) {
  Softmax p{a.logits + s.image * a.neighbours * a.pixels() + s.pixel, a.pixels(), -INFINITY, 1.0f};
  for (int64_t k = 0; k < a.neighbours; ++k) p.most = fmaxf(p.most, p.logits[k * p.step]);
  float total = 0;
  for (int64_t k = 0; k < a.neighbours; ++k) total += p.share(k);
  p.over = 1.0f / total;
  return p;
}

struct Taps {
  int64_t at[4];  // first channels
  float weight[4];
  FlowTap x, y;
};

__device__ __forceinline__ Taps taps_of(const FlowWarp& a, const Spot& s, int64_t k) {
  const int64_t plane = s.image * a.neighbours + k;
  const float* flow = a.flows + 2 * plane * a.pixels() + s.pixel;
  Taps t;
  t.x = flow_tap(s.x, flow[0], int32_t(a.width));
  t.y = flow_tap(s.y, flow[a.pixels()], int32_t(a.height));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t row = j / 2 ? t.y.high : t.y.low, column = j % 2 ? t.x.high : t.x.low;
    t.at[j] = ((plane * a.height + row) * a.width + column) * a.channels;
    t.weight[j] = (j / 2 ? t.y.share : 1.0f - t.y.share) * (j % 2 ? t.x.share : 1.0f - t.x.share);
  }
  return t;
}

template <class T>
__global__ void __launch_bounds__(kThreads) flow_warp_forward_kernel(FlowWarp a) {
  const Spot s = spot_of(a);
  if (!s.there) return;
  const T* features = static_cast<const T*>(a.features);
  T* out = static_cast<T*>(a.out) + (s.image * a.pixels() + s.pixel) * a.channels;
  const Softmax p = softmax_of(a, s);
  for (int64_t c0 = s.lane; c0 < a.channels; c0 += 4 * kLanes) {
    float sum[4] = {};
    for (int64_t k = 0; k < a.neighbours; ++k) {
      const Taps t = taps_of(a, s, k);
      const float share = p.share(k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t c = c0 + i * kLanes;
        if (c >= a.channels) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i] += share * t.weight[j] * to_float(features[t.at[j] + c]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c0 + i * kLanes < a.channels) out[c0 + i * kLanes] = from_float<T>(sum[i]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) flow_warp_magnitude_kernel(FlowWarpBackward b) {
  __shared__ uint32_t scratch[32];
  const int64_t length = b.in.pixels() * b.in.channels, image = blockIdx.y;
  const T* grad = static_cast<const T*>(b.grad) + image * length;
  uint32_t most = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < length; i += int64_t(gridDim.x) * kThreads)
    most = Max()(most, __float_as_uint(to_float(grad[i])) & 0x7fffffffu);
  most = block_max(most, 0u, scratch);
  if (threadIdx.x == 0 && most > 0) atomicMax(&b.magnitudes[image], most);
}

/// 2^unit_of is what one gradient is worth in integers: all gradients of an image fit into one sum.
__device__ __forceinline__ int unit_of(const FlowWarpBackward& b, int64_t image) {
  int bits = 0;
  while ((int64_t(1) << bits) < b.in.pixels()) ++bits;
  const int exponent = int(b.magnitudes[image] >> 23) - 126;  // gradients are below 2^exponent
  return kSumBits - bits - exponent;
}

template <class T>
__global__ void __launch_bounds__(kThreads) flow_warp_backward_kernel(FlowWarpBackward b) {
  const FlowWarp& a = b.in;
  const Spot s = spot_of(a);
  const T *features = static_cast<const T*>(a.features),
          *grad = static_cast<const T*>(b.grad) + (s.image * a.pixels() + s.pixel) * a.channels;
  const Softmax p = softmax_of(a, s);
  const bool with_features = b.grad_features != nullptr;
  const int unit = with_features ? unit_of(b, s.image) : 0;
  float value[kOwn] = {}, share[kOwn] = {};  // of neighbours lane, lane + 8
  bool finite = true;
  for (int64_t k = 0; k < a.neighbours; ++k) {
    const Taps t = taps_of(a, s, k);
    const float mine = p.share(k);
    float dot[4] = {};
    for (int64_t c = s.lane; c < a.channels; c += kLanes) {
      const float g = to_float(grad[c]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        dot[j] += g * to_float(features[t.at[j] + c]);
        if (!with_features) continue;
        const float given = mine * t.weight[j] * g;
        if (!(fabsf(given) < INFINITY))
          finite = false;
        else if (s.there && given != 0)
          atomicAdd(&b.sums[t.at[j] + c], static_cast<unsigned long long>(__float2ll_rn(ldexpf(given, unit))));
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) dot[j] = warp_sum<kLanes>(dot[j]);
    const float whole = t.weight[0] * dot[0] + t.weight[1] * dot[1] + t.weight[2] * dot[2] + t.weight[3] * dot[3];
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (k == s.lane + i * kLanes) value[i] = whole, share[i] = mine;
    if (s.there && s.lane == 0) {
      const float by_x = (1.0f - t.y.share) * (dot[1] - dot[0]) + t.y.share * (dot[3] - dot[2]);
      const float by_y = (1.0f - t.x.share) * (dot[2] - dot[0]) + t.x.share * (dot[3] - dot[1]);
      float* flow = b.grad_flows + 2 * (s.image * a.neighbours + k) * a.pixels() + s.pixel;
      flow[0] = t.x.inside ? mine * by_x : 0.0f;
      flow[a.pixels()] = t.y.inside ? mine * by_y : 0.0f;
    }
  }
  if (!finite && s.there) atomicMax(&b.magnitudes[a.batch + s.image], kInfinity);
  // Differences of values, not from their mean: where one neighbour is all, its own drops out exactly.
  float total[kOwn] = {};
  for (int64_t k = 0; k < a.neighbours; ++k) {
    float other = 0, weight = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float v = __shfl_sync(0xffffffffu, value[i], int(k) % kLanes, kLanes);
      const float w = __shfl_sync(0xffffffffu, share[i], int(k) % kLanes, kLanes);
      if (int(k) / kLanes == i) other = v, weight = w;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) total[i] += weight * (value[i] - other);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t k = s.lane + i * kLanes;
    if (s.there && k < a.neighbours)
      b.grad_logits[(s.image * a.neighbours + k) * a.pixels() + s.pixel] = share[i] * total[i];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) flow_warp_finish_kernel(FlowWarpBackward b, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const FlowWarp& a = b.in;
  const int64_t image = i / (a.neighbours * a.pixels() * a.channels);
  const bool lost = b.magnitudes[image] >= kInfinity || b.magnitudes[a.batch + image] >= kInfinity;
  const double sum = ldexp(double(static_cast<long long>(b.sums[i])), -unit_of(b, image));
  static_cast<T*>(b.grad_features)[i] = from_float<T>(lost ? NAN : float(sum));
}

unsigned blocks_of(int64_t count, int per) { return unsigned((count + per - 1) / per); }

template <class T>
void launch_forward(const FlowWarp& a, vk_stream_t stream) {
  const int64_t pixels = a.batch * a.pixels();
  if (pixels * a.channels > 0)
    VK_LAUNCH((flow_warp_forward_kernel<T>), blocks_of(pixels, kPixels), kThreads, 0, stream, a);
}

template <class T>
void launch_backward(const FlowWarpBackward& b, vk_stream_t stream) {
  const FlowWarp& a = b.in;
  const int64_t pixels = a.batch * a.pixels();
  const int64_t count = b.grad_features == nullptr ? 0 : pixels * a.neighbours * a.channels;
  if (pixels == 0) return;
  if (b.grad_features != nullptr) memset_async(b.magnitudes, 0, size_t(2 * a.batch) * sizeof(uint32_t), stream);
  if (count > 0) {
    memset_async(b.sums, 0, size_t(count) * sizeof(*b.sums), stream);
    const unsigned blocks = std::min(blocks_of(a.pixels() * a.channels, 8 * kThreads), 256u);
    VK_LAUNCH((flow_warp_magnitude_kernel<T>), dim3(blocks, unsigned(a.batch)), kThreads, 0, stream, b);
  }
  VK_LAUNCH((flow_warp_backward_kernel<T>), blocks_of(pixels, kPixels), kThreads, 0, stream, b);
  if (count > 0) VK_LAUNCH((flow_warp_finish_kernel<T>), blocks_of(count, kThreads), kThreads, 0, stream, b, count);
}

}  // namespace

void flow_warp_aggregate_cuda(const FlowWarp& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f16: return launch_forward<f16>(a, stream);
    case Element::bf16: return launch_forward<bf16>(a, stream);
    default: return launch_forward<float>(a, stream);
  }
}

void flow_warp_aggregate_backward_cuda(const FlowWarpBackward& b, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (b.in.element) {
    case Element::f16: return launch_backward<f16>(b, stream);
    case Element::bf16: return launch_backward<bf16>(b, stream);
    default: return launch_backward<float>(b, stream);
  }
}

}  // namespace vk
