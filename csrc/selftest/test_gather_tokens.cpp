#include "ops/gather_tokens/gather_tokens.h"
#include "selftest.h"

namespace {

using selftest::Random;

struct Sizes {
  int64_t batch, length, count, dim;
};
constexpr Sizes kSizes[] = {{2, 5, 3, 3}, {3, 63, 17, 37}, {2, 67, 31, 64},
                            {1, 9, 0, 4}, {0, 5, 2, 3},    {4, 197, 160, 192}};

std::vector<int32_t> random_index(const Sizes& s, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> index(size_t(s.batch * s.count));
  for (int32_t& n : index) n = random.below(int32_t(s.length));  // repeats on purpose
  return index;
}

template <class T>
void forward() {
  for (const Sizes& s : kSizes) {
    const auto tokens = selftest::random_elements<T>(size_t(s.batch * s.length * s.dim), 1);
    const auto index = random_index(s, 2);
    std::vector<T> out(size_t(s.batch * s.count * s.dim)), expected(out.size());
    for (int64_t i = 0; i < s.batch * s.count; ++i)
      for (int64_t d = 0; d < s.dim; ++d)
        expected[size_t(i * s.dim + d)] = tokens[size_t((i / s.count * s.length + index[size_t(i)]) * s.dim + d)];
    vk::GatherTokens a{
        tokens.data(), index.data(), out.data(), s.batch, s.length, s.count, s.dim * int64_t(sizeof(T)), 0};
    VK_CPU_CALL(gather_tokens, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::same_bits(out, expected));
  }
}

template <class T>
void backward() {
  for (const Sizes& s : kSizes) {
    const auto grad_out = selftest::random_elements<T>(size_t(s.batch * s.count * s.dim), 3);
    const auto index = random_index(s, 4);
    std::vector<T> grad(size_t(s.batch * s.length * s.dim), selftest::element<T>(7));
    std::vector<double> expected(grad.size());
    for (int64_t i = 0; i < s.batch * s.count; ++i)
      for (int64_t d = 0; d < s.dim; ++d)
        expected[size_t((i / s.count * s.length + index[size_t(i)]) * s.dim + d)] +=
            selftest::number(grad_out[size_t(i * s.dim + d)]);
    std::vector<int32_t> links(size_t(s.batch * (s.length + s.count)));
    vk::GatherTokensBackward a{grad_out.data(),
                               index.data(),
                               grad.data(),
                               links.data(),
                               s.batch,
                               s.length,
                               s.count,
                               s.dim,
                               selftest::ElementOf<T>::value,
                               0};
    VK_CPU_CALL(gather_tokens_backward, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(grad, expected) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(gather_tokens_copies_rows) {
  forward<float>();
  forward<double>();
  forward<vk::f16>();
  forward<vk::bf16>();
}

VK_SELFTEST(gather_tokens_backward_sums_rows) {
  backward<float>();
  backward<double>();
  backward<vk::f16>();
  backward<vk::bf16>();
}

VK_SELFTEST(gather_tokens_reports_the_first_bad_index) {
  const float tokens[6] = {};
  float out[3 * 2] = {};
  for (int32_t bad : {3, -1, 0x7fffffff}) {
    const int32_t index[3] = {2, bad, bad};
    vk::GatherTokens a{tokens, index, out, 1, 3, 3, 8, -1};
    VK_CPU_CALL(gather_tokens, a);
    VK_EXPECT(a.bad == 1);
  }
}
