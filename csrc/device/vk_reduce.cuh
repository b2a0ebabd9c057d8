// Reductions over a warp and over a block, in one fixed order: the same bits on every run and every card.
//
// A block reduction is: butterfly in each warp -> one value per warp in shared scratch -> the same butterfly over the
// scratch in every warp. All threads of the block (a multiple of 32) must call it, and all get the result.
#pragma once
#include "device/vk_device.cuh"

namespace vk {

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

/// Result in all lanes of each group of `Width` lanes. The butterfly gives every lane the same bits when op commutes.
template <int Width = 32, class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int step = Width / 2; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}
template <int Width = 32, class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce<Width>(value, Sum());
}
template <int Width = 32, class T>
__device__ __forceinline__ T warp_max(T value) {
  return warp_reduce<Width>(value, Max());
}
template <int Width = 32, class T>
__device__ __forceinline__ T warp_min(T value) {
  return warp_reduce<Width>(value, Min());
}

/// `scratch`: 32 T of shared memory; free to reuse after the next __syncthreads. `identity`: op(x, identity) == x.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T identity, T* scratch) {
  const int thread = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int warps = int(blockDim.x * blockDim.y * blockDim.z) / 32;
  value = warp_reduce(value, op);
  if (thread % 32 == 0) scratch[thread / 32] = value;
  __syncthreads();
  return warp_reduce(thread % 32 < warps ? scratch[thread % 32] : identity, op);
}
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(value, Sum(), T(0), scratch);
}
/// `lowest` / `highest`: a value that no input goes below / above.
template <class T>
__device__ __forceinline__ T block_max(T value, T lowest, T* scratch) {
  return block_reduce(value, Max(), lowest, scratch);
}
template <class T>
__device__ __forceinline__ T block_min(T value, T highest, T* scratch) {
  return block_reduce(value, Min(), highest, scratch);
}

/// Inclusive prefix sum over the lanes of a warp.
template <class T>
__device__ __forceinline__ T warp_scan(T value) {
  const int lane = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T below = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += below;
  }
  return value;
}

}  // namespace vk
