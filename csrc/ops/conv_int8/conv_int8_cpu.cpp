// A thread copies a strip of x with its borders, multiplies it block by block, and turns the sums into bytes while they
// are in its cache.
//
//   strip   [row][position][in]    numbers: bytes, or 16-bit ones for the unit that takes those
#include "core/parallel.h"
#include "ops/conv_int8/conv_int8_bytes.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kStripBytes = 1 << 18;  // it should stay in the L2 cache, beside weights

struct Plan {
  const ConvInt8& a;
  Unit unit;
  int64_t size;          // bytes of a number
  int64_t pitch;         // positions from a strip row to the next
  int64_t rows, strips;  // image rows of a strip, strips of an image
  Product product;

  Plan(const ConvInt8& conv, Unit u) : a(conv), unit(u), size(u == Unit::madd ? 2 : 1), pitch(a.width + a.kw - 1) {
    product.runs = a.kh;
    product.pixel = a.in * size;
    product.next = pitch * product.pixel;
    const int64_t words = ceil_div(a.kw * product.pixel, 4);
    product.chunks = unit == Unit::tiles ? ceil_div(words, 16) : 1;
    product.words = ceil_div(words, product.chunks);
    rows = kStripBytes / (product.pixel * pitch) - a.kh + 1;
    if (rows > ceil_div(a.batch * a.height, 16)) rows = ceil_div(a.batch * a.height, 16);  // work for many threads
    const int64_t least = ceil_div(512, pitch) < 4 ? 4 : ceil_div(512, pitch);
    rows = rows < least ? least : rows;
    rows = rows < a.height ? rows : a.height;
    strips = ceil_div(a.height, rows);
    rows = ceil_div(a.height, strips);
    strips = ceil_div(a.height, rows);
  }
  int64_t strip_height(int64_t strip) const {
    const int64_t left = a.height - strip * rows;
    return left < rows ? left : rows;
  }
  int64_t positions(int64_t strip) const { return (strip_height(strip) - 1) * pitch + a.width; }
  /// Products of sixteen positions look beyond the last one.
  int64_t surplus() const { return 32 * product.pixel + product.chunks * product.words * 4 + 64; }
  int64_t strip_bytes() const { return (rows + a.kh - 1) * product.next + surplus(); }
};

/// One image row with its border; row null: nothing else.
void fill_row(const Plan& p, const uint8_t* row, uint8_t* to) {
  const ConvInt8& a = p.a;
  const int64_t border = a.kw / 2 * a.in;
  if (p.size == 2) {
    uint16_t* wide = reinterpret_cast<uint16_t*>(to);
    for (int64_t i = 0; i < p.pitch * a.in; ++i) wide[i] = a.zero_point;
    for (int64_t i = 0; row && i < a.width * a.in; ++i) wide[border + i] = row[i];
    return;
  }
  if (!row) {
    std::memset(to, a.zero_point, size_t(p.pitch * a.in));
    return;
  }
  std::memset(to, a.zero_point, size_t(border));
  std::memcpy(to + border, row, size_t(a.width * a.in));
  std::memset(to + border + a.width * a.in, a.zero_point, size_t(border));
}

void fill_strip(const Plan& p, const uint8_t* image, int64_t first, int64_t height, uint8_t* to) {
  const ConvInt8& a = p.a;
  for (int64_t r = 0; r < height + a.kh - 1; ++r, to += p.product.next) {
    const int64_t y = first + r - a.kh / 2;
    fill_row(p, y < 0 || y >= a.height ? nullptr : image + y * a.width * a.in, to);
  }
  std::memset(to, 0, size_t(p.surplus()));
}

