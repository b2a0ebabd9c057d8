// What the screen of nearest_cuda.cu reads: bf16 copies of points and codes around the mean of the codes, and bounds of
// what was lost on the way. See there for the formulas and for who owns what.
#pragma once
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/nearest/nearest.h"

namespace vk {
namespace {

constexpr int kTileN = 128;  // codes that share a bound
constexpr int kStep = 32;    // columns of one stage: 64 bytes a row
constexpr int kPrepareWarps = 8;
constexpr int kSample = 1024;
constexpr float kLargest = 1e37f;  // squares beyond this are not screened
constexpr float kTiny = 1e-20f;    // what may vanish when a smaller number is squared

/// What bounds the errors of a point: |x' - bf16|, |bf16|, the constant between s and the value (|x'|^2 or x.m), |x|.
/// residual NaN: not to be screened; norm < 0: a NaN in it.
struct Row {
  float residual, rounded, offset, norm;
};
/// The largest of a tile's codes: |c'|, |c' - bf16|, |c| + |m|, and a scale of s's first term.
struct Tile {
  float length, residual, norm, head;
};

struct Scratch {
  bf16* points;    // [B, N, columns]
  bf16* codes;     // [Bc, tiles * kTileN, columns]
  float* head;     // [Bc, tiles * kTileN] s's first term; inf: no candidate, NaN: not to be screened
  Row* rows;       // [B, N]
  Tile* tiles;     // [Bc, tiles]
  float* mean;     // [Bc, D]
  float* inverse;  // cosine: [B * N + Bc * K]
  float* keys;     // several parts: [B, N, parts, k]
  int32_t* found;  // several parts: [B, N, parts, k]
  int64_t tile_count, columns;
};

using Metric = NearestMetric;
using Candidates = NearestCandidates;

/// Rows of a batch, each in one piece, `count` in each item.
template <class T>
struct Rows {
  const T* data;
  int64_t count, batch_stride, stride;
  __device__ __forceinline__ const T* row(int64_t i) const {
    return data + i / count * batch_stride + i % count * stride;
  }
};

__device__ __forceinline__ float not_a_number() { return bit_cast<float>(0x7fc00000u); }
__device__ __forceinline__ float infinity() { return bit_cast<float>(0x7f800000u); }
/// Relative error of a sum of `dim` products, generously: tensor cores may truncate.
__device__ __forceinline__ float sum_error(int64_t dim) { return float(dim + 16) * 0x1p-22f; }

template <class T>
__global__ void nearest_inverse_kernel(Rows<T> rows, float* __restrict__ inverse, int64_t count, int64_t dim) {
  const int64_t row = int64_t(blockIdx.x) * kPrepareWarps + threadIdx.x / 32;
  if (row >= count) return;
  const T* x = rows.row(row);
  const int lane = threadIdx.x % 32;
  float largest = 0;
  for (int64_t d = lane; d < dim; d += 32) largest = fmaxf(largest, fabsf(to_float(x[d])));
  largest = warp_max(largest);
  // By a power of two, so that squares neither overflow nor vanish.
  const int exponent = int(bit_cast<uint32_t>(largest) >> 23);
  const float scale = bit_cast<float>(uint32_t(exponent < 1 ? 253 : exponent > 253 ? 1 : 254 - exponent) << 23);
  float sum = 0;
  for (int64_t d = lane; d < dim; d += 32) {
    const float v = to_float(x[d]) * scale;
    sum += v * v;
  }
  sum = warp_sum(sum);
  if (lane == 0) inverse[row] = largest > 0 ? scale / sqrtf(sum) : 0.0f;
}

/// Over at most kSample codes, evenly spaced; what is not finite does not count. Any vector would do.
template <class T>
__global__ void nearest_mean_kernel(Rows<T> codes, const float* __restrict__ inverse, float* __restrict__ mean,
                                    int64_t dim) {
  __shared__ float shares[kPrepareWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + lane, b = blockIdx.y;
  const int64_t count = codes.count, step = count / kSample + 1, samples = (count + step - 1) / step;
  float sum = 0;
  for (int64_t i = warp; i < samples; i += kPrepareWarps) {
    const int64_t row = b * count + i * step;
    float v = column < dim ? to_float(codes.row(row)[column]) : 0.0f;
    if (inverse) v *= inverse[row];
    sum += v * v < kLargest ? v : 0.0f;
  }
  shares[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= dim) return;
#pragma unroll
  for (int w = 1; w < kPrepareWarps; ++w) sum += shares[w][lane];
  mean[b * dim + column] = sum / float(samples > 0 ? samples : 1);
}

/// Sums over one row, in all lanes.
struct RowSums {
  float own, centred, residual, with_mean, centred_with_mean, mean;
  bool nan;
};

/// Writes the bf16 copy of (row * scale - mean), padded with zeros, or zeros only if it is too large to be screened.
template <class T>
__device__ __forceinline__ RowSums copy_row(const T* __restrict__ from, float scale, const float* __restrict__ mean,
                                            bool centre, bf16* __restrict__ to, int64_t dim, int64_t columns) {
  const int lane = threadIdx.x % 32;
  RowSums s{};
  int nan = 0;
  for (int64_t d = lane; d < columns; d += 32) {
    bf16 rounded{0};
    if (d < dim) {
      const float x = to_float(from[d]) * scale, m = mean[d], y = centre ? x - m : x;
      rounded = from_float<bf16>(y);
      const float rest = y - to_float(rounded);
      nan |= x != x;
      s.own += x * x;
      s.centred += y * y;
      s.residual += rest * rest;
      s.with_mean += x * m;
      s.centred_with_mean += y * m;
      s.mean += m * m;
    }
    to[d] = rounded;
  }
  s.own = warp_sum(s.own);
  s.centred = warp_sum(s.centred);
  s.residual = warp_sum(s.residual);
  s.with_mean = warp_sum(s.with_mean);
  s.centred_with_mean = warp_sum(s.centred_with_mean);
  s.mean = warp_sum(s.mean);
  s.nan = __any_sync(0xffffffffu, nan) != 0;
  if (!(s.centred < kLargest && s.own < kLargest))
    for (int64_t d = lane; d < columns; d += 32) to[d] = bf16{0};
  return s;
}

template <class T>
__global__ void __launch_bounds__(kPrepareWarps * 32)
    nearest_codes_kernel(Rows<T> codes, const float* __restrict__ inverse, Scratch scratch, Metric metric,
                         int64_t dim) {
  __shared__ Tile largest[kPrepareWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t tile = blockIdx.x, b = blockIdx.y;
  const float error = sum_error(dim);
  Tile mine{0, 0, 0, 0};
  for (int k = warp; k < kTileN; k += kPrepareWarps) {
    const int64_t code = tile * kTileN + k, place = b * scratch.tile_count * kTileN + code;
    bf16* to = scratch.codes + place * scratch.columns;
    if (code >= codes.count) {
      for (int64_t d = lane; d < scratch.columns; d += 32) to[d] = bf16{0};
      if (lane == 0) scratch.head[place] = infinity();
      continue;
    }
    const int64_t row = b * codes.count + code;
    const RowSums s = copy_row(codes.row(row), metric == Metric::cosine ? inverse[row] : 1.0f, scratch.mean + b * dim,
                               true, to, dim, scratch.columns);
    float head = not_a_number();
    if (s.centred < kLargest && s.own < kLargest) {
      const float length = sqrtf(s.centred) * (1 + error) + kTiny, norm = sqrtf(s.mean) * (1 + error) + kTiny;
      const float residual = sqrtf(s.residual) * (1 + error) + 0x1p-22f * length + kTiny;
      head = metric == Metric::l2 ? 0.5f * s.centred : metric == Metric::cosine ? -s.centred_with_mean : 0.0f;
      mine.length = fmaxf(mine.length, length);
      mine.residual = fmaxf(mine.residual, residual);
      mine.norm = fmaxf(mine.norm, sqrtf(s.own) * (1 + error) + norm);
      mine.head = fmaxf(mine.head, metric == Metric::l2       ? length * length
                                   : metric == Metric::cosine ? norm * length
                                                              : 0.0f);
    }
    if (lane == 0) scratch.head[place] = s.nan ? infinity() : head;
  }
  if (lane == 0) largest[warp] = mine;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 1; w < kPrepareWarps; ++w) {
    mine.length = fmaxf(mine.length, largest[w].length);
    mine.residual = fmaxf(mine.residual, largest[w].residual);
    mine.norm = fmaxf(mine.norm, largest[w].norm);
    mine.head = fmaxf(mine.head, largest[w].head);
  }
  scratch.tiles[b * scratch.tile_count + tile] = mine;
}

template <class T>
__global__ void nearest_points_kernel(Rows<T> points, Scratch scratch, Metric metric, bool screen, int64_t rows,
                                      int64_t dim, bool shared_codes) {
  const int64_t row = int64_t(blockIdx.x) * kPrepareWarps + threadIdx.x / 32;
  if (row >= rows) return;
  const float error = sum_error(dim);
  const RowSums s = copy_row(points.row(row), metric == Metric::cosine ? scratch.inverse[row] : 1.0f,
                             scratch.mean + (shared_codes ? 0 : row / points.count) * dim, metric != Metric::ip,
                             scratch.points + row * scratch.columns, dim, scratch.columns);
  if (threadIdx.x % 32 != 0) return;
  Row r{0, 0, 0, -1};
  if (!s.nan) {
    const float length = sqrtf(s.centred) * (1 + error) + kTiny;
    r.norm = sqrtf(s.own) * (1 + error) + kTiny;
    r.residual = sqrtf(s.residual) * (1 + error) + 0x1p-22f * length + kTiny;
    r.rounded = length + r.residual;
    r.offset = metric == Metric::l2 ? s.centred : s.with_mean;
    if (!screen || !(s.centred < kLargest && s.own < kLargest)) r.residual = not_a_number();
  }
  scratch.rows[row] = r;
}

}  // namespace
}  // namespace vk
