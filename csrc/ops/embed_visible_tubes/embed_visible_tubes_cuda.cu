// Who owns what (forward)
//
//            kColumns features                 a block: kRows visible tubes x kColumns features, 256 threads
//          +------------------+                a step: kPixels pixels of up to kGroup channels
//   kRows  |  out tile        |                A tile [kRows][c][p]     pixels, centred, gathered from the clip
//   tubes  |  accumulators    |                B tile [kColumns][c][p]  weight * scale[c], rounded
//          +------------------+
//
// Per step: registers (loaded during the step before) -> shared tiles -> barrier -> load the next step's registers,
// multiply -> barrier. The threads that stage the weight also add up what the mean leaves (offset), each for its own
// features. 16-bit types multiply on tensor cores with fp32 sums, a warp holding 32 x 32 outputs; float and double
// multiply with plain FMA (tf32 keeps 10 bits, too few for a float result), a thread holding 4 x 4 outputs.
// The clip is read as it is, the weight as it is: no folded copy, no columns in global memory.
//
// Backward: gather (a block per tube) -> the caller's product -> row sums, position rows and unfold below.
#include <initializer_list>

#include "device/vk_device.cuh"
#include "device/vk_mma.cuh"
#include "ops/embed_visible_tubes/embed_visible_tubes.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 4;  // channels staged together

template <class T>
struct Plan {  // float and double
  using Sum = T;
  static constexpr int kRows = 64, kColumns = 64, kPixels = 16, kStride = kGroup * kPixels + 4;
};
struct HalfPlan {
  using Sum = float;
  static constexpr int kRows = 64, kColumns = 128, kPixels = 32, kStride = kGroup * kPixels + 8;
};
template <>
struct Plan<bf16> : HalfPlan {};
template <>
struct Plan<f16> : HalfPlan {};

template <class T>
constexpr int kSumStride = Plan<T>::kColumns + 4;

template <class T>
constexpr size_t kSharedBytes = size_t(Plan<T>::kRows + Plan<T>::kColumns) * Plan<T>::kStride * sizeof(T);

template <class T>
__device__ __forceinline__ T narrow(typename Plan<T>::Sum value) {
  return from_float<T>(value);
}
template <>
__device__ __forceinline__ double narrow<double>(double value) {
  return value;
}

// Four neighbouring items, fetched by one access (two for double) where they are aligned.
template <class T>
struct Four {
  T item[4];
};
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* p) {
  Four<T> out;
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += n) {
    const Vec<T, n> part = load_vec<n>(p + i);
#pragma unroll
    for (int j = 0; j < n; ++j) out.item[i + j] = part[j];
  }
  return out;
}
template <class T>
__device__ __forceinline__ void store_four(T* p, const Four<T>& value) {
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += n) {
    Vec<T, n> part;
#pragma unroll
    for (int j = 0; j < n; ++j) part[j] = value.item[i + j];
    store_vec<n>(p + i, part);
  }
}

struct Walk {  // the small integers of a clip, as the kernels want them
  int channels, pixels, tube_height, tube_width;
  bool wide_video, wide_weight, wide_out;
};

// Item of the clip where the tube of row i starts, or -1 if its index lies outside.
__device__ __forceinline__ int64_t tube_origin(const VisibleTubes& v, int64_t i) {
  const int32_t n = v.index[i];
  if (uint32_t(n) >= uint64_t(v.length)) return -1;
  const int64_t x = n % v.grid[2], y = n / v.grid[2] % v.grid[1], t = n / (v.grid[2] * v.grid[1]);
  return i / v.count * v.batch_stride + t * v.tube[0] * v.frame_stride + y * v.tube[1] * v.row_stride +
         x * v.tube[2] * (v.bytes ? v.channels : 1);
}

// Item of pixel p of a tube, first channel, relative to the tube.
__device__ __forceinline__ int64_t pixel_item(const VisibleTubes& v, const Walk& w, int p) {
  const int x = p % w.tube_width, line = p / w.tube_width;
  return line / w.tube_height * v.frame_stride + line % w.tube_height * v.row_stride + x * (v.bytes ? w.channels : 1);
}

template <class T>
__device__ __forceinline__ T centred(uint32_t byte) {
  return narrow<T>(float(int(byte) - 128) * (1.0f / 128));
}

