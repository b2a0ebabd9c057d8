// Sums over many blocks with the same bits in any order: integers, because integers commute.
//
// An exact sum is kSumBins 64-bit integers. Bin b counts multiples of 2^(24 b - kSumUnit); a float's 24-bit mantissa,
// shifted by what is left of its exponent, is added to one bin with one atomic. Nothing is rounded from 2^-77 to 2^43;
// below, multiples of 2^-100 are kept. A bin holds kSumTerms terms of any size. Larger and non-finite terms raise a
// flag that the owner of the sum turns into NaN.
#pragma once
#include "device/vk_device.cuh"

namespace vk {

using sum_bin = unsigned long long;

constexpr int kSumBins = 5, kSumUnit = 100, kBinBits = 24;
constexpr int64_t kSumTerms = int64_t(1) << 16;

/// bins: kSumBins of one sum, zeroed before the first term.
__device__ __forceinline__ void add_exactly(sum_bin* bins, sum_bin* flag, float term) {
  const uint32_t bits = __float_as_uint(term);
  const int exponent = int(bits >> 23 & 255u);
  uint32_t mantissa = bits & 0x7fffffu;
  int place = exponent - 150 + kSumUnit;  // of the mantissa's last bit, in units of the first bin
  if (exponent > 0)
    mantissa |= 0x800000u;
  else
    ++place;
  if (place < 0) {
    mantissa = place > -25 ? (mantissa + (1u << (-place - 1))) >> -place : 0;
    place = 0;
  }
  if (mantissa == 0) return;
  if (place >= kSumBins * kBinBits) {
    atomicOr(flag, sum_bin(1));
    return;
  }
  const sum_bin amount = sum_bin(mantissa) << place % kBinBits;
  atomicAdd(bins + place / kBinBits, bits >> 31 ? sum_bin(0) - amount : amount);
}

__device__ __forceinline__ double exact_sum(const sum_bin* bins) {
  constexpr double kScale = 1.0 / double(1ll << kBinBits);
  double sum = 0;
#pragma unroll
  for (int b = 0; b < kSumBins; ++b) sum = sum * kScale + double(static_cast<long long>(bins[b]));
  constexpr int kLeft = kBinBits * (kSumBins - 1) - kSumUnit;
  static_assert(kLeft <= 0 && kLeft > -30);
  return sum * (1.0 / double(1ll << -kLeft));
}

/// One step of warp_sums: each half of the lanes keeps one half of the values. Recursion, because ptxas leaves the loop
/// over halves rolled and the values in memory.
template <int Half, int Step, int P>
__device__ __forceinline__ void halve_sums(float (&v)[P]) {
  const bool upper = threadIdx.x & Step;
#pragma unroll
  for (int k = 0; k < Half; ++k) {
    const float given = upper ? v[k] : v[k + Half], kept = upper ? v[k + Half] : v[k];
    v[k] = kept + __shfl_xor_sync(0xffffffffu, given, Step);
  }
  if constexpr (Half > 1) halve_sums<Half / 2, Step / 2>(v);
}

/// Sums P values over a warp, a power of two of them, with little more than P shuffles: lane l returns the sum of value
/// l / (32 / P).
template <int P>
__device__ __forceinline__ float warp_sums(float (&v)[P]) {
  static_assert(P >= 2 && P <= 32 && (P & (P - 1)) == 0);
  halve_sums<P / 2, 16>(v);
  float sum = v[0];
#pragma unroll
  for (int step = 16 / P; step >= 1; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

}  // namespace vk
