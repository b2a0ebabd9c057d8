// Features of K neighbour pictures, each moved by its flow, blended by a softmax.
//
//   out[y, x] = sum over k of softmax(logits[:, y, x])[k] * bilinear(features[k], x + flow_x, y + flow_y)
//
// The border is repeated outside. A flow that is NaN points far to the left or up, whatever lies there. The gradient of
// a flow that leads outside is 0 in that direction. No byte outside the arguments is touched, whatever the flows are.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

constexpr int kMaxNeighbours = 16;

struct FlowWarp {
  const void* features;  // [B, K, H, W, C]
  const float* flows;    // [B, K, 2, H, W], pixels, x before y
  const float* logits;   // [B, K, H, W]
  void* out;             // [B, H, W, C]
  int64_t batch, neighbours, height, width, channels;
  Element element;

  VK_HD int64_t pixels() const { return height * width; }
};

struct FlowWarpBackward {
  FlowWarp in;               // `out` unused
  const void* grad;          // [B, H, W, C]
  void* grad_features;       // [B, K, H, W, C], or null: not asked for
  float* grad_flows;         // [B, K, 2, H, W]
  float* grad_logits;        // [B, K, H, W]
  unsigned long long* sums;  // GPU, for grad_features: [B, K, H, W, C]
  uint32_t* magnitudes;      // and [2, B]: the largest gradient, and whether a term was not finite
};

/// Where along one axis: cells low and high, the share of high, and whether moving further would change anything.
struct FlowTap {
  int32_t low, high;
  float share;
  bool inside;
};

/// `at` + flow among n cells. The flow's own fraction, so that no digits are lost far from 0.
VK_HD FlowTap flow_tap(int32_t at, float flow, int32_t n) {
  constexpr float kFar = 1073741824.0f;  // 2^30: beyond any picture, and `at` may still be added
  flow = flow > -kFar ? (flow < kFar ? flow : kFar) : -kFar;
  const float down = floorf(flow);
  const int32_t there = at + int32_t(down), low = there < 0 ? 0 : there < n ? there : n - 1;
  const bool inside = there >= 0 && there < n - 1;
  return {low, low + int32_t(inside), inside ? flow - down : 0.0f, inside};
}

VK_CPU_KERNEL(flow_warp_aggregate, (const FlowWarp& a))
VK_CPU_KERNEL(flow_warp_aggregate_backward, (const FlowWarpBackward& a))

void flow_warp_aggregate_cuda(const FlowWarp& a, void* stream);
void flow_warp_aggregate_backward_cuda(const FlowWarpBackward& a, void* stream);

}  // namespace vk
