// The low frequencies of a spectrum, each multiplied by a matrix of complex numbers; and the gradients.
//
//   A spectrum is what a real transform in two dimensions gives: rows 0, 1, ... of rising frequency, the negative ones
//   at the end, columns 0 .. W / 2. Complex numbers are pairs of reals. R x C frequencies are kept: the first
//   (R + 1) / 2 rows and the last R / 2, the first C columns. For each of them
//
//   out[b, o] = sum over i of x[b, i] * w[i, o],  w = weight where mask is not 0, else 0
//
// and 0 at all other frequencies of `out`, whose size is its own. What lies outside of the kept part of x is not read.
// backward: grad_x = grad * conj(w), grad_weight = mask * conj(x) * grad; sums over i, o and b ascend, in float32.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

/// The kept rows of a spectrum [B, channels, rows, columns, 2], a number's two parts side by side.
struct Spectrum {
  const void* data;
  int64_t channels, rows, columns;
  int64_t batch_stride, channel_stride, row_stride, column_stride;  // in elements

  VK_HD int64_t row(int64_t kept, int64_t kept_rows) const {
    return kept < (kept_rows + 1) / 2 ? kept : rows - kept_rows + kept;
  }
};

struct SpectralMultiply {
  Spectrum x;                                  // backward: read, grad_x has its sizes
  Spectrum out;                                // contiguous, written; backward: the gradient, any strides, read
  const void* weight;                          // [R, C, I, O, 2]
  const uint8_t* mask;                         // the same shape, or null: all ones
  void* grad_x;                                // [B, I, rows of x, columns of x, 2]
  void* grad_weight;                           // [R, C, I, O, 2]
  float* scratch;                              // GPU's backward: [R, C, B, O, 2]
  int64_t batch, in, channels, rows, columns;  // B, I, O, R, C
  Element element;

  VK_HD int64_t modes() const { return rows * columns; }
};

VK_CPU_KERNEL(spectral_multiply, (const SpectralMultiply& a))
VK_CPU_KERNEL(spectral_multiply_backward, (const SpectralMultiply& a))

void spectral_multiply_cuda(const SpectralMultiply& a, void* stream);
void spectral_multiply_backward_cuda(const SpectralMultiply& a, void* stream);

}  // namespace vk