// ---- the A tile: what a thread fetches in one step, and where it puts it

template <class T, bool Bytes>
struct PixelStage;

// Bytes: four bytes of one tube in memory order; byte j of the step is channel j % n of pixel j / n.
template <class T>
struct PixelStage<T, true> {
  static constexpr int kUnits = Plan<T>::kRows * kGroup * Plan<T>::kPixels / 4 / kThreads;
  uint32_t units[kUnits];

  __device__ __forceinline__ void load(const VisibleTubes& v, const Walk& w, const int64_t* origin, int p0, int c0,
                                       int n) {
    const uint8_t* video = static_cast<const uint8_t*>(v.video);
    const int per_row = n * Plan<T>::kPixels / 4;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int u = threadIdx.x + i * kThreads, m = u / per_row, j = u % per_row * 4;
      units[i] = 0;
      if (m >= Plan<T>::kRows || origin[m] < 0) continue;
      if (w.wide_video && n == w.channels) {
        const int run = w.tube_width * n, at = p0 * n + j, line = at / run;
        if (at < w.pixels * n)
          units[i] = *reinterpret_cast<const uint32_t*>(video + origin[m] + line / w.tube_height * v.frame_stride +
                                                        line % w.tube_height * v.row_stride + at % run);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int p = p0 + (j + e) / n;
          if (p < w.pixels) units[i] |= uint32_t(video[origin[m] + pixel_item(v, w, p) + c0 + (j + e) % n]) << (8 * e);
        }
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, const Walk& w, const int64_t* origin, int p0, int n) const {
    const int per_row = n * Plan<T>::kPixels / 4;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int u = threadIdx.x + i * kThreads, m = u / per_row, j = u % per_row * 4;
      if (m >= Plan<T>::kRows) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int p = (j + e) / n, c = (j + e) % n;
        const bool inside = p0 + p < w.pixels && origin[m] >= 0;
        tile[m * Plan<T>::kStride + c * Plan<T>::kPixels + p] = inside ? centred<T>(units[i] >> (8 * e) & 0xffu) : T{};
      }
    }
  }
};

// Four neighbouring pixels of a channel: kLanes threads share a row of a tile, which the weight's rows do as well.
template <class T>
struct Quads {
  static constexpr int kLanes = Plan<T>::kPixels / 4, kRowsPerPass = kThreads / kLanes;
  __device__ __forceinline__ static int pixel() { return threadIdx.x % kLanes * 4; }
  __device__ __forceinline__ static int row(int pass) { return threadIdx.x / kLanes + pass * kRowsPerPass; }
};

template <class T>
struct PixelStage<T, false> {
  static constexpr int kPasses = Plan<T>::kRows / Quads<T>::kRowsPerPass;
  Four<T> units[kPasses][kGroup];

  __device__ __forceinline__ void load(const VisibleTubes& v, const Walk& w, const int64_t* origin, int p0, int c0,
                                       int n) {
    const T* video = static_cast<const T*>(v.video);
    const int p = p0 + Quads<T>::pixel();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t from = origin[Quads<T>::row(pass)];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        Four<T>& unit = units[pass][c];
        unit = {};
        if (c >= n || from < 0 || p >= w.pixels) continue;
        const T* plane = video + from + (c0 + c) * v.channel_stride;
        if (w.wide_video) {
          unit = load_four(plane + pixel_item(v, w, p));
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (p + e < w.pixels) unit.item[e] = plane[pixel_item(v, w, p + e)];
        }
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, const Walk&, const int64_t*, int, int n) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < kGroup; ++c)
        if (c < n)
          store_four(tile + Quads<T>::row(pass) * Plan<T>::kStride + c * Plan<T>::kPixels + Quads<T>::pixel(),
                     units[pass][c]);
  }
};

// ---- the B tile

template <class T>
struct WeightStage {
  using Sum = typename Plan<T>::Sum;
  static constexpr int kPasses = Plan<T>::kColumns / Quads<T>::kRowsPerPass;
  Four<T> units[kPasses][kGroup];

