// Who owns what
//   order      op.py sorts the depths of every image, stably, and hands the order in.
//   bits       a thread per Gaussian marks the tiles that it touches, in that order (device/vk_tile_bits.cuh).
//   forward    a block owns a window of 32x32 pixels, a thread 4 of them, a warp a patch of 16x8. The block walks the
//              window's Gaussians nearest first (device/vk_window_walk.cuh) until all of its pixels are finished.
//   backward   the same walk again with the same decisions, front to back. A warp sums a Gaussian over its patch, the
//              block adds up its warps and adds the result to the Gaussian's exact sums in scratch: 64-bit integers,
//              whose order does not matter (device/vk_exact_sum.cuh). That needs the same room for a Gaussian that
//              fills the image as for a small one; slots for partial sums would need room for the worst of them, or a
//              second walk. The gradient of the background is summed window by window instead.
//   gradients  a thread per Gaussian, then one per colour, reads the sums.
// A finished pixel keeps its transmittance with the sign turned.
#include "device/vk_splat_sums.cuh"
#include "ops/splat_alpha/splat_alpha.h"

namespace vk {
namespace {

constexpr float kMost = 0.99f;
constexpr float kGoesOn = 1.00000005e-4f;  // the least transmittance that does not finish a pixel
constexpr int kSide = 32;                  // pixels along a side of a window
constexpr int kPatchWidth = 16, kPatchHeight = 8, kPixels = 4, kRowStep = 2;
constexpr unsigned kAll = 0xffffffffu;
static_assert(kLeastTile % kSide == 0);

/// This thread's pixels: (x, y + k kRowStep); its warp's patch starts at (left, top).
struct Pixels {
  int left, top, x, y;
  __device__ __forceinline__ explicit Pixels(const Window& w) {
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    left = w.left + warp % 2 * kPatchWidth;
    top = w.top + warp / 2 * kPatchHeight;
    x = left + lane % kPatchWidth;
    y = top + lane / kPatchWidth;
  }
  template <int C>
  __device__ __forceinline__ bool near(const Record<C>& r) const {
    return r.near(float(left), float(top), float(left + kPatchWidth - 1), float(top + kPatchHeight - 1));
  }
};

struct Step {
  float raw, alpha, passes, next;
};
__device__ __forceinline__ Step step(float weight, float exponent, float light) {
  const float raw = __fmul_rn(weight, exp2f(exponent)), alpha = fminf(raw, kMost), passes = __fmul_rn(alpha, light);
  return {raw, alpha, passes, __fadd_rn(light, -passes)};
}

__device__ __forceinline__ bool any_open(const float (&light)[kPixels]) {
  bool open = false;
#pragma unroll
  for (int k = 0; k < kPixels; ++k) open = open || light[k] > 0;
  return open;
}

/// Channels [first, first + C); the walk that starts at 0 writes alpha, too.
template <int C>
__global__ void __launch_bounds__(kWalkThreads, C > 4 ? 2 : 3)
    splat_alpha_kernel(SplatAlphaForward a, SplatSource source, TileBits tiles, int64_t first) {
  constexpr int kRecords = kWalkThreads * Record<C>::kSize, kStage = kSide * kSide * C;
  __shared__ TileWalk walk;
  __shared__ __align__(16) float pool[kRecords > kStage ? kRecords : kStage];
  const Window window = window_of(blockIdx.x, a.height, a.width, kSide);
  const Pixels own(window);
  float light[kPixels], sum[kPixels][C] = {};
#pragma unroll
  for (int k = 0; k < kPixels; ++k) light[k] = own.x < a.width && own.y + k * kRowStep < a.height ? 1.0f : -1.0f;

  walk_window<C>(source, a.colors, a.channels, first, tiles, window, walk, pool, [&](int n) {
    for (int j = 0; j < n; ++j) {
      if (j % 32 == 0 && !__any_sync(kAll, any_open(light))) break;
      const Record<C> r(pool, j);
      if (!own.near(r)) continue;
      const float dx = float(own.x) - r.x(), dy = float(own.y) - r.y();
#pragma unroll
      for (int k = 0; k < kPixels; ++k) {
        const float exponent = exponent_at(r.k1(), r.k2(), dx, sheared(dx, dy + float(k * kRowStep), r.slope()));
        if (exponent < r.limit() || light[k] < 0) continue;
        const Step s = step(r.weight(), exponent, light[k]);
        if (s.next >= kGoesOn) {
#pragma unroll
          for (int ch = 0; ch < C; ++ch) sum[k][ch] += s.passes * r.own(ch);
          light[k] = s.next;
        } else {
          light[k] = -light[k];
        }
      }
    }
    return any_open(light);
  });

  // Through shared memory: neighbouring lanes write neighbouring numbers.
  const float* back =
      a.background ? a.background + (a.background_rows > 1 ? window.image : 0) * a.channels + first : nullptr;
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    const float left = fabsf(light[k]);
    const int y = own.y + k * kRowStep;
    if (first == 0 && own.x < a.width && y < a.height)
      a.alpha[(window.image * a.height + y) * a.width + own.x] = 1.0f - left;
#pragma unroll
    for (int ch = 0; ch < C; ++ch)
      pool[((y - window.top) * kSide + own.x - window.left) * C + ch] = sum[k][ch] + (back ? left * back[ch] : 0.0f);
  }
  __syncthreads();
  for (int k = threadIdx.x; k < kStage; k += kWalkThreads) {
    const int pixel = k / C, y = window.top + pixel / kSide, x = window.left + pixel % kSide;
    if (y < a.height && x < a.width)
      a.image[((window.image * a.height + y) * a.width + x) * a.channels + first + k % C] = pool[k];
  }
}

constexpr int kChunk = 8;  // channels that the kernel for any number of them sums up at a time

/// C: channels, or 0 for any number. window_light [windows][channels]: sum over the window of T_final g, or null.
template <int C, bool kAbsolute>
__global__ void __launch_bounds__(kWalkThreads, 2)
    splat_alpha_backward_kernel(SplatAlphaBackward a, SplatSource source, TileBits tiles, sum_bin* sums,
                                float* window_light, int batch_size) {
  constexpr int kFixed = kMoments + (kAbsolute ? 2 : 0), kFew = kFixed + C;
  constexpr int kSums = kFew <= 8 ? 8 : 16;
  static_assert(kFew <= 16);
  __shared__ TileWalk walk;
  __shared__ __align__(16) float pool[kWalkThreads * Record<C>::kSize];
  __shared__ uint32_t masks[kWalkWarps];
  VK_DYN_SHARED(float, partial);
  const int channels = C ? C : int(a.channels);
  const Batch batch{partial, masks, kFixed + channels};
  const Window window = window_of(blockIdx.x, a.height, a.width, kSide);
  const Pixels own(window);

  const int64_t pixel = (window.image * a.height + own.y) * a.width + own.x;
  const float* grad = a.grad_image + pixel * channels;
  const int64_t grad_step = kRowStep * a.width * channels;
  float light[kPixels], rest[kPixels] = {}, g[kPixels][C ? C : 1] = {};
#pragma unroll
  for (int k = 0; k < kPixels; ++k) {
    const bool inside = own.x < a.width && own.y + k * kRowStep < a.height;
    light[k] = inside ? 1.0f : -1.0f;
    if (!inside) continue;
    const int64_t p = pixel + k * kRowStep * a.width;
    if (a.grad_alpha) rest[k] = -a.grad_alpha[p] * (1.0f - a.alpha[p]);
    if constexpr (C > 0) {
#pragma unroll
      for (int ch = 0; ch < C; ++ch) {
        g[k][ch] = grad[k * grad_step + ch];
        rest[k] += g[k][ch] * a.image[p * C + ch];
      }
    } else {
      for (int ch = 0; ch < channels; ++ch) rest[k] += grad[k * grad_step + ch] * a.image[p * channels + ch];
    }
  }

  walk_window<C>(source, a.colors, channels, 0, tiles, window, walk, pool, [&](int n) {
    for (int start = 0; start < n; start += batch_size) {
      const int size = n - start < batch_size ? n - start : batch_size;
      uint32_t mask = 0;
      if (__any_sync(kAll, any_open(light)))
        for (int j = 0; j < size; ++j) {
          const Record<C> r(pool, start + j);
          if (!own.near(r)) continue;
          const float dx = float(own.x) - r.x(), dy = float(own.y) - r.y();
          const float steep = -r.k1() / kHalfLog2E, flat = -r.k2() / kHalfLog2E;
          float v[kSums] = {}, passes[kPixels] = {};
          bool touched = false;
#pragma unroll
          for (int k = 0; k < kPixels; ++k) {
            const float q = sheared(dx, dy + float(k * kRowStep), r.slope());
            const float exponent = exponent_at(r.k1(), r.k2(), dx, q);
            if (exponent < r.limit() || light[k] < 0) continue;
            const Step s = step(r.weight(), exponent, light[k]);
            if (!(s.next >= kGoesOn)) {
              light[k] = -light[k];
              continue;
            }
            touched = true;
            light[k] = s.next;
            passes[k] = s.passes;
            float along = 0;
            if constexpr (C > 0) {
#pragma unroll
              for (int ch = 0; ch < C; ++ch) {
                along += g[k][ch] * r.own(ch);
                v[kFixed + ch] += s.passes * g[k][ch];
              }
            } else {
              const float* color = a.colors + int64_t(r.row()) * channels;
              for (int ch = 0; ch < channels; ++ch) along += grad[k * grad_step + ch] * color[ch];
            }
            const float lit = s.passes * along;
            rest[k] -= lit;
            const float d = s.raw > kMost ? 0.0f : lit - rest[k] * s.alpha / (1.0f - s.alpha);
            const float dp = d * dx, dq = d * q;
            v[0] += d;
            v[1] += dp;
            v[2] += dq;
            v[3] += dp * dx;
            v[4] += dp * q;
            v[5] += dq * q;
            if constexpr (kAbsolute) {
              v[6] += fabsf(steep * dp - r.slope() * flat * dq);
              v[7] += fabsf(flat * dq);
            }
          }
          if (!__any_sync(kAll, touched)) continue;
          mask |= 1u << j;
          batch.put<kSums>(j, 0, kFew, warp_sums<kSums>(v));
          if constexpr (C == 0) {
            for (int ch = 0; ch < channels; ch += kChunk) {
              float w[kChunk] = {};
#pragma unroll
              for (int k = 0; k < kPixels; ++k) {
                if (!(passes[k] > 0)) continue;
#pragma unroll
                for (int c = 0; c < kChunk; ++c)
                  if (ch + c < channels) w[c] += passes[k] * grad[k * grad_step + ch + c];
              }
              const int left = channels - ch;
              batch.put<kChunk>(j, kFixed + ch, left < kChunk ? left : kChunk, warp_sums<kChunk>(w));
            }
          }
        }
      batch.finish<C>(pool, start, size, mask, kAbsolute, sums);
    }
    return any_open(light);
  });

  if (!window_light) return;
  // 1 - alpha would have lost the digits of a small transmittance.
  for (int ch = 0; ch < channels; ++ch) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kPixels; ++k)
      if (own.x < a.width && own.y + k * kRowStep < a.height) sum += fabsf(light[k]) * grad[k * grad_step + ch];
    __syncthreads();
    sum = block_sum(sum, pool);
    if (threadIdx.x == 0) window_light[int64_t(blockIdx.x) * channels + ch] = sum;
  }
}

