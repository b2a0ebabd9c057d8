// All three products are implicit matrix products in tiles of 64 x 64 with steps of 16 along the summed axis, by tensor
// cores for 16-bit images and by fused multiply-adds for float32; the lanes own the same sums in both.
//
// Who owns what
//   pack      a thread owns a number of the packed weights, [tap][row][columns padded to 16].
//   image     forward: a block owns 64 pixels of x and 64 of the O columns (dy, dx, c); sums go over taps and channels
//   of x.
//             backward: 64 pixels of grad_x and 64 of its channels; sums go over taps and the columns of dz.
//   loss      as image forward; what a lane owns becomes its pictures' loss and gradient, a block's loss one double.
//   weight    a block owns 64 columns of dz, 64 of the (tap, channel) pairs and a chunk of the pixels. One more pair
//   sees
//             ones: its sum is the bias gradient. Partial sums go to scratch, [chunk][O][taps * I + 1].
//   finish    a thread owns a weight (or a bias) and adds its chunks in ascending order.
// dz = grad_out * derivative is formed while it is loaded, rounded to the type of the images. No atomics.
#include "device/vk_device.cuh"
#include "device/vk_mma.cuh"
#include "device/vk_reduce.cuh"
#include "ops/upsample_conv/upsample_conv.h"

namespace vk {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = 64;
constexpr int kStep = 16;
constexpr int kWarpTile = 32;  // four warps, two by two

/// Rows of the shared tiles: 48 bytes for halves, so that the eight rows of an ldmatrix lie in different banks.
template <class T>
constexpr int kRow = sizeof(T) == 2 ? 24 : 17;

struct Sizes {
  int64_t height, width, in, out, kh, kw, scale, pixels;
  int64_t columns;  // O
  int64_t run;      // s C
};

Sizes sizes_of(const UpsampleConvSizes& s) {
  return {s.height,
          s.width,
          s.in,
          s.out,
          s.kh,
          s.kw,
          s.scale,
          s.batch * s.height * s.width,
          s.out * s.scale * s.scale,
          s.scale * s.out};
}

struct Pixel {
  int64_t b, y, x;
};
__device__ __forceinline__ Pixel pixel_of(const Sizes& s, int64_t m) {
  const int64_t row = m / s.width;
  return {row / s.height, row % s.height, m % s.width};
}
__device__ __forceinline__ bool inside(const Sizes& s, int64_t y, int64_t x) {
  return uint64_t(y) < uint64_t(s.height) && uint64_t(x) < uint64_t(s.width);
}
/// Where column n of pixel (y, x) lies in an image of the output's size.
__device__ __forceinline__ int64_t shuffled(const Sizes& s, const Pixel& p, int64_t n) {
  const int64_t dy = n / s.run;
  return ((p.b * s.height + p.y) * s.scale + dy) * s.width * s.run + p.x * s.run + n - dy * s.run;
}
__device__ __forceinline__ int64_t filter_of(const Sizes& s, int64_t n) {
  const int64_t dy = n / s.run, j = n - dy * s.run;
  return (j % s.out * s.scale + dy) * s.scale + j / s.out;
}

// ---- tiles

/// acc += a b^T for one step: a and b are [64][kStep] in shared memory, acc a warp's 32 x 32 sums as mma leaves them.
template <class T>
__device__ __forceinline__ void multiply(const T (*a)[kRow<T>], const T (*b)[kRow<T>], float (&acc)[2][4][4]) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = warp % 2 * kWarpTile, column0 = warp / 2 * kWarpTile;
  if constexpr (sizeof(T) == 2) {
    uint32_t fa[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) ldmatrix_x4(fa[m], &a[row0 + m * 16 + lane % 16][lane / 16 * 8]);
#pragma unroll
    for (int n = 0; n < 4; n += 2) {
      uint32_t fb[4];
      ldmatrix_x4(fb, &b[column0 + n * 8 + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
      const uint32_t low[2] = {fb[0], fb[1]}, high[2] = {fb[2], fb[3]};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        if constexpr (std::is_same_v<T, bf16>) {
          mma_m16n8k16_bf16(acc[m][n], fa[m], low, acc[m][n]);
          mma_m16n8k16_bf16(acc[m][n + 1], fa[m], high, acc[m][n + 1]);
        } else {
          mma_m16n8k16_f16(acc[m][n], fa[m], low, acc[m][n]);
          mma_m16n8k16_f16(acc[m][n + 1], fa[m], high, acc[m][n + 1]);
        }
      }
    }
  } else {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float x[4], w[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = a[row0 + i * 8 + g][k];
#pragma unroll
      for (int j = 0; j < 8; ++j) w[j] = b[column0 + j / 2 * 8 + 2 * t + j % 2][k];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) acc[i / 2][j / 2][i % 2 * 2 + j % 2] += x[i] * w[j];
    }
  }
}