  __device__ __forceinline__ void load(const T* weight, const Walk& w, int64_t dim, int64_t d0, int p0, int c0, int n) {
    const int p = p0 + Quads<T>::pixel();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t d = d0 + Quads<T>::row(pass);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        Four<T>& unit = units[pass][c];
        unit = {};
        if (c >= n || d >= dim || p >= w.pixels) continue;
        const T* plane = weight + (d * w.channels + c0 + c) * w.pixels + p;
        if (w.wide_weight) {
          unit = load_four(plane);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (p + e < w.pixels) unit.item[e] = plane[e];
        }
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, const Sum* scale, const Sum* ratio, Sum (&offset)[kPasses], int n) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < kGroup; ++c)
        if (c < n) {
          Four<T>& unit = units[pass][c];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            unit.item[e] = narrow<T>(to_float(unit.item[e]) * scale[c]);
            offset[pass] += to_float(unit.item[e]) * ratio[c];
          }
          store_four(tile + Quads<T>::row(pass) * Plan<T>::kStride + c * Plan<T>::kPixels + Quads<T>::pixel(), unit);
        }
  }
};

// ---- the product of a step

template <class T>
struct Product {  // float and double: thread (x, y) holds rows y + 16 i, features x + 16 j
  T sums[4][4] = {};

  __device__ __forceinline__ void add(const T* a, const T* b, int width) {
    constexpr int n = kVecWidth<T>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int k = 0; k < width; k += n) {
      Vec<T, n> left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = load_vec<n>(a + (y + 16 * i) * Plan<T>::kStride + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j] = load_vec<n>(b + (x + 16 * j) * Plan<T>::kStride + k);
#pragma unroll
      for (int e = 0; e < n; ++e)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i][j] += left[i][e] * right[j][e];
    }
  }
  __device__ __forceinline__ void store(T* out) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        out[(threadIdx.x / 16 + 16 * i) * kSumStride<T> + threadIdx.x % 16 + 16 * j] = sums[i][j];
  }
};

__device__ __forceinline__ void mma(bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16_bf16(d, a, b, d);
}
__device__ __forceinline__ void mma(f16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma_m16n8k16_f16(d, a, b, d);
}

template <class T>
struct HalfProduct {  // warps 2 x 4, each 32 rows x 32 features: 2 x 4 tiles of 16 x 8
  float sums[2][4][4] = {};

  __device__ __forceinline__ void add(const T* a, const T* b, int width) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane % 8, i = lane / 8;
    const T* left = a + (warp % 2 * 32 + i % 2 * 8 + r) * Plan<T>::kStride + i / 2 * 8;
    const T* right = b + (warp / 2 * 32 + i / 2 * 8 + r) * Plan<T>::kStride + i % 2 * 8;
    for (int k = 0; k < width; k += 16) {
      uint32_t x[2][4], y[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(x[m], left + m * 16 * Plan<T>::kStride + k);
#pragma unroll
      for (int n = 0; n < 2; ++n) ldmatrix_x4(y[n], right + n * 16 * Plan<T>::kStride + k);
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const uint32_t column[2] = {y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]};
          mma(T{}, sums[m][n], x[m], column);
        }
    }
  }
  __device__ __forceinline__ void store(float* out) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float* to = out + (warp % 2 * 32 + m * 16 + half * 8 + lane / 4) * kSumStride<T> + warp / 2 * 32 + n * 8 +
                      lane % 4 * 2;
          store_vec<2>(to, Vec<float, 2>{{sums[m][n][half * 2], sums[m][n][half * 2 + 1]}});
        }
  }
};
template <>
struct Product<bf16> : HalfProduct<bf16> {};
template <>
struct Product<f16> : HalfProduct<f16> {};

