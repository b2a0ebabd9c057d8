// Large matrices go one after the other, their columns shared out; the others go whole, whoever is free taking the
// next, the largest first. An element is a sum of one thread in one order, so neither choice shows in the result.
//
// Products go by panels of kPanel columns. The panel's part of the right factor, kDepth rows at a time, is copied into
// a run of its own (transposed for X X^T), and tiles of kTile rows sweep over it with their sums in registers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/newton_schulz/newton_schulz.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kLanes = 16;
#if defined(__AVX512F__)
constexpr int kTile = 8, kWide = 3;
#elif defined(__AVX2__)
constexpr int kTile = 4, kWide = 1;
#elif defined(__aarch64__)
constexpr int kTile = 4, kWide = 1;
#else
constexpr int kTile = 2, kWide = 1;
#endif
constexpr int kNarrower = kWide > 1 ? 2 : 1;
constexpr int64_t kPanel = kWide * kLanes;
constexpr int64_t kDepth = 128;
constexpr int64_t kRun = 1024;     // numbers that are summed together
constexpr int64_t kGrain = 16384;  // numbers that are worth a thread
constexpr double kLarge = 4e6;     // operations that are worth several threads

int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

struct Square {
  float* data;
  int64_t stride;
  float* row(int64_t i) const { return data + i * stride; }
};

/// C[rows x panel] (+)= A[rows x depth] * packed[depth x panel]
template <int kRows, int kColumns>
VK_INLINE void tile(const float* a, int64_t a_stride, const float* packed, int64_t depth, float* c, int64_t c_stride,
                    bool add) {
  V16 sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kColumns; ++w) sums[r][w] = add ? load(c + r * c_stride + w * kLanes) : V16(0.0f);
  for (int64_t k = 0; k < depth; ++k) {
    V16 right[kColumns];
    for (int w = 0; w < kColumns; ++w) right[w] = load(packed + (k * kColumns + w) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const V16 left(a[r * a_stride + k]);
      for (int w = 0; w < kColumns; ++w) sums[r][w] = madd(left, right[w], sums[r][w]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int w = 0; w < kColumns; ++w) store(c + r * c_stride + w * kLanes, sums[r][w]);
}

template <int kColumns>
void panel(const float* a, int64_t a_stride, const float* packed, int64_t depth, float* c, int64_t c_stride,
           int64_t rows, bool add) {
  int64_t i = 0;
  for (; i + kTile <= rows; i += kTile)
    tile<kTile, kColumns>(a + i * a_stride, a_stride, packed, depth, c + i * c_stride, c_stride, add);
  for (; i < rows; ++i) tile<1, kColumns>(a + i * a_stride, a_stride, packed, depth, c + i * c_stride, c_stride, add);
}

struct Product {
  const float* a;  // [rows, depth]
  int64_t a_stride;
  const float* b;  // [depth, columns], or with `transposed` [columns, depth]
  int64_t b_stride;
  bool transposed;
  float* c;  // [rows, padded columns]
  int64_t c_stride;
  int64_t rows, depth, columns;
  bool symmetric = false;        // compute what lies on the diagonal and above, the rest is its mirror
  const float* added = nullptr;  // [rows, padded columns]: c = third a b + second added + first I
  float first = 0, second = 0, third = 0;
};

void pack(const Product& p, int64_t k0, int64_t depth, int64_t j0, int64_t width, float* packed) {
  const int64_t real = std::min(width, p.columns - j0);
  if (!p.transposed) {
    for (int64_t k = 0; k < depth; ++k) {
      std::memcpy(packed + k * width, p.b + (k0 + k) * p.b_stride + j0, size_t(real) * sizeof(float));
      std::fill(packed + k * width + real, packed + (k + 1) * width, 0.0f);
    }
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    const float* from = p.b + j0 * p.b_stride + k0 + k;
    for (int64_t j = 0; j < real; ++j) packed[k * width + j] = from[j * p.b_stride];
    std::fill(packed + k * width + real, packed + (k + 1) * width, 0.0f);
  }
}

void multiply_panel(const Product& p, int64_t j0) {
  const int64_t width = std::min(kPanel, padded(p.columns) - j0);
  const int64_t rows = p.symmetric ? std::min(p.rows, j0 + width) : p.rows;
  Scratch<float> packed(size_t(kDepth * width));
  for (int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, p.depth - k0);
    pack(p, k0, depth, j0, width, packed.data());
    const float* a = p.a + k0;
    float* c = p.c + j0;
    if (width == kLanes)
      panel<1>(a, p.a_stride, packed.data(), depth, c, p.c_stride, rows, k0 > 0);
    else if (width == kNarrower * kLanes)
      panel<kNarrower>(a, p.a_stride, packed.data(), depth, c, p.c_stride, rows, k0 > 0);
    else
      panel<kWide>(a, p.a_stride, packed.data(), depth, c, p.c_stride, rows, k0 > 0);
  }
}

