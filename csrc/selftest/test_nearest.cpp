#include <algorithm>
#include <limits>

#include "ops/nearest/nearest.h"
#include "selftest.h"

namespace {

using Metric = vk::NearestMetric;
using Candidates = vk::NearestCandidates;
using Screen = vk::NearestScreen;

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Sizes {
  int64_t batch, count, code_batch, length, dim;
  int k;
};
const Sizes kSizes[] = {{1, 1, 1, 1, 1, 1},      {2, 67, 2, 45, 3, 1},   {1, 150, 1, 310, 40, 1},
                        {2, 33, 1, 131, 17, 5},  {1, 70, 1, 5000, 9, 2}, {1, 40, 1, 200, 33, 32},
                        {1, 20, 1, 2100, 130, 3}};

struct Result {
  std::vector<int64_t> index;
  std::vector<float> value;
};

template <class T>
Result run(const Sizes& s, const std::vector<T>& points, const std::vector<T>& codes, Metric metric,
           Candidates candidates, Screen screen, int64_t gap = 0) {
  const size_t n = size_t(s.batch * s.count * s.k);
  Result r{std::vector<int64_t>(n, 77), std::vector<float>(n, 77)};
  vk::Nearest a{};
  a.points = points.data(), a.codes = codes.data();
  a.index = r.index.data(), a.value = r.value.data();
  a.batch = s.batch, a.count = s.count, a.dim = s.dim;
  a.code_batch = s.code_batch, a.length = s.length;
  a.point_stride = a.code_stride = s.dim + gap;
  a.point_batch_stride = s.count * a.point_stride, a.code_batch_stride = s.length * a.code_stride;
  a.k = s.k, a.metric = metric, a.candidates = candidates, a.screen = screen;
  a.element = selftest::ElementOf<T>::value;
  VK_CPU_CALL(nearest, a);
  return r;
}

double similarity(Metric metric, const std::vector<double>& x, const std::vector<double>& c) {
  double distance = 0, product = 0, xx = 0, cc = 0;
  for (size_t d = 0; d < x.size(); ++d) {
    distance += (x[d] - c[d]) * (x[d] - c[d]);
    product += x[d] * c[d], xx += x[d] * x[d], cc += c[d] * c[d];
  }
  if (metric == Metric::l2) return distance;
  if (metric == Metric::ip) return -product;
  return xx > 0 && cc > 0 ? -product / std::sqrt(xx * cc) : 0;
}

/// Every rank's value against plain loops in double, and the value of the code that was named.
template <class T>
void check(const Sizes& s, Metric metric, Candidates candidates, Screen screen, float offset) {
  const int64_t gap = 3;
  const auto points =
      selftest::random_elements<T>(size_t(s.batch * s.count * (s.dim + gap)), 1, offset - 1, offset + 1);
  auto codes =
      candidates == Candidates::all
          ? selftest::random_elements<T>(size_t(s.code_batch * s.length * (s.dim + gap)), 2, offset - 1, offset + 1)
          : points;
  const Result got = run(s, points, codes, metric, candidates, screen, gap);
  const auto row = [&](const std::vector<T>& from, int64_t r) {
    std::vector<double> out;
    for (int64_t d = 0; d < s.dim; ++d) out.push_back(selftest::number(from[size_t(r * (s.dim + gap) + d)]));
    return out;
  };
  double worst = 0, scale = 1e-30;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t i = 0; i < s.count; ++i) {
      const auto x = row(points, b * s.count + i);
      std::vector<double> all;
      for (int64_t j = 0; j < s.length; ++j) {
        if (candidates == Candidates::others && j == i) continue;
        if (candidates == Candidates::before && j >= i) continue;
        all.push_back(similarity(metric, x, row(codes, (s.code_batch > 1 ? b : 0) * s.length + j)));
      }
      std::sort(all.begin(), all.end());
      for (int r = 0; r < s.k; ++r) {
        const size_t at = size_t((b * s.count + i) * s.k + r);
        const double value = metric == Metric::l2 ? got.value[at] : -double(got.value[at]);
        if (size_t(r) >= all.size()) {
          VK_EXPECT(got.index[at] == -1 && value == double(kInf));
          continue;
        }
        const int64_t j = got.index[at];
        const bool allowed = j >= 0 && j < s.length && (candidates != Candidates::others || j != i) &&
                             (candidates != Candidates::before || j < i);
        VK_EXPECT(allowed);
        if (!allowed) continue;
        const double named = similarity(metric, x, row(codes, (s.code_batch > 1 ? b : 0) * s.length + j));
        worst = std::max({worst, std::fabs(value - all[size_t(r)]), std::fabs(value - named)});
        scale = std::max(scale, std::fabs(all[size_t(r)]));
      }
    }
  VK_EXPECT(worst <= 4e-6 * scale);
}

