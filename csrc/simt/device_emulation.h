// CUDA's names for the emulator: what <cuda_runtime.h> is under nvcc. Included by device/vk_device.cuh only.
#pragma once
#include <cassert>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "simt/api.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#define VK_SIMT_JOIN_(a, b) a##b
#define VK_SIMT_JOIN(a, b) VK_SIMT_JOIN_(a, b)
#ifdef VK_SIMT_TRACE
// A red zone before every shared variable: the symbol table tells the checker which bytes belong to none.
#define __shared__                                                                                              \
  static thread_local __attribute__((used)) unsigned char VK_SIMT_JOIN(vk_simt_redzone_, __COUNTER__)[64] = {}; \
  static thread_local
#else
#define __shared__ static thread_local
#endif

using vk_stream_t = void*;
using cudaStream_t = void*;

#define VK_LAUNCH(kernel, grid, block, dynamic_shared, stream, ...) \
  ::simt::launch_kernel<kernel>(grid, block, dynamic_shared, stream __VA_OPT__(, ) __VA_ARGS__)
#define VK_DYN_SHARED(T, name) T* name = static_cast<T*>(::simt::dynamic_shared())

namespace vk {
inline void memset_async(void* data, int value, size_t bytes, vk_stream_t) { ::simt::memset_async(data, value, bytes); }
}  // namespace vk

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())
static constexpr int warpSize = 32;

#undef assert
#define assert(condition) ((condition) ? void(0) : ::simt::trap("assert(" #condition ") failed"))
#define __trap() ::simt::trap("__trap()")

#define VK_SIMT_VECTORS(T, name, align2, align4)                     \
  struct name##1 { T x; };                                           \
  struct __align__(align2) name##2 { T x, y; };                      \
  struct name##3 { T x, y, z; };                                     \
  struct __align__(align4) name##4 { T x, y, z, w; };                \
  inline name##1 make_##name##1(T x) { return {x}; }                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
VK_SIMT_VECTORS(float, float, 8, 16)
VK_SIMT_VECTORS(int, int, 8, 16)
VK_SIMT_VECTORS(short, short, 4, 8)
VK_SIMT_VECTORS(unsigned short, ushort, 4, 8)
VK_SIMT_VECTORS(signed char, char, 2, 4)
VK_SIMT_VECTORS(unsigned char, uchar, 2, 4)
struct __align__(16) double2 {
  double x, y;
};
struct __align__(16) longlong2 {
  long long x, y;
};
struct __align__(16) ulonglong2 {
  unsigned long long x, y;
};
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- synchronisation and warp collectives
#define VK_SIMT_HERE ::simt::Where where = ::simt::Where::current()
__forceinline__ void __syncthreads(VK_SIMT_HERE) { ::simt::barrier(where); }
__forceinline__ int __syncthreads_or(int v, VK_SIMT_HERE) {
  return ::simt::barrier_reduce(::simt::Reduce::logical_or, v, where);
}
__forceinline__ int __syncthreads_and(int v, VK_SIMT_HERE) {
  return ::simt::barrier_reduce(::simt::Reduce::logical_and, v, where);
}
__forceinline__ int __syncthreads_count(int v, VK_SIMT_HERE) {
  return ::simt::barrier_reduce(::simt::Reduce::count, v, where);
}
__forceinline__ void __syncwarp(uint32_t mask = 0xffffffffu, VK_SIMT_HERE) { ::simt::warp_sync(mask, where); }
__forceinline__ uint32_t __activemask(VK_SIMT_HERE) { return ::simt::active_mask(where); }
__forceinline__ uint32_t __ballot_sync(uint32_t mask, int v, VK_SIMT_HERE) { return ::simt::ballot(mask, v, where); }
__forceinline__ int __any_sync(uint32_t mask, int v, VK_SIMT_HERE) { return ::simt::ballot(mask, v, where) != 0; }
__forceinline__ int __all_sync(uint32_t mask, int v, VK_SIMT_HERE) { return ::simt::ballot(mask, !v, where) == 0; }

