// Gather rows of a token tensor, and its adjoint.
//
//   forward   out[b, k, :]    = tokens[b, index[b, k], :]
//   backward  grad[b, n, :]   = sum over k with index[b, k] == n of grad_out[b, k, :]   (ascending k, fp32 sum)
//
// A row outside [0, N) is never read or written: the CPU kernels report the first one, the CUDA forward writes
// zeros in its place.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

struct GatherTokens {
  const void* tokens;    // [B, N, D], any element type
  const int32_t* index;  // [B, K]
  void* out;             // [B, K, D]
  int64_t batch, length, count;
  int64_t row_bytes;  // D * sizeof(element)
  int64_t bad;        // out: flat position of the first index outside [0, N), or -1 (CPU only)
};

struct GatherTokensBackward {
  const void* grad_out;  // [B, K, D]
  const int32_t* index;  // [B, K]
  void* grad;            // [B, N, D]
  int32_t* scratch;      // CPU: [B, N + K], links of the rows that meet in one place
  int64_t batch, length, count, dim;
  Element element;
  int64_t bad;
};

VK_CPU_KERNEL(gather_tokens, (GatherTokens & a))
VK_CPU_KERNEL(gather_tokens_backward, (GatherTokensBackward & a))

void gather_tokens_cuda(const GatherTokens& a, void* stream);
void gather_tokens_backward_cuda(const GatherTokensBackward& a, void* stream);

}  // namespace vk
