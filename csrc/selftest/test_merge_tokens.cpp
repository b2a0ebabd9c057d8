#include "ops/merge_tokens/merge_tokens.h"
#include "selftest.h"

namespace {

using selftest::Random;

struct Sizes {
  int64_t batch, length, count, dim;
};
// More places than tokens (empty ones), fewer (groups), one, none.
constexpr Sizes kSizes[] = {{2, 5, 3, 3}, {3, 63, 41, 37}, {2, 67, 7, 64}, {1, 9, 20, 8},     {2, 17, 1, 5},
                            {0, 5, 2, 3}, {2, 0, 0, 4},    {1, 6, 4, 0},   {4, 197, 160, 192}};

template <class T>
using SumOf = decltype(vk::to_float(T{}));

template <class T>
struct Inputs {
  std::vector<int32_t> source;
  std::vector<SumOf<T>> size;
  std::vector<SumOf<T>> total;

  Inputs(const Sizes& s, uint64_t seed) {
    Random random(seed);
    source.resize(size_t(s.batch * s.length));
    for (int32_t& m : source) m = random.below(int32_t(s.count));
    size.resize(source.size());
    for (auto& x : size) x = SumOf<T>(random.below(4));  // zeros, too
    total.resize(size_t(s.batch * s.count));
    for (size_t i = 0; i < source.size(); ++i) total[place(s, i)] += size[i];
  }
  size_t place(const Sizes& s, size_t i) const { return size_t(int64_t(i) / s.length * s.count + source[i]); }
  double share(const Sizes& s, size_t i) const {
    const double whole = double(total[place(s, i)]);
    return whole > 0 ? double(size[i]) / whole : 0;
  }
};

template <class T>
void forward() {
  for (const Sizes& s : kSizes) {
    const Inputs<T> in(s, 5);
    const auto tokens = selftest::random_elements<T>(size_t(s.batch * s.length * s.dim), 1);
    std::vector<T> merged(size_t(s.batch * s.count * s.dim), selftest::element<T>(7));
    std::vector<SumOf<T>> total(in.total.size(), 7);
    std::vector<double> expected(merged.size());
    for (size_t i = 0; i < in.source.size(); ++i)
      for (size_t d = 0; d < size_t(s.dim); ++d)
        expected[in.place(s, i) * size_t(s.dim) + d] +=
            in.share(s, i) * selftest::number(tokens[i * size_t(s.dim) + d]);
    vk::MergeTokens a{tokens.data(),
                      in.source.data(),
                      in.size.data(),
                      merged.data(),
                      total.data(),
                      s.batch,
                      s.length,
                      s.count,
                      s.dim,
                      selftest::ElementOf<T>::value,
                      0};
    VK_CPU_CALL(merge_tokens, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::same_bits(total, in.total));  // small integers: exact
    VK_EXPECT(selftest::relative_error(merged, expected) <= selftest::rounding<T>());
  }
}

template <class T>
void backward() {
  for (const Sizes& s : kSizes) {
    const Inputs<T> in(s, 6);
    const auto grad_merged = selftest::random_elements<T>(size_t(s.batch * s.count * s.dim), 2);
    std::vector<T> grad(size_t(s.batch * s.length * s.dim), selftest::element<T>(7));
    std::vector<double> expected(grad.size());
    for (size_t i = 0; i < in.source.size(); ++i)
      for (size_t d = 0; d < size_t(s.dim); ++d)
        expected[i * size_t(s.dim) + d] =
            in.share(s, i) * selftest::number(grad_merged[in.place(s, i) * size_t(s.dim) + d]);
    vk::MergeTokensBackward a{grad_merged.data(),
                              in.source.data(),
                              in.size.data(),
                              in.total.data(),
                              grad.data(),
                              s.batch,
                              s.length,
                              s.count,
                              s.dim,
                              selftest::ElementOf<T>::value,
                              0};
    VK_CPU_CALL(merge_tokens_backward, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(grad, expected) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(merge_tokens_averages_groups) {
  forward<float>();
  forward<double>();
  forward<vk::f16>();
  forward<vk::bf16>();
}

VK_SELFTEST(merge_tokens_backward_hands_out_shares) {
  backward<float>();
  backward<double>();
  backward<vk::f16>();
  backward<vk::bf16>();
}

VK_SELFTEST(merge_tokens_copies_single_tokens_and_counts_ones) {
  const float tokens[4 * 2] = {1, 2, 3, 4, 5, 6, 7, 8};
  const int32_t source[4] = {2, 0, 0, 1};
  float merged[3 * 2], total[3];
  vk::MergeTokens a{tokens, source, nullptr, merged, total, 1, 4, 3, 2, vk::Element::f32, 0};
  VK_CPU_CALL(merge_tokens, a);
  const float expected[3 * 2] = {4, 5, 7, 8, 1, 2};
  for (int i = 0; i < 6; ++i) VK_EXPECT(merged[i] == expected[i]);
  VK_EXPECT(total[0] == 2 && total[1] == 1 && total[2] == 1);
}

VK_SELFTEST(merge_tokens_reports_the_first_bad_source) {
  const float tokens[6] = {};
  float merged[3 * 2] = {}, total[3] = {};
  for (int32_t bad : {3, -1, 0x7fffffff}) {
    const int32_t source[3] = {2, bad, bad};
    vk::MergeTokens a{tokens, source, nullptr, merged, total, 1, 3, 3, 2, vk::Element::f32, -1};
    VK_CPU_CALL(merge_tokens, a);
    VK_EXPECT(a.bad == 1);
  }
}
