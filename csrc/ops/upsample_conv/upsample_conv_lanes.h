// Sixteen numbers at a time: loads and stores of the storage types, and the activations with their slopes.
#pragma once
#include <type_traits>

#include "core/half.h"
#include "core/vec.h"
#include "ops/upsample_conv/upsample_conv.h"

namespace vk::VK_ISA {
namespace {

typedef uint16_t PartH __attribute__((vector_size(kPartLanes * 2)));

VK_INLINE V16 load16(const float* p) { return load(p); }
VK_INLINE V16 load16(const bf16* p) {
  V16 v;
  VK_EACH_PART {
    PartH h;
    std::memcpy(&h, p + i * kPartLanes, sizeof h);
    v.p[i] = (PartF)(__builtin_convertvector(h, PartI) << 16);
  }
  return v;
}
VK_INLINE V16 load16(const f16* p) {
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return v;
#elif defined(__F16C__) && defined(__AVX2__)
  V16 v;
  VK_EACH_PART v.p[i] = (PartF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * 8)));
  return v;
#else
  float lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = to_float(p[i]);
  return load(lane);
#endif
}

VK_INLINE void store16(float* p, const V16& v) { store(p, v); }
VK_INLINE void store16(bf16* p, const V16& v) {
  VK_EACH_PART {
    const PartI u = (PartI)v.p[i], rounded = u + ((u >> 16) & 1) + 0x7fff;
    const PartH h = __builtin_convertvector((v.p[i] == v.p[i] ? rounded : u | 0x400000) >> 16, PartH);
    std::memcpy(p + i * kPartLanes, &h, sizeof h);
  }
}
VK_INLINE void store16(f16* p, const V16& v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, (__m512)v.p[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__) && defined(__AVX2__)
  VK_EACH_PART _mm_storeu_si128(reinterpret_cast<__m128i*>(p + i * 8),
                                _mm256_cvtps_ph((__m256)v.p[i], _MM_FROUND_TO_NEAREST_INT));
#else
  float lane[16];
  store(lane, v);
  for (int i = 0; i < 16; ++i) p[i] = from_float<f16>(lane[i]);
#endif
}
template <class T>
VK_INLINE void store_some(T* p, const V16& v, int64_t n) {
  T lane[16];
  store16(lane, v);
  std::memcpy(p, lane, size_t(n) * sizeof(T));
}
template <class T>
VK_INLINE V16 load_some(const T* p, int64_t n) {
  T lane[16] = {};
  std::memcpy(lane, p, size_t(n) * sizeof(T));
  return load16(lane);
}

#if defined(__AVX512F__) && defined(__linux__)
#define VK_UPCONV_BF16 1
#define VK_DOT __attribute__((target("avx512bf16")))
/// Rounds as store16 does, by the instruction that comes with the bf16 products.
template <class T>
__attribute__((target("avx512bf16"), always_inline)) inline void store16_by_hardware(T* p, const V16& v) {
  if constexpr (std::is_same_v<T, bf16>)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_maskz_cvtneps_pbh(0xffff, (__m512)v.p[0]));
  else
    store16(p, v);
}
#endif

#if defined(__AVX512F__)
/// Lanes with bit D of their number change places with rows that have it; all four D make a transposition.
template <int D, int kRows>
VK_INLINE void swap_bit(V16* r) {
  PartI low, high;
#pragma GCC unroll 16
  for (int lane = 0; lane < 16; ++lane) {
    low[lane] = lane & D ? lane + 16 - D : lane;
    high[lane] = lane & D ? lane + 16 : lane + D;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
    if (!(i & D)) {
      const __m512 a = (__m512)r[i].p[0], b = (__m512)r[i + D].p[0];
      r[i].p[0] = (PartF)_mm512_permutex2var_ps(a, (__m512i)low, b);
      r[i + D].p[0] = (PartF)_mm512_permutex2var_ps(a, (__m512i)high, b);
    }
}
#endif
/// r[i] lane j <-> r[j] lane i.
VK_INLINE void transpose16(V16* r) {
#if defined(__AVX512F__)
  swap_bit<8, 16>(r);
  swap_bit<4, 16>(r);
  swap_bit<2, 16>(r);
  swap_bit<1, 16>(r);
#else
  float lane[16][16];
  for (int i = 0; i < 16; ++i) store(lane[i], r[i]);
  for (int i = 0; i < 16; ++i) {
    float column[16];
    for (int j = 0; j < 16; ++j) column[j] = lane[j][i];
    r[i] = load(column);
  }
#endif
}

/// Words of sixteen places, `step` words apart -> r[w] = word w of all places, for w below kWords (4, 8 or 16).
template <int kWords>
VK_INLINE void gather_words(const float* from, int64_t step, V16* r) {
#if defined(__AVX512F__)
  // Row i holds the first words of places i, i + kWords, ...: a transposition within groups of kWords lanes is enough.
  if constexpr (kWords == 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(from + i * step));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(from + (i + 4) * step), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(from + (i + 8) * step), 2);
      r[i].p[0] = (PartF)_mm512_insertf32x4(v, _mm_loadu_ps(from + (i + 12) * step), 3);
    }
  } else if constexpr (kWords == 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i)
      r[i].p[0] = (PartF)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from + i * step)),
                                            _mm256_loadu_ps(from + (i + 8) * step), 1);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = load(from + i * step);
  }
  if constexpr (kWords > 8) swap_bit<8, kWords>(r);
  if constexpr (kWords > 4) swap_bit<4, kWords>(r);
  swap_bit<2, kWords>(r);
  swap_bit<1, kWords>(r);
