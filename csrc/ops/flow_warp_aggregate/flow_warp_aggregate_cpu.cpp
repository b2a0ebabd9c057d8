// Sixteen pixels of a row at a time: where their four taps of each neighbour lie and what they weigh, then pixel by
// pixel over the channels, which are neighbours in memory.
//
//   forward    out = weighted sum of taps
//   backward   1  products of the gradient with every tap: gradients of logits and flows, and the softmax, kept
//              2  a task owns rows of one neighbour's gradient and adds, in the order of the pictures' pixels, what
//                 lands there: no two tasks meet, and the order does not depend on who owns what
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/flow_warp_aggregate/flow_warp_aggregate.h"

namespace vk::VK_ISA {
namespace {

constexpr int kTile = 16;
constexpr float kLog2E = 1.44269504f;

typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

/// Four numbers, of which n may be read.
template <class T>
VK_INLINE F4 load4(const T* from, int64_t n) {
  F4 v{};
  if constexpr (sizeof(T) == 4) {
    if (n >= 4) {
      std::memcpy(&v, from, sizeof v);
      return v;
    }
  }
  for (int i = 0; i < 4; ++i)
    if (i < n) v[i] = to_float(from[i]);
  return v;
}
template <class T>
VK_INLINE void store4(T* to, const F4& v, int64_t n) {
  if constexpr (sizeof(T) == 4) {
    if (n >= 4) {
      std::memcpy(to, &v, sizeof v);
      return;
    }
  }
  for (int i = 0; i < 4; ++i)
    if (i < n) to[i] = from_float<T>(v[i]);
}
template <class T>
VK_INLINE V16 load16(const T* from) {
  if constexpr (sizeof(T) == 4) return load(from);
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = to_float(from[i]);
  return load(lanes);
}
template <class T>
VK_INLINE void store16(T* to, const V16& v) {
  if constexpr (sizeof(T) == 4) return store(to, v);
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < 16; ++i) to[i] = from_float<T>(lanes[i]);
}
VK_INLINE F4 first(F4 v, int64_t n) {
  const I4 lane = {0, 1, 2, 3}, count = I4{} + int32_t(n);
  return F4(I4(v) & (lane < count));
}

/// 2^x, 0 from -126 on, NaN of NaN.
VK_INLINE V16 power(const V16& x) {
  const V16 low(-126.0f);
  return select_ge(x, low, exp2(max(x, low)), select_ge(low, x, V16(0.0f), x));
}

/// softmax over the neighbours of `count` pixels from `pixel` on: p[k][i].
void softmax(const FlowWarp& a, int64_t image, int64_t pixel, int count, float (*p)[kTile]) {
  const int64_t n = a.neighbours;
  V16 most(-INFINITY), total(0.0f), logit[kMaxNeighbours];
  for (int64_t k = 0; k < n; ++k) {
    const float* from = a.logits + (image * n + k) * a.pixels() + pixel;
    if (count == kTile) {
      logit[k] = load(from);
    } else {
      float lanes[kTile] = {};
      std::memcpy(lanes, from, size_t(count) * sizeof(float));
      logit[k] = load(lanes);
    }
    most = max(most, logit[k]);
  }
  for (int64_t k = 0; k < n; ++k) {
    logit[k] = power((logit[k] - most) * V16(kLog2E));
    total = total + logit[k];
  }
  const V16 share = V16(1.0f) / total;
  for (int64_t k = 0; k < n; ++k) store(p[k], logit[k] * share);
}

/// The taps of a pixel in one neighbour: places of the first channel, and weights.
struct Taps {
  int64_t at[4];
  float weight[4];
  FlowTap x, y;
};

VK_INLINE Taps taps_of(const FlowWarp& a, const float* flow, int64_t y, int64_t x) {
  Taps t;
  t.x = flow_tap(int32_t(x), flow[0], int32_t(a.width));
  t.y = flow_tap(int32_t(y), flow[a.pixels()], int32_t(a.height));
  const int64_t top = t.y.low * a.width, bottom = t.y.high * a.width;
  t.at[0] = (top + t.x.low) * a.channels;
  t.at[1] = (top + t.x.high) * a.channels;
  t.at[2] = (bottom + t.x.low) * a.channels;
  t.at[3] = (bottom + t.x.high) * a.channels;
  t.weight[0] = (1.0f - t.y.share) * (1.0f - t.x.share);
  t.weight[1] = (1.0f - t.y.share) * t.x.share;
  t.weight[2] = t.y.share * (1.0f - t.x.share);
  t.weight[3] = t.y.share * t.x.share;
  return t;
}

/// The taps of a tile's pixels in one neighbour.
struct TileTaps {
  struct Axis {
    int32_t low[kTile], high[kTile];
    float share[kTile], inside[kTile];  // inside: 1 or 0
  } x, y;
  float weight[4][kTile];