template <class T>
void check_all() {
  for (const Sizes& s : kSizes)
    for (Metric metric : {Metric::l2, Metric::ip, Metric::cosine})
      for (Screen screen : {Screen::none, Screen::best, Screen::dot})
        for (float offset : {0.0f, 10.0f}) check<T>(s, metric, Candidates::all, screen, offset);
}

}  // namespace

VK_SELFTEST(nearest_finds_the_best_codes) {
  check_all<float>();
  check_all<vk::f16>();
  check_all<vk::bf16>();
}

VK_SELFTEST(nearest_leaves_out_itself_or_what_comes_later) {
  for (const Sizes& s : {Sizes{2, 1, 2, 1, 4, 1}, Sizes{1, 147, 1, 147, 19, 1}, Sizes{2, 200, 2, 200, 6, 4},
                         Sizes{2, 210, 2, 210, 131, 1}, Sizes{1, 330, 1, 330, 160, 5}})
    for (Candidates candidates : {Candidates::others, Candidates::before})
      for (Screen screen : {Screen::none, Screen::best, Screen::dot}) {
        check<float>(s, Metric::l2, candidates, screen, 0);
        check<float>(s, Metric::cosine, candidates, screen, 0);
      }
}

VK_SELFTEST(nearest_screens_leave_the_bits_alone) {
  for (const Sizes& s : {Sizes{1, 203, 1, 4500, 36, 3}, Sizes{1, 103, 1, 2100, 140, 3}})
    for (float spread : {1.0f, 1e-3f}) {  // the second: codes far closer to each other than bf16 can tell
      const auto points = selftest::random_elements<float>(size_t(s.count * s.dim), 5, 3 - spread, 3 + spread);
      const auto codes = selftest::random_elements<float>(size_t(s.length * s.dim), 6, 3 - spread, 3 + spread);
      for (Metric metric : {Metric::l2, Metric::ip, Metric::cosine}) {
        const Result plain = run(s, points, codes, metric, Candidates::all, Screen::none);
        for (Screen screen : {Screen::best, Screen::dot}) {
          const Result other = run(s, points, codes, metric, Candidates::all, screen);
          VK_EXPECT(other.index == plain.index);
          VK_EXPECT(selftest::same_bits(other.value, plain.value));
        }
      }
    }
}

VK_SELFTEST(nearest_measures_long_lists_of_candidates) {
  // 150 of 2100 codes are copies of one row or next to it, and every point is near that row: more candidates than are
  // kept waiting, too few for float32 tiles, found in an order that is not that of the codes.
  const Sizes s{1, 50, 1, 2100, 131, 5};
  auto codes = selftest::random_elements<float>(size_t(s.length * s.dim), 7, -1, 1);
  auto points = selftest::random_elements<float>(size_t(s.count * s.dim), 8, -1e-3f, 1e-3f);
  const int64_t place = 1000 * s.dim;
  for (int64_t j = 3; j < s.length; j += 14)
    for (int64_t d = 0; d < s.dim; ++d)
      codes[size_t(j * s.dim + d)] = codes[size_t(place + d)] + 1e-4f * float((j / 14) % 3);
  for (int64_t i = 0; i < s.count; ++i)
    for (int64_t d = 0; d < s.dim; ++d) points[size_t(i * s.dim + d)] += codes[size_t(place + d)];
  for (Metric metric : {Metric::l2, Metric::ip, Metric::cosine}) {
    const Result plain = run(s, points, codes, metric, Candidates::all, Screen::none);
    for (Screen screen : {Screen::best, Screen::dot}) {
      const Result other = run(s, points, codes, metric, Candidates::all, screen);
      VK_EXPECT(other.index == plain.index);
      VK_EXPECT(selftest::same_bits(other.value, plain.value));
    }
    if (metric == Metric::l2)
      for (int64_t i = 0; i < s.count; ++i) VK_EXPECT(plain.index[size_t(i * s.k)] < plain.index[size_t(i * s.k + 1)]);
  }
}

VK_SELFTEST(nearest_rules_for_ties_nan_and_infinity) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> points{0, 0, nan, 0}, codes{1, 0, nan, 0, 0, 1, kInf, 0, 5, 0};
  for (Screen screen : {Screen::none, Screen::best, Screen::dot}) {
    const Result r = run({1, 2, 1, 5, 2, 5}, points, codes, Metric::l2, Candidates::all, screen);
    const std::vector<int64_t> expected{0, 2, 4, 3, -1, -1, -1, -1, -1, -1};
    VK_EXPECT(r.index == expected);
    VK_EXPECT(r.value[0] == 1 && r.value[1] == 1 && r.value[2] == 25 && r.value[3] == kInf && r.value[4] == kInf);
    VK_EXPECT(r.value[5] != r.value[5]);
    const Result none = run({1, 2, 1, 0, 2, 1}, points, codes, Metric::ip, Candidates::all, screen);
    VK_EXPECT(none.index[0] == -1 && none.value[0] == -kInf);
    VK_EXPECT(none.index[1] == -1 && none.value[1] != none.value[1]);
  }
}
