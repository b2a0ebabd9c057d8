// One step of Adam or AdamW on rows of parameters, in place, with every array read and written once.
//
//   g = grad + decay * param  (coupled)         param *= 1 - lr * decay  (decoupled)
//   m += (1 - beta1)(g - m)                     v = beta2 v + (1 - beta2) g^2
//   param -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//
// Rows whose `visible` is false keep param, m and v to the bit, whatever their gradient holds. NaN goes where it goes
// in the formula: a NaN gradient spoils its own element for good, and no other.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/dispatch.h"
#include "core/half.h"

namespace vk {

struct AdamStep {
  float* param;            // [rows, width], changed in place
  const float* grad;       // [rows, width]
  float* mean;             // [rows, width], changed in place
  float* variance;         // [rows, width], changed in place
  const uint8_t* visible;  // [rows], 0 or 1, or null: all
  int64_t rows, width;
  double lr, beta1, beta2, eps, decay;
  bool decoupled;
  int64_t step;  // counts from 1

  int64_t numbers() const { return rows * width; }
};

/// The formula for one number, or for sixteen (V).
struct AdamFactors {
  float keep, decay, mean, keep_variance, variance, root, eps, rate;

  AdamFactors() = default;
  explicit AdamFactors(const AdamStep& a)
      : keep(a.decoupled ? float(1 - a.lr * a.decay) : 1.0f),
        decay(a.decoupled ? 0.0f : float(a.decay)),
        mean(float(1 - a.beta1)),
        keep_variance(float(a.beta2)),
        variance(float(1 - a.beta2)),
        root(float(1 / std::sqrt(1 - std::pow(a.beta2, double(a.step))))),
        eps(float(a.eps)),
        rate(float(a.lr / (1 - std::pow(a.beta1, double(a.step))))) {}

  template <class V, class Root>
  VK_HD void move(V& p, const V& gradient, V& m, V& v, Root square_root) const {
    V g = gradient;
    if (decay != 0) g = g + V(decay) * p;
    m = m + V(mean) * (g - m);
    v = V(keep_variance) * v + V(variance) * g * g;
    p = V(keep) * p - V(rate) * m / (square_root(v) * V(root) + V(eps));
  }
};

/// Many tensors, each with settings of its own. `visible` is not for these.
struct AdamStepMany {
  const AdamStep* tensors;  // [count], on the host
  int64_t count;
};

VK_CPU_KERNEL(adam_step, (const AdamStep& a))
VK_CPU_KERNEL(adam_step_many, (const AdamStepMany& a))

void adam_step_cuda(const AdamStep& a, void* stream);
void adam_step_many_cuda(const AdamStepMany& a, void* stream);

}  // namespace vk
