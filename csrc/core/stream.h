// Rows written past the caches. An output that no cache can hold until it is read again gains nothing from being
// fetched into one first: on the machines measured, filling 38 MB this way takes less than half the time.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vk {
namespace {

constexpr int64_t kStreamedBytes = int64_t(32) << 20;  // outputs from this size on are streamed
constexpr int64_t kStreamAlignment = 64;

/// Whether rows of `row_bytes` of an output can be streamed, and should be.
inline bool worth_streaming(const void* out, int64_t row_bytes, int64_t rows) {
#if defined(__AVX2__)
  return row_bytes * rows >= kStreamedBytes && uintptr_t(out) % kStreamAlignment == 0 &&
         row_bytes % kStreamAlignment == 0;
#else
  (void)out, (void)row_bytes, (void)rows;
  return false;
#endif
}

/// Copies a row (null: zeros). Call stream_end() in the same thread after the last one.
inline void stream_row(void* to, const void* from, int64_t bytes) {
#if defined(__AVX512F__)
  const __m512i zero = _mm512_setzero_si512();
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(t + i), f ? _mm512_loadu_si512(f + i) : zero);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  char* t = static_cast<char*>(to);
  const char* f = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(t + i),
                        f ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(f + i)) : zero);
#else
  if (from)
    std::memcpy(to, from, size_t(bytes));
  else
    std::memset(to, 0, size_t(bytes));
#endif
}

inline void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace vk
