// The inner loops of nearest: similarity tiles of which only minima are kept, and the measured value of a few codes.
//
// Points lie in lanes: a block of 16 points is packed as [d][16] floats, or as [d / 2][16] pairs of bf16. A tile takes
// some codes against some such blocks and leaves, for every group of codes and every point, the smallest
//
//   score = bias[code] + sum over d of point[d] * code[d]          (points packed times -2 for l2, times -1 otherwise)
//
// in minima[block][group][16].
#pragma once
#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "core/vec.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace vk::VK_ISA {
namespace {

constexpr int kLanes = 16;

VK_INLINE V16 load_some(const float* from, int64_t n) {
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), from);
  return v;
#else
  if (n == 16) return load(from);
  alignas(64) float lane[16] = {};
  for (int64_t i = 0; i < n; ++i) lane[i] = from[i];
  return load(lane);
#endif
}

/// out[i] = the sum of the lanes of v[i], all in one order.
VK_INLINE void sum4(const V16* v, float* out) {
#if defined(__AVX2__)
  __m256 h[4];
  for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
    const PartF x = v[i].p[0];
    h[i] = (__m256)(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
#else
    h[i] = (__m256)(v[i].p[0] + v[i].p[1]);
#endif
  }
  const __m256 q = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1)));
#else
  for (int i = 0; i < 4; ++i) {
    float s[16];
    store(s, v[i]);
    for (int k = 0; k < 8; ++k) s[k] += s[k + 8];
    out[i] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }
#endif
}

/// The value of one point with four codes, by which results are defined: |x - c|^2, or <x, c>.
template <bool kDistance>
__attribute__((noinline)) void measure(const float* x, const float* const* codes, int64_t dim, float* out) {
  V16 sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const auto step = [&](const V16& a, int i, const V16& b) {
    if constexpr (kDistance) {
      const V16 d = a - b;
      sum[i] = madd(d, d, sum[i]);
    } else {
      sum[i] = madd(a, b, sum[i]);
    }
  };
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    const V16 a = load(x + d);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) step(a, i, load(codes[i] + d));
  }
  if (d < dim) {
    const V16 a = load_some(x + d, dim - d);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) step(a, i, load_some(codes[i] + d, dim - d));
  }
  sum4(sum, out);
}

/// <x, x>, the same number as `measure` has for it.
inline float measure_self(const float* x, int64_t dim) {
  V16 sum = 0.0f;
  for (int64_t d = 0; d < dim; d += 16) {
    const V16 a = load_some(x + d, dim - d < 16 ? dim - d : 16);
    sum = madd(a, a, sum);
  }
  const V16 same[4] = {sum, sum, sum, sum};
  float out[4];
  sum4(same, out);
  return out[0];
}

/// Lanes where !(a > limit), NaN included.
VK_INLINE uint32_t not_above(const float* a, const float* limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_load_ps(a), _mm512_load_ps(limit), _CMP_NGT_UQ);
#elif defined(__AVX2__)
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(a), _mm256_load_ps(limit), _CMP_NGT_UQ));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(a + 8), _mm256_load_ps(limit + 8), _CMP_NGT_UQ));
  return uint32_t(low | high << 8);
#else
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= uint32_t(!(a[i] > limit[i])) << i;
  return mask;
#endif
}

// ---- float32 tiles: kTileCodes codes against kTileParts vectors of points, groups of four codes

#if defined(__AVX512F__)
constexpr int kTileCodes = 12, kTileParts = 2;  // 24 accumulators
#elif defined(__AVX2__)
constexpr int kTileCodes = 4, kTileParts = 3;  // 16 registers, and products that wait for no sum
#elif defined(__SSE4_1__)
constexpr int kTileCodes = 4, kTileParts = 2;
#else
constexpr int kTileCodes = 4, kTileParts = 4;
#endif
constexpr int kGroup = 4;

