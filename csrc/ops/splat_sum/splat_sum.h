// Accumulated-sum rendering of 2D Gaussians, and its gradient.
//
//   image[p, ch] = background[ch] + sum over i ascending of w_i(p) colors[i, ch],   w_i(p) = o_i exp(-sigma_i(p))
//   sigma_i(p)   = (a dx^2 + c dy^2) / 2 + b dx dy,   d = p - mean_i,   (a, b, c) the inverse covariance
//   A term with w_i(p) < 1/255 is left out. There is no order and no transmittance.
//
// Backward, a pure gather over each Gaussian's own footprint: with s(p) = w(p) sum_ch grad[p, ch] colors[ch]
//   d colors[ch] = sum_p w grad[p, ch]        d o = sum_p s / o      d mean = conic * sum_p s d
//   d a = -1/2 sum s dx^2     d b = -sum s dx dy     d c = -1/2 sum s dy^2, carried on to the Cholesky factor
//
// Gaussians with non-finite or degenerate parameters are felt nowhere and get zero gradients.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

struct SplatSum {
  const float* means;       // [N, 2] x, y in pixels
  const float* shapes;      // [N, 3] cholesky (l11, l21, l22) or conic (a, b, c)
  const float* colors;      // [N, C]
  const float* opacities;   // [N] or null: 1
  const float* background;  // [C] (background_rows 1), [B, C] (B), or null: 0
  const int64_t* offsets;   // [B + 1] rows of each image, or null: one image
  int64_t count, images, height, width, channels, background_rows;
  float pixel_center;
  bool conic;
};

struct SplatSumForward : SplatSum {
  float* image;   // [B, H, W, C]
  void* scratch;  // CUDA only: splat_sum_scratch_bytes(...)
};

struct SplatSumBackward : SplatSum {
  const float* grad_image;  // [B, H, W, C]
  float* grad_means;        // [N, 2]
  float* grad_shapes;       // [N, 3]
  float* grad_colors;       // [N, C]
  float* grad_opacities;    // [N] or null
  float* grad_background;   // as background, or null
  void* scratch;            // CUDA only: splat_sum_backward_scratch_bytes(...)
};

VK_CPU_KERNEL(splat_sum, (const SplatSumForward& a))
VK_CPU_KERNEL(splat_sum_backward, (const SplatSumBackward& a))

/// Bytes of device memory that the CUDA passes need beside their outputs. Sizes decide, never values.
int64_t splat_sum_scratch_bytes(int64_t count, int64_t images, int64_t height, int64_t width);
int64_t splat_sum_backward_scratch_bytes(int64_t images, int64_t channels);
void splat_sum_cuda(const SplatSumForward& a, void* stream);
void splat_sum_backward_cuda(const SplatSumBackward& a, void* stream);

}  // namespace vk
