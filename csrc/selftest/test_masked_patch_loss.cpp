#include "ops/masked_patch_loss/masked_patch_loss.h"
#include "selftest.h"

namespace {

using selftest::number;

struct Setup {
  int64_t batch, count, grid_t, grid_h, grid_w, pt, ph, pw, channels;
  int64_t pixels() const { return pt * ph * pw; }
  int64_t length() const { return grid_t * grid_h * grid_w; }
  int64_t frames() const { return grid_t * pt; }
  int64_t height() const { return grid_h * ph; }
  int64_t width() const { return grid_w * pw; }
};
constexpr Setup kSetups[] = {{2, 5, 2, 3, 3, 2, 16, 16, 3},
                             {2, 3, 2, 2, 3, 2, 3, 5, 3},
                             {1, 4, 3, 2, 2, 1, 4, 4, 1},
                             {1, 2, 1, 2, 2, 2, 8, 8, 4}};

/// Targets from the formula, in double, two passes: [count of all tubes, pixels * channels].
template <class V>
std::vector<double> targets(const Setup& s, const vk::MaskedPatchLoss& a, const std::vector<V>& video, double unit) {
  std::vector<double> out;
  const int64_t c_count = s.channels;
  for (int64_t i = 0; i < s.batch * s.count; ++i) {
    const int64_t b = i / s.count, n = a.index[i];
    const int64_t t0 = n / (s.grid_h * s.grid_w) * s.pt, y0 = n / s.grid_w % s.grid_h * s.ph, x0 = n % s.grid_w * s.pw;
    std::vector<double> x;
    for (int64_t t = 0; t < s.pt; ++t)
      for (int64_t y = 0; y < s.ph; ++y)
        for (int64_t w = 0; w < s.pw; ++w)
          for (int64_t c = 0; c < c_count; ++c) {
            const int64_t at = b * a.stride_b + (t0 + t) * a.stride_t + (y0 + y) * a.stride_h + (x0 + w) * a.stride_w;
            double v;
            if constexpr (sizeof(V) == 1)
              v = double(video[size_t(at + c * a.stride_c)]);
            else
              v = number(video[size_t(at + c * a.stride_c)]);
            x.push_back(a.scale ? v * a.scale[c] + a.shift[c] : v * unit);
          }
    const auto moments = [&](size_t first, size_t step, double& mean, double& variance) {
      double sum = 0, squares = 0, k = 0;
      for (size_t j = first; j < x.size(); j += step) sum += x[j], ++k;
      mean = sum / k;
      for (size_t j = first; j < x.size(); j += step) squares += (x[j] - mean) * (x[j] - mean);
      variance = squares / (k - 1);
    };
    std::vector<double> target(x.size());
    for (size_t c = 0; c < size_t(c_count); ++c) {
      double mean, variance;
      moments(a.joint ? 0 : c, a.joint ? 1 : size_t(c_count), mean, variance);
      const double divisor = a.joint ? std::sqrt(variance + 1e-6) : std::sqrt(variance) + 1e-6;
      for (size_t j = c; j < x.size(); j += size_t(c_count)) target[j] = (x[j] - mean) / divisor;
    }
    out.insert(out.end(), target.begin(), target.end());
  }
  return out;
}

template <class T, class V>
void check(const Setup& s, const std::vector<V>& video, bool channels_last, bool joint, const double* scale,
           const double* shift) {
  using Real = decltype(vk::to_float(T{}));
  vk::MaskedPatchLoss a{};
  a.batch = s.batch, a.count = s.count, a.grid_t = s.grid_t, a.grid_h = s.grid_h, a.grid_w = s.grid_w;
  a.pt = s.pt, a.ph = s.ph, a.pw = s.pw, a.channels = s.channels, a.joint = joint, a.scale = scale, a.shift = shift;
  if (channels_last) {
    a.stride_c = 1, a.stride_w = s.channels, a.stride_h = s.width() * s.channels;
    a.stride_t = s.height() * a.stride_h, a.stride_b = s.frames() * a.stride_t;
  } else {
    a.stride_w = 1, a.stride_h = s.width(), a.stride_t = s.height() * s.width();
    a.stride_c = s.frames() * a.stride_t, a.stride_b = s.channels * a.stride_c;
  }
  a.bytes = sizeof(V) == 1;
  if constexpr (sizeof(V) > 1) a.video_element = selftest::ElementOf<V>::value;
  a.pred_element = selftest::ElementOf<T>::value;

  const size_t n = size_t(s.batch * s.count * s.pixels() * s.channels);
  const auto pred = selftest::random_elements<T>(n, 5);
  selftest::Random random(6);
  std::vector<int32_t> index(size_t(s.batch * s.count));
  for (int32_t& i : index) i = random.below(int32_t(s.length()));
  std::vector<double> partial(index.size());
  std::vector<T> grad(n);
  Real loss = -1;
  const Real upstream = Real(0.75);
  a.pred = pred.data(), a.video = video.data(), a.index = index.data(), a.grad_loss = &upstream;
  a.loss = &loss, a.partial = partial.data(), a.grad = grad.data();
  VK_CPU_CALL(masked_patch_loss, a);
  VK_EXPECT(a.bad == -1);

  const auto target = targets(s, a, video, sizeof(V) == 1 ? 1 / 255.0 : 1.0);
  std::vector<double> expected(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    const double d = number(pred[i]) - target[i];
    sum += d * d;
    expected[i] = double(upstream) * 2 / double(n) * d;
  }
  const double tolerance = sizeof(Real) == 8 ? 1e-12 : 5e-6;
  VK_EXPECT(std::fabs(double(loss) - sum / double(n)) <= tolerance * sum / double(n));
  VK_EXPECT(selftest::relative_error(grad, expected) <= std::fmax(tolerance, selftest::rounding<T>()));
}

template <class T>
void every_setup() {
  const double scale[4] = {0.229, 0.224, 0.225, 0.2}, shift[4] = {0.485, 0.456, 0.406, 0.4};
  for (const Setup& s : kSetups) {
    const size_t n = size_t(s.batch * s.frames() * s.height() * s.width() * s.channels);
    selftest::Random random(9);
    std::vector<uint8_t> bytes(n);
    for (uint8_t& x : bytes) x = uint8_t(random.bits());
    const auto floats = selftest::random_elements<T>(n, 10, -2, 2);
    for (bool joint : {false, true}) {
      check<T>(s, bytes, true, joint, nullptr, nullptr);
      check<T>(s, floats, false, joint, nullptr, nullptr);
      check<T>(s, floats, false, joint, scale, shift);
    }
  }
}

}  // namespace

VK_SELFTEST(masked_patch_loss_f32) { every_setup<float>(); }
VK_SELFTEST(masked_patch_loss_f64) { every_setup<double>(); }
VK_SELFTEST(masked_patch_loss_f16) { every_setup<vk::f16>(); }
VK_SELFTEST(masked_patch_loss_bf16) { every_setup<vk::bf16>(); }