/// Calls f(row, column, sum) for what this lane owns of the block's 64 x 64 sums.
template <class F>
__device__ __forceinline__ void each_sum(const float (&acc)[2][4][4], F f) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        f(warp % 2 * kWarpTile + m * 16 + lane / 4 + i / 2 * 8, warp / 2 * kWarpTile + n * 8 + lane % 4 * 2 + i % 2,
          acc[m][n][i]);
}

/// Eight numbers from `from` on, of which `count` are there.
template <class T>
__device__ __forceinline__ void copy_eight(const T* from, int64_t count, T* to) {
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = i < count ? from[i] : T{};
}

// ---- packing

/// kBackward: rows are channels of x and columns those of dz; else the other way round.
template <bool kBackward, class T, class W>
__global__ void upsample_conv_pack_kernel(const W* __restrict__ weight, T* __restrict__ packed, Sizes s, int64_t rows,
                                          int64_t columns, int64_t padded) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, taps = s.kh * s.kw;
  if (i >= taps * rows * padded) return;
  const int64_t column = i % padded, row = i / padded % rows, tap = i / padded / rows;
  const int64_t n = kBackward ? column : row, c = kBackward ? row : column;
  packed[i] = column < columns ? from_float<T>(to_float(weight[(filter_of(s, n) * s.in + c) * taps + tap])) : T{};
}

// ---- forward, and the gradient of x

template <class T>
struct Image {
  const T* x;           // forward: x; backward: grad_out
  const T* derivative;  // backward only, may be null
  const T* packed;
  const void* bias;  // forward only, may be null
  T* out;            // out or grad_x, may be null
  T* slope;          // forward only, may be null
  bool fine_bias;    // float32, else T
  Activation activation;
  Sizes s;
};

__device__ __forceinline__ void activate(Activation activation, float z, float& value, float& slope) {
  switch (activation) {
    case Activation::none: value = z, slope = 1; return;
    case Activation::relu: value = z < 0 ? 0.0f : z, slope = z > 0 ? 1.0f : 0.0f; return;
    case Activation::sine: value = sinf(z), slope = cosf(z); return;
    case Activation::gelu: {
      const float phi = 0.5f * erfcf(z * -0.707106781f), near = fminf(fmaxf(z, -20.0f), 20.0f);
      value = z > -20 ? z * phi : z != z ? z : 0.0f;
      slope = phi + near * expf(-0.5f * near * near) * 0.39894228f;
      return;
    }
  }
}

/// The sums of this block's pixels and columns.
template <bool kBackward, class T>
__device__ __forceinline__ void image_sums(const Image<T>& a, T (*left)[kRow<T>], T (*right)[kRow<T>],
                                           float (&acc)[2][4][4]) {
  const Sizes& s = a.s;
  const int64_t depth = kBackward ? s.columns : s.in, rows = kBackward ? s.in : s.columns;
  const int64_t padded = (depth + kStep - 1) / kStep * kStep;
  const int row = int(threadIdx.x) / 2, half = int(threadIdx.x) % 2 * 8;
  const int64_t m = int64_t(blockIdx.x) * kTile + row, n = int64_t(blockIdx.y) * kTile + row;
  const Pixel pixel = pixel_of(s, m < s.pixels ? m : 0);
  for (int64_t tap = 0; tap < s.kh * s.kw; ++tap) {
    const int64_t ky = tap / s.kw - s.kh / 2, kx = tap % s.kw - s.kw / 2;
    const Pixel p{pixel.b, kBackward ? pixel.y - ky : pixel.y + ky, kBackward ? pixel.x - kx : pixel.x + kx};
    const bool there = m < s.pixels && inside(s, p.y, p.x);
    for (int64_t k0 = 0; k0 < padded; k0 += kStep) {
      const int64_t k = k0 + half, count = there ? depth - k : 0;
      if constexpr (kBackward) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          T value{};
          if (i < count) {
            const int64_t at = shuffled(s, p, k + i);
            value = a.derivative ? from_float<T>(to_float(a.x[at]) * to_float(a.derivative[at])) : a.x[at];
          }
          left[row][half + i] = value;
        }
      } else {
        copy_eight(a.x + (count > 0 ? ((p.b * s.height + p.y) * s.width + p.x) * s.in + k : 0), count,
                   &left[row][half]);
      }
      copy_eight(a.packed + (n < rows ? (tap * rows + n) * padded + k : 0), n < rows ? 8 : 0, &right[row][half]);
      __syncthreads();
      multiply<T>(left, right, acc);
      __syncthreads();
    }
  }
}

