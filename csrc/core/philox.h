// Philox4x32-10, the counter-based generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"):
// ten rounds of two 32 x 32 -> 64 bit products. Any counter can be asked for at any time, so the CPU, a GPU and the
// Python reference draw the same numbers in whatever order suits them.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace vk {

struct PhiloxKey {
  uint32_t k0, k1;
};
struct PhiloxWords {
  uint32_t w0, w1, w2, w3;
};

VK_HD PhiloxKey philox_key(int64_t seed) { return {uint32_t(uint64_t(seed)), uint32_t(uint64_t(seed) >> 32)}; }

VK_HD PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(b >> 32) ^ c1 ^ key.k0;
    c1 = uint32_t(b);
    c2 = uint32_t(a >> 32) ^ c3 ^ key.k1;
    c3 = uint32_t(a);
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

/// A whole number in [0, bound) from a random word.
VK_HD uint32_t philox_below(uint32_t word, uint32_t bound) { return uint32_t(uint64_t(word) * bound >> 32); }

}  // namespace vk
