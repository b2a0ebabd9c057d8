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
  Element element;         // of the images; never f64
  Element weight_element;  // of weight, bias and their gradients: the same, or f32 (then products take them rounded)
  bool without_tiles = false;  // CPU: leave the matrix unit alone, so that a test reaches the other bf16 kernel
};

struct UpsampleConv {
  UpsampleConvSizes sizes;
  const void* x;       // [B, H, W, I]
  const void* weight;  // [C s s, I, kh, kw]
  const void* bias;    // [C s s] or null
  void* out;           // [B, H s, W s, C] or null
  void* derivative;    // the same or null
  void* scratch;       // CUDA only
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

/// The last layer of a decoder and the difference of its pictures from frames, which never reach memory:
///   picture = z, or (tanh z + 1) / 2;   d = picture - target / 255 where there is a target
///   loss    = sum over pixels share[pixel] * sum over c (l1 |d| + l2 d^2)
///   grad_z  = the loss's derivative by z; 0 where there is no target
struct UpsampleConvLoss {
  UpsampleConvSizes sizes;  // Activation::none; never f16, whose range the gradient of a mean would leave
  const void* x;            // [B, H, W, I]
  const void* weight;       // [C s s, I, kh, kw]
  const void* bias;         // [C s s] or null
  const uint8_t* target;    // [B, rows, columns, C]: the top left of the pictures
  const float* share;       // [B, rows, columns], or null: all numbers count the same, together 1
  int64_t rows, columns;
  float l1, l2;
  bool squash;    // the picture is (tanh z + 1) / 2
  float* loss;    // one number
  void* grad_z;   // [B, H s, W s, C]
  void* scratch;  // CUDA only
  float even() const {
    const int64_t n = sizes.batch * rows * columns * sizes.out;
    return n > 0 ? 1.0f / float(n) : 0.0f;
  }
};

VK_CPU_KERNEL(upsample_conv, (const UpsampleConv& a))
VK_CPU_KERNEL(upsample_conv_backward, (const UpsampleConvBackward& a))
VK_CPU_KERNEL(upsample_conv_loss, (const UpsampleConvLoss& a))

/// Parts of the pixels whose weight gradients the CUDA kernels sum apart: fixed by the sizes, whatever the card.
inline int64_t upsample_conv_chunks(const UpsampleConvSizes& s) {
  const int64_t sums = s.out * s.scale * s.scale * (s.kh * s.kw * s.in + 1), pixels = s.batch * s.height * s.width;
  const int64_t wanted = (pixels + 1023) / 1024, room = (int64_t(1) << 23) / (sums > 0 ? sums : 1);
  const int64_t chunks = wanted < 64 ? wanted : 64;
  return chunks < 1 || room < 1 ? 1 : chunks < room ? chunks : room;
}
/// Floats of scratch that they want: the packed weights, and then the sums of the chunks.
inline int64_t upsample_conv_scratch(const UpsampleConvSizes& s, bool backward) {
  const int64_t taps = s.kh * s.kw, columns = s.out * s.scale * s.scale;
  const int64_t forward_pack = taps * columns * ((s.in + 15) / 16 * 16);
  if (!backward) return forward_pack;
  const int64_t backward_pack = taps * s.in * ((columns + 15) / 16 * 16);
  const int64_t sums = upsample_conv_chunks(s) * columns * (taps * s.in + 1);
  const int64_t pack = forward_pack > backward_pack ? forward_pack : backward_pack;
  return sums > pack ? sums : pack;
}
/// Of the loss: the packed weights, then a double for every block.
inline int64_t upsample_conv_loss_blocks(const UpsampleConvSizes& s) {
  return (s.batch * s.height * s.width + 63) / 64 * ((s.out * s.scale * s.scale + 63) / 64);
}
inline int64_t upsample_conv_loss_scratch(const UpsampleConvSizes& s) {
  return (upsample_conv_scratch(s, false) + 1) / 2 * 2 + 2 * upsample_conv_loss_blocks(s);
}
void upsample_conv_cuda(const UpsampleConv& a, void* stream);
void upsample_conv_backward_cuda(const UpsampleConvBackward& a, void* stream);
void upsample_conv_loss_cuda(const UpsampleConvLoss& a, void* stream);

}  // namespace vk
