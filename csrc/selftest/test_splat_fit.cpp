#include "ops/splat_fit/splat_fit.h"
#include "selftest.h"

namespace {

constexpr int kA = vk::kFitAttributes;

struct Setup {
  int64_t count, height, width;
  bool after;  // a frame after another: previous, rounding, shrinkage
  std::vector<int32_t> order;
};

/// The rules of splat_fit.h step by step, in double.
struct Plain {
  const vk::SplatFit& a;
  std::vector<double> current, mean, variance, error;
  bool close = false;  // a decision hung on rounding

  Plain(const vk::SplatFit& args)
      : a(args),
        current(args.current, args.current + args.count * kA),
        mean(args.mean, args.mean + args.count * kA),
        variance(args.variance, args.variance + args.count * kA) {}

  void step(int64_t s) {
    const uint8_t* frame = a.frames + a.order[s] * a.height * a.width * 3;
    const double alpha = a.previous ? a.alpha[a.order[s]] : 1.0;
    std::vector<double> seen(current), image(size_t(a.height * a.width * 3));
    for (size_t k = 0; k < seen.size(); ++k) {
      const double before = a.previous ? a.previous[k] : 0.0, quantum = a.quantum[k % kA];
      if (quantum > 0) {
        const double units = (seen[k] - before) / quantum;
        close = close || std::fabs(units - std::floor(units) - 0.5) < 1e-4;
        seen[k] = before + quantum * std::nearbyint(units);
      }
      seen[k] = before + alpha * (seen[k] - before);
    }
    const auto each = [&](auto visit) {
      for (int64_t i = 0; i < a.count; ++i)
        for (int64_t p = 0; p < a.height * a.width; ++p) {
          const double* g = &seen[size_t(i * kA)];
          const double u = (double(p % a.width) + 0.5 - g[0]) / g[2];
          const double v = (double(p / a.width) + 0.5 - g[1] - g[3] * u) / g[4];
          const double w = std::exp(-0.5 * (u * u + v * v));
          close = close || std::fabs(w * 255 - 1) < 1e-5;
          const double rgb[3] = {g[5] + g[6] - g[7], g[5] + g[7], g[5] - g[6] - g[7]};
          if (w >= 1.0 / 255) visit(i, p, g, u, v, w, rgb);
        }
    };
    each([&](int64_t, int64_t p, const double*, double, double, double w, const double* rgb) {
      for (int c = 0; c < 3; ++c) image[size_t(3 * p + c)] += w * rgb[c];
    });
    double squares = 0;
    for (size_t k = 0; k < image.size(); ++k) {
      image[k] = std::fmin(std::fmax(image[k], 0.0), 1.0) - frame[k] / 255.0;
      squares += image[k] * image[k];
    }
    error.push_back(squares / double(image.size()));
    std::vector<double> grad(current.size());
    each([&](int64_t i, int64_t p, const double* g, double u, double v, double w, const double* rgb) {
      const double* d = &image[size_t(3 * p)];
      const double pull = w * (d[0] * rgb[0] + d[1] * rgb[1] + d[2] * rgb[2]);
      const double y_slope = v / g[4], x_slope = (u - g[3] * y_slope) / g[2];
      const double moves[kA] = {pull * x_slope,     pull * y_slope,          pull * x_slope * u,
                                pull * y_slope * u, pull * y_slope * v,      w * (d[0] + d[1] + d[2]),
                                w * (d[0] - d[2]),  w * (d[1] - d[0] - d[2])};
      for (int k = 0; k < kA; ++k) grad[size_t(i * kA + k)] += alpha * moves[k];
    });
    const double beta1 = a.beta1, beta2 = a.beta2;
    const double means = double(a.mean_steps + s + 1), variances = double(a.variance_steps + s + 1);
    for (size_t j = 0; j < current.size(); ++j) {
      const size_t k = j % kA;
      mean[j] = beta1 * mean[j] + (1 - beta1) * grad[j];
      variance[j] = beta2 * variance[j] + (1 - beta2) * grad[j] * grad[j];
      const double root = std::sqrt(variance[j] / (1 - std::pow(beta2, variances))) + 1e-12;
      const double scale = a.rate[k] * a.pace[s] / root;
      double next = current[j] - scale * mean[j] / (1 - std::pow(beta1, means));
      if (a.shrink[k] > 0) {
        const double before = a.previous ? a.previous[j] : 0.0, change = next - before;
        const double left = std::fmax(std::fabs(change) - scale * a.shrink[k], 0.0);
        next = before + std::copysign(left, change);
      }
      if (k == 2 || k == 4) next = std::fmax(next, double(a.least));
      current[j] = next;
    }
  }
};

void check(const Setup& s, uint64_t seed) {
  selftest::Random random(seed);
  std::vector<float> current, previous;
  for (int64_t i = 0; i < s.count; ++i) {
    const float x = random.uniform(0, float(s.width)), y = random.uniform(0, float(s.height));
    current.insert(current.end(), {x, y, random.uniform(0.5f, 4), random.uniform(-1, 1), random.uniform(0.5f, 4),
                                   random.uniform(0, 0.6f), random.uniform(-0.2f, 0.2f), random.uniform(-0.2f, 0.2f)});
  }
  for (float x : current) previous.push_back(x + random.uniform(-0.05f, 0.05f));
  const auto mean0 = selftest::random_elements<float>(current.size(), seed + 1, -0.1f, 0.1f);
  const auto variance0 = selftest::random_elements<float>(current.size(), seed + 2, 0.05f, 0.2f);
  auto mean = mean0, variance = variance0;
  std::vector<uint8_t> frames(size_t(2 * s.height * s.width * 3));
  for (uint8_t& x : frames) x = uint8_t(random.bits());
  const float alpha[2] = {0.4f, 1.0f};
  const std::vector<float> pace = {1.0f, 0.5f, 0.25f};
  std::vector<double> error(s.order.size(), -1.0);

  vk::SplatFit a{};
  a.current = current.data(), a.previous = s.after ? previous.data() : nullptr;
  a.mean = mean.data(), a.variance = variance.data();
  a.frames = frames.data(), a.alpha = alpha, a.order = s.order.data(), a.pace = pace.data(), a.error = error.data();
  for (int k = 0; k < kA; ++k) {
    a.rate[k] = k < 2 ? 0.12f : k < 5 ? 0.06f : 0.01f;
    a.quantum[k] = s.after ? (k < 5 ? 0.0625f : 0.004f) : 0.0f;
    a.shrink[k] = s.after ? 0.02f : 0.0f;
  }
  a.least = 0.45f, a.beta1 = 0.9f, a.beta2 = 0.99f;
  a.count = s.count, a.frame_count = 2, a.height = s.height, a.width = s.width;
  a.steps = int64_t(s.order.size()), a.mean_steps = 2, a.variance_steps = 30;
  Plain plain(a);
  for (int64_t step = 0; step < a.steps; ++step) plain.step(step);
  VK_CPU_CALL(splat_fit, a);

  VK_EXPECT(!plain.close);  // choose another seed
  VK_EXPECT(selftest::relative_error(mean, plain.mean) <= 1e-4);
  VK_EXPECT(selftest::relative_error(variance, plain.variance) <= 1e-4);
  double worst = 0;
  for (size_t j = 0; j < current.size(); ++j)
    worst = std::fmax(worst, std::fabs(current[j] - plain.current[j]) / a.rate[j % kA]);
  VK_EXPECT(worst <= 1e-4);
  for (size_t k = 0; k < error.size(); ++k) VK_EXPECT(std::fabs(error[k] - plain.error[k]) <= 1e-5 * plain.error[k]);
}

}  // namespace

