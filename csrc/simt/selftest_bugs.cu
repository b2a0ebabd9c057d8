// One kernel per kind of mistake. Variant 0 is right, variant 1 has the mistake, and `// BUG name` marks the line on
// which the emulator must report it.
#include "device/vk_async.cuh"
#include "device/vk_device.cuh"
#include "device/vk_reduce.cuh"
#include "simt/selftest.h"

namespace vk {
namespace {

constexpr int kThreads = 128;

template <bool Bug>
__global__ void race_block_kernel(const float* x, float* y) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x;
  s[t] = x[blockIdx.x * kThreads + t];
  if (!Bug) __syncthreads();
  y[blockIdx.x * kThreads + t] = s[(t + 32) % kThreads];  // BUG race_block
}

template <bool Bug>
__global__ void race_warp_kernel(const float* x, float* y) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  s[t] = x[t];
  __syncwarp();
  const float v = s[t ^ 1];
  if (!Bug) __syncwarp();
  s[t] = v + 1;  // BUG race_warp
  __syncwarp();
  y[t] = s[t];
}

// Half of the lanes meet: that orders nothing for the others.
template <bool Bug>
__global__ void race_partial_kernel(const float* x, float* y) {
  __shared__ float s[32];
  const int t = threadIdx.x;
  s[t] = x[t];
  if (t < 16) __syncwarp(0x0000ffffu);
  if (!Bug) __syncwarp();
  y[t] = t < 16 ? s[t + 16] : 0.0f;  // BUG race_partial
}

// Neighbouring bytes of one word belong to different threads: no race unless they really share a byte.
template <bool Bug>
__global__ void race_bytes_kernel(const float* x, float* y) {
  __shared__ unsigned char s[kThreads];
  const int t = threadIdx.x;
  s[Bug ? t / 2 : t] = (unsigned char)(x[t]);  // BUG race_bytes
  __syncthreads();
  y[t] = s[t / 2];
}

template <bool Bug>
__global__ void race_atomic_kernel(const float* x, float* y) {
  __shared__ int sum;
  const int t = threadIdx.x;
  if (t == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, int(x[t]));
  if (!Bug) __syncthreads();
  y[t] = float(sum);  // BUG race_atomic
}

template <bool Bug>
__global__ void divergent_exit_kernel(const float* x, float* y, int n) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  if (Bug && i >= n) return;
  s[t] = i < n ? x[i] : 0.0f;
  __syncthreads();  // BUG divergent_exit
  if (i < n) y[i] = s[t];
}

template <bool Bug>
__global__ void divergent_wait_kernel(const float* x, float* y) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x;
  s[t] = x[t];
  if (Bug && t >= 64)
    __syncthreads();
  else
    __syncthreads();  // BUG divergent_wait
  y[t] = s[kThreads - 1 - t];
}

template <bool Bug>
__global__ void read_outside_kernel(const float* x, float* y, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i < n) y[i] = x[i + (Bug ? 1 : 0)];  // BUG read_outside
}

template <bool Bug>
__global__ void write_outside_kernel(const float* x, float* y, int n) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  const float v = i < n ? x[i] : 0.0f;
  if (Bug || i < n) y[i] = v;  // BUG write_outside
}

template <bool Bug>
__global__ void write_input_kernel(const float* x, float* y) {
  const int t = threadIdx.x;
  y[t] = x[t];
  if (Bug) const_cast<float*>(x)[t] = 0;  // BUG write_input
}

template <bool Bug>
__global__ void shared_outside_kernel(const float* x, float* y) {
  VK_DYN_SHARED(float, s);
  const int t = threadIdx.x;
  s[Bug ? t + 1 : t] = x[t];  // BUG shared_outside
  __syncthreads();
  y[t] = s[t ? t : 1];
}

template <bool Bug>
__global__ void static_outside_kernel(const float* x, float* y) {
  __shared__ float first[kThreads];
  __shared__ float second[kThreads];
  const int t = threadIdx.x;
  first[t] = second[t] = 1;
  __syncthreads();
  first[t + (Bug ? 4 : 0)] += x[t];  // BUG static_outside
  __syncthreads();
  y[t] = first[t] + second[t];
}

template <bool Bug>
__global__ void uninitialised_shared_kernel(const float* x, float* y) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x;
  if (!Bug || t != 5) s[t] = x[t];
  __syncthreads();
  y[t] = s[kThreads - 1 - t];  // BUG uninitialised_shared
}

template <bool Bug>
__global__ void uninitialised_global_kernel(const float* x, float* y) {
  const int t = threadIdx.x;
  if (!Bug) y[t] = 0;
  y[t] += x[t];  // BUG uninitialised_global
}

template <bool Bug>
__global__ void async_read_kernel(const float* x, float* y) {
  __shared__ __align__(16) float s[4 * kThreads];
  const int t = threadIdx.x;
  cp_async16(&s[4 * t], &x[4 * t]);
  cp_commit();
  if (!Bug) cp_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[4 * t + i] = s[(4 * t + i + 4) % (4 * kThreads)];  // BUG async_read
}

