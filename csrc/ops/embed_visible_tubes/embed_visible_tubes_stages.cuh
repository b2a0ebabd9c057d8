// What a thread of the forward kernel fetches in one step, and where in the shared tiles it puts it.
#pragma once
#include "device/vk_device.cuh"
#include "ops/embed_visible_tubes/embed_visible_tubes.h"

namespace vk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Where the pixels come from: bytes of three channels in whole words; any bytes; elements of the weight's type.
enum class Pixels { rgb_words, bytes, elements };
template <Pixels From>
constexpr int kGroup = From == Pixels::rgb_words ? 3 : 4;  // channels staged together

template <class T>
struct Plan {  // float and double
  using Sum = T;
  static constexpr int kRows = 64, kColumns = 64, kPixels = 16, kPadding = 4;
};
struct HalfPlan {
  using Sum = float;
  static constexpr int kRows = 64, kColumns = 128, kPixels = 32, kPadding = 8;
};
template <>
struct Plan<bf16> : HalfPlan {};
template <>
struct Plan<f16> : HalfPlan {};

template <class T>
constexpr int kSumStride = Plan<T>::kColumns + (sizeof(T) == 2 ? 8 : 16);  // rows of one access in different banks

template <class T, Pixels From>
constexpr int kStride = kGroup<From> * Plan<T>::kPixels + Plan<T>::kPadding;

template <class T, Pixels From>
constexpr size_t kSharedBytes = size_t(Plan<T>::kRows + Plan<T>::kColumns) * kStride<T, From> * sizeof(T);

template <class T>
__device__ __forceinline__ T narrow(typename Plan<T>::Sum value) {
  return from_float<T>(value);
}
template <>
__device__ __forceinline__ double narrow<double>(double value) {
  return value;
}

// Four neighbouring items, moved by one access (two for double) where they are aligned.
template <class T>
struct Four {
  T item[4];
};
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* p) {
  Four<T> out;
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += n) {
    const Vec<T, n> part = load_vec<n>(p + i);
#pragma unroll
    for (int j = 0; j < n; ++j) out.item[i + j] = part[j];
  }
  return out;
}
template <class T>
__device__ __forceinline__ void store_four(T* p, const Four<T>& value) {
  constexpr int n = sizeof(T) == 8 ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; i += n) {
    Vec<T, n> part;
#pragma unroll
    for (int j = 0; j < n; ++j) part[j] = value.item[i + j];
    store_vec<n>(p + i, part);
  }
}

struct Walk {  // the small integers of a clip, as the kernels want them
  int channels, pixels, tube_height, tube_width;
  bool wide_video, wide_weight, wide_out;
};

// Item of the clip where the tube of row i starts, or -1 if its index lies outside.
__device__ __forceinline__ int64_t tube_origin(const VisibleTubes& v, int64_t i) {
  const int32_t n = v.index[i];
  if (uint32_t(n) >= uint64_t(v.length)) return -1;
  const int64_t x = n % v.grid[2], y = n / v.grid[2] % v.grid[1], t = n / (v.grid[2] * v.grid[1]);
  return i / v.count * v.batch_stride + t * v.tube[0] * v.frame_stride + y * v.tube[1] * v.row_stride +
         x * v.tube[2] * (v.bytes ? v.channels : 1);
}

// Item of pixel p of a tube, first channel, relative to the tube.
__device__ __forceinline__ int64_t pixel_item(const VisibleTubes& v, const Walk& w, int p) {
  const int x = p % w.tube_width, line = p / w.tube_width;
  return line / w.tube_height * v.frame_stride + line % w.tube_height * v.row_stride + x * (v.bytes ? w.channels : 1);
}

template <class T>
__device__ __forceinline__ T centred(uint32_t byte) {
  return narrow<T>(float(int(byte) - 128) * (1.0f / 128));
}

// ---- the A tile: what a thread fetches in one step, and where it puts it

// Four neighbouring pixels belong to a thread, kLanes threads to a row of a tile; the weight's rows are dealt out
// alike. Rows that one access serves are four apart: with the padding of a row they then lie in different banks.
template <class T>
struct Quads {
  static constexpr int kLanes = Plan<T>::kPixels / 4, kRowsPerPass = kThreads / kLanes;
  __device__ __forceinline__ static int pixel() { return threadIdx.x % kLanes * 4; }
  __device__ __forceinline__ static int row(int pass) {
    const int q = threadIdx.x / kLanes;
    return q / 8 * 8 + q % 2 * 4 + q / 2 % 4 + pass * kRowsPerPass;
  }
  template <Pixels From>
  __device__ __forceinline__ static void put(T* tile, int pass, int c, const Four<T>& unit) {
    store_four(tile + row(pass) * kStride<T, From> + c * Plan<T>::kPixels + pixel(), unit);
  }
};

template <class T, Pixels From>
struct PixelStage;

// A thread's four pixels are three words, fetched as they lie and taken apart when they are stored.
template <class T>
struct PixelStage<T, Pixels::rgb_words> {
  static constexpr int kPasses = Plan<T>::kRows / Quads<T>::kRowsPerPass;
  uint32_t words[kPasses][3];