VK_SELFTEST(splat_fit_equals_plain_loops) {
  check({12, 37, 45, false, {0, 1, 0}}, 1);
  check({12, 37, 45, true, {1, 0, 1}}, 2);
  check({30, 16, 90, true, {0, 0}}, 3);
  check({1, 3, 2, false, {1}}, 4);
}

VK_SELFTEST(splat_fit_descends) {
  // One Gaussian finds the frame that another one drew.
  const int64_t size = 24, steps = 400;
  std::vector<uint8_t> frame(size_t(size * size * 3));
  for (int64_t p = 0; p < size * size; ++p) {
    const double u = (double(p % size) + 0.5 - 13) / 4, v = (double(p / size) + 0.5 - 10) / 3;
    const double w = std::exp(-0.5 * (u * u + v * v));
    for (int c = 0; c < 3; ++c) frame[size_t(3 * p + c)] = uint8_t(std::lround(255 * w * (0.3 + 0.2 * c)));
  }
  float current[kA] = {10, 12, 2.5f, 0, 2.5f, 0.3f, 0, 0}, mean[kA] = {}, variance[kA] = {};
  const float alpha = 1;
  std::vector<int32_t> order(size_t(steps), 0);
  std::vector<float> pace(size_t(steps), 1.0f);
  for (size_t k = pace.size() / 2; k < pace.size(); ++k) pace[k] = 0.1f;
  std::vector<double> error(order.size());
  vk::SplatFit a{};
  a.current = current, a.mean = mean, a.variance = variance, a.frames = frame.data(), a.alpha = &alpha;
  a.order = order.data(), a.pace = pace.data(), a.error = error.data();
  for (int k = 0; k < kA; ++k) a.rate[k] = k < 5 ? 0.1f : 0.01f;
  a.least = 0.4f, a.beta1 = 0.9f, a.beta2 = 0.99f;
  a.count = 1, a.frame_count = 1, a.height = a.width = size, a.steps = steps;
  VK_CPU_CALL(splat_fit, a);
  const float expected[kA] = {13, 10, 4, 0, 3, 0.5f, -0.2f, 0};
  for (int k = 0; k < kA; ++k) VK_EXPECT(std::fabs(current[k] - expected[k]) < (k < 5 ? 0.05f : 0.01f));
  VK_EXPECT(error.back() < error.front() / 1000);
}
