// Between rows of pixels, [H, W, C], and blocks of 4x4 pixels with the channels apart, [..][C][16].
#pragma once
#include "core/ellipse.h"

namespace vk {
namespace {

/// One row of blocks of an image to `out` [columns][C][16]; zeros beyond the edges. `rows` (1..4) rows of `width`
/// pixels start at `in`.
inline void to_blocks(const float* in, int64_t rows, int64_t width, int64_t channels, float* out) {
  const int64_t row = width * channels, columns = (width + kBlock - 1) / kBlock;
  int64_t b = 0;
#if defined(__AVX512F__)
  if (channels == 3 && rows == kBlock) {
    // Two rows of a block lie in one vector each: 12 floats r g b r g b ...; lanes 16.. are those of the second.
    const __m512i pick[3] = {_mm512_setr_epi32(0, 3, 6, 9, 16, 19, 22, 25, 0, 0, 0, 0, 0, 0, 0, 0),
                             _mm512_setr_epi32(1, 4, 7, 10, 17, 20, 23, 26, 0, 0, 0, 0, 0, 0, 0, 0),
                             _mm512_setr_epi32(2, 5, 8, 11, 18, 21, 24, 27, 0, 0, 0, 0, 0, 0, 0, 0)};
    const __m512i join = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    for (; (b + 1) * 12 <= row; ++b) {
      const float* p = in + b * 12;
      const auto part = [&](int y) { return _mm512_maskz_loadu_ps(0x0fff, p + y * row); };
      const __m512 r0 = part(0), r1 = part(1), r2 = part(2), r3 = part(3);
      for (int ch = 0; ch < 3; ++ch) {
        const __m512 top = _mm512_permutex2var_ps(r0, pick[ch], r1), low = _mm512_permutex2var_ps(r2, pick[ch], r3);
        _mm512_storeu_ps(out + (b * 3 + ch) * 16, _mm512_permutex2var_ps(top, join, low));
      }
    }
  }
#endif
  for (; b < columns; ++b)
    for (int64_t ch = 0; ch < channels; ++ch) {
      float* block = out + (b * channels + ch) * 16;
      for (int64_t y = 0; y < kBlock; ++y)
        for (int64_t x = 0; x < kBlock; ++x)
          block[y * kBlock + x] =
              y < rows && b * kBlock + x < width ? in[y * row + (b * kBlock + x) * channels + ch] : 0.0f;
    }
}

/// Blocks `first` .. `last` of a row of blocks, `in` [..][C][16] beginning with block `first`, to the pixels `out` of
/// an image: `rows` rows of `width` pixels with `stride` channels each, of which these are C neighbours.
template <int C>
inline void from_blocks(const float* in, int64_t first, int64_t last, int64_t rows, int64_t width, int64_t stride,
                        float* out) {
  int64_t b = first;
#if defined(__AVX512F__)
  if constexpr (C == 3) {
    if (stride == 3 && rows == kBlock) {
      alignas(64) static constexpr int32_t kRed[16] = {0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 0, 0, 0, 0};
      const __m512i red_green = _mm512_load_si512(kRed);
      const __m512i blue = _mm512_setr_epi32(0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 0, 0, 0, 0);
      const __m512i next = _mm512_set1_epi32(4);
      for (; b <= last && (b + 1) * kBlock <= width; ++b) {
        const float* block = in + (b - first) * 48;
        const __m512 r = _mm512_loadu_ps(block), g = _mm512_loadu_ps(block + 16), u = _mm512_loadu_ps(block + 32);
        __m512i from_rg = red_green, from_b = blue;
        const __m512i step_b = _mm512_setr_epi32(0, 0, 4, 0, 0, 4, 0, 0, 4, 0, 0, 4, 0, 0, 0, 0);
        for (int y = 0; y < kBlock; ++y) {
          const __m512 line = _mm512_permutex2var_ps(_mm512_permutex2var_ps(r, from_rg, g), from_b, u);
          _mm512_mask_storeu_ps(out + y * width * 3 + b * 12, 0x0fff, line);
          from_rg = _mm512_add_epi32(from_rg, next);
          from_b = _mm512_add_epi32(from_b, step_b);
        }
      }
    }
  }
#endif
  for (; b <= last; ++b)
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < kBlock && b * kBlock + x < width; ++x)
        for (int ch = 0; ch < C; ++ch)
          out[(y * width + b * kBlock + x) * stride + ch] = in[((b - first) * C + ch) * 16 + y * kBlock + x];
}

}  // namespace
}  // namespace vk
