#include "ops/frame_loss/frame_loss.h"
#include "selftest.h"

namespace {

struct Setup {
  int64_t batch, height, width, channels;
  double l1, l2, ssim;
  bool weighted;
};
constexpr Setup kSetups[] = {{2, 11, 13, 3, 0.5, 0.3, 0.2, false}, {1, 141, 29, 1, 0, 0, 1, false},
                             {2, 19, 37, 4, 0.2, 0.3, 0.5, true},  {1, 12, 401, 3, 0.8, 0, 0.2, true},
                             {2, 3, 5, 2, 1, 0.5, 0, true},        {1, 7, 1, 1, 0, 1, 0, false},
                             {0, 16, 16, 3, 1, 1, 1, false}};

/// The formula as it is written in textbooks, in double: windows of 11 x 11 weights, one after another.
struct Expected {
  double loss = 0;
  std::vector<double> grad;

  Expected(const Setup& s, const vk::FrameLoss& a) : grad(size_t(s.batch * s.height * s.width * s.channels)) {
    double g[11], sum = 0;
    for (int k = 0; k < 11; ++k) sum += g[k] = std::exp(-(k - 5) * (k - 5) / (2 * 1.5 * 1.5));
    for (double& x : g) x /= sum;
    const auto weight = [&](int64_t b, int64_t y, int64_t x) {
      return a.weight ? double(a.weight[(b * s.height + y) * s.width + x]) : 1.0;
    };
    double pixels = 0, windows = 0;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t y = 0; y < s.height; ++y)
        for (int64_t x = 0; x < s.width; ++x) {
          pixels += weight(b, y, x) * double(s.channels);
          if (y >= 5 && y < s.height - 5 && x >= 5 && x < s.width - 5) windows += weight(b, y, x) * double(s.channels);
        }
    for (int64_t i = 0; i < int64_t(grad.size()); ++i) {
      const int64_t p = i / s.channels;
      const double w = weight(p / s.width / s.height, p / s.width % s.height, p % s.width) / pixels;
      const double d = double(a.image[i]) - a.target[i] / 255.0;
      loss += w * (s.l1 * std::fabs(d) + s.l2 * d * d);
      grad[size_t(i)] += w * (s.l1 * double((d > 0) - (d < 0)) + 2 * s.l2 * d);
    }
    if (s.ssim == 0) return;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t v = 0; v + 11 <= s.height; ++v)
        for (int64_t u = 0; u + 11 <= s.width; ++u)
          for (int64_t c = 0; c < s.channels; ++c) {
            const auto at = [&](int64_t i, int64_t j) {
              return ((b * s.height + v + i) * s.width + u + j) * s.channels + c;
            };
            double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
            for (int64_t i = 0; i < 11; ++i)
              for (int64_t j = 0; j < 11; ++j) {
                const double w = g[i] * g[j], x = a.image[at(i, j)], y = a.target[at(i, j)] / 255.0;
                mx += w * x, my += w * y, xx += w * x * x, yy += w * y * y, xy += w * x * y;
              }
            const double n1 = 2 * mx * my + 1e-4, n2 = 2 * (xy - mx * my) + 9e-4;
            const double d1 = mx * mx + my * my + 1e-4, d2 = xx - mx * mx + yy - my * my + 9e-4;
            const double likeness = n1 * n2 / (d1 * d2), share = s.ssim * weight(b, v + 5, u + 5) / windows;
            loss += share * (1 - likeness);
            for (int64_t i = 0; i < 11; ++i)
              for (int64_t j = 0; j < 11; ++j) {
                const double x = a.image[at(i, j)], y = a.target[at(i, j)] / 255.0;
                const double by_luminance = 2 * my * n2 / (d1 * d2) - likeness * 2 * mx / d1;
                const double by_structure = 2 * (y - my) * n1 / (d1 * d2) - likeness * 2 * (x - mx) / d2;
                grad[size_t(at(i, j))] -= share * g[i] * g[j] * (by_luminance + by_structure);
              }
          }
  }
};

void check(const Setup& s) {
  const size_t n = size_t(s.batch * s.height * s.width * s.channels);
  selftest::Random random(n + 1);
  std::vector<float> image(n), weight(size_t(s.batch * s.height * s.width)), grad(n, -7.0f), only(n, -7.0f);
  std::vector<uint8_t> target(n);
  for (size_t i = 0; i < n; ++i) {
    target[i] = uint8_t(random.bits());
    image[i] = float(target[i]) / 255.0f + random.uniform(-0.3f, 0.3f);
  }
  for (float& w : weight) w = random.below(4) ? random.uniform(0, 2) : 0.0f;
  float loss = -1, alone = -1;
  const float upstream = 1.5f;
  vk::FrameLoss a{};
  a.image = image.data(), a.target = target.data(), a.weight = s.weighted ? weight.data() : nullptr;
  a.batch = s.batch, a.height = s.height, a.width = s.width, a.channels = s.channels;
  a.l1 = s.l1, a.l2 = s.l2, a.ssim = s.ssim;
  a.loss = &alone;
  VK_CPU_CALL(frame_loss, a);
  a.loss = &loss, a.grad = grad.data();
  VK_CPU_CALL(frame_loss, a);
  a.loss = nullptr, a.grad = only.data(), a.grad_loss = &upstream;
  VK_CPU_CALL(frame_loss, a);

  const Expected expected(s, a);
  VK_EXPECT(std::fabs(loss - expected.loss) <= 2e-6 * expected.loss);
  VK_EXPECT(std::fabs(alone - expected.loss) <= 2e-6 * expected.loss);
  VK_EXPECT(selftest::relative_error(grad, expected.grad) <= 5e-6);
  std::vector<double> scaled = expected.grad;
  for (double& x : scaled) x *= upstream;
  VK_EXPECT(selftest::relative_error(only, scaled) <= 5e-6);
}

}  // namespace

VK_SELFTEST(frame_loss_equals_plain_loops) {
  for (const Setup& s : kSetups) check(s);
}
