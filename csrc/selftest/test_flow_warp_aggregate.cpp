#include <algorithm>
#include <cmath>

#include "ops/flow_warp_aggregate/flow_warp_aggregate.h"
#include "selftest.h"

namespace {

struct Place {
  int64_t low, high;
  double share, inside;
};

Place place(int64_t at, double flow, int64_t n) {
  const double p = double(at) + flow, low = std::floor(p);
  if (!(low >= 0)) return {0, 0, 0, 0};
  if (low >= double(n - 1)) return {n - 1, n - 1, 0, 0};
  return {int64_t(low), int64_t(low) + 1, p - low, 1};
}

template <class T>
void check(int64_t batch, int64_t neighbours, int64_t channels, int64_t h, int64_t w, float reach) {
  const int64_t pixels = h * w, planes = batch * neighbours;
  const auto features = selftest::random_elements<T>(size_t(planes * pixels * channels), 1);
  const auto grad = selftest::random_elements<T>(size_t(batch * pixels * channels), 2);
  const auto flows = selftest::random_elements<float>(size_t(planes * 2 * pixels), 3, -reach, reach);
  const auto logits = selftest::random_elements<float>(size_t(planes * pixels), 4, -2, 2);
  std::vector<double> expected(grad.size()), to_features(features.size()), to_flows(flows.size()),
      to_logits(logits.size());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t y = 0; y < h; ++y)
      for (int64_t x = 0; x < w; ++x) {
        std::vector<double> p(static_cast<size_t>(neighbours)), value(p.size());
        double total = 0, mean = 0;
        const auto plane = [&](int64_t k) { return size_t((b * neighbours + k) * pixels + y * w + x); };
        for (int64_t k = 0; k < neighbours; ++k) total += p[size_t(k)] = std::exp(double(logits[plane(k)]));
        for (int64_t k = 0; k < neighbours; ++k) {
          const size_t first = size_t((b * neighbours + k) * 2 * pixels + y * w + x);
          const Place px = place(x, flows[first], w), py = place(y, flows[first + size_t(pixels)], h);
          const double share = p[size_t(k)] /= total;
          for (int j = 0; j < 4; ++j) {
            const double wy = j / 2 ? py.share : 1 - py.share, wx = j % 2 ? px.share : 1 - px.share;
            const int64_t at = (j / 2 ? py.high : py.low) * w + (j % 2 ? px.high : px.low);
            for (int64_t c = 0; c < channels; ++c) {
              const size_t f = size_t(((b * neighbours + k) * pixels + at) * channels + c);
              const size_t o = size_t((b * pixels + y * w + x) * channels + c);
              const double v = selftest::number(features[f]), g = selftest::number(grad[o]);
              expected[o] += share * wx * wy * v;
              to_features[f] += share * wx * wy * g;
              value[size_t(k)] += wx * wy * v * g;
              to_flows[first] += share * (j % 2 ? 1 : -1) * px.inside * wy * v * g;
              to_flows[first + size_t(pixels)] += share * (j / 2 ? 1 : -1) * py.inside * wx * v * g;
            }
          }
          mean += share * value[size_t(k)];
        }
        for (int64_t k = 0; k < neighbours; ++k) to_logits[plane(k)] = p[size_t(k)] * (value[size_t(k)] - mean);
      }
  std::vector<T> out(grad.size()), grad_features(features.size());
  std::vector<float> grad_flows(flows.size()), grad_logits(logits.size());
  const vk::FlowWarp in{features.data(),
                        flows.data(),
                        logits.data(),
                        out.data(),
                        batch,
                        neighbours,
                        h,
                        w,
                        channels,
                        selftest::ElementOf<T>::value};
  VK_CPU_CALL(flow_warp_aggregate, in);
  VK_EXPECT(selftest::relative_error(out, expected) <= selftest::rounding<T>());
  vk::FlowWarpBackward back{};
  back.in = in;
  back.grad = grad.data(), back.grad_features = grad_features.data();
  back.grad_flows = grad_flows.data(), back.grad_logits = grad_logits.data();
  VK_CPU_CALL(flow_warp_aggregate_backward, back);
  VK_EXPECT(selftest::relative_error(grad_features, to_features) <= selftest::rounding<T>());
  VK_EXPECT(selftest::relative_error(grad_flows, to_flows) <= 4e-6);
  VK_EXPECT(selftest::relative_error(grad_logits, to_logits) <= 4e-6);
  const auto flows_before = grad_flows, logits_before = grad_logits;
  back.grad_features = nullptr;
  VK_CPU_CALL(flow_warp_aggregate_backward, back);
  VK_EXPECT(grad_flows == flows_before && grad_logits == logits_before);
}

template <class T>
void check_all() {
  check<T>(1, 2, 3, 7, 19, 2);
  check<T>(2, 3, 21, 5, 16, 4);
  check<T>(1, 1, 32, 3, 5, 100);
  check<T>(1, 16, 5, 2, 17, 1);
  check<T>(0, 2, 3, 4, 5, 1);
}

}  // namespace

VK_SELFTEST(flow_warp_aggregate_equals_plain_loops) {
  check_all<float>();
  check_all<vk::bf16>();
  check_all<vk::f16>();
}
