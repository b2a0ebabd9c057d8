#include <numeric>
#include <utility>

#include "ops/scatter_tokens/scatter_tokens.h"
#include "selftest.h"

namespace {

using selftest::number;

struct Sizes {
  int64_t batch, length, count, dim;
};
constexpr Sizes kSizes[] = {{2, 5, 3, 3}, {3, 67, 17, 37}, {2, 64, 64, 16}, {1, 9, 0, 4}, {4, 197, 40, 192}};

/// Distinct rows for each sample.
std::vector<int32_t> shuffled_index(const Sizes& s, uint64_t seed) {
  selftest::Random random(seed);
  std::vector<int32_t> index, order(size_t(s.length));
  for (int64_t b = 0; b < s.batch; ++b) {
    std::iota(order.begin(), order.end(), 0);
    for (int64_t k = 0; k < s.count; ++k) {
      std::swap(order[size_t(k)], order[size_t(k + random.below(int32_t(s.length - k)))]);
      index.push_back(order[size_t(k)]);
    }
  }
  return index;
}

/// sources[b, n]: the row of sample b that lands on token n, or -1.
std::vector<int64_t> sources_of(const Sizes& s, const std::vector<int32_t>& index) {
  std::vector<int64_t> sources(size_t(s.batch * s.length), -1);
  for (int64_t i = 0; i < s.batch * s.count; ++i) sources[size_t(i / s.count * s.length + index[size_t(i)])] = i;
  return sources;
}

template <class T>
void forward(bool with_position) {
  for (const Sizes& s : kSizes) {
    const auto visible = selftest::random_elements<T>(size_t(s.batch * s.count * s.dim), 1);
    const auto mask_token = selftest::random_elements<T>(size_t(s.dim), 2);
    const auto position = selftest::random_elements<T>(size_t(s.length * s.dim), 3);
    const auto index = shuffled_index(s, 4);
    const auto sources = sources_of(s, index);
    std::vector<T> out(size_t(s.batch * s.length * s.dim), selftest::element<T>(7));
    std::vector<double> expected(out.size());
    for (size_t i = 0; i < sources.size(); ++i)
      for (size_t d = 0; d < size_t(s.dim); ++d) {
        const T& x = sources[i] < 0 ? mask_token[d] : visible[size_t(sources[i] * s.dim) + d];
        const double p = with_position ? number(position[i % size_t(s.length) * size_t(s.dim) + d]) : 0;
        expected[i * size_t(s.dim) + d] = number(x) + p;
      }
    std::vector<int32_t> scratch(size_t(s.batch * s.length));
    vk::ScatterTokens a{};
    a.visible = visible.data(), a.index = index.data(), a.mask_token = mask_token.data();
    a.position = with_position ? position.data() : nullptr;
    a.out = out.data(), a.sources = scratch.data();
    a.batch = s.batch, a.length = s.length, a.count = s.count, a.dim = s.dim;
    a.element = a.parameter = selftest::ElementOf<T>::value;
    VK_CPU_CALL(scatter_tokens, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(out, expected) <= selftest::rounding<T>());
  }
}

template <class T>
void backward() {
  using Sum = decltype(vk::to_float(T{}));
  for (const Sizes& s : kSizes) {
    const size_t dim = size_t(s.dim), length = size_t(s.length);
    const auto grad_out = selftest::random_elements<T>(size_t(s.batch) * length * dim, 5);
    const auto index = shuffled_index(s, 6);
    const auto sources = sources_of(s, index);
    std::vector<T> grad_visible(size_t(s.batch * s.count) * dim), grad_mask_token(dim), grad_position(length * dim);
    std::vector<double> visible(grad_visible.size()), mask_token(dim), position(length * dim);
    for (size_t i = 0; i < sources.size(); ++i)
      for (size_t d = 0; d < dim; ++d) {
        const double g = number(grad_out[i * dim + d]);
        position[i % length * dim + d] += g;
        (sources[i] < 0 ? mask_token[d] : visible[size_t(sources[i]) * dim + d]) += g;
      }
    std::vector<int32_t> scratch(size_t(s.batch * s.length));
    vk::ScatterTokensBackward a{};
    a.batch = s.batch, a.length = s.length, a.count = s.count, a.dim = s.dim;
    std::vector<Sum> partial(size_t(a.tiles()) * dim);
    a.grad_out = grad_out.data(), a.index = index.data();
    a.grad_visible = grad_visible.data(), a.grad_mask_token = grad_mask_token.data();
    a.grad_position = grad_position.data(), a.sources = scratch.data(), a.partial = partial.data();
    a.element = a.parameter = selftest::ElementOf<T>::value;
    VK_CPU_CALL(scatter_tokens_backward, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(grad_visible, visible) == 0);
    VK_EXPECT(selftest::relative_error(grad_mask_token, mask_token) <= selftest::rounding<T>());
    VK_EXPECT(selftest::relative_error(grad_position, position) <= selftest::rounding<T>());
  }
}

}  // namespace

VK_SELFTEST(scatter_tokens_places_rows) {
  for (bool with_position : {false, true}) {
    forward<float>(with_position);
    forward<double>(with_position);
    forward<vk::f16>(with_position);
    forward<vk::bf16>(with_position);
  }
}

VK_SELFTEST(scatter_tokens_backward_sums) {
  backward<float>();
  backward<double>();
  backward<vk::f16>();
  backward<vk::bf16>();
}

VK_SELFTEST(scatter_tokens_reports_bad_and_repeated_indices) {
  const float visible[6] = {}, mask_token[2] = {};
  float out[8];
  int32_t scratch[4];
  for (int32_t bad : {4, -1, 2}) {  // 2 is named twice
    const int32_t index[3] = {0, 2, bad};
    vk::ScatterTokens a{};
    a.visible = visible, a.index = index, a.mask_token = mask_token, a.out = out, a.sources = scratch;
    a.batch = 1, a.length = 4, a.count = 3, a.dim = 2;
    a.element = a.parameter = vk::Element::f32;
    VK_CPU_CALL(scatter_tokens, a);
    VK_EXPECT(a.bad == 2);
  }
}