  VK_INLINE void places(const FlowWarp& a, int i, int64_t* at) const {
    const int64_t top = y.low[i] * a.width, bottom = y.high[i] * a.width;
    at[0] = (top + x.low[i]) * a.channels;
    at[1] = (top + x.high[i]) * a.channels;
    at[2] = (bottom + x.low[i]) * a.channels;
    at[3] = (bottom + x.high[i]) * a.channels;
  }
};

VK_INLINE void taps_along(const float* flow, int count, int32_t first, int32_t step, int32_t n, TileTaps::Axis& out) {
  float lanes[kTile] = {};
  std::memcpy(lanes, flow, size_t(count) * sizeof(float));
#pragma omp simd
  for (int i = 0; i < kTile; ++i) {
    const FlowTap t = flow_tap(first + step * i, lanes[i], n);
    out.low[i] = t.low;
    out.high[i] = t.high;
    out.share[i] = t.share;
    out.inside[i] = t.inside ? 1.0f : 0.0f;
  }
}

void taps_of_tile(const FlowWarp& a, int64_t plane, int64_t y, int64_t x0, int count, TileTaps& t) {
  const float* flow = a.flows + 2 * plane * a.pixels() + y * a.width + x0;
  taps_along(flow, count, int32_t(x0), 1, int32_t(a.width), t.x);
  taps_along(flow + a.pixels(), count, int32_t(y), 0, int32_t(a.height), t.y);
#pragma omp simd
  for (int i = 0; i < kTile; ++i) {
    const float x = t.x.share[i], down = t.y.share[i];
    t.weight[0][i] = (1.0f - down) * (1.0f - x);
    t.weight[1][i] = (1.0f - down) * x;
    t.weight[2][i] = down * (1.0f - x);
    t.weight[3][i] = down * x;
  }
}

/// f(image, row, first column, count) for tiles of all rows.
template <class F>
void each_tile(const FlowWarp& a, F f) {
  const int64_t work = a.width * a.neighbours * (a.channels + 8);
  parallel_for(a.batch * a.height, 1 + 8192 / (work + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r)
      for (int64_t x = 0; x < a.width; x += kTile)
        f(r / a.height, r % a.height, x, int(std::min<int64_t>(kTile, a.width - x)));
  });
}

/// Pictures of up to four channels: a tap is one load.
template <class T>
void few_channels(const FlowWarp& a, int64_t image, int64_t y, int64_t x0, int count, const float (*p)[kTile]) {
  const int64_t picture = a.pixels() * a.channels;
  const T *features = static_cast<const T*>(a.features), *end = features + a.batch * a.neighbours * picture;
  F4 sum[kTile] = {};
  for (int64_t k = 0; k < a.neighbours; ++k) {
    TileTaps t;
    taps_of_tile(a, image * a.neighbours + k, y, x0, count, t);
    const T* from = features + (image * a.neighbours + k) * picture;
    for (int i = 0; i < count; ++i) {
      int64_t at[4];
      t.places(a, i, at);
      F4 seen{};
      for (int j = 0; j < 4; ++j) seen += t.weight[j][i] * load4(from + at[j], end - from - at[j]);
      sum[i] += p[k][i] * seen;
    }
  }
  T* out = static_cast<T*>(a.out) + (image * a.pixels() + y * a.width + x0) * a.channels;
  for (int i = 0; i < count; ++i) store4(out + i * a.channels, sum[i], a.channels);
}

template <class T>
void forward(const FlowWarp& a) {
  const T* features = static_cast<const T*>(a.features);
  const int64_t picture = a.pixels() * a.channels, all = a.batch * a.neighbours * picture;
  const int n = int(a.neighbours);
  each_tile(a, [&](int64_t image, int64_t y, int64_t x0, int count) {
    float p[kMaxNeighbours][kTile];
    softmax(a, image, y * a.width + x0, count, p);
    if (a.channels <= 4) return few_channels<T>(a, image, y, x0, count, p);
    TileTaps taps[kMaxNeighbours];
    for (int k = 0; k < n; ++k) taps_of_tile(a, image * n + k, y, x0, count, taps[k]);
    for (int i = 0; i < count; ++i) {
      int64_t at[kMaxNeighbours * 4];
      float weight[kMaxNeighbours * 4];
      for (int k = 0; k < n; ++k) {
        taps[k].places(a, i, at + 4 * k);
        for (int j = 0; j < 4; ++j) {
          at[4 * k + j] += (image * n + k) * picture;
          weight[4 * k + j] = p[k][i] * taps[k].weight[j][i];
        }
      }
      T* out = static_cast<T*>(a.out) + (image * a.pixels() + y * a.width + x0 + i) * a.channels;
      int64_t c = 0;
      for (; c + 16 <= a.channels; c += 16) {
        V16 sum(0.0f);
        for (int j = 0; j < 4 * n; ++j) sum = madd(V16(weight[j]), load16(features + at[j] + c), sum);
        store16(out + c, sum);
      }
      for (; c < a.channels; c += 4) {  // lanes behind the last channel are computed and dropped
        F4 sum{};
        for (int j = 0; j < 4 * n; ++j) sum += weight[j] * load4(features + at[j] + c, all - at[j] - c);
        store4(out + c, sum, a.channels - c);
      }
    }
  });
}

