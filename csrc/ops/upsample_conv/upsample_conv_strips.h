// Strips of image rows with their borders, and weights in the order of the products: what surrounds the inner loops.
#pragma once
#include "core/scratch.h"
#include "ops/upsample_conv/upsample_conv_lanes.h"
#include "ops/upsample_conv/upsample_conv_products.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kBlock = 64;  // positions whose sums wait in the cache for their activation
constexpr int64_t kStripPositions = 2048;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Sizes that forward and backward share. Number: what products take, float or bf16.
struct Plan {
  const UpsampleConvSizes& s;
  Unit unit;
  int64_t per_word;      // numbers in a word
  int64_t size;          // bytes of a number
  int64_t pitch;         // positions from an image row to the next
  int64_t rows, strips;  // image rows of a strip, strips of an image
  int64_t in, row_out;   // channels of a strip's pixel; numbers that a pixel gives to one row: s C, the same padded
  int64_t row_in;

  Plan(const UpsampleConvSizes& sizes, Unit u)
      : s(sizes), unit(u), per_word(u == Unit::fma ? 1 : 2), size(4 / per_word), pitch(s.width + s.kw - 1) {
    rows = kStripPositions / pitch < 4 ? 4 : kStripPositions / pitch;
    rows = rows < s.height ? rows : s.height;
    strips = ceil_div(s.height, rows);
    rows = ceil_div(s.height, strips);
    strips = ceil_div(s.height, rows);
    in = ceil_div(s.in, per_word) * per_word;
    row_out = s.scale * s.out;
    row_in = ceil_div(row_out, per_word) * per_word;
  }
  int64_t strip_rows() const { return rows + s.kh - 1; }
  /// Numbers of a strip with `pixel` numbers per position; products and loads of sixteen may look beyond its end.
  int64_t strip_numbers(int64_t pixel) const { return strip_rows() * pitch * pixel + 48 * pixel + 64; }
  int64_t positions(int64_t strip) const { return (strip_height(strip) - 1) * pitch + s.width; }
  int64_t strip_height(int64_t strip) const {
    const int64_t left = s.height - strip * rows;
    return left < rows ? left : rows;
  }
};

template <class To, class From>
VK_INLINE To number(From x) {
  return from_float<To>(to_float(x));
}

/// n numbers, multiplied where there is a factor.
template <class To, class From>
inline void copy_numbers(const From* from, const From* factor, To* to, int64_t n) {
  if (!factor && std::is_same_v<To, From>) {
    std::memcpy(to, from, size_t(n) * sizeof(To));
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store16(to + i, factor ? load16(from + i) * load16(factor + i) : load16(from + i));
  if (i < n)
    store_some(to + i, factor ? load_some(from + i, n - i) * load_some(factor + i, n - i) : load_some(from + i, n - i),
               n - i);
}

/// One row of `width` pixels with its border: `channels` numbers each, padded to `pixel`.
template <class To, class From>
inline void fill_row(const From* from, const From* factor, int64_t width, int64_t channels, int64_t border,
                     int64_t pixel, To* to) {
  std::memset(static_cast<void*>(to), 0, size_t(border * pixel) * sizeof(To));
  to += border * pixel;
  if (channels == pixel) {
    copy_numbers(from, factor, to, width * channels);
  } else {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < pixel; ++c)
        to[x * pixel + c] = c >= channels ? To{}
                            : factor
                                ? from_float<To>(to_float(from[x * channels + c]) * to_float(factor[x * channels + c]))
                                : number<To>(from[x * channels + c]);
  }
  std::memset(static_cast<void*>(to + width * pixel), 0, size_t(border * pixel) * sizeof(To));
}

/// The image rows from first - kh / 2 on, as [strip row][position][pixel]; rows outside are zeros. `step` image rows of
/// numbers lie between two strip rows.
template <class To, class From>
inline void fill_strip(const Plan& p, const From* image, const From* factor, int64_t first, int64_t height,
                       int64_t row_numbers, int64_t channels, int64_t pixel, To* to) {
  const int64_t span = p.pitch * pixel;
  for (int64_t r = 0; r < height + p.s.kh - 1; ++r, to += span) {
    const int64_t y = first + r - p.s.kh / 2;
    if (y < 0 || y >= p.s.height)
      std::memset(static_cast<void*>(to), 0, size_t(span) * sizeof(To));
    else
      fill_row(image + y * row_numbers, factor ? factor + y * row_numbers : nullptr, p.s.width, channels, p.s.kw / 2,
               pixel, to);
  }
  std::memset(static_cast<void*>(to), 0, size_t(48 * pixel + 64) * sizeof(To));
}

