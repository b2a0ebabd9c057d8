// Convolution, pixel shuffle and activation, and their gradients. All numbers lie as [B, H, W, C].
//
//   z[b, s y + dy, s x + dx, c] = bias[o] + sum over i, ky, kx of
//                                 x[b, y + ky - kh / 2, x + kx - kw / 2, i] * weight[o, i, ky, kx],   o = (c s + dy) s
//                                 + dx
//   out = activation(z), derivative = activation'(z);  x is zero outside.
//
// Inside, the columns o of the convolution are ordered (dy, dx, c): the s C numbers that one input pixel gives to row
// s y + dy are then neighbours in memory, and the shuffle is no work.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

enum class Activation : uint8_t { none, gelu, sine, relu };

struct UpsampleConvSizes {
  int64_t batch, height, width, in;  // of x
  int64_t out;                       // C, channels after the shuffle
  int64_t kh, kw, scale;
  Activation activation;
  Element element;  // of every tensor; never f64
};

struct UpsampleConv {
  UpsampleConvSizes sizes;
  const void* x;       // [B, H, W, I]
  const void* weight;  // [C s s, I, kh, kw]
  const void* bias;    // [C s s] or null
  void* out;           // [B, H s, W s, C] or null
  void* derivative;    // the same or null
  void* scratch;       // CUDA only: the weight in the kernel's order
};

struct UpsampleConvBackward {
  UpsampleConvSizes sizes;
  const void* grad_out;    // [B, H s, W s, C]
  const void* derivative;  // the same; null for Activation::none
  const void* x;
  const void* weight;
  void* grad_x;       // [B, H, W, I] or null
  void* grad_weight;  // [C s s, I, kh, kw]
  void* grad_bias;    // [C s s]
  void* scratch;      // CUDA only
};

VK_CPU_KERNEL(upsample_conv, (const UpsampleConv& a))
VK_CPU_KERNEL(upsample_conv_backward, (const UpsampleConvBackward& a))

}  // namespace vk
