#include <cmath>

#include "ops/fake_quantize_rate/fake_quantize_rate.h"
#include "selftest.h"

namespace {

/// -log of the mass of the interval around q, in double, and its derivatives by q and by a = 1 / spread.
struct Exact {
  double nats, by_q, by_a;
  Exact(double q, double a) {
    const double m = std::fabs(q);
    if (m >= 0.5) {
      nats = a * (m - 0.5) - std::log(-std::expm1(-a) / 2);
      by_q = a;
      by_a = m - 0.5 - 1 / std::expm1(a);
    } else {
      const double near = std::exp(-a * (0.5 - m)), far = std::exp(-a * (0.5 + m)), mass = 1 - (near + far) / 2;
      nats = -std::log(mass);
      by_q = a * (near - far) / (2 * mass);
      by_a = -(near * (0.5 - m) + far * (0.5 + m)) / (2 * mass);
    }
    if (q < 0) by_q = -by_q;
    if (q == 0) by_q = 0;
  }
};

template <class T>
void check(int64_t rows, int64_t count, bool round) {
  const size_t n = size_t(rows * count), r = size_t(rows);
  const auto x = selftest::random_elements<T>(n, 1, -1, 1), grad_value = selftest::random_elements<T>(n, 2);
  const auto noise = selftest::random_elements<float>(n, 3, -0.5f, 0.5f);
  const auto step = selftest::random_elements<float>(r, 4, 0.05f, 0.2f);
  const auto spread = selftest::random_elements<float>(r, 5, 0.3f, 4.0f);
  const auto grad_bits = selftest::random_elements<float>(r, 6, 0.5f, 1.0f);
  std::vector<T> value(n), grad_x(n);
  std::vector<float> bits(r), grad_step(r), grad_spread(r);
  std::vector<double> values(n), all_bits(r), to_x(n), to_step(r), to_spread(r);
  for (size_t row = 0; row < r; ++row) {
    const double a = 1 / double(spread[row]), up = grad_bits[row] / std::log(2.0);
    for (size_t i = row * size_t(count); i < (row + 1) * size_t(count); ++i) {
      const float zf = float(selftest::number(x[i])) / step[row];
      const double z = zf, q = round ? std::nearbyint(zf) : double(zf + noise[i]), g = selftest::number(grad_value[i]);
      const Exact exact(q, a);
      values[i] = q * double(step[row]);
      all_bits[row] += exact.nats / std::log(2.0);
      to_x[i] = g + up * exact.by_q / double(step[row]);
      to_step[row] += g * (q - z) - up * exact.by_q * z / double(step[row]);
      to_spread[row] += up * exact.by_a * -a * a;
    }
  }
  vk::FakeQuantizeRate in{};
  in.x = x.data(), in.step = step.data(), in.spread = spread.data();
  in.noise = round ? nullptr : noise.data();
  in.value = value.data(), in.bits = bits.data();
  in.rows = rows, in.count = count;
  in.element = selftest::ElementOf<T>::value;
  std::vector<double> sums(size_t(2 * rows * in.pieces()));
  in.sums = sums.data();
  VK_CPU_CALL(fake_quantize_rate, in);
  VK_EXPECT(selftest::relative_error(value, values) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(bits, all_bits) <= 2e-6);
  vk::FakeQuantizeRateBackward back{};
  back.in = in;
  back.grad_value = grad_value.data(), back.grad_bits = grad_bits.data();
  back.grad_x = grad_x.data(), back.grad_step = grad_step.data(), back.grad_spread = grad_spread.data();
  VK_CPU_CALL(fake_quantize_rate_backward, back);
  VK_EXPECT(selftest::relative_error(grad_x, to_x) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(grad_step, to_step) <= 1e-5);
  VK_EXPECT(selftest::relative_error(grad_spread, to_spread) <= 1e-5);
}

}  // namespace

VK_SELFTEST(fake_quantize_rate_equals_plain_loops) {
  for (bool round : {false, true}) {
    check<float>(5, 61, round);
    check<float>(2, 9001, round);
    check<float>(3, 0, round);
    check<float>(0, 7, round);
    check<vk::bf16>(4, 130, round);
    check<vk::f16>(4, 35, round);
  }
}
