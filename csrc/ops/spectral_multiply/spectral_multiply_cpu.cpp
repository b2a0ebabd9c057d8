// A frequency is a task: its matrix lies in one piece and is read once, in order, and what it is multiplied with is
// packed beforehand, so that threads never show.
//
//   a row of the matrix, w = [re, im, re, im ...] over the outputs, is used as it lies:
//   forward   a += re(x) w and c += im(x) w;  out = (a.re - c.im, a.im + c.re), once at the end
//   backward  g = [re, im ...] of the gradient, h = [im, -re ...]: grad_w = re(x) g + im(x) h,
//             grad_x = (sum of w g, sum of w h)
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/spectral_multiply/spectral_multiply.h"

namespace vk::VK_ISA {
namespace {

/// The first `left` (or 16) numbers, zeros behind them.
VK_INLINE V16 load_part(const float* from, int64_t left) {
  if (left >= 16) return load(from);
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), from);
  return v;
#else
  float lanes[16] = {};
  for (int64_t k = 0; k < left; ++k) lanes[k] = from[k];
  return load(lanes);
#endif
}
template <class T>
VK_INLINE V16 load_part(const T* from, int64_t left) {
  float lanes[16] = {};
  if (left >= 16)
    for (int k = 0; k < 16; ++k) lanes[k] = to_float(from[k]);
  else
    for (int64_t k = 0; k < left; ++k) lanes[k] = to_float(from[k]);
  return load(lanes);
}

/// The values where the mask is not 0, else 0.
VK_INLINE V16 keep(V16 value, const uint8_t* mask, int64_t left) {
  int32_t lanes[16] = {};
  if (left >= 16)
    for (int k = 0; k < 16; ++k) lanes[k] = mask[k] ? -1 : 0;
  else
    for (int64_t k = 0; k < left; ++k) lanes[k] = mask[k] ? -1 : 0;
  I16 kept;
  std::memcpy(&kept, lanes, sizeof kept);
  VK_EACH_PART value.p[i] = (PartF)((PartI)value.p[i] & kept.p[i]);
  return value;
}

template <class T>
VK_INLINE void store_part(T* to, const V16& value, int64_t left) {
  float lanes[16];
  store(lanes, value);
  for (int64_t k = 0; k < std::min<int64_t>(left, 16); ++k) to[k] = from_float<T>(lanes[k]);
}
VK_INLINE void store_part(float* to, const V16& value, int64_t left) {
  if (left >= 16) return store(to, value);
  float lanes[16];
  store(lanes, value);
  std::memcpy(to, lanes, size_t(left) * sizeof(float));
}

/// The matrix of one frequency and what it meets.
template <class T>
struct Mode {
  Mode(const SpectralMultiply& a, int64_t mode)
      : size(a.in * a.channels * 2),
        length(2 * a.channels),
        row(mode / a.columns),
        column(mode % a.columns),
        weight(static_cast<const T*>(a.weight) + mode * size),
        mask(a.mask ? a.mask + mode * size : nullptr) {}

  VK_INLINE V16 load(int64_t i, int64_t k) const {
    const int64_t at = i * length + k;
    const V16 w = load_part(weight + at, length - k);
    return mask ? keep(w, mask + at, length - k) : w;
  }

  const int64_t size, length, row, column;
  const T* weight;
  const uint8_t* mask;
};

/// What a spectrum has at one frequency: to(b, channel, re, im).
template <class T, class F>
inline void read_mode(const Spectrum& s, int64_t batch, int64_t row, int64_t column, F to) {
  const T* from = static_cast<const T*>(s.data) + row * s.row_stride + column * s.column_stride;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < s.channels; ++c) {
      const T* at = from + b * s.batch_stride + c * s.channel_stride;
      to(b, c, to_float(at[0]), to_float(at[1]));
    }
}

void zero(void* data, int64_t bytes) {
  parallel_for(bytes, 1 << 18, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(data) + begin, 0, size_t(end - begin));
  });
}

