// Sums of the points of each cluster.
//
//   sums[c, :] = sum over i with index[i] == c of points[i, :]        counts[c] = how many there are
//
// A cluster's members are added in ascending order in blocks of kClusterBlock, then its blocks are added: the order
// depends on nothing but the index, and rounding grows with the root of a block, not with that of the cluster.
// Index -1 leaves a point out. Any other value outside [0, K): the CPU kernel reports the first one, the CUDA kernels
// leave the point out, too.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

constexpr int64_t kClusterBlock = 256;

struct ClusterSums {
  const void* points;    // [N, D]
  const int64_t* index;  // [N]; CPU only
  void* sums;            // [K, D], double for double points, else float
  void* counts;          // [K], as sums
  int64_t length, clusters, dim;
  Element element;
  int64_t bad;  // out: position of the first index outside [-1, K), or -1 (CPU only)

  // CUDA: the points sorted by cluster, equal ones in ascending order, those to be left out last
  const int32_t* cluster;  // [N] ascending, values in [0, K]
  const int64_t* order;    // [N] the points they belong to
  int32_t* plan;           // scratch: [plan_size()]
  void* partial;           // scratch: [partial_rows(), D] as sums, blocks of clusters that have several

  int64_t plan_size() const { return clusters + 1 + pieces(); }
  int64_t pieces() const { return clusters + length / kClusterBlock + 1; }
  int64_t partial_rows() const { return length / (kClusterBlock / 2) + 2; }
};

VK_CPU_KERNEL(cluster_sums, (ClusterSums & a))

void cluster_sums_cuda(const ClusterSums& a, void* stream);

}  // namespace vk
