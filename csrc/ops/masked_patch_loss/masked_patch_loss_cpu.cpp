// One tube at a time: its statistics, then pred, target, loss and gradient in one sweep, so that memory sees pred,
// the gradient and the pixels once.
//
//   Lanes   uint8 tubes whose rows are whole registers: a lane always meets the same channel, so that sums, centres
//           and factors stay in registers. Byte sums and squares are exact in fp32 lanes (at most 256 a lane).
//   Rows    everything else: pixels are gathered into [pixel, channel] scratch as Real, statistics in fp64.
//
// Pixel rows are 48 bytes in lines that the prefetcher does not follow, so the tube kAhead places on is fetched by
// hand.
#include <cstdlib>
#include <cstring>

#include "ops/masked_patch_loss/masked_patch_loss.h"
#if defined(__SSE4_1__)
// gcc 12 warns about the deliberately undefined registers of its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

#include "core/half.h"
#include "core/parallel.h"

namespace vk::VK_ISA {
namespace {

#if defined(__AVX512BW__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kAhead = 6;
constexpr int64_t kStreamedBytes = int64_t(32) << 20;  // a gradient that no cache keeps until the next layer reads it

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <class V, class T>
V read(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

Floats load(const float* p) { return read<Floats>(p); }

// gcc 12 takes __builtin_convertvector between element sizes apart, lane by lane; hence intrinsics where there are any.
#if defined(__AVX512BW__)
Ints widen(Bytes x) { return (Ints)_mm512_cvtepu8_epi32((__m128i)x); }
Words widen(Halves x) { return (Words)_mm512_cvtepu16_epi32((__m256i)x); }
Halves narrow(Words x) { return (Halves)_mm512_cvtepi32_epi16((__m512i)x); }
#elif defined(__AVX2__)
Ints widen(Bytes x) { return (Ints)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bit_cast<int64_t>(x))); }
Words widen(Halves x) { return (Words)_mm256_cvtepu16_epi32((__m128i)x); }
Halves narrow(Words x) {
  const __m256i v = (__m256i)x;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}
#elif defined(__SSE4_1__)
Ints widen(Bytes x) { return (Ints)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(bit_cast<int32_t>(x))); }
Words widen(Halves x) { return (Words)_mm_cvtepu16_epi32(_mm_cvtsi64_si128(bit_cast<int64_t>(x))); }
Halves narrow(Words x) { return bit_cast<Halves>(_mm_cvtsi128_si64(_mm_packus_epi32((__m128i)x, (__m128i)x))); }
#else
Ints widen(Bytes x) { return __builtin_convertvector(x, Ints); }
Words widen(Halves x) { return __builtin_convertvector(x, Words); }
Halves narrow(Words x) { return __builtin_convertvector(x, Halves); }
#endif

Floats load(const uint8_t* p) { return __builtin_convertvector(widen(read<Bytes>(p)), Floats); }
Floats load(const bf16* p) { return (Floats)(widen(read<Halves>(p)) << 16); }

template <bool kStream, class V, class T>
void write(T* p, V v) {
  if constexpr (kStream) {
#if defined(__AVX512BW__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#endif
  }
  std::memcpy(p, &v, sizeof(V));
}
template <bool kStream>
void store(float* p, Floats v) {
  write<kStream>(p, v);
}
template <bool kStream>
void store(bf16* p, Floats v) {
  const Words u = (Words)v, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
  write<kStream>(p, narrow(v != v ? quiet : rounded));
}

