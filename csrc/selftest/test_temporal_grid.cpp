#include <algorithm>
#include <cmath>

#include "ops/temporal_grid/temporal_grid.h"
#include "selftest.h"

namespace {

struct Tap {
  int64_t at;
  double share;
};

/// The two neighbours of a position, the border repeated.
void taps(double p, int64_t count, Tap* out) {
  const double low = std::floor(p);
  const auto inside = [&](double i) { return int64_t(std::min(std::max(i, 0.0), double(count - 1))); };
  out[0] = {inside(low), 1 - (p - low)};
  out[1] = {inside(low + 1), p - low};
}

template <class T>
void check(std::vector<int64_t> lengths, int64_t channels, int64_t h, int64_t w, int64_t batch, int64_t scale,
           bool concat) {
  vk::TemporalGrid a{};
  a.batch = batch, a.height = h, a.width_cells = w, a.channels = channels, a.scale = scale;
  a.levels = int64_t(lengths.size()), a.concat = concat, a.element = selftest::ElementOf<T>::value;
  std::copy(lengths.begin(), lengths.end(), a.lengths);
  const auto grid = selftest::random_elements<T>(size_t(a.total() * h * w * channels), 1);
  const int64_t rows = h * scale, columns = w * scale, width = a.width();
  const auto grad = selftest::random_elements<T>(size_t(batch * rows * columns * width), 2);
  auto t = selftest::random_elements<double>(size_t(batch), 3, 0, 1);
  if (batch > 2) t[0] = 0, t[1] = 1;
  std::vector<T> out(grad.size()), grad_grid(grid.size());
  std::vector<double> expected(out.size()), to_grid(grid.size());
  int64_t first = 0;
  for (int64_t l = 0; l < a.levels; first += lengths[size_t(l++)])
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t x = 0; x < columns; ++x) {
          Tap tt[2], ty[2], tx[2];
          taps(t[size_t(b)] * double(lengths[size_t(l)] - 1), lengths[size_t(l)], tt);
          taps((double(y) + 0.5) / double(scale) - 0.5, h, ty);
          taps((double(x) + 0.5) / double(scale) - 0.5, w, tx);
          for (int64_t c = 0; c < channels; ++c)
            for (int k = 0; k < 8; ++k) {
              const Tap &i = tt[k / 4], &j = ty[k / 2 % 2], &m = tx[k % 2];
              const size_t from = size_t((((first + i.at) * h + j.at) * w + m.at) * channels + c);
              const size_t to = size_t(((b * rows + y) * columns + x) * width + (concat ? l * channels : 0) + c);
              expected[to] += i.share * j.share * m.share * selftest::number(grid[from]);
              to_grid[from] += i.share * j.share * m.share * selftest::number(grad[to]);
            }
        }
  a.grid = grid.data(), a.t = t.data(), a.out = out.data();
  VK_CPU_CALL(temporal_grid, a);
  VK_EXPECT(selftest::relative_error(out, expected) <= selftest::rounding<T>());
  a.grid = grad_grid.data(), a.out = grad.data();
  VK_CPU_CALL(temporal_grid_backward, a);
  VK_EXPECT(selftest::relative_error(grad_grid, to_grid) <= selftest::rounding<T>());
}

template <class T>
void check_all() {
  for (bool concat : {false, true}) {
    check<T>({3, 2}, 2, 2, 3, 2, 2, concat);
    check<T>({13, 7, 1}, 17, 5, 7, 5, 3, concat);
    check<T>({31}, 9, 1, 4, 3, 1, concat);
    check<T>({4, 6}, 3, 3, 2, 4, 7, concat);
    check<T>({4, 6}, 3, 3, 2, 0, 2, concat);
  }
}

}  // namespace

VK_SELFTEST(temporal_grid_equals_plain_loops) {
  check_all<float>();
  check_all<vk::bf16>();
  check_all<vk::f16>();
}