/// z at (pixel, column) of what each_sum gives, with its bias.
template <class T>
__device__ __forceinline__ float with_bias(const Image<T>& a, int64_t column, float sum) {
  if (!a.bias) return sum;
  const int64_t o = filter_of(a.s, column);
  return sum + (a.fine_bias ? static_cast<const float*>(a.bias)[o] : to_float(static_cast<const T*>(a.bias)[o]));
}

template <bool kBackward, class T>
__global__ void __launch_bounds__(kThreads, 1) upsample_conv_image_kernel(Image<T> a) {
  __shared__ __align__(16) T left[kTile][kRow<T>];
  __shared__ __align__(16) T right[kTile][kRow<T>];
  const Sizes& s = a.s;
  const int64_t rows = kBackward ? s.in : s.columns;
  float acc[2][4][4] = {};
  image_sums<kBackward>(a, left, right, acc);
  each_sum(acc, [&](int i, int j, float sum) {
    const int64_t at = int64_t(blockIdx.x) * kTile + i, column = int64_t(blockIdx.y) * kTile + j;
    if (at >= s.pixels || column >= rows) return;
    if constexpr (kBackward) {
      a.out[at * s.in + column] = from_float<T>(sum);
    } else {
      float value = 0, slope = 0;
      activate(a.activation, with_bias(a, column, sum), value, slope);
      const int64_t to = shuffled(s, pixel_of(s, at), column);
      if (a.out) a.out[to] = from_float<T>(value);
      if (a.slope) a.slope[to] = from_float<T>(slope);
    }
  });
}

// ---- the loss of the last layer

struct Loss {
  const uint8_t* target;
  const float* share;  // may be null
  double* sums;        // of the blocks
  int64_t rows, columns;
  float even, l1, l2;
  bool squash;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) upsample_conv_loss_kernel(Image<T> a, Loss loss) {
  __shared__ __align__(16) T left[kTile][kRow<T>];
  __shared__ __align__(16) T right[kTile][kRow<T>];
  __shared__ double scratch[32];
  const Sizes& s = a.s;
  float acc[2][4][4] = {};
  image_sums<false>(a, left, right, acc);
  double part = 0;
  each_sum(acc, [&](int i, int j, float sum) {
    const int64_t at = int64_t(blockIdx.x) * kTile + i, n = int64_t(blockIdx.y) * kTile + j;
    if (at >= s.pixels || n >= s.columns) return;
    const Pixel p = pixel_of(s, at);
    const int64_t dy = n / s.run, c = n % s.out, y = p.y * s.scale + dy, x = p.x * s.scale + n % s.run / s.out;
    float grad = 0;
    if (y < loss.rows && x < loss.columns) {
      float picture = with_bias(a, n, sum), slope = 1;
      if (loss.squash) {
        const float e = expf(-2 * fminf(fmaxf(picture, -30.0f), 30.0f));
        const float value = 1 / (1 + e);
        slope = 2 * value * value * e;
        picture = picture == picture ? value : picture;
      }
      const int64_t from = (p.b * loss.rows + y) * loss.columns + x;
      const float d = picture - float(loss.target[from * s.out + c]) * (1.0f / 255);
      const float share = loss.share ? loss.share[from] : loss.even, sign = float(d > 0) - float(d < 0);
      part += double(share * (loss.l1 * fabsf(d) + loss.l2 * d * d));
      grad = share * slope * (loss.l1 * sign + 2 * loss.l2 * d);
    }
    a.slope[shuffled(s, p, n)] = from_float<T>(grad);
  });
  part = block_sum(part, scratch);
  if (threadIdx.x == 0) loss.sums[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = part;
}

/// One block; a thread adds every kThreads-th sum.
__global__ void upsample_conv_total_kernel(const double* __restrict__ sums, int64_t n, float* __restrict__ loss) {
  __shared__ double scratch[32];
  double part = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) part += sums[i];
  part = block_sum(part, scratch);
  if (threadIdx.x == 0) *loss = float(part);
}

// ---- the gradient of the weight

template <class T>
struct Weight {
  const T *grad_out, *derivative, *x;
  float* sums;  // [chunk][O][pairs]
  int64_t pairs, chunk;
  Sizes s;
};

