// What a pass does with one row of scores: sixteen columns at a time, in fp32, with the exponential computed again in
// every pass. That costs less than storing the kernel matrix and reading it back.
//
//   e[j] = 2^((s[j] - m) * c + g[j])     m: the row's largest score, c = log2(e) / epsilon, g <= 0: log2 of v
#pragma once
#include "core/half.h"
#include "core/vec.h"

namespace vk {
namespace {

constexpr float kGone = -1e30f;    // log2 of nothing, as g and as a padding score
constexpr float kLeast = -126.0f;  // below it 2^x counts as 0

VK_INLINE V16 load16(const float* p) { return load(p); }
VK_INLINE V16 load16(const bf16* p) {
#if defined(__AVX512F__)
  V16 v;
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  v.p[0] = (PartF)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16);
  return v;
#elif defined(__AVX2__)
  V16 v;
  VK_EACH_PART v.p[i] =
      (PartF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i))), 16);
  return v;
#else
  float lane[16];
  for (int k = 0; k < 16; ++k) lane[k] = to_float(p[k]);
  return load(lane);
#endif
}
VK_INLINE V16 load16(const f16* p) {
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return v;
#elif defined(__AVX2__) && defined(__F16C__)
  V16 v;
  VK_EACH_PART v.p[i] = (PartF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * i)));
  return v;
#else
  float lane[16];
  for (int k = 0; k < 16; ++k) lane[k] = to_float(p[k]);
  return load(lane);
#endif
}

/// The last columns of a row, filled up with kGone.
template <class T>
VK_INLINE V16 load_tail(const T* p, int64_t count) {
  float lane[16];
  for (int64_t k = 0; k < 16; ++k) lane[k] = k < count ? to_float(p[k]) : kGone;
  return load(lane);
}

/// f(j, sixteen scores from column j) along a row; columns from `cols` on read as kGone.
template <class T, class F>
VK_INLINE void each16(const T* row, int64_t cols, F f) {
  int64_t j = 0;
  for (; j + 16 <= cols; j += 16) f(j, load16(row + j));
  if (j < cols) f(j, load_tail(row + j, cols - j));
}

/// 2^x for x < 128, 0 below 2^-126; -inf is welcome.
VK_INLINE V16 power(V16 x) {
#if defined(__AVX512F__)
  return exp2(max(x, V16(2 * kLeast)));  // scaling flushes by itself
#else
  return keep_ge(x, V16(kLeast), exp2(x));
#endif
}

VK_INLINE float largest(const V16& v) {
  float lane[16], best;
  store(lane, v);
  best = lane[0];
  for (int k = 1; k < 16; ++k) best = lane[k] > best ? lane[k] : best;
  return best;
}

/// The largest score; NaN if the row holds NaN or +inf, kGone if nothing in it is finite.
template <class T>
float row_max(const T* row, int64_t cols) {
  V16 best(kGone), odd(0.0f);
  each16(row, cols, [&](int64_t, const V16& s) {
    VK_EACH_PART best.p[i] = best.p[i] < s.p[i] ? s.p[i] : best.p[i];
    // x - x is 0 for numbers; kept down to -inf, which is allowed, it is NaN for NaN and for +inf only.
    V16 x = s;
    VK_EACH_PART x.p[i] = s.p[i] < kGone ? PartF{} : s.p[i] - s.p[i];
    odd = odd + x;
  });
  const float check = sum(odd);
  return check == check ? largest(best) : check;
}

struct RowSum {
  float sum;   // of e
  float best;  // the largest e
};

/// e[0, padded) and its sum.
template <bool kBest, class T>
VK_INLINE RowSum row_exp(const T* row, int64_t cols, float m, float c, const float* g, float* e) {
  V16 total0(0.0f), total1(0.0f), best(0.0f);
  const V16 shift(m), scale(c);
  int64_t j = 0;
  for (; j + 32 <= cols; j += 32) {
    const V16 a = power(madd(load16(row + j) - shift, scale, load(g + j)));
    const V16 b = power(madd(load16(row + j + 16) - shift, scale, load(g + j + 16)));
    store(e + j, a);
    store(e + j + 16, b);
    total0 = total0 + a;
    total1 = total1 + b;
    if constexpr (kBest) best = max(max(best, a), b);
  }
  for (; j < cols; j += 16) {
    const V16 s = j + 16 <= cols ? load16(row + j) : load_tail(row + j, cols - j);
    const V16 a = power(madd(s - shift, scale, load(g + j)));
    store(e + j, a);
    total0 = total0 + a;
    if constexpr (kBest) best = max(best, a);
  }
  return {sum(total0 + total1), kBest ? largest(best) : 0.0f};
}

/// acc[j] += w * e[j]
VK_INLINE void row_add(const float* e, float w, float* acc, int64_t padded) {
  const V16 weight(w);
  for (int64_t j = 0; j < padded; j += 16) store(acc + j, madd(load(e + j), weight, load(acc + j)));
}

/// out[j] = w * e[j]; `streamed` writes past the caches.
VK_INLINE void row_write(const float* e, float w, float* out, int64_t cols, bool streamed) {
  const V16 weight(w);
  int64_t j = 0;
#if defined(__AVX2__)
  if (streamed) {
    for (; j < cols && uintptr_t(out + j) % 64; ++j) out[j] = w * e[j];
    for (; j + 16 <= cols; j += 16) {
      const V16 x = load(e + j) * weight;
#if defined(__AVX512F__)
      _mm512_stream_ps(out + j, (__m512)x.p[0]);
#else
      VK_EACH_PART _mm256_stream_ps(out + j + 8 * i, (__m256)x.p[i]);
#endif
    }
  }
#else
  (void)streamed;
#endif
  for (; j + 16 <= cols; j += 16) store(out + j, load(e + j) * weight);
  for (; j < cols; ++j) out[j] = w * e[j];
}

/// The first j with e[j] == best.
inline int64_t row_find(const float* e, float best, int64_t cols) {
  const V16 wanted(best);
  int64_t j = 0;
  while (j + 16 <= cols && !any_ge(load(e + j), wanted)) j += 16;
  while (j + 1 < cols && e[j] < best) ++j;
  return j;
}

}  // namespace
}  // namespace vk
