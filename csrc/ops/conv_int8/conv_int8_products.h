// The inner loops of conv_int8. A strip of pixels lies in memory with its borders, so that the kw pixels that one tap
// row of a position sees are one run of bytes, the next position's run starts one pixel further, and a strip of several
// image rows is one long sequence of positions (those on a border are computed and dropped).
//
//   z[m][n] = bias[n] + sum over runs r, k of strip[m pixel + r next + k] * weights[r][k][n]
//
// Three units do the sums: madd (pairs of 16-bit numbers; everywhere), dot (fours of bytes, AVX-512 VNNI) and tiles
// (AMX, 16 x 16 sums at once). Numbers come in words of 32 bits, weights in columns of 16: [tile][run][word][16]. What
// a run's last words see beyond its end meets weights of zero.
#pragma once
#include "core/vec.h"
#if defined(__AVX512F__) && defined(__linux__)
#define VK_INT8_UNITS 1
#include <sys/syscall.h>
#include <unistd.h>
#define VK_AMX __attribute__((target("amx-tile,amx-int8")))
#define VK_DOT __attribute__((target("avx512vnni")))
#endif

namespace vk::VK_ISA {
namespace {

enum class Unit : uint8_t { madd, dot, tiles };

inline Unit find_unit([[maybe_unused]] int avoid) {
#if defined(VK_INT8_UNITS)
  static const bool has_tiles = [] {
    unsigned a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    // The tiles' registers need a permission of the process (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    return (d >> 24 & 1) && (d >> 25 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
  }();
  if (has_tiles && avoid < 1) return Unit::tiles;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && avoid < 2) return Unit::dot;
#endif
  return Unit::madd;
}

constexpr int64_t kGroup = 64;  // columns whose sums are made together: up to four tiles
constexpr int64_t kBlock = 64;  // positions whose sums wait in the cache for their bytes

/// One product of a strip with `tiles` tiles of weights, at most four.
struct Product {
  int64_t runs, next;     // of a position; bytes from one to the next
  int64_t chunks, words;  // of a run: chunks of `words` words
  int64_t pixel;          // bytes from a position to the next
  int64_t tile_words() const { return runs * chunks * words * 16; }
};

#define VK_UNROLL _Pragma("GCC unroll 32")

#if defined(__AVX512F__)
template <int NV>
constexpr int kPositions = NV == 4   ? 6
                           : NV == 3 ? 8
                           : NV == 2 ? 12
                                     : 20;
#elif defined(__AVX2__) || defined(__aarch64__)
template <int NV>
constexpr int kPositions = 5;
#else
template <int NV>
constexpr int kPositions = 2;
#endif

VK_INLINE PartI load_part(const int32_t* from) {
  PartI v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

struct Madd {
  /// sum += the pairs of 16-bit numbers in x times those in w.
  static VK_INLINE void add(PartI& sum, const PartI& x, const PartI& w) {
#if defined(__AVX512BW__)
    sum = (PartI)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)x, (__m512i)w));
#elif defined(__AVX2__)
    sum = (PartI)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)x, (__m256i)w));
#elif defined(__SSE4_1__)
    sum = (PartI)_mm_add_epi32((__m128i)sum, _mm_madd_epi16((__m128i)x, (__m128i)w));
#else
    typedef uint32_t PartU __attribute__((vector_size(kPartLanes * 4)));  // these wrap
    sum = (PartI)((PartU)sum + (PartU)((x << 16 >> 16) * (w << 16 >> 16) + (x >> 16) * (w >> 16)));
#endif
  }
};

#if defined(VK_INT8_UNITS)
struct Dot {
  VK_DOT __attribute__((always_inline)) static inline void add(PartI& sum, const PartI& x, const PartI& w) {
    sum = (PartI)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w);
  }
};
#endif

