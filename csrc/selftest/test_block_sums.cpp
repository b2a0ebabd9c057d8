#include <algorithm>
#include <cmath>

#include "ops/block_sums/block_sums.h"
#include "selftest.h"

namespace {

/// block_sums.h in plain loops, in double.
std::vector<double> expected(const vk::BlockSums& a, int64_t rows, int64_t columns) {
  std::vector<double> out(size_t(3 * rows * columns)), pixels(size_t(rows * columns));
  const auto at = [&](double y, double x) {
    const int64_t row = std::min(std::max(int64_t(y), int64_t(0)), a.height - 1);
    const int64_t column = std::min(std::max(int64_t(x), int64_t(0)), a.width - 1);
    return double(a.after[row * a.width + column]);
  };
  for (int64_t y = 0; y < a.height; ++y)
    for (int64_t x = 0; x < a.width; ++x) {
      const int64_t block = y / a.side * columns + x / a.side;
      const double px = double(x) + double(a.vectors[block]),
                   py = double(y) + double(a.vectors[rows * columns + block]);
      const double x0 = std::floor(px), y0 = std::floor(py), fx = px - x0, fy = py - y0;
      const double seen = (1 - fy) * ((1 - fx) * at(y0, x0) + fx * at(y0, x0 + 1)) +
                          fy * ((1 - fx) * at(y0 + 1, x0) + fx * at(y0 + 1, x0 + 1));
      const int64_t i = y * a.width + x;
      const double off = double(a.before[i]) - seen;
      out[size_t(block)] += double(a.across[i]) * off;
      out[size_t(rows * columns + block)] += double(a.down[i]) * off;
      out[size_t(2 * rows * columns + block)] += std::fabs(off);
      pixels[size_t(block)] += 1;
    }
  for (size_t k = 0; k < out.size(); ++k) out[k] /= pixels[k % pixels.size()];
  return out;
}

void check(int64_t height, int64_t width, int64_t side, float far) {
  selftest::Random random(uint64_t(height * 1000 + width));
  const auto numbers = [&](int64_t count, float scale) {
    std::vector<float> out(size_t(count), 0.0f);
    for (float& x : out) x = scale * (float(random.below(2001)) / 1000.0f - 1.0f);
    return out;
  };
  const int64_t rows = (height + side - 1) / side, columns = (width + side - 1) / side;
  const auto before = numbers(height * width, 100), after = numbers(height * width, 100);
  const auto across = numbers(height * width, 1), down = numbers(height * width, 1);
  const auto vectors = numbers(2 * rows * columns, far);
  std::vector<float> out(size_t(3 * rows * columns), NAN);
  const vk::BlockSums a{before.data(), after.data(), across.data(), down.data(), vectors.data(),
                        out.data(),    height,       width,         side};
  VK_CPU_CALL(block_sums, a);
  const auto exact = expected(a, rows, columns);
  bool close = true;
  for (size_t k = 0; k < out.size(); ++k) close = close && std::fabs(double(out[k]) - exact[k]) < 2e-2;
  VK_EXPECT(close);
}

}  // namespace

VK_SELFTEST(block_sums_equal_plain_loops) {
  for (float far : {0.0f, 1.5f, 20.0f, 4000.0f}) {
    check(64, 96, 16, far);
    check(35, 51, 8, far);
    check(5, 3, 4, far);
    check(1, 1, 64, far);
  }
}
