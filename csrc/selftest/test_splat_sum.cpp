#include "ops/splat_sum/splat_sum.h"
#include "selftest.h"

namespace {

struct Setup {
  std::vector<int64_t> offsets;  // rows of each image
  int64_t height, width, channels;
  bool conic, weighted, background_each;
};

/// Everything in double, Gaussian by Gaussian and pixel by pixel.
struct Plain {
  const Setup& s;
  const vk::SplatSum& a;
  std::vector<double> image, means, shapes, colors, opacities, background;
  std::vector<bool> close;  // pixels where a term is at its cut to rounding

  Plain(const Setup& setup, const vk::SplatSum& args)
      : s(setup),
        a(args),
        image(size_t(a.images * s.height * s.width * s.channels)),
        means(size_t(2 * a.count)),
        shapes(size_t(3 * a.count)),
        colors(size_t(a.count * s.channels)),
        opacities(size_t(a.count)),
        background(size_t(a.background_rows * s.channels)),
        close(size_t(a.images * s.height * s.width)) {}

  template <class Visit>
  void each(Visit visit) const {
    for (int64_t b = 0; b < a.images; ++b)
      for (int64_t i = s.offsets[size_t(b)]; i < s.offsets[size_t(b + 1)]; ++i)
        for (int64_t p = 0; p < s.height * s.width; ++p) {
          const double dx = double(p % s.width) + a.pixel_center - a.means[2 * i];
          const double dy = double(p / s.width) + a.pixel_center - a.means[2 * i + 1];
          const float* l = a.shapes + 3 * i;
          double sigma;
          if (s.conic) {
            sigma = 0.5 * (l[0] * dx * dx + l[2] * dy * dy) + l[1] * dx * dy;
          } else {
            const double u = dx / l[0], v = (dy - l[1] * u) / l[2];
            sigma = 0.5 * (u * u + v * v);
          }
          visit(b * s.height * s.width + p, i, dx, dy, (s.weighted ? a.opacities[i] : 1.0) * std::exp(-sigma));
        }
  }

  void render() {
    for (int64_t k = 0; k < int64_t(image.size()); ++k) {
      const int64_t row = a.background_rows > 1 ? k / (s.height * s.width * s.channels) : 0;
      image[size_t(k)] = a.background[row * s.channels + k % s.channels];
    }
    each([&](int64_t p, int64_t i, double, double, double w) {
      if (std::fabs(w * 255 - 1) < 1e-5) close[size_t(p)] = true;
      if (w < 1.0 / 255) return;
      for (int64_t c = 0; c < s.channels; ++c) image[size_t(p * s.channels + c)] += w * a.colors[i * s.channels + c];
    });
  }

