// The k best codes of every point.
//
//   l2       value = |x - c|^2, ascending          others: j != row, before: j < row (both with length == count)
//   ip       value = <x, c>, descending
//   cosine   value = <x / |x|, c / |c|>, descending; a zero row has 0 with everything
//
// Of equal values the lower index comes first. A row with NaN gets index -1 and value NaN; a candidate whose value is
// NaN is never chosen; missing candidates have index -1 and value +inf (l2) or -inf.
//
// Values are float32 sums in one order, whatever found their candidates: 16 partial sums (one for each d mod 16,
// ascending d), folded as ((s[i] + s[i+8]) pairwise, pairwise, halves), of (x - c)^2, or of the products. With
// `screen` the candidates may come from bf16 products; a bound on their error decides what is measured, so the result
// does not depend on it. The CUDA kernel has its own fixed order.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

enum class NearestMetric : uint8_t { l2, ip, cosine };
enum class NearestCandidates : uint8_t { all, others, before };
/// best: whatever this machine has; dot: AVX-512 bf16 products even where there are matrix tiles (for tests).
enum class NearestScreen : uint8_t { none, best, dot };

struct Nearest {
  const void* points;  // [B, N, D], each row in one piece
  const void* codes;   // [B or 1, K, D], each row in one piece
  int64_t* index;      // [B, N, k]
  float* value;        // [B, N, k]
  void* scratch;       // CUDA only: see scratch_bytes in vidkernels/ops/nearest/op.py
  int64_t scratch_bytes;
  int64_t batch, count, dim;                 // B, N, D
  int64_t code_batch, length;                // B or 1, K
  int64_t point_batch_stride, point_stride;  // in elements
  int64_t code_batch_stride, code_stride;
  int k;  // 1 to kNearestMost
  NearestMetric metric;
  NearestCandidates candidates;
  NearestScreen screen;
  Element element;  // f32, f16 or bf16, of points and codes
};

constexpr int kNearestMost = 32;

VK_CPU_KERNEL(nearest, (const Nearest& a))

void nearest_cuda(const Nearest& a, void* stream);

}  // namespace vk
