// Patch embedding of the visible tubes of a clip, and its gradients.
//
//   forward    out[i, :] = bias + position[index[i], :] + sum over k of columns[i, k] * folded[:, k] + offset
//   columns    [M, K] one visible tube per row, pixels as x: bytes u become (u - 128) / 128, exact in every float type,
//              in the order (pt, ph, pw, c) of their memory; float pixels stay as they are, in order (c, pt, ph, pw)
//   folded     [D, K] = weight * scale[c], rounded to the element type, in the order of the columns
//   offset     [D] = sum over k of folded[:, k] * ratio[c]: what the mean leaves, from the weight as it was rounded
//
// so that folded . (x + ratio) = weight . (pixel - mean) / std, with scale and ratio per channel:
//   bytes   scale = 128 / (255 std)   ratio = (128 - 255 mean) / 128
//   floats  scale = 1 / std           ratio = -mean
//
// The CPU forward prepares columns, folded and out (bias, position and offset) and leaves the product to its caller,
// unless it is small. The CUDA forward folds and gathers as it multiplies, and writes nothing but out. The backward of
// both is gather, the caller's product, unfold. An index outside [0, length) is never followed: the CPU kernels report
// it, the CUDA kernels write the bias alone and gather zeros.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

constexpr int kMaxChannels = 32;
constexpr int64_t kSmallProduct = 1 << 20;  // multiplications up to which the CPU kernel does the product itself

struct VisibleTubes {
  const void* video;     // bytes [B, T, H, W, C] or elements [B, C, T, H, W]; the pixels of a row are dense
  const int32_t* index;  // [B, count] = [rows]
  bool bytes;
  int64_t rows, count, length;
  int64_t channels, tube[3], grid[3];
  int64_t batch_stride, channel_stride, frame_stride, row_stride;  // in items of the video
  double scale[kMaxChannels], ratio[kMaxChannels];
  int64_t pixels() const { return tube[0] * tube[1] * tube[2]; }
  int64_t width() const { return channels * pixels(); }  // K
};

struct EmbedVisibleTubes {
  VisibleTubes tubes;
  const void *weight, *bias, *position;  // [D, C, pt, ph, pw], [D] or null, [length, D] or null
  void* columns;                         // CPU: [rows, K]
  void* folded;                          // [D, K]
  void* scratch;                         // [D] of 8 bytes: the offset with the bias
  void* out;                             // [rows, D]
  int64_t dim;
  Element element;
  bool complete;  // out: the product is in `out` (CPU only)
  int64_t bad;    // out: flat position of the first index outside, or -1 (CPU only)
};

struct EmbedVisibleTubesBackward {
  VisibleTubes tubes;
  void* columns;                                  // [rows, K], or null: nothing is gathered
  const void *grad_out, *product;                 // [rows, D]; [D, K] = grad_out^T columns, or null: only gather
  void *grad_weight, *grad_bias, *grad_position;  // [D, C, pt, ph, pw], [D], [length, D] or null
  void* sums;                                     // [D] float (double for double): grad_bias unrounded
  int32_t* links;                                 // CPU: [length + rows], the rows that meet in one position
  int64_t dim;
  Element element;
  int64_t bad;
};

VK_CPU_KERNEL(embed_visible_tubes, (EmbedVisibleTubes & a))
VK_CPU_KERNEL(embed_visible_tubes_backward, (EmbedVisibleTubesBackward & a))

void embed_visible_tubes_cuda(const EmbedVisibleTubes& a, void* stream);
void embed_visible_tubes_backward_cuda(const EmbedVisibleTubesBackward& a, void* stream);

}  // namespace vk
