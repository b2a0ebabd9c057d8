// Who owns what
//   bits       a thread per Gaussian marks the tiles that it touches (device/vk_tile_bits.cuh).
//   forward    a block owns a window of 16x16 pixels, a thread one of them. The block walks the window's Gaussians in
//              ascending index (device/vk_window_walk.cuh); a thread keeps the K heaviest in registers, heaviest first:
//              a new weight sinks past the larger ones, and past equal ones, whose index is lower. Then it takes them
//              out in ascending index.
//   backward   a thread finds its pixel's total weight and mean of g . colour from the list, then the block walks
//              again: as lists and walks ascend, one comparison tells whether a Gaussian is the next of the pixel's
//              list, and the block stops when all lists are at their end. A warp sums a Gaussian over its pixels, the
//              block adds the result to the Gaussian's exact sums in scratch (device/vk_splat_sums.cuh).
//   gradients  a thread per Gaussian, then one per colour, reads the sums.
#include "device/vk_splat_sums.cuh"
#include "ops/splat_topk/splat_topk.h"

namespace vk {
namespace {

constexpr int kSide = 16;  // pixels along a side of a window
constexpr int kPatchWidth = 8, kPatchHeight = 4;
constexpr int kNone = 0x7fffffff;
constexpr int kFew = 4;  // channels that the forward pass writes at a time
constexpr unsigned kAll = 0xffffffffu;
static_assert(kLeastTile % kSide == 0 && kSide * kSide == kWalkThreads);

struct Pixel {
  int left, top, x, y;  // of the warp's patch, of the pixel
  __device__ __forceinline__ explicit Pixel(const Window& w) {
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

/// K: room for the heaviest, at least a.top.
template <int K>
__global__ void __launch_bounds__(kWalkThreads, K > 12 ? 1 : 2)
    splat_topk_kernel(SplatTopkForward a, SplatSource source, TileBits tiles) {
  __shared__ TileWalk walk;
  __shared__ __align__(16) float pool[kWalkThreads * Record<0>::kSize];
  const Window window = window_of(blockIdx.x, a.height, a.width, kSide);
  const Pixel own(window);
  float weight[K] = {};
  int index[K];
#pragma unroll
  for (int k = 0; k < K; ++k) index[k] = kNone;

  walk_window<0>(source, nullptr, 0, 0, tiles, window, walk, pool, [&](int n) {
    for (int j = 0; j < n; ++j) {
      const Record<0> r(pool, j);
      if (!own.near(r)) continue;
      const float dx = float(own.x) - r.x(), dy = float(own.y) - r.y();
      const float exponent = exponent_at(r.k1(), r.k2(), dx, sheared(dx, dy, r.slope()));
      if (exponent < r.limit()) continue;
      float w = __fmul_rn(r.weight(), exp2f(exponent));
      if (!(w > weight[K - 1])) continue;
      int i = r.row();
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const bool sinks = weight[k] >= w;
        const float kept = weight[k];
        const int kept_index = index[k];
        weight[k] = sinks ? kept : w;
        index[k] = sinks ? kept_index : i;
        w = sinks ? w : kept;
        i = sinks ? i : kept_index;
      }
    }
    return true;
  });

  if (own.x >= a.width || own.y >= a.height) return;
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (k >= a.top) {
      weight[k] = 0;
      index[k] = kNone;
    }
  float total = kSplatTopkEpsilon;
#pragma unroll
  for (int k = 0; k < K; ++k) total += weight[k];
  const float scale = 1.0f / total;
  const int64_t pixel = (window.image * a.height + own.y) * a.width + own.x;
  for (int64_t first = 0; first == 0 || first < a.channels; first += kFew) {
    const int64_t left = a.channels - first;
    float sum[kFew] = {};
    int last = -1;
    for (int64_t turn = 0; turn < a.top; ++turn) {
      int lowest = kNone;  // of those after the last one
      float w = 0;
#pragma unroll
      for (int k = 0; k < K; ++k)
        if (index[k] > last && index[k] < lowest) {
          lowest = index[k];
          w = weight[k];
        }
      last = lowest;
      if (first == 0) a.index[pixel * a.top + turn] = lowest == kNone ? -1 : lowest;
      if (lowest == kNone) continue;
      w *= scale;
#pragma unroll
      for (int c = 0; c < kFew; ++c)
        if (c < left) sum[c] += w * a.colors[int64_t(lowest) * a.channels + first + c];
    }
#pragma unroll
    for (int c = 0; c < kFew; ++c)
      if (c < left) a.image[pixel * a.channels + first + c] = sum[c];
  }
}

constexpr int kChunk = 8;  // channels that the kernel for any number of them sums up at a time

/// A pixel's list: ascending rows, then a negative one or the end.
struct Listed {
  const int32_t* at;
  const int32_t* end;
  __device__ __forceinline__ int next() {
    if (at == end) return kNone;
    const int i = *at++;
    return i < 0 ? kNone : i;
  }
};

/// C: channels, or 0 for any number.
template <int C>
__global__ void __launch_bounds__(kWalkThreads, 2)
    splat_topk_backward_kernel(SplatTopkBackward a, SplatSource source, TileBits tiles, sum_bin* sums, int batch_size) {
  constexpr int kOwn = kMoments + C, kSums = kOwn <= 8 ? 8 : 16;
  static_assert(kOwn <= 16);
  __shared__ TileWalk walk;
  __shared__ __align__(16) float pool[kWalkThreads * Record<C>::kSize];
  __shared__ uint32_t masks[kWalkWarps];
  VK_DYN_SHARED(float, partial);
  const int channels = C ? C : int(a.channels);
  const Batch batch{partial, masks, kMoments + channels};
  const Window window = window_of(blockIdx.x, a.height, a.width, kSide);
  const Pixel own(window);
  const bool inside = own.x < a.width && own.y < a.height;
  const int64_t pixel = inside ? (window.image * a.height + own.y) * a.width + own.x : 0;
  const float* grad = a.grad_image + pixel * channels;
  const int32_t* list = a.index + pixel * a.top;

  float g[C ? C : 1] = {};
  if constexpr (C > 0) {
#pragma unroll
    for (int ch = 0; ch < C; ++ch) g[ch] = inside ? grad[ch] : 0.0f;
  }
  const auto along = [&](const float* color) {
    double sum = 0;
    if constexpr (C > 0) {
#pragma unroll
      for (int ch = 0; ch < C; ++ch) sum += double(g[ch]) * double(color[ch]);
    } else {
      for (int ch = 0; ch < channels; ++ch) sum += double(grad[ch]) * double(color[ch]);
    }
    return sum;
  };
  double total = kSplatTopkEpsilon, mean = 0;
  for (int64_t k = 0; inside && k < a.top; ++k) {
    const int32_t i = list[k];
    if (i < 0 || i >= a.count) continue;
    const Ellipse2 e = make_ellipse(a.means, a.shapes, source.weights, a.conic, a.pixel_center, i);
    if (e.half_height < 0) continue;
    const float dx = float(own.x) - e.x, dy = float(own.y) - e.y;
    const float w = __fmul_rn(e.weight, exp2f(exponent_at(e.k1, e.k2, dx, sheared(dx, dy, e.slope))));
    total += w;
    mean += w * along(a.colors + int64_t(i) * channels);
  }
  const double scale = 1.0 / total;
  mean *= scale;
  Listed listed{list, inside ? list + a.top : list};
  int next = listed.next();

  walk_window<C>(source, a.colors, channels, 0, tiles, window, walk, pool, [&](int n) {
    for (int start = 0; start < n; start += batch_size) {
      const int size = n - start < batch_size ? n - start : batch_size;
      uint32_t mask = 0;
      for (int j = 0; j < size; ++j) {
        const Record<C> r(pool, start + j);
        if (!own.near(r)) continue;
        while (next < r.row()) next = listed.next();
        float v[kSums] = {}, share = 0;
        if (next == r.row()) {
          next = listed.next();
          const float dx = float(own.x) - r.x(), dy = float(own.y) - r.y(), q = sheared(dx, dy, r.slope());
          const float exponent = exponent_at(r.k1(), r.k2(), dx, q);
          if (exponent >= r.limit()) {
            share = float(double(__fmul_rn(r.weight(), exp2f(exponent))) * scale);
            float s;
            if constexpr (C > 0) {
              float color[C];
#pragma unroll
              for (int ch = 0; ch < C; ++ch) {
                color[ch] = r.own(ch);
                v[kMoments + ch] = share * g[ch];
              }
              s = share * float(along(color) - mean);
            } else {
              s = share * float(along(a.colors + int64_t(r.row()) * channels) - mean);
            }
            const float sp = s * dx, sq = s * q;
            v[0] = s;
            v[1] = sp;
            v[2] = sq;
            v[3] = sp * dx;
            v[4] = sp * q;
            v[5] = sq * q;
          }
        }
        if (!__any_sync(kAll, share > 0)) continue;
        mask |= 1u << j;
        batch.put<kSums>(j, 0, kOwn, warp_sums<kSums>(v));
        if constexpr (C == 0) {
          for (int ch = 0; ch < channels; ch += kChunk) {
            float w[kChunk] = {};
            const int left = channels - ch < kChunk ? channels - ch : kChunk;
            if (share > 0) {
#pragma unroll
              for (int c = 0; c < kChunk; ++c)
                if (c < left) w[c] = share * grad[ch + c];
            }
            batch.put<kChunk>(j, kMoments + ch, left, warp_sums<kChunk>(w));
          }
        }
      }
      batch.finish<C>(pool, start, size, mask, false, sums);
    }
    return next != kNone;
  });
}

int64_t windows_of(const SplatTopk& a) { return ((a.height + kSide - 1) / kSide) * ((a.width + kSide - 1) / kSide); }

SplatSource source_of(const SplatTopk& a, const float* weights) {
  return {a.means, a.shapes, weights, nullptr, a.offsets, a.count, a.pixel_center, a.conic};
}

template <int K>
void launch_forward(const SplatTopkForward& a, const SplatSource& source, const TileBits& tiles, vk_stream_t stream) {
  VK_LAUNCH((splat_topk_kernel<K>), unsigned(a.images * windows_of(a)), kWalkThreads, 0, stream, a, source, tiles);
}

template <int C>
void launch_backward(const SplatTopkBackward& a, const SplatSource& source, const SplatScratch& s, vk_stream_t stream) {
  const int64_t quantities = kMoments + a.channels;
  VK_LAUNCH((splat_topk_backward_kernel<C>), unsigned(a.images * windows_of(a)), kWalkThreads, batch_bytes(quantities),
            stream, a, source, s.tiles, s.sums, batch_size(quantities));
}

}  // namespace

void splat_topk_cuda(const SplatTopkForward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.images * a.height * a.width == 0) return;
  const SplatScratch s(a.scratch, a.count, a.height, a.width, 0);
  const SplatSource source = source_of(a, s.weights);
  prepare_walk(source, a.opacities, a.colors, a.channels, s.weights, s.tiles, a.height, a.width, stream);
  static_assert(kSplatTopkMost == 32);
  if (a.top <= 4)
    launch_forward<4>(a, source, s.tiles, stream);
  else if (a.top <= 12)
    launch_forward<12>(a, source, s.tiles, stream);
  else
    launch_forward<32>(a, source, s.tiles, stream);
}

void splat_topk_backward_cuda(const SplatTopkBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const SplatScratch s(a.scratch, a.count, a.height, a.width, kMoments + a.channels);
  const SplatSource source = source_of(a, s.weights);
  s.clear(stream);
  prepare_walk(source, a.opacities, a.colors, a.channels, s.weights, s.tiles, a.height, a.width, stream);
  if (a.count > 0 && a.images * windows_of(a) > 0) switch (a.channels) {
      case 1: launch_backward<1>(a, source, s, stream); break;
      case 3: launch_backward<3>(a, source, s, stream); break;
      case 4: launch_backward<4>(a, source, s, stream); break;
      default: launch_backward<0>(a, source, s, stream); break;
    }
  finish_gradients(source, {a.grad_means, a.grad_shapes, a.grad_colors, a.grad_opacities, nullptr}, s.sums, a.channels,
                   stream);
}

}  // namespace vk
