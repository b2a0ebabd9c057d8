// Who lands where: the items of a map that share a place, found by a warp in ascending order, so that sums over them
// need no float atomics and no sorted copy of the map.
#pragma once
#include "device/vk_device.cuh"

namespace vk {

/// f(n) for the first `members` items n of [begin, length) with place[n] == m, ascending, in all lanes together.
template <class F>
__device__ __forceinline__ void each_member(const int32_t* place, int64_t length, int64_t begin, int members, int64_t m,
                                            F f) {
  const int lane = threadIdx.x & 31;
  for (int64_t n0 = begin; members > 0 && n0 < length; n0 += 32) {
    unsigned here = __ballot_sync(0xffffffffu, n0 + lane < length && place[n0 + lane] == m);
    for (; here && members > 0; here &= here - 1, --members) f(n0 + __ffs(int(here)) - 1);
  }
}

}  // namespace vk
