// What surrounds the product: gather (bytes to centred elements, the next tube prefetched meanwhile), fold (scale,
// round, interleave the channels, sum what the mean leaves), and their adjoints. Every row of every output is written
// by one thread in one order. No containers here: their member functions would be shared between the builds.
#include <cstring>

#include "core/half.h"
#include "core/parallel.h"
#include "ops/embed_visible_tubes/embed_visible_tubes.h"

namespace vk::VK_ISA {
namespace {

// float where the elements are float or narrower, double for double
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

template <class T>
inline T narrow(typename Wide<T>::type value) {
  return from_float<T>(value);
}
template <>
inline double narrow<double>(double value) {
  return value;
}

int64_t first_outside(const VisibleTubes& v) {
  for (int64_t i = 0; i < v.rows; ++i)
    if (uint32_t(v.index[i]) >= uint64_t(v.length)) return i;
  return -1;
}

// Item of the video where the tube of row i starts.
int64_t origin(const VisibleTubes& v, int64_t i) {
  const int64_t n = v.index[i], x = n % v.grid[2], y = n / v.grid[2] % v.grid[1], t = n / (v.grid[2] * v.grid[1]);
  return i / v.count * v.batch_stride + t * v.tube[0] * v.frame_stride + y * v.tube[1] * v.row_stride +
         x * v.tube[2] * (v.bytes ? v.channels : 1);
}

// One row of a tube. safelen keeps vectors at one register of floats: 64 bytes at once would leave short rows scalar.
void centre(const uint8_t* p, float* o, int64_t n) {
#pragma omp simd safelen(16)
  for (int64_t i = 0; i < n; ++i) o[i] = float(int32_t(p[i]) - 128) * (1.0f / 128);
}
void centre(const uint8_t* p, double* o, int64_t n) {
  for (int64_t i = 0; i < n; ++i) o[i] = double(int32_t(p[i]) - 128) * (1.0 / 128);
}
void centre(const uint8_t* p, bf16* o, int64_t n) {  // exact, so the upper half of the float is the result
  uint16_t* bits = reinterpret_cast<uint16_t*>(o);
#pragma omp simd safelen(16)
  for (int64_t i = 0; i < n; ++i)
    bits[i] = uint16_t(bit_cast<uint32_t>(float(int32_t(p[i]) - 128) * (1.0f / 128)) >> 16);
}
void centre(const uint8_t* p, f16* o, int64_t n) {
  for (int64_t i = 0; i < n; ++i) o[i] = from_float<f16>(float(int32_t(p[i]) - 128) * (1.0f / 128));
}

template <class T>
void gather(const VisibleTubes& v, T* columns) {
  const int64_t width = v.width(), planes = v.bytes ? 1 : v.channels;
  const int64_t run = v.tube[2] * (v.bytes ? v.channels : 1);
  const int64_t item = v.bytes ? 1 : int64_t(sizeof(T));
  const char* video = static_cast<const char*>(v.video);
  parallel_for(v.rows, 1 + 16384 / width, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const char *tube = video + origin(v, i) * item, *next = video + origin(v, i + 1 < i1 ? i + 1 : i) * item;
      T* o = columns + i * width;
      for (int64_t c = 0; c < planes; ++c)
        for (int64_t f = 0; f < v.tube[0]; ++f) {
          int64_t at = (c * v.channel_stride + f * v.frame_stride) * item;
          for (int64_t y = 0; y < v.tube[1]; ++y, at += v.row_stride * item, o += run) {
            __builtin_prefetch(next + at);
            __builtin_prefetch(next + at + run * item - 1);
            if (v.bytes)
              centre(reinterpret_cast<const uint8_t*>(tube + at), o, run);
            else
              std::memcpy(o, tube + at, run * sizeof(T));
          }
        }
    }
  });
}

template <class T>
float scaled_row(const T* w, T* o, int64_t n, float scale) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    o[i] = from_float<T>(to_float(w[i]) * scale);
    sum += to_float(o[i]);
  }
  return sum;
}
double scaled_row(const double* w, double* o, int64_t n, double scale) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += o[i] = w[i] * scale;
  return sum;
}

