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
#include "ops/embed_visible_tubes/embed_visible_tubes_stages.cuh"

namespace vk {
namespace {

template <class T>
struct Product {  // float and double: thread (x, y) holds rows y + 16 i, features x + 16 j
  T sums[4][4] = {};

  template <int Stride>
  __device__ __forceinline__ void add(const T* a, const T* b, int width) {
    constexpr int n = kVecWidth<T>;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int k = 0; k < width; k += n) {
      Vec<T, n> left[4], right[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = load_vec<n>(a + (y + 16 * i) * Stride + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j] = load_vec<n>(b + (x + 16 * j) * Stride + k);
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

  template <int Stride>
  __device__ __forceinline__ void add(const T* a, const T* b, int width) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane % 8, i = lane / 8;
    const T* left = a + (warp % 2 * 32 + i % 2 * 8 + r) * Stride + i / 2 * 8;
    const T* right = b + (warp / 2 * 32 + i / 2 * 8 + r) * Stride + i % 2 * 8;
    for (int k = 0; k < width; k += 16) {
      uint32_t x[2][4], y[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) ldmatrix_x4(x[m], left + m * 16 * Stride + k);
#pragma unroll
      for (int n = 0; n < 2; ++n) ldmatrix_x4(y[n], right + n * 16 * Stride + k);
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

template <class T, Pixels From>
__global__ void __launch_bounds__(kThreads, From == Pixels::rgb_words && sizeof(T) < 8 ? 2 : 1)
    embed_visible_tubes_forward_kernel(const VisibleTubes v, const Walk w, const T* __restrict__ weight,
                                       const T* __restrict__ bias, const T* __restrict__ position, T* __restrict__ out,
                                       int64_t dim) {
  using P = Plan<T>;
  using Sum = typename P::Sum;
  VK_DYN_SHARED(T, tiles);
  T *a_tile = tiles, *b_tile = tiles + P::kRows * kStride<T, From>;
  __shared__ int64_t origin[P::kRows];
  __shared__ Sum scale[kMaxChannels], ratio[kMaxChannels];
  __shared__ __align__(16) Sum offset[P::kColumns];
  const int64_t row0 = int64_t(blockIdx.x) * P::kRows, d0 = int64_t(blockIdx.y) * P::kColumns;
  if (threadIdx.x < P::kRows)
    origin[threadIdx.x] = row0 + threadIdx.x < v.rows ? tube_origin(v, row0 + threadIdx.x) : -1;
  if (int(threadIdx.x) < w.channels) {
    scale[threadIdx.x] = Sum(v.scale[threadIdx.x]);
    ratio[threadIdx.x] = Sum(v.ratio[threadIdx.x]);
  }
  __syncthreads();

  PixelStage<T, From> pixels;
  WeightStage<T, From> weights;
  Product<T> product;
  Sum left_over[WeightStage<T, From>::kPasses] = {};
  constexpr int G = kGroup<From>;
  const int groups = From == Pixels::rgb_words ? 1 : (w.channels + G - 1) / G;
  const int steps = (w.pixels + P::kPixels - 1) / P::kPixels * groups;
  const auto channels_at = [&](int c0) {
    return From == Pixels::rgb_words || w.channels - c0 > G ? G : w.channels - c0;
  };
  for (int step = -1; step < steps; ++step) {
    const int c0 = step < 0 ? 0 : step % groups * G, n = channels_at(c0);
    if (step >= 0) {
      pixels.store(a_tile, n);
      weights.store(b_tile, scale + c0, ratio + c0, left_over, n);
      __syncthreads();
    }
    if (step + 1 < steps) {
      const int p1 = (step + 1) / groups * P::kPixels, c1 = (step + 1) % groups * G;
      pixels.load(v, w, origin, p1, c1, channels_at(c1));
      weights.load(weight, w, dim, d0, p1, c1, channels_at(c1));
    }
    if (step >= 0) {
      product.template add<kStride<T, From>>(a_tile, b_tile, n * P::kPixels);
      __syncthreads();
    }
  }

  // The lanes that staged a feature add their shares; the sums go through shared memory, so that rows are written
  // whole.
#pragma unroll
  for (int pass = 0; pass < WeightStage<T, From>::kPasses; ++pass) {
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
      const Four<Sum> sum = load_four(sums + m * kSumStride<T> + column), rest = load_four(offset + column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const Sum own = inside ? sum.item[e] + rest.item[e] : Sum(0);
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
  Walk w{};
  w.channels = int(v.channels);
  w.pixels = int(v.pixels());
  w.tube_height = int(v.tube[1]);
  w.tube_width = int(v.tube[2]);
  w.wide_video =
      all_multiples(4, {v.tube[2], v.row_stride, v.frame_stride, v.batch_stride, v.bytes ? 4 : v.channel_stride}) &&
      uintptr_t(v.video) % (v.bytes ? 4 : 16) == 0;
  return w;
}

template <class T, Pixels From>
void launch_forward(const EmbedVisibleTubes& a, Walk w, vk_stream_t stream) {
  using P = Plan<T>;
  const T *weight = static_cast<const T*>(a.weight), *bias = static_cast<const T*>(a.bias);
  const T* position = static_cast<const T*>(a.position);
  T* out = static_cast<T*>(a.out);
  w.wide_weight = w.pixels % 4 == 0 && uintptr_t(weight) % 16 == 0;
  w.wide_out = a.dim % 4 == 0 && (uintptr_t(out) | uintptr_t(bias) | uintptr_t(position)) % 16 == 0;
  const dim3 grid(unsigned((a.tubes.rows + P::kRows - 1) / P::kRows),
                  unsigned((a.dim + P::kColumns - 1) / P::kColumns));
  VK_LAUNCH((embed_visible_tubes_forward_kernel<T, From>), grid, kThreads, (kSharedBytes<T, From>), stream, a.tubes, w,
            weight, bias, position, out, a.dim);
}

template <class T>
void launch_forward(const EmbedVisibleTubes& a, vk_stream_t stream) {
  const Walk w = walk_of<T>(a.tubes);
  if (!a.tubes.bytes) return launch_forward<T, Pixels::elements>(a, w, stream);
  if (w.wide_video && w.channels == 3) return launch_forward<T, Pixels::rgb_words>(a, w, stream);
  return launch_forward<T, Pixels::bytes>(a, w, stream);
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
