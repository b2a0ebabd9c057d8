// Steps of gradient descent on the Gaussians of one control frame of a video: render, squared error against uint8
// pixels, gradient and Adam update in one go, without any gradient array.
//
// A Gaussian is eight numbers: x, y, l11, l21, l22 (Cholesky factor), and a colour Y, Co, Cg with
//   R = Y + Co - Cg, G = Y + Cg, B = Y - Co - Cg.
// Frame f shows  (1 - alpha[f]) previous + alpha[f] current;  only `current` moves. Without `previous`: current alone.
//
// quantum[k] > 0: the renderer sees current rounded to previous + whole multiples of quantum[k] (straight-through).
// shrink[k] > 0:  adds shrink[k] * |current - previous| to the squared error, by a proximal step in Adam's metric.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

constexpr int kFitAttributes = 8;

struct SplatFit {
  float* current;         // [N, 8], changed in place
  const float* previous;  // [N, 8] or null
  float* mean;            // [N, 8], Adam's first moment, changed in place
  float* variance;        // [N, 8], Adam's second moment, changed in place
  const uint8_t* frames;  // [F, H, W, 3]
  const float* alpha;     // [F]
  const int32_t* order;   // [S], the frame of each step, in [0, F)
  const float* pace;      // [S], factor of the learning rates at each step
  double* error;          // [S], out: mean squared error before each step, of pixels clamped to [0, 1]
  float rate[kFitAttributes], quantum[kFitAttributes], shrink[kFitAttributes];
  float least;  // l11 and l22 stay at or above it
  float beta1, beta2;
  int64_t count, frame_count, height, width, steps;
  int64_t mean_steps, variance_steps;  // gradients that each moment has seen before
};

VK_CPU_KERNEL(splat_fit, (const SplatFit& a))

}  // namespace vk