/// MP positions against NV tiles. Parts of vectors stand alone here: in structs they would not stay in registers.
#define VK_POSITIONS(name, Add, attribute)                                                                            \
  template <int MP, int NV>                                                                                           \
  attribute inline void name##_some(const Product& p, const uint8_t* base, const int32_t* weights,                    \
                                    const int32_t* bias, int32_t* z) {                                                \
    constexpr int NP = NV * kParts;                                                                                   \
    PartI sum[MP][NP], w[NP];                                                                                         \
    VK_UNROLL for (int m = 0; m < MP; ++m) VK_UNROLL for (int v = 0; v < NP; ++v) sum[m][v] =                         \
        load_part(bias + v * kPartLanes);                                                                             \
    const int64_t words = p.chunks * p.words, tile = p.tile_words();                                                  \
    for (int64_t r = 0; r < p.runs; ++r, base += p.next)                                                              \
      for (int64_t k = 0; k < words; ++k, weights += 16) {                                                            \
        VK_UNROLL for (int v = 0; v < NP; ++v) w[v] =                                                                 \
            load_part(weights + v / kParts * tile + v % kParts * kPartLanes);                                         \
        VK_UNROLL for (int m = 0; m < MP; ++m) {                                                                      \
          int32_t word;                                                                                               \
          std::memcpy(&word, base + m * p.pixel + k * 4, 4);                                                          \
          const PartI x = PartI{} + word;                                                                             \
          VK_UNROLL for (int v = 0; v < NP; ++v) Add::add(sum[m][v], x, w[v]);                                        \
        }                                                                                                             \
      }                                                                                                               \
    VK_UNROLL for (int m = 0; m < MP; ++m) VK_UNROLL for (int v = 0; v < NP; ++v)                                     \
        std::memcpy(z + m * kGroup + v * kPartLanes, &sum[m][v], sizeof(PartI));                                      \
  }                                                                                                                   \
  template <int NV>                                                                                                   \
  attribute inline void name##_all(const Product& p, const uint8_t* base, int64_t n, const int32_t* weights,          \
                                   const int32_t* bias, int32_t* z) {                                                 \
    constexpr int MP = kPositions<NV>;                                                                                \
    int64_t m = 0;                                                                                                    \
    for (; m + MP <= n; m += MP) name##_some<MP, NV>(p, base + m * p.pixel, weights, bias, z + m * kGroup);           \
    if constexpr (MP > 4)                                                                                             \
      for (; m + 4 <= n; m += 4) name##_some<4, NV>(p, base + m * p.pixel, weights, bias, z + m * kGroup);            \
    for (; m < n; ++m) name##_some<1, NV>(p, base + m * p.pixel, weights, bias, z + m * kGroup);                      \
  }                                                                                                                   \
  inline void name##_product(const Product& p, const uint8_t* base, int64_t n, int64_t tiles, const int32_t* weights, \
                             const int32_t* bias, int32_t* z) {                                                       \
    if constexpr (kPartLanes == 16) {                                                                                 \
      switch (tiles) {                                                                                                \
        case 4: return name##_all<4>(p, base, n, weights, bias, z);                                                   \
        case 3: return name##_all<3>(p, base, n, weights, bias, z);                                                   \
        case 2: return name##_all<2>(p, base, n, weights, bias, z);                                                   \
      }                                                                                                               \
    }                                                                                                                 \
    for (int64_t t = 0; t < tiles; ++t)                                                                               \
      name##_all<1>(p, base, n, weights + t * p.tile_words(), bias + t * 16, z + t * 16);                             \
  }

VK_POSITIONS(madd, Madd, )
#if defined(VK_INT8_UNITS)
VK_POSITIONS(dot, Dot, VK_DOT)

/// Tiles 0..3 hold sums of 16 x 16, 4 and 5 the left factor (positions x words), 6 and 7 the right (words x columns).
VK_AMX inline void tiles_begin(int64_t words) {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = uint8_t(t == 4 || t == 5 ? 4 * words : 64);
    config[48 + t] = uint8_t(t < 6 ? 16 : words);
  }
  __asm__ volatile("" : : "r"(config) : "memory");  // gcc's intrinsic tells of the first eight bytes only
  _tile_loadconfig(config);
}
VK_AMX inline void tiles_end() { _tile_release(); }

