#include "ops/motion_eval/motion_eval.h"
#include "selftest.h"

namespace {

struct Sizes {
  int64_t count, terms, dim, moments, width;
};
constexpr Sizes kSizes[] = {{1, 12, 3, 1, 12}, {67, 12, 7, 5, 12}, {130, 9, 3, 4, 4},
                            {64, 4, 1, 3, 4},  {0, 12, 3, 2, 12},  {5, 6, 3, 0, 4}};

template <class T>
struct Curves {
  std::vector<T> coefficients, value, slope, grad_out;
  std::vector<int32_t> first;

  explicit Curves(const Sizes& s) {
    coefficients = selftest::random_elements<T>(size_t(s.count * s.terms * s.dim), 1);
    value = selftest::random_elements<T>(size_t(s.moments * s.width), 2);
    slope = selftest::random_elements<T>(size_t(s.moments * s.width), 3);
    grad_out = selftest::random_elements<T>(size_t(s.moments * s.count * s.dim), 4);
    selftest::Random random(5);
    for (int64_t t = 0; t < s.moments; ++t) first.push_back(random.below(int32_t(s.terms - s.width + 1)));
  }
};

template <class T>
void both_ways() {
  for (const Sizes& s : kSizes) {
    const Curves<T> c(s);
    std::vector<T> out(c.grad_out.size()), grad(c.coefficients.size()), grad_times(size_t(s.moments));
    std::vector<double> partial(size_t((s.count + vk::kMotionBlock - 1) / vk::kMotionBlock * s.moments));
    std::vector<double> out_sum(out.size()), grad_sum(grad.size()), times_sum(grad_times.size());
    for (int64_t t = 0; t < s.moments; ++t)
      for (int64_t n = 0; n < s.count; ++n)
        for (int64_t d = 0; d < s.dim; ++d)
          for (int64_t k = 0; k < s.width; ++k) {
            const size_t from = size_t((n * s.terms + c.first[size_t(t)] + k) * s.dim + d);
            const size_t to = size_t((t * s.count + n) * s.dim + d), basis = size_t(t * s.width + k);
            out_sum[to] += double(c.value[basis]) * double(c.coefficients[from]);
            grad_sum[from] += double(c.value[basis]) * double(c.grad_out[to]);
            times_sum[size_t(t)] += double(c.slope[basis]) * double(c.coefficients[from]) * double(c.grad_out[to]);
          }
    const vk::MotionEval a{c.coefficients.data(),
                           c.value.data(),
                           c.first.data(),
                           out.data(),
                           s.count,
                           s.terms,
                           s.dim,
                           s.moments,
                           s.width,
                           selftest::ElementOf<T>::value};
    VK_CPU_CALL(motion_eval, a);
    const vk::MotionEvalBackward b{c.grad_out.data(),
                                   c.coefficients.data(),
                                   c.value.data(),
                                   c.slope.data(),
                                   c.first.data(),
                                   grad.data(),
                                   grad_times.data(),
                                   partial.data(),
                                   s.count,
                                   s.terms,
                                   s.dim,
                                   s.moments,
                                   s.width,
                                   selftest::ElementOf<T>::value};
    VK_CPU_CALL(motion_eval_backward, b);
    VK_EXPECT(selftest::relative_error(out, out_sum) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(grad, grad_sum) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(grad_times, times_sum) <= 5 * selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(motion_eval_agrees_with_plain_loops) {
  both_ways<float>();
  both_ways<double>();
}
