#include "ops/upsample_conv/upsample_conv.h"
#include "selftest.h"

namespace {

using selftest::Random;
using vk::Activation;

struct Shape {
  int64_t batch, height, width, in, out, kh, kw, scale;
  Activation activation;
};
// Odd and even channels, more rows than a strip, images narrower than a tile, every activation, no shuffle, a point.
constexpr Shape kShapes[] = {
    {1, 2, 3, 1, 1, 1, 1, 1, Activation::none},    {2, 5, 19, 7, 3, 3, 3, 3, Activation::gelu},
    {1, 9, 41, 16, 12, 3, 3, 2, Activation::sine}, {2, 2, 4, 33, 5, 3, 3, 5, Activation::gelu},
    {1, 6, 7, 9, 17, 1, 5, 1, Activation::relu},   {1, 40, 70, 12, 3, 3, 3, 1, Activation::none},
    {0, 4, 4, 2, 2, 3, 3, 2, Activation::gelu}};

double value(Activation a, double z) {
  return a == Activation::gelu   ? 0.5 * z * std::erfc(-z * std::sqrt(0.5))
         : a == Activation::sine ? std::sin(z)
         : a == Activation::relu ? (z > 0 ? z : 0)
                                 : z;
}
double slope(Activation a, double z) {
  return a == Activation::gelu ? 0.5 * std::erfc(-z * std::sqrt(0.5)) + z * std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI)
         : a == Activation::sine ? std::cos(z)
         : a == Activation::relu ? double(z > 0)
                                 : 1;
}

/// Calls f(place in the output, place in x, place in the weight, filter) for every product of the convolution.
template <class F>
void each_product(const Shape& s, F f) {
  const int64_t filters = s.out * s.scale * s.scale;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t y = 0; y < s.height; ++y)
      for (int64_t x = 0; x < s.width; ++x)
        for (int64_t o = 0; o < filters; ++o) {
          const int64_t c = o / (s.scale * s.scale), dy = o / s.scale % s.scale, dx = o % s.scale;
          const int64_t to = (((b * s.height + y) * s.scale + dy) * s.width * s.scale + x * s.scale + dx) * s.out + c;
          for (int64_t ky = 0; ky < s.kh; ++ky)
            for (int64_t kx = 0; kx < s.kw; ++kx) {
              const int64_t yy = y + ky - s.kh / 2, xx = x + kx - s.kw / 2;
              if (yy < 0 || yy >= s.height || xx < 0 || xx >= s.width) continue;
              for (int64_t i = 0; i < s.in; ++i)
                f(size_t(to), size_t(((b * s.height + yy) * s.width + xx) * s.in + i),
                  size_t(((o * s.in + i) * s.kh + ky) * s.kw + kx), size_t(o));
            }
        }
}

/// Pictures squashed and not, cut and weighted, against plain loops over z (before the activation).
template <class T, class W>
void check_loss(const Shape& s, vk::UpsampleConvSizes sizes, const std::vector<T>& x, const std::vector<W>& weight,
                const std::vector<W>& bias, const std::vector<double>& z) {
  sizes.activation = Activation::none;
  const int64_t height = s.height * s.scale, width = s.width * s.scale;
  for (const bool squash : {false, true}) {
    const int64_t rows = squash ? height - 1 : height, columns = squash ? width : width - width / 3;
    std::vector<uint8_t> target(size_t(s.batch * rows * columns * s.out));
    std::vector<float> share(size_t(s.batch * rows * columns));
    Random random(5);
    for (uint8_t& t : target) t = uint8_t(random.uniform(0, 255.9f));
    for (float& v : share) v = random.uniform(0, 1) / float(share.size());
    std::vector<double> grad(z.size());
    double expected = 0;
    for (int64_t b = 0; b < s.batch; ++b)
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t u = 0; u < columns; ++u)
          for (int64_t c = 0; c < s.out; ++c) {
            const size_t at = size_t(((b * height + y) * width + u) * s.out + c);
            const size_t pixel = size_t((b * rows + y) * columns + u);
            const double w = squash ? double(share[pixel]) : 1.0 / double(target.size());
            const double picture = squash ? 0.5 * std::tanh(z[at]) + 0.5 : z[at];
            const double d = picture - target[pixel * size_t(s.out) + size_t(c)] / 255.0;
            expected += w * (0.25 * std::fabs(d) + 0.75 * d * d);
            grad[at] =
                w * ((d > 0 ? 0.25 : -0.25) + 1.5 * d) * (squash ? 0.5 * (1 - std::pow(std::tanh(z[at]), 2)) : 1);
          }
    float loss = -1;
    std::vector<T> got(z.size(), selftest::element<T>(7));
    const vk::UpsampleConvLoss a{
        sizes,      x.data(), weight.data(), bias.data(), target.data(), squash ? share.data() : nullptr,
        rows,       columns,  0.25f,         0.75f,       squash,        &loss,
        got.data(), nullptr};
    VK_CPU_CALL(upsample_conv_loss, a);
    VK_EXPECT(std::fabs(double(loss) - expected) <= 2e-6 * (expected + 1e-30));
    VK_EXPECT(selftest::relative_error(got, grad) <= 2 * selftest::rounding<T>());
  }
}

