// bf16 and fp16 as storage types, the same on the CPU, in CUDA kernels and under the SIMT emulator.
// Arithmetic is always fp32: load, to_float, compute, from_float (round to nearest even), store.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define VK_HD __host__ __device__ __forceinline__
#else
#define VK_HD inline __attribute__((always_inline))
#endif

namespace vk {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class To, class From>
VK_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

VK_HD float to_float(float x) { return x; }
VK_HD double to_float(double x) { return x; }
VK_HD float to_float(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
VK_HD float to_float(f16 x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Denormal and normal halves alike: place the bits, then rescale the exponent by 2^112.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
#endif
}

template <class T>
VK_HD T from_float(float x);
template <>
VK_HD float from_float<float>(float x) {
  return x;
}
template <>
VK_HD double from_float<double>(float x) {
  return x;
}
template <>
VK_HD bf16 from_float<bf16>(float x) {
#if defined(__CUDA_ARCH__)
  return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  const uint32_t u = bit_cast<uint32_t>(x);
  if (x != x) return bf16{uint16_t((u >> 16) | 0x40u)};
  return bf16{uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
#endif
}
template <>
VK_HD f16 from_float<f16>(float x) {
#if defined(__CUDA_ARCH__)
  return f16{__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t u = bit_cast<uint32_t>(x), sign = (u >> 16) & 0x8000u;
  const float a = bit_cast<float>(u & 0x7fffffffu);
  if (a != a) return f16{uint16_t(sign | 0x7e00u)};
  if (a >= 65520.0f) return f16{uint16_t(sign | 0x7c00u)};
  if (a < 0x1p-14f) {  // denormal half: adding 0.5 aligns its last bit with the float's
    const uint32_t d = bit_cast<uint32_t>(a + 0.5f) - 0x3f000000u;
    return f16{uint16_t(sign | d)};
  }
  const uint32_t v = bit_cast<uint32_t>(a);
  return f16{uint16_t(sign | ((v - 0x38000000u + 0xfffu + ((v >> 13) & 1u)) >> 13))};
#endif
}

}  // namespace vk
