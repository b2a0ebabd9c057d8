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

/// Past the caches, which an image would only sweep clean of what the next tile needs.
#if defined(__AVX512F__)
inline void put_line(float* to, const __m512& line) {
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0)
    _mm512_stream_ps(to, line);
  else
    _mm512_storeu_ps(to, line);
}
#endif

/// After from_blocks: what went past the caches is seen by other threads.
inline void finish_blocks() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

/// Blocks `first` .. `last` of a row of blocks, `in` [..][C][16] beginning with block `first`, to the pixels `out` of
/// an image: `rows` rows of `width` pixels with `stride` channels each, of which these are C neighbours.
template <int C>
inline void from_blocks(const float* in, int64_t first, int64_t last, int64_t rows, int64_t width, int64_t stride,
                        float* out) {
  int64_t b = first;
#if defined(__AVX512F__)
  if constexpr (C == 3) {
    // Four blocks at a time: three whole vectors in each row of pixels.
    if (stride == 3 && rows == kBlock) {
      const __m512i low_rg = _mm512_setr_epi32(0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
      const __m512i low_b = _mm512_setr_epi32(0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
      const __m512i mid_rg = _mm512_setr_epi32(21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
      const __m512i mid_b = _mm512_setr_epi32(0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
      const __m512i high_rg = _mm512_setr_epi32(0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
      const __m512i high_b = _mm512_setr_epi32(26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
      for (; b + 3 <= last && (b + 4) * kBlock <= width; b += 4) {
        __m512 line[3][4];
        for (int ch = 0; ch < 3; ++ch) {
          const float* from = in + ((b - first) * 3 + ch) * 16;
          const __m512 p0 = _mm512_loadu_ps(from), p1 = _mm512_loadu_ps(from + 48);
          const __m512 p2 = _mm512_loadu_ps(from + 96), p3 = _mm512_loadu_ps(from + 144);
          const __m512 even01 = _mm512_maskz_shuffle_f32x4(0xffff, p0, p1, 0x88),
                       odd01 = _mm512_maskz_shuffle_f32x4(0xffff, p0, p1, 0xdd);
          const __m512 even23 = _mm512_maskz_shuffle_f32x4(0xffff, p2, p3, 0x88),
                       odd23 = _mm512_maskz_shuffle_f32x4(0xffff, p2, p3, 0xdd);
          line[ch][0] = _mm512_maskz_shuffle_f32x4(0xffff, even01, even23, 0x88);
          line[ch][1] = _mm512_maskz_shuffle_f32x4(0xffff, odd01, odd23, 0x88);
          line[ch][2] = _mm512_maskz_shuffle_f32x4(0xffff, even01, even23, 0xdd);
          line[ch][3] = _mm512_maskz_shuffle_f32x4(0xffff, odd01, odd23, 0xdd);
        }
        for (int y = 0; y < kBlock; ++y) {
          const __m512 red = line[0][y], green = line[1][y], blue = line[2][y];
          float* to = out + y * width * 3 + b * 12;
          const auto mix = [&](const __m512i& rg, const __m512i& with_b) {
            return _mm512_permutex2var_ps(_mm512_permutex2var_ps(red, rg, green), with_b, blue);
          };
          put_line(to, mix(low_rg, low_b));
          put_line(to + 16, mix(mid_rg, mid_b));
          put_line(to + 32, mix(high_rg, high_b));
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
