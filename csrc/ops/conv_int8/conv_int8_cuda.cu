// An implicit matrix product in tiles of 64 x 64 with steps of 32 bytes along the summed axis, by tensor cores.
//
// Who owns what
//   a block   64 pixels of x and 64 of the O columns (dy, dx, c); sums go over tap rows and the kw I bytes of each,
//   which
//             lie in one piece in x as in the weight. Bytes beyond the picture are zero_point, beyond a run zero.
//   a thread  sixteen bytes of either tile while they are loaded; a warp 32 x 32 sums, a lane 32 of these.
// What follows a sum are integers of 64 bits. No atomics, no scratch.
#include "device/vk_device.cuh"
#include "device/vk_mma.cuh"
#include "ops/conv_int8/conv_int8.h"

namespace vk {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 64;
constexpr int kStep = 32;
constexpr int kWarpTile = 32;  // four warps, two by two
constexpr int kRow = 48;       // bytes, so that the eight rows of an ldmatrix lie in different banks

__device__ __forceinline__ int64_t filter_of(const ConvInt8& a, int64_t n) {
  const int64_t dy = n / (a.scale * a.out), j = n - dy * a.scale * a.out;
  return (j % a.out * a.scale + dy) * a.scale + j / a.out;
}

/// Sixteen bytes of a row: those at [at, at + 16) that lie within [low, high), else `other`.
__device__ __forceinline__ void load_bytes(const uint8_t* row, int64_t at, int64_t low, int64_t high, uint8_t other,
                                           uint8_t* to) {
  if (at >= low && at + 16 <= high && reinterpret_cast<uintptr_t>(row + at) % 4 == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(to)[i] = reinterpret_cast<const uint32_t*>(row + at)[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) to[i] = at + i >= low && at + i < high ? row[at + i] : other;
}

__global__ void __launch_bounds__(kThreads) conv_int8_kernel(ConvInt8 a) {
  __shared__ __align__(16) uint8_t left[kTile][kRow];
  __shared__ __align__(16) uint8_t right[kTile][kRow];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = warp % 2 * kWarpTile, column0 = warp / 2 * kWarpTile;
  const int64_t pixels = a.batch * a.height * a.width, columns = a.out * a.scale * a.scale;
  const int64_t span = a.width * a.in, run = a.kw * a.in;
  const int row = int(threadIdx.x) / 2, half = int(threadIdx.x) % 2 * 16;
  const int64_t m = int64_t(blockIdx.x) * kTile + row, n = int64_t(blockIdx.y) * kTile + row;
  const int64_t line = m / a.width, y = line % a.height, x = m % a.width;  // of the pixel that this thread loads
  const int64_t filter = n < columns ? filter_of(a, n) : 0;
  int32_t acc[2][4][4] = {};
  for (int64_t ky = 0; ky < a.kh; ++ky) {
    const int64_t from = y + ky - a.kh / 2;
    const bool inside = m < pixels && from >= 0 && from < a.height;
    const uint8_t* pixel_row = a.x + (inside ? line + ky - a.kh / 2 : 0) * span;
    const uint8_t* filter_row = reinterpret_cast<const uint8_t*>(a.weight) + (filter * a.kh + ky) * run;
    for (int64_t k0 = 0; k0 < run; k0 += kStep) {
      const int64_t k = k0 + half;
      load_bytes(pixel_row, (x - a.kw / 2) * a.in + k, 0, inside ? span : 0, a.zero_point, &left[row][half]);
      load_bytes(filter_row, k, 0, n < columns ? run : 0, 0, &right[row][half]);
      __syncthreads();
      uint32_t fa[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) ldmatrix_x4(fa[i], &left[row0 + i * 16 + lane % 16][lane / 16 * 16]);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t fb[4];
        ldmatrix_x4(fb, &right[column0 + j * 8 + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 16]);
        const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma_m16n8k32_u8s8(acc[i][j], fa[i], low, acc[i][j]);
          mma_m16n8k32_u8s8(acc[i][j + 1], fa[i], high, acc[i][j + 1]);
        }
      }
      __syncthreads();
    }
  }
  const int64_t strip = a.scale * a.out;  // of a pixel in one row
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int64_t c = int64_t(blockIdx.y) * kTile + column0 + j * 8 + lane % 4 * 2 + e;
      if (c >= columns) continue;
      const int64_t o = filter_of(a, c), dy = c / strip;
      const int32_t bias = a.bias[o], multiplier = a.multiplier[o], shift = a.shift[o] & 31;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t at = int64_t(blockIdx.x) * kTile + row0 + i * 8 + lane / 4;
        if (at >= pixels) continue;
        const int32_t sum = int32_t(uint32_t(acc[i / 2][j][i % 2 * 2 + e]) + uint32_t(bias));
        const int64_t index = (int64_t(sum) * multiplier + (int64_t(1) << shift >> 1)) >> shift;
        const int64_t to = ((at / a.width * a.scale + dy) * a.width + at % a.width) * strip + c - dy * strip;
        a.result[to] = a.table[index < 0 ? 0 : index > 255 ? 255 : index];
      }
    }
}

unsigned blocks(int64_t n) { return unsigned((n + kTile - 1) / kTile); }

}  // namespace

void conv_int8_cuda(const ConvInt8& a, void* stream) {
  const int64_t pixels = a.batch * a.height * a.width, columns = a.out * a.scale * a.scale;
  if (pixels * columns == 0) return;
  VK_LAUNCH((conv_int8_kernel), dim3(blocks(pixels), blocks(columns)), kThreads, 0, static_cast<vk_stream_t>(stream),
            a);
}

}  // namespace vk
