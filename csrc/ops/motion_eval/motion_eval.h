// Curves of many Gaussians at many moments, for a basis that is zero outside `width` neighbouring coefficients.
//
//   forward   out[t, n, d]     = sum over k < width of value[t, k] c[n, first[t] + k, d]
//   backward  grad_c[n, j, d]  = sum over t of value[t, j - first[t]] g[t, n, d]
//             grad_times[t]    = sum over n, d of g[t, n, d] (sum over k of slope[t, k] c[n, first[t] + k, d])
//
// width is 12 (polynomial and Fourier terms, first = 0) or 4 (a cubic B-spline). The caller makes the tables.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

constexpr int kMotionBlock = 64;  // Gaussians whose gradients to a moment are added before the rest
constexpr int kMotionDense = 12;
constexpr int kMotionSpline = 4;

struct MotionEval {
  const void* coefficients;  // [N, K, D]
  const void* value;         // [T, width]
  const int32_t* first;      // [T], in [0, K - width]
  void* out;                 // [T, N, D]
  int64_t count, terms, dim, moments, width;
  Element element;
};

struct MotionEvalBackward {
  const void* grad_out;      // [T, N, D]
  const void* coefficients;  // [N, K, D]
  const void *value, *slope;
  const int32_t* first;
  void* grad;        // [N, K, D]
  void* grad_times;  // [T] or null
  double* partial;   // [ceil(N / kMotionBlock), T] or null
  int64_t count, terms, dim, moments, width;
  Element element;
};

VK_CPU_KERNEL(motion_eval, (const MotionEval& a))
VK_CPU_KERNEL(motion_eval_backward, (const MotionEvalBackward& a))

void motion_eval_cuda(const MotionEval& a, void* stream);
void motion_eval_backward_cuda(const MotionEvalBackward& a, void* stream);

}  // namespace vk
