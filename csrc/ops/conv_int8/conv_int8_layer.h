// One layer, ready to run: weights in the order of the products, and rows of the image turned into rows of bytes.
//
//   strip   [row][position][in]    numbers: bytes, or 16-bit ones for the unit that takes those
#pragma once
#include "core/parallel.h"
#include "ops/conv_int8/conv_int8_bytes.h"

namespace vk::VK_ISA {
namespace {

/// Rows of an image, of which those from `first` on are in memory.
struct Rows {
  const uint8_t* data;
  int64_t first;
};

class Layer {
 public:
  Layer(const ConvInt8& conv, Unit unit)
      : a(conv),
        unit_(unit),
        size_(unit == Unit::madd ? 2 : 1),
        pitch_(a.width + a.kw - 1),
        columns_(a.out * a.scale * a.scale),
        tiles_(ceil_div(columns_, 16)),
        product_(product_of()),
        epilogue_(a, tiles_),
        weights_(size_t(tiles_ * product_.tile_words())),
        bias_(size_t(tiles_ * 16)) {
    pack();
#if defined(VK_INT8_UNITS)
    __builtin_cpu_init();
    vectors_ = epilogue_.scaled && __builtin_cpu_supports("avx512vbmi");
#elif defined(__AVX2__)
    vectors_ = epilogue_.scaled;
#endif
  }

  /// Bytes of a strip for `rows` rows of the image. Products of sixteen positions look beyond the last one.
  int64_t strip_bytes(int64_t rows) const { return (rows + a.kh - 1) * product_.next + surplus(); }
  int64_t row_bytes() const { return product_.next; }
  int64_t pitch() const { return pitch_; }

  /// Image rows [first, first + count) of x; `out` is where the first of their count * scale rows begins.
  void run(const Rows& x, int64_t first, int64_t count, uint8_t* strip, uint8_t* out) const {
    fill_strip(x, first, count, strip);
    Scratch<int32_t> z(size_t((kBlock + 16) * kGroup));
    begin(unit_, product_);
    const int64_t positions = (count - 1) * pitch_ + a.width, row = epilogue_.row;
    for (int64_t m0 = 0; m0 < positions; m0 += kBlock) {
      const int64_t n = positions - m0 < kBlock ? positions - m0 : kBlock;
      for (int64_t t = 0; t < tiles_; t += 4) {
        const Group& g = epilogue_.group(t / 4);
        multiply(unit_, product_, strip + m0 * product_.pixel, n, g.tiles, weights_.data() + t * product_.tile_words(),
                 bias_.data() + t * 16, z.data());
        each_segment(m0, n, [&](int64_t y, int64_t x0, int64_t at, int64_t length) {
          uint8_t* to = out + y * a.scale * row + x0 * epilogue_.run;
#if defined(__AVX2__)
          if (vectors_) return epilogue_.store_vectors(g, z.data() + at * kGroup, length, to);
#endif
          epilogue_.store_portable(g, z.data() + at * kGroup, length, to);
        });
      }
    }
    end(unit_);
  }

 private:
  Product product_of() const {
    const int64_t pixel = a.in * size_, words = ceil_div(a.kw * pixel, 4);
    const int64_t chunks = unit_ == Unit::tiles ? ceil_div(words, 16) : 1;
    return {a.kh, pitch_ * pixel, chunks, ceil_div(words, chunks), pixel};
  }
  int64_t surplus() const { return 32 * product_.pixel + product_.chunks * product_.words * 4 + 64; }

  /// weights[tile][run][word][16], and the biases in the order of the columns.
  void pack() {
    const int64_t words = product_.chunks * product_.words, filter = a.kh * a.kw * a.in;
    parallel_for(tiles_, 1 + (1 << 17) / (16 * filter + 1), [&](int64_t i0, int64_t i1) {
      Scratch<int32_t> run(size_t(words * a.kh));  // of one filter
      std::memset(run.data(), 0, run.size() * 4);
      for (int64_t t = i0; t < i1; ++t) {
        int32_t* tile = weights_.data() + t * product_.tile_words();
        if (t + 1 == tiles_) std::memset(tile, 0, size_t(product_.tile_words()) * 4);
        for (int64_t l = 0; l < 16; ++l) {
          const int64_t n = t * 16 + l, o = conv_int8_filter(a.out, a.scale, n);
          bias_[size_t(n)] = n < columns_ ? a.bias[o] : 0;
          if (n >= columns_) continue;
          const int8_t* from = a.weight + o * filter;
          for (int64_t r = 0; r < a.kh; ++r, from += a.kw * a.in) {
            int32_t* to = run.data() + r * words;
            if (size_ == 2) {
              int16_t* wide = reinterpret_cast<int16_t*>(to);
              for (int64_t i = 0; i < a.kw * a.in; ++i) wide[i] = from[i];
            } else {
              std::memcpy(to, from, size_t(a.kw * a.in));
            }
          }
          for (int64_t k = 0; k < words * a.kh; ++k) tile[k * 16 + l] = run[size_t(k)];
        }
      }
    });
  }

  /// One image row with its border; row null: nothing else.
  void fill_row(const uint8_t* row, uint8_t* to) const {
    const int64_t border = a.kw / 2 * a.in, inside = a.width * a.in;
    if (size_ == 2) {
      uint16_t* wide = reinterpret_cast<uint16_t*>(to);
      for (int64_t i = 0; i < pitch_ * a.in; ++i) wide[i] = a.zero_point;
      for (int64_t i = 0; row && i < inside; ++i) wide[border + i] = row[i];
      return;
    }
    if (!row) {
      std::memset(to, a.zero_point, size_t(pitch_ * a.in));
      return;
    }
    std::memset(to, a.zero_point, size_t(border));
    std::memcpy(to + border, row, size_t(inside));
    std::memset(to + border + inside, a.zero_point, size_t(border));
  }

  void fill_strip(const Rows& x, int64_t first, int64_t count, uint8_t* to) const {
    for (int64_t r = 0; r < count + a.kh - 1; ++r, to += product_.next) {
      const int64_t y = first + r - a.kh / 2;
      fill_row(y < 0 || y >= a.height ? nullptr : x.data + (y - x.first) * a.width * a.in, to);
    }
    std::memset(to, 0, size_t(surplus()));
  }

  /// Calls f(strip row, first pixel, first position, count) for the pixels among positions [m0, m0 + n).
  template <class F>
  VK_INLINE void each_segment(int64_t m0, int64_t n, F f) const {
    for (int64_t m = m0; m < m0 + n;) {
      const int64_t y = m / pitch_, x = m - y * pitch_;
      const int64_t left = m0 + n - m, inside = a.width - x;
      if (inside > 0) f(y, x, m - m0, left < inside ? left : inside);
      m += pitch_ - x;
    }
  }

 public:
  const ConvInt8& a;

 private:
  Unit unit_;
  int64_t size_;   // bytes of a number
  int64_t pitch_;  // positions from a strip row to the next
  int64_t columns_, tiles_;
  Product product_;
  Epilogue epilogue_;
  Scratch<int32_t> weights_, bias_;
  [[maybe_unused]] bool vectors_ = false;
};

}  // namespace
}  // namespace vk::VK_ISA