// planes [C, P] -> pixels [P, C], and back; C is a constant where the shuffles are worth having
template <int C, class T>
void interleave(const T* __restrict__ planes, T* __restrict__ pixels, int64_t p, int64_t channels) {
  const int64_t n = C ? C : channels;
  for (int64_t i = 0; i < p; ++i)
    for (int64_t c = 0; c < n; ++c) pixels[i * n + c] = planes[c * p + i];
}
template <class T>
void interleave(const T* planes, T* pixels, int64_t p, int64_t channels) {
  switch (channels) {
    case 1: std::memcpy(pixels, planes, p * sizeof(T)); return;
    case 2: return interleave<2>(planes, pixels, p, 2);
    case 3: return interleave<3>(planes, pixels, p, 3);
    case 4: return interleave<4>(planes, pixels, p, 4);
    default: return interleave<0>(planes, pixels, p, channels);
  }
}

// folded, and offset[d] with the bias
template <class T>
void fold(const EmbedVisibleTubes& a, typename Wide<T>::type* offset) {
  using W = typename Wide<T>::type;
  constexpr int64_t kPixels = 256;  // so many wait on the stack, scaled, to be interleaved
  const VisibleTubes& v = a.tubes;
  const int64_t pixels = v.pixels(), width = v.width();
  parallel_for(a.dim, 1 + 16384 / width, [&](int64_t d0, int64_t d1) {
    alignas(64) T planes[kPixels * kMaxChannels];
    for (int64_t d = d0; d < d1; ++d) {
      const T* weight = static_cast<const T*>(a.weight) + d * width;
      T* row = static_cast<T*>(a.folded) + d * width;
      W sum = a.bias ? W(to_float(static_cast<const T*>(a.bias)[d])) : 0;
      for (int64_t p0 = 0; p0 < pixels; p0 += kPixels) {
        const int64_t n = pixels - p0 < kPixels ? pixels - p0 : kPixels;
        for (int64_t c = 0; c < v.channels; ++c) {
          T* to = v.bytes ? planes + c * n : row + c * pixels + p0;
          sum += W(v.ratio[c]) * scaled_row(weight + c * pixels + p0, to, n, W(v.scale[c]));
        }
        if (v.bytes) interleave(planes, row + p0 * v.channels, n, v.channels);
      }
      offset[d] = sum;
    }
  });
}

// out += columns folded^T with sixteen partial sums: the same bits whatever the number of threads, which a library's
// product of this size does not promise.
template <class T>
void small_product(const EmbedVisibleTubes& a) {
  constexpr int64_t kLanes = 16;
  const int64_t width = a.tubes.width(), whole = width / kLanes * kLanes;
  parallel_for(a.tubes.rows, 1 + 16384 / (a.dim * width + 1), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const T* __restrict__ x = static_cast<const T*>(a.columns) + i * width;
      T* out = static_cast<T*>(a.out) + i * a.dim;
      for (int64_t d = 0; d < a.dim; ++d) {
        const T* __restrict__ w = static_cast<const T*>(a.folded) + d * width;
        T lanes[kLanes] = {}, sum = 0;
        for (int64_t k = 0; k < whole; k += kLanes)
          for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[k + l] * w[k + l];
        for (int64_t k = whole; k < width; ++k) lanes[k - whole] += x[k] * w[k];
        for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
        out[d] += sum;
      }
    }
  });
}

template <class T>
void forward(const EmbedVisibleTubes& a) {
  using W = typename Wide<T>::type;
  gather(a.tubes, static_cast<T*>(a.columns));
  W* offset = static_cast<W*>(a.scratch);
  fold<T>(a, offset);
  parallel_for(a.tubes.rows, 1 + 16384 / (a.dim + 1), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      T* __restrict__ out = static_cast<T*>(a.out) + i * a.dim;
      const W* __restrict__ base = offset;
      if (a.position) {
        const T* __restrict__ position = static_cast<const T*>(a.position) + a.tubes.index[i] * a.dim;
        for (int64_t d = 0; d < a.dim; ++d) out[d] = narrow<T>(base[d] + to_float(position[d]));
      } else {
        for (int64_t d = 0; d < a.dim; ++d) out[d] = narrow<T>(base[d]);
      }
    }
  });
}

constexpr int64_t kBlock = 64;  // columns that are summed at once

// sum[d] = sum over rows of grad_out, rows ascending
template <class T>
void sum_rows(const EmbedVisibleTubesBackward& a, typename Wide<T>::type* sum) {
  using W = typename Wide<T>::type;
  const T* grad = static_cast<const T*>(a.grad_out);
  parallel_for((a.dim + kBlock - 1) / kBlock, 1 + 16384 / (kBlock * (a.tubes.rows + 1)), [&](int64_t b0, int64_t b1) {
    for (int64_t d0 = b0 * kBlock; d0 < b1 * kBlock && d0 < a.dim; d0 += kBlock) {
      const int64_t n = a.dim - d0 < kBlock ? a.dim - d0 : kBlock;
      W block[kBlock] = {};
      for (int64_t i = 0; i < a.tubes.rows; ++i) {
        const T* row = grad + i * a.dim + d0;
        if (n == kBlock)
          for (int64_t d = 0; d < kBlock; ++d) block[d] += to_float(row[d]);
        else
          for (int64_t d = 0; d < n; ++d) block[d] += to_float(row[d]);
      }
      for (int64_t d = 0; d < n; ++d) sum[d0 + d] = block[d];
    }
  });
}

