// Gaussians over (x, y, t), conditioned on moments t. Sigma = L L^T, rows of L: (l11), (l21, l22), (l31, l32, l33).
//
//   S = l31^2 + l32^2 + l33^2 (variance in time), u = (l31, l32), L2 = the upper 2x2 of L
//   mean(t)  = mean + L2 u (t - mean_t) / S
//   cov      = L2 (I - u u^T / S) L2^T: its Cholesky factor is L2 times that of the bracket, the same at every t
//   weight   = exp(-(t - mean_t)^2 / (2 S))
//
// A Gaussian with l32 = l33 = 0, or whose S is not finite, has no slice: it stays where it is with weight 0, and gets
// no gradient.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

constexpr int kSliceBlock = 256;  // Gaussians whose gradients to a moment are added before the rest

struct SliceSpacetime {
  const void* means;     // [N, 3]
  const void* cholesky;  // [N, 6]
  const void* times;     // [T]
  void* means2d;         // [T, N, 2]
  void* cholesky2d;      // [N, 3]
  void* weight;          // [T, N]
  int64_t count, moments;
  Element element;
};

struct SliceSpacetimeBackward {
  const void *grad_means2d, *grad_cholesky2d, *grad_weight;  // as the outputs
  const void *means, *cholesky, *times;
  void *grad_means, *grad_cholesky, *grad_times;
  double* partial;  // [ceil(N / kSliceBlock), T]
  int64_t count, moments;
  Element element;
};

VK_CPU_KERNEL(slice_spacetime, (const SliceSpacetime& a))
VK_CPU_KERNEL(slice_spacetime_backward, (const SliceSpacetimeBackward& a))

void slice_spacetime_cuda(const SliceSpacetime& a, void* stream);
void slice_spacetime_backward_cuda(const SliceSpacetimeBackward& a, void* stream);

}  // namespace vk