#else
  for (int w = 0; w < kWords; ++w) {
    float word[16];
    for (int i = 0; i < 16; ++i) word[i] = from[i * step + w];
    r[w] = load(word);
  }
#endif
}

VK_INLINE V16 absolute(V16 x) {
  VK_EACH_PART x.p[i] = (PartF)((PartI)x.p[i] & 0x7fffffff);
  return x;
}

/// kFine: to float32's rounding, else to bfloat16's. Not-a-number passes through.
template <Activation kActivation, bool kFine>
struct Activate;

template <bool kFine>
struct Activate<Activation::none, kFine> {
  static VK_INLINE V16 value(const V16& z) { return z; }
  static VK_INLINE void both(const V16& z, V16& value, V16& slope) {
    value = z;
    slope = V16(1.0f);
  }
};

template <bool kFine>
struct Activate<Activation::relu, kFine> {
  static VK_INLINE V16 value(const V16& z) { return max(V16(0.0f), z); }  // in this order a NaN stays
  static VK_INLINE void both(const V16& z, V16& v, V16& slope) {
    v = value(z);
    VK_EACH_PART slope.p[i] = z.p[i] > 0 ? spread(1.0f) : PartF{};
  }
};

// With a = |z|: the normal distribution's tail is exp(-a^2 / 2) q(t), t = 1 / (1 + 0.3 a), q fitted for small relative
// error (4e-7 with eight terms, 3e-4 with four); gelu = max(z, 0) - a tail; slope = phi + z exp(-z^2 / 2) / sqrt(2 pi).
template <bool kFine>
struct Activate<Activation::gelu, kFine> {
  /// 2^x to 1e-4 relative.
  static VK_INLINE V16 coarse_exp2(const V16& x) {
#if defined(__AVX512F__)
    V16 n;
    n.p[0] = (PartF)_mm512_maskz_roundscale_ps(0xffff, (__m512)x.p[0], 0);
    const V16 f = x - n;
    V16 p = madd(f, V16(0.0551716948f), V16(0.242611373f));
    p = madd(p, f, V16(0.693261002f));
    p = madd(p, f, V16(0.999928059f));
    p.p[0] = (PartF)_mm512_maskz_scalef_ps(0xffff, (__m512)p.p[0], (__m512)n.p[0]);
    return p;
#else
    return exp2(x);
#endif
  }
  static VK_INLINE V16 tail(const V16& a, V16& e) {
    const V16 power = a * a * V16(-0.72134752f);
    e = kFine ? exp2(power) : coarse_exp2(power);
    const V16 d = madd(a, V16(0.3f), V16(1.0f));
    V16 t;
#if defined(__AVX512F__)
    t.p[0] = (PartF)_mm512_maskz_rcp14_ps(0xffff, (__m512)d.p[0]);
    if constexpr (kFine) t = t * (V16(2.0f) - d * t);
#else
    t = V16(1.0f) / d;
#endif
    V16 q;
    if constexpr (kFine) {
      q = madd(t, V16(0.0330324344f), V16(-0.146387242f));
      q = madd(q, t, V16(0.18811649f));
      q = madd(q, t, V16(-0.0373378786f));
      q = madd(q, t, V16(0.120190931f));
      q = madd(q, t, V16(0.102351078f));
      q = madd(q, t, V16(0.120381786f));
      q = madd(q, t, V16(0.119652213f));
    } else {
      q = madd(t, V16(0.206815045f), V16(0.0388838938f));
      q = madd(q, t, V16(0.135870498f));
      q = madd(q, t, V16(0.118434197f));
    }
    return q * t * e;
  }
  static VK_INLINE V16 value(const V16& z) {
    const V16 a = min(V16(12.0f), absolute(z));  // beyond, the tail is below 1e-31 and exp a slow denormal
    V16 e;
    return max(V16(0.0f), z) - a * tail(a, e);
  }
  static VK_INLINE void both(const V16& z, V16& v, V16& slope) {
    const V16 near = min(V16(12.0f), max(V16(-12.0f), z)), a = absolute(near);
    V16 e;
    const V16 rest = tail(a, e);
    v = max(V16(0.0f), z) - a * rest;
    slope = madd(near * e, V16(0.39894228f), select_ge(near, V16(0.0f), V16(1.0f) - rest, rest));
  }
};

