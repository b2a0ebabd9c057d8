// Sixteen floats as one value: a 4x4 block of pixels, or sixteen items of a list. One register on AVX-512, two on
// AVX2, four on SSE and NEON: wider vectors than the machine has would be taken apart badly by the compiler, so the
// parts are spelled out here and the loops over them unroll.
//
// Everything is elementwise IEEE arithmetic; a*b+c may be contracted, so results differ by rounding between
// instruction sets. sum() adds in one fixed order.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__SSE4_1__)
#include <immintrin.h>
#endif

/// Inner loops that must not become calls: the compiler's own choice spills vectors around them.
#define VK_INLINE inline __attribute__((always_inline))

namespace vk {
namespace {

#if defined(__AVX512F__)
constexpr int kPartLanes = 16;
#elif defined(__AVX2__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kParts = 16 / kPartLanes;

typedef float PartF __attribute__((vector_size(kPartLanes * 4)));
typedef int32_t PartI __attribute__((vector_size(kPartLanes * 4)));

#define VK_EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < kParts; ++i)

/// x in every lane. Not `PartF{} + x`: 0 + x is not x for -0, so the compiler would keep the addition.
VK_INLINE PartF spread(float x) {
#if defined(__AVX512F__)
  return PartF(_mm512_set1_ps(x));
#elif defined(__AVX2__)
  return PartF(_mm256_set1_ps(x));
#else
  return PartF{x, x, x, x};
#endif
}

struct I16 {
  PartI p[kParts];
};

struct V16 {
  PartF p[kParts];
  V16() = default;
  V16(float x) { VK_EACH_PART p[i] = spread(x); }
};

VK_INLINE V16 operator+(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] += b.p[i];
  return a;
}
VK_INLINE V16 operator-(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] -= b.p[i];
  return a;
}
VK_INLINE V16 operator*(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] *= b.p[i];
  return a;
}
VK_INLINE V16 operator/(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] /= b.p[i];
  return a;
}
VK_INLINE V16 min(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] = a.p[i] < b.p[i] ? a.p[i] : b.p[i];
  return a;
}
VK_INLINE V16 max(V16 a, const V16& b) {
  VK_EACH_PART a.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return a;
}
/// a * b + c, fused where the machine can.
VK_INLINE V16 madd(const V16& a, const V16& b, V16 c) {
  VK_EACH_PART c.p[i] = a.p[i] * b.p[i] + c.p[i];
  return c;
}

/// Part by part: one memcpy of the whole value makes GCC keep it on the stack, and copy it there at every use.
VK_INLINE V16 load(const float* from) {
  V16 v;
  VK_EACH_PART std::memcpy(&v.p[i], from + i * kPartLanes, sizeof v.p[i]);
  return v;
}
/// from[0..3] in each of the four rows of a block.
VK_INLINE V16 spread_rows(const float* from) {
  V16 v;
#if defined(__AVX512F__)
  v.p[0] = (PartF)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(from));
#elif defined(__AVX2__)
  VK_EACH_PART v.p[i] = (PartF)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
#else
  VK_EACH_PART std::memcpy(&v.p[i], from, sizeof v.p[i]);
#endif
  return v;
}
VK_INLINE void store(float* to, const V16& v) { VK_EACH_PART std::memcpy(to + i * kPartLanes, &v.p[i], sizeof v.p[i]); }
VK_INLINE void store(int32_t* to, const I16& v) {
  VK_EACH_PART std::memcpy(to + i * kPartLanes, &v.p[i], sizeof v.p[i]);
}

/// The value where x >= limit, else 0.
VK_INLINE V16 keep_ge(const V16& x, const V16& limit, V16 value) {
#if defined(__AVX512F__)
  value.p[0] = (PartF)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask((__m512)x.p[0], (__m512)limit.p[0], _CMP_GE_OQ),
                                          (__m512)value.p[0]);
#else
  VK_EACH_PART value.p[i] = (PartF)((PartI)value.p[i] & (x.p[i] >= limit.p[i]));
#endif
  return value;
}
/// a where x >= limit, else b.
VK_INLINE V16 select_ge(const V16& x, const V16& limit, const V16& a, V16 b) {
  VK_EACH_PART b.p[i] = x.p[i] >= limit.p[i] ? a.p[i] : b.p[i];
  return b;
}
VK_INLINE bool any_ge(const V16& x, const V16& limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x.p[0], (__m512)limit.p[0], _CMP_GE_OQ) != 0;
#elif defined(__AVX2__)
  return (_mm256_movemask_ps((__m256)(x.p[0] >= limit.p[0])) | _mm256_movemask_ps((__m256)(x.p[1] >= limit.p[1]))) != 0;
#else
  PartI any = x.p[0] >= limit.p[0];
  for (int i = 1; i < kParts; ++i) any |= x.p[i] >= limit.p[i];
  return (any[0] | any[1] | any[2] | any[3]) != 0;
#endif
}

/// Bit k: a >= b in lane k.
VK_INLINE uint32_t lanes_ge(const I16& a, const I16& b) {
#if defined(__AVX512F__)
  return _mm512_cmp_epi32_mask((__m512i)a.p[0], (__m512i)b.p[0], _MM_CMPINT_NLT);
#elif defined(__AVX2__)
  const auto part = [&](int i) { return uint32_t(_mm256_movemask_ps((__m256)(a.p[i] >= b.p[i]))); };
  return part(0) | part(1) << 8;
#else
  uint32_t bits = 0;
  for (int k = 0; k < 16; ++k)
    bits |= uint32_t(a.p[k / kPartLanes][k % kPartLanes] >= b.p[k / kPartLanes][k % kPartLanes]) << k;
  return bits;
#endif
}