template <bool Bug>
__global__ void async_overwrite_kernel(const float* x, float* y) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x;
  cp_async4(&s[t], &x[t]);
  cp_commit();
  if (!Bug) cp_wait<0>();
  s[t] = 1;  // BUG async_overwrite
  cp_wait<0>();
  y[t] = s[t];
}

// Each thread waits for its own copies; those of the others need a barrier, too.
template <bool Bug>
__global__ void async_barrier_kernel(const float* x, float* y) {
  __shared__ float s[kThreads];
  const int t = threadIdx.x;
  cp_async4(&s[t], &x[t]);
  cp_commit();
  cp_wait<0>();
  if (!Bug) __syncthreads();
  y[t] = s[t ^ 64];  // BUG async_barrier
}

template <bool Bug>
__global__ void misaligned_kernel(const float* x, float* y) {
  const int t = threadIdx.x;
  const float4 v = *reinterpret_cast<const float4*>(x + 4 * t + (Bug && t == 3 ? 1 : 0));  // BUG misaligned
  y[t] = v.x + v.y + v.z + v.w;
}

template <bool Bug>
__global__ void collective_exited_kernel(const float* x, float* y, int n) {
  const int t = threadIdx.x;
  if (Bug && t >= n - 3) return;
  const float v = t < n ? x[t] : 0.0f;
  const float sum = v + __shfl_xor_sync(0xffffffffu, v, 16);  // BUG collective_exited
  if (t < n) y[t] = sum;
}

template <bool Bug>
__global__ void collective_branch_kernel(const float* x, float* y) {
  const int t = threadIdx.x;
  float v = x[t];
  if (t < 16) v = __shfl_xor_sync(Bug ? 0xffffffffu : 0x0000ffffu, v, 1);  // BUG collective_branch
  y[t] = v;
}

template <bool Bug>
__global__ void collective_mask_kernel(const float* x, float* y) {
  const int t = threadIdx.x;
  y[t] = __ballot_sync(Bug ? 0x7fffffffu : 0xffffffffu, x[t] > 0) ? 1.0f : 0.0f;  // BUG collective_mask
}

template <bool Bug>
__global__ void collective_absent_kernel(const float* x, float* y, int n) {
  const int t = threadIdx.x;
  const float v = t < n ? x[t] : 0.0f;
  const float other = __shfl_xor_sync(0xffffffffu, v, 16);  // BUG collective_absent
  if (t < n) y[t] = v + other;
}

template <bool Bug>
__global__ void division_kernel(const int* x, int* y) {
  const int t = threadIdx.x;
  y[t] = 100 / (x[t] + (Bug ? 0 : 1));  // BUG division
}

__device__ __noinline__ float recurse(const float* x, int depth) {
  volatile float big[256];
  big[depth & 255] = x[0];
  return depth <= 0 ? big[0] : recurse(x, depth - 1) + big[depth & 255];
}
template <bool Bug>
__global__ void recursion_kernel(const float* x, float* y) {
  y[threadIdx.x] = recurse(x, Bug ? 1 << 30 : 3);
}

template <bool Bug>
__global__ void wild_pointer_kernel(const float* x, float* y) {
  const float* p = Bug ? reinterpret_cast<const float*>(uintptr_t(64)) : x;
  y[threadIdx.x] = p[threadIdx.x];  // BUG wild_pointer
}

template <bool Bug>
__global__ void endless_kernel(const float* x, float* y) {
  volatile unsigned v = unsigned(x[threadIdx.x]) | 1u;  // odd for ever: 5v + 2
  while (Bug ? v != 0 : v < 1000u) v = v * 5u + 2u;     // BUG endless
  y[threadIdx.x] = float(v);
}

template <bool Bug>
__global__ void spin_kernel(const float* x, int* y) {
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  if (threadIdx.x == kThreads - 1) atomicExch(&flag, Bug ? 0 : 1);
  while (atomicAdd(&flag, 0) == 0) {  // BUG spin
  }
  y[threadIdx.x] = int(x[0]);
}

template <bool Bug>
__global__ void trap_kernel(const float* x, float* y) {
  if (Bug && threadIdx.x == 7) __trap();  // BUG trap
  y[threadIdx.x] = x[threadIdx.x];
}

// A mistake inside a helper: the report names both lines.
template <bool Bug>
__global__ void helper_kernel(const float* x, float* y) {
  __shared__ float scratch[32];
  const float a = block_sum(x[threadIdx.x], scratch);
  if (!Bug) __syncthreads();
  const float b = block_sum(a, scratch);  // BUG helper
  y[threadIdx.x] = b;
}

