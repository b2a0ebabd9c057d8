// Who owns what
//   forward   one block per (b, kRows places): it reads source[b] once and notes in shared memory how many tokens land
//             on each of its places and which is the first; then its warps write every row of merged once. A row of
//             one token is copied; for one of several the warp walks source[b] from the first on, 32 at a time,
//             remembers its first kListed tokens (it looks for the others again), and adds in ascending n, each lane
//             some columns. Integer atomics only, so one fixed order of sums.
//   backward  one warp per token: its share times a row of grad_merged.
#include "device/vk_members.cuh"
#include "ops/merge_tokens/merge_tokens.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 32;
constexpr int kListed = 32;
constexpr int kColumns = 4;  // sums that a lane holds at a time

template <class T>
using SumOf = decltype(to_float(T{}));

template <class T>
__device__ __forceinline__ void store_sum(T& to, float value) {
  to = from_float<T>(value);
}
__device__ __forceinline__ void store_sum(double& to, double value) { to = value; }

template <class T, class V>
__global__ void merge_tokens_forward_kernel(const T* __restrict__ tokens, const int32_t* __restrict__ sources,
                                            const SumOf<T>* __restrict__ sizes, T* __restrict__ merged,
                                            SumOf<T>* __restrict__ total, int64_t length, int64_t count, int64_t dim) {
  using Sum = SumOf<T>;
  __shared__ int32_t first[kRows];
  __shared__ int32_t members[kRows];
  __shared__ int32_t lists[kWarps][kListed];
  const int64_t m0 = int64_t(blockIdx.x) * kRows, b = blockIdx.y;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (threadIdx.x < kRows) {
    first[threadIdx.x] = 0x7fffffff;
    members[threadIdx.x] = 0;
  }
  __syncthreads();
  const int32_t* source = sources + b * length;
  const Sum* size = sizes ? sizes + b * length : nullptr;
  for (int64_t n = threadIdx.x; n < length; n += kThreads) {
    const int64_t m = source[n] - m0;
    if (m >= 0 && m < kRows) {
      atomicMin(&first[m], int32_t(n));
      atomicAdd(&members[m], 1);
    }
  }
  __syncthreads();
  constexpr int kPack = sizeof(V) / sizeof(T);
  const T* rows = tokens + b * length * dim;
  for (int r = warp; r < kRows && m0 + r < count; r += kWarps) {
    const int64_t m = m0 + r;
    int32_t* list = lists[warp];
    int listed = 0, last = first[r];
    Sum whole = 0;
    if (members[r] == 1) {
      whole = size ? size[first[r]] : Sum(1);
    } else {
      __syncwarp();  // the list of the row before has been read
      each_member(source, length, first[r], members[r], m, [&](int64_t n) {
        whole += size ? size[n] : Sum(1);
        if (listed < kListed) {
          if (lane == 0) list[listed] = int32_t(n);
          ++listed;
          last = int32_t(n);
        }
      });
      __syncwarp();
    }
    if (lane == 0) total[b * count + m] = whole;
    T* out = merged + (b * count + m) * dim;
    const bool any = whole > 0;
    if (!any || members[r] == 1) {
      const V* row = reinterpret_cast<const V*>(rows + (any ? first[r] : 0) * dim);
      for (int64_t i = lane; i < dim / kPack; i += 32) reinterpret_cast<V*>(out)[i] = any ? row[i] : V{};
      continue;
    }
    for (int64_t d0 = lane; d0 - lane < dim; d0 += 32 * kColumns) {
      Sum sum[kColumns] = {};
      const auto add = [&](int64_t n) {
        const Sum share = (size ? size[n] : Sum(1)) / whole;
        if (share > 0) {
#pragma unroll
          for (int c = 0; c < kColumns; ++c)
            if (d0 + 32 * c < dim) sum[c] += share * to_float(rows[n * dim + d0 + 32 * c]);
        }
      };
      for (int k = 0; k < listed; ++k) add(list[k]);
      each_member(source, length, last + 1, members[r] - listed, m, add);
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (d0 + 32 * c < dim) store_sum(out[d0 + 32 * c], sum[c]);
    }
  }
}

