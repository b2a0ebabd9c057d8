// Who owns what
//   forward   one warp per gathered row; lanes copy it in 16-byte pieces (or single elements where rows are odd)
//   backward  one block per (b, kRows rows of grad): it reads index[b] once, notes in shared memory which source
//             row lands on each of its rows, then its warps write every row once. Rows with several sources
//             (never the case for a mask) are summed in ascending k: no float atomics, one fixed order.
#include "device/vk_members.cuh"
#include "ops/gather_tokens/gather_tokens.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 32;
constexpr int kColumns = 4;  // sums that a lane holds at a time

template <class V>
__global__ void gather_tokens_forward_kernel(const V* __restrict__ tokens, const int32_t* __restrict__ index,
                                             V* __restrict__ out, int64_t rows, int64_t length, int64_t count,
                                             int64_t row_vectors) {
  const int lane = threadIdx.x & 31;
  const int64_t row = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (row >= rows) return;
  const int32_t n = index[row];
  const bool inside = uint32_t(n) < uint64_t(length);
  const V* source = tokens + (row / count * length + (inside ? n : 0)) * row_vectors;
  V* target = out + row * row_vectors;
  for (int64_t i = lane; i < row_vectors; i += 32) target[i] = inside ? source[i] : V{};
}

template <class T>
__device__ __forceinline__ void store_sum(T& to, float value) {
  to = from_float<T>(value);
}
__device__ __forceinline__ void store_sum(double& to, double value) { to = value; }

template <class T, class V>
__global__ void gather_tokens_backward_kernel(const T* __restrict__ grad_out, const int32_t* __restrict__ index,
                                              T* __restrict__ grad, int64_t length, int64_t count, int64_t dim) {
  __shared__ int32_t first[kRows];
  __shared__ int32_t sources[kRows];
  const int64_t n0 = int64_t(blockIdx.x) * kRows, b = blockIdx.y;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (threadIdx.x < kRows) {
    first[threadIdx.x] = 0x7fffffff;
    sources[threadIdx.x] = 0;
  }
  __syncthreads();
  const int32_t* mine = index + b * count;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) {
    const int64_t n = mine[k] - n0;
    if (n >= 0 && n < kRows) {
      atomicMin(&first[n], int32_t(k));
      atomicAdd(&sources[n], 1);
    }
  }
  __syncthreads();
  constexpr int kPack = sizeof(V) / sizeof(T);
  for (int r = warp; r < kRows && n0 + r < length; r += kWarps) {
    T* target = grad + (b * length + n0 + r) * dim;
    if (sources[r] <= 1) {
      const bool any = sources[r] == 1;
      const V* source = reinterpret_cast<const V*>(grad_out + (b * count + (any ? first[r] : 0)) * dim);
      for (int64_t i = lane; i < dim / kPack; i += 32) reinterpret_cast<V*>(target)[i] = any ? source[i] : V{};
    } else {
      using Sum = decltype(to_float(T{}));
      for (int64_t d0 = lane; d0 - lane < dim; d0 += 32 * kColumns) {
        Sum sum[kColumns] = {};
        each_member(mine, count, first[r], sources[r], n0 + r, [&](int64_t k) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            if (d0 + 32 * c < dim) sum[c] += to_float(grad_out[(b * count + k) * dim + d0 + 32 * c]);
        });
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (d0 + 32 * c < dim) store_sum(target[d0 + 32 * c], sum[c]);
      }
    }
  }
}

template <class V>
void launch_forward(const GatherTokens& a, vk_stream_t stream) {
  const int64_t rows = a.batch * a.count;
  VK_LAUNCH((gather_tokens_forward_kernel<V>), unsigned((rows + kWarps - 1) / kWarps), kThreads, 0, stream,
            static_cast<const V*>(a.tokens), a.index, static_cast<V*>(a.out), rows, a.length, a.count,
            a.row_bytes / int64_t(sizeof(V)));
}

template <class T>
void launch_backward(const GatherTokensBackward& a, vk_stream_t stream) {
  const dim3 grid(unsigned((a.length + kRows - 1) / kRows), unsigned(a.batch));
  const T* grad_out = static_cast<const T*>(a.grad_out);
  T* grad = static_cast<T*>(a.grad);
  const bool wide = a.dim * sizeof(T) % 16 == 0 && (uintptr_t(grad_out) | uintptr_t(grad)) % 16 == 0;
  if (wide)
    VK_LAUNCH((gather_tokens_backward_kernel<T, uint4>), grid, kThreads, 0, stream, grad_out, a.index, grad, a.length,
              a.count, a.dim);
  else
    VK_LAUNCH((gather_tokens_backward_kernel<T, T>), grid, kThreads, 0, stream, grad_out, a.index, grad, a.length,
              a.count, a.dim);
}

}  // namespace

void gather_tokens_cuda(const GatherTokens& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.count == 0 || a.row_bytes == 0) return;
  const uintptr_t alignment = uintptr_t(a.tokens) | uintptr_t(a.out) | uintptr_t(a.row_bytes);
  if (alignment % 16 == 0)
    launch_forward<uint4>(a, stream);
  else if (alignment % 4 == 0)
    launch_forward<uint32_t>(a, stream);
  else
    launch_forward<uint16_t>(a, stream);
}

void gather_tokens_backward_cuda(const GatherTokensBackward& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.length * a.dim == 0) return;
  switch (a.element) {
    case Element::f32: return launch_backward<float>(a, stream);
    case Element::f64: return launch_backward<double>(a, stream);
    case Element::f16: return launch_backward<f16>(a, stream);
    case Element::bf16: return launch_backward<bf16>(a, stream);
  }
}

}  // namespace vk
