// Size-weighted means of the tokens that share a place, and the adjoint.
//
//   forward   total[b, m]     = sum over n with source[b, n] == m of size[b, n]                    (ascending n)
//             merged[b, m, :] = sum over the same n of share(b, n) * tokens[b, n, :]               (ascending n)
//   backward  grad[b, n, :]   = share(b, n) * grad_merged[b, source[b, n], :]
//   where     share(b, n)     = size[b, n] / total[b, source[b, n]], or 0 where the total is not above 0
//
// A token of share 0 is not read, so a place without tokens is zeros whatever its tokens hold. Sums are fp32, fp64 for
// fp64 tokens. A source outside [0, M): the CPU kernels report the first one; the CUDA kernels leave the token out.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

struct MergeTokens {
  const void* tokens;     // [B, N, D], element type
  const int32_t* source;  // [B, N]
  const void* size;       // [B, N] float (double beside f64), or null for ones
  void* merged;           // [B, M, D], element type
  void* total;            // [B, M] as size
  int64_t batch, length, count, dim;
  Element element;
  int64_t bad;  // out: flat position of the first source outside [0, M), or -1 (CPU only)
};

struct MergeTokensBackward {
  const void* grad_merged;  // [B, M, D], element type
  const int32_t* source;    // [B, N]
  const void* size;         // [B, N] float (double beside f64), or null for ones
  const void* total;        // [B, M] as size
  void* grad;               // [B, N, D], element type
  int64_t batch, length, count, dim;
  Element element;
  int64_t bad;
};

VK_CPU_KERNEL(merge_tokens, (MergeTokens & a))
VK_CPU_KERNEL(merge_tokens_backward, (MergeTokensBackward & a))

void merge_tokens_cuda(const MergeTokens& a, void* stream);
void merge_tokens_backward_cuda(const MergeTokensBackward& a, void* stream);

}  // namespace vk
