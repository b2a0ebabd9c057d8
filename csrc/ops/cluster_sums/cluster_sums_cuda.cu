// Who owns what
//   plan      a thread owns a cluster: where its points begin in the sorted list (binary search), how many there are,
//             and which pieces (kClusterBlock points or fewer) they make. Piece numbers have gaps, but need no prefix
//             sum: cluster c begins at piece first[c] / kClusterBlock + c, which grows by at least its pieces.
//   pieces    a warp owns a piece and 32 * V columns: its rows are added in ascending order, eight of them under way.
//             A cluster's only piece is written to `sums`, the pieces of larger ones to `partial`.
//   join      a block owns a sorted position that is a multiple of kClusterBlock, and 32 columns. If the position is
//             the first such of a cluster of several pieces, the block adds these up: each warp every eighth.
// One cluster with all points keeps as many warps busy as many small ones. No atomics, one order.
#include "device/vk_device.cuh"
#include "ops/cluster_sums/cluster_sums.h"

namespace vk {
namespace {

constexpr int kWarps = 4;
constexpr int kJoinWarps = 8;
constexpr int kUnderWay = 8;  // rows whose loads are issued together

struct Plan {
  const int32_t* first;  // [K + 1]
  const int32_t* piece;  // [pieces] the cluster it belongs to, or -1
};

__device__ __forceinline__ int64_t first_piece(int64_t first, int64_t c) { return first / kClusterBlock + c; }
/// Clusters of several pieces have more than kClusterBlock points, so these rows do not meet either.
__device__ __forceinline__ int64_t first_partial(int64_t first) { return first / (kClusterBlock / 2); }

template <class Sum>
__global__ void cluster_sums_plan_kernel(const int32_t* __restrict__ cluster, int64_t length, int64_t clusters,
                                         int32_t* __restrict__ first, int32_t* __restrict__ piece,
                                         Sum* __restrict__ counts) {
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c > clusters) return;
  const auto lower_bound = [&](int64_t value, int64_t low) {
    int64_t high = length;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cluster[middle] < value)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
  const int64_t begin = lower_bound(c, 0);
  first[c] = int32_t(begin);
  if (c == clusters) return;
  const int64_t count = lower_bound(c + 1, begin) - begin;
  counts[c] = Sum(count);
  const int64_t number = first_piece(begin, c);
  piece[number] = int32_t(c);
  for (int64_t j = 1; j * kClusterBlock < count; ++j) piece[number + j] = int32_t(c);
}

template <class T, int V>
__global__ void __launch_bounds__(kWarps * 32, 8)
    cluster_sums_pieces_kernel(const T* __restrict__ points, const int64_t* __restrict__ order, Plan plan,
                               decltype(to_float(T{}))* __restrict__ sums,
                               decltype(to_float(T{}))* __restrict__ partial, int64_t pieces, int64_t dim) {
  using Sum = decltype(to_float(T{}));
  const int lane = threadIdx.x % 32;
  const int64_t p = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t c = p < pieces ? plan.piece[p] : -1;
  if (c < 0) return;
  const int64_t first = plan.first[c], count = plan.first[c + 1] - first;
  const int64_t j = p - first_piece(first, c), begin = first + j * kClusterBlock;
  const int rows = int(count - j * kClusterBlock < kClusterBlock ? count - j * kClusterBlock : kClusterBlock);
  const int64_t column = (int64_t(blockIdx.y) * 32 + lane) * V;
  const bool mine = column < dim;
  const T* from = points + (mine ? column : 0);

  Vec<Sum, V> sum{};
  for (int done = 0; done < rows; done += 32) {
    const int here = rows - done < 32 ? rows - done : 32;
    const int64_t row = lane < here ? order[begin + done + lane] : 0;
    int k = 0;
    for (; k + kUnderWay <= here; k += kUnderWay) {
      Vec<T, V> x[kUnderWay];
#pragma unroll
      for (int u = 0; u < kUnderWay; ++u) x[u] = load_vec<V>(from + __shfl_sync(0xffffffffu, row, k + u) * dim);
#pragma unroll
      for (int u = 0; u < kUnderWay; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += to_float(x[u][v]);
    }
    for (; k < here; ++k) {
      const Vec<T, V> x = load_vec<V>(from + __shfl_sync(0xffffffffu, row, k) * dim);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += to_float(x[v]);
    }
  }
  Sum* to = count <= kClusterBlock ? sums + c * dim : partial + (first_partial(first) + j) * dim;
  if (mine) store_vec<V>(to + column, sum);
}

template <class Sum>
__global__ void __launch_bounds__(kJoinWarps * 32)
    cluster_sums_join_kernel(const int32_t* __restrict__ cluster, Plan plan, const Sum* __restrict__ partial,
                             Sum* __restrict__ sums, int64_t clusters, int64_t dim) {
  __shared__ Sum shares[kJoinWarps][32];
  const int64_t position = int64_t(blockIdx.x) * kClusterBlock;
  const int64_t c = cluster[position];
  if (c >= clusters) return;
  const int64_t first = plan.first[c], count = plan.first[c + 1] - first;
  if (count <= kClusterBlock || position - first >= kClusterBlock) return;  // the same for the whole block
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t(blockIdx.y) * 32 + lane;
  const Sum* from = partial + first_partial(first) * dim + (column < dim ? column : 0);
  Sum sum = 0;
  for (int64_t j = warp; j * kClusterBlock < count; j += kJoinWarps) sum += from[j * dim];
  shares[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= dim) return;
#pragma unroll
  for (int w = 1; w < kJoinWarps; ++w) sum += shares[w][lane];
  sums[c * dim + column] = sum;
}

template <class T, int V>
void launch_pieces(const ClusterSums& a, const Plan& plan, vk_stream_t stream) {
  using Sum = decltype(to_float(T{}));
  const dim3 grid(unsigned((a.pieces() + kWarps - 1) / kWarps), unsigned((a.dim + 32 * V - 1) / (32 * V)));
  VK_LAUNCH((cluster_sums_pieces_kernel<T, V>), grid, kWarps * 32, 0, stream, static_cast<const T*>(a.points), a.order,
            plan, static_cast<Sum*>(a.sums), static_cast<Sum*>(a.partial), a.pieces(), a.dim);
}

template <class T>
void launch(const ClusterSums& a, vk_stream_t stream) {
  using Sum = decltype(to_float(T{}));
  int32_t *first = a.plan, *piece = first + a.clusters + 1;
  memset_async(piece, 0xff, size_t(a.pieces()) * sizeof(int32_t), stream);
  constexpr int kThreads = 128;
  VK_LAUNCH((cluster_sums_plan_kernel<Sum>), unsigned(a.clusters / kThreads + 1), kThreads, 0, stream, a.cluster,
            a.length, a.clusters, first, piece, static_cast<Sum*>(a.counts));
  if (a.dim == 0) return;
  const Plan plan{first, piece};
  const auto fits = [&](int v) {  // full warps first, then wide loads
    const bool aligned = uintptr_t(a.points) % (sizeof(T) * v) == 0 && uintptr_t(a.sums) % (sizeof(Sum) * v) == 0 &&
                         uintptr_t(a.partial) % (sizeof(Sum) * v) == 0;
    return aligned && a.dim % v == 0 && a.dim >= 32 * v;
  };
  if (sizeof(Sum) == 4 && fits(4)) {
    if constexpr (sizeof(Sum) == 4) launch_pieces<T, 4>(a, plan, stream);
  } else if (fits(2)) {
    launch_pieces<T, 2>(a, plan, stream);
  } else {
    launch_pieces<T, 1>(a, plan, stream);
  }
  if (a.length <= kClusterBlock) return;
  const dim3 grid(unsigned((a.length + kClusterBlock - 1) / kClusterBlock), unsigned((a.dim + 31) / 32));
  VK_LAUNCH((cluster_sums_join_kernel<Sum>), grid, kJoinWarps * 32, 0, stream, a.cluster, plan,
            static_cast<const Sum*>(a.partial), static_cast<Sum*>(a.sums), a.clusters, a.dim);
}

}  // namespace

void cluster_sums_cuda(const ClusterSums& a, void* stream_pointer) {
  const auto stream = static_cast<vk_stream_t>(stream_pointer);
  if (a.clusters == 0) return;
  switch (a.element) {
    case Element::f32: return launch<float>(a, stream);
    case Element::f64: return launch<double>(a, stream);
    case Element::f16: return launch<f16>(a, stream);
    case Element::bf16: return launch<bf16>(a, stream);
  }
}

}  // namespace vk
