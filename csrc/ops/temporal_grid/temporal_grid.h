// Grids of features over time, read at given times and enlarged in space; and the adjoint.
//
//   levels lie behind one another in `grid`: level l has lengths[l] frames of h x w cells with C numbers each
//   at time t, level l is read at p = clamp(t, 0, 1) * (lengths[l] - 1), linearly between frames floor(p), floor(p) + 1
//   the levels' numbers stand side by side (concat) or are added up
//   enlarged `scale` times: output pixel y reads (y + 1/2) / scale - 1/2, bilinearly, the border repeated outside
//
// t that is NaN counts as 0. backward: grad of frame n = sum over the batch, ascending, in float32.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"
#include "core/half.h"

namespace vk {

constexpr int kMaxLevels = 16;

struct TemporalGrid {
  const void* grid;  // [sum of lengths, h, w, C]; backward: written
  const double* t;   // [B]
  const void* out;   // [B, h * scale, w * scale, width()]; backward: the gradient, read
  float* frames;     // [B, h, w, width()]: before the enlargement, or its gradient; unused by the GPU's forward
  int64_t batch, height, width_cells, channels, scale;
  int64_t levels, lengths[kMaxLevels];
  bool concat;
  Element element;

  VK_HD int64_t width() const { return concat ? levels * channels : channels; }
  int64_t total() const {
    int64_t n = 0;
    for (int64_t l = 0; l < levels; ++l) n += lengths[l];
    return n;
  }
};

/// Between which two of n positions, and how far along.
struct Between {
  int64_t low, high;
  float share;  // of high
};

VK_HD Between in_time(double t, int64_t length) {
  const double p = t > 0 ? (t < 1 ? t : 1.0) * double(length - 1) : 0.0;
  const int64_t low = int64_t(p);
  return {low, low + 1 < length ? low + 1 : low, float(p - double(low))};
}

/// Of cells, for the i-th of `cells` * scale pixels. Exact: scale is small.
VK_HD Between in_space(int64_t i, int64_t cells, int64_t scale) {
  const int64_t twice = 2 * i + 1 - scale;  // 2 * scale times the position
  const int64_t cell = twice >= 0 ? twice / (2 * scale) : -1;
  return {cell >= 0 ? cell : 0, cell + 1 < cells ? cell + 1 : cell, float(twice - 2 * scale * cell) / float(2 * scale)};
}

VK_CPU_KERNEL(temporal_grid, (const TemporalGrid& a))
VK_CPU_KERNEL(temporal_grid_backward, (const TemporalGrid& a))

void temporal_grid_cuda(const TemporalGrid& a, void* stream);
void temporal_grid_backward_cuda(const TemporalGrid& a, void* stream);

}  // namespace vk
