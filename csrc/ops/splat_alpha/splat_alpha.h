// Depth-sorted over-compositing of 2D Gaussians, and its gradient.
//
//   For every pixel p, over the Gaussians of its image in ascending depth (equal depths: ascending index), with T = 1:
//     alpha = min(0.99, o exp(-sigma(p)))                          skipped where alpha < 1/255
//     the pixel is finished, for good, before the first Gaussian with T (1 - alpha) <= 1e-4
//     image[p] += T alpha colors[i];   T *= 1 - alpha
//   image[p] += T background;   alpha[p] = 1 - T
//   sigma(p) = (a dx^2 + c dy^2) / 2 + b dx dy,   d = p - mean,   (a, b, c) the inverse covariance
//
// Backward, with the same decisions and g = grad_image[p], h = grad_alpha[p]:
//   rest_i    = sum over j > i of T_j alpha_j (g . colors[j]) + T_final (g . background - h)
//   d alpha_i = T_i (g . colors[i]) - rest_i / (1 - alpha_i)
//   s_i       = alpha_i d alpha_i, but 0 where o exp(-sigma) > 0.99
//   d colors[i] = sum_p T_i alpha_i g        d o = sum_p s_i / o         d mean = conic * sum_p s_i d
//   d a = -1/2 sum s dx^2      d b = -sum s dx dy     d c = -1/2 sum s dy^2, carried on to the Cholesky factor
//   d background = sum_p T_final g           absgrad = sum_p |s_i conic d|, component by component
// A pixel can be walked front to back again: rest_i = g . image[p] - h T_final - (what came up to and with i).
//
// A Gaussian with a non-finite parameter (depth aside: NaN is the deepest), a shape that is not positive definite, or
// an opacity below 1/255 is felt nowhere and gets zero gradients.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

struct SplatAlpha {
  const float* means;       // [N, 2] x, y in pixels
  const float* shapes;      // [N, 3] cholesky (l11, l21, l22) or conic (a, b, c)
  const float* colors;      // [N, C]
  const float* opacities;   // [N]
  const float* background;  // [C] (background_rows 1), [B, C] (B), or null: 0
  const int64_t* offsets;   // [B + 1] rows of each image, or null: one image
  int64_t count, images, height, width, channels, background_rows;
  float pixel_center;
  bool conic;
};

struct SplatAlphaForward : SplatAlpha {
  const float* depths;  // [N]
  float* image;         // [B, H, W, C]
  float* alpha;         // [B, H, W]
  int32_t* order;       // [N] rows [offsets[b], offsets[b + 1]): the rows of image b, nearest first. CUDA: op.py's
  void* scratch;        // CUDA only: scratch_bytes(...) of op.py
};

struct SplatAlphaBackward : SplatAlpha {
  const float* grad_image;  // [B, H, W, C]
  const float* grad_alpha;  // [B, H, W] or null: 0
  const float* image;       // [B, H, W, C], alpha and order: what the forward pass returned
  const float* alpha;       // [B, H, W]
  const int32_t* order;     // [N]
  float* grad_means;        // [N, 2]
  float* grad_shapes;       // [N, 3]
  float* grad_colors;       // [N, C]
  float* grad_opacities;    // [N]
  float* grad_background;   // as background, or null
  float* absgrad;           // [N, 2] or null
  void* scratch;            // CUDA only: backward_scratch_bytes(...) of op.py
};

VK_CPU_KERNEL(splat_alpha, (const SplatAlphaForward& a))
VK_CPU_KERNEL(splat_alpha_backward, (const SplatAlphaBackward& a))

void splat_alpha_cuda(const SplatAlphaForward& a, void* stream);
void splat_alpha_backward_cuda(const SplatAlphaBackward& a, void* stream);

}  // namespace vk
