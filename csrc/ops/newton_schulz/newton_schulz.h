// Matrices with their singular values brought to about 1, many of different shapes in one call.
//
//   X_0 = X / max(|X|, eps)        X_{k+1} = a X_k + (b A + c A^2) X_k,  A = X_k X_k^T          (|X|: Frobenius)
//
// Every X_k is a polynomial of the Gram matrix G = X_0 X_0^T times X_0. So the iteration runs on the smaller square,
// whatever the other side is, and the long side is read twice:
//
//   A = G, P = I;  steps times:  B = a I + b A + c A^2,  P = B P,  A = B A B;      out = P X_0
//
// All of these are symmetric and commute: one half is computed, the other is its mirror. Matrices with more rows than
// columns are transposed on the way in and out. A NaN spoils its own matrix; a matrix of zeros stays zeros.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

struct NewtonSchulz {
  const float* x;       // matrices one after the other, row-major
  float* out;           // like x
  const int64_t* rows;  // [count], on the host
  const int64_t* cols;  // [count], on the host
  int64_t count;
  int64_t steps;
  float a, b, c, eps;
  float* workspace;  // CUDA: newton_schulz_workspace floats
};

/// A step of Muon for one matrix, in place:
///   momentum += (1 - mu)(grad - momentum)      update = momentum, or with nesterov grad + mu (momentum - grad)
///   param = keep param + rate X(update)
struct MuonMatrix {
  float* param;       // [rows, cols]
  const float* grad;  // like param
  float* momentum;    // like param
  int64_t rows, cols;
  float mu, keep, rate;
  bool nesterov;
};

struct MuonStep {
  const MuonMatrix* matrices;  // [count], on the host
  int64_t count;
  int64_t steps;
  float a, b, c, eps;
};

/// Floats of `workspace` for one matrix: X_0, and five squares.
inline int64_t newton_schulz_workspace(int64_t rows, int64_t cols) {
  const int64_t small = rows < cols ? rows : cols;
  return rows * cols + 5 * small * small;
}

VK_CPU_KERNEL(newton_schulz, (const NewtonSchulz& a))
VK_CPU_KERNEL(muon_step, (const MuonStep& a))

void newton_schulz_cuda(const NewtonSchulz& a, void* stream);

}  // namespace vk
