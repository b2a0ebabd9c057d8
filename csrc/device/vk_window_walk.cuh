// The walk of a block over the Gaussians that touch its window of pixels, in the order of the tile bits.
//
// A step: 256 set bits of the tile; a thread each makes the ellipse and tests it against the window; those that touch
// it become records in shared memory, still in order; then all threads go through the records with their own pixels.
#pragma once
#include "device/vk_tile_bits.cuh"

namespace vk {

struct SplatSource {
  const float* means;      // [N, 2]
  const float* shapes;     // [N, 3]
  const float* weights;    // [N], 0: felt nowhere
  const int32_t* order;    // [N] bit -> row, or null: the same
  const int64_t* offsets;  // [B + 1] or null
  int64_t count;
  float pixel_center;
  bool conic;
};

struct Window {
  int64_t image;
  int left, top, side;
};

/// Window `block` of all images, rows of windows after each other.
__device__ __forceinline__ Window window_of(unsigned block, int64_t height, int64_t width, int side) {
  const unsigned columns = unsigned((width + side - 1) / side), rows = unsigned((height + side - 1) / side);
  const unsigned place = block % (columns * rows);
  return {int64_t(block / (columns * rows)), int(place % columns) * side, int(place / columns) * side, side};
}

/// A Gaussian in shared memory, then C numbers of its own (colours), padded to whole 16 bytes.
template <int C>
struct Record {
  static constexpr int kHead = 10;
  static constexpr int kSize = (kHead + C + 3) / 4 * 4;  // floats
  float data[kSize];

  __device__ __forceinline__ explicit Record(const float* pool, int place) {
#pragma unroll
    for (int k = 0; k < kSize; k += 4) {
      const Vec<float, 4> v = load_vec<4>(pool + place * kSize + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) data[k + j] = v[j];
    }
  }
  __device__ __forceinline__ float x() const { return data[0]; }
  __device__ __forceinline__ float y() const { return data[1]; }
  __device__ __forceinline__ float k1() const { return data[2]; }
  __device__ __forceinline__ float k2() const { return data[3]; }
  __device__ __forceinline__ float slope() const { return data[4]; }
  __device__ __forceinline__ float limit() const { return data[5]; }
  __device__ __forceinline__ float weight() const { return data[6]; }
  __device__ __forceinline__ int row() const { return __float_as_int(data[9]); }
  __device__ __forceinline__ float own(int k) const { return data[kHead + k]; }

