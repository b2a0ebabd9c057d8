// Normalised rendering of 2D Gaussians by the K heaviest at every pixel, and its gradient.
//
//   w_i(p)   = o_i exp(-sigma_i(p)), left out where it is below 1/255
//   S(p)     = the K largest w_i(p); of equal ones the lower index
//   image[p] = sum over S(p), ascending index, of w_i colors[i] / (sum over S(p) of w_i + 1e-4)
//   index[p] = S(p), ascending, then -1
//   sigma(p) = (a dx^2 + c dy^2) / 2 + b dx dy,   d = p - mean,   (a, b, c) the inverse covariance
//
// Backward, S(p) taken as constant, with g = grad_image[p] and total = sum of w + 1e-4:
//   s_i = w_i (g . colors[i] - mean) / total,   mean = sum over S(p) of w_j g . colors[j] / total
//   d colors[i] = sum_p w_i g / total        d o = sum_p s_i / o         d mean = conic * sum_p s_i d
//   d a = -1/2 sum s dx^2      d b = -sum s dx dy     d c = -1/2 sum s dy^2, carried on to the Cholesky factor
//
// Where one weight makes up the total, the bracket is 1e-4 of its parts: both are summed in double.
//
// A Gaussian with a non-finite parameter, a shape that is not positive definite, or an opacity below 1/255 is felt
// nowhere and gets zero gradients. Pixels that nothing reaches are 0.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

constexpr int kSplatTopkMost = 32;  // the largest K
constexpr float kSplatTopkEpsilon = 1e-4f;

struct SplatTopk {
  const float* means;      // [N, 2] x, y in pixels
  const float* shapes;     // [N, 3] cholesky (l11, l21, l22) or conic (a, b, c)
  const float* colors;     // [N, C]
  const float* opacities;  // [N] or null: 1
  const int64_t* offsets;  // [B + 1] rows of each image, or null: one image
  int64_t count, images, height, width, channels;
  int64_t top;  // K
  float pixel_center;
  bool conic;
};

struct SplatTopkForward : SplatTopk {
  float* image;    // [B, H, W, C]
  int32_t* index;  // [B, H, W, K] rows of means, or -1
  void* scratch;   // CUDA only: scratch_bytes(...) of op.py
};

struct SplatTopkBackward : SplatTopk {
  const float* grad_image;  // [B, H, W, C]
  const int32_t* index;     // [B, H, W, K] what the forward pass returned
  float* grad_means;        // [N, 2]
  float* grad_shapes;       // [N, 3]
  float* grad_colors;       // [N, C]
  float* grad_opacities;    // [N] or null
  void* scratch;            // CUDA only: backward_scratch_bytes(...) of op.py
};

VK_CPU_KERNEL(splat_topk, (const SplatTopkForward& a))
VK_CPU_KERNEL(splat_topk_backward, (const SplatTopkBackward& a))

void splat_topk_cuda(const SplatTopkForward& a, void* stream);
void splat_topk_backward_cuda(const SplatTopkBackward& a, void* stream);

}  // namespace vk