#define VK_RUN(name, blocks, threads, shared, X, Y, ...)                                                   \
  void run_##name(const void* px, void* py, int n, int variant, void* stream_pointer) {                    \
    const auto stream = static_cast<vk_stream_t>(stream_pointer);                                          \
    const auto* x = static_cast<const X*>(px);                                                             \
    auto* y = static_cast<Y*>(py);                                                                         \
    (void)n;                                                                                               \
    if (variant)                                                                                           \
      VK_LAUNCH((name##_kernel<true>), blocks, threads, shared, stream, x, y __VA_OPT__(, ) __VA_ARGS__);  \
    else                                                                                                   \
      VK_LAUNCH((name##_kernel<false>), blocks, threads, shared, stream, x, y __VA_OPT__(, ) __VA_ARGS__); \
  }
VK_RUN(race_block, 3, kThreads, 0, float, float)
VK_RUN(race_warp, 1, 32, 0, float, float)
VK_RUN(race_partial, 1, 32, 0, float, float)
VK_RUN(race_bytes, 1, kThreads, 0, float, float)
VK_RUN(race_atomic, 1, kThreads, 0, float, float)
VK_RUN(divergent_exit, (n + kThreads - 1) / kThreads, kThreads, 0, float, float, n)
VK_RUN(divergent_wait, 1, kThreads, 0, float, float)
VK_RUN(read_outside, (n + kThreads - 1) / kThreads, kThreads, 0, float, float, n)
VK_RUN(write_outside, (n + kThreads - 1) / kThreads, kThreads, 0, float, float, n)
VK_RUN(write_input, 1, kThreads, 0, float, float)
VK_RUN(shared_outside, 1, kThreads, kThreads * 4, float, float)
VK_RUN(static_outside, 1, kThreads, 0, float, float)
VK_RUN(uninitialised_shared, 1, kThreads, 0, float, float)
VK_RUN(uninitialised_global, 1, kThreads, 0, float, float)
VK_RUN(async_read, 1, kThreads, 0, float, float)
VK_RUN(async_overwrite, 1, kThreads, 0, float, float)
VK_RUN(async_barrier, 1, kThreads, 0, float, float)
VK_RUN(misaligned, 1, kThreads, 0, float, float)
VK_RUN(collective_exited, 1, 32, 0, float, float, n)
VK_RUN(collective_branch, 1, 32, 0, float, float)
VK_RUN(collective_mask, 1, 32, 0, float, float)
VK_RUN(collective_absent, 1, variant ? 16 : 32, 0, float, float, n)
VK_RUN(division, 1, kThreads, 0, int, int)
VK_RUN(recursion, 1, 32, 0, float, float)
VK_RUN(wild_pointer, 1, 32, 0, float, float)
VK_RUN(endless, 1, 32, 0, float, float)
VK_RUN(spin, 1, kThreads, 0, float, int)
VK_RUN(trap, 1, kThreads, 0, float, float)
VK_RUN(helper, 1, kThreads, 0, float, float)
#undef VK_RUN

// What a launch may not ask for: variant 1 too many threads, 2 an empty grid, 3 too much shared memory.
__global__ void nothing_kernel(const float*, float*) {}
void run_launch_limits(const void* x, void* y, int, int variant, void* stream) {
  VK_LAUNCH(nothing_kernel, variant == 2 ? 0 : 1, variant == 1 ? 1025 : 32, variant == 3 ? 1 << 20 : 0,
            static_cast<vk_stream_t>(stream), static_cast<const float*>(x), static_cast<float*>(y));
}

}  // namespace

#define VK_TEST(name) {#name, run_##name, false}
const SelfTest kSelfTestBugs[] = {VK_TEST(race_block),
                                  VK_TEST(race_warp),
                                  VK_TEST(race_partial),
                                  VK_TEST(race_bytes),
                                  VK_TEST(race_atomic),
                                  VK_TEST(divergent_exit),
                                  VK_TEST(divergent_wait),
                                  VK_TEST(read_outside),
                                  VK_TEST(write_outside),
                                  VK_TEST(write_input),
                                  VK_TEST(shared_outside),
                                  VK_TEST(static_outside),
                                  VK_TEST(uninitialised_shared),
                                  VK_TEST(uninitialised_global),
                                  VK_TEST(async_read),
                                  VK_TEST(async_overwrite),
                                  VK_TEST(async_barrier),
                                  VK_TEST(misaligned),
                                  VK_TEST(collective_exited),
                                  VK_TEST(collective_branch),
                                  VK_TEST(collective_mask),
                                  VK_TEST(collective_absent),
                                  VK_TEST(division),
                                  VK_TEST(recursion),
                                  VK_TEST(wild_pointer),
                                  VK_TEST(endless),
                                  VK_TEST(spin),
                                  VK_TEST(trap),
                                  VK_TEST(helper),
                                  VK_TEST(launch_limits),
                                  {nullptr, nullptr, false}};
#undef VK_TEST

}  // namespace vk