/// What a gradient makes of a pixel's four taps: products with what is seen there, and with how that changes.
struct Seen {
  F4 value, by_x, by_y;  // to be summed
};

template <class T>
VK_INLINE Seen products(const T* grad, const T* grad_end, const T* features, const T* end, const int64_t* at,
                        const float* weight, float x, float y, int64_t channels) {
  int64_t c = 0;
  Seen out{};
  const auto add = [&](const auto& g, const auto* f, auto& value, auto& by_x, auto& by_y, const auto& wide) {
    value =
        value + g * (wide(weight[0]) * f[0] + wide(weight[1]) * f[1] + wide(weight[2]) * f[2] + wide(weight[3]) * f[3]);
    by_x = by_x + g * (wide(1.0f - y) * (f[1] - f[0]) + wide(y) * (f[3] - f[2]));
    by_y = by_y + g * (wide(1.0f - x) * (f[2] - f[0]) + wide(x) * (f[3] - f[1]));
  };
  if (channels >= 16) {
    V16 value(0.0f), by_x(0.0f), by_y(0.0f);
    for (; c + 16 <= channels; c += 16) {
      V16 f[4];
      for (int j = 0; j < 4; ++j) f[j] = load16(features + at[j] + c);
      add(load16(grad + c), f, value, by_x, by_y, [](float v) { return V16(v); });
    }
    out.value[0] = vk::sum(value), out.by_x[0] = vk::sum(by_x), out.by_y[0] = vk::sum(by_y);
  }
  for (; c < channels; c += 4) {
    const int64_t n = channels - c;
    F4 f[4];
    for (int j = 0; j < 4; ++j) f[j] = first(load4(features + at[j] + c, end - features - at[j] - c), n);
    add(first(load4(grad + c, grad_end - grad - c), n), f, out.value, out.by_x, out.by_y,
        [](float v) { return F4{v, v, v, v}; });
  }
  return out;
}

VK_INLINE void sum_lanes(const F4* from, float* to) {
#pragma omp simd
  for (int i = 0; i < kTile; ++i) to[i] = (from[i][0] + from[i][1]) + (from[i][2] + from[i][3]);
}

template <class T>
void back_to_flows(const FlowWarpBackward& b, float* shares) {
  const FlowWarp& a = b.in;
  const int64_t picture = a.pixels() * a.channels, n = a.neighbours;
  const T *features = static_cast<const T*>(a.features), *end = features + a.batch * n * picture;
  const T *grad = static_cast<const T*>(b.grad), *grad_end = grad + a.batch * picture;
  each_tile(a, [&](int64_t image, int64_t y, int64_t x0, int count) {
    const int64_t pixel = y * a.width + x0;
    const T* g = grad + (image * a.pixels() + pixel) * a.channels;
    const size_t bytes = size_t(count) * sizeof(float);
    float p[kMaxNeighbours][kTile], value[kMaxNeighbours][kTile];
    softmax(a, image, pixel, count, p);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t plane = image * n + k;
      const T* from = features + plane * picture;
      TileTaps t;
      taps_of_tile(a, plane, y, x0, count, t);
      F4 of_value[kTile] = {}, of_x[kTile] = {}, of_y[kTile] = {};
      for (int i = 0; i < count; ++i) {
        int64_t at[4];
        t.places(a, i, at);
        const float weight[4] = {t.weight[0][i], t.weight[1][i], t.weight[2][i], t.weight[3][i]};
        const Seen seen =
            products(g + i * a.channels, grad_end, from, end, at, weight, t.x.share[i], t.y.share[i], a.channels);
        of_value[i] = seen.value, of_x[i] = seen.by_x, of_y[i] = seen.by_y;
      }
      float by_x[kTile], by_y[kTile];
      sum_lanes(of_value, value[k]);
      sum_lanes(of_x, by_x);
      sum_lanes(of_y, by_y);
#pragma omp simd
      for (int i = 0; i < kTile; ++i) {
        by_x[i] = t.x.inside[i] != 0 ? p[k][i] * by_x[i] : 0.0f;
        by_y[i] = t.y.inside[i] != 0 ? p[k][i] * by_y[i] : 0.0f;
      }
      float* flow = b.grad_flows + 2 * plane * a.pixels() + pixel;
      std::memcpy(flow, by_x, bytes);
      std::memcpy(flow + a.pixels(), by_y, bytes);
      if (shares != nullptr) std::memcpy(shares + plane * a.pixels() + pixel, p[k], bytes);
    }
    // Differences of values, not from their mean: where one neighbour is all, its own drops out exactly.
    for (int64_t k = 0; k < n; ++k) {
      V16 total(0.0f);
      for (int64_t j = 0; j < n; ++j) total = madd(load(p[j]), load(value[k]) - load(value[j]), total);
      float logit[kTile];
      store(logit, load(p[k]) * total);
      std::memcpy(b.grad_logits + (image * n + k) * a.pixels() + pixel, logit, bytes);
    }
  });
}

