// What every kernel file includes. Under nvcc this is CUDA plus a launch macro; under g++ with VK_SIMT the same names
// run in the emulator (csrc/simt). Rules for kernels: csrc/simt/README.md.
//
//   VK_LAUNCH((kernel<T, N>), grid, block, dynamic_shared_bytes, stream, arguments...)
//   VK_DYN_SHARED(T, name)          the block's dynamic shared memory as T*
//   __shared__ __align__(16) T x[N] alignment goes after __shared__
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/half.h"

#ifdef VK_SIMT
#include "simt/device_emulation.h"
#else
#include <cuda_runtime.h>

using vk_stream_t = cudaStream_t;

namespace vk {

extern __shared__ __align__(128) unsigned char dynamic_shared_memory[];

template <class... Parameters, class... Arguments>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream,
                   Arguments&&... arguments) {
  // Beyond 48 KiB a kernel has to ask; a refusal stays in cudaGetLastError, like a failed launch.
  if (dynamic_shared > 48 * 1024 &&
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                           int(dynamic_shared)) != cudaSuccess)
    return;
  // clang-format off: it writes `> > >`, which nvcc refuses
  kernel<<<grid, block, dynamic_shared, stream>>>(static_cast<Parameters>(arguments)...);
  // clang-format on
}

inline void memset_async(void* data, int value, size_t bytes, vk_stream_t stream) {
  cudaMemsetAsync(data, value, bytes, stream);
}

}  // namespace vk

#define VK_LAUNCH(kernel, grid, block, dynamic_shared, stream, ...) \
  ::vk::launch_kernel(kernel, grid, block, dynamic_shared, stream __VA_OPT__(, ) __VA_ARGS__)
#define VK_DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(::vk::dynamic_shared_memory)
#endif

namespace vk {

/// N consecutive elements that one load or store instruction moves (at most 16 bytes per instruction).
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert((N & (N - 1)) == 0 && sizeof(T) * N <= 16);
  T data[N];
  __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

template <class T>
inline constexpr int kVecWidth = 16 / int(sizeof(T));  // elements of one 16-byte access

/// p must be aligned to sizeof(T) * N.
template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_vec(const T* p) {
  return *reinterpret_cast<const Vec<T, N>*>(p);
}
template <int N, class T>
__device__ __forceinline__ void store_vec(T* p, const Vec<T, N>& v) {
  *reinterpret_cast<Vec<T, N>*>(p) = v;
}

}  // namespace vk
