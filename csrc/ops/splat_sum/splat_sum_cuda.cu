// Who owns what
//   mark       a thread owns a Gaussian and says, bit by bit, which tiles (128x128 pixels or more) its support touches.
//   forward    a block owns 32x32 pixels of one image, a thread four of them, one below the other, in registers. The
//              block walks the bits of its tile in ascending order, 256 Gaussians at a time: those whose support
//              touches its own pixels go to shared memory, in order, and are added up by everybody.
//   backward   a warp owns a Gaussian and gathers over its footprint, 8x4 pixels at a time; each gradient is written
//              once. Overlapping footprints read the gradient image again, out of the cache.
//   background a block owns a part of an image, a thread one channel of it; then a thread owns a sum over the parts.
// Every sum has one order: deterministic. There is no list whose length depends on the data.
#include "device/vk_device.cuh"
#include "device/vk_ellipse.cuh"
#include "device/vk_reduce.cuh"
#include "device/vk_tile_bits.cuh"
#include "ops/splat_sum/splat_sum.h"

namespace vk {
namespace {

constexpr int kSide = 32;  // pixels along each side of a block's window
constexpr int kRows = kSide * kSide / kWalkThreads;
constexpr int kRecord = 7;  // numbers of a Gaussian in shared memory, then its colours times its weight
static_assert(kLeastTile % kSide == 0);

/// Channels [first, first + C).
template <int C>
__global__ void __launch_bounds__(kWalkThreads, 3) splat_sum_kernel(SplatSumForward a, TileBits tiles, int64_t first) {
  constexpr int kStride = (kRecord + C) | 1;  // odd: lanes that write their records meet in different banks
  constexpr int kPool = kWalkThreads * kStride > kSide * kSide * C ? kWalkThreads * kStride : kSide * kSide * C;
  __shared__ TileWalk walk;
  __shared__ __align__(16) float pool[kPool];
  const int columns = int((a.width + kSide - 1) / kSide), rows = int((a.height + kSide - 1) / kSide);
  const int64_t image = blockIdx.x / unsigned(columns * rows);
  const int place = int(blockIdx.x % unsigned(columns * rows));
  const int left = place % columns * kSide, top = place / columns * kSide;
  const int64_t tile = int64_t(top / tiles.tile) * tiles.columns + left / tiles.tile;
  const int lane = threadIdx.x % 32, strip = threadIdx.x / 32 * kRows;
  const float column = float(left + lane), row = float(top + strip);

  float sum[kRows][C];
#pragma unroll
  for (int ch = 0; ch < C; ++ch) {
    const float back =
        a.background ? a.background[(a.background_rows > 1 ? image : 0) * a.channels + first + ch] : 0.0f;
#pragma unroll
    for (int k = 0; k < kRows; ++k) sum[k][ch] = back;
  }

  int64_t begin = 0, end = a.count;
  if (a.offsets) {
    begin = a.offsets[image] > 0 ? a.offsets[image] : 0;
    end = a.offsets[image + 1] < a.count ? a.offsets[image + 1] : a.count;
  }
  for (int64_t word = begin / 32; word * 32 < end; word += kWalkWords) {
    const int found = find_bits(tiles, tile, word, begin, end, walk);
    for (int from = 0; from < found; from += kWalkThreads) {
      const int own = from + int(threadIdx.x);
      Ellipse2 e;
      e.half_height = -1;
      int64_t i = 0;
      if (own < found) {
        i = word * 32 + walk.found[own];
        e = make_ellipse(a.means, a.shapes, a.opacities, a.conic, a.pixel_center, i);
      }
      const Span y = rows_of(e, top, top + kSide - 1);
      bool near = y.first <= y.last;
      if (near) {
        const Span x = columns_in_rows(e, top, top + kSide - 1, left, left + kSide - 1);
        near = x.first <= x.last;
      }
      int kept;
      const int to = rank_in_block(near ? 1 : 0, walk.counts, kept);
      if (near) {
        float* record = pool + to * kStride;
        record[0] = e.x;
        record[1] = e.y;
        record[2] = e.k1;
        record[3] = e.k2;
        record[4] = e.slope;
        record[5] = e.limit;
        record[6] = e.half_height;
#pragma unroll
        for (int ch = 0; ch < C; ++ch) record[kRecord + ch] = a.colors[i * a.channels + first + ch] * e.weight;
      }
      __syncthreads();
      for (int j = 0; j < kept; ++j) {
        const float* record = pool + j * kStride;
        const float dy = row - record[1];
        if (dy > record[6] + 0.01f || dy + float(kRows) < -record[6]) continue;  // the same for the whole warp
        const float p = column - record[0], k2 = record[3], limit = record[5];
        const float base = record[2] * p * p, across = dy - record[4] * p;
        float color[C];
#pragma unroll
        for (int ch = 0; ch < C; ++ch) color[ch] = record[kRecord + ch];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          const float q = across + float(k), exponent = base + k2 * q * q;
          if (exponent < limit) continue;
          const float g = exp2f(exponent);
#pragma unroll
          for (int ch = 0; ch < C; ++ch) sum[k][ch] += g * color[ch];
        }
      }
      __syncthreads();  // the records are no longer read
    }
  }

