// Who owns what
//   one warp per ray, 32 samples at a time.
//   forward   lane s holds alpha_s; a product scan over the lanes gives T_s; the T behind the 32 is carried on.
//             up to kFew channels: lane s also owns values[s] and adds into registers, summed over the warp at the end;
//             more: the lanes own channels and walk along the samples.
//   backward  pass 1 leaves T_s in grad_alpha. Pass 2 walks backwards: B_s is the composition of the maps
//             B -> alpha q + (1 - alpha) B of all lanes behind, applied to the carried B: a scan again.
// Every element is read and written by one lane; sums have one order: deterministic.
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/composite/composite.h"

namespace vk {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kFew = 4;
constexpr unsigned kAll = 0xffffffffu;

/// Product of all lanes before this one; `all` becomes the product of the whole warp.
template <class T>
__device__ __forceinline__ T product_before(T x, int lane, T& all) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x *= below;
  }
  all = __shfl_sync(kAll, x, 31);
  const T before = __shfl_up_sync(kAll, x, 1);
  return lane == 0 ? T(1) : before;
}

template <class T, int C>
__global__ void __launch_bounds__(kThreads)
    composite_forward_kernel(const T* __restrict__ values, const T* __restrict__ alpha, T* __restrict__ out, T* weights,
                             T* __restrict__ transmittance, int64_t rays, int64_t samples, int64_t channels) {
  const int lane = threadIdx.x & 31;
  const int64_t r = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (r >= rays) return;
  alpha += r * samples;
  weights += r * samples;
  values += r * samples * channels;
  T carried = 1, sum[C > 0 ? C : 1] = {};
  for (int64_t s0 = 0; s0 < samples; s0 += 32) {
    const int64_t s = s0 + lane;
    const bool inside = s < samples;
    const T a = inside ? alpha[s] : T(0);
    T all;
    const T t = carried * product_before(T(1) - a, lane, all);
    carried *= all;
    if (!inside) continue;
    const T w = a * t;
    weights[s] = w;
#pragma unroll
    for (int c = 0; c < C; ++c) sum[c] += w * values[s * C + c];
  }
  if (lane == 0) transmittance[r] = carried;
  if constexpr (C > 0) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const T total = warp_sum(sum[c]);
      if (lane == 0) out[r * C + c] = total;
    }
  } else {
    __syncwarp();
    for (int64_t c = lane; c < channels; c += 32) {
      T total = 0;
      for (int64_t s = 0; s < samples; ++s) total += weights[s] * values[s * channels + c];
      out[r * channels + c] = total;
    }
  }
}

