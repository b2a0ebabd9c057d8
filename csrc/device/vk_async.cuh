// Copies from global to shared memory that run beside the kernel (cp.async, sm_80 and later).
//
//   cp_async16(dst, src); cp_commit();    issue, then close the group
//   cp_wait<N>();                         all but the newest N groups of THIS thread have landed
//   __syncthreads();                      ... and now those of the other threads, too
#pragma once
#include "device/vk_device.cuh"

namespace vk {

/// Copies `Bytes` (4, 8 or 16) to shared memory; the bytes from `source_bytes` on are written as zeros and not read.
/// Both addresses must be multiples of Bytes.
template <int Bytes>
__device__ __forceinline__ void cp_async_zfill(void* shared, const void* global, int source_bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#ifdef VK_SIMT
  ::simt::cp_async(shared, global, Bytes, source_bytes);
#else
  const uint32_t address = uint32_t(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)  // .cg skips the L1 cache; only 16 bytes may
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(source_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
#endif
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global) { cp_async_zfill<4>(shared, global, 4); }
__device__ __forceinline__ void cp_async8(void* shared, const void* global) { cp_async_zfill<8>(shared, global, 8); }
__device__ __forceinline__ void cp_async16(void* shared, const void* global) { cp_async_zfill<16>(shared, global, 16); }
/// Zeros where `keep` is false; `global` is then not read, but must still be a valid aligned address.
__device__ __forceinline__ void cp_async4_zfill(void* shared, const void* global, bool keep) {
  cp_async_zfill<4>(shared, global, keep ? 4 : 0);
}
__device__ __forceinline__ void cp_async8_zfill(void* shared, const void* global, bool keep) {
  cp_async_zfill<8>(shared, global, keep ? 8 : 0);
}
__device__ __forceinline__ void cp_async16_zfill(void* shared, const void* global, bool keep) {
  cp_async_zfill<16>(shared, global, keep ? 16 : 0);
}

__device__ __forceinline__ void cp_commit() {
#ifdef VK_SIMT
  ::simt::cp_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int GroupsInFlight>
__device__ __forceinline__ void cp_wait() {
#ifdef VK_SIMT
  ::simt::cp_wait(GroupsInFlight);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsInFlight) : "memory");
#endif
}

}  // namespace vk