#if defined(__AVX512BW__)
constexpr bool kHalfInLanes = true;
Floats load(const f16* p) { return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
template <bool kStream>
void store(f16* p, Floats v) {
  write<kStream>(p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__) && defined(__F16C__)
constexpr bool kHalfInLanes = true;
Floats load(const f16* p) { return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
template <bool kStream>
void store(f16* p, Floats v) {
  write<false>(p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
constexpr bool kHalfInLanes = false;
Floats load(const f16*) { return Floats{}; }
template <bool kStream>
void store(f16*, Floats) {}
#endif

int64_t first_outside(const MaskedPatchLoss& a) {
  for (int64_t i = 0; i < a.batch * a.count; ++i)
    if (uint32_t(a.index[i]) >= uint64_t(a.length())) return i;
  return -1;
}

/// Offset of the first pixel of the i-th masked tube.
int64_t tube_offset(const MaskedPatchLoss& a, int64_t i) {
  const uint32_t n = uint32_t(a.index[i]), columns = uint32_t(a.grid_w), rows = uint32_t(a.grid_h);
  const uint32_t line = n / columns, t = line / rows;
  return i / a.count * a.stride_b + t * a.pt * a.stride_t + (line - t * rows) * a.ph * a.stride_h +
         (n - line * columns) * a.pw * a.stride_w;
}

template <class Real>
Real upstream(const MaskedPatchLoss& a) {
  const double one_or_given = !a.grad_loss                     ? 1.0
                              : a.pred_element == Element::f64 ? *static_cast<const double*>(a.grad_loss)
                                                               : double(*static_cast<const float*>(a.grad_loss));
  return Real(one_or_given * (2.0 / double(a.batch * a.count * a.pixels() * a.channels)));
}

// ---- Lanes

/// Lane j of vector v of a row always holds channel (v * kLanes + j) % C.
template <int kVectors>
struct LaneMaps {
  Floats high[kVectors], low[kVectors], factor[kVectors];
};

template <int kVectors>
void lane_maps(const MaskedPatchLoss& a, const uint8_t* tube, const Ints* pattern, LaneMaps<kVectors>& maps) {
  const int64_t row = a.pw * a.channels, n = a.pixels();
  Floats sum[kVectors] = {}, square[kVectors] = {};
  for (int64_t t = 0; t < a.pt; ++t)
    for (int64_t y = 0; y < a.ph; ++y) {
      const uint8_t* p = tube + t * a.stride_t + y * a.stride_h;
      for (const uint8_t* end = p + row; p < end; p += kVectors * kLanes)
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          const Floats x = load(p + v * kLanes);
          sum[v] += x;
          square[v] += x * x;
        }
    }
  const int channels = int(a.channels);
  float sums[kVectors * kLanes], squares[kVectors * kLanes];
  std::memcpy(sums, sum, sizeof(sums));
  std::memcpy(squares, square, sizeof(squares));
  double mean[kLanes], deviation[kLanes];
  for (int c = 0; c < channels; ++c) {
    int64_t s = 0, q = 0;
    for (int i = c; i < kVectors * kLanes; i += channels) {
      s += int32_t(sums[i]);
      q += int32_t(squares[i]);
    }
    mean[c] = double(s) / double(n);
    deviation[c] = double(n * q - s * s) / double(n);
  }
  Floats high{}, low{}, factor{};
  for (int c = 0; c < channels; ++c) {
    const TargetMap<float> m = target_map<float>(c, channels, n, mean, deviation, nullptr, nullptr, a.joint, true);
    high[c] = m.high;
    low[c] = m.low;
    factor[c] = m.factor;
  }
  for (int v = 0; v < kVectors; ++v) {
    maps.high[v] = __builtin_shuffle(high, pattern[v]);
    maps.low[v] = __builtin_shuffle(low, pattern[v]);
    maps.factor[v] = __builtin_shuffle(factor, pattern[v]);
  }
}

void fetch_tube(const MaskedPatchLoss& a, const uint8_t* tube) {
  const int64_t last = a.pw * a.channels - 1;
  for (int64_t t = 0; t < a.pt; ++t)
    for (int64_t y = 0; y < a.ph; ++y) {
      const uint8_t* p = tube + t * a.stride_t + y * a.stride_h;
      __builtin_prefetch(p, 0, 2);
      __builtin_prefetch(p + last, 0, 2);
    }
}

template <class T, int kVectors, bool kGrad, bool kStream>
void lanes(const MaskedPatchLoss& a) {
  const int64_t row = a.pw * a.channels, size = a.pixels() * a.channels, tubes = a.batch * a.count;
  const uint8_t* video = static_cast<const uint8_t*>(a.video);
  const Floats up = Floats{} + upstream<float>(a);
  Ints pattern[kVectors];
  for (int i = 0; i < kVectors * kLanes; ++i) pattern[i / kLanes][i % kLanes] = i % int(a.channels);
  parallel_for(tubes, 1 + 16384 / size, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      if (i + kAhead < i1) fetch_tube(a, video + tube_offset(a, i + kAhead));
      const uint8_t* tube = video + tube_offset(a, i);
      LaneMaps<kVectors> maps;
      lane_maps<kVectors>(a, tube, pattern, maps);
      const T* pred = static_cast<const T*>(a.pred) + i * size;
      T* grad = static_cast<T*>(a.grad) + (kGrad ? i * size : 0);
      Floats loss[kVectors] = {};
      for (int64_t t = 0; t < a.pt; ++t)
        for (int64_t y = 0; y < a.ph; ++y) {
          const uint8_t* p = tube + t * a.stride_t + y * a.stride_h;
          for (const uint8_t* end = p + row; p < end; p += kVectors * kLanes, pred += kVectors * kLanes)
#pragma GCC unroll 3
            for (int v = 0; v < kVectors; ++v) {
              const Floats x = (load(p + v * kLanes) - maps.high[v]) - maps.low[v];
              const Floats d = load(pred + v * kLanes) - x * maps.factor[v];
              loss[v] += d * d;
              if constexpr (kGrad) store<kStream>(grad + v * kLanes, d * up);
              if constexpr (kGrad)
                if (v == kVectors - 1) grad += kVectors * kLanes;
            }
        }
      if (a.partial) {
        Floats total = loss[0];
        for (int v = 1; v < kVectors; ++v) total += loss[v];
        double sum = 0;
        for (int j = 0; j < kLanes; ++j) sum += double(total[j]);
        a.partial[i] = sum;
      }
    }
#if defined(__AVX2__)
    if constexpr (kStream) _mm_sfence();
#endif
  });
}

template <class T, int kVectors>
bool try_lanes(const MaskedPatchLoss& a) {
  constexpr int kStep = kVectors * kLanes;
  const int64_t row = a.pw * a.channels;
  if (!a.bytes || a.stride_c != 1 || a.stride_w != a.channels) return false;
  if (row % kStep || kStep % a.channels || a.channels > kLanes || a.pt * a.ph * (row / kStep) > 256) return false;
  if (!a.grad) {
    lanes<T, kVectors, false, false>(a);
    return true;
  }
  // Streaming in place would only push out lines that were just read.
  const bool stream = a.grad != a.pred && uintptr_t(a.grad) % 64 == 0 && sizeof(T) * kLanes % 32 == 0 &&
                      a.batch * a.count * a.pixels() * a.channels * int64_t(sizeof(T)) >= kStreamedBytes;
  stream ? lanes<T, kVectors, true, true>(a) : lanes<T, kVectors, true, false>(a);
  return true;
}

// ---- Rows

/// Scratch of one thread. No std::vector: its code would be shared between the instruction sets.
class Scratch {
 public:
  explicit Scratch(int64_t doubles) : data_(static_cast<double*>(std::malloc(size_t(doubles) * sizeof(double)))) {
    if (!data_) std::abort();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }
  double* data() const { return data_; }

 private:
  double* data_;
};

inline float scalar(uint8_t x) { return float(x); }
inline float scalar(float x) { return x; }
inline double scalar(double x) { return x; }
inline float scalar(bf16 x) { return to_float(x); }
inline float scalar(f16 x) { return to_float(x); }

/// Pixels of a tube as [pixel, channel].
template <class X, class Real>
void gather(const MaskedPatchLoss& a, const X* tube, Real* out) {
  for (int64_t t = 0; t < a.pt; ++t)
    for (int64_t y = 0; y < a.ph; ++y, out += a.pw * a.channels) {
      const X* row = tube + t * a.stride_t + y * a.stride_h;
      if (a.stride_c == 1 && a.stride_w == a.channels) {
        for (int64_t i = 0; i < a.pw * a.channels; ++i) out[i] = Real(scalar(row[i]));
        continue;
      }
      for (int64_t c = 0; c < a.channels; ++c)
        for (int64_t x = 0; x < a.pw; ++x) out[x * a.channels + c] = Real(scalar(row[c * a.stride_c + x * a.stride_w]));
    }
}

/// sums[c] = sum over pixels of f(x, c): in columns of one row first, so that the inner loop has no carried sum.
template <class Real, class F>
void channel_sums(const MaskedPatchLoss& a, const Real* pixels, double* columns, double* sums, F f) {
  const int64_t row = a.pw * a.channels, rows = a.pt * a.ph;
  for (int64_t i = 0; i < row; ++i) columns[i] = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < row; ++i) columns[i] += f(double(pixels[r * row + i]), i);
  for (int64_t c = 0; c < a.channels; ++c) {
    sums[c] = 0;
    for (int64_t i = c; i < row; i += a.channels) sums[c] += columns[i];
  }
}

template <class T, class X, class Real>
void rows(const MaskedPatchLoss& a) {
  const int64_t row = a.pw * a.channels, size = a.pixels() * a.channels, tubes = a.batch * a.count, n = a.pixels();
  const X* video = static_cast<const X*>(a.video);
  const Real up = upstream<Real>(a);
  parallel_for(tubes, 1 + 8192 / size, [&](int64_t i0, int64_t i1) {
    const Scratch scratch(size + 6 * row + 2 * a.channels);
    double *columns = scratch.data(), *centres = columns + row, *mean = centres + row, *deviation = mean + a.channels;
    Real* high = reinterpret_cast<Real*>(deviation + a.channels);
    Real *low = high + row, *factor = low + row, *loss = factor + row, *pixels = loss + row;
    for (int64_t i = i0; i < i1; ++i) {
      gather(a, video + tube_offset(a, i), pixels);
      channel_sums(a, pixels, columns, mean, [](double x, int64_t) { return x; });
      for (int64_t c = 0; c < a.channels; ++c) mean[c] /= double(n);
      for (int64_t j = 0; j < row; j += a.channels)
        for (int64_t c = 0; c < a.channels; ++c) centres[j + c] = mean[c];
      channel_sums(a, pixels, columns, deviation,
                   [&](double x, int64_t j) { return (x - centres[j]) * (x - centres[j]); });
      for (int64_t c = 0; c < a.channels; ++c) {
        const TargetMap<Real> m =
            target_map<Real>(c, a.channels, n, mean, deviation, a.scale, a.shift, a.joint, a.bytes);
        for (int64_t j = c; j < row; j += a.channels) {
          high[j] = m.high;
          low[j] = m.low;
          factor[j] = m.factor;
        }
      }
      const T* pred = static_cast<const T*>(a.pred) + i * size;
      T* grad = a.grad ? static_cast<T*>(a.grad) + i * size : nullptr;
      double sum = 0;
      for (int64_t r = 0; r < a.pt * a.ph; ++r) {
        // The difference replaces the pixel, so that each loop has one job and vectorises.
        Real* x = pixels + r * row;
        for (int64_t j = 0; j < row; ++j) {
          const Real d = Real(to_float(pred[r * row + j])) - ((x[j] - high[j]) - low[j]) * factor[j];
          x[j] = d;
          loss[j] = d * d;
        }
        for (int64_t j = 0; j < row; ++j) sum += double(loss[j]);
        if (!grad) continue;
        for (int64_t j = 0; j < row; ++j) {
          if constexpr (sizeof(T) == sizeof(Real))
            grad[r * row + j] = x[j] * up;
          else if constexpr (sizeof(T) == 8)
            grad[r * row + j] = double(x[j] * up);
          else
            grad[r * row + j] = from_float<T>(float(x[j] * up));
        }
      }
      if (a.partial) a.partial[i] = sum;
    }
  });
}

template <class T>
void rows_of_video(const MaskedPatchLoss& a) {
  constexpr bool kWide = sizeof(T) == 8;
  using Real = decltype(to_float(T{}));
  if (a.bytes) return rows<T, uint8_t, Real>(a);
  switch (a.video_element) {
    case Element::f32: return rows<T, float, Real>(a);
    case Element::f64: return rows<T, double, double>(a);
    case Element::f16: return rows<T, f16, Real>(a);
    case Element::bf16: return rows<T, bf16, Real>(a);
  }
  static_assert(kWide == (sizeof(Real) == 8));
}

template <class T>
void any(const MaskedPatchLoss& a) {
  if (!try_lanes<T, 3>(a) && !try_lanes<T, 1>(a)) rows_of_video<T>(a);
}

}  // namespace

void masked_patch_loss(MaskedPatchLoss& a) {
  a.bad = first_outside(a);
  if (a.bad >= 0) return;
  switch (a.pred_element) {
    case Element::f32: any<float>(a); break;
    case Element::f64: rows_of_video<double>(a); break;
    case Element::f16: kHalfInLanes ? any<f16>(a) : rows_of_video<f16>(a); break;
    case Element::bf16: any<bf16>(a); break;
  }
  if (!a.loss) return;
  double sum = 0;
  for (int64_t i = 0; i < a.batch * a.count; ++i) sum += a.partial[i];
  const int64_t n = a.batch * a.count * a.pixels() * a.channels;
  if (n > 0) sum /= double(n);
  if (a.pred_element == Element::f64)
    *static_cast<double*>(a.loss) = sum;
  else
    *static_cast<float*>(a.loss) = float(sum);
}

}  // namespace vk::VK_ISA
