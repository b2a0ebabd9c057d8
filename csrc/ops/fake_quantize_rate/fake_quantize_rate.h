// Numbers on a noisy or rounded grid, the bits that they cost under a Laplace law, and the gradients of both.
//
//   z = x / step        q = z + noise, or round(z) with ties to even        value = step * q
//   bits[c] = sum of -log2 P(q),  P(q) = mass of a Laplace law of scale `spread` within [q - 1/2, q + 1/2]
//
// With a = 1 / spread, in nats:
//   |q| >= 1/2   -log P = a (|q| - 1/2) - log((1 - e^-a) / 2)                       linear: never the log of a mass
//   |q| <  1/2   P = 1 - (near + far) / 2,  near = e^(-a (1/2 - |q|)),  far = e^(-a (1/2 + |q|))
//
// The gradient of a rounded q is that of z. A NaN
// spoils its own value and the sums of its row. Sums go by pieces of a row, in float
// within a piece and in double over the pieces, always in one order.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

constexpr int64_t kRateChunk = 4096;  // numbers of a piece in `sums`; op.py says the same
constexpr float kInverseLn2 = 1.44269504f;
constexpr double kInverseLn2Double = 1.4426950408889634;

struct FakeQuantizeRate {
  const void* x;        // [C, N], f32, f16 or bf16
  const float* step;    // [C]
  const float* spread;  // [C], in steps
  const float* noise;   // [C, N], or null: round
  void* value;          // [C, N] like x
  float* bits;          // [C]
  double* sums;         // [C, pieces]
  int64_t rows, count;
  Element element;

  int64_t pieces() const { return (count + kRateChunk - 1) / kRateChunk; }
};

struct FakeQuantizeRateBackward {
  FakeQuantizeRate in;     // its outputs unused; `sums` is [2, C, pieces]
  const void* grad_value;  // [C, N] like x
  const float* grad_bits;  // [C]
  void* grad_x;            // [C, N] like x
  float* grad_step;        // [C]
  float* grad_spread;      // [C]
};

/// What all numbers of a row share.
struct LaplaceRow {
  float step, a;
  float tail;          // -log((1 - e^-a) / 2)
  float zero;          // nats of q = 0
  float tail_by_rate;  // -1/2 - 1 / (e^a - 1): the derivative of a tail's nats by `a` is |q| + this
  float zero_by_rate;  // that of q = 0

  VK_HD LaplaceRow(float step, float spread)
      : step(step),
        a(1.0f / spread),
        tail(-logf(-0.5f * expm1f(-a))),
        zero(a < 1.0f ? -logf(-expm1f(-0.5f * a)) : -log1pf(-expf(-0.5f * a))),
        tail_by_rate(-0.5f - 1.0f / expm1f(a)),
        zero_by_rate(-0.5f / expm1f(0.5f * a)) {}
};

VK_CPU_KERNEL(fake_quantize_rate, (const FakeQuantizeRate& a))
VK_CPU_KERNEL(fake_quantize_rate_backward, (const FakeQuantizeRateBackward& a))

void fake_quantize_rate_cuda(const FakeQuantizeRate& a, void* stream);
void fake_quantize_rate_backward_cuda(const FakeQuantizeRateBackward& a, void* stream);

}  // namespace vk