/// One block per number of the background.
__global__ void __launch_bounds__(kWalkThreads)
    splat_alpha_background_kernel(const float* __restrict__ window_light, int64_t windows, int64_t channels,
                                  float* __restrict__ grad_background) {
  __shared__ double scratch[32];
  const int64_t row = blockIdx.x / channels, ch = blockIdx.x % channels;
  double sum = 0;
  for (int64_t k = threadIdx.x; k < windows; k += kWalkThreads)
    sum += window_light[(row * windows + k) * channels + ch];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) grad_background[blockIdx.x] = float(sum);
}

SplatSource source_of(const SplatAlpha& a, const float* weights, const int32_t* order) {
  return {a.means, a.shapes, weights, order, a.offsets, a.count, a.pixel_center, a.conic};
}

int64_t windows_of(const SplatAlpha& a) { return ((a.height + kSide - 1) / kSide) * ((a.width + kSide - 1) / kSide); }

template <int C, bool kAbsolute>
void launch_backward(const SplatAlphaBackward& a, const SplatSource& source, const SplatScratch& s,
                     vk_stream_t stream) {
  const int64_t quantities = kMoments + (kAbsolute ? 2 : 0) + a.channels;
  VK_LAUNCH((splat_alpha_backward_kernel<C, kAbsolute>), unsigned(a.images * windows_of(a)), kWalkThreads,
            batch_bytes(quantities), stream, a, source, s.tiles, s.sums,
            a.grad_background ? static_cast<float*>(s.rest) : nullptr, batch_size(quantities));
}
template <int C>
void launch_backward(const SplatAlphaBackward& a, const SplatSource& source, const SplatScratch& s,
                     vk_stream_t stream) {
  a.absgrad ? launch_backward<C, true>(a, source, s, stream) : launch_backward<C, false>(a, source, s, stream);
}