template <class T>
__global__ void __launch_bounds__(kThreads) upsample_conv_weight_kernel(Weight<T> a) {
  __shared__ __align__(16) T left[kTile][kRow<T>];
  __shared__ __align__(16) T right[kTile][kRow<T>];
  const Sizes& s = a.s;
  const int column = int(threadIdx.x) % kTile, first = int(threadIdx.x) / kTile * 8;  // eight pixels of one column
  const int64_t n = int64_t(blockIdx.x) * kTile + column, pair = int64_t(blockIdx.y) * kTile + column;
  const int64_t tap = pair / s.in, c = pair % s.in;
  const int64_t ky = tap / s.kw - s.kh / 2, kx = tap % s.kw - s.kw / 2;
  const int64_t begin = int64_t(blockIdx.z) * a.chunk, end = begin + a.chunk < s.pixels ? begin + a.chunk : s.pixels;
  float acc[2][4][4] = {};
  for (int64_t m0 = begin; m0 < end; m0 += kStep) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t m = m0 + first + i;
      T dz{}, x{};
      if (m < end) {
        const Pixel p = pixel_of(s, m);
        if (n < s.columns) {
          const int64_t at = shuffled(s, p, n);
          dz = a.derivative ? from_float<T>(to_float(a.grad_out[at]) * to_float(a.derivative[at])) : a.grad_out[at];
        }
        if (pair + 1 == a.pairs)
          x = from_float<T>(1.0f);
        else if (pair < a.pairs && inside(s, p.y + ky, p.x + kx))
          x = a.x[((p.b * s.height + p.y + ky) * s.width + p.x + kx) * s.in + c];
      }
      left[column][first + i] = dz;
      right[column][first + i] = x;
    }
    __syncthreads();
    multiply<T>(left, right, acc);
    __syncthreads();
  }
  each_sum(acc, [&](int i, int j, float sum) {
    const int64_t row = int64_t(blockIdx.x) * kTile + i, to = int64_t(blockIdx.y) * kTile + j;
    if (row < s.columns && to < a.pairs) a.sums[(int64_t(blockIdx.z) * s.columns + row) * a.pairs + to] = sum;
  });
}

template <class W>
__global__ void upsample_conv_finish_kernel(const float* __restrict__ sums, W* __restrict__ grad_weight,
                                            W* __restrict__ grad_bias, Sizes s, int64_t pairs, int64_t chunks) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= s.columns * pairs) return;
  const int64_t n = i / pairs, pair = i % pairs, taps = s.kh * s.kw, o = filter_of(s, n);
  float sum = 0;
  for (int64_t k = 0; k < chunks; ++k) sum += sums[k * s.columns * pairs + i];
  if (pair + 1 == pairs)
    grad_bias[o] = from_float<W>(sum);
  else
    grad_weight[(o * s.in + pair % s.in) * taps + pair / s.in] = from_float<W>(sum);
}

// ---- launchers

unsigned blocks(int64_t n, int64_t per_block) { return unsigned((n + per_block - 1) / per_block); }

template <bool kBackward, class T, class W>
void pack(const void* weight, T* packed, const Sizes& s, vk_stream_t stream) {
  const int64_t rows = kBackward ? s.in : s.columns, columns = kBackward ? s.columns : s.in;
  const int64_t padded = (columns + kStep - 1) / kStep * kStep, n = s.kh * s.kw * rows * padded;
  VK_LAUNCH((upsample_conv_pack_kernel<kBackward, T, W>), blocks(n, kThreads), kThreads, 0, stream,
            static_cast<const W*>(weight), packed, s, rows, columns, padded);
}

template <class T, class W>
void forward(const UpsampleConv& a, vk_stream_t stream) {
  const Sizes s = sizes_of(a.sizes);
  T* packed = static_cast<T*>(a.scratch);
  pack<false, T, W>(a.weight, packed, s, stream);
  const Image<T> image{static_cast<const T*>(a.x),
                       nullptr,
                       packed,
                       a.bias,
                       static_cast<T*>(a.out),
                       static_cast<T*>(a.derivative),
                       std::is_same_v<W, float>,
                       a.sizes.activation,
                       s};
  VK_LAUNCH((upsample_conv_image_kernel<false, T>), dim3(blocks(s.pixels, kTile), blocks(s.columns, kTile)), kThreads,
            0, stream, image);
}