/// What is left to do on a panel: the polynomial, and the mirror image, which no other panel touches.
void finish_panel(const Product& p, int64_t j0) {
  const int64_t end = std::min(p.columns, j0 + kPanel), width = std::min(kPanel, padded(p.columns) - j0);
  if (p.added) {
    for (int64_t i = 0; i < end; ++i) {
      float* c = p.c + i * p.c_stride + j0;
      const float* added = p.added + i * p.c_stride + j0;
      for (int64_t j = 0; j < width; ++j) c[j] = p.third * c[j] + p.second * added[j];
      if (i >= j0) c[i - j0] += p.first;
    }
  }
  for (int64_t i0 = 0; i0 < end; i0 += kLanes)
    for (int64_t j = std::max(i0 + 1, j0); j < end; ++j)
      for (int64_t i = i0; i < std::min(i0 + kLanes, j); ++i) p.c[j * p.c_stride + i] = p.c[i * p.c_stride + j];
}

void multiply(const Product& p) {
  parallel_each((padded(p.columns) + kPanel - 1) / kPanel, [&](int64_t j) {
    multiply_panel(p, j * kPanel);
    if (p.symmetric) finish_panel(p, j * kPanel);
  });
}

/// c = a b of matrices that commute and are symmetric
void multiply_symmetric(const Square& a, const Square& b, const Square& c, int64_t n) {
  multiply({a.data, a.stride, b.data, b.stride, false, c.data, c.stride, n, n, n, true});
}

/// to[n, m] = from[m, n] times scale, by blocks that stay in the cache
void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t m, int64_t n,
               float scale) {
  constexpr int64_t kBlock = 32;
  for (int64_t i0 = 0; i0 < m; i0 += kBlock)
    for (int64_t j0 = 0; j0 < n; j0 += kBlock)
      for (int64_t j = j0; j < std::min(n, j0 + kBlock); ++j)
        for (int64_t i = i0; i < std::min(m, i0 + kBlock); ++i)
          to[j * to_stride + i] = from[i * from_stride + j] * scale;
}

double norm(const float* x, int64_t n) {
  const int64_t runs = (n + kRun - 1) / kRun;
  Scratch<double> parts{size_t(runs)};
  parallel_for(runs, kGrain / kRun, [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      double lane[8] = {};
      int64_t k = r * kRun;
      const int64_t end = std::min(n, k + kRun);
      for (; k + 8 <= end; k += 8)
        for (int64_t l = 0; l < 8; ++l) lane[l] += double(x[k + l]) * double(x[k + l]);
      for (; k < end; ++k) lane[0] += double(x[k]) * double(x[k]);
      parts[size_t(r)] = 0;
      for (double v : lane) parts[size_t(r)] += v;
    }
  });
  double total = 0;
  for (int64_t r = 0; r < runs; ++r) total += parts[size_t(r)];
  return std::sqrt(total);
}

struct Iteration {
  int64_t steps;
  float a, b, c, eps;
};

/// sink(X, stride) with X of x; X is transposed where x has more rows than columns.
template <class Sink>
void orthogonal(const Iteration& by, const float* x, int64_t rows, int64_t cols, Sink sink) {
  const bool tall = rows > cols;
  const int64_t m = tall ? cols : rows, n = tall ? rows : cols, stride = padded(m), long_stride = padded(n);
  const double length = norm(x, m * n);
  const float scale = float(1 / (length > double(by.eps) || length != length ? length : double(by.eps)));
  Scratch<float> memory(size_t(2 * m * long_stride + 5 * m * stride));
  float* start = memory.data();
  float* long_side = memory.data() + 5 * m * stride;
  float* result = long_side + m * long_stride;
  Square gram{start, stride}, b{start + m * stride, stride}, p{start + 2 * m * stride, stride};
  Square next{start + 3 * m * stride, stride}, half{start + 4 * m * stride, stride};
  parallel_for(rows, 1 + kGrain / cols, [&](int64_t r0, int64_t r1) {
    if (tall) return transpose(x + r0 * cols, cols, long_side + r0, long_stride, r1 - r0, cols, scale);
    for (int64_t i = r0; i < r1; ++i)
      for (int64_t j = 0; j < n; ++j) long_side[i * long_stride + j] = x[i * n + j] * scale;
  });
  multiply({long_side, long_stride, long_side, long_stride, true, gram.data, stride, m, n, m, true});
  for (int64_t step = 0; step < by.steps; ++step) {
    multiply({gram.data, stride, gram.data, stride, false, b.data, stride, m, m, m, true, gram.data, by.a, by.b, by.c});
    if (step == 0) {
      std::memcpy(p.data, b.data, size_t(m * stride) * sizeof(float));
    } else {
      multiply_symmetric(b, p, next, m);
      std::swap(p, next);
    }
    if (step + 1 == by.steps) break;
    multiply_symmetric(b, gram, half, m);
    multiply_symmetric(half, b, gram, m);
  }
  multiply({p.data, stride, long_side, long_stride, false, result, long_stride, m, m, n, false});
  sink(result, long_stride);
}