  // Through shared memory: neighbouring lanes write neighbouring numbers.
#pragma unroll
  for (int k = 0; k < kRows; ++k)
#pragma unroll
    for (int ch = 0; ch < C; ++ch) pool[((strip + k) * kSide + lane) * C + ch] = sum[k][ch];
  __syncthreads();
  for (int k = threadIdx.x; k < kSide * kSide * C; k += kWalkThreads) {
    const int pixel = k / C, y = top + pixel / kSide, x = left + pixel % kSide;
    if (y < a.height && x < a.width)
      a.image[((image * a.height + y) * a.width + x) * a.channels + first + k % C] = pool[k];
  }
}

constexpr int kGatherWarps = 8;

/// f(pixel's number in the image, p, q, G) for this lane's share of the pixels that the Gaussian is felt at.
template <class F>
__device__ __forceinline__ void each_pixel(const Ellipse2& e, int height, int width, F f) {
  const int lane = threadIdx.x % 32;
  const Span rows = rows_of(e, 0, height - 1);
  for (int top = rows.first; top <= rows.last; top += 4) {
    const int y = top + lane / 8;
    const Span columns = columns_in_rows(e, top, min(top + 3, rows.last), 0, width - 1);
    const float dy = float(y) - e.y;
    for (int x = (columns.first & ~7) + lane % 8; x - lane % 8 <= columns.last; x += 8) {
      const float p = float(x) - e.x, q = dy - e.slope * p;
      const float exponent = e.k1 * p * p + e.k2 * q * q;
      if (exponent < e.limit || y > rows.last || x > columns.last) continue;
      f(int64_t(y) * width + x, p, q, exp2f(exponent));
    }
  }
}

/// C: channels, or 0 for any number.
template <int C>
__global__ void __launch_bounds__(kGatherWarps * 32) splat_sum_backward_kernel(SplatSumBackward a) {
  constexpr int kChunk = C ? C : 4;
  const int lane = threadIdx.x % 32;
  const int64_t i = int64_t(blockIdx.x) * kGatherWarps + threadIdx.x / 32;
  if (i >= a.count) return;
  const int64_t channels = C ? C : a.channels;
  const Ellipse2 e = make_ellipse(a.means, a.shapes, a.opacities, a.conic, a.pixel_center, i);
  const bool felt = e.half_height >= 0;
  const int64_t image = image_of(a.offsets, a.images, i);
  const float* grad = a.grad_image + image * a.height * a.width * channels;
  const float* color = a.colors + i * channels;
  float c[kChunk], seen[kChunk] = {};
  if constexpr (C > 0)
#pragma unroll
    for (int ch = 0; ch < C; ++ch) c[ch] = color[ch];
  SplatMoments m{};
  if (felt)
    each_pixel(e, int(a.height), int(a.width), [&](int64_t pixel, float p, float q, float g) {
      float s = 0;
      if constexpr (C > 0) {
#pragma unroll
        for (int ch = 0; ch < C; ++ch) {
          const float d = grad[pixel * C + ch];
          seen[ch] += g * d;
          s += c[ch] * d;
        }
      } else {
        for (int64_t ch = 0; ch < channels; ++ch) s += color[ch] * grad[pixel * channels + ch];
      }
      s *= g;
      const float sp = s * p, sq = s * q;
      m.s += s;
      m.p += sp;
      m.q += sq;
      m.pp += sp * p;
      m.pq += sp * q;
      m.qq += sq * q;
    });
  m = {warp_sum(m.s), warp_sum(m.p), warp_sum(m.q), warp_sum(m.pp), warp_sum(m.pq), warp_sum(m.qq)};
  for (int64_t first = 0; first < channels; first += kChunk) {
    if constexpr (C == 0) {
#pragma unroll
      for (int k = 0; k < kChunk; ++k) seen[k] = 0;
      if (felt)
        each_pixel(e, int(a.height), int(a.width), [&](int64_t pixel, float, float, float g) {
#pragma unroll
          for (int k = 0; k < kChunk; ++k)
            if (first + k < channels) seen[k] += g * grad[pixel * channels + first + k];
        });
    }
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float total = warp_sum(seen[k]);
      if (lane == k && first + k < channels) a.grad_colors[i * channels + first + k] = felt ? total * e.weight : 0.0f;
    }
  }
  if (lane != 0) return;
  float d_mean[2] = {}, d_shape[3] = {};
  if (felt) shape_gradients(e, m, a.conic, a.shapes + 3 * i, d_mean, d_shape);
  a.grad_means[2 * i] = d_mean[0];
  a.grad_means[2 * i + 1] = d_mean[1];
#pragma unroll
  for (int k = 0; k < 3; ++k) a.grad_shapes[3 * i + k] = d_shape[k];
  if (a.grad_opacities) a.grad_opacities[i] = m.s;
}