template <class T, class W>
void check(bool without_tiles) {
  for (const Shape& s : kShapes) {
    const int64_t filters = s.out * s.scale * s.scale, pixels = s.batch * s.height * s.width;
    const float reach = 1 / std::sqrt(float(s.in * s.kh * s.kw));
    const auto x = selftest::random_elements<T>(size_t(pixels * s.in), 1, -2, 2);
    const auto weight = selftest::random_elements<W>(size_t(filters * s.in * s.kh * s.kw), 2, -reach, reach);
    const auto bias = selftest::random_elements<W>(size_t(filters), 3);
    const auto grad = selftest::random_elements<T>(size_t(pixels * filters), 4);
    const auto number = [](auto v) { return selftest::number(selftest::element<T>(selftest::number(v))); };

    std::vector<double> z(grad.size());
    for (int64_t p = 0; p < int64_t(z.size()); ++p) {
      const int64_t c = p % s.out, column = p / s.out % (s.width * s.scale), row = p / s.out / (s.width * s.scale);
      z[size_t(p)] = selftest::number(bias[size_t((c * s.scale + row % s.scale) * s.scale + column % s.scale)]);
    }
    each_product(
        s, [&](size_t to, size_t from, size_t w, size_t) { z[to] += selftest::number(x[from]) * number(weight[w]); });
    std::vector<double> out(z.size()), derivative(z.size()), grad_x(x.size()), grad_weight(weight.size()),
        grad_bias(bias.size());
    for (size_t p = 0; p < z.size(); ++p) out[p] = value(s.activation, z[p]), derivative[p] = slope(s.activation, z[p]);
    const vk::UpsampleConvSizes sizes{s.batch,
                                      s.height,
                                      s.width,
                                      s.in,
                                      s.out,
                                      s.kh,
                                      s.kw,
                                      s.scale,
                                      s.activation,
                                      selftest::ElementOf<T>::value,
                                      selftest::ElementOf<W>::value,
                                      without_tiles};
    std::vector<T> got(grad.size(), selftest::element<T>(7)), got_derivative(got);
    const vk::UpsampleConv a{sizes, x.data(), weight.data(), bias.data(), got.data(), got_derivative.data(), nullptr};
    VK_CPU_CALL(upsample_conv, a);
    VK_EXPECT(selftest::relative_error(got, out) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(got_derivative, derivative) <= selftest::rounding<T>());

    if constexpr (!std::is_same_v<T, vk::f16>) check_loss(s, sizes, x, weight, bias, z);
    std::vector<bool> counted(grad.size());
    each_product(s, [&](size_t to, size_t from, size_t w, size_t o) {
      double dz = selftest::number(grad[to]);
      if (s.activation != Activation::none) dz *= selftest::number(got_derivative[to]);
      grad_x[from] += dz * number(weight[w]);
      grad_weight[w] += dz * selftest::number(x[from]);
      if (!counted[to]) grad_bias[o] += dz;
      counted[to] = true;
    });
    std::vector<T> got_x(x.size(), selftest::element<T>(7));
    std::vector<W> got_weight(weight.size(), selftest::element<W>(7)), got_bias(bias.size(), selftest::element<W>(7));
    const vk::UpsampleConvBackward back{sizes,
                                        grad.data(),
                                        s.activation == Activation::none ? nullptr : got_derivative.data(),
                                        x.data(),
                                        weight.data(),
                                        got_x.data(),
                                        got_weight.data(),
                                        got_bias.data(),
                                        nullptr};
    VK_CPU_CALL(upsample_conv_backward, back);
    VK_EXPECT(selftest::relative_error(got_x, grad_x) <= 4 * selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(got_weight, grad_weight) <= 4 * selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(got_bias, grad_bias) <= 4 * selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(upsample_conv_in_float32) { check<float, float>(false); }
VK_SELFTEST(upsample_conv_in_float16) { check<vk::f16, vk::f16>(false); }
VK_SELFTEST(upsample_conv_in_bfloat16) {
  check<vk::bf16, vk::bf16>(false);
  check<vk::bf16, float>(false);
}
VK_SELFTEST(upsample_conv_in_bfloat16_without_the_matrix_unit) { check<vk::bf16, float>(true); }
