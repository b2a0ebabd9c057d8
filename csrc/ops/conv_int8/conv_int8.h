// Convolution of bytes, requantisation, a table and pixel shuffle: integers alone, so that every machine has equal
// bits.
//
//   sum   = bias[o] + sum over ky, kx, i of x[b, y + ky - kh / 2, x + kx - kw / 2, i] * weight[o, ky, kx, i]
//   index = (sum * multiplier[o] + half) >> shift[o], held within 0 to 255;  half = 2^(shift - 1)
//   out[b, s y + dy, s x + dx, c] = table[index],  o = (c s + dy) s + dx;  x is zero_point outside.
//
// Sums are 32 bits wide and wrap; the product with the multiplier is 64 bits wide. Of a shift the lowest five bits
// count (half of a shift by 0 is 0). Inside, the columns o are ordered (dy, dx, c): the s C bytes that one input pixel
// gives to row s y + dy are then neighbours in memory.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

struct ConvInt8 {
  int64_t batch, height, width, in;  // of x
  int64_t out;                       // C, channels after the shuffle
  int64_t kh, kw, scale;
  uint8_t zero_point;
  const uint8_t* x;           // [B, H, W, I]
  const int8_t* weight;       // [C s s, kh, kw, I]
  const int32_t* bias;        // [C s s]
  const int32_t* multiplier;  // [C s s]
  const int32_t* shift;       // [C s s]
  const uint8_t* table;       // [256]
  uint8_t* result;            // [B, H s, W s, C]
  int avoid = 0;              // CPU: how many of its best units to leave alone, so that tests reach the others
};

/// Filter of column n.
inline int64_t conv_int8_filter(int64_t out, int64_t scale, int64_t n) {
  const int64_t dy = n / (scale * out), j = n % (scale * out);
  return (j % out * scale + dy) * scale + j / out;
}

VK_CPU_KERNEL(conv_int8, (const ConvInt8& a))
void conv_int8_cuda(const ConvInt8& a, void* stream);

/// Two layers, `b` on what `a` draws, of which only some rows are ever in memory: a.result and b.x are not looked at.
/// (CUDA runs two kernels.)
VK_CPU_KERNEL(decode_tail, (const ConvInt8& a, const ConvInt8& b))

}  // namespace vk
