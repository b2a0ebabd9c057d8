#include <complex>

#include "ops/spectral_multiply/spectral_multiply.h"
#include "selftest.h"

namespace {

using Number = std::complex<double>;

template <class T>
Number at(const std::vector<T>& v, int64_t i) {
  return {selftest::number(v[size_t(2 * i)]), selftest::number(v[size_t(2 * i + 1)])};
}
void add(std::vector<double>& v, int64_t i, Number n) {
  v[size_t(2 * i)] += n.real();
  v[size_t(2 * i + 1)] += n.imag();
}
vk::Spectrum spectrum(const void* data, int64_t channels, int64_t rows, int64_t columns) {
  const int64_t plane = rows * columns * 2;
  return {data, channels, rows, columns, channels * plane, plane, columns * 2, 2};
}

template <class T>
void check(int64_t batch, int64_t in, int64_t out, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t oh,
           int64_t ow, bool masked) {
  const auto x = selftest::random_elements<T>(size_t(batch * in * h * w * 2), 1);
  const auto grad = selftest::random_elements<T>(size_t(batch * out * oh * ow * 2), 2);
  const auto weight = selftest::random_elements<T>(size_t(rows * columns * in * out * 2), 3);
  std::vector<uint8_t> mask(weight.size(), 1);
  selftest::Random random(4);
  for (uint8_t& bit : mask) bit = !masked || random.below(3) == 0;
  std::vector<T> result(grad.size(), selftest::element<T>(7)), grad_x(x.size()), grad_weight(weight.size());
  std::vector<double> expected(grad.size()), to_x(x.size()), to_weight(weight.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t i = 0; i < in; ++i)
          for (int64_t o = 0; o < out; ++o) {
            const bool low = 2 * r <= rows - 1;
            const int64_t from = ((b * in + i) * h + (low ? r : h - rows + r)) * w + c;
            const int64_t to = ((b * out + o) * oh + (low ? r : oh - rows + r)) * ow + c;
            const int64_t by = ((r * columns + c) * in + i) * out + o;
            const double re = mask[size_t(2 * by)], im = mask[size_t(2 * by + 1)];
            const Number m = at(weight, by), kept(m.real() * re, m.imag() * im);
            add(expected, to, at(x, from) * kept);
            add(to_x, from, at(grad, to) * std::conj(kept));
            const Number g = at(grad, to) * std::conj(at(x, from));
            add(to_weight, by, {g.real() * re, g.imag() * im});
          }
  vk::SpectralMultiply a{};
  a.x = spectrum(x.data(), in, h, w), a.out = spectrum(result.data(), out, oh, ow);
  a.weight = weight.data(), a.mask = masked ? mask.data() : nullptr;
  a.grad_x = grad_x.data(), a.grad_weight = grad_weight.data();
  a.batch = batch, a.in = in, a.channels = out, a.rows = rows, a.columns = columns;
  a.element = selftest::ElementOf<T>::value;
  VK_CPU_CALL(spectral_multiply, a);
  VK_EXPECT(selftest::relative_error(result, expected) <= selftest::rounding<T>());
  a.out.data = grad.data();
  VK_CPU_CALL(spectral_multiply_backward, a);
  VK_EXPECT(selftest::relative_error(grad_x, to_x) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(grad_weight, to_weight) <= selftest::rounding<T>());
}

template <class T>
void check_all() {
  for (bool masked : {false, true}) {
    check<T>(2, 2, 3, 3, 2, 4, 3, 5, 4, masked);
    check<T>(5, 7, 37, 5, 4, 8, 5, 13, 9, masked);
    check<T>(1, 16, 40, 6, 3, 6, 3, 6, 3, masked);
    check<T>(7, 3, 8, 1, 1, 1, 1, 2, 2, masked);
    check<T>(0, 3, 8, 2, 2, 4, 4, 4, 4, masked);
  }
}

}  // namespace

VK_SELFTEST(spectral_multiply_equals_plain_loops) {
  check_all<float>();
  check_all<vk::bf16>();
  check_all<vk::f16>();
}
