// From sums to bytes: requantisation, the table, and where the bytes of a position go.
#pragma once
#include "core/scratch.h"
#include "ops/conv_int8/conv_int8.h"
#include "ops/conv_int8/conv_int8_products.h"

namespace vk::VK_ISA {
namespace {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// One piece of what a vector of 64 bytes holds: `length` bytes of each of its positions, for row s y + dy.
struct Piece {
  uint8_t pick[64];        // which bytes of the vector they are, position by position
  int64_t dy, at, length;  // at: where in s C
};

/// Columns [first, first + 64) of the output, or fewer: sums of up to four tiles, of `positions` positions in a vector.
struct Group {
  int64_t tile, tiles, positions, piece, pieces;
};

/// What is the same for all pixels. Arrays are in the order of the columns, padded to whole tiles.
class Epilogue {
 public:
  Epilogue(const ConvInt8& conv, int64_t column_tiles)
      : a(conv),
        run(conv.scale * conv.out),
        columns(run * conv.scale),
        row(conv.width * run),
        groups_(size_t(ceil_div(column_tiles, 4))),
        pieces_(size_t(ceil_div(column_tiles, 4) + conv.scale)),
        multiplier_(size_t(column_tiles * 16)),
        shift_(size_t(column_tiles * 16)),
        scaled_(size_t(column_tiles * 16)) {
    scaled = true;
    for (int64_t n = 0; n < column_tiles * 16; ++n) {
      const int64_t o = n < columns ? conv_int8_filter(a.out, a.scale, n) : -1;
      const int32_t m = o < 0 ? 0 : a.multiplier[o], s = o < 0 ? 1 : a.shift[o] & 31;
      const int64_t high = int64_t(m) << (32 - s);
      multiplier_[size_t(n)] = m, shift_[size_t(n)] = s, scaled_[size_t(n)] = int32_t(high);
      scaled = scaled && m >= 0 && high <= INT32_MAX;
    }
    int64_t piece = 0;
    for (int64_t t = 0; t < column_tiles; t += 4) {
      const int64_t tiles = column_tiles - t < 4 ? column_tiles - t : 4;
      Group& g = groups_[size_t(t / 4)];
      g = {t, tiles, column_tiles > 2 ? 1 : 4 / tiles, piece, 0};
      const int64_t end = t * 16 + tiles * 16 < columns ? t * 16 + tiles * 16 : columns;
      for (int64_t n = t * 16; n < end; ++piece, ++g.pieces) {
        const int64_t dy = n / run, stop = (dy + 1) * run < end ? (dy + 1) * run : end, length = stop - n;
        Piece& p = pieces_[size_t(piece)];
        p.dy = dy, p.at = n - dy * run, p.length = length;
        for (int64_t i = 0; i < 64; ++i) {
          const int64_t position = i / length, c = n - t * 16 + i % length + position * tiles * 16;
          p.pick[i] = position < g.positions ? uint8_t(c % 16 / 4 * 16 + c / 16 * 4 + c % 4) : 0;
        }
        n = stop;
      }
    }
  }

  const Group& group(int64_t g) const { return groups_[size_t(g)]; }

