// Front-to-back compositing of ordered samples along rays ("over"), and its gradient.
//
//   T_0 = 1,  w_s = alpha_s T_s,  T_{s+1} = (1 - alpha_s) T_s
//   forward   out = sum_s w_s values_s      weights = w      transmittance = T_S
//   backward  q_s = grad_out . values_s + grad_weights_s        what a unit of weight on sample s is worth
//             B_{S-1} = grad_transmittance,  B_{s-1} = alpha_s q_s + (1 - alpha_s) B_s    ... and all that lies behind
//             grad_alpha_s = T_s (q_s - B_s)            grad_values_s = w_s grad_out
//
// Nothing is divided by 1 - alpha, so the gradient is exact at alpha = 1 as well. Values of alpha outside [0, 1] and
// NaN are taken as they are. The CPU kernel takes |T| < 1e-30 (fp64: 1e-280) for 0.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

struct Composite {
  const void* values;   // [R, S, C], fp32 or fp64
  const void* alpha;    // [R, S]
  void* out;            // [R, C]
  void* weights;        // [R, S]
  void* transmittance;  // [R]
  int64_t rays, samples, channels;
  Element element;
};

struct CompositeBackward {
  const void* grad_out;            // [R, C] or null: zeros
  const void* grad_weights;        // [R, S] or null
  const void* grad_transmittance;  // [R] or null
  const void* values;              // [R, S, C]
  const void* alpha;               // [R, S]
  void* grad_values;               // [R, S, C]
  void* grad_alpha;                // [R, S]; holds T_s between the two passes
  int64_t rays, samples, channels;
  Element element;
};

VK_CPU_KERNEL(composite, (const Composite& a))
VK_CPU_KERNEL(composite_backward, (const CompositeBackward& a))

void composite_cuda(const Composite& a, void* stream);
void composite_backward_cuda(const CompositeBackward& a, void* stream);

}  // namespace vk