double operations(int64_t rows, int64_t cols, int64_t steps) {
  const double small = double(std::min(rows, cols)), wide = double(std::max(rows, cols));
  return small * small * (3 * wide + 4 * double(steps) * small);
}

/// work(k) for all matrices: large ones with all threads, then the others side by side.
template <class Work>
void share_out(const std::vector<double>& costs, Work work) {
  double all = 0;
  std::vector<size_t> order(costs.size());
  for (size_t k = 0; k < costs.size(); ++k) order[k] = k, all += costs[k];
  std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return costs[i] > costs[j]; });
  size_t large = 0;
  for (; large < order.size(); ++large) {
    const double size = costs[order[large]];
    if (size < kLarge || size < all / (2 * max_threads())) break;
    work(order[large]);
  }
  parallel_each(int64_t(order.size() - large), [&](int64_t at) { work(order[large + size_t(at)]); });
}

void move(const MuonStep& a, const MuonMatrix& matrix) {
  const int64_t rows = matrix.rows, cols = matrix.cols;
  if (rows == 0 || cols == 0) return;
  Scratch<float> update(size_t(rows * cols));
  parallel_for(rows * cols, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float g = matrix.grad[i], v = matrix.momentum[i] + (1 - matrix.mu) * (g - matrix.momentum[i]);
      matrix.momentum[i] = v;
      update[size_t(i)] = matrix.nesterov ? g + matrix.mu * (v - g) : v;
    }
  });
  orthogonal({a.steps, a.a, a.b, a.c, a.eps}, update.data(), rows, cols, [&](const float* x, int64_t stride) {
    float* dense = update.data();  // no longer needed
    parallel_for(rows, 1 + kGrain / cols, [&](int64_t r0, int64_t r1) {
      if (rows > cols) transpose(x + r0, stride, dense + r0 * cols, cols, cols, r1 - r0, 1.0f);
      for (int64_t i = r0; i < r1; ++i) {
        const float* moved = rows > cols ? dense + i * cols : x + i * stride;
        float* param = matrix.param + i * cols;
        for (int64_t j = 0; j < cols; ++j) param[j] = matrix.keep * param[j] + matrix.rate * moved[j];
      }
    });
  });
}

}  // namespace

void newton_schulz(const NewtonSchulz& a) {
  std::vector<int64_t> starts(1, 0);
  std::vector<double> costs;
  for (int64_t k = 0; k < a.count; ++k) {
    starts.push_back(starts.back() + a.rows[k] * a.cols[k]);
    costs.push_back(operations(a.rows[k], a.cols[k], a.steps));
  }
  share_out(costs, [&](size_t k) {
    const int64_t rows = a.rows[k], cols = a.cols[k];
    if (rows == 0 || cols == 0) return;
    float* out = a.out + starts[k];
    orthogonal({a.steps, a.a, a.b, a.c, a.eps}, a.x + starts[k], rows, cols, [&](const float* x, int64_t stride) {
      if (rows > cols) return transpose(x, stride, out, cols, cols, rows, 1.0f);
      for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * cols, x + i * stride, size_t(cols) * sizeof(float));
    });
  });
}

void muon_step(const MuonStep& a) {
  std::vector<double> costs;
  for (int64_t k = 0; k < a.count; ++k) costs.push_back(operations(a.matrices[k].rows, a.matrices[k].cols, a.steps));
  share_out(costs, [&](size_t k) { move(a, a.matrices[k]); });
}

}  // namespace vk::VK_ISA