template <class T>
VK_INLINE void add_scaled(const T* from, float by, float* to, int64_t n) {
  int64_t c = 0;
  for (; c + 16 <= n; c += 16) store(to + c, madd(V16(by), load16(from + c), load(to + c)));
  for (; c < n; c += 4) store4(to + c, load4(to + c, n - c) + by * load4(from + c, n - c), n - c);
}

/// What the pixels of a picture add to rows [top, bottom) of one neighbour's gradient.
template <class T>
void back_to_features(const FlowWarpBackward& b, const float* shares, int64_t plane, int64_t top, int64_t bottom,
                      float* rows) {
  const FlowWarp& a = b.in;
  const int64_t image = plane / a.neighbours, row = a.width * a.channels;
  const T* grad = static_cast<const T*>(b.grad) + image * a.pixels() * a.channels;
  const float *share = shares + plane * a.pixels(), *flow = a.flows + 2 * plane * a.pixels();
  std::memset(rows, 0, size_t((bottom - top) * row) * sizeof(float));
  rows -= top * row;
  for (int64_t y = 0; y < a.height; ++y)
    for (int64_t x = 0; x < a.width; ++x) {
      const int64_t pixel = y * a.width + x;
      const FlowTap down = flow_tap(int32_t(y), flow[a.pixels() + pixel], int32_t(a.height));
      if (down.high < top || down.low >= bottom) continue;
      const Taps t = taps_of(a, flow + pixel, y, x);
      for (int j = 0; j < 4; ++j) {
        const int64_t line = j < 2 ? down.low : down.high;
        if (t.weight[j] != 0 && line >= top && line < bottom)
          add_scaled(grad + pixel * a.channels, share[pixel] * t.weight[j], rows + t.at[j], a.channels);
      }
    }
}

template <class T>
void backward(const FlowWarpBackward& b) {
  const FlowWarp& a = b.in;
  const int64_t planes = a.batch * a.neighbours, row = a.width * a.channels;
  if (b.grad_features == nullptr) return back_to_flows<T>(b, nullptr);
  Scratch<float> shares(size_t(planes * a.pixels()));
  back_to_flows<T>(b, shares.data());
  const int64_t bands = std::min(a.height, (max_threads() + planes - 1) / planes);
  parallel_each(planes * bands, [&](int64_t i) {
    const int64_t plane = i / bands, top = a.height * (i % bands) / bands, bottom = a.height * (i % bands + 1) / bands;
    T* out = static_cast<T*>(b.grad_features) + (plane * a.height + top) * row;
    if constexpr (sizeof(T) == 4) {
      back_to_features<T>(b, shares.data(), plane, top, bottom, out);
    } else {
      Scratch<float> rows(size_t((bottom - top) * row));
      back_to_features<T>(b, shares.data(), plane, top, bottom, rows.data());
      for (int64_t k = 0; k < (bottom - top) * row; ++k) out[k] = from_float<T>(rows[size_t(k)]);
    }
  });
}

}  // namespace

void flow_warp_aggregate(const FlowWarp& a) {
  if (a.batch * a.pixels() * a.channels == 0) return;
  switch (a.element) {
    case Element::f16: return forward<f16>(a);
    case Element::bf16: return forward<bf16>(a);
    default: return forward<float>(a);
  }
}

void flow_warp_aggregate_backward(const FlowWarpBackward& a) {
  if (a.in.batch * a.in.pixels() == 0) return;
  switch (a.in.element) {
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
    default: return backward<float>(a);
  }
}

}  // namespace vk::VK_ISA