  __device__ __forceinline__ void load(const VisibleTubes& v, const Walk& w, const int64_t* origin, int p0, int, int) {
    const int p = p0 + Quads<T>::pixel();
    const uint8_t* video = static_cast<const uint8_t*>(v.video) + pixel_item(v, w, p);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t from = origin[Quads<T>::row(pass)];
      const bool inside = from >= 0 && p < w.pixels;
#pragma unroll
      for (int i = 0; i < 3; ++i)
        words[pass][i] = inside ? reinterpret_cast<const uint32_t*>(video + from)[i] : 0x80808080u;  // centre: zero
    }
  }
  __device__ __forceinline__ void store(T* tile, int) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        Four<T> unit;
#pragma unroll
        for (int e = 0; e < 4; ++e)
          unit.item[e] = centred<T>(words[pass][(e * 3 + c) / 4] >> (8 * ((e * 3 + c) % 4)) & 0xffu);
        Quads<T>::template put<Pixels::rgb_words>(tile, pass, c, unit);
      }
  }
};

// Any bytes: each is fetched alone into the word of its channel.
template <class T>
struct PixelStage<T, Pixels::bytes> {
  static constexpr int kPasses = Plan<T>::kRows / Quads<T>::kRowsPerPass, kChannels = kGroup<Pixels::bytes>;
  uint32_t words[kPasses][kChannels];

  __device__ __forceinline__ void load(const VisibleTubes& v, const Walk& w, const int64_t* origin, int p0, int c0,
                                       int n) {
    const int p = p0 + Quads<T>::pixel();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t from = origin[Quads<T>::row(pass)];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) words[pass][c] = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool inside = from >= 0 && p + e < w.pixels;
        const uint8_t* source =
            static_cast<const uint8_t*>(v.video) + (inside ? from + pixel_item(v, w, p + e) + c0 : 0);
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          words[pass][c] |= (inside && c < n ? uint32_t(source[c]) : 0x80u) << (8 * e);
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, int n) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        if (c >= n) continue;
        Four<T> unit;
#pragma unroll
        for (int e = 0; e < 4; ++e) unit.item[e] = centred<T>(words[pass][c] >> (8 * e) & 0xffu);
        Quads<T>::template put<Pixels::bytes>(tile, pass, c, unit);
      }
  }
};

template <class T>
struct PixelStage<T, Pixels::elements> {
  static constexpr int kPasses = Plan<T>::kRows / Quads<T>::kRowsPerPass, kChannels = kGroup<Pixels::elements>;
  Four<T> units[kPasses][kChannels];

  __device__ __forceinline__ void load(const VisibleTubes& v, const Walk& w, const int64_t* origin, int p0, int c0,
                                       int n) {
    const int p = p0 + Quads<T>::pixel();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t from = origin[Quads<T>::row(pass)];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        Four<T>& unit = units[pass][c];
        unit = {};
        if (c >= n || from < 0 || p >= w.pixels) continue;
        const T* plane = static_cast<const T*>(v.video) + from + (c0 + c) * v.channel_stride;
        if (w.wide_video) {
          unit = load_four(plane + pixel_item(v, w, p));
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (p + e < w.pixels) unit.item[e] = plane[pixel_item(v, w, p + e)];
        }
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, int n) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        if (c < n) Quads<T>::template put<Pixels::elements>(tile, pass, c, units[pass][c]);
  }
};

// ---- the B tile

template <class T, Pixels From>
struct WeightStage {
  using Sum = typename Plan<T>::Sum;
  static constexpr int kPasses = Plan<T>::kColumns / Quads<T>::kRowsPerPass;
  Four<T> units[kPasses][kGroup<From>];

  __device__ __forceinline__ void load(const T* weight, const Walk& w, int64_t dim, int64_t d0, int p0, int c0, int n) {
    const int p = p0 + Quads<T>::pixel();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int64_t d = d0 + Quads<T>::row(pass);
#pragma unroll
      for (int c = 0; c < kGroup<From>; ++c) {
        Four<T>& unit = units[pass][c];
        unit = {};
        if (c >= n || d >= dim || p >= w.pixels) continue;
        const T* plane = weight + (d * w.channels + c0 + c) * w.pixels + p;
        if (w.wide_weight) {
          unit = load_four(plane);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (p + e < w.pixels) unit.item[e] = plane[e];
        }
      }
    }
  }
  __device__ __forceinline__ void store(T* tile, const Sum* scale, const Sum* ratio, Sum (&offset)[kPasses], int n) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll
      for (int c = 0; c < kGroup<From>; ++c)
        if (c < n) {
          Four<T>& unit = units[pass][c];
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            unit.item[e] = narrow<T>(to_float(unit.item[e]) * scale[c]);
            offset[pass] += to_float(unit.item[e]) * ratio[c];
          }
          Quads<T>::template put<From>(tile, pass, c, unit);
        }
  }
};

}  // namespace
}  // namespace vk