// z = n pi + r, |r| <= pi / 2; the sign is that of n's last bit.
template <bool kFine>
struct Activate<Activation::sine, kFine> {
  static VK_INLINE V16 reduce(const V16& z, I16& flip) {
    const V16 shifted = madd(z, V16(0.318309886f), V16(12582912.0f));  // 1.5 * 2^23: the integer lands in the low bits
    VK_EACH_PART flip.p[i] = (PartI)shifted.p[i] << 31;
    const V16 n = shifted - V16(12582912.0f);
    V16 r = madd(n, V16(-3.140625f), z);
    r = madd(n, V16(-0.0009675025939941406f), r);
    r = madd(n, V16(-1.5099067240953445e-07f), r);
    return min(V16(1.6f), max(V16(-1.6f), r));  // what is too large to be reduced stays within [-1, 1]
  }
  static VK_INLINE V16 flipped(V16 v, const I16& flip) {
    VK_EACH_PART v.p[i] = (PartF)((PartI)v.p[i] ^ flip.p[i]);
    return v;
  }
  static VK_INLINE V16 sine(const V16& r, const V16& r2) {
    V16 p = madd(r2, V16(-2.38888903e-08f), V16(2.75253834e-06f));
    p = madd(p, r2, V16(-0.000198408682f));
    p = madd(p, r2, V16(0.00833333111f));
    p = madd(p, r2, V16(-0.166666666f));
    return madd(r * r2, p, r);
  }
  static VK_INLINE V16 value(const V16& z) {
    I16 flip;
    const V16 r = reduce(z, flip);
    return flipped(sine(r, r * r), flip);
  }
  static VK_INLINE void both(const V16& z, V16& v, V16& slope) {
    I16 flip;
    const V16 r = reduce(z, flip), r2 = r * r;
    v = flipped(sine(r, r2), flip);
    V16 p = madd(r2, V16(1.99199407e-09f), V16(-2.75256602e-07f));
    p = madd(p, r2, V16(2.48010702e-05f));
    p = madd(p, r2, V16(-0.00138888846f));
    p = madd(p, r2, V16(0.0416666665f));
    p = madd(p, r2, V16(-0.5f));
    slope = flipped(madd(p, r2, V16(1.0f)), flip);
  }
};

/// n numbers of z become values and, if wanted, slopes; and n numbers are copied, multiplied if there is a factor.
#define VK_ACTIVATE(activate_as, activate, scale_numbers, store16, attribute)                                        \
  template <Activation kActivation, class T>                                                                         \
  attribute inline void activate_as(const float* z, int64_t n, T* out, T* derivative) {                              \
    using F = Activate<kActivation, !std::is_same_v<T, bf16>>;                                                       \
    int64_t i = 0;                                                                                                   \
    if (!derivative) {                                                                                               \
      for (; i + 16 <= n; i += 16) store16(out + i, F::value(load(z + i)));                                          \
      if (i < n) store_some(out + i, F::value(load_some(z + i, n - i)), n - i);                                      \
      return;                                                                                                        \
    }                                                                                                                \
    V16 v, slope;                                                                                                    \
    for (; i + 16 <= n; i += 16) {                                                                                   \
      F::both(load(z + i), v, slope);                                                                                \
      if (out) store16(out + i, v);                                                                                  \
      store16(derivative + i, slope);                                                                                \
    }                                                                                                                \
    if (i < n) {                                                                                                     \
      F::both(load_some(z + i, n - i), v, slope);                                                                    \
      if (out) store_some(out + i, v, n - i);                                                                        \
      store_some(derivative + i, slope, n - i);                                                                      \
    }                                                                                                                \
  }                                                                                                                  \
  template <class T>                                                                                                 \
  attribute inline void activate(Activation activation, const float* z, int64_t n, T* out, T* derivative) {          \
    switch (activation) {                                                                                            \
      case Activation::none: return activate_as<Activation::none>(z, n, out, derivative);                            \
      case Activation::gelu: return activate_as<Activation::gelu>(z, n, out, derivative);                            \
      case Activation::sine: return activate_as<Activation::sine>(z, n, out, derivative);                            \
      case Activation::relu: return activate_as<Activation::relu>(z, n, out, derivative);                            \
    }                                                                                                                \
  }                                                                                                                  \
  template <class To, class From>                                                                                    \
  attribute inline void scale_numbers(const From* from, const From* factor, To* to, int64_t n) {                     \
    int64_t i = 0;                                                                                                   \
    for (; i + 16 <= n; i += 16) store16(to + i, factor ? load16(from + i) * load16(factor + i) : load16(from + i)); \
    if (i == n) return;                                                                                              \
    const V16 last = load_some(from + i, n - i);                                                                     \
    store_some(to + i, factor ? last * load_some(factor + i, n - i) : last, n - i);                                  \
  }

VK_ACTIVATE(activate_as, activate, scale_numbers, store16, )
#if defined(VK_UPCONV_BF16)
VK_ACTIVATE(activate_as_by_hardware, activate_by_hardware, scale_numbers_by_hardware, store16_by_hardware, VK_DOT)
#endif
#undef VK_ACTIVATE

}  // namespace
}  // namespace vk::VK_ISA