template <int M, int N>
VK_AMX inline void tiles_some(const Product& p, const uint8_t* base, const int32_t* weights, const int32_t* bias,
                              int32_t* z) {
  _tile_loadd(0, bias, 0);
  if constexpr (N > 1) _tile_loadd(1, bias + 16, 0);
  if constexpr (M > 1) _tile_loadd(2, bias, 0);
  if constexpr (M > 1 && N > 1) _tile_loadd(3, bias + 16, 0);
  const int64_t piece = p.words * 16, other = p.tile_words();
  for (int64_t r = 0; r < p.runs; ++r, base += p.next)
    for (int64_t c = 0; c < p.chunks; ++c, weights += piece) {
      const uint8_t* q = base + c * p.words * 4;
      _tile_loadd(4, q, p.pixel);
      _tile_loadd(6, weights, 64);
      _tile_dpbusd(0, 4, 6);
      if constexpr (N > 1) {
        _tile_loadd(7, weights + other, 64);
        _tile_dpbusd(1, 4, 7);
      }
      if constexpr (M > 1) {
        _tile_loadd(5, q + 16 * p.pixel, p.pixel);
        _tile_dpbusd(2, 5, 6);
        if constexpr (N > 1) _tile_dpbusd(3, 5, 7);
      }
    }
  _tile_stored(0, z, kGroup * 4);
  if constexpr (N > 1) _tile_stored(1, z + 16, kGroup * 4);
  if constexpr (M > 1) _tile_stored(2, z + 16 * kGroup, kGroup * 4);
  if constexpr (M > 1 && N > 1) _tile_stored(3, z + 16 * kGroup + 16, kGroup * 4);
}

/// Writes whole blocks of 16 positions, whatever n is.
template <int N>
VK_AMX inline void tiles_all(const Product& p, const uint8_t* base, int64_t n, const int32_t* weights,
                             const int32_t* bias, int32_t* z) {
  int64_t m = 0;
  for (; m + 16 < n; m += 32) tiles_some<2, N>(p, base + m * p.pixel, weights, bias, z + m * kGroup);
  if (m < n) tiles_some<1, N>(p, base + m * p.pixel, weights, bias, z + m * kGroup);
}

VK_AMX inline void tiles_product(const Product& p, const uint8_t* base, int64_t n, int64_t tiles,
                                 const int32_t* weights, const int32_t* bias, int32_t* z) {
  int64_t t = 0;
  for (; t + 2 <= tiles; t += 2) tiles_all<2>(p, base, n, weights + t * p.tile_words(), bias + t * 16, z + t * 16);
  if (t < tiles) tiles_all<1>(p, base, n, weights + t * p.tile_words(), bias + t * 16, z + t * 16);
}
#endif
#undef VK_POSITIONS

void multiply([[maybe_unused]] Unit unit, const Product& p, const uint8_t* base, int64_t n, int64_t tiles,
              const int32_t* weights, const int32_t* bias, int32_t* z) {
#if defined(VK_INT8_UNITS)
  if (unit == Unit::tiles) return tiles_product(p, base, n, tiles, weights, bias, z);
  if (unit == Unit::dot) return dot_product(p, base, n, tiles, weights, bias, z);
#endif
  madd_product(p, base, n, tiles, weights, bias, z);
}
void begin([[maybe_unused]] Unit unit, [[maybe_unused]] const Product& p) {
#if defined(VK_INT8_UNITS)
  if (unit == Unit::tiles) tiles_begin(p.words);
#endif
}
void end([[maybe_unused]] Unit unit) {
#if defined(VK_INT8_UNITS)
  if (unit == Unit::tiles) tiles_end();
#endif
}

}  // namespace
}  // namespace vk::VK_ISA