  /// Sums of `count` neighbouring pixels; `out` is where the first one's row dy = 0 begins.
  void store_portable(const Group& g, const int32_t* z, int64_t count, uint8_t* out) const {
    const int64_t first = g.tile * 16;
    for (int64_t m = 0; m < count; ++m, z += kGroup, out += run)
      for (int64_t i = 0; i < g.pieces; ++i) {
        const Piece& p = pieces_[size_t(g.piece + i)];
        const int64_t n = p.dy * run + p.at;
        const int32_t *sum = z + n - first, *times = multiplier_.data() + n, *shift = shift_.data() + n;
        uint8_t* to = out + p.dy * row + p.at;
        for (int64_t j = 0; j < p.length; ++j) {
          const int64_t index = (int64_t(sum[j]) * times[j] + (int64_t(1) << shift[j] >> 1)) >> shift[j];
          to[j] = a.table[index < 0 ? 0 : index > 255 ? 255 : index];
        }
      }
  }

#if defined(VK_INT8_UNITS)
#define VK_BYTES __attribute__((target("avx512vbmi")))
  /// With (multiplier << (32 - shift)) below 2^31, the index is the upper half of a 64-bit sum, and packing holds it
  /// within a byte.
  VK_BYTES void store_vectors(const Group& g, const int32_t* z, int64_t count, uint8_t* out) const {
    if (g.positions == 4) return store_as<1>(g, z, count, out);
    if (g.positions == 2) return store_as<2>(g, z, count, out);
    store_as<4>(g, z, count, out);
  }
#endif

 private:
#if defined(VK_INT8_UNITS)
  template <int kTiles>
  VK_BYTES __attribute__((always_inline)) void store_as(const Group& g, const int32_t* z, int64_t count,
                                                        uint8_t* out) const {
    constexpr int kTogether = 4 / kTiles;
    const __m512i half = _mm512_set1_epi64(int64_t(1) << 31);
    __m512i even[kTiles], odd[kTiles], table[4];
    VK_UNROLL for (int t = 0; t < kTiles; ++t) {
      even[t] = _mm512_loadu_si512(scaled_.data() + (g.tile + (t < g.tiles ? t : 0)) * 16);
      odd[t] = _mm512_maskz_srli_epi64(0xff, even[t], 32);
    }
    VK_UNROLL for (int i = 0; i < 4; ++i) table[i] = _mm512_loadu_si512(a.table + i * 64);
    for (int64_t m = 0; m < count; m += kTogether) {
      __m512i index[4];
      VK_UNROLL for (int i = 0; i < 4; ++i) {
        const __m512i sum = _mm512_loadu_si512(z + (m + i / kTiles) * kGroup + i % kTiles * 16);
        const __m512i low = _mm512_maskz_mul_epi32(0xff, sum, even[i % kTiles]) + half;
        const __m512i high =
            _mm512_maskz_mul_epi32(0xff, _mm512_maskz_srli_epi64(0xff, sum, 32), odd[i % kTiles]) + half;
        index[i] = _mm512_mask_shuffle_epi32(high, 0x5555, low, _MM_PERM_DDBB);
      }
      constexpr __mmask64 kAll = ~__mmask64(0);
      const __m512i bytes = _mm512_maskz_packus_epi16(kAll, _mm512_maskz_packs_epi32(kAll >> 32, index[0], index[1]),
                                                      _mm512_maskz_packs_epi32(kAll >> 32, index[2], index[3]));
      const __m512i near = _mm512_maskz_permutex2var_epi8(kAll, table[0], bytes, table[1]);
      const __m512i far = _mm512_maskz_permutex2var_epi8(kAll, table[2], bytes, table[3]);
      const __m512i values = _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), near, far);
      const int64_t here = kTogether == 1 || count - m >= kTogether ? kTogether : count - m;
      for (int64_t i = 0; i < g.pieces; ++i) {
        const Piece& p = pieces_[size_t(g.piece + i)];
        const __mmask64 mask = kAll >> (64 - here * p.length);
        _mm512_mask_storeu_epi8(out + m * run + p.dy * row + p.at, mask,
                                _mm512_maskz_permutexvar_epi8(kAll, _mm512_loadu_si512(p.pick), values));
      }
    }
  }
#endif

 public:
  const ConvInt8& a;
  const int64_t run, columns, row;  // bytes of a pixel in one row; of a pixel; of a row
  bool scaled;                      // store_vectors may be used, where the machine can

 private:
  Scratch<Group> groups_;
  Scratch<Piece> pieces_;
  Scratch<int32_t> multiplier_, shift_, scaled_;
};

}  // namespace
}  // namespace vk::VK_ISA
