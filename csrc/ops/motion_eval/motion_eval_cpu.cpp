// A block of kMotionBlock Gaussians is turned into rows of one coefficient each, [K, block * D]: a row of the result at
// a moment is then a sum of `width` scaled rows, and contiguous in memory on both sides. A moment's gradient is added
// in the order of the elements of a block, then of the blocks.
#include <algorithm>
#include <vector>

#include "core/parallel.h"
#include "ops/motion_eval/motion_eval.h"

namespace vk::VK_ISA {
namespace {

template <class Args>
int64_t grain(const Args& a) {
  return 1 + 16384 / (kMotionBlock * a.dim * (a.terms + a.moments) + 1);
}

template <class Args>
int block_size(const Args& a, int64_t block) {
  const int64_t left = a.count - block * kMotionBlock;
  return int(left < kMotionBlock ? left : kMotionBlock);
}

/// kDim: D, or 0 for one that is known at run time only.
template <int kDim, class Real>
void gather_rows(const Real* coefficients, int n, int64_t terms, int64_t dim, Real* rows) {
  const int64_t width = kDim ? kDim : dim;
  for (int64_t k = 0; k < terms; ++k)
    for (int i = 0; i < n; ++i)
      for (int64_t d = 0; d < width; ++d) rows[(k * n + i) * width + d] = coefficients[(i * terms + k) * width + d];
}

template <int kDim, class Real>
void scatter_rows(const Real* rows, int n, int64_t terms, int64_t dim, Real* coefficients) {
  const int64_t width = kDim ? kDim : dim;
  for (int64_t k = 0; k < terms; ++k)
    for (int i = 0; i < n; ++i)
      for (int64_t d = 0; d < width; ++d) coefficients[(i * terms + k) * width + d] = rows[(k * n + i) * width + d];
}

/// out[e] = sum over k of weight[k] rows[k * size + e]
template <int kWidth, class Real>
void combine(const Real* weight, const Real* rows, int64_t size, Real* out) {
  Real w[kWidth];
  for (int k = 0; k < kWidth; ++k) w[k] = weight[k];
#pragma GCC ivdep
  for (int64_t e = 0; e < size; ++e) {
    Real sum = w[0] * rows[e];
#pragma GCC unroll 12
    for (int k = 1; k < kWidth; ++k) sum += w[k] * rows[k * size + e];
    out[e] = sum;
  }
}

/// In kColumns sums that are added at the end: the same order everywhere, and room for a vector.
template <class Real>
double dot(const Real* a, const Real* b, int64_t size) {
  constexpr int kColumns = 16;
  double sums[kColumns] = {}, sum = 0;
  int64_t e = 0;
  for (; e + kColumns <= size; e += kColumns)
    for (int i = 0; i < kColumns; ++i) sums[i] += double(a[e + i]) * double(b[e + i]);
  for (int i = 0; i < kColumns; ++i) sum += sums[i];
  for (; e < size; ++e) sum += double(a[e]) * double(b[e]);
  return sum;
}

template <int kWidth, int kDim, class Real>
void forward(const MotionEval& a) {
  const Real *coefficients = static_cast<const Real*>(a.coefficients), *value = static_cast<const Real*>(a.value);
  parallel_for((a.count + kMotionBlock - 1) / kMotionBlock, grain(a), [&](int64_t b0, int64_t b1) {
    std::vector<Real> rows(size_t(a.terms * kMotionBlock * a.dim));
    for (int64_t block = b0; block < b1; ++block) {
      const int64_t n0 = block * kMotionBlock;
      const int n = block_size(a, block);
      gather_rows<kDim>(coefficients + n0 * a.terms * a.dim, n, a.terms, a.dim, rows.data());
      for (int64_t t = 0; t < a.moments; ++t)
        combine<kWidth>(value + t * kWidth, rows.data() + a.first[t] * n * a.dim, n * a.dim,
                        static_cast<Real*>(a.out) + (t * a.count + n0) * a.dim);
    }
  });
}

template <int kWidth, int kDim, class Real>
void backward(const MotionEvalBackward& a) {
  const Real *coefficients = static_cast<const Real*>(a.coefficients), *value = static_cast<const Real*>(a.value);
  const Real *slope = static_cast<const Real*>(a.slope), *grad_out = static_cast<const Real*>(a.grad_out);
  const int64_t blocks = (a.count + kMotionBlock - 1) / kMotionBlock, all = kMotionBlock * a.dim;
  parallel_for(blocks, grain(a), [&](int64_t b0, int64_t b1) {
    std::vector<Real> rows(size_t(a.terms * all)), speed(static_cast<size_t>(all));
    for (int64_t block = b0; block < b1; ++block) {
      const int64_t n0 = block * kMotionBlock;
      const int n = block_size(a, block);
      const int64_t size = n * a.dim;
      if (a.grad_times) {
        gather_rows<kDim>(coefficients + n0 * a.terms * a.dim, n, a.terms, a.dim, rows.data());
        for (int64_t t = 0; t < a.moments; ++t) {
          const Real* g = grad_out + (t * a.count + n0) * a.dim;
          combine<kWidth>(slope + t * kWidth, rows.data() + a.first[t] * size, size, speed.data());
          a.partial[block * a.moments + t] = dot(g, speed.data(), size);
        }
      }
      std::fill(rows.begin(), rows.begin() + a.terms * size, Real(0));
      for (int64_t t = 0; t < a.moments; ++t) {
        const Real* g = grad_out + (t * a.count + n0) * a.dim;
        Real* to = rows.data() + a.first[t] * size;
        Real w[kWidth];
        for (int k = 0; k < kWidth; ++k) w[k] = value[t * kWidth + k];
#pragma GCC ivdep
        for (int64_t e = 0; e < size; ++e) {
          const Real x = g[e];
#pragma GCC unroll 12
          for (int k = 0; k < kWidth; ++k) to[k * size + e] += w[k] * x;
        }
      }
      scatter_rows<kDim>(rows.data(), n, a.terms, a.dim, static_cast<Real*>(a.grad) + n0 * a.terms * a.dim);
    }
  });
  if (!a.grad_times) return;
  for (int64_t t = 0; t < a.moments; ++t) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += a.partial[block * a.moments + t];
    static_cast<Real*>(a.grad_times)[t] = Real(sum);
  }
}

template <int kWidth, class Real>
void forward_any(const MotionEval& a) {
  a.dim == 3 ? forward<kWidth, 3, Real>(a) : a.dim == 4 ? forward<kWidth, 4, Real>(a) : forward<kWidth, 0, Real>(a);
}

template <int kWidth, class Real>
void backward_any(const MotionEvalBackward& a) {
  a.dim == 3 ? backward<kWidth, 3, Real>(a) : a.dim == 4 ? backward<kWidth, 4, Real>(a) : backward<kWidth, 0, Real>(a);
}

}  // namespace

void motion_eval(const MotionEval& a) {
  const bool wide = a.element == Element::f64;
  if (a.width == kMotionDense)
    wide ? forward_any<kMotionDense, double>(a) : forward_any<kMotionDense, float>(a);
  else
    wide ? forward_any<kMotionSpline, double>(a) : forward_any<kMotionSpline, float>(a);
}

void motion_eval_backward(const MotionEvalBackward& a) {
  const bool wide = a.element == Element::f64;
  if (a.width == kMotionDense)
    wide ? backward_any<kMotionDense, double>(a) : backward_any<kMotionDense, float>(a);
  else
    wide ? backward_any<kMotionSpline, double>(a) : backward_any<kMotionSpline, float>(a);
}

}  // namespace vk::VK_ISA