template <class T, class V>
__global__ void merge_tokens_backward_kernel(const T* __restrict__ grad_merged, const int32_t* __restrict__ source,
                                             const SumOf<T>* __restrict__ size, const SumOf<T>* __restrict__ total,
                                             T* __restrict__ grad, int64_t rows, int64_t length, int64_t count,
                                             int64_t dim) {
  using Sum = SumOf<T>;
  const int lane = threadIdx.x & 31;
  const int64_t i = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (i >= rows) return;
  const int32_t m = source[i];
  const bool inside = uint32_t(m) < uint64_t(count);
  const int64_t place = i / length * count + (inside ? m : 0);
  const Sum whole = inside ? total[place] : Sum(0);
  const Sum share = whole > 0 ? (size ? size[i] : Sum(1)) / whole : Sum(0);
  constexpr int kPack = sizeof(V) / sizeof(T);
  const V* row = reinterpret_cast<const V*>(grad_merged + place * dim);
  V* out = reinterpret_cast<V*>(grad + i * dim);
  for (int64_t k = lane; k < dim / kPack; k += 32) {
    V v{};
    if (share > 0) {
      v = row[k];
      if (share != 1) {
        T parts[kPack];
        memcpy(parts, &v, sizeof(V));
#pragma unroll
        for (int p = 0; p < kPack; ++p) store_sum(parts[p], share * to_float(parts[p]));
        memcpy(&v, parts, sizeof(V));
      }
    }
    out[k] = v;
  }
}

template <class T>
bool wide_rows(const void* a, const void* b, int64_t dim) {
  return dim * int64_t(sizeof(T)) % 16 == 0 && (uintptr_t(a) | uintptr_t(b)) % 16 == 0;
}

template <class T>
void launch_forward(const MergeTokens& a, vk_stream_t stream) {
  const dim3 grid(unsigned((a.count + kRows - 1) / kRows), unsigned(a.batch));
  const T* tokens = static_cast<const T*>(a.tokens);
  const auto* size = static_cast<const SumOf<T>*>(a.size);
  T* merged = static_cast<T*>(a.merged);
  auto* total = static_cast<SumOf<T>*>(a.total);
  if (wide_rows<T>(tokens, merged, a.dim))
    VK_LAUNCH((merge_tokens_forward_kernel<T, uint4>), grid, kThreads, 0, stream, tokens, a.source, size, merged, total,
              a.length, a.count, a.dim);
  else
    VK_LAUNCH((merge_tokens_forward_kernel<T, T>), grid, kThreads, 0, stream, tokens, a.source, size, merged, total,
              a.length, a.count, a.dim);
}

template <class T>
void launch_backward(const MergeTokensBackward& a, vk_stream_t stream) {
  const int64_t rows = a.batch * a.length;
  const unsigned grid = unsigned((rows + kWarps - 1) / kWarps);
  const T* grad_merged = static_cast<const T*>(a.grad_merged);
  const auto *size = static_cast<const SumOf<T>*>(a.size), *total = static_cast<const SumOf<T>*>(a.total);
  T* grad = static_cast<T*>(a.grad);
  if (wide_rows<T>(grad_merged, grad, a.dim))
    VK_LAUNCH((merge_tokens_backward_kernel<T, uint4>), grid, kThreads, 0, stream, grad_merged, a.source, size, total,
              grad, rows, a.length, a.count, a.dim);
  else
    VK_LAUNCH((merge_tokens_backward_kernel<T, T>), grid, kThreads, 0, stream, grad_merged, a.source, size, total, grad,
              rows, a.length, a.count, a.dim);
}

}  // namespace

void merge_tokens_cuda(const MergeTokens& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.batch * a.count == 0) return;
  switch (a.element) {
    case Element::f32: return launch_forward<float>(a, stream);
    case Element::f64: return launch_forward<double>(a, stream);
    case Element::f16: return launch_forward<f16>(a, stream);
    case Element::bf16: return launch_forward<bf16>(a, stream);
  }
}

void merge_tokens_backward_cuda(const MergeTokensBackward& a, void* stream_pointer) {
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