constexpr int kParts = 64, kSumThreads = 256;

/// partial[image][part][channel]
__global__ void __launch_bounds__(kSumThreads)
    splat_sum_background_parts_kernel(const float* __restrict__ grad_image, int64_t pixels, int64_t channels,
                                      double* __restrict__ partial) {
  __shared__ double sums[kSumThreads];
  const int64_t image = blockIdx.x / kParts, part = blockIdx.x % kParts;
  const int64_t begin = pixels * part / kParts, end = pixels * (part + 1) / kParts;
  grad_image += image * pixels * channels;
  for (int64_t first = 0; first < channels; first += kSumThreads) {
    const int wide = int(channels - first < kSumThreads ? channels - first : kSumThreads);
    const int side_by_side = kSumThreads / wide, ch = threadIdx.x % wide, at = threadIdx.x / wide;
    double sum = 0;
    if (at < side_by_side)
      for (int64_t p = begin + at; p < end; p += side_by_side) sum += grad_image[p * channels + first + ch];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (int(threadIdx.x) < wide) {
      for (int k = 1; k < side_by_side; ++k) sum += sums[k * wide + ch];
      partial[(image * kParts + part) * channels + first + ch] = sum;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kSumThreads)
    splat_sum_background_kernel(const double* __restrict__ partial, int64_t images, int64_t rows, int64_t channels,
                                float* __restrict__ grad_background) {
  const int64_t k = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (k >= rows * channels) return;
  const int64_t row = k / channels, parts = (rows > 1 ? 1 : images) * kParts;
  double sum = 0;
  for (int64_t p = 0; p < parts; ++p) sum += partial[(row * kParts + p) * channels + k % channels];
  grad_background[k] = float(sum);
}

template <int C>
void launch_forward(const SplatSumForward& a, const TileBits& tiles, int64_t first, vk_stream_t stream) {
  const int64_t blocks = a.images * ((a.height + kSide - 1) / kSide) * ((a.width + kSide - 1) / kSide);
  VK_LAUNCH((splat_sum_kernel<C>), unsigned(blocks), kWalkThreads, 0, stream, a, tiles, first);
}

template <int C>
void launch_backward(const SplatSumBackward& a, vk_stream_t stream) {
  VK_LAUNCH((splat_sum_backward_kernel<C>), unsigned((a.count + kGatherWarps - 1) / kGatherWarps), kGatherWarps * 32, 0,
            stream, a);
}

}  // namespace

int64_t splat_sum_scratch_bytes(int64_t count, int64_t, int64_t height, int64_t width) {
  return tile_bits_bytes(count, height, width);
}
int64_t splat_sum_backward_scratch_bytes(int64_t images, int64_t channels) {
  return images * kParts * channels * int64_t(sizeof(double));
}

void splat_sum_cuda(const SplatSumForward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.images * a.height * a.width * a.channels == 0) return;
  const TileBits tiles = tile_bits(a.scratch, a.count, a.height, a.width);
  if (a.count > 0)
    VK_LAUNCH((mark_tiles_kernel<false>), unsigned((a.count + kMarkThreads - 1) / kMarkThreads), kMarkThreads, 0,
              stream, a.means, a.shapes, a.opacities, nullptr, a.conic, a.pixel_center, a.count, int(a.height),
              int(a.width), tiles);
  for (int64_t first = 0; first < a.channels;) {
    const int64_t left = a.channels - first;
    if (left >= 4) {
      launch_forward<4>(a, tiles, first, stream);
      first += 4;
    } else if (left == 3) {
      launch_forward<3>(a, tiles, first, stream);
      first += 3;
    } else {
      launch_forward<1>(a, tiles, first, stream);
      first += 1;
    }
  }
}

void splat_sum_backward_cuda(const SplatSumBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  const int64_t pixels = a.height * a.width;
  if (a.grad_background && a.background_rows * a.channels > 0) {
    if (a.images > 0)
      VK_LAUNCH(splat_sum_background_parts_kernel, unsigned(a.images * kParts), kSumThreads, 0, stream, a.grad_image,
                pixels, a.channels, static_cast<double*>(a.scratch));
    VK_LAUNCH(splat_sum_background_kernel, unsigned((a.background_rows * a.channels + kSumThreads - 1) / kSumThreads),
              kSumThreads, 0, stream, static_cast<const double*>(a.scratch), a.images, a.background_rows, a.channels,
              a.grad_background);
  }
  if (a.count == 0) return;
  switch (a.channels) {
    case 1: return launch_backward<1>(a, stream);
    case 3: return launch_backward<3>(a, stream);
    case 4: return launch_backward<4>(a, stream);
    default: return launch_backward<0>(a, stream);
  }
}

}  // namespace vk
