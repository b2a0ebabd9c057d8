#include <algorithm>

#include "ops/splat_topk/splat_topk.h"
#include "selftest.h"

namespace {

void check(int64_t count, int64_t height, int64_t width, int64_t channels, int64_t top, uint64_t seed) {
  selftest::Random random(seed);
  std::vector<float> means, shapes, colors, opacities;
  for (int64_t i = 0; i < count; ++i) {
    means.insert(means.end(), {random.uniform(-5, float(width) + 5), random.uniform(-5, float(height) + 5)});
    shapes.insert(shapes.end(), {random.uniform(0.4f, 9), random.uniform(-4, 4), random.uniform(0.4f, 9)});
    for (int64_t ch = 0; ch < channels; ++ch) colors.push_back(random.uniform(0, 1));
    opacities.push_back(random.uniform(0.1f, 1));
  }
  std::vector<float> image(size_t(height * width * channels), -1.0f);
  std::vector<int32_t> index(size_t(height * width * top), -7);
  vk::SplatTopkForward a{};
  a.means = means.data(), a.shapes = shapes.data(), a.colors = colors.data(), a.opacities = opacities.data();
  a.count = count, a.images = 1, a.height = height, a.width = width, a.channels = channels, a.top = top;
  a.pixel_center = 0.5f;
  a.image = image.data(), a.index = index.data();
  VK_CPU_CALL(splat_topk, a);
  int64_t skipped = 0;
  double worst = 0;
  bool chosen_alike = true;
  for (int64_t p = 0; p < height * width; ++p) {
    std::vector<std::pair<double, int32_t>> felt;  // (-weight, index)
    bool close = false;
    for (int32_t i = 0; i < count; ++i) {
      const float* l = &shapes[size_t(3 * i)];
      const double u = (double(p % width) + 0.5 - means[size_t(2 * i)]) / l[0];
      const double v = (double(p / width) + 0.5 - means[size_t(2 * i + 1)] - l[1] * u) / l[2];
      const double w = opacities[size_t(i)] * std::exp(-0.5 * (u * u + v * v));
      close = close || std::fabs(w * 255 - 1) < 1e-5;
      if (w >= 1.0 / 255) felt.push_back({-w, i});
    }
    std::sort(felt.begin(), felt.end());
    if (int64_t(felt.size()) > top) {
      close = close || felt[size_t(top)].first - felt[size_t(top - 1)].first < 1e-5;
      felt.resize(size_t(top));
    }
    skipped += close;
    if (close) continue;
    std::sort(felt.begin(), felt.end(), [](const auto& x, const auto& y) { return x.second < y.second; });
    double total = 1e-4;
    for (const auto& [w, i] : felt) total -= w;
    for (int64_t k = 0; k < top; ++k)
      chosen_alike =
          chosen_alike && index[size_t(p * top + k)] == (k < int64_t(felt.size()) ? felt[size_t(k)].second : -1);
    for (int64_t ch = 0; ch < channels; ++ch) {
      double sum = 0;
      for (const auto& [w, i] : felt) sum -= w * colors[size_t(i * channels + ch)];
      worst = std::fmax(worst, std::fabs(image[size_t(p * channels + ch)] - sum / total));
    }
  }
  VK_EXPECT(chosen_alike);
  VK_EXPECT(worst <= 1e-5);
  VK_EXPECT(skipped * 20 <= height * width);
}

}  // namespace

VK_SELFTEST(splat_topk_equals_plain_loops) {
  check(60, 70, 90, 3, 10, 1);
  check(200, 33, 66, 1, 3, 2);
  check(25, 7, 5, 6, 32, 3);
  check(2, 1, 1, 4, 1, 4);
}