  /// May the bounding box reach pixels [left, right] x [top, bottom]?
  __device__ __forceinline__ bool near(float left, float top, float right, float bottom) const {
    const float w = data[7] + 0.01f, h = data[8] + 0.01f;
    return left - x() <= w && x() - right <= w && top - y() <= h && y() - bottom <= h;
  }
};

// The exponent at an offset from the mean; written out, so that every kernel gets the same bits and decides alike.
__device__ __forceinline__ float sheared(float dx, float dy, float slope) { return __fmaf_rn(-slope, dx, dy); }
__device__ __forceinline__ float exponent_at(float k1, float k2, float p, float q) {
  return __fmaf_rn(__fmul_rn(k2, q), q, __fmul_rn(__fmul_rn(k1, p), p));
}

/// use(n): go through records 0 .. n - 1 of `pool` [kWalkThreads * Record<C>::kSize]; the walk ends once it returns
/// false in all threads. Records get channels [first, first + C) of `colors`. The pool is free after the walk.
template <int C, class Use>
__device__ __forceinline__ void walk_window(const SplatSource& s, const float* colors, int64_t channels, int64_t first,
                                            const TileBits& tiles, const Window& w, TileWalk& walk, float* pool,
                                            Use use) {
  int64_t begin = 0, end = s.count;
  if (s.offsets) {
    begin = s.offsets[w.image] > 0 ? s.offsets[w.image] : 0;
    end = s.offsets[w.image + 1] < s.count ? s.offsets[w.image + 1] : s.count;
  }
  const int64_t tile = int64_t(w.top / tiles.tile) * tiles.columns + w.left / tiles.tile;
  for (int64_t word = begin / 32; word * 32 < end; word += kWalkWords) {
    const int found = find_bits(tiles, tile, word, begin, end, walk);
    for (int from = 0; from < found; from += kWalkThreads) {
      const int own = from + int(threadIdx.x);
      Ellipse2 e;
      e.half_height = -1;
      int64_t row = -1;
      if (own < found) {
        row = word * 32 + walk.found[own];
        if (s.order) row = s.order[row];
        if (row >= 0 && row < s.count) e = make_ellipse(s.means, s.shapes, s.weights, s.conic, s.pixel_center, row);
      }
      const int bottom = w.top + w.side - 1, right = w.left + w.side - 1;
      bool near = false;
      if (const Span y = rows_of(e, w.top, bottom); y.first <= y.last) {
        const Span x = columns_in_rows(e, w.top, bottom, w.left, right);
        near = x.first <= x.last;
      }
      int kept;
      const int place = rank_in_block(near ? 1 : 0, walk.counts, kept);
      if (near) {
        float record[Record<C>::kSize] = {e.x,     e.y,      e.k1,         e.k2,          e.slope,
                                          e.limit, e.weight, e.half_width, e.half_height, __int_as_float(int(row))};
#pragma unroll
        for (int k = 0; k < C; ++k) record[Record<C>::kHead + k] = colors[row * channels + first + k];
#pragma unroll
        for (int k = 0; k < Record<C>::kSize; k += 4)
          store_vec<4>(pool + place * Record<C>::kSize + k,
                       Vec<float, 4>{{record[k], record[k + 1], record[k + 2], record[k + 3]}});
      }
      __syncthreads();
      if (kept == 0) continue;
      if (!__syncthreads_or(use(kept))) return;
    }
  }
}

/// weights[i]: the opacity (1 without), or 0 for a Gaussian with a colour that is not finite. Eight lanes per row.
constexpr int kWeightThreads = 256, kWeightLanes = 8;
static __global__ void __launch_bounds__(kWeightThreads)
    splat_weights_kernel(const float* __restrict__ opacities, const float* __restrict__ colors, int64_t count,
                         int64_t channels, float* __restrict__ weights) {
  const int64_t row = int64_t(blockIdx.x) * (kWeightThreads / kWeightLanes) + threadIdx.x / kWeightLanes;
  const int lane = int(threadIdx.x) % kWeightLanes;
  float zero = 0;  // NaN if a colour is not finite
  if (row < count)
    for (int64_t ch = lane; ch < channels; ch += kWeightLanes) zero += colors[row * channels + ch] * 0.0f;
  zero = warp_sum<kWeightLanes>(zero);
  if (row < count && lane == 0) weights[row] = zero != 0.0f ? 0.0f : opacities ? opacities[row] : 1.0f;
}

inline unsigned blocks_for(int64_t items, int64_t each) { return unsigned((items + each - 1) / each); }

/// Weights and bits, from which the walks start. `weights` [N] and the memory of `tiles` are written.
inline void prepare_walk(const SplatSource& s, const float* opacities, const float* colors, int64_t channels,
                         float* weights, const TileBits& tiles, int64_t height, int64_t width, vk_stream_t stream) {
  if (s.count == 0) return;
  VK_LAUNCH(splat_weights_kernel, blocks_for(s.count, kWeightThreads / kWeightLanes), kWeightThreads, 0, stream,
            opacities, colors, s.count, channels, weights);
  const unsigned blocks = blocks_for(s.count, kMarkThreads);
  if (s.order)
    VK_LAUNCH((mark_tiles_kernel<true>), blocks, kMarkThreads, 0, stream, s.means, s.shapes, weights, s.order, s.conic,
              s.pixel_center, s.count, int(height), int(width), tiles);
  else
    VK_LAUNCH((mark_tiles_kernel<false>), blocks, kMarkThreads, 0, stream, s.means, s.shapes, weights, nullptr, s.conic,
              s.pixel_center, s.count, int(height), int(width), tiles);
}

}  // namespace vk
