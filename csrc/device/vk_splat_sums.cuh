// From what a block's warps find about one Gaussian to its gradients.
//
// A warp sums a Gaussian's quantities over its pixels and leaves them in shared memory; after a batch of Gaussians the
// block adds up its warps, in their order, and adds the result to the Gaussian's exact sums in scratch. Gaussians of
// any size take the same way, and nothing depends on the order of blocks.
//
// Quantities: s, s p, s q, s p^2, s p q, s q^2, [|x|, |y| of the mean's gradient], colours. They are stored divided by
// the ellipse's own scale, so that all of them are about as large as s.
#pragma once
#include "device/vk_exact_sum.cuh"
#include "device/vk_window_walk.cuh"

namespace vk {

constexpr int kMoments = 6, kWalkWarps = kWalkThreads / 32;
constexpr int kMostBatch = 32;  // one bit each in a warp's mask
constexpr int kBatchBytes = 24 * 1024;

/// 64-bit words of one Gaussian in scratch: the sums, then the flag.
inline int64_t sum_words(int64_t quantities) { return quantities * kSumBins + 1; }

/// The parts of scratch, each a multiple of 8 bytes; op.py adds up the same sizes. quantities: 0 without sums.
struct SplatScratch {
  sum_bin* sums;
  size_t sum_bytes;
  TileBits tiles;
  float* weights;
  void* rest;
  SplatScratch(void* memory, int64_t count, int64_t height, int64_t width, int64_t quantities)
      : sums(static_cast<sum_bin*>(memory)),
        sum_bytes(quantities ? size_t(sum_words(quantities) * count) * sizeof(sum_bin) : 0) {
    char* at = static_cast<char*>(memory) + sum_bytes;
    tiles = tile_bits(at, count, height, width);
    weights = reinterpret_cast<float*>(at + tile_bits_bytes(count, height, width));
    rest = weights + (count + 1) / 2 * 2;
  }
  void clear(vk_stream_t stream) const {
    if (sum_bytes > 0) memset_async(sums, 0, sum_bytes, stream);
  }
};

/// How many Gaussians a batch holds, and its dynamic shared memory.
inline int batch_size(int64_t quantities) {
  const int64_t fit = kBatchBytes / (kWalkWarps * quantities * int64_t(sizeof(float)));
  return int(fit < 1 ? 1 : fit > kMostBatch ? kMostBatch : fit);
}
inline size_t batch_bytes(int64_t quantities) {
  return size_t(batch_size(quantities) * kWalkWarps * quantities) * sizeof(float);
}

/// What a quantity was divided by.
__device__ __forceinline__ float scale_of(int quantity, bool absolute, float k1, float k2, float slope) {
  const float a = sqrtf(-k1), b = sqrtf(-k2);
  switch (quantity) {
    case 1: return 1.0f / a;
    case 2: return 1.0f / b;
    case 3: return -1.0f / k1;
    case 4: return 1.0f / (a * b);
    case 5: return -1.0f / k2;
    case 6: return absolute ? a + fabsf(slope) * b : 1.0f;
    case 7: return absolute ? b : 1.0f;
    default: return 1.0f;
  }
}

/// The warps' results of a batch: partial[place][warp][quantity], and which warps have one.
struct Batch {
  float* partial;
  uint32_t* masks;  // [kWalkWarps]
  int quantities;