#define VK_SIMT_SHUFFLE(name, mode, T2)                                                             \
  template <class T>                                                                                \
  __forceinline__ T name(uint32_t mask, T value, T2 lane, int width = 32, VK_SIMT_HERE) {           \
    T out;                                                                                          \
    ::simt::shuffle(mask, ::simt::Shuffle::mode, int(lane), width, &value, &out, sizeof(T), where); \
    return out;                                                                                     \
  }
VK_SIMT_SHUFFLE(__shfl_sync, index, int)
VK_SIMT_SHUFFLE(__shfl_up_sync, up, unsigned)
VK_SIMT_SHUFFLE(__shfl_down_sync, down, unsigned)
VK_SIMT_SHUFFLE(__shfl_xor_sync, exclusive_or, int)

// Blocks never run side by side on one worker, and the host's memory order is stronger: fences have nothing to do.
__forceinline__ void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
__forceinline__ void __threadfence_block() { __threadfence(); }
__forceinline__ void __threadfence_system() { __threadfence(); }
__forceinline__ void __nanosleep(unsigned) {}

#define VK_SIMT_ATOMIC(name, op)                                      \
  template <class T>                                                  \
  __forceinline__ T name(T* address, std::type_identity_t<T> value) { \
    return ::simt::atomic<T>(::simt::Atomic::op, address, value);     \
  }
VK_SIMT_ATOMIC(atomicAdd, add)
VK_SIMT_ATOMIC(atomicMin, min)
VK_SIMT_ATOMIC(atomicMax, max)
VK_SIMT_ATOMIC(atomicExch, exchange)
VK_SIMT_ATOMIC(atomicOr, bit_or)
VK_SIMT_ATOMIC(atomicAnd, bit_and)
VK_SIMT_ATOMIC(atomicXor, bit_xor)
template <class T>
__forceinline__ T atomicSub(T* address, std::type_identity_t<T> value) {
  return ::simt::atomic<T>(::simt::Atomic::add, address, T(0) - value);
}
template <class T>
__forceinline__ T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ::simt::atomic_cas<T>(address, expected, value);
}

// ---- memory
template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
template <class T>
__forceinline__ T __ldcs(const T* p) {
  return *p;
}
template <class T>
__forceinline__ void __stcs(T* p, std::type_identity_t<T> v) {
  *p = v;
}

// ---- integers
__forceinline__ int __popc(uint32_t x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ int __ffsll(long long x) { return __builtin_ffsll(x); }
__forceinline__ int __clz(int x) { return x ? __builtin_clz(uint32_t(x)) : 32; }
__forceinline__ int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
__forceinline__ uint32_t __brev(uint32_t x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
__forceinline__ uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t s = selector >> (4 * i);
    uint32_t byte = uint32_t(bytes >> (8 * (s & 7))) & 0xffu;
    if (s & 8) byte = byte & 0x80u ? 0xffu : 0u;  // replicate the sign
    out |= byte << (8 * i);
  }
  return out;
}
__forceinline__ int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i)));
  return c;
}
__forceinline__ uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 0xffu) * (b >> (8 * i) & 0xffu);
  return c;
}
__forceinline__ uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
__forceinline__ int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
__forceinline__ unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
__forceinline__ uint32_t __funnelshift_l(uint32_t lo, uint32_t hi, uint32_t n) {
  return uint32_t((uint64_t(hi) << 32 | lo) << (n & 31) >> 32);
}
__forceinline__ uint32_t __funnelshift_r(uint32_t lo, uint32_t hi, uint32_t n) {
  return uint32_t((uint64_t(hi) << 32 | lo) >> (n & 31));
}