template <class T, bool Bytes>
__global__ void __launch_bounds__(kThreads, Bytes && sizeof(T) < 8 ? 2 : 1)
    embed_visible_tubes_forward_kernel(const VisibleTubes v, const Walk w, const T* __restrict__ weight,
                                       const T* __restrict__ bias, const T* __restrict__ position, T* __restrict__ out,
                                       int64_t dim) {
  using P = Plan<T>;
  using Sum = typename P::Sum;
  VK_DYN_SHARED(T, tiles);
  T *a_tile = tiles, *b_tile = tiles + P::kRows * P::kStride;
  __shared__ int64_t origin[P::kRows];
  __shared__ Sum scale[kMaxChannels], ratio[kMaxChannels], offset[P::kColumns];
  const int64_t row0 = int64_t(blockIdx.x) * P::kRows, d0 = int64_t(blockIdx.y) * P::kColumns;
  if (threadIdx.x < P::kRows)
    origin[threadIdx.x] = row0 + threadIdx.x < v.rows ? tube_origin(v, row0 + threadIdx.x) : -1;
  if (int(threadIdx.x) < w.channels) {
    scale[threadIdx.x] = Sum(v.scale[threadIdx.x]);
    ratio[threadIdx.x] = Sum(v.ratio[threadIdx.x]);
  }
  __syncthreads();

  PixelStage<T, Bytes> pixels;
  WeightStage<T> weights;
  Product<T> product;
  Sum left_over[WeightStage<T>::kPasses] = {};
  const int groups = (w.channels + kGroup - 1) / kGroup;
  const int steps = (w.pixels + P::kPixels - 1) / P::kPixels * groups;
  for (int step = -1; step < steps; ++step) {
    const int p0 = step / groups * P::kPixels, c0 = step % groups * kGroup;
    const int n = w.channels - c0 < kGroup ? w.channels - c0 : kGroup;
    if (step >= 0) {
      pixels.store(a_tile, w, origin, p0, n);
      weights.store(b_tile, scale + c0, ratio + c0, left_over, n);
      __syncthreads();
    }
    if (step + 1 < steps) {
      const int p1 = (step + 1) / groups * P::kPixels, c1 = (step + 1) % groups * kGroup;
      const int n1 = w.channels - c1 < kGroup ? w.channels - c1 : kGroup;
      pixels.load(v, w, origin, p1, c1, n1);
      weights.load(weight, w, dim, d0, p1, c1, n1);
    }
    if (step >= 0) {
      product.add(a_tile, b_tile, n * P::kPixels);
      __syncthreads();
    }
  }

  // The lanes that staged a feature add their shares; the sums go through shared memory, so that rows are written
  // whole.
#pragma unroll
  for (int pass = 0; pass < WeightStage<T>::kPasses; ++pass) {
    Sum sum = left_over[pass];
#pragma unroll
    for (int lane = 1; lane < Quads<T>::kLanes; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    if (threadIdx.x % Quads<T>::kLanes == 0) offset[Quads<T>::row(pass)] = sum;
  }
  Sum* sums = reinterpret_cast<Sum*>(tiles);
  product.store(sums);
  __syncthreads();
  for (int u = threadIdx.x; u < P::kRows * P::kColumns / 4; u += kThreads) {
    const int m = u / (P::kColumns / 4), column = u % (P::kColumns / 4) * 4;
    const int64_t row = row0 + m, d = d0 + column;
    if (row >= v.rows || d >= dim) continue;
    const bool inside = origin[m] >= 0;
    const T* place = position && inside ? position + v.index[row] * dim + d : nullptr;
    if (w.wide_out) {
      Four<T> shift = {}, add = {}, result;
      if (bias) shift = load_four(bias + d);
      if (place) add = load_four(place);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Sum own = inside ? sums[m * kSumStride<T> + column + e] + offset[column + e] : Sum(0);
        result.item[e] = narrow<T>(own + to_float(shift.item[e]) + to_float(add.item[e]));
      }
      store_four(out + row * dim + d, result);
    } else {
      for (int e = 0; e < 4 && d + e < dim; ++e) {
        Sum own = inside ? sums[m * kSumStride<T> + column + e] + offset[column + e] : Sum(0);
        if (bias) own += to_float(bias[d + e]);
        if (place) own += to_float(place[e]);
        out[row * dim + d + e] = narrow<T>(own);
      }
    }
  }
}

// ---- backward

// One block per tube: its pixels as a row, in the order of their memory. A tube outside is a row of zeros.
template <class T, bool Bytes>
__global__ void gather_visible_tubes_kernel(const VisibleTubes v, const Walk w, T* __restrict__ columns) {
  const int64_t row = blockIdx.x, from = tube_origin(v, row);
  const int width = w.channels * w.pixels, run = Bytes ? w.tube_width * w.channels : w.tube_width;
  T* to = columns + row * width;
  for (int k = threadIdx.x; k < width; k += kThreads) {
    if (from < 0) {
      to[k] = T{};
      continue;
    }
    const int plane = Bytes ? 0 : k / w.pixels, at = Bytes ? k : k % w.pixels, line = at / run;
    const int64_t item = from + plane * v.channel_stride + line / w.tube_height * v.frame_stride +
                         line % w.tube_height * v.row_stride + at % run;
    if constexpr (Bytes)
      to[k] = centred<T>(static_cast<const uint8_t*>(v.video)[item]);
    else
      to[k] = static_cast<const T*>(v.video)[item];
  }
}