  __device__ __forceinline__ float* at(int place) const {
    return partial + (place * kWalkWarps + int(threadIdx.x) / 32) * quantities;
  }
  /// Values first .. first + n - 1 of this warp; lane l brings value l / (32 / P), as warp_sums<P> leaves it.
  template <int P>
  __device__ __forceinline__ void put(int place, int first, int n, float sum) const {
    const int lane = int(threadIdx.x) % 32, k = lane / (32 / P);
    if (lane % (32 / P) == 0 && k < n) at(place)[first + k] = sum;
  }
  /// Adds the batch of records first .. first + n - 1 to the exact sums. `mask`: this warp's places with a result.
  template <int C>
  __device__ __forceinline__ void finish(const float* pool, int first, int n, uint32_t mask, bool absolute,
                                         sum_bin* sums) const {
    if (threadIdx.x % 32 == 0) masks[threadIdx.x / 32] = mask;
    __syncthreads();
    const int64_t words = int64_t(quantities) * kSumBins + 1;
    for (int k = threadIdx.x; k < n * quantities; k += kWalkThreads) {
      const int place = k / quantities, quantity = k % quantities;
      float sum = 0;
      bool any = false;
#pragma unroll
      for (int w = 0; w < kWalkWarps; ++w)
        if (masks[w] >> place & 1u) {
          sum += partial[(place * kWalkWarps + w) * quantities + quantity];
          any = true;
        }
      if (!any) continue;
      const float* record = pool + (first + place) * Record<C>::kSize;
      sum_bin* own = sums + __float_as_int(record[9]) * words;
      add_exactly(own + quantity * kSumBins, own + words - 1,
                  sum / scale_of(quantity, absolute, record[2], record[3], record[4]));
    }
    __syncthreads();
  }
};

struct SplatGradients {
  float* means;      // [N, 2]
  float* shapes;     // [N, 3]
  float* colors;     // [N, C]
  float* opacities;  // [N] or null
  float* absolute;   // [N, 2] or null
};

constexpr int kFinishThreads = 128;

/// One thread per Gaussian: everything but the colours.
static __global__ void __launch_bounds__(kFinishThreads)
    splat_gradients_kernel(SplatSource s, SplatGradients g, const sum_bin* __restrict__ sums, int quantities) {
  const int64_t i = int64_t(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (i >= s.count) return;
  const Ellipse2 e = make_ellipse(s.means, s.shapes, s.weights, s.conic, s.pixel_center, i);
  float d_mean[2] = {}, d_shape[3] = {}, d_opacity = 0, absolute[2] = {};
  if (e.half_height >= 0) {
    const sum_bin* own = sums + i * (int64_t(quantities) * kSumBins + 1);
    const bool lost = own[quantities * kSumBins] != 0;
    float m[kMoments + 2] = {};
    const int n = kMoments + (g.absolute ? 2 : 0);
#pragma unroll
    for (int k = 0; k < kMoments + 2; ++k)
      if (k < n)
        m[k] = lost ? nanf("")
                    : float(exact_sum(own + k * kSumBins) * scale_of(k, g.absolute != nullptr, e.k1, e.k2, e.slope));
    const float w = 1.0f / e.weight;  // the moments without it, as shape_gradients wants them
    shape_gradients(e, {m[0] * w, m[1] * w, m[2] * w, m[3] * w, m[4] * w, m[5] * w}, s.conic, s.shapes + 3 * i, d_mean,
                    d_shape);
    d_opacity = m[0] * w;
    absolute[0] = m[6];
    absolute[1] = m[7];
  }
#pragma unroll
  for (int k = 0; k < 2; ++k) g.means[2 * i + k] = d_mean[k];
#pragma unroll
  for (int k = 0; k < 3; ++k) g.shapes[3 * i + k] = d_shape[k];
  if (g.opacities) g.opacities[i] = d_opacity;
  if (g.absolute)
#pragma unroll
    for (int k = 0; k < 2; ++k) g.absolute[2 * i + k] = absolute[k];
}

/// One thread per colour.
static __global__ void __launch_bounds__(kFinishThreads)
    splat_color_gradients_kernel(const sum_bin* __restrict__ sums, int64_t count, int64_t channels, int first,
                                 int quantities, float* __restrict__ grad_colors) {
  const int64_t k = int64_t(blockIdx.x) * kFinishThreads + threadIdx.x;
  if (k >= count * channels) return;
  const sum_bin* own = sums + k / channels * (int64_t(quantities) * kSumBins + 1);
  const double sum = exact_sum(own + (first + k % channels) * kSumBins);
  grad_colors[k] = own[quantities * kSumBins] ? nanf("") : float(sum);
}

inline void finish_gradients(const SplatSource& s, const SplatGradients& g, const sum_bin* sums, int64_t channels,
                             vk_stream_t stream) {
  if (s.count == 0) return;
  const int first = kMoments + (g.absolute ? 2 : 0);
  VK_LAUNCH(splat_gradients_kernel, blocks_for(s.count, kFinishThreads), kFinishThreads, 0, stream, s, g, sums,
            int(first + channels));
  if (channels > 0)
    VK_LAUNCH(splat_color_gradients_kernel, blocks_for(s.count * channels, kFinishThreads), kFinishThreads, 0, stream,
              sums, s.count, channels, first, int(first + channels), g.colors);
}

}  // namespace vk
