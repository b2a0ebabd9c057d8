// Strips of image rows with their borders, and weights in the order of the products: what surrounds the inner loops.
#pragma once
#include "core/scratch.h"
#include "ops/upsample_conv/upsample_conv_lanes.h"
#include "ops/upsample_conv/upsample_conv_products.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kBlock = 64;            // positions whose sums wait in the cache for their activation
constexpr int64_t kStripBytes = 1 << 20;  // of a strip and all that is made of it: it should stay in the L2 cache

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
    in = ceil_div(s.in, per_word) * per_word;
    row_out = s.scale * s.out;
    row_in = ceil_div(row_out, per_word) * per_word;
    const int64_t position = 2 * in * size + s.scale * row_in * size + s.scale * row_out * 4;
    rows = kStripBytes / (position * pitch);
    if (rows > ceil_div(s.batch * s.height, 16)) rows = ceil_div(s.batch * s.height, 16);  // work for many threads
    const int64_t least = ceil_div(512, pitch) < 4 ? 4 : ceil_div(512, pitch);
    rows = rows < least ? least : rows;
    rows = rows < s.height ? rows : s.height;
    strips = ceil_div(s.height, rows);
    rows = ceil_div(s.height, strips);
    strips = ceil_div(s.height, rows);
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

/// n numbers, multiplied where there is a factor.
template <class To, class From>
inline void copy_numbers([[maybe_unused]] Unit unit, const From* from, const From* factor, To* to, int64_t n) {
  if (!factor && std::is_same_v<To, From>) {
    std::memcpy(static_cast<void*>(to), from, size_t(n) * sizeof(To));
    return;
  }
#if defined(VK_UPCONV_BF16)
  if (unit != Unit::fma) return scale_numbers_by_hardware(from, factor, to, n);
#endif
  scale_numbers(from, factor, to, n);
}

template <int kChannels, class T>
VK_INLINE void widen_pixels(const T* from, int64_t width, int64_t channels, int64_t pixel, T* to) {
  const int64_t n = kChannels ? kChannels : channels, step = kChannels ? kChannels + 1 : pixel;
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t c = 0; c < n; ++c) to[x * step + c] = from[x * n + c];
    to[x * step + n] = T{};
  }
}

/// One row of `width` pixels with its border: `channels` numbers each, padded to `pixel`, which is at most one more.
template <class To, class From>
inline void fill_row(const Plan& p, const From* from, const From* factor, int64_t channels, int64_t pixel, To* to) {
  const int64_t width = p.s.width, border = p.s.kw / 2 * pixel;
  std::memset(static_cast<void*>(to), 0, size_t(border) * sizeof(To));
  to += border;
  if (channels == pixel) {
    copy_numbers(p.unit, from, factor, to, width * channels);
  } else {
    constexpr int64_t kPixels = 64;
    Scratch<To> dense(size_t(kPixels * channels));
    for (int64_t x = 0; x < width; x += kPixels) {
      const int64_t n = width - x < kPixels ? width - x : kPixels;
      copy_numbers(p.unit, from + x * channels, factor ? factor + x * channels : nullptr, dense.data(), n * channels);
      if (channels == 3)
        widen_pixels<3>(dense.data(), n, channels, pixel, to + x * pixel);
      else
        widen_pixels<0>(dense.data(), n, channels, pixel, to + x * pixel);
    }
  }
  std::memset(static_cast<void*>(to + width * pixel), 0, size_t(border) * sizeof(To));
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
      fill_row(p, image + y * row_numbers, factor ? factor + y * row_numbers : nullptr, channels, pixel, to);
  }
  std::memset(static_cast<void*>(to), 0, size_t(48 * pixel + 64) * sizeof(To));
}

/// Column j of output row dy is filter o.
inline int64_t filter_of(const UpsampleConvSizes& s, int64_t dy, int64_t j) {
  return (j % s.out * s.scale + dy) * s.scale + j / s.out;
}