// links = first[length] (a row that lands on the position, or -1), then next[rows] (the following such row, or -1)
template <class T>
void scatter_rows(const EmbedVisibleTubesBackward& a) {
  using W = typename Wide<T>::type;
  const int64_t length = a.tubes.length, rows = a.tubes.rows;
  int32_t *first = a.links, *next = first + length;
  for (int64_t n = 0; n < length; ++n) first[n] = -1;
  for (int64_t i = rows; i-- > 0;) {  // downwards, so that each list ascends
    next[i] = first[a.tubes.index[i]];
    first[a.tubes.index[i]] = int32_t(i);
  }
  parallel_for(length, 1 + 16384 / (a.dim + 1), [&](int64_t n0, int64_t n1) {
    for (int64_t n = n0; n < n1; ++n)
      for (int64_t d0 = 0; d0 < a.dim; d0 += kBlock) {
        const int64_t width = a.dim - d0 < kBlock ? a.dim - d0 : kBlock;
        W sum[kBlock] = {};
        for (int32_t i = first[n]; i >= 0; i = next[i]) {
          const T* row = static_cast<const T*>(a.grad_out) + i * a.dim + d0;
          for (int64_t d = 0; d < width; ++d) sum[d] += to_float(row[d]);
        }
        T* out = static_cast<T*>(a.grad_position) + n * a.dim + d0;
        for (int64_t d = 0; d < width; ++d) out[d] = narrow<T>(sum[d]);
      }
  });
}

template <class T>
void unfold(const EmbedVisibleTubesBackward& a) {
  using W = typename Wide<T>::type;
  const VisibleTubes& v = a.tubes;
  const int64_t pixels = v.pixels(), width = v.width();
  W* bias = static_cast<W*>(a.sums);
  sum_rows<T>(a, bias);
  for (int64_t d = 0; d < a.dim; ++d) static_cast<T*>(a.grad_bias)[d] = narrow<T>(bias[d]);
  if (a.grad_position) scatter_rows<T>(a);
  const int64_t step = v.bytes ? v.channels : 1, plane = v.bytes ? 1 : pixels;
  parallel_for(a.dim, 1 + 16384 / width, [&](int64_t d0, int64_t d1) {
    for (int64_t d = d0; d < d1; ++d)
      for (int64_t c = 0; c < v.channels; ++c) {
        const T* __restrict__ from = static_cast<const T*>(a.product) + d * width + c * plane;
        T* __restrict__ to = static_cast<T*>(a.grad_weight) + d * width + c * pixels;
        const W scale = W(v.scale[c]), shift = bias[d] * W(v.ratio[c]);
        if (step == 3)  // a constant, so that the compiler can shuffle
          for (int64_t i = 0; i < pixels; ++i) to[i] = narrow<T>((W(to_float(from[i * 3])) + shift) * scale);
        else
          for (int64_t i = 0; i < pixels; ++i) to[i] = narrow<T>((W(to_float(from[i * step])) + shift) * scale);
      }
  });
}

template <class T>
void backward(const EmbedVisibleTubesBackward& a) {
  if (a.columns) gather(a.tubes, static_cast<T*>(a.columns));
  if (a.product) unfold<T>(a);
}

}  // namespace

void embed_visible_tubes(EmbedVisibleTubes& a) {
  a.bad = first_outside(a.tubes);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: forward<float>(a); break;
    case Element::f64: forward<double>(a); break;
    case Element::f16: return forward<f16>(a);
    case Element::bf16: return forward<bf16>(a);
  }
  if (a.tubes.rows * a.dim * a.tubes.width() > kSmallProduct) return;
  a.complete = true;
  a.element == Element::f32 ? small_product<float>(a) : small_product<double>(a);
}

void embed_visible_tubes_backward(EmbedVisibleTubesBackward& a) {
  a.bad = first_outside(a.tubes);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: return backward<float>(a);
    case Element::f64: return backward<double>(a);
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
  }
}

}  // namespace vk::VK_ISA