int64_t grain(const SpectralMultiply& a) { return 1 + 8192 / (a.in * a.channels * a.batch + 1); }

/// Rows b .. b + kRows - 1 of the batch, kWide vectors of outputs from number k on.
template <int kRows, int kWide, class T>
void multiply(const SpectralMultiply& a, const Mode<T>& mode, const float* x, int64_t b, int64_t k) {
  V16 re[kRows][kWide], im[kRows][kWide];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kWide; ++v) re[r][v] = im[r][v] = V16(0.0f);
  for (int64_t i = 0; i < a.in; ++i) {
    V16 w[kWide];
    for (int v = 0; v < kWide; ++v) w[v] = mode.load(i, k + 16 * v);
    for (int r = 0; r < kRows; ++r) {
      const float* number = x + ((b + r) * a.in + i) * 2;
      const V16 xr(number[0]), xi(number[1]);
      for (int v = 0; v < kWide; ++v) {
        re[r][v] = madd(w[v], xr, re[r][v]);
        im[r][v] = madd(w[v], xi, im[r][v]);
      }
    }
  }
  T* out = static_cast<T*>(const_cast<void*>(a.out.data)) + a.out.row(mode.row, a.rows) * a.out.row_stride +
           mode.column * a.out.column_stride;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kWide; ++v) {
      float p[16], q[16];
      store(p, re[r][v]);
      store(q, im[r][v]);
      const int64_t first = (k + 16 * v) / 2;
      for (int64_t o = first; o < std::min(a.channels, first + 8); ++o) {
        const int64_t lane = 2 * (o - first);
        T* to = out + (b + r) * a.out.batch_stride + o * a.out.channel_stride;
        to[0] = from_float<T>(p[lane] - q[lane + 1]);
        to[1] = from_float<T>(p[lane + 1] + q[lane]);
      }
    }
}

template <int kRows, int kWide, class T>
void multiply_rows(const SpectralMultiply& a, const Mode<T>& mode, const float* x, int64_t b) {
  int64_t k = 0;
  for (; k + 16 * (kWide - 1) < mode.length; k += 16 * kWide) multiply<kRows, kWide>(a, mode, x, b, k);
  for (; k < mode.length; k += 16) multiply<kRows, 1>(a, mode, x, b, k);
}

template <class T>
void forward(const SpectralMultiply& a) {
  zero(const_cast<void*>(a.out.data), a.batch * a.channels * a.out.rows * a.out.columns * 2 * int64_t(sizeof(T)));
  parallel_for(a.modes(), grain(a), [&](int64_t m0, int64_t m1) {
    Scratch<float> x(size_t(a.batch * a.in * 2));
    for (int64_t m = m0; m < m1; ++m) {
      const Mode<T> mode(a, m);
      read_mode<T>(a.x, a.batch, a.x.row(mode.row, a.rows), mode.column, [&](int64_t b, int64_t i, float re, float im) {
        x[size_t((b * a.in + i) * 2)] = re;
        x[size_t((b * a.in + i) * 2 + 1)] = im;
      });
      int64_t b = 0;
      for (; b + 1 < a.batch; b += 2) multiply_rows<2, 2>(a, mode, x.data(), b);
      if (b < a.batch) multiply_rows<1, 4>(a, mode, x.data(), b);
    }
  });
}

/// One frequency of the gradient, as the backward pass reads it.
struct Gradient {
  float *g, *h;    // [B, padded], zeros behind the numbers
  const float* x;  // [B, I, 2]
  float* sums;     // [padded]
  int64_t padded;
};