  void backward(const std::vector<float>& grad) {
    for (size_t k = 0; k < grad.size(); ++k) {
      const size_t row = a.background_rows > 1 ? k / size_t(s.height * s.width * s.channels) : 0;
      background[row * size_t(s.channels) + k % size_t(s.channels)] += grad[k];
    }
    each([&](int64_t p, int64_t i, double dx, double dy, double w) {
      if (w < 1.0 / 255) return;
      double by_weight = 0;
      for (int64_t c = 0; c < s.channels; ++c) {
        const double g = grad[size_t(p * s.channels + c)];
        by_weight += g * a.colors[i * s.channels + c];
        colors[size_t(i * s.channels + c)] += w * g;
      }
      if (s.weighted) opacities[size_t(i)] += by_weight * w / a.opacities[i];
      const double by_sigma = -by_weight * w;
      const float* l = a.shapes + 3 * i;
      double* to = &shapes[size_t(3 * i)];
      double x_slope, y_slope;  // of sigma along d
      if (s.conic) {
        x_slope = l[0] * dx + l[1] * dy;
        y_slope = l[1] * dx + l[2] * dy;
        to[0] += by_sigma * 0.5 * dx * dx;
        to[1] += by_sigma * dx * dy;
        to[2] += by_sigma * 0.5 * dy * dy;
      } else {
        const double u = dx / l[0], v = (dy - l[1] * u) / l[2];
        y_slope = v / l[2];
        x_slope = (u - l[1] * y_slope) / l[0];
        to[0] -= by_sigma * x_slope * u;
        to[1] -= by_sigma * y_slope * u;
        to[2] -= by_sigma * y_slope * v;
      }
      means[size_t(2 * i)] -= by_sigma * x_slope;
      means[size_t(2 * i + 1)] -= by_sigma * y_slope;
    });
  }
};

void check(const Setup& s, uint64_t seed) {
  selftest::Random random(seed);
  const int64_t count = s.offsets.back(), images = int64_t(s.offsets.size()) - 1;
  const size_t pixels = size_t(images * s.height * s.width), channels = size_t(s.channels);
  std::vector<float> means, shapes, opacities;
  for (int64_t i = 0; i < count; ++i) {
    means.insert(means.end(), {random.uniform(-5, float(s.width) + 5), random.uniform(-5, float(s.height) + 5)});
    const float l11 = random.uniform(0.4f, 9), l21 = random.uniform(-4, 4), l22 = random.uniform(0.4f, 9);
    const float area = l11 * l11 * l22 * l22;
    if (s.conic)
      shapes.insert(shapes.end(), {(l21 * l21 + l22 * l22) / area, -l11 * l21 / area, l11 * l11 / area});
    else
      shapes.insert(shapes.end(), {l11, l21, l22});
    opacities.push_back(random.uniform(0.01f, 1.2f));
  }
  const auto colors = selftest::random_elements<float>(size_t(count) * channels, seed + 1);
  const size_t rows = s.background_each ? size_t(images) : 1;
  const auto background = selftest::random_elements<float>(rows * channels, seed + 2);
  std::vector<float> image(pixels * channels, -7.0f);

  vk::SplatSum shared{};
  shared.means = means.data(), shared.shapes = shapes.data(), shared.colors = colors.data();
  shared.opacities = s.weighted ? opacities.data() : nullptr;
  shared.background = background.data();
  shared.offsets = images > 1 ? s.offsets.data() : nullptr;
  shared.count = count, shared.images = images, shared.height = s.height, shared.width = s.width;
  shared.channels = s.channels, shared.background_rows = int64_t(rows);
  shared.pixel_center = 0.5f, shared.conic = s.conic;
  vk::SplatSumForward forward{};
  static_cast<vk::SplatSum&>(forward) = shared;
  forward.image = image.data();
  VK_CPU_CALL(splat_sum, forward);

  Plain plain(s, shared);
  plain.render();
  auto grad = selftest::random_elements<float>(pixels * channels, seed + 3);
  size_t left_out = 0;
  for (size_t p = 0; p < pixels; ++p)
    if (plain.close[p]) {
      ++left_out;
      for (size_t c = 0; c < channels; ++c) {
        grad[p * channels + c] = 0;
        image[p * channels + c] = float(plain.image[p * channels + c]);
      }
    }
  VK_EXPECT(left_out * 20 <= pixels);
  VK_EXPECT(selftest::relative_error(image, plain.image) <= 1e-5);

  std::vector<float> d_means(means.size(), -7.0f), d_shapes(shapes.size(), -7.0f), d_colors(colors.size(), -7.0f);
  std::vector<float> d_opacities(opacities.size(), -7.0f), d_background(background.size(), -7.0f);
  vk::SplatSumBackward backward{};
  static_cast<vk::SplatSum&>(backward) = shared;
  backward.grad_image = grad.data(), backward.grad_means = d_means.data(), backward.grad_shapes = d_shapes.data();
  backward.grad_colors = d_colors.data(), backward.grad_opacities = s.weighted ? d_opacities.data() : nullptr;
  backward.grad_background = d_background.data();
  VK_CPU_CALL(splat_sum_backward, backward);
  plain.backward(grad);
  VK_EXPECT(selftest::relative_error(d_means, plain.means) <= 1e-4);
  VK_EXPECT(selftest::relative_error(d_shapes, plain.shapes) <= 1e-4);
  VK_EXPECT(selftest::relative_error(d_colors, plain.colors) <= 1e-5);
  VK_EXPECT(selftest::relative_error(d_background, plain.background) <= 1e-5);
  if (s.weighted) VK_EXPECT(selftest::relative_error(d_opacities, plain.opacities) <= 1e-4);
}

}  // namespace

VK_SELFTEST(splat_sum_equals_plain_loops) {
  check({{0, 60}, 70, 90, 3, false, true, false}, 1);
  check({{0, 300}, 33, 130, 1, false, false, false}, 2);
  check({{0, 20, 20, 55}, 19, 41, 4, false, true, true}, 3);
  check({{0, 40}, 41, 67, 3, true, true, false}, 4);
  check({{0, 25}, 7, 5, 6, false, true, false}, 5);
  check({{0, 15, 30}, 30, 31, 11, true, false, false}, 6);
  check({{0, 1}, 1, 1, 2, false, true, false}, 7);
}

VK_SELFTEST(splat_sum_skips_what_has_no_area) {
  const float means[] = {2, 2, NAN, 1, 3, 3, 4, 4}, colors[] = {1, 1, 1, 1};
  const float shapes[] = {1, 0, 1, 1, 0, 1, 0, 0, 1, 1, INFINITY, 1};
  float image[25], alone[25], grad[25];
  for (float& g : grad) g = 1;
  vk::SplatSumForward a{};
  a.means = means, a.shapes = shapes, a.colors = colors;
  a.images = 1, a.height = a.width = 5, a.channels = 1, a.pixel_center = 0.5f;
  a.count = 1, a.image = alone;
  VK_CPU_CALL(splat_sum, a);
  a.count = 4, a.image = image;
  VK_CPU_CALL(splat_sum, a);
  VK_EXPECT(!std::memcmp(image, alone, sizeof image));
  VK_EXPECT(alone[2 * 5 + 2] > 0.7f);
  float d_means[8], d_shapes[12], d_colors[4];
  vk::SplatSumBackward b{};
  static_cast<vk::SplatSum&>(b) = a;
  b.grad_image = grad, b.grad_means = d_means, b.grad_shapes = d_shapes, b.grad_colors = d_colors;
  VK_CPU_CALL(splat_sum_backward, b);
  bool nothing = true;
  for (int k = 2; k < 8; ++k) nothing = nothing && d_means[k] == 0;
  for (int k = 3; k < 12; ++k) nothing = nothing && d_shapes[k] == 0;
  for (int k = 1; k < 4; ++k) nothing = nothing && d_colors[k] == 0;
  VK_EXPECT(nothing);
  VK_EXPECT(d_colors[0] > 3);
}
