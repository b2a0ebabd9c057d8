// The same iteration in the log domain and in float64, for scores that fp32 scales cannot span: sharp problems, columns
// that hardly anything reaches. Slower by the price of a double exponential per element and pass.
#pragma once
#include <cmath>
#include <vector>

#include "core/half.h"
#include "core/parallel.h"
#include "ops/sinkhorn/sinkhorn.h"

namespace vk {
namespace {

constexpr double kLn2 = 0.693147180559945309417, kLog2e = 1.44269504088896340736;

/// Rows cut into at most 64 pieces, in a way that depends on their number alone.
struct Chunks {
  explicit Chunks(int64_t rows_)
      : rows(rows_),
        count(rows_ <= 64       ? 1
              : rows_ < 64 * 64 ? (rows_ + 63) / 64
                                : 64),
        size((rows_ + count - 1) / count) {}
  int64_t begin(int64_t q) const { return q * size < rows ? q * size : rows; }
  int64_t end(int64_t q) const { return begin(q + 1); }
  const int64_t rows, count, size;
};

/// A sum of exponentials, as its largest term and the rest relative to it.
struct LogSum {
  double top = -INFINITY, sum = 0;
  void add(double x) { merge({x, 1}); }
  void merge(const LogSum& o) {
    if (!(o.top > -INFINITY)) return;
    if (o.top > top) {
      sum = sum * std::exp(top - o.top) + o.sum;
      top = o.top;
    } else {
      sum += o.sum * std::exp(o.top - top);
    }
  }
  double log() const { return sum > 0 ? top + std::log(sum) : -INFINITY; }
};

/// From log u of the rows the log column sums: log sum_i exp(s[i, j] / epsilon + log_u[i]).
template <class T>
void exact_columns(const T* scores, int64_t cols, double inverse, const Chunks& chunks,
                   const std::vector<double>& log_u, std::vector<double>& out) {
  std::vector<LogSum> partial(size_t(chunks.count * cols));
  parallel_for(chunks.count, 1, [&](int64_t q0, int64_t q1) {
    for (int64_t q = q0; q < q1; ++q)
      for (int64_t i = chunks.begin(q); i < chunks.end(q); ++i) {
        if (!(log_u[size_t(i)] > -INFINITY)) continue;
        for (int64_t j = 0; j < cols; ++j)
          partial[size_t(q * cols + j)].add(double(to_float(scores[i * cols + j])) * inverse + log_u[size_t(i)]);
      }
  });
  for (int64_t j = 0; j < cols; ++j) {
    LogSum all;
    for (int64_t q = 0; q < chunks.count; ++q) all.merge(partial[size_t(q * cols + j)]);
    out[size_t(j)] = all.log();
  }
}

/// f(i, log sum_j exp(s[i, j] / epsilon + log_v[j]), the first j of the largest term)
template <class T, class F>
void exact_rows(const T* scores, int64_t cols, double inverse, const Chunks& chunks, const std::vector<double>& log_v,
                F f) {
  parallel_for(chunks.count, 1, [&](int64_t q0, int64_t q1) {
    for (int64_t i = chunks.begin(q0); i < chunks.end(q1 - 1); ++i) {
      LogSum all;
      double best = -INFINITY;
      int64_t label = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const double x = double(to_float(scores[i * cols + j])) * inverse + log_v[size_t(j)];
        all.add(x);
        if (x > best) best = x, label = j;
      }
      f(i, all.log(), label);
    }
  });
}

template <class T>
void solve_exact(const Sinkhorn& a, int64_t b) {
  const int64_t rows = a.rows, cols = a.cols, kept = a.history ? a.iterations : 1;
  const T* scores = static_cast<const T*>(a.scores) + b * rows * cols;
  const Chunks chunks(rows);
  const double inverse = 1 / double(a.epsilon);
  std::vector<double> log_a(size_t(rows), -std::log(double(rows))), log_b(size_t(cols), -std::log(double(cols)));
  if (a.row_mass)
    for (int64_t i = 0; i < rows; ++i) log_a[size_t(i)] = std::log(double(a.row_mass[b * rows + i]));
  if (a.col_mass)
    for (int64_t j = 0; j < cols; ++j) log_b[size_t(j)] = std::log(double(a.col_mass[b * cols + j]));
  std::vector<double> log_u = log_a, log_v(size_t(cols), 0.0), lse(size_t(rows), 0.0);
  for (int64_t t = 0; t < a.iterations; ++t) {
    exact_columns(scores, cols, inverse, chunks, log_u, log_v);
    for (int64_t j = 0; j < cols; ++j) {
      double& v = log_v[size_t(j)];
      v = v > -INFINITY ? log_b[size_t(j)] - v : -INFINITY;
    }
    const bool last = t + 1 == a.iterations;
    const int64_t slot = b * kept + (a.history ? t : 0);
    exact_rows(scores, cols, inverse, chunks, log_v, [&](int64_t i, double sum, int64_t label) {
      lse[size_t(i)] = sum;
      log_u[size_t(i)] = sum > -INFINITY ? log_a[size_t(i)] - sum : -INFINITY;
      if (last || a.history) a.row_log[slot * rows + i] = float(log_u[size_t(i)]);
      if (last && a.label) a.label[b * rows + i] = label;
    });
    if (last || a.history)
      for (int64_t j = 0; j < cols; ++j) a.col_log[slot * cols + j] = float(log_v[size_t(j)]);
  }
  if (!a.plan) return;
  parallel_for(rows, 1 + 4096 / cols, [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const double shift = a.rows_to_one ? -lse[size_t(i)] : log_u[size_t(i)];
      float* out = a.plan + (b * rows + i) * cols;
      for (int64_t j = 0; j < cols; ++j) {
        const double x = double(to_float(scores[i * cols + j])) * inverse + log_v[size_t(j)];
        out[j] = lse[size_t(i)] > -INFINITY ? float(std::exp(x + shift)) : 0.0f;
      }
    }
  });
}

template <class T>
void step_exact(const SinkhornStep& a, int64_t b) {
  const int64_t rows = a.rows, cols = a.cols;
  const T* scores = static_cast<const T*>(a.scores) + b * rows * cols;
  const Chunks chunks(rows);
  const double inverse = 1 / double(a.epsilon);
  std::vector<double> log_v(size_t(cols), 0.0), log_u(size_t(rows), 0.0), sums(size_t(cols), 0.0);
  if (a.col_log)
    for (int64_t j = 0; j < cols; ++j) log_v[size_t(j)] = double(a.col_log[b * cols + j]);
  exact_rows(scores, cols, inverse, chunks, log_v, [&](int64_t i, double sum, int64_t label) {
    const double mass = a.row_mass ? std::log(double(a.row_mass[b * rows + i])) : 0.0;
    double top = sum;
    if (!a.col_log && rows > 0) top = double(to_float(scores[i * cols + label])) * inverse;
    log_u[size_t(i)] = sum > -INFINITY ? mass - (a.col_log ? sum : 0.0) : -INFINITY;
    a.row_lse[b * rows + i] = float(top);
    a.label[b * rows + i] = label;
  });
  exact_columns(scores, cols, inverse, chunks, log_u, sums);
  for (int64_t j = 0; j < cols; ++j) a.col_sum[b * cols + j] = float(sums[size_t(j)] + log_v[size_t(j)]);
}

}  // namespace
}  // namespace vk
