// Put visible rows back on the token grid, and the adjoint.
//
//   forward   out[b, n, :]        = (visible[b, k, :] where index[b, k] == n, else mask_token) + position[n, :]
//   backward  grad_visible[b, k]  = grad_out[b, index[b, k]]
//             grad_position[n]    = sum over b of grad_out[b, n]                       (ascending b, fp32)
//             grad_mask_token     = sum over masked (b, n) of grad_out[b, n]           (two levels, fp32, below)
//
// The sum for the mask token: within a tile of kTile tokens in a fixed order, then over the tiles in ascending order.
// Neither threads nor blocks show in the result.
// An index outside [0, N) or named twice: the CPU kernels report the first one; on a GPU such rows are left out, the
// first of equal ones stays, and the gradient of a row left out is zero.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

struct ScatterTokens {
  const void* visible;     // [B, K, D]
  const int32_t* index;    // [B, K]
  const void* mask_token;  // [D], float or as visible
  const void* position;    // [N, D] as mask_token, or null
  void* out;               // [B, N, D] as visible
  int32_t* sources;        // CPU: [B, N], the row that lands on each token, or -1
  int64_t batch, length, count, dim;
  Element element, parameter;  // of the tokens; of mask_token and position
  int64_t bad;                 // out: flat position of the first index that is refused, or -1 (CPU only)
};

struct ScatterTokensBackward {
  const void* grad_out;   // [B, N, D]
  const int32_t* index;   // [B, K]
  void* grad_visible;     // [B, K, D] as grad_out
  void* grad_mask_token;  // [D], float or as grad_out
  void* grad_position;    // [N, D] as grad_mask_token, or null
  int32_t* sources;       // CPU: [B, N]
  void* partial;          // [tiles, D] float (double for double), scratch: the tiles' sums for the mask token
  int64_t batch, length, count, dim;
  Element element, parameter;
  int64_t bad;

  static constexpr int kTile = 32;
  int64_t tiles() const { return (length + kTile - 1) / kTile; }
};

VK_CPU_KERNEL(scatter_tokens, (ScatterTokens & a))
VK_CPU_KERNEL(scatter_tokens_backward, (ScatterTokensBackward & a))

void scatter_tokens_cuda(const ScatterTokens& a, void* stream);
void scatter_tokens_backward_cuda(const ScatterTokensBackward& a, void* stream);

}  // namespace vk
