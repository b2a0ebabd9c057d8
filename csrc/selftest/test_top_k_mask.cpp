#include <algorithm>
#include <numeric>

#include "ops/top_k_mask/top_k_mask.h"
#include "selftest.h"

namespace {

template <class T>
void check(std::vector<T> scores, int64_t count) {
  const size_t n = scores.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t(0));
  const auto magnitude = [&](size_t i) {
    const double x = std::fabs(selftest::number(scores[i]));
    return x == x ? x : HUGE_VAL * 2;
  };
  const auto nan = [&](size_t i) { return selftest::number(scores[i]) != selftest::number(scores[i]); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (nan(a) || nan(b)) return nan(a) && !nan(b);
    return magnitude(a) > magnitude(b);
  });
  std::vector<uint8_t> expected(n), mask(n, 7);
  for (int64_t k = 0; k < count; ++k) expected[order[size_t(k)]] = 1;
  vk::TopKMask a{scores.data(), mask.data(), nullptr, int64_t(n), count, selftest::ElementOf<T>::value};
  VK_CPU_CALL(top_k_mask, a);
  VK_EXPECT(selftest::same_bits(mask, expected));
}

template <class T>
void check_all() {
  for (size_t n : {size_t(1), size_t(15), size_t(1009), size_t(70001)})
    for (int64_t count : {int64_t(0), int64_t(1), int64_t(n / 3), int64_t(n)})
      check(selftest::random_elements<T>(n, n), count);
  check(std::vector<T>(), 0);
  std::vector<T> tied(50003);
  selftest::Random random(5);
  for (T& x : tied) x = selftest::element<T>(random.below(5) - 2);
  for (int64_t count : {1, 20011, 49999}) check(tied, count);
  tied[100] = selftest::element<T>(NAN);
  tied[7] = selftest::element<T>(-INFINITY);
  for (int64_t count : {1, 2, 3, 30000}) check(tied, count);
}

}  // namespace

VK_SELFTEST(top_k_mask_equals_a_stable_sort) {
  check_all<float>();
  check_all<vk::bf16>();
  check_all<vk::f16>();
}
