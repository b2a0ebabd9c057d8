// A ray is a chain (each T needs the one before), its sums are not. So the chains of kAbreast rays run side by side to
// hide the latency of the multiplication, and the sums over samples or channels are vectors.
#include <algorithm>

#include "core/parallel.h"
#include "ops/composite/composite.h"

namespace vk::VK_ISA {
namespace {

constexpr int kAbreast = 4;
constexpr int64_t kChunk = 64;  // samples that the backward pass keeps on the stack

/// Behind a surface T soon leaves the normal numbers, where every operation costs a hundred cycles. What is darker
/// than this counts as black.
template <class T>
constexpr T kBlack = sizeof(T) == 8 ? T(1e-280) : T(1e-30);

/// T_s of `N` neighbouring rays (and their weights, if asked for); returns T_S in t.
template <int N, bool kWeights, class T>
void scan(const T* alpha, T* result, int64_t samples, T* t) {
  for (int k = 0; k < N; ++k) t[k] = T(1);
  for (int64_t s = 0; s < samples; ++s)
    for (int k = 0; k < N; ++k) {
      const T a = alpha[k * samples + s];
      result[k * samples + s] = kWeights ? a * t[k] : t[k];
      const T next = t[k] * (T(1) - a);
      t[k] = next < kBlack<T> && next > -kBlack<T> ? T(0) : next;
    }
}

template <bool kWeights, class T>
void scan_rays(const T* alpha, T* result, int64_t samples, int64_t rays, T* t) {
  int64_t r = 0;
  for (; r + kAbreast <= rays; r += kAbreast)
    scan<kAbreast, kWeights>(alpha + r * samples, result + r * samples, samples, t + r);
  for (; r < rays; ++r) scan<1, kWeights>(alpha + r * samples, result + r * samples, samples, t + r);
}

/// sum over s of w[s] v[s, c]. C: channels known to the compiler, or 0.
template <int C, class T>
void weighted_sum(const T* w, const T* v, int64_t samples, int64_t channels, T* out) {
  if constexpr (C == 1) {
    T x = 0;
#pragma omp simd reduction(+ : x)
    for (int64_t s = 0; s < samples; ++s) x += w[s] * v[s];
    out[0] = x;
  } else if constexpr (C == 3) {
    T x = 0, y = 0, z = 0;
#pragma omp simd reduction(+ : x, y, z)
    for (int64_t s = 0; s < samples; ++s) {
      x += w[s] * v[3 * s];
      y += w[s] * v[3 * s + 1];
      z += w[s] * v[3 * s + 2];
    }
    out[0] = x, out[1] = y, out[2] = z;
  } else {
    std::fill(out, out + channels, T(0));
    for (int64_t s = 0; s < samples; ++s) {
      const T* row = v + s * channels;
#pragma omp simd
      for (int64_t c = 0; c < channels; ++c) out[c] += w[s] * row[c];
    }
  }
}

/// q[s] += grad_out . v[s] and grad_values[s] = w[s] grad_out.
template <int C, class T>
void apply_colour(const T* w, const T* v, const T* grad_out, int64_t n, int64_t channels, T* q, T* grad_values) {
  if constexpr (C == 1) {
    const T g = grad_out[0];
#pragma omp simd
    for (int64_t s = 0; s < n; ++s) {
      q[s] += g * v[s];
      grad_values[s] = w[s] * g;
    }
  } else if constexpr (C == 3) {
    const T g0 = grad_out[0], g1 = grad_out[1], g2 = grad_out[2];
#pragma omp simd
    for (int64_t s = 0; s < n; ++s) {
      q[s] += g0 * v[3 * s] + g1 * v[3 * s + 1] + g2 * v[3 * s + 2];
      grad_values[3 * s] = w[s] * g0;
      grad_values[3 * s + 1] = w[s] * g1;
      grad_values[3 * s + 2] = w[s] * g2;
    }
  } else {
    for (int64_t s = 0; s < n; ++s) {
      const T* row = v + s * channels;
      T* grad = grad_values + s * channels;
      T dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int64_t c = 0; c < channels; ++c) {
        dot += grad_out[c] * row[c];
        grad[c] = w[s] * grad_out[c];
      }
      q[s] += dot;
    }
  }
}

int64_t grain(int64_t samples, int64_t channels) { return 1 + 16384 / (samples * (channels + 1) + 1); }

template <int C, class T>
void forward(const Composite& a) {
  const T *values = static_cast<const T*>(a.values), *alpha = static_cast<const T*>(a.alpha);
  T *out = static_cast<T*>(a.out), *weights = static_cast<T*>(a.weights), *t = static_cast<T*>(a.transmittance);
  parallel_for(a.rays, grain(a.samples, a.channels), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r += kAbreast) {  // weights are still in the cache when they are summed
      const int64_t n = std::min<int64_t>(kAbreast, r1 - r);
      scan_rays<true>(alpha + r * a.samples, weights + r * a.samples, a.samples, n, t + r);
      for (int64_t k = r; k < r + n; ++k)
        weighted_sum<C>(weights + k * a.samples, values + k * a.samples * a.channels, a.samples, a.channels,
                        out + k * a.channels);
    }
  });
}

