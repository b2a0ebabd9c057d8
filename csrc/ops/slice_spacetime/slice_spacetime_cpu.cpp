// kLanes Gaussians at a time are turned into columns; the loop over moments is inside, so that parameters are read
// once. Gradients of the moments are added per lane block, then per kSliceBlock, then over all: one order for any
// number of threads.
#include <cmath>
#include <cstring>

#include "core/parallel.h"
#include "ops/slice_spacetime/slice_spacetime.h"
#include "ops/slice_spacetime/slice_spacetime_math.h"

namespace vk::VK_ISA {
namespace {

constexpr int kLanes = 64;

/// exp(x) for x <= 0: degree 6 on [-ln2/2, ln2/2], two-part ln2; below -87 it is 0.
inline float exp_down(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // the whole number sits in the low bits
  const float whole = shifted - 12582912.0f;
  const float r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const float scale = bit_cast<float>((bit_cast<int32_t>(shifted) + 127) << 23);
  const float down = x > -87.0f ? p * scale : 0.0f;
  return x == x ? down : x;
}
inline double exp_down(double x) { return std::exp(x); }

template <int kWidth, class Real>
void load(const Real* rows, int n, Real (*columns)[kLanes]) {
  for (int d = 0; d < kWidth; ++d) {
    for (int i = 0; i < n; ++i) columns[d][i] = rows[i * kWidth + d];
    for (int i = n; i < kLanes; ++i) columns[d][i] = columns[d][n - 1];
  }
}

template <int kWidth, class Real>
void store(Real* rows, int n, const Real (*columns)[kLanes]) {
  for (int i = 0; i < n; ++i)
    for (int d = 0; d < kWidth; ++d) rows[i * kWidth + d] = columns[d][i];
}

template <class Real>
void forward(const SliceSpacetime& a) {
  const Real* times = static_cast<const Real*>(a.times);
  const int64_t groups = (a.count + kLanes - 1) / kLanes;
  parallel_for(groups, 1 + 16384 / (kLanes * (a.moments + 1)), [&](int64_t g0, int64_t g1) {
    for (int64_t group = g0; group < g1; ++group) {
      const int64_t n0 = group * kLanes;
      const int n = int(a.count - n0 < kLanes ? a.count - n0 : kLanes);
      Real m[3][kLanes], l[6][kLanes], flat[3][kLanes], gain[2][kLanes], variance[kLanes], alive[kLanes];
      load<3>(static_cast<const Real*>(a.means) + n0 * 3, n, m);
      load<6>(static_cast<const Real*>(a.cholesky) + n0 * 6, n, l);
#pragma omp simd
      for (int i = 0; i < kLanes; ++i) {
        const Real own[6] = {l[0][i], l[1][i], l[2][i], l[3][i], l[4][i], l[5][i]};
        const Slice<Real> s = slice_of(own);
        flat[0][i] = s.alive ? s.l11 * s.q11 : s.l11;
        flat[1][i] = s.alive ? s.l21 * s.q11 + s.l22 * s.q21 : s.l21;
        flat[2][i] = s.alive ? s.l22 * s.q22 : s.l22;
        gain[0][i] = s.gain_x, gain[1][i] = s.gain_y, variance[i] = s.variance;
        alive[i] = s.alive ? Real(1) : Real(0);
      }
      store<3>(static_cast<Real*>(a.cholesky2d) + n0 * 3, n, flat);
      for (int64_t t = 0; t < a.moments; ++t) {
        Real moved[2][kLanes], weight[1][kLanes];
        const Real now = times[t];
#pragma omp simd
        for (int i = 0; i < kLanes; ++i) {
          const Real ahead = now - m[2][i];
          moved[0][i] = alive[i] > 0 ? m[0][i] + gain[0][i] * ahead : m[0][i];
          moved[1][i] = alive[i] > 0 ? m[1][i] + gain[1][i] * ahead : m[1][i];
          const Real e = exp_down(-ahead * ahead / (2 * variance[i]));
          weight[0][i] = alive[i] > 0 ? e : Real(0);
        }
        store<2>(static_cast<Real*>(a.means2d) + (t * a.count + n0) * 2, n, moved);
        store<1>(static_cast<Real*>(a.weight) + t * a.count + n0, n, weight);
      }
    }
  });
}

template <class Real>
void backward_lanes(const SliceSpacetimeBackward& a, int64_t n0, int n, double* partial) {
  const Real* times = static_cast<const Real*>(a.times);
  Real m[3][kLanes], l[6][kLanes], c[3][kLanes], gain[2][kLanes], variance[kLanes], alive[kLanes];
  Real dm[3][kLanes] = {}, dgain[2][kLanes] = {}, dvariance[kLanes] = {}, dl[6][kLanes];
  load<3>(static_cast<const Real*>(a.means) + n0 * 3, n, m);
  load<6>(static_cast<const Real*>(a.cholesky) + n0 * 6, n, l);
  load<3>(static_cast<const Real*>(a.grad_cholesky2d) + n0 * 3, n, c);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const Real own[6] = {l[0][i], l[1][i], l[2][i], l[3][i], l[4][i], l[5][i]};
    const Slice<Real> s = slice_of(own);
    gain[0][i] = s.gain_x, gain[1][i] = s.gain_y, variance[i] = s.variance;
    alive[i] = s.alive ? Real(1) : Real(0);
  }
  for (int64_t t = 0; t < a.moments; ++t) {
    Real g[2][kLanes], w[1][kLanes], step[kLanes];
    load<2>(static_cast<const Real*>(a.grad_means2d) + (t * a.count + n0) * 2, n, g);
    load<1>(static_cast<const Real*>(a.grad_weight) + t * a.count + n0, n, w);
    const Real now = times[t];
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Real ahead = now - m[2][i];
      const Real slope = w[0][i] * exp_down(-ahead * ahead / (2 * variance[i])) * ahead / variance[i];
      const Real to_ahead = g[0][i] * gain[0][i] + g[1][i] * gain[1][i] - slope;
      step[i] = alive[i] > 0 ? to_ahead : Real(0);
      dm[0][i] += g[0][i], dm[1][i] += g[1][i], dm[2][i] -= to_ahead;
      dgain[0][i] += g[0][i] * ahead, dgain[1][i] += g[1][i] * ahead;
      dvariance[i] += slope * ahead;
    }
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += double(step[i]);
    partial[t] += sum;
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    const Real own[6] = {l[0][i], l[1][i], l[2][i], l[3][i], l[4][i], l[5][i]};
    const Real factor[3] = {c[0][i], c[1][i], c[2][i]};
    const Slice<Real> s = slice_of(own);
    Real to[6];
    slice_backward(s, dgain[0][i], dgain[1][i], dvariance[i] / (2 * s.variance), factor, to);
    for (int d = 0; d < 6; ++d) dl[d][i] = to[d];
    for (int d = 0; d < 3; ++d) dm[d][i] = s.alive ? dm[d][i] : Real(0);
  }
  store<3>(static_cast<Real*>(a.grad_means) + n0 * 3, n, dm);
  store<6>(static_cast<Real*>(a.grad_cholesky) + n0 * 6, n, dl);
}

template <class Real>
void backward(const SliceSpacetimeBackward& a) {
  const int64_t blocks = (a.count + kSliceBlock - 1) / kSliceBlock;
  parallel_for(blocks, 1 + 16384 / (kSliceBlock * (a.moments + 1)), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      double* partial = a.partial + i * a.moments;
      std::memset(partial, 0, size_t(a.moments) * sizeof(double));
      const int64_t begin = i * kSliceBlock, end = begin + kSliceBlock < a.count ? begin + kSliceBlock : a.count;
      for (int64_t n0 = begin; n0 < end; n0 += kLanes)
        backward_lanes<Real>(a, n0, int(end - n0 < kLanes ? end - n0 : kLanes), partial);
    }
  });
  for (int64_t t = 0; t < a.moments; ++t) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; ++i) sum += a.partial[i * a.moments + t];
    static_cast<Real*>(a.grad_times)[t] = Real(sum);
  }
}

}  // namespace

void slice_spacetime(const SliceSpacetime& a) { a.element == Element::f64 ? forward<double>(a) : forward<float>(a); }

void slice_spacetime_backward(const SliceSpacetimeBackward& a) {
  a.element == Element::f64 ? backward<double>(a) : backward<float>(a);
}

}  // namespace vk::VK_ISA
