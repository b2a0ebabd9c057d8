#include "ops/cluster_sums/cluster_sums.h"
#include "selftest.h"

namespace {

using selftest::Random;

struct Sizes {
  int64_t length, dim, clusters, used;
};
constexpr Sizes kSizes[] = {{7, 3, 3, 3},    {1009, 37, 61, 61}, {1301, 64, 11, 11}, {2001, 67, 5, 1},
                            {63, 5, 900, 9}, {0, 5, 3, 3},       {9, 0, 3, 3},       {20000, 16, 7, 7}};

std::vector<int64_t> random_index(const Sizes& s) {
  Random random(5);
  std::vector<int64_t> index(size_t(s.length));
  for (int64_t& c : index) c = random.below(int32_t(s.used + 1)) - 1;
  return index;
}

template <class T, class Sum>
vk::ClusterSums arguments(const Sizes& s, const std::vector<T>& points, const std::vector<int64_t>& index,
                          std::vector<Sum>& sums, std::vector<Sum>& counts) {
  vk::ClusterSums a{};
  a.points = points.data();
  a.index = index.data();
  a.sums = sums.data();
  a.counts = counts.data();
  a.length = s.length;
  a.clusters = s.clusters;
  a.dim = s.dim;
  a.element = selftest::ElementOf<T>::value;
  return a;
}

template <class T>
void sums() {
  using Sum = decltype(vk::to_float(T{}));
  for (const Sizes& s : kSizes) {
    const auto points = selftest::random_elements<T>(size_t(s.length * s.dim), 3);
    const auto index = random_index(s);
    std::vector<Sum> sums(size_t(s.clusters * s.dim), Sum(7)), counts(size_t(s.clusters), Sum(7));
    std::vector<double> expected(sums.size()), expected_counts(counts.size());
    for (int64_t i = 0; i < s.length; ++i) {
      const int64_t c = index[size_t(i)];
      if (c < 0) continue;
      expected_counts[size_t(c)] += 1;
      for (int64_t d = 0; d < s.dim; ++d)
        expected[size_t(c * s.dim + d)] += selftest::number(points[size_t(i * s.dim + d)]);
    }
    vk::ClusterSums a = arguments(s, points, index, sums, counts);
    VK_CPU_CALL(cluster_sums, a);
    VK_EXPECT(a.bad == -1);
    VK_EXPECT(selftest::relative_error(sums, expected) <= selftest::rounding<Sum>());
    VK_EXPECT(selftest::relative_error(counts, expected_counts) == 0);
  }
}

}  // namespace

VK_SELFTEST(cluster_sums_adds_rows) {
  sums<float>();
  sums<double>();
  sums<vk::f16>();
  sums<vk::bf16>();
}

VK_SELFTEST(cluster_sums_adds_members_in_order_in_blocks) {
  const Sizes s{1000, 33, 1, 1};
  const auto points = selftest::random_elements<float>(size_t(s.length * s.dim), 9);
  const std::vector<int64_t> index(size_t(s.length), 0);
  std::vector<float> sums(size_t(s.dim)), counts(1), expected(size_t(s.dim));
  for (int64_t d = 0; d < s.dim; ++d) {
    float total = 0;
    for (int64_t from = 0; from < s.length; from += vk::kClusterBlock) {
      float block = 0;
      for (int64_t i = from; i < s.length && i < from + vk::kClusterBlock; ++i) block += points[size_t(i * s.dim + d)];
      total = from == 0 ? block : total + block;
    }
    expected[size_t(d)] = total;
  }
  vk::ClusterSums a = arguments(s, points, index, sums, counts);
  VK_CPU_CALL(cluster_sums, a);
  VK_EXPECT(selftest::same_bits(sums, expected));
}

VK_SELFTEST(cluster_sums_reports_the_first_bad_index) {
  const std::vector<float> points(6);
  for (int64_t bad : {int64_t(3), int64_t(-2), INT64_MAX, INT64_MIN}) {
    const std::vector<int64_t> index{-1, bad, bad};
    std::vector<float> sums(6), counts(3);
    vk::ClusterSums a = arguments<float, float>({3, 2, 3, 3}, points, index, sums, counts);
    VK_CPU_CALL(cluster_sums, a);
    VK_EXPECT(a.bad == 1);
  }
}