/// weights[tile][run][word][16], and the biases in the order of the columns.
void pack(const Plan& p, int64_t tiles, int64_t columns, int32_t* weights, int32_t* bias) {
  const ConvInt8& a = p.a;
  const int64_t words = p.product.chunks * p.product.words, filter = a.kh * a.kw * a.in;
  parallel_for(tiles, 1 + (1 << 17) / (16 * filter + 1), [&](int64_t i0, int64_t i1) {
    Scratch<int32_t> run(size_t(words * a.kh));  // of one filter
    std::memset(run.data(), 0, run.size() * 4);
    for (int64_t t = i0; t < i1; ++t) {
      int32_t* tile = weights + t * p.product.tile_words();
      if (t + 1 == tiles) std::memset(tile, 0, size_t(p.product.tile_words()) * 4);
      for (int64_t l = 0; l < 16; ++l) {
        const int64_t n = t * 16 + l, o = conv_int8_filter(a.out, a.scale, n);
        bias[n] = n < columns ? a.bias[o] : 0;
        if (n >= columns) continue;
        const int8_t* from = a.weight + o * filter;
        for (int64_t r = 0; r < a.kh; ++r) {
          int32_t* to = run.data() + r * words;
          if (p.size == 2) {
            int16_t* wide = reinterpret_cast<int16_t*>(to);
            for (int64_t i = 0; i < a.kw * a.in; ++i) wide[i] = from[r * a.kw * a.in + i];
          } else {
            std::memcpy(to, from + r * a.kw * a.in, size_t(a.kw * a.in));
          }
        }
        for (int64_t k = 0; k < words * a.kh; ++k) tile[k * 16 + l] = run[size_t(k)];
      }
    }
  });
}

/// Calls f(strip row, first pixel, first position, count) for the pixels among positions [m0, m0 + n) of a strip.
template <class F>
VK_INLINE void each_segment(const Plan& p, int64_t m0, int64_t n, F f) {
  for (int64_t m = m0; m < m0 + n;) {
    const int64_t y = m / p.pitch, x = m - y * p.pitch;
    const int64_t left = m0 + n - m, inside = p.a.width - x;
    if (inside > 0) f(y, x, m - m0, left < inside ? left : inside);
    m += p.pitch - x;
  }
}

}  // namespace

void conv_int8(const ConvInt8& a) {
  if (a.batch * a.height * a.width * a.out == 0) return;
  const Unit unit = find_unit(a.avoid);
  const Plan p(a, unit);
  const int64_t columns = a.out * a.scale * a.scale, tiles = ceil_div(columns, 16);
  const Epilogue epilogue(a, tiles);
  Scratch<int32_t> weights(size_t(tiles * p.product.tile_words())), bias(size_t(tiles * 16));
  pack(p, tiles, columns, weights.data(), bias.data());
#if defined(VK_INT8_UNITS)
  __builtin_cpu_init();
  const bool vectors = epilogue.scaled && __builtin_cpu_supports("avx512vbmi");
#endif
  parallel_for(a.batch * p.strips, 1, [&](int64_t i0, int64_t i1) {
    Scratch<uint8_t> strip(size_t(p.strip_bytes()));
    Scratch<int32_t> z(size_t((kBlock + 16) * kGroup));
    begin(unit, p.product);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / p.strips, first = i % p.strips * p.rows;
      fill_strip(p, a.x + b * a.height * a.width * a.in, first, p.strip_height(i % p.strips), strip.data());
      const int64_t positions = p.positions(i % p.strips);
      for (int64_t m0 = 0; m0 < positions; m0 += kBlock) {
        const int64_t n = positions - m0 < kBlock ? positions - m0 : kBlock;
        for (int64_t t = 0; t < tiles; t += 4) {
          const Group& g = epilogue.group(t / 4);
          multiply(unit, p.product, strip.data() + m0 * p.product.pixel, n, g.tiles,
                   weights.data() + t * p.product.tile_words(), bias.data() + t * 16, z.data());
          each_segment(p, m0, n, [&](int64_t y, int64_t x, int64_t at, int64_t count) {
            uint8_t* out = a.result + ((b * a.height + first + y) * a.scale * a.width + x) * epilogue.run;
#if defined(VK_INT8_UNITS)
            if (vectors) return epilogue.store_vectors(g, z.data() + at * kGroup, count, out);
#endif
            epilogue.store_portable(g, z.data() + at * kGroup, count, out);
          });
        }
      }
    }
    end(unit);
  });
}

}  // namespace vk::VK_ISA
