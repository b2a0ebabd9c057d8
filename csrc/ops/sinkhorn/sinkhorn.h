// Entropic transport between rows (samples) and columns (prototypes), from scores that are read once per iteration.
//
//   kernel     E[i, j] = exp(scores[i, j] / epsilon)
//   start      u = row_mass
//   iteration  v[j] = col_mass[j] / sum_i E[i, j] u[i],   then   u[i] = row_mass[i] / sum_j E[i, j] v[j]
//   plan       u[i] E[i, j] v[j], its rows adding up to row_mass; or divided by it, its rows adding up to one
//   row_log    log u, col_log    log v
//   label      argmax_j E[i, j] v[j], the lowest j of equals
//
// SinkhornStep is half an iteration of many callers: given log v it adds up what each column holds after the row
// update, so that blocks of rows and processes can share one problem. Without log v it adds up E u of the start.
//
// Scores of -inf are allowed (no mass goes there). A column out of every row's reach, a row without a finite score and
// a column of mass 0 get log -inf and zeros. NaN and +inf are refused: the CPU kernels report the first such row, the
// CUDA kernels give NaN.
#pragma once
#include <cstdint>

#include "core/dispatch.h"
#include "core/element.h"

namespace vk {

struct Sinkhorn {
  const void* scores;     // [B, N, K] float32, float16 or bfloat16
  const float* row_mass;  // [B, N], or null: 1 / N
  const float* col_mass;  // [B, K], or null: 1 / K
  float* plan;            // [B, N, K], or null: then the labels are wanted
  float* row_log;         // [B, H, N]; H = iterations, or 1: the last iteration's
  float* col_log;         // [B, H, K]
  int64_t* label;         // [B, N] without a plan, else null
  int64_t batch, rows, cols, iterations;
  float epsilon;
  Element element;
  bool rows_to_one;  // plan divided by row_mass
  bool history;      // H = iterations
  int64_t bad;       // out: first row with NaN or +inf, counted through the batch, or -1 (CPU only)
};

struct SinkhornStep {
  const void* scores;     // [B, N, K]
  const float* row_mass;  // [B, N], or null: 1
  const float* col_log;   // [B, K], or null: the start
  float* row_lse;         // [B, N]: log sum_j E[i, j] v[j] (the start: the row's largest score / epsilon)
  float* col_sum;  // [B, K]: log sum_i row_mass[i] E[i, j] v[j] / exp(row_lse[i]) (the start: without v, row_lse)
  int64_t* label;  // [B, N] (the start: argmax of the scores)
  int64_t batch, rows, cols;
  float epsilon;
  Element element;
  int64_t bad;
};

VK_CPU_KERNEL(sinkhorn, (Sinkhorn & a))
VK_CPU_KERNEL(sinkhorn_step, (SinkhornStep & a))

/// Blocks of rows that the CUDA kernels sum apart, and floats of the workspace that their callers bring.
constexpr int kSinkhornBlocks = 128;
inline int64_t sinkhorn_workspace(int64_t batch, int64_t rows, int64_t cols) {
  const int64_t blocks = rows < kSinkhornBlocks ? (rows > 0 ? rows : 1) : kSinkhornBlocks;
  return batch * (2 * blocks * cols + cols + 1);
}
void sinkhorn_cuda(const Sinkhorn& a, float* workspace, void* stream);
void sinkhorn_step_cuda(const SinkhornStep& a, float* workspace, void* stream);

}  // namespace vk
