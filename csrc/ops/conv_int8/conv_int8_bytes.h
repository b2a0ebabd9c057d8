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
    for (int i = 0; i < 256; ++i) differences_[i] = a.table[i] ^ (i % 128 < 112 ? a.table[i + 16] : 0);
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
#elif defined(__AVX2__)
  /// Likewise, 32 bytes at a time: two tiles of a position, or the only tile of two positions.
  void store_vectors(const Group& g, const int32_t* z, int64_t count, uint8_t* out) const {
    const int64_t first = g.tile * 16, together = g.tiles == 1 ? 2 : 1;
    const int32_t* times = scaled_.data() + first;
    uint8_t values[64];
    for (int64_t m = 0; m < count; m += together, z += together * kGroup) {
      if (together == 2) {
        look_up(index16(z, times), index16(z + (m + 1 < count ? kGroup : 0), times), values);
      } else {
        for (int64_t t = 0; t < g.tiles; t += 2) {
          const int64_t next = (t + 1 < g.tiles ? t + 1 : t) * 16;
          look_up(index16(z + t * 16, times + t * 16), index16(z + next, times + next), values + t * 16);
        }
      }
      for (int64_t k = m; k < m + together && k < count; ++k)
        for (int64_t i = 0; i < g.pieces; ++i) {
          const Piece& p = pieces_[size_t(g.piece + i)];
          const int64_t at = p.dy * run + p.at - first + (k - m) * 16;
          std::memcpy(out + k * run + p.dy * row + p.at, values + at, size_t(p.length));
        }
    }
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
#elif defined(__AVX2__)
  /// The indices of sixteen sums, as bytes.
  static VK_INLINE __m128i index16(const int32_t* sums, const int32_t* times) {
    const __m256i half = _mm256_set1_epi64x(int64_t(1) << 31);
    __m256i index[2];
    VK_UNROLL for (int i = 0; i < 2; ++i) {
      const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + i * 8));
      const __m256i time = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(times + i * 8));
      const __m256i low = _mm256_add_epi64(_mm256_mul_epi32(sum, time), half);
      const __m256i odd = _mm256_mul_epi32(_mm256_srli_epi64(sum, 32), _mm256_srli_epi64(time, 32));
      index[i] = _mm256_blend_epi32(_mm256_srli_epi64(low, 32), _mm256_add_epi64(odd, half), 0xaa);
    }
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(index[0], index[1]), 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }

  /// A shuffle gives 0 where the top bit is set. Piece k of a half table answers for all bytes below its end, and holds
  /// what it differs by from piece k + 1: of the answers that meet, the first one's own entry remains.
  VK_INLINE void look_up(__m128i low, __m128i high, uint8_t* values) const {
    const __m256i index = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    __m256i value = _mm256_setzero_si256();
    VK_UNROLL for (int h = 0; h < 2; ++h) {
      const __m256i byte = h ? _mm256_xor_si256(index, _mm256_set1_epi8(-128)) : index;
      VK_UNROLL for (int k = 0; k < 8; ++k) {
        const __m256i piece = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(differences_ + h * 128 + k * 16)));
        const __m256i place = _mm256_adds_epu8(byte, _mm256_set1_epi8(char(0x70 - 16 * k)));
        value = _mm256_xor_si256(value, _mm256_shuffle_epi8(piece, place));
      }
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), value);
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
  [[maybe_unused]] alignas(16) uint8_t differences_[256];  // of table entries sixteen apart, within each half
};

}  // namespace
}  // namespace vk::VK_ISA