/// What rows b .. b + kRows - 1 of the batch add to row i of grad_w, and their grad_x.
template <int kRows, class T>
void back(const SpectralMultiply& a, const Mode<T>& mode, const Gradient& t, int64_t b, int64_t i) {
  Sums sums[8];
  V16 xr[kRows], xi[kRows];
  for (int r = 0; r < kRows; ++r) {
    const float* number = t.x + ((b + r) * a.in + i) * 2;
    xr[r] = V16(number[0]), xi[r] = V16(number[1]);
  }
  for (int64_t k = 0; k < mode.length; k += 16) {
    const V16 w = mode.load(i, k);
    V16 to_weight = b ? load(t.sums + k) : V16(0.0f);
    for (int r = 0; r < kRows; ++r) {
      const V16 g = load(t.g + (b + r) * t.padded + k), h = load(t.h + (b + r) * t.padded + k);
      sums[2 * r].add(w, g);
      sums[2 * r + 1].add(w, h);
      to_weight = madd(xi[r], h, madd(xr[r], g, to_weight));
    }
    store(t.sums + k, to_weight);
  }
  float total[8];
  sum8(sums, total);
  T* out = static_cast<T*>(a.grad_x);
  for (int r = 0; r < kRows; ++r) {
    T* to = out + (((b + r) * a.in + i) * a.x.rows + a.x.row(mode.row, a.rows)) * a.x.columns * 2 + mode.column * 2;
    to[0] = from_float<T>(total[2 * r]);
    to[1] = from_float<T>(total[2 * r + 1]);
  }
}

template <class T>
void backward(const SpectralMultiply& a) {
  zero(a.grad_x, a.batch * a.in * a.x.rows * a.x.columns * 2 * int64_t(sizeof(T)));
  if (a.batch == 0) return zero(a.grad_weight, a.modes() * a.in * a.channels * 2 * int64_t(sizeof(T)));
  const int64_t padded = (2 * a.channels + 15) / 16 * 16;
  parallel_for(a.modes(), grain(a), [&](int64_t m0, int64_t m1) {
    Scratch<float> x(size_t(a.batch * a.in * 2)), room(size_t((2 * a.batch + 1) * padded));
    const Gradient t{room.data(), room.data() + a.batch * padded, x.data(), room.data() + 2 * a.batch * padded, padded};
    std::memset(room.data(), 0, room.size() * sizeof(float));
    for (int64_t m = m0; m < m1; ++m) {
      const Mode<T> mode(a, m);
      read_mode<T>(a.x, a.batch, a.x.row(mode.row, a.rows), mode.column, [&](int64_t b, int64_t i, float re, float im) {
        x[size_t((b * a.in + i) * 2)] = re;
        x[size_t((b * a.in + i) * 2 + 1)] = im;
      });
      read_mode<T>(a.out, a.batch, a.out.row(mode.row, a.rows), mode.column,
                   [&](int64_t b, int64_t o, float re, float im) {
                     const int64_t at = b * padded + 2 * o;
                     t.g[at] = re, t.g[at + 1] = im;
                     t.h[at] = im, t.h[at + 1] = -re;
                   });
      T* to = static_cast<T*>(a.grad_weight) + m * mode.size;
      for (int64_t i = 0; i < a.in; ++i) {
        int64_t b = 0;
        for (; b + 3 < a.batch; b += 4) back<4>(a, mode, t, b, i);
        for (; b < a.batch; ++b) back<1>(a, mode, t, b, i);
        for (int64_t k = 0; k < mode.length; k += 16) {
          const int64_t at = i * mode.length + k, left = mode.length - k;
          const V16 sum = load(t.sums + k);
          store_part(to + at, mode.mask ? keep(sum, mode.mask + at, left) : sum, left);
        }
      }
    }
  });
}

}  // namespace

void spectral_multiply(const SpectralMultiply& a) {
  switch (a.element) {
    case Element::f16: return forward<f16>(a);
    case Element::bf16: return forward<bf16>(a);
    default: return forward<float>(a);
  }
}

void spectral_multiply_backward(const SpectralMultiply& a) {
  switch (a.element) {
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
    default: return backward<float>(a);
  }
}

}  // namespace vk::VK_ISA
