#include "ops/adam_step/adam_step.h"
#include "selftest.h"

namespace {

struct Setup {
  int64_t rows, width;
  int visible;  // of ten rows; -1: no mask
  double decay;
  bool decoupled;
  int64_t step;
};
constexpr Setup kSetups[] = {{1, 5, -1, 0, false, 1},     {333, 7, -1, 0.1, false, 3}, {4099, 3, 5, 0, false, 2},
                             {20000, 4, 8, 0.2, true, 9}, {997, 1, 2, 0.1, false, 50}, {11, 200, 5, 0, false, 7},
                             {64, 16, 0, 0, false, 1},    {64, 16, 10, 0, false, 1},   {0, 3, -1, 0, false, 1}};

void check(const Setup& s) {
  const size_t n = size_t(s.rows * s.width);
  auto param = selftest::random_elements<float>(n, 1), grad = selftest::random_elements<float>(n, 2);
  auto mean = selftest::random_elements<float>(n, 3), variance = selftest::random_elements<float>(n, 4, 0, 1);
  std::vector<uint8_t> visible(static_cast<size_t>(s.rows));
  selftest::Random random(5);
  for (uint8_t& v : visible) v = random.below(10) < s.visible;
  std::vector<double> params(n), means(n), variances(n);
  const double lr = 0.05, beta1 = 0.9, beta2 = 0.99, eps = 1e-8;
  std::vector<size_t> still;
  for (size_t i = 0; i < n; ++i) {
    params[i] = param[i], means[i] = mean[i], variances[i] = variance[i];
    if (s.visible >= 0 && !visible[i / size_t(s.width)]) {
      still.push_back(i);
      continue;
    }
    double g = grad[i];
    if (s.decoupled)
      params[i] -= lr * s.decay * params[i];
    else
      g += s.decay * params[i];
    means[i] = beta1 * means[i] + (1 - beta1) * g;
    variances[i] = beta2 * variances[i] + (1 - beta2) * g * g;
    const double m = means[i] / (1 - std::pow(beta1, double(s.step)));
    const double v = variances[i] / (1 - std::pow(beta2, double(s.step)));
    params[i] -= lr * m / (std::sqrt(v) + eps);
  }
  const auto before = param, before_mean = mean, before_variance = variance;
  for (size_t i : still) grad[i] = NAN;  // must not be felt
  vk::AdamStep a{};
  a.param = param.data(), a.grad = grad.data(), a.mean = mean.data(), a.variance = variance.data();
  a.visible = s.visible < 0 ? nullptr : visible.data();
  a.rows = s.rows, a.width = s.width;
  a.lr = lr, a.beta1 = beta1, a.beta2 = beta2, a.eps = eps, a.decay = s.decay, a.decoupled = s.decoupled;
  a.step = s.step;
  VK_CPU_CALL(adam_step, a);
  VK_EXPECT(selftest::relative_error(param, params) <= 1e-6);
  VK_EXPECT(selftest::relative_error(mean, means) <= 1e-6);
  VK_EXPECT(selftest::relative_error(variance, variances) <= 1e-6);
  bool kept = true;
  for (size_t i : still)
    kept = kept && param[i] == before[i] && mean[i] == before_mean[i] && variance[i] == before_variance[i];
  VK_EXPECT(kept);
}

}  // namespace

VK_SELFTEST(adam_step_equals_plain_loops) {
  for (const Setup& s : kSetups) check(s);
}

VK_SELFTEST(adam_step_of_many_tensors_has_the_bits_of_single_steps) {
  const int64_t sizes[] = {5, 4096, 0, 40001, 16, 1, 8191};
  std::vector<std::vector<float>> one[4], many[4];
  std::vector<vk::AdamStep> steps;
  for (int64_t k = 0; k < 7; ++k) {
    for (int64_t array = 0; array < 4; ++array) {
      const float low = array == 3 ? 0.0f : -1.0f;
      one[array].push_back(selftest::random_elements<float>(size_t(sizes[k]), uint64_t(10 * k + array), low, 1));
      many[array].push_back(one[array].back());
    }
    vk::AdamStep a{};
    a.rows = 1, a.width = sizes[k];
    a.lr = 0.01 * double(k + 1), a.beta1 = 0.9, a.beta2 = 0.99, a.eps = 1e-8, a.decay = 0.1 * double(k % 3);
    a.decoupled = k % 2 == 0;
    a.step = 1 + k;
    steps.push_back(a);
  }
  const auto point = [&](vk::AdamStep a, std::vector<std::vector<float>>* arrays, size_t k) {
    a.param = arrays[0][k].data(), a.grad = arrays[1][k].data();
    a.mean = arrays[2][k].data(), a.variance = arrays[3][k].data();
    return a;
  };
  std::vector<vk::AdamStep> all;
  for (size_t k = 0; k < steps.size(); ++k) {
    VK_CPU_CALL(adam_step, point(steps[k], one, k));
    all.push_back(point(steps[k], many, k));
  }
  VK_CPU_CALL(adam_step_many, vk::AdamStepMany{all.data(), int64_t(all.size())});
  for (size_t k = 0; k < steps.size(); ++k)
    for (int64_t array = 0; array < 4; ++array) VK_EXPECT(selftest::same_bits(one[array][k], many[array][k]));
}