// 32 features per block; warp y adds rows y, y + 8, ..., then the warps' sums are added in order.
template <class T>
__global__ void embed_bias_backward_kernel(const T* __restrict__ grad_out, T* __restrict__ grad_bias,
                                           typename Plan<T>::Sum* __restrict__ sums, int64_t rows, int64_t dim) {
  using Sum = typename Plan<T>::Sum;
  __shared__ Sum share[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t d = int64_t(blockIdx.x) * 32 + lane;
  Sum sum = 0;
  if (d < dim)
    for (int64_t i = warp; i < rows; i += kWarps) sum += to_float(grad_out[i * dim + d]);
  share[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || d >= dim) return;
  for (int other = 1; other < kWarps; ++other) sum += share[other][lane];
  sums[d] = sum;
  grad_bias[d] = narrow<T>(sum);
}

// One warp per position and 128 features; it looks through all indices, and adds the rows that meet there in order.
template <class T>
__global__ void embed_position_backward_kernel(const T* __restrict__ grad_out, const int32_t* __restrict__ index,
                                               T* __restrict__ grad_position, int64_t rows, int64_t length,
                                               int64_t dim) {
  const int lane = threadIdx.x % 32;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, d0 = int64_t(blockIdx.y) * 128 + lane;
  if (n >= length) return;
  typename Plan<T>::Sum sums[4] = {};
  for (int64_t base = 0; base < rows; base += 32) {
    uint32_t here = __ballot_sync(0xffffffffu, base + lane < rows && index[base + lane] == n);
    while (here) {
      const int64_t i = base + __ffs(int(here)) - 1;
      here &= here - 1;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (d0 + 32 * e < dim) sums[e] += to_float(grad_out[i * dim + d0 + 32 * e]);
    }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (d0 + 32 * e < dim) grad_position[n * dim + d0 + 32 * e] = narrow<T>(sums[e]);
}

// One block per feature: a piece of the product's row is read as it lies and written channel by channel.
template <class T>
__global__ void embed_weight_backward_kernel(const VisibleTubes v, const Walk w, const T* __restrict__ product,
                                             const typename Plan<T>::Sum* __restrict__ sums,
                                             T* __restrict__ grad_weight) {
  using Sum = typename Plan<T>::Sum;
  constexpr int kPiece = 1024;
  __shared__ T piece[kPiece];
  const int64_t row = int64_t(blockIdx.x) * w.channels * w.pixels;
  const Sum bias = sums[blockIdx.x];
  if (!v.bytes) {
    for (int k = threadIdx.x; k < w.channels * w.pixels; k += kThreads) {
      const int c = k / w.pixels;
      grad_weight[row + k] = narrow<T>((to_float(product[row + k]) + bias * Sum(v.ratio[c])) * Sum(v.scale[c]));
    }
    return;
  }
  const int step = kPiece / w.channels;
  for (int p0 = 0; p0 < w.pixels; p0 += step) {
    const int n = w.pixels - p0 < step ? w.pixels - p0 : step;
    for (int k = threadIdx.x; k < n * w.channels; k += kThreads) piece[k] = product[row + p0 * w.channels + k];
    __syncthreads();
    for (int k = threadIdx.x; k < n * w.channels; k += kThreads) {
      const int c = k / n, p = k % n;
      const Sum value = (to_float(piece[p * w.channels + c]) + bias * Sum(v.ratio[c])) * Sum(v.scale[c]);
      grad_weight[row + c * w.pixels + p0 + p] = narrow<T>(value);
    }
    __syncthreads();
  }
}

// ---- launchers

bool all_multiples(int64_t of, std::initializer_list<int64_t> values) {
  for (int64_t value : values)
    if (value % of) return false;
  return true;
}

template <class T>
Walk walk_of(const VisibleTubes& v) {
  const int64_t run = v.tube[2] * (v.bytes ? v.channels : 1);
  Walk w{};
  w.channels = int(v.channels);
  w.pixels = int(v.pixels());
  w.tube_height = int(v.tube[1]);
  w.tube_width = int(v.tube[2]);
  w.wide_video =
      all_multiples(4, {run, v.row_stride, v.frame_stride, v.batch_stride, v.bytes ? 4 : v.channel_stride}) &&
      uintptr_t(v.video) % (v.bytes ? 4 : 16) == 0;
  return w;
}

template <class T>
void launch_forward(const EmbedVisibleTubes& a, vk_stream_t stream) {
  using P = Plan<T>;
  Walk w = walk_of<T>(a.tubes);
  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  const T* position = static_cast<const T*>(a.position);
  T* out = static_cast<T*>(a.out);
  w.wide_weight = w.pixels % 4 == 0 && uintptr_t(weight) % 16 == 0;
  w.wide_out = a.dim % 4 == 0 && (uintptr_t(out) | uintptr_t(bias) | uintptr_t(position)) % 16 == 0;
  const dim3 grid(unsigned((a.tubes.rows + P::kRows - 1) / P::kRows),
                  unsigned((a.dim + P::kColumns - 1) / P::kColumns));
  if (a.tubes.bytes)
    VK_LAUNCH((embed_visible_tubes_forward_kernel<T, true>), grid, kThreads, kSharedBytes<T>, stream, a.tubes, w,
              weight, bias, position, out, a.dim);
  else
    VK_LAUNCH((embed_visible_tubes_forward_kernel<T, false>), grid, kThreads, kSharedBytes<T>, stream, a.tubes, w,
              weight, bias, position, out, a.dim);
}

template <class T>
void launch_backward(const EmbedVisibleTubesBackward& a, vk_stream_t stream) {
  using Sum = typename Plan<T>::Sum;
  const VisibleTubes& v = a.tubes;
  const Walk w = walk_of<T>(v);
  T* columns = static_cast<T*>(a.columns);
  if (columns && v.rows > 0) {
    if (v.bytes)
      VK_LAUNCH((gather_visible_tubes_kernel<T, true>), unsigned(v.rows), kThreads, 0, stream, v, w, columns);
    else
      VK_LAUNCH((gather_visible_tubes_kernel<T, false>), unsigned(v.rows), kThreads, 0, stream, v, w, columns);
  }
  if (!a.product || a.dim == 0) return;
  const T* grad_out = static_cast<const T*>(a.grad_out);
  Sum* sums = static_cast<Sum*>(a.sums);
  VK_LAUNCH((embed_bias_backward_kernel<T>), unsigned((a.dim + 31) / 32), kThreads, 0, stream, grad_out,
            static_cast<T*>(a.grad_bias), sums, v.rows, a.dim);
  if (a.grad_position && v.length > 0)
    VK_LAUNCH((embed_position_backward_kernel<T>),
              dim3(unsigned((v.length + kWarps - 1) / kWarps), unsigned((a.dim + 127) / 128)), kThreads, 0, stream,
              grad_out, v.index, static_cast<T*>(a.grad_position), v.rows, v.length, a.dim);
  VK_LAUNCH((embed_weight_backward_kernel<T>), unsigned(a.dim), kThreads, 0, stream, v, w,
            static_cast<const T*>(a.product), sums, static_cast<T*>(a.grad_weight));
}

}  // namespace

void embed_visible_tubes_cuda(const EmbedVisibleTubes& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.tubes.rows == 0 || a.dim == 0) return;
  switch (a.element) {
    case Element::f32: return launch_forward<float>(a, stream);
    case Element::f64: return launch_forward<double>(a, stream);
    case Element::f16: return launch_forward<f16>(a, stream);
    case Element::bf16: return launch_forward<bf16>(a, stream);
  }
}

void embed_visible_tubes_backward_cuda(const EmbedVisibleTubesBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f32: return launch_backward<float>(a, stream);
    case Element::f64: return launch_backward<double>(a, stream);
    case Element::f16: return launch_backward<f16>(a, stream);
    case Element::bf16: return launch_backward<bf16>(a, stream);
  }
}

}  // namespace vk