template <class T, class W>
void loss(const UpsampleConvLoss& a, vk_stream_t stream) {
  const Sizes s = sizes_of(a.sizes);
  float* scratch = static_cast<float*>(a.scratch);
  double* sums = reinterpret_cast<double*>(scratch + (upsample_conv_scratch(a.sizes, false) + 1) / 2 * 2);
  if (s.pixels > 0) {
    T* packed = static_cast<T*>(a.scratch);
    pack<false, T, W>(a.weight, packed, s, stream);
    const Image<T> image{
        static_cast<const T*>(a.x), nullptr,          packed, a.bias, nullptr, static_cast<T*>(a.grad_z),
        std::is_same_v<W, float>,   Activation::none, s};
    const Loss loss{a.target, a.share, sums, a.rows, a.columns, a.even(), a.l1, a.l2, a.squash};
    VK_LAUNCH((upsample_conv_loss_kernel<T>), dim3(blocks(s.pixels, kTile), blocks(s.columns, kTile)), kThreads, 0,
              stream, image, loss);
  }
  VK_LAUNCH((upsample_conv_total_kernel), 1, kThreads, 0, stream, sums,
            s.pixels > 0 ? upsample_conv_loss_blocks(a.sizes) : 0, a.loss);
}

template <class T, class W>
void backward(const UpsampleConvBackward& a, vk_stream_t stream) {
  const Sizes s = sizes_of(a.sizes);
  const int64_t pairs = s.kh * s.kw * s.in + 1, chunks = upsample_conv_chunks(a.sizes);
  float* sums = static_cast<float*>(a.scratch);
  const T *grad_out = static_cast<const T*>(a.grad_out), *derivative = static_cast<const T*>(a.derivative);
  if (a.grad_x && s.pixels > 0) {
    // The sums' place holds the packed weights until these have been used.
    T* packed = static_cast<T*>(a.scratch);
    pack<true, T, W>(a.weight, packed, s, stream);
    const Image<T> image{grad_out, derivative, packed,           nullptr, static_cast<T*>(a.grad_x),
                         nullptr,  false,      Activation::none, s};
    VK_LAUNCH((upsample_conv_image_kernel<true, T>), dim3(blocks(s.pixels, kTile), blocks(s.in, kTile)), kThreads, 0,
              stream, image);
  }
  if (s.pixels > 0) {
    const int64_t steps = (s.pixels + chunks * kStep - 1) / (chunks * kStep);
    const Weight<T> weight{grad_out, derivative, static_cast<const T*>(a.x), sums, pairs, steps * kStep, s};
    VK_LAUNCH((upsample_conv_weight_kernel<T>), dim3(blocks(s.columns, kTile), blocks(pairs, kTile), unsigned(chunks)),
              kThreads, 0, stream, weight);
  }
  VK_LAUNCH((upsample_conv_finish_kernel<W>), blocks(s.columns * pairs, kThreads), kThreads, 0, stream, sums,
            static_cast<W*>(a.grad_weight), static_cast<W*>(a.grad_bias), s, pairs, s.pixels > 0 ? chunks : 0);
}

template <class F>
void with_types(const UpsampleConvSizes& s, F f) {
  const bool fine = s.weight_element == Element::f32;
  switch (s.element) {
    case Element::f16: return fine ? f(f16{}, float{}) : f(f16{}, f16{});
    case Element::bf16: return fine ? f(bf16{}, float{}) : f(bf16{}, bf16{});
    default: return f(float{}, float{});
  }
}

}  // namespace

void upsample_conv_loss_cuda(const UpsampleConvLoss& a, void* stream) {
  if (a.sizes.out == 0) return;
  const auto run = [&]<class T, class W>(T, W) { loss<T, W>(a, static_cast<vk_stream_t>(stream)); };
  if (a.sizes.element == Element::f32) return run(float{}, float{});
  if (a.sizes.weight_element == Element::f32) return run(bf16{}, float{});
  run(bf16{}, bf16{});
}

void upsample_conv_cuda(const UpsampleConv& a, void* stream) {
  if (a.sizes.batch * a.sizes.height * a.sizes.width * a.sizes.out == 0) return;
  with_types(a.sizes, [&]<class T, class W>(T, W) { forward<T, W>(a, static_cast<vk_stream_t>(stream)); });
}

void upsample_conv_backward_cuda(const UpsampleConvBackward& a, void* stream) {
  if (a.sizes.out == 0) return;
  with_types(a.sizes, [&]<class T, class W>(T, W) { backward<T, W>(a, static_cast<vk_stream_t>(stream)); });
}

}  // namespace vk
