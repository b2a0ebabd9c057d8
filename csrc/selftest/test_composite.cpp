#include "ops/composite/composite.h"
#include "selftest.h"

namespace {

struct Sizes {
  int64_t rays, samples, channels;
};
constexpr Sizes kSizes[] = {{3, 4, 2}, {9, 63, 3}, {5, 131, 1}, {6, 33, 45}, {2, 1, 4}, {3, 0, 3}};

/// Opacities in [0, 1], some exactly 0 and some exactly 1.
template <class T>
std::vector<T> opacities(size_t n) {
  std::vector<T> alpha = selftest::random_elements<T>(n, 2, 0, 1);
  for (size_t i = 0; i < n; i += 7) alpha[i] = i % 2 ? T(1) : T(0);
  return alpha;
}

template <class T>
void check() {
  for (const Sizes& z : kSizes) {
    const size_t rays = size_t(z.rays), samples = size_t(z.samples), channels = size_t(z.channels);
    const auto values = selftest::random_elements<T>(rays * samples * channels, 1);
    const auto alpha = opacities<T>(rays * samples);
    std::vector<double> out(rays * channels), weights(alpha.size()), left(rays);
    for (size_t r = 0; r < rays; ++r) {
      double t = 1;
      for (size_t s = 0; s < samples; ++s) {
        weights[r * samples + s] = double(alpha[r * samples + s]) * t;
        t *= 1 - double(alpha[r * samples + s]);
        for (size_t c = 0; c < channels; ++c)
          out[r * channels + c] += weights[r * samples + s] * double(values[(r * samples + s) * channels + c]);
      }
      left[r] = t;
    }
    std::vector<T> got(out.size()), got_weights(alpha.size()), got_left(rays);
    vk::Composite a{};
    a.values = values.data(), a.alpha = alpha.data();
    a.out = got.data(), a.weights = got_weights.data(), a.transmittance = got_left.data();
    a.rays = z.rays, a.samples = z.samples, a.channels = z.channels, a.element = selftest::ElementOf<T>::value;
    VK_CPU_CALL(composite, a);
    VK_EXPECT(selftest::relative_error(got, out) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(got_weights, weights) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(got_left, left) <= selftest::rounding<T>());

    const auto grad_out = selftest::random_elements<T>(out.size(), 3);
    const auto grad_weights = selftest::random_elements<T>(alpha.size(), 4);
    const auto grad_left = selftest::random_elements<T>(rays, 5);
    std::vector<T> grad_values(values.size()), grad_alpha(alpha.size());
    vk::CompositeBackward b{};
    b.grad_out = grad_out.data(), b.grad_weights = grad_weights.data(), b.grad_transmittance = grad_left.data();
    b.values = values.data(), b.alpha = alpha.data();
    b.grad_values = grad_values.data(), b.grad_alpha = grad_alpha.data();
    b.rays = z.rays, b.samples = z.samples, b.channels = z.channels, b.element = a.element;
    VK_CPU_CALL(composite_backward, b);
    // By the definition of a derivative of a function that is linear in each alpha: its value at 1 minus that at 0.
    std::vector<double> expected(alpha.size()), expected_values(values.size());
    const auto loss = [&](size_t r, size_t changed, double to) {
      double t = 1, sum = 0;
      for (size_t s = 0; s < samples; ++s) {
        const double x = s == changed ? to : double(alpha[r * samples + s]);
        double worth = double(grad_weights[r * samples + s]);
        for (size_t c = 0; c < channels; ++c)
          worth += double(grad_out[r * channels + c]) * double(values[(r * samples + s) * channels + c]);
        sum += x * t * worth;
        t *= 1 - x;
      }
      return sum + t * double(grad_left[r]);
    };
    for (size_t r = 0; r < rays; ++r)
      for (size_t s = 0; s < samples; ++s) {
        expected[r * samples + s] = loss(r, s, 1) - loss(r, s, 0);
        for (size_t c = 0; c < channels; ++c)
          expected_values[(r * samples + s) * channels + c] =
              weights[r * samples + s] * double(grad_out[r * channels + c]);
      }
    VK_EXPECT(selftest::relative_error(grad_alpha, expected) <= 4 * selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(grad_values, expected_values) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(composite_and_its_gradient) {
  check<float>();
  check<double>();
}
