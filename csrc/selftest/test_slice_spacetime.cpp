#include "ops/slice_spacetime/slice_spacetime.h"
#include "selftest.h"

namespace {

struct Sizes {
  int64_t count, moments;
};
constexpr Sizes kSizes[] = {{1, 1}, {5, 3}, {64, 2}, {331, 7}, {0, 3}, {5, 0}};

template <class T>
struct Cloud {
  std::vector<T> means, cholesky, times, means2d, flat, weight;
  Sizes s;

  explicit Cloud(const Sizes& sizes) : s(sizes) {
    means = selftest::random_elements<T>(size_t(s.count * 3), 1, 0, 4);
    cholesky = selftest::random_elements<T>(size_t(s.count * 6), 2, 0.3f, 2);
    times = selftest::random_elements<T>(size_t(s.moments), 3, 0, 4);
    means2d.resize(size_t(s.moments * s.count * 2)), flat.resize(size_t(s.count * 3));
    weight.resize(size_t(s.moments * s.count));
  }
  void run() {
    const vk::SliceSpacetime a{means.data(),   cholesky.data(), times.data(),
                               means2d.data(), flat.data(),     weight.data(),
                               s.count,        s.moments,       selftest::ElementOf<T>::value};
    VK_CPU_CALL(slice_spacetime, a);
  }
  double loss(const std::vector<T>* w) {
    run();
    double sum = 0;
    const std::vector<T>* outputs[] = {&means2d, &flat, &weight};
    for (int o = 0; o < 3; ++o)
      for (size_t i = 0; i < w[o].size(); ++i) sum += double(w[o][i]) * double((*outputs[o])[i]);
    return sum;
  }
};

template <class T>
void forward() {
  for (const Sizes& s : kSizes) {
    Cloud<T> cloud(s);
    cloud.run();
    std::vector<double> means2d(cloud.means2d.size()), weight(cloud.weight.size()), flat(cloud.flat.size());
    for (int64_t n = 0; n < s.count; ++n) {
      const T *l = cloud.cholesky.data() + n * 6, *m = cloud.means.data() + n * 3;
      const double row[3][3] = {
          {double(l[0]), 0, 0}, {double(l[1]), double(l[2]), 0}, {double(l[3]), double(l[4]), double(l[5])}};
      double sigma[3][3];
      for (int r = 0; r < 3; ++r)
        for (int c = 0; c < 3; ++c) sigma[r][c] = row[r][0] * row[c][0] + row[r][1] * row[c][1] + row[r][2] * row[c][2];
      const auto rest = [&](int r, int c) { return sigma[r][c] - sigma[r][2] * sigma[c][2] / sigma[2][2]; };
      const double l11 = std::sqrt(rest(0, 0)), l21 = rest(1, 0) / l11;
      flat[size_t(n * 3)] = l11, flat[size_t(n * 3 + 1)] = l21;
      flat[size_t(n * 3 + 2)] = std::sqrt(rest(1, 1) - l21 * l21);
      for (int64_t t = 0; t < s.moments; ++t) {
        const double ahead = double(cloud.times[size_t(t)]) - double(m[2]);
        for (int d = 0; d < 2; ++d)
          means2d[size_t((t * s.count + n) * 2 + d)] = double(m[d]) + sigma[d][2] / sigma[2][2] * ahead;
        weight[size_t(t * s.count + n)] = std::exp(-ahead * ahead / (2 * sigma[2][2]));
      }
    }
    VK_EXPECT(selftest::relative_error(cloud.means2d, means2d) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(cloud.flat, flat) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(cloud.weight, weight) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(slice_spacetime_agrees_with_the_schur_complement) {
  forward<float>();
  forward<double>();
}

VK_SELFTEST(slice_spacetime_weights_fade_to_zero) {
  const float means[3] = {1, 2, 0}, cholesky[6] = {1, 0, 1, 0, 0, 1};
  const float times[4] = {0, 13, 14, 1000};
  float means2d[8], flat[3], weight[4];
  const vk::SliceSpacetime a{means, cholesky, times, means2d, flat, weight, 1, 4, vk::Element::f32};
  VK_CPU_CALL(slice_spacetime, a);
  VK_EXPECT(weight[0] == 1);
  VK_EXPECT(std::fabs(weight[1] / std::exp(-84.5) - 1) < 1e-5);
  VK_EXPECT(weight[2] == 0 && weight[3] == 0);
}

VK_SELFTEST(slice_spacetime_backward_agrees_with_differences) {
  Cloud<double> cloud({67, 3});
  cloud.run();
  const std::vector<double> w[3] = {selftest::random_elements<double>(cloud.means2d.size(), 4),
                                    selftest::random_elements<double>(cloud.flat.size(), 5),
                                    selftest::random_elements<double>(cloud.weight.size(), 6)};
  std::vector<double> grad_means(cloud.means.size()), grad_cholesky(cloud.cholesky.size()), grad_times(3), partial(3);
  const vk::SliceSpacetimeBackward a{w[0].data(),
                                     w[1].data(),
                                     w[2].data(),
                                     cloud.means.data(),
                                     cloud.cholesky.data(),
                                     cloud.times.data(),
                                     grad_means.data(),
                                     grad_cholesky.data(),
                                     grad_times.data(),
                                     partial.data(),
                                     67,
                                     3,
                                     vk::Element::f64};
  VK_CPU_CALL(slice_spacetime_backward, a);
  const auto check = [&](std::vector<double>& leaf, const std::vector<double>& grad, size_t stride) {
    for (size_t i = 0; i < leaf.size(); i += stride) {
      const double step = 1e-6, before = leaf[i];
      leaf[i] = before + step;
      const double high = cloud.loss(w);
      leaf[i] = before - step;
      const double low = cloud.loss(w);
      leaf[i] = before;
      const double slope = (high - low) / (2 * step);
      VK_EXPECT(std::fabs(grad[i] - slope) <= 1e-6 * (1 + std::fabs(slope)));
    }
  };
  check(cloud.means, grad_means, 5);
  check(cloud.cholesky, grad_cholesky, 7);
  check(cloud.times, grad_times, 1);
}
