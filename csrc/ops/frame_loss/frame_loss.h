// How images differ from uint8 frames, as one number, and its gradient.
//
//   y = target / 255,  d = image - y
//   loss = l1 * mean|d| + l2 * mean d^2 + ssim * mean(1 - S)
//   S    = (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sxx + syy + c2)) per channel, over the windows of 11 x 11
//          pixels that lie inside the frame; weights g g^T with g ~ exp(-k^2 / (2 * 1.5^2)), c1 = 0.01^2, c2 = 0.03^2
//
// With weights each mean is sum(w v) / sum(w), a window counting with its centre's weight; 0 where sum(w) is 0.
//
// Kernels work with 1 - S = a + b - a b, where md = mx - my, sdd = the variance of d, and
//   a = md^2 / B1,   B1 = mx^2 + my^2 + c1          b = sdd / B2,   B2 = sxx + syy + c2
// so that nearly equal images lose no digits, and four blurred maps are enough: y, d, x^2 + y^2, d^2, all of them
// around 1/2 to keep the variances' cancellation small. The gradient of 1 - S at a pixel p is
//   blur(g0)[p] + blur(gd)[p] d[p] + blur(gx)[p] x[p]
//   gd = 2 (1 - a) / B2,   gx = -b gd,   g0 = 2 (1 - b)(md - a mx) / B1 - gd md - gx mx
// with the maps g in the place of the windows and blur its own transpose. A NaN pixel spoils the loss, and the gradient
// at most 10 pixels around.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/dispatch.h"
#include "core/half.h"

namespace vk {

constexpr int kSsimTaps = 11;
constexpr int kSsimReach = kSsimTaps - 1;  // a frame has this many windows fewer than pixels, along each axis
constexpr float kSsimC1 = 0.0001f, kSsimC2 = 0.0009f;

/// g[k], which is symmetric.
VK_HD constexpr float ssim_tap(int k) {
  constexpr float half[6] = {0.0010283801f, 0.0075987581f, 0.0360007721f, 0.1093606895f, 0.2130055377f, 0.2660117249f};
  return half[k < 6 ? k : kSsimReach - k];
}

/// 1 - S of a window from its four blurred maps, and the gradient maps g0, gd, gx. V: float, or sixteen of them.
template <bool kGrad, class V>
VK_HD V ssim_unlike(V y, V d, V power, V square, V* g) {
  const V half(0.5f), one(1.0f), two(2.0f), x = y + d, tx = x + half, ty = y + half;
  const V inverse1 = one / (tx * tx + ty * ty + V(kSsimC1));
  const V inverse2 = one / (power - x * x - y * y + V(kSsimC2));
  const V a = d * d * inverse1, b = (square - d * d) * inverse2;
  if constexpr (kGrad) {
    g[1] = two * (one - a) * inverse2;
    g[2] = V(0.0f) - b * g[1];
    g[0] = two * (one - b) * (d - a * tx) * inverse1 - g[1] * d - g[2] * x;
  }
  return a + b - a * b;
}

struct FrameLoss {
  const float* image;      // [B, H, W, C]
  const uint8_t* target;   // [B, H, W, C]
  const float* weight;     // [B, H, W] or null
  const float* grad_loss;  // one number, or null for 1
  float* loss;             // one number, or null
  float* grad;             // [B, H, W, C], or null
  void* scratch;           // CUDA: frame_loss_scratch() bytes, 8-aligned
  int64_t batch, height, width, channels;
  double l1, l2, ssim;  // ssim != 0 needs height and width of at least 11

  int64_t pixels() const { return batch * height * width; }
  int64_t windows() const { return batch * (height - kSsimReach) * (width - kSsimReach); }
};

VK_CPU_KERNEL(frame_loss, (const FrameLoss& a))

void frame_loss_cuda(const FrameLoss& a, void* stream);
int64_t frame_loss_scratch(const FrameLoss& a);

}  // namespace vk