VK_INLINE PartF load_part(const float* from) {
  PartF v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
VK_INLINE void store_part(float* to, PartF v) { __builtin_memcpy(to, &v, sizeof v); }
VK_INLINE PartF min_part(PartF a, PartF b) { return a < b ? a : b; }
VK_INLINE PartF min4(const PartF* a) { return min_part(min_part(a[0], a[1]), min_part(a[2], a[3])); }

/// points[p]: where part p of the packed points begins; codes: kTileCodes rows; minima[p]: of the first group.
template <int kWidth>
inline void tile_f32(const float* const* points, const float* codes, int64_t code_stride, const float* bias,
                     int64_t dim, float* const* minima) {
  PartF sum[kTileCodes][kWidth];
#pragma GCC unroll 12
  for (int i = 0; i < kTileCodes; ++i)
#pragma GCC unroll 4
    for (int p = 0; p < kWidth; ++p) sum[i][p] = PartF{} + bias[i];
  for (int64_t d = 0; d < dim; ++d) {
    PartF x[kWidth];
#pragma GCC unroll 4
    for (int p = 0; p < kWidth; ++p) x[p] = load_part(points[p] + d * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kTileCodes; ++i) {
      const float c = codes[i * code_stride + d];  // `PartF{} + c` would add the zeros
#pragma GCC unroll 4
      for (int p = 0; p < kWidth; ++p) sum[i][p] = x[p] * c + sum[i][p];
    }
  }
#pragma GCC unroll 3
  for (int g = 0; g < kTileCodes / kGroup; ++g)
#pragma GCC unroll 4
    for (int p = 0; p < kWidth; ++p) {
      PartF least = sum[g * kGroup][p];
#pragma GCC unroll 3
      for (int i = 1; i < kGroup; ++i) least = min_part(least, sum[g * kGroup + i][p]);
      store_part(minima[p] + g * kLanes, least);
    }
}

/// All parts of `blocks` blocks (an even number on AVX-512) against one tile of codes.
inline void tiles_f32(const float* packed, int64_t blocks, const float* codes, int64_t code_stride, const float* bias,
                      int64_t dim, float* minima, int64_t block_minima) {
  const float* points[kTileParts];
  float* out[kTileParts];
  int parts = 0;
  for (int64_t lane = 0; lane < blocks * kLanes; lane += kPartLanes) {
    points[parts] = packed + lane / kLanes * dim * kLanes + lane % kLanes;
    out[parts] = minima + lane / kLanes * block_minima + lane % kLanes;
    if (++parts < kTileParts) continue;
    tile_f32<kTileParts>(points, codes, code_stride, bias, dim, out);
    parts = 0;
  }
  if constexpr (kTileParts == 3) {
    if (parts == 2) tile_f32<2>(points, codes, code_stride, bias, dim, out);
    if (parts == 1) tile_f32<1>(points, codes, code_stride, bias, dim, out);
  }
}

// ---- bf16 tiles, where the processor has such products

#if defined(__AVX512F__)
#define VK_NEAREST_SCREENS 1

/// Rounds to bf16 in the upper half of each lane; what is too small for a bf16 product becomes zero.
VK_INLINE V16 round_bf16(const V16& x) {
  const PartI u = (PartI)x.p[0], kept = (u + ((u >> 16) & 1) + 0x7fff) & int32_t(0xffff0000u);
  V16 r;
  r.p[0] = (PartF)((kept & 0x7f800000) != 0 ? kept : PartI{});
  return r;
}
VK_INLINE void store_bf16(uint16_t* to, const V16& rounded) {
  typedef uint16_t Half16 __attribute__((vector_size(32)));
  const Half16 high = __builtin_convertvector((PartI)rounded.p[0] >> 16, Half16);
  __builtin_memcpy(to, &high, sizeof high);
}

/// r[i] lane j <-> r[j] lane i: pairs of rows, pairs of pairs, then quarters of the registers.
VK_INLINE void transpose16(PartI* r) {
  PartI t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const PartI a = t[i + h], b = t[i + 2 + h];
      r[i + 2 * h] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
      r[i + 2 * h + 1] = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // r[i + 4 q]: columns i, i + 4, i + 8, i + 12 of rows 4 q .. 4 q + 3
    const auto even = [](PartI a, PartI b) {
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    };
    const auto odd = [](PartI a, PartI b) {
      return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    };
    const PartI a = even(r[i], r[i + 4]), b = odd(r[i], r[i + 4]);
    const PartI c = even(r[i + 8], r[i + 12]), d = odd(r[i + 8], r[i + 12]);
    t[i] = even(a, c);
    t[i + 8] = odd(a, c);
    t[i + 4] = even(b, d);
    t[i + 12] = odd(b, d);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

/// As tiles_f32, for points as pairs and codes as rows of bf16, `pairs` words each.
__attribute__((target("avx512bf16"))) inline void tiles_dot(const uint32_t* packed, int64_t blocks,
                                                            const uint32_t* codes, int64_t pairs, const float* bias,
                                                            float* minima, int64_t block_minima) {
  for (int64_t b = 0; b < blocks; b += 2) {
    const uint32_t *x0 = packed + b * pairs * kLanes, *x1 = x0 + pairs * kLanes;
    PartF s0[12], s1[12];
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) s0[i] = s1[i] = PartF{} + bias[i];
    for (int64_t d = 0; d < pairs; ++d) {
      const __m512bh a0 = (__m512bh)_mm512_load_si512(x0 + d * kLanes);
      const __m512bh a1 = (__m512bh)_mm512_load_si512(x1 + d * kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < 12; ++i) {
        const __m512bh c = (__m512bh)_mm512_set1_epi32(int(codes[i * pairs + d]));
        s0[i] = (PartF)_mm512_dpbf16_ps((__m512)s0[i], a0, c);
        s1[i] = (PartF)_mm512_dpbf16_ps((__m512)s1[i], a1, c);
      }
    }
    float *m0 = minima + b * block_minima, *m1 = m0 + block_minima;
#pragma GCC unroll 3
    for (int g = 0; g < 12; g += 4) {
      store_part(m0 + g / 4 * kLanes, min4(s0 + g));
      store_part(m1 + g / 4 * kLanes, min4(s1 + g));
    }
  }
}

#if defined(__linux__)
#define VK_NEAREST_AMX 1
#define VK_AMX __attribute__((target("amx-tile,amx-bf16")))

/// Eight tiles of 16 rows of 64 bytes.
VK_AMX inline void amx_begin() {
  alignas(64) uint8_t config[64] = {1};
  for (int t = 0; t < 8; ++t) {
    config[16 + 2 * t] = 64;
    config[48 + t] = 16;
  }
  __asm__ volatile("" : : "r"(config) : "memory");  // gcc's intrinsic tells of the first eight bytes only
  _tile_loadconfig(config);
}
VK_AMX inline void amx_end() { _tile_release(); }

/// 32 codes against pairs of blocks: four 16 x 16 products at once. kWide: groups of 16 codes, else of four. Where
/// `products` is given, it keeps all of them: [blocks][per block] of which the first 32 x 16 are these codes'.
template <bool kWide>
VK_AMX inline void tiles_amx(const uint32_t* packed, int64_t blocks, const uint32_t* codes, int64_t pairs,
                             const float* bias, float* minima, int64_t block_minima, float* products,
                             int64_t block_products) {
  alignas(64) float passing[4][16 * kLanes];
  for (int64_t b = 0; b < blocks; b += 2) {
    const uint32_t *x0 = packed + b * pairs * kLanes, *x1 = x0 + pairs * kLanes;
    float* product[4];
    for (int t = 0; t < 4; ++t)
      product[t] = products ? products + (b + t % 2) * block_products + t / 2 * 16 * kLanes : passing[t];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < pairs; d += 16) {
      _tile_loadd(4, codes + d, size_t(pairs) * 4);
      _tile_loadd(6, x0 + d * kLanes, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, x1 + d * kLanes, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, codes + 16 * pairs + d, size_t(pairs) * 4);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, product[0], 64);
    _tile_stored(1, product[1], 64);
    _tile_stored(2, product[2], 64);
    _tile_stored(3, product[3], 64);
#pragma GCC unroll 1
    for (int t = 0; t < 4; ++t) {
      const float* offset = bias + t / 2 * 16;
      float* out = minima + (b + t % 2) * block_minima + t / 2 * (kWide ? 1 : 4) * kLanes;
      PartF least[4];
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g) {
        PartF row[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) row[i] = load_part(product[t] + (4 * g + i) * kLanes) + offset[4 * g + i];
        least[g] = min4(row);
      }
      if constexpr (kWide) {
        store_part(out, min4(least));
      } else {
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) store_part(out + g * kLanes, least[g]);
      }
    }
  }
}
#endif
#endif

/// How this machine can screen.
enum class Screens : uint8_t { none, dot, amx };

inline Screens find_screens() {
#if defined(VK_NEAREST_SCREENS)
#if defined(VK_NEAREST_AMX)
  unsigned a = 7, b = 0, c = 0, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  // The tiles' registers need a permission of the process (ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
  if ((d >> 22 & 1) && (d >> 24 & 1) && syscall(SYS_arch_prctl, 0x1023, 18) == 0) return Screens::amx;
#endif
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bf16")) return Screens::dot;
#endif
  return Screens::none;
}

}  // namespace
}  // namespace vk::VK_ISA
