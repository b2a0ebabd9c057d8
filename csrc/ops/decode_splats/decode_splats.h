// Gaussians to uint8 pixels, the same bytes on every processor: docs/exact_decode.md is the specification.
//
//   acc_c = background_c + sum over i ascending of c_ic * G_i(x, y)         out = round(255 * clamp(acc, 0, 1))
//   G     = exp(-sigma) within 6e-5 where sigma <= ln 255, else 0
//
// Only binary32 +, -, *, / rounded to nearest are used on values that reach a pixel, one operation at a time:
// <op>_cpu.cpp is compiled with -ffp-contract=off, <op>_cuda.cu writes __fmul_rn and its kin. What decides which
// pixels are looked at (boxes, spans) need not be exact, only never too small.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/dispatch.h"
#include "core/half.h"

namespace vk {

struct DecodeSplats {
  const float* means;       // [N, 2] (x, y) in pixels
  const float* cholesky;    // [N, 3] (l11, l21, l22)
  const float* colors;      // [N, C]
  const float* background;  // [C]
  uint8_t* out;             // [H, W, C]
  void* records;            // CUDA: N * kDecodeRecordBytes bytes of scratch
  int64_t count, channels, height, width;
  float pixel_center;
  bool no_memory;  // out, CPU only
};

constexpr int64_t kDecodeSideLimit = 65536;
constexpr int64_t kDecodeRecordBytes = 64;

// The exponential: with t = (alpha sigma) + beta, exp(-sigma) = (t^2 + gamma)^32. zeta^2 = alpha / 2.
constexpr float kDecodeZeta = 0x1.aa5812p-4f;
constexpr float kDecodeBeta = -0x1.710d38p-1f;
constexpr float kDecodeGamma = 0x1.ebf8e4p-2f;
constexpr float kDecodeTau = -0x1.33933cp-1f;  // alpha ln 255 + beta

// sqrt(2 ln 255) = 3.32904, and a little more: no pixel of the support lies farther off, in standard deviations.
constexpr float kDecodeReach = 3.3291f;

/// First and last pixel (inclusive, clipped to the image) whose centre lies within `reach` of `mean`; never too few.
struct PixelRange {
  int32_t first, last;
};
VK_HD PixelRange decode_pixel_range(float mean, float reach, float pixel_center, int64_t size) {
  const float pad = 1e-5f * (fabsf(mean) + reach) + 1e-3f;
  float low = mean - reach - pad - pixel_center, high = mean + reach + pad - pixel_center;
  low = low > 0.0f ? low : 0.0f;
  low = low < float(size) ? low : float(size);
  high = high < float(size - 1) ? high : float(size - 1);
  high = high > -1.0f ? high : -1.0f;
  return {int32_t(ceilf(low)), int32_t(floorf(high))};
}

VK_CPU_KERNEL(decode_splats, (DecodeSplats & a))

void decode_splats_cuda(const DecodeSplats& a, void* stream);

}  // namespace vk