/// Column j of output row dy is filter o.
inline int64_t filter_of(const UpsampleConvSizes& s, int64_t dy, int64_t j) {
  return (j % s.out * s.scale + dy) * s.scale + j / s.out;
}

/// lanes [16][words] -> words [chunk][word][16]; words that a chunk repeats become zeros.
inline void store_run(const uint32_t* lanes, const Runs& runs, uint32_t* to) {
  for (int64_t c = 0; c < runs.chunks; ++c)
    for (int64_t k = 0; k < runs.words; ++k, to += 16) {
      const int64_t at = runs.at(c) + k;
      const bool repeated = at < c * runs.words;
      for (int64_t l = 0; l < 16; ++l) to[l] = repeated ? 0 : lanes[l * runs.run + at];
    }
}

/// weights[dy][tile][ky][...]: what products of x strips take.
template <class Number, class T>
inline void pack_forward(const Plan& p, const Runs& runs, const T* weight, uint32_t* packed) {
  const UpsampleConvSizes& s = p.s;
  const int64_t tiles = ceil_div(p.row_out, 16), taps = s.kh * s.kw, words = runs.padded() * 16;
  parallel_for(s.scale * tiles, 1 + 8192 / (16 * s.in * taps), [&](int64_t i0, int64_t i1) {
    Scratch<uint32_t> lanes(size_t(s.kh * 16 * runs.run));
    for (int64_t i = i0; i < i1; ++i) {
      std::memset(lanes.data(), 0, lanes.size() * 4);
      const int64_t dy = i / tiles, j0 = i % tiles * 16;
      for (int64_t l = 0; l < 16 && j0 + l < p.row_out; ++l) {
        const T* w = weight + filter_of(s, dy, j0 + l) * s.in * taps;
        Number* to = reinterpret_cast<Number*>(lanes.data() + l * runs.run);
        for (int64_t ky = 0; ky < s.kh; ++ky)
          for (int64_t kx = 0; kx < s.kw; ++kx) {
            Number* row = to + (ky * 16 * runs.run * p.per_word) + kx * p.in;
            const T* from = w + ky * s.kw + kx;
            for (int64_t c = 0; c < s.in; ++c) row[c] = number<Number>(from[c * taps]);
          }
      }
      for (int64_t ky = 0; ky < s.kh; ++ky)
        store_run(lanes.data() + ky * 16 * runs.run, runs, packed + (i * s.kh + ky) * words);
    }
  });
}

/// weights[tile of input channels][turned ky][dy][...]: what products of dz strips take.
template <class Number, class T>
inline void pack_backward(const Plan& p, const Runs& runs, const T* weight, uint32_t* packed) {
  const UpsampleConvSizes& s = p.s;
  const int64_t tiles = ceil_div(s.in, 16), taps = s.kh * s.kw, rows = s.kh * s.scale, words = runs.padded() * 16;
  parallel_for(tiles * rows, 1 + 8192 / (16 * runs.run), [&](int64_t i0, int64_t i1) {
    Scratch<uint32_t> lanes(size_t(16 * runs.run));
    for (int64_t i = i0; i < i1; ++i) {
      std::memset(lanes.data(), 0, lanes.size() * 4);
      const int64_t c0 = i / rows * 16, ky = s.kh - 1 - i % rows / s.scale, dy = i % s.scale;
      const int64_t n = s.in - c0 < 16 ? s.in - c0 : 16;
      for (int64_t kx = 0; kx < s.kw; ++kx)
        for (int64_t j = 0; j < p.row_out; ++j) {
          const T* from = weight + (filter_of(s, dy, j) * s.in + c0) * taps + ky * s.kw + s.kw - 1 - kx;
          Number* to = reinterpret_cast<Number*>(lanes.data()) + kx * p.row_in + j;
          for (int64_t l = 0; l < n; ++l) to[l * runs.run * p.per_word] = number<Number>(from[l * taps]);
        }
      store_run(lanes.data(), runs, packed + i * words);
    }
  });
}

/// Calls f(image row, first pixel, first position, count) for the pixels among positions [m0, m0 + n) of a strip.
template <class F>
VK_INLINE void each_segment(const Plan& p, int64_t m0, int64_t n, F f) {
  for (int64_t m = m0; m < m0 + n;) {
    const int64_t y = m / p.pitch, x = m - y * p.pitch;
    const int64_t left = m0 + n - m, inside = p.s.width - x;
    if (inside > 0) f(y, x, m - m0, left < inside ? left : inside);
    m += p.pitch - x;
  }
}

}  // namespace
}  // namespace vk::VK_ISA
