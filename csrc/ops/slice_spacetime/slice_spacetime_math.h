// One Gaussian, without branches: the CPU kernel runs it over lanes, the CUDA kernel in a thread. Everything is in an
// anonymous namespace: see core/dispatch.h.
#pragma once
#include <cmath>

#include "core/half.h"

namespace vk {
namespace {

template <class Real>
struct Slice {
  Real l11, l21, l22, l31, l32, l33;
  Real rest, variance;  // l32^2 + l33^2 and that plus l31^2 (1 if there is no slice)
  Real q11, q21, q22;   // the factor of I - u u^T / S: no difference of close numbers in it
  Real gain_x, gain_y;  // movement per unit of time
  bool alive;
};

template <class Real>
VK_HD Slice<Real> slice_of(const Real* l) {
  Slice<Real> s;
  s.l11 = l[0], s.l21 = l[1], s.l22 = l[2], s.l31 = l[3], s.l32 = l[4], s.l33 = l[5];
  const Real rest = s.l32 * s.l32 + s.l33 * s.l33, variance = s.l31 * s.l31 + rest;
  s.alive = (rest > 0) & (variance - variance == 0);
  s.rest = s.alive ? rest : Real(1);
  s.variance = s.alive ? variance : Real(1);
  s.q11 = std::sqrt(s.rest / s.variance);
  s.q21 = -s.l31 * s.l32 / std::sqrt(s.variance * s.rest);
  s.q22 = s.l33 / std::sqrt(s.rest);
  s.gain_x = s.l11 * s.l31 / s.variance;
  s.gain_y = (s.l21 * s.l31 + s.l22 * s.l32) / s.variance;
  return s;
}

/// Sums over the moments, and what a cotangent of the factor adds: the gradient of the six numbers.
template <class Real>
VK_HD void slice_backward(const Slice<Real>& s, Real to_gain_x, Real to_gain_y, Real to_variance, const Real* c,
                          Real* dl) {
  const Real n = 1 / s.variance, b1 = to_gain_x * n, b2 = to_gain_y * n;
  const Real dq11 = c[0] * s.l11 + c[1] * s.l21, dq21 = c[1] * s.l22, dq22 = c[2] * s.l22;
  const Real one = dq11 * s.q11, two = dq21 * s.q21;
  const Real ds = to_variance - (to_gain_x * s.gain_x + to_gain_y * s.gain_y) * n - (one + two) * n / 2;
  const Real dp = ds + (one - two - dq22 * s.q22) / (2 * s.rest);
  const Real share = dq21 / std::sqrt(s.variance * s.rest);
  const Real zero = 0;
  dl[0] = s.alive ? b1 * s.l31 + c[0] * s.q11 : zero;
  dl[1] = s.alive ? b2 * s.l31 + c[1] * s.q11 : zero;
  dl[2] = s.alive ? b2 * s.l32 + c[1] * s.q21 + c[2] * s.q22 : zero;
  dl[3] = s.alive ? b1 * s.l11 + b2 * s.l21 - share * s.l32 + 2 * s.l31 * ds : zero;
  dl[4] = s.alive ? b2 * s.l22 - share * s.l31 + 2 * s.l32 * dp : zero;
  dl[5] = s.alive ? dq22 / std::sqrt(s.rest) + 2 * s.l33 * dp : zero;
}

}  // namespace
}  // namespace vk
