#include <algorithm>

#include "ops/sinkhorn/sinkhorn.h"
#include "selftest.h"

namespace {

constexpr float kEpsilon = 0.05f;

struct Sizes {
  int64_t batch, rows, cols, iterations;
};
constexpr Sizes kSizes[] = {{1, 2, 2, 1}, {2, 67, 37, 3}, {1, 150, 16, 5}, {3, 1, 50, 2}};

/// Plain loops in the log domain: rows of the plan add up to one.
std::vector<double> expected_plan(const std::vector<double>& scores, const Sizes& s) {
  std::vector<double> out(scores.size());
  const auto log_sum = [](const std::vector<double>& x) {
    const double top = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double v : x) sum += std::exp(v - top);
    return top + std::log(sum);
  };
  for (int64_t b = 0; b < s.batch; ++b) {
    const auto z = [&](int64_t i, int64_t j) {
      return scores[size_t((b * s.rows + i) * s.cols + j)] / double(kEpsilon);
    };
    std::vector<double> u(size_t(s.rows), 0.0), v(size_t(s.cols), 0.0);
    for (int64_t t = 0; t < s.iterations; ++t) {
      for (int64_t j = 0; j < s.cols; ++j) {
        std::vector<double> x;
        for (int64_t i = 0; i < s.rows; ++i) x.push_back(z(i, j) + u[size_t(i)]);
        v[size_t(j)] = std::log(double(s.rows) / double(s.cols)) - log_sum(x);
      }
      for (int64_t i = 0; i < s.rows; ++i) {
        std::vector<double> x;
        for (int64_t j = 0; j < s.cols; ++j) x.push_back(z(i, j) + v[size_t(j)]);
        u[size_t(i)] = -log_sum(x);
      }
    }
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t j = 0; j < s.cols; ++j)
        out[size_t((b * s.rows + i) * s.cols + j)] = std::exp(z(i, j) + u[size_t(i)] + v[size_t(j)]);
  }
  return out;
}

template <class T>
void plans(float size, double tolerance) {
  for (const Sizes& s : kSizes) {
    const auto scores = selftest::random_elements<T>(size_t(s.batch * s.rows * s.cols), 5, -size, size);
    std::vector<double> wide;
    for (const T& x : scores) wide.push_back(selftest::number(x));
    std::vector<float> plan(scores.size(), NAN), rows(size_t(s.batch * s.rows)), cols(size_t(s.batch * s.cols));
    std::vector<int64_t> label(rows.size(), -1);
    vk::Sinkhorn a{};
    a.scores = scores.data();
    a.plan = plan.data();
    a.row_log = rows.data();
    a.col_log = cols.data();
    a.batch = s.batch;
    a.rows = s.rows;
    a.cols = s.cols;
    a.iterations = s.iterations;
    a.epsilon = kEpsilon;
    a.element = selftest::ElementOf<T>::value;
    a.rows_to_one = true;
    VK_CPU_CALL(sinkhorn, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(plan, expected_plan(wide, s)) <= tolerance);
    a.plan = nullptr;
    a.label = label.data();
    VK_CPU_CALL(sinkhorn, a);
    for (size_t i = 0; i < label.size(); ++i) {
      const float* row = plan.data() + i * size_t(s.cols);
      VK_EXPECT(label[i] >= 0 && label[i] < s.cols && row[label[i]] == *std::max_element(row, row + s.cols));
    }
  }
}

}  // namespace

VK_SELFTEST(sinkhorn_balances_cosines) {
  plans<float>(1.0f, 2e-5);
  plans<vk::f16>(1.0f, 2e-5);
  plans<vk::bf16>(1.0f, 2e-5);
}

VK_SELFTEST(sinkhorn_balances_what_fp32_cannot_span) {
  plans<float>(20.0f, 1e-6);
  plans<vk::f16>(200.0f, 1e-6);
}

VK_SELFTEST(sinkhorn_reports_the_first_bad_row) {
  for (float bad : {NAN, INFINITY}) {
    std::vector<float> scores(2 * 100 * 5, 0.0f), rows(200), cols(10);
    std::vector<int64_t> label(200);
    scores[(100 + 70) * 5 + 4] = bad;
    scores[(100 + 90) * 5] = bad;
    vk::SinkhornStep a{scores.data(), nullptr, nullptr,  rows.data(),      cols.data(), label.data(), 2,
                       100,           5,       kEpsilon, vk::Element::f32, -1};
    VK_CPU_CALL(sinkhorn_step, a);
    VK_EXPECT(a.bad == 170);
  }
}