VK_INLINE V16 sqrt(V16 a) {
#if defined(__AVX512F__)
  a.p[0] = (PartF)_mm512_maskz_sqrt_ps(0xffff, (__m512)a.p[0]);
#elif defined(__AVX2__)
  VK_EACH_PART a.p[i] = (PartF)_mm256_sqrt_ps((__m256)a.p[i]);
#else
  VK_EACH_PART for (int k = 0; k < kPartLanes; ++k) a.p[i][k] = __builtin_sqrtf(a.p[i][k]);
#endif
  return a;
}

/// The square root to 1e-6, of numbers of ordinary size above 0.
VK_INLINE V16 root(V16 a) {
#if defined(__AVX512F__)
  V16 r;
  r.p[0] = (PartF)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)a.p[0]);
  const V16 s = a * r;
  return madd(s * V16(0.5f), V16(1.0f) - s * r, s);
#else
  return sqrt(a);
#endif
}

/// Towards zero.
VK_INLINE I16 truncate(const V16& a) {
  I16 r;
  VK_EACH_PART r.p[i] = __builtin_convertvector(a.p[i], PartI);
  return r;
}

/// 2^x to 1e-7 relative, degree 5 after rounding, where x lies in [-126, 127]; any bits elsewhere.
VK_INLINE V16 exp2_within(const V16& x) {
  const auto poly = [](const V16& f) {
    V16 p = madd(f, V16(0.00132917648f), V16(0.00967562478f));
    p = madd(p, f, V16(0.0555065386f));
    p = madd(p, f, V16(0.240221202f));
    p = madd(p, f, V16(0.693147004f));
    return madd(p, f, V16(1.00000012f));
  };
#if defined(__AVX512F__)
  V16 n;
  n.p[0] = (PartF)_mm512_maskz_roundscale_ps(0xffff, (__m512)x.p[0], 0);
  V16 p = poly(x - n);
  p.p[0] = (PartF)_mm512_maskz_scalef_ps(0xffff, (__m512)p.p[0], (__m512)n.p[0]);
  return p;
#else
  const V16 shifted = x + V16(12582912.0f);  // 1.5 * 2^23: the integer lands in the low bits
  V16 p = poly(x - (shifted - V16(12582912.0f)));
  VK_EACH_PART p.p[i] = (PartF)((PartI)p.p[i] + ((PartI)shifted.p[i] << 23));
  return p;
#endif
}
/// The same; x below -126 gives about 2^-126, or less.
VK_INLINE V16 exp2(V16 x) {
#if !defined(__AVX512F__)
  x = max(x, V16(-126.0f));
#endif
  return exp2_within(x);
}

/// 2^x to 2e-7 relative where x >= 0, else 0.
VK_INLINE V16 exp2_positive(const V16& x) {
#if defined(__AVX512DQ__)
  // Whole steps towards -infinity: what is left lies in [0, 1).
  V16 f;
  f.p[0] = (PartF)_mm512_maskz_reduce_ps(0xffff, (__m512)x.p[0], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  V16 p = madd(f, V16(0.00187757667f), V16(0.00898934009f));
  p = madd(p, f, V16(0.0558263180f));
  p = madd(p, f, V16(0.240153617f));
  p = madd(p, f, V16(0.693153073f));
  p = madd(p, f, V16(0.999999940f));
  p.p[0] = (PartF)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x.p[0], _mm512_setzero_ps(), _CMP_GE_OQ),
                                         (__m512)p.p[0], (__m512)x.p[0]);
  return p;
#else
  return keep_ge(x, V16(0.0f), exp2_within(x));
#endif
}

/// The sum of the lanes: halves folded onto each other, the same order everywhere.
VK_INLINE float sum(const V16& v) {
  alignas(64) float lane[16];
  store(lane, v);
  for (int half = 8; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
  return lane[0];
}

/// Sixteen running sums in one register: lanes that lie a register apart share one. Half a dozen V16 would not fit.
struct Sums {
  PartF p = {};
  VK_INLINE void add(const V16& v) { VK_EACH_PART p += v.p[i]; }
  VK_INLINE void add(const V16& a, const V16& b) { VK_EACH_PART p = a.p[i] * b.p[i] + p; }
};

/// out[k] = the total of v[k], eight at once.
VK_INLINE void sum8(const Sums* v, float* out) {
#if defined(__AVX2__)
  __m256 h[8];
  for (int k = 0; k < 8; ++k) {
#if defined(__AVX512F__)
    const PartF x = v[k].p;
    h[k] = (__m256)(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
#else
    h[k] = (__m256)v[k].p;
#endif
  }
  const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
  const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(h[4], h[5]), _mm256_hadd_ps(h[6], h[7]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
  _mm_storeu_ps(out + 4, _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1)));
#else
  for (int k = 0; k < 8; ++k) out[k] = (v[k].p[0] + v[k].p[2]) + (v[k].p[1] + v[k].p[3]);
#endif
}

}  // namespace
}  // namespace vk
