// What a pass does with one row, sixteen columns at a time, in fp32. Who asked for a plan has room for the kernel
// matrix: its exponentials are computed once, kept there and turned into the plan in place (Kept). Who asked for the
// scales alone has not, and computes them again in every pass.
//
//   e[j] = 2^((s[j] - m) * c + g[j])     m: the row's largest score, c = log2(e) / epsilon, g <= 0: log2 of v
#pragma once
#include "core/half.h"
#include "core/vec.h"

namespace vk {
namespace {

constexpr float kGone = -1e30f;    // log2 of nothing, as g and as a padding score
constexpr float kLeast = -126.0f;  // below it 2^x counts as 0

/// Asks for what a page after p holds: the machine's own prefetchers stop at the end of every page.
VK_INLINE void fetch_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 4096, 0, 2); }

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

/// Sixteen floats of which `count` are there; the others read as 0 and are not written.
VK_INLINE V16 load_some(const float* p, int64_t count) {
  if (count >= 16) return load(p);
#if defined(__AVX512F__)
  V16 v;
  v.p[0] = (PartF)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  return v;
#else
  float lane[16];
  for (int64_t k = 0; k < 16; ++k) lane[k] = k < count ? p[k] : 0.0f;
  return load(lane);
#endif
}
VK_INLINE void store_some(float* p, int64_t count, const V16& v) {
  if (count >= 16) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v.p[0]);
#else
  float lane[16];
  store(lane, v);
  for (int64_t k = 0; k < count; ++k) p[k] = lane[k];
#endif
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
  each16(row, cols, [&](int64_t j, const V16& s) {
    fetch_ahead(row + j);
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
    fetch_ahead(row + j);
    if constexpr (sizeof(T) == 4) fetch_ahead(row + j + 16);
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

/// acc[j] += w * e[j] with g = 0, and e into `keep` if there is one.
template <bool kKeep, class T>
VK_INLINE void row_start(const T* row, int64_t cols, float m, float c, float w, float* acc, float* keep) {
  const V16 shift(m), scale(c), weight(w);
  each16(row, cols, [&](int64_t j, const V16& s) {
    const V16 e = power((s - shift) * scale);
    store(acc + j, madd(e, weight, load(acc + j)));
    if constexpr (kKeep) store_some(keep + j, cols - j, e);
  });
}

/// The sum of e[j] * v[j]; also(j, columns from there) on the way, which hides its work behind the wait for e.
template <class F>
VK_INLINE float kept_sum(const float* e, const float* v, int64_t cols, F also) {
  V16 total0(0.0f), total1(0.0f);
  int64_t j = 0;
  for (; j + 32 <= cols; j += 32) {
    fetch_ahead(e + j);
    fetch_ahead(e + j + 16);
    total0 = madd(load(e + j), load(v + j), total0);
    also(j, 16);
    total1 = madd(load(e + j + 16), load(v + j + 16), total1);
    also(j + 16, 16);
  }
  for (; j < cols; j += 16) {
    total0 = madd(load_some(e + j, cols - j), load(v + j), total0);
    also(j, cols - j);
  }
  return sum(total0 + total1);
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