template <int C>
void launch_forward(const SplatAlphaForward& a, const SplatSource& source, const SplatScratch& s, int64_t first,
                    vk_stream_t stream) {
  VK_LAUNCH((splat_alpha_kernel<C>), unsigned(a.images * windows_of(a)), kWalkThreads, 0, stream, a, source, s.tiles,
            first);
}

}  // namespace

void splat_alpha_cuda(const SplatAlphaForward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.images * a.height * a.width == 0) return;
  const SplatScratch s(a.scratch, a.count, a.height, a.width, 0);
  const SplatSource source = source_of(a, s.weights, a.order);
  prepare_walk(source, a.opacities, a.colors, a.channels, s.weights, s.tiles, a.height, a.width, stream);
  for (int64_t first = 0; first == 0 || first < a.channels;) {
    const int64_t left = a.channels - first;
    if (left >= 8)
      launch_forward<8>(a, source, s, first, stream), first += 8;
    else if (left >= 4)
      launch_forward<4>(a, source, s, first, stream), first += 4;
    else if (left == 3)
      launch_forward<3>(a, source, s, first, stream), first += 3;
    else
      launch_forward<1>(a, source, s, first, stream), first += 1;
  }
}

void splat_alpha_backward_cuda(const SplatAlphaBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const int64_t quantities = kMoments + (a.absgrad ? 2 : 0) + a.channels;
  const SplatScratch s(a.scratch, a.count, a.height, a.width, quantities);
  const SplatSource source = source_of(a, s.weights, a.order);
  s.clear(stream);
  prepare_walk(source, a.opacities, a.colors, a.channels, s.weights, s.tiles, a.height, a.width, stream);
  const int64_t windows = windows_of(a);
  if (a.images * windows > 0) switch (a.channels) {
      case 1: launch_backward<1>(a, source, s, stream); break;
      case 3: launch_backward<3>(a, source, s, stream); break;
      case 4: launch_backward<4>(a, source, s, stream); break;
      default: launch_backward<0>(a, source, s, stream); break;
    }
  const SplatGradients gradients{a.grad_means, a.grad_shapes, a.grad_colors, a.grad_opacities, a.absgrad};
  finish_gradients(source, gradients, s.sums, a.channels, stream);
  if (a.grad_background && a.background_rows * a.channels > 0)
    VK_LAUNCH(splat_alpha_background_kernel, unsigned(a.background_rows * a.channels), kWalkThreads, 0, stream,
              static_cast<const float*>(s.rest), a.background_rows > 1 ? windows : windows * a.images, a.channels,
              a.grad_background);
}

}  // namespace vk
