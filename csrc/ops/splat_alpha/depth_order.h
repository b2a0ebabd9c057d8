// Rows in ascending depth, equal ones in ascending row: a stable radix sort of (depth, row) pairs, 11 bits at a time.
// -0 equals 0, NaN comes last. Threads share the passes of a large image; the result does not show how many did.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "core/parallel.h"

namespace vk {
namespace {

constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits, kPasses = 3;

inline uint32_t depth_key(float depth) {
  if (depth != depth) return 0xffffffffu;
  depth += 0.0f;  // -0 becomes 0
  uint32_t bits;
  std::memcpy(&bits, &depth, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/// order[0..n): `first` + 0 .. n - 1, sorted. depths: [n]
inline void depth_order(const float* depths, int64_t n, int64_t first, int32_t* order) {
  constexpr int64_t kLarge = 16384, kMostParts = 16;
  const int64_t parts = n < kLarge ? 1 : std::min<int64_t>(max_threads(), kMostParts);
  std::unique_ptr<uint64_t[]> memory(new uint64_t[size_t(2 * n)]);
  std::unique_ptr<int32_t[]> counts(new int32_t[size_t(parts * kPasses * kDigits)]);
  uint64_t *from = memory.get(), *to = from + n;
  const auto each_part = [&](auto f) {
    parallel_for(parts, 1, [&](int64_t p0, int64_t p1) {
      for (int64_t p = p0; p < p1; ++p) f(counts.get() + p * kPasses * kDigits, n * p / parts, n * (p + 1) / parts);
    });
  };
  const auto digit = [](uint64_t pair, int pass) {
    return int((pair >> (32 + kDigitBits * pass)) & (kDigits - 1));  // the last digit is short
  };
  each_part([&](int32_t* count, int64_t begin, int64_t end) {
    std::memset(count, 0, sizeof(int32_t) * kPasses * kDigits);
    for (int64_t i = begin; i < end; ++i) {
      from[i] = uint64_t(depth_key(depths[i])) << 32 | uint32_t(first + i);
      for (int pass = 0; pass < kPasses; ++pass) ++count[pass * kDigits + digit(from[i], pass)];
    }
  });
  for (int pass = 0; pass < kPasses; ++pass) {
    if (pass > 0 && parts > 1)  // the pairs have moved between the parts
      each_part([&](int32_t* count, int64_t begin, int64_t end) {
        std::memset(count + pass * kDigits, 0, sizeof(int32_t) * kDigits);
        for (int64_t i = begin; i < end; ++i) ++count[pass * kDigits + digit(from[i], pass)];
      });
    int32_t place = 0;
    bool one_digit = false;
    for (int d = 0; d < kDigits; ++d) {
      const int32_t before = place;
      for (int64_t p = 0; p < parts; ++p) {
        int32_t& c = counts[size_t(p * kPasses * kDigits + pass * kDigits + d)];
        const int32_t here = c;
        c = place;
        place += here;
      }
      one_digit = one_digit || place - before == n;
    }
    if (one_digit) continue;
    each_part([&](int32_t* count, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[count[pass * kDigits + digit(from[i], pass)]++] = from[i];
    });
    std::swap(from, to);
  }
  for (int64_t i = 0; i < n; ++i) order[i] = int32_t(uint32_t(from[i]));
}

}  // namespace
}  // namespace vk