// ---- floating point. glibc declares some of these names itself, hence the macros.
__forceinline__ float vk_simt_rsqrtf(float x) { return 1.0f / std::sqrt(x); }
__forceinline__ float vk_simt_expf(float x) { return std::exp(x); }
__forceinline__ float vk_simt_exp10f(float x) { return std::pow(10.0f, x); }
__forceinline__ float vk_simt_logf(float x) { return std::log(x); }
__forceinline__ float vk_simt_log2f(float x) { return std::log2(x); }
__forceinline__ float vk_simt_log10f(float x) { return std::log10(x); }
__forceinline__ float vk_simt_sinf(float x) { return std::sin(x); }
__forceinline__ float vk_simt_cosf(float x) { return std::cos(x); }
__forceinline__ float vk_simt_powf(float x, float y) { return std::pow(x, y); }
__forceinline__ double vk_simt_rsqrt(double x) { return 1.0 / std::sqrt(x); }
#define rsqrtf vk_simt_rsqrtf
#define rsqrt vk_simt_rsqrt
#define __expf vk_simt_expf
#define __exp10f vk_simt_exp10f
#define __logf vk_simt_logf
#define __log2f vk_simt_log2f
#define __log10f vk_simt_log10f
#define __sinf vk_simt_sinf
#define __cosf vk_simt_cosf
#define __powf vk_simt_powf
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }
__forceinline__ float __fsqrt_rn(float x) { return std::sqrt(x); }
__forceinline__ float __fadd_rn(float x, float y) { return x + y; }
__forceinline__ float __fsub_rn(float x, float y) { return x - y; }
__forceinline__ float __fdiv_rn(float x, float y) { return x / y; }
__forceinline__ float __fmul_rn(float x, float y) { return x * y; }
__forceinline__ float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
__forceinline__ float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
__forceinline__ float __int_as_float(int x) { return ::vk::bit_cast<float>(x); }
__forceinline__ float __uint_as_float(uint32_t x) { return ::vk::bit_cast<float>(x); }
__forceinline__ int __float_as_int(float x) { return ::vk::bit_cast<int>(x); }
__forceinline__ uint32_t __float_as_uint(float x) { return ::vk::bit_cast<uint32_t>(x); }
__forceinline__ int __float2int_rn(float x) { return int(std::nearbyint(x)); }
__forceinline__ long long __float2ll_rn(float x) { return static_cast<long long>(std::nearbyint(x)); }
__forceinline__ int __float2int_rz(float x) { return int(x); }
__forceinline__ int __float2int_rd(float x) { return int(std::floor(x)); }
__forceinline__ int __float2int_ru(float x) { return int(std::ceil(x)); }
__forceinline__ uint32_t __float2uint_rn(float x) { return uint32_t(std::nearbyint(x)); }
__forceinline__ float __int2float_rn(int x) { return float(x); }
__forceinline__ float __uint2float_rn(uint32_t x) { return float(x); }

#define VK_SIMT_MIN_MAX(T)                                            \
  __forceinline__ constexpr T min(T a, T b) { return b < a ? b : a; } \
  __forceinline__ constexpr T max(T a, T b) { return a < b ? b : a; }
VK_SIMT_MIN_MAX(int)
VK_SIMT_MIN_MAX(unsigned)
VK_SIMT_MIN_MAX(long)
VK_SIMT_MIN_MAX(unsigned long)
VK_SIMT_MIN_MAX(long long)
VK_SIMT_MIN_MAX(unsigned long long)
// CUDA's float min and max are fmin and fmax: a NaN loses.
__forceinline__ float min(float a, float b) { return std::fmin(a, b); }
__forceinline__ float max(float a, float b) { return std::fmax(a, b); }
__forceinline__ double min(double a, double b) { return std::fmin(a, b); }
__forceinline__ double max(double a, double b) { return std::fmax(a, b); }
#undef VK_SIMT_VECTORS
#undef VK_SIMT_SHUFFLE
#undef VK_SIMT_ATOMIC
#undef VK_SIMT_MIN_MAX
