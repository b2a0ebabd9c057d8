// Which Gaussians touch which tile, as one bit per tile and Gaussian: no lists whose length depends on the data, no
// sort, and a tile's bits come in ascending order by themselves. The tiles are those of any image of the batch (a row
// belongs to one image only), and grow with the image so that there are at most kMostTiles: 32 bytes per Gaussian.
#pragma once
#include "device/vk_ellipse.cuh"
#include "device/vk_reduce.cuh"

namespace vk {

constexpr int kMarkThreads = 256;
constexpr int kMarkWords = kMarkThreads / 32;  // words of a tile that a block of mark_tiles_kernel writes: a sector
constexpr int64_t kMostTiles = 256;
constexpr int kLeastTile = 128;

struct TileBits {
  uint32_t* bits;  // [rows * columns][words]
  int64_t words;   // a multiple of kMarkWords
  int tile, rows, columns;
};

inline TileBits tile_bits(void* memory, int64_t count, int64_t height, int64_t width) {
  int64_t tile = kLeastTile;
  const auto over = [&](int64_t n) { return (n + tile - 1) / tile; };
  while (over(height) * over(width) > kMostTiles) tile *= 2;
  const int64_t words = (count + kMarkThreads - 1) / kMarkThreads * kMarkWords;
  return {static_cast<uint32_t*>(memory), words, int(tile), int(over(height)), int(over(width))};
}
inline int64_t tile_bits_bytes(int64_t count, int64_t height, int64_t width) {
  const TileBits t = tile_bits(nullptr, count, height, width);
  return t.words * t.rows * t.columns * int64_t(sizeof(uint32_t));
}

/// One thread per Gaussian. `order`: bit i stands for row order[i], or null: for row i.
template <bool kOrdered>
__global__ void __launch_bounds__(kMarkThreads)
    mark_tiles_kernel(const float* __restrict__ means, const float* __restrict__ shapes,
                      const float* __restrict__ opacities, const int32_t* __restrict__ order, bool conic,
                      float pixel_center, int64_t count, int height, int width, TileBits t) {
  __shared__ uint32_t marks[kMostTiles * kMarkWords];
  const int tiles = t.rows * t.columns;
  for (int k = threadIdx.x; k < tiles * kMarkWords; k += kMarkThreads) marks[k] = 0;
  __syncthreads();
  const int64_t i = int64_t(blockIdx.x) * kMarkThreads + threadIdx.x;
  int64_t row = i < count ? i : -1;
  if (kOrdered && row >= 0) {
    row = order[i];
    if (row >= count) row = -1;
  }
  if (row >= 0) {
    const Ellipse2 e = make_ellipse(means, shapes, opacities, conic, pixel_center, row);
    const Span y = rows_of(e, 0, height - 1);
    if (y.first <= y.last)
      for (int r = y.first / t.tile; r <= y.last / t.tile; ++r) {
        const Span x = columns_in_rows(e, r * t.tile, min((r + 1) * t.tile, height) - 1, 0, width - 1);
        if (x.first > x.last) continue;
        for (int c = x.first / t.tile; c <= x.last / t.tile; ++c)
          atomicOr(&marks[(r * t.columns + c) * kMarkWords + threadIdx.x / 32], 1u << (threadIdx.x % 32));
      }
  }
  __syncthreads();
  for (int k = threadIdx.x; k < tiles * kMarkWords; k += kMarkThreads)
    t.bits[k / kMarkWords * t.words + int64_t(blockIdx.x) * kMarkWords + k % kMarkWords] = marks[k];
}

constexpr int kWalkThreads = 256;
constexpr int kWalkWords = 128;  // words that a block looks through at a time

/// Shared memory of a walk: positions (within kWalkWords * 32) of set bits, and one number per warp.
struct TileWalk {
  uint16_t found[kWalkWords * 32];
  int counts[kWalkThreads / 32];
};

/// How many flags of the warps before this one are set, and of all: `before` counts this warp's lower lanes, too.
__device__ __forceinline__ int rank_in_block(int value, int* counts, int& all) {
  const int scan = warp_scan(value), warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 31) counts[warp] = scan;
  __syncthreads();
  int before = scan - value;
  all = 0;
#pragma unroll
  for (int w = 0; w < kWalkThreads / 32; ++w) {
    if (w < warp) before += counts[w];
    all += counts[w];
  }
  return before;
}

/// Fills walk.found, ascending, from the bits [first, end) of `tile` that lie in words [word, word + kWalkWords).
/// Call with all kWalkThreads threads; the number found is returned to all, and the list is ready to be read.
__device__ __forceinline__ int find_bits(const TileBits& t, int64_t tile, int64_t word, int64_t first, int64_t end,
                                         TileWalk& walk) {
  __syncthreads();  // the last list is no longer read
  uint32_t bits = 0;
  const int64_t own = word + threadIdx.x;
  if (threadIdx.x < kWalkWords && own < t.words && own * 32 < end) {
    bits = t.bits[tile * t.words + own];
    if (own * 32 < first) bits &= first - own * 32 < 32 ? ~0u << (first - own * 32) : 0u;
    if (own * 32 + 32 > end) bits &= ~(~0u << (end - own * 32));
  }
  int all;
  int place = rank_in_block(__popc(bits), walk.counts, all);
  for (; bits; bits &= bits - 1) walk.found[place++] = uint16_t(threadIdx.x * 32 + __ffs(int(bits)) - 1);
  __syncthreads();
  return all;
}

}  // namespace vk
