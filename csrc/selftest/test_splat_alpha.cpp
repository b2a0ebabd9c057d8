#include "ops/splat_alpha/splat_alpha.h"
#include "selftest.h"

namespace {

using selftest::Random;

struct Scene {
  int64_t count, height, width, channels;
  std::vector<float> means, shapes, colors, opacities, depths, background;
};

Scene random_scene(int64_t count, int64_t height, int64_t width, int64_t channels, uint64_t seed) {
  Random random(seed);
  Scene s{count, height, width, channels, {}, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < count; ++i) {
    s.means.insert(s.means.end(), {random.uniform(-5, float(width) + 5), random.uniform(-5, float(height) + 5)});
    s.shapes.insert(s.shapes.end(), {random.uniform(0.4f, 9), random.uniform(-4, 4), random.uniform(0.4f, 9)});
    for (int64_t ch = 0; ch < channels; ++ch) s.colors.push_back(random.uniform(0, 1));
    s.opacities.push_back(random.uniform(0.01f, 1.2f));
    s.depths.push_back(float(random.below(int32_t(count))) - 3);
  }
  for (int64_t ch = 0; ch < channels; ++ch) s.background.push_back(random.uniform(0, 1));
  return s;
}

vk::SplatAlpha contract(const Scene& s) {
  vk::SplatAlpha a{};
  a.means = s.means.data(), a.shapes = s.shapes.data(), a.colors = s.colors.data();
  a.opacities = s.opacities.data(), a.background = s.background.data();
  a.count = s.count, a.images = 1, a.height = s.height, a.width = s.width, a.channels = s.channels;
  a.background_rows = 1;
  a.pixel_center = 0.5f;
  return a;
}

struct Rendered {
  std::vector<float> image, alpha;
  std::vector<int32_t> order;
};

Rendered render(const Scene& s) {
  const size_t pixels = size_t(s.height * s.width);
  Rendered r{std::vector<float>(pixels * size_t(s.channels)), std::vector<float>(pixels),
             std::vector<int32_t>(size_t(s.count))};
  vk::SplatAlphaForward a{};
  static_cast<vk::SplatAlpha&>(a) = contract(s);
  a.depths = s.depths.data(), a.image = r.image.data(), a.alpha = r.alpha.data(), a.order = r.order.data();
  VK_CPU_CALL(splat_alpha, a);
  return r;
}

/// One pixel in double, Gaussian by Gaussian; `close` where a decision hangs on rounding.
void pixel(const Scene& s, const std::vector<int32_t>& order, double x, double y, double* out, double& light,
           bool& close) {
  light = 1;
  close = false;
  for (int64_t ch = 0; ch < s.channels; ++ch) out[ch] = 0;
  for (int32_t i : order) {
    const float* l = &s.shapes[size_t(3 * i)];
    const double u = (x - s.means[size_t(2 * i)]) / l[0], v = (y - s.means[size_t(2 * i + 1)] - l[1] * u) / l[2];
    const double raw = s.opacities[size_t(i)] * std::exp(-0.5 * (u * u + v * v)), alpha = raw < 0.99 ? raw : 0.99;
    close = close || std::fabs(raw * 255 - 1) < 1e-5;
    if (raw < 1.0 / 255) continue;
    close = close || std::fabs(light * (1 - alpha) - 1e-4) < 1e-9;
    if (light * (1 - alpha) <= 1e-4) break;
    for (int64_t ch = 0; ch < s.channels; ++ch) out[ch] += light * alpha * s.colors[size_t(i * s.channels + ch)];
    light *= 1 - alpha;
  }
  for (int64_t ch = 0; ch < s.channels; ++ch) out[ch] += light * s.background[size_t(ch)];
}

void check(const Scene& s) {
  const Rendered r = render(s);
  for (size_t k = 1; k < r.order.size(); ++k) {
    const float near = s.depths[size_t(r.order[k - 1])], far = s.depths[size_t(r.order[k])];
    VK_EXPECT(near < far || (near == far && r.order[k - 1] < r.order[k]));
  }
  std::vector<double> expected(size_t(s.channels));
  double worst = 0;
  int64_t skipped = 0;
  for (int64_t p = 0; p < s.height * s.width; ++p) {
    double light;
    bool close;
    pixel(s, r.order, double(p % s.width) + 0.5, double(p / s.width) + 0.5, expected.data(), light, close);
    skipped += close;
    if (close) continue;
    worst = std::fmax(worst, std::fabs(r.alpha[size_t(p)] - (1 - light)));
    for (int64_t ch = 0; ch < s.channels; ++ch)
      worst = std::fmax(worst, std::fabs(r.image[size_t(p * s.channels + ch)] - expected[size_t(ch)]));
  }
  VK_EXPECT(worst <= 1e-5);
  VK_EXPECT(skipped * 20 <= s.height * s.width);
}

/// sum of g image + h alpha
double objective(const Scene& s, const std::vector<float>& g, const std::vector<float>& h) {
  const Rendered r = render(s);
  double sum = 0;
  for (size_t k = 0; k < g.size(); ++k) sum += double(g[k]) * r.image[k];
  for (size_t k = 0; k < h.size(); ++k) sum += double(h[k]) * r.alpha[k];
  return sum;
}

}  // namespace

VK_SELFTEST(splat_alpha_equals_plain_loops) {
  check(random_scene(60, 70, 90, 3, 1));
  check(random_scene(300, 33, 130, 1, 2));
  check(random_scene(25, 7, 5, 6, 3));
  check(random_scene(1, 1, 1, 4, 4));
}

VK_SELFTEST(splat_alpha_backward_predicts_small_changes_of_color_and_opacity) {
  // The image is linear in a colour, and one factor of every later light in an opacity below the cut.
  Scene s = random_scene(40, 30, 41, 3, 5);
  for (float& o : s.opacities) o *= 0.5f;
  const auto g = selftest::random_elements<float>(size_t(30 * 41 * 3), 6);
  const auto h = selftest::random_elements<float>(size_t(30 * 41), 7);
  const Rendered r = render(s);
  std::vector<float> means(80), shapes(120), colors(120), opacities(40), background(3);
  vk::SplatAlphaBackward a{};
  static_cast<vk::SplatAlpha&>(a) = contract(s);
  a.grad_image = g.data(), a.grad_alpha = h.data(), a.image = r.image.data(), a.alpha = r.alpha.data();
  a.order = r.order.data();
  a.grad_means = means.data(), a.grad_shapes = shapes.data(), a.grad_colors = colors.data();
  a.grad_opacities = opacities.data(), a.grad_background = background.data();
  VK_CPU_CALL(splat_alpha_backward, a);
  const auto difference = [&](float& parameter, float by) {
    const float kept = parameter;
    parameter = kept + by;
    const double up = objective(s, g, h);
    parameter = kept - by;
    const double down = objective(s, g, h);
    parameter = kept;
    return (up - down) / (2 * by);
  };
  for (size_t k = 0; k < 120; k += 17) VK_EXPECT(std::fabs(difference(s.colors[k], 0.25f) - colors[k]) < 1e-3);
  for (size_t k = 0; k < 3; ++k) VK_EXPECT(std::fabs(difference(s.background[k], 0.25f) - background[k]) < 2e-3);
  double length = 0;
  for (float d : colors) length += std::fabs(d);
  VK_EXPECT(length > 1);
}