template <class T, int C>
__global__ void __launch_bounds__(kThreads)
    composite_backward_kernel(const T* __restrict__ grad_out, const T* __restrict__ grad_weights,
                              const T* __restrict__ grad_transmittance, const T* __restrict__ values,
                              const T* __restrict__ alpha, T* __restrict__ grad_values, T* grad_alpha, int64_t rays,
                              int64_t samples, int64_t channels) {
  const int lane = threadIdx.x & 31;
  const int64_t r = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (r >= rays) return;
  alpha += r * samples;
  grad_alpha += r * samples;
  values += r * samples * channels;
  grad_values += r * samples * channels;

  T carried = 1;
  for (int64_t s0 = 0; s0 < samples; s0 += 32) {
    const int64_t s = s0 + lane;
    T all;
    const T before = product_before(s < samples ? T(1) - alpha[s] : T(1), lane, all);
    if (s < samples) grad_alpha[s] = carried * before;
    carried *= all;
  }

  T g[C > 0 ? C : 1] = {};
#pragma unroll
  for (int c = 0; c < C; ++c) g[c] = grad_out ? grad_out[r * C + c] : T(0);
  T behind = grad_transmittance ? grad_transmittance[r] : T(0);
  for (int64_t s0 = (samples - 1) / 32 * 32; s0 >= 0; s0 -= 32) {
    const int64_t s = s0 + lane;
    const bool inside = s < samples;
    const T a = inside ? alpha[s] : T(0), t = inside ? grad_alpha[s] : T(0);
    const T w = a * t;
    T q = inside && grad_weights ? grad_weights[r * samples + s] : T(0);
    if constexpr (C > 0) {
      if (inside) {
#pragma unroll
        for (int c = 0; c < C; ++c) {
          q += g[c] * values[s * C + c];
          grad_values[s * C + c] = w * g[c];
        }
      }
    } else {
      const int count = samples - s0 < 32 ? int(samples - s0) : 32;
      for (int k = 0; k < count; ++k) {
        const int64_t row = (s0 + k) * channels;
        const T wk = __shfl_sync(kAll, w, k);
        T dot = 0;
        for (int64_t c = lane; c < channels; c += 32) {
          const T gc = grad_out ? grad_out[r * channels + c] : T(0);
          dot += gc * values[row + c];
          grad_values[row + c] = wk * gc;
        }
        dot = warp_sum(dot);
        if (lane == k) q += dot;
      }
    }
    // (keep, add) of lane s: B -> add + keep B, then composed with the maps of all lanes behind it.
    T keep = T(1) - a, add = a * q;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const T keep_behind = __shfl_down_sync(kAll, keep, step), add_behind = __shfl_down_sync(kAll, add, step);
      if (lane + step < 32) {
        add += keep * add_behind;
        keep *= keep_behind;
      }
    }
    const T keep_next = __shfl_down_sync(kAll, keep, 1), add_next = __shfl_down_sync(kAll, add, 1);
    const T b = lane == 31 ? behind : add_next + keep_next * behind;
    if (inside) grad_alpha[s] = t * (q - b);
    behind = __shfl_sync(kAll, add, 0) + __shfl_sync(kAll, keep, 0) * behind;
  }
}

unsigned blocks_of(int64_t rays) { return unsigned((rays + kWarps - 1) / kWarps); }

template <class T, int C>
void launch_forward(const Composite& a, vk_stream_t stream) {
  VK_LAUNCH((composite_forward_kernel<T, C>), blocks_of(a.rays), kThreads, 0, stream, static_cast<const T*>(a.values),
            static_cast<const T*>(a.alpha), static_cast<T*>(a.out), static_cast<T*>(a.weights),
            static_cast<T*>(a.transmittance), a.rays, a.samples, a.channels);
}

template <class T, int C>
void launch_backward(const CompositeBackward& a, vk_stream_t stream) {
  VK_LAUNCH((composite_backward_kernel<T, C>), blocks_of(a.rays), kThreads, 0, stream,
            static_cast<const T*>(a.grad_out), static_cast<const T*>(a.grad_weights),
            static_cast<const T*>(a.grad_transmittance), static_cast<const T*>(a.values),
            static_cast<const T*>(a.alpha), static_cast<T*>(a.grad_values), static_cast<T*>(a.grad_alpha), a.rays,
            a.samples, a.channels);
}

template <class T>
void forward_any(const Composite& a, vk_stream_t stream) {
  static_assert(kFew == 4);
  switch (a.channels) {
    case 1: return launch_forward<T, 1>(a, stream);
    case 2: return launch_forward<T, 2>(a, stream);
    case 3: return launch_forward<T, 3>(a, stream);
    case 4: return launch_forward<T, 4>(a, stream);
    default: return launch_forward<T, 0>(a, stream);
  }
}

template <class T>
void backward_any(const CompositeBackward& a, vk_stream_t stream) {
  switch (a.channels) {
    case 1: return launch_backward<T, 1>(a, stream);
    case 2: return launch_backward<T, 2>(a, stream);
    case 3: return launch_backward<T, 3>(a, stream);
    case 4: return launch_backward<T, 4>(a, stream);
    default: return launch_backward<T, 0>(a, stream);
  }
}

}  // namespace

void composite_cuda(const Composite& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.rays == 0) return;
  a.element == Element::f64 ? forward_any<double>(a, stream) : forward_any<float>(a, stream);
}

void composite_backward_cuda(const CompositeBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.rays * a.samples == 0) return;
  a.element == Element::f64 ? backward_any<double>(a, stream) : backward_any<float>(a, stream);
}

}  // namespace vk
