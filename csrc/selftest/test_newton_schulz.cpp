#include "ops/newton_schulz/newton_schulz.h"
#include "selftest.h"

namespace {

using Matrix = std::vector<double>;  // row-major

Matrix product(const Matrix& a, const Matrix& b, size_t m, size_t k, size_t n) {
  Matrix c(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t l = 0; l < k; ++l)
      for (size_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + l] * b[l * n + j];
  return c;
}

Matrix transposed(const Matrix& a, size_t m, size_t n) {
  Matrix t(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j) t[j * m + i] = a[i * n + j];
  return t;
}

/// The iteration as it is written, on the matrix itself.
Matrix iterated(Matrix x, size_t m, size_t n, int steps, double a, double b, double c) {
  double length = 0;
  for (double v : x) length += v * v;
  for (double& v : x) v /= std::sqrt(length);
  for (int step = 0; step < steps; ++step) {
    const Matrix gram = product(x, transposed(x, m, n), m, n, m), square = product(gram, gram, m, m, m);
    Matrix factor(m * m);
    for (size_t i = 0; i < m * m; ++i) factor[i] = b * gram[i] + c * square[i];
    const Matrix moved = product(factor, x, m, m, n);
    for (size_t i = 0; i < m * n; ++i) x[i] = a * x[i] + moved[i];
  }
  return x;
}

void check(const std::vector<int64_t>& rows, const std::vector<int64_t>& cols, int steps) {
  size_t total = 0;
  for (size_t k = 0; k < rows.size(); ++k) total += size_t(rows[k] * cols[k]);
  const auto x = selftest::random_elements<float>(total, 7);
  std::vector<float> out(total);
  std::vector<double> expected;
  for (size_t k = 0; k < rows.size(); ++k) {
    const auto begin = x.begin() + long(expected.size());
    const Matrix one = iterated(Matrix(begin, begin + rows[k] * cols[k]), size_t(rows[k]), size_t(cols[k]), steps,
                                3.4445, -4.775, 2.0315);
    expected.insert(expected.end(), one.begin(), one.end());
  }
  const vk::NewtonSchulz a{x.data(), out.data(), rows.data(), cols.data(), int64_t(rows.size()), steps, 3.4445f,
                           -4.775f,  2.0315f,    1e-7f,       nullptr};
  VK_CPU_CALL(newton_schulz, a);
  VK_EXPECT(selftest::relative_error(out, expected) <= 5e-5);
}

}  // namespace

VK_SELFTEST(newton_schulz_equals_plain_loops) {
  check({3, 7, 1, 40, 20}, {5, 2, 9, 13, 90}, 5);
  check({17, 70}, {300, 100}, 1);
  check({9, 8, 1}, {37, 65, 1}, 2);
  check({}, {}, 5);
  check({90, 150}, {400, 300}, 5);
}
