// Who owns what: every number has one thread or one warp that adds it up in one order.
//
//   forward  a block: one frequency, kThreads outputs, kRows of the batch; a thread one output, whose weights it reads
//            beside its neighbours', while x is the same for all of them
//   gather   a number of the gradient at one frequency, so that the next kernel reads them side by side
//   backward a warp: one row of one frequency's matrix; lanes share the outputs, for grad_x by a sum over the warp
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "ops/spectral_multiply/spectral_multiply.h"

namespace vk {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 4;

struct Complex {
  float re, im;
};

template <class T>
__device__ __forceinline__ Complex read(const T* from) {
  return {to_float(from[0]), to_float(from[1])};
}
template <class T>
__device__ __forceinline__ Complex read(const Spectrum& s, int64_t b, int64_t channel, int64_t row, int64_t column) {
  return read(static_cast<const T*>(s.data) + b * s.batch_stride + channel * s.channel_stride + row * s.row_stride +
              column * s.column_stride);
}
template <class T>
__device__ __forceinline__ Complex weight_of(const SpectralMultiply& a, int64_t at) {
  Complex w = read(static_cast<const T*>(a.weight) + 2 * at);
  if (a.mask) w = {a.mask[2 * at] ? w.re : 0.0f, a.mask[2 * at + 1] ? w.im : 0.0f};
  return w;
}
template <class T>
__device__ __forceinline__ void write(T* to, float re, float im) {
  to[0] = from_float<T>(re);
  to[1] = from_float<T>(im);
}

template <class T>
__global__ void __launch_bounds__(kThreads) spectral_multiply_forward_kernel(SpectralMultiply a, int64_t tiles) {
  const int64_t mode = blockIdx.x / tiles, o = blockIdx.x % tiles * kThreads + threadIdx.x;
  const int64_t row = mode / a.columns, column = mode % a.columns, first = int64_t(blockIdx.y) * kRows;
  if (o >= a.channels) return;
  Complex sum[kRows] = {};
  for (int64_t i = 0; i < a.in; ++i) {
    const Complex w = weight_of<T>(a, (mode * a.in + i) * a.channels + o);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= a.batch) break;
      const Complex x = read<T>(a.x, first + r, i, a.x.row(row, a.rows), column);
      sum[r].re += x.re * w.re - x.im * w.im;
      sum[r].im += x.re * w.im + x.im * w.re;
    }
  }
  T* out = static_cast<T*>(const_cast<void*>(a.out.data)) + o * a.out.channel_stride +
           a.out.row(row, a.rows) * a.out.row_stride + column * a.out.column_stride;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (first + r < a.batch) write(out + (first + r) * a.out.batch_stride, sum[r].re, sum[r].im);
}

template <class T>
__global__ void __launch_bounds__(kThreads) spectral_multiply_gather_kernel(SpectralMultiply a, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t o = i % a.channels, b = i / a.channels % a.batch, mode = i / a.channels / a.batch;
  const Complex g = read<T>(a.out, b, o, a.out.row(mode / a.columns, a.rows), mode % a.columns);
  a.scratch[2 * i] = g.re;
  a.scratch[2 * i + 1] = g.im;
}

template <class T>
__global__ void __launch_bounds__(kThreads) spectral_multiply_backward_kernel(SpectralMultiply a, int64_t count) {
  const int64_t line = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = int(threadIdx.x) % 32;
  if (line >= count) return;
  const int64_t mode = line / a.in, i = line % a.in, column = mode % a.columns;
  const int64_t row = a.x.row(mode / a.columns, a.rows);
  const float* gradient = a.scratch + mode * a.batch * a.channels * 2;
  for (int64_t b = 0; b < a.batch; ++b) {
    Complex sum{0, 0};
    for (int64_t o = lane; o < a.channels; o += 32) {
      const Complex w = weight_of<T>(a, line * a.channels + o), g = read(gradient + (b * a.channels + o) * 2);
      sum.re += w.re * g.re + w.im * g.im;
      sum.im += w.re * g.im - w.im * g.re;
    }
    sum.re = warp_sum(sum.re);
    sum.im = warp_sum(sum.im);
    T* to = static_cast<T*>(a.grad_x) + (((b * a.in + i) * a.x.rows + row) * a.x.columns + column) * 2;
    if (lane == 0) write(to, sum.re, sum.im);
  }
  for (int64_t o = lane; o < a.channels; o += 32) {
    Complex sum{0, 0};
    for (int64_t b = 0; b < a.batch; ++b) {
      const Complex x = read<T>(a.x, b, i, row, column), g = read(gradient + (b * a.channels + o) * 2);
      sum.re += x.re * g.re + x.im * g.im;
      sum.im += x.re * g.im - x.im * g.re;
    }
    const int64_t at = 2 * (line * a.channels + o);
    if (a.mask) sum = {a.mask[at] ? sum.re : 0.0f, a.mask[at + 1] ? sum.im : 0.0f};
    write(static_cast<T*>(a.grad_weight) + at, sum.re, sum.im);
  }
}

unsigned blocks_of(int64_t count, int64_t each) { return unsigned((count + each - 1) / each); }

template <class T>
void launch_forward(const SpectralMultiply& a, vk_stream_t stream) {
  const int64_t tiles = blocks_of(a.channels, kThreads), out = a.batch * a.channels * a.out.rows * a.out.columns;
  if (out == 0) return;
  memset_async(const_cast<void*>(a.out.data), 0, size_t(out) * 2 * sizeof(T), stream);
  const dim3 grid(unsigned(a.modes() * tiles), blocks_of(a.batch, kRows));
  if (a.modes() > 0) VK_LAUNCH((spectral_multiply_forward_kernel<T>), grid, kThreads, 0, stream, a, tiles);
}

template <class T>
void launch_backward(const SpectralMultiply& a, vk_stream_t stream) {
  const int64_t x = a.batch * a.in * a.x.rows * a.x.columns, gradient = a.modes() * a.batch * a.channels;
  const int64_t lines = a.modes() * a.in;
  if (x > 0) memset_async(a.grad_x, 0, size_t(x) * 2 * sizeof(T), stream);
  if (gradient > 0)
    VK_LAUNCH((spectral_multiply_gather_kernel<T>), blocks_of(gradient, kThreads), kThreads, 0, stream, a, gradient);
  if (lines > 0)
    VK_LAUNCH((spectral_multiply_backward_kernel<T>), blocks_of(lines, kThreads / 32), kThreads, 0, stream, a, lines);
}

}  // namespace

void spectral_multiply_cuda(const SpectralMultiply& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f16: return launch_forward<f16>(a, stream);
    case Element::bf16: return launch_forward<bf16>(a, stream);
    default: return launch_forward<float>(a, stream);
  }
}

void spectral_multiply_backward_cuda(const SpectralMultiply& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  switch (a.element) {
    case Element::f16: return launch_backward<f16>(a, stream);
    case Element::bf16: return launch_backward<bf16>(a, stream);
    default: return launch_backward<float>(a, stream);
  }
}

}  // namespace vk