/// Rows of sixteen lanes, one row per number of a run -> words [chunk][word][16]; words that a chunk repeats are zeros.
/// rows(e): where the lanes of number e lie, or null for zeros.
template <class F>
VK_INLINE void store_run(const Plan& p, const Runs& runs, F rows, uint32_t* to) {
  const auto bits = [&](int64_t e) {
    I16 u{};
    if (const float* from = rows(e)) std::memcpy(&u, from, sizeof u);
    return u;
  };
  for (int64_t c = 0; c < runs.chunks; ++c)
    for (int64_t k = 0; k < runs.words; ++k, to += 16) {
      const int64_t at = runs.at(c) + k;
      I16 word{};
      if (at < c * runs.words) {
      } else if (p.unit == Unit::fma) {
        word = bits(at);
      } else {
        const I16 low = bits(2 * at), high = bits(2 * at + 1);  // floats that are bf16 numbers
        VK_EACH_PART word.p[i] = ((low.p[i] >> 16) & 0xffff) | (high.p[i] & int32_t(0xffff0000u));
      }
      std::memcpy(to, &word, sizeof word);
    }
}

/// As the images are rounded.
template <class T>
VK_INLINE V16 rounded(const V16& v) {
  T lane[16];
  store16(lane, v);
  return load16(lane);
}

/// weights[dy][tile][ky][...]: what products of x strips take.
template <class T, class W>
inline void pack_forward(const Plan& p, const Runs& runs, const W* weight, uint32_t* packed) {
  const UpsampleConvSizes& s = p.s;
  const int64_t tiles = ceil_div(p.row_out, 16), taps = s.kh * s.kw, filter = s.in * taps, words = runs.padded() * 16;
  parallel_for(s.scale * tiles, 1 + 8192 / (16 * filter), [&](int64_t i0, int64_t i1) {
    Scratch<float> lanes(size_t((filter + 16) * 16));  // [number of a filter][16 filters]
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t dy = i / tiles, j0 = i % tiles * 16;
      for (int64_t k = 0; k < filter; k += 16) {
        V16 r[16];
        const int64_t n = filter - k < 16 ? filter - k : 16;
        for (int64_t l = 0; l < 16; ++l) {
          const int64_t o = filter_of(s, dy, j0 + l);
          r[l] = j0 + l >= p.row_out ? V16(0.0f)
                 : n == 16           ? load16(weight + o * filter + k)
                                     : load_some(weight + o * filter + k, n);
        }
        transpose16(r);
        for (int64_t l = 0; l < 16; ++l) store(lanes.data() + (k + l) * 16, rounded<T>(r[l]));
      }
      for (int64_t ky = 0; ky < s.kh; ++ky)
        store_run(
            p, runs,
            [&](int64_t e) {
              const int64_t kx = e / p.in, c = e - kx * p.in;
              return c < s.in ? lanes.data() + (c * taps + ky * s.kw + kx) * 16 : nullptr;
            },
            packed + (i * s.kh + ky) * words);
    }
  });
}

/// weights[tile of input channels][turned ky][dy][...]: what products of dz strips take.
template <class T, class W>
inline void pack_backward(const Plan& p, const Runs& runs, const W* weight, uint32_t* packed) {
  const UpsampleConvSizes& s = p.s;
  const int64_t tiles = ceil_div(s.in, 16), taps = s.kh * s.kw, filter = s.in * taps, words = runs.padded() * 16;
  parallel_for(tiles * s.scale, 1 + 8192 / (16 * runs.run), [&](int64_t i0, int64_t i1) {
    Scratch<float> lanes(size_t((taps + 16) * p.row_out * 16));  // [tap][column of row dy][16 channels]
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t c0 = i / s.scale * 16, dy = i % s.scale;
      for (int64_t j = 0; j < p.row_out; ++j) {
        const W* from = weight + filter_of(s, dy, j) * filter;
        for (int64_t t = 0; t < taps; t += 16) {
          V16 r[16];
          for (int64_t l = 0; l < 16; ++l) {
            const int64_t at = (c0 + l) * taps + t, n = filter - at < 16 ? filter - at : 16;
            r[l] = n <= 0 ? V16(0.0f) : n == 16 ? load16(from + at) : load_some(from + at, n);
          }
          transpose16(r);
          for (int64_t l = 0; l < 16 && t + l < taps; ++l)
            store(lanes.data() + ((t + l) * p.row_out + j) * 16, rounded<T>(r[l]));
        }
      }
      for (int64_t ky = 0; ky < s.kh; ++ky)
        store_run(
            p, runs,
            [&](int64_t e) {
              const int64_t kx = e / p.row_in, j = e - kx * p.row_in, tap = taps - 1 - (ky * s.kw + kx);
              return j < p.row_out ? lanes.data() + (tap * p.row_out + j) * 16 : nullptr;
            },
            packed + ((i / s.scale * s.kh + ky) * s.scale + dy) * words);
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