/// One ray; grad_alpha comes in as T_s.
template <int C, class T>
void backward_ray(const CompositeBackward& a, int64_t r) {
  const int64_t samples = a.samples, channels = a.channels;
  const T* values = static_cast<const T*>(a.values) + r * samples * channels;
  const T* alpha = static_cast<const T*>(a.alpha) + r * samples;
  const T* grad_out = a.grad_out ? static_cast<const T*>(a.grad_out) + r * channels : nullptr;
  const T* grad_weights = a.grad_weights ? static_cast<const T*>(a.grad_weights) + r * samples : nullptr;
  T* grad_values = static_cast<T*>(a.grad_values) + r * samples * channels;
  T* grad_alpha = static_cast<T*>(a.grad_alpha) + r * samples;
  T behind = a.grad_transmittance ? static_cast<const T*>(a.grad_transmittance)[r] : T(0);
  T q[kChunk], w[kChunk];
  for (int64_t s1 = samples; s1 > 0; s1 -= std::min(kChunk, s1)) {
    const int64_t s0 = std::max<int64_t>(0, s1 - kChunk), n = s1 - s0;
#pragma omp simd
    for (int64_t s = 0; s < n; ++s) {
      w[s] = alpha[s0 + s] * grad_alpha[s0 + s];
      q[s] = grad_weights ? grad_weights[s0 + s] : T(0);
    }
    if (grad_out)
      apply_colour<C>(w, values + s0 * channels, grad_out, n, channels, q, grad_values + s0 * channels);
    else
      std::fill(grad_values + s0 * channels, grad_values + s1 * channels, T(0));
    for (int64_t s = n; s-- > 0;) {
      const T x = alpha[s0 + s], worth = q[s];
      grad_alpha[s0 + s] *= worth - behind;
      behind = x * worth + (T(1) - x) * behind;
    }
  }
}

template <int C, class T>
void backward(const CompositeBackward& a) {
  parallel_for(a.rays, grain(a.samples, a.channels), [&](int64_t r0, int64_t r1) {
    T last[kAbreast];
    for (int64_t r = r0; r < r1; r += kAbreast) {
      const int64_t n = std::min<int64_t>(kAbreast, r1 - r);
      scan_rays<false>(static_cast<const T*>(a.alpha) + r * a.samples, static_cast<T*>(a.grad_alpha) + r * a.samples,
                       a.samples, n, last);
      for (int64_t k = r; k < r + n; ++k) backward_ray<C, T>(a, k);
    }
  });
}

template <class T>
void forward_any(const Composite& a) {
  switch (a.channels) {
    case 1: return forward<1, T>(a);
    case 3: return forward<3, T>(a);
    default: return forward<0, T>(a);
  }
}

template <class T>
void backward_any(const CompositeBackward& a) {
  switch (a.channels) {
    case 1: return backward<1, T>(a);
    case 3: return backward<3, T>(a);
    default: return backward<0, T>(a);
  }
}

}  // namespace

void composite(const Composite& a) { a.element == Element::f64 ? forward_any<double>(a) : forward_any<float>(a); }

void composite_backward(const CompositeBackward& a) {
  a.element == Element::f64 ? backward_any<double>(a) : backward_any<float>(a);
}

}  // namespace vk::VK_ISA
