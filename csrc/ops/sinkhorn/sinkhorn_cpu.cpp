// Rows are cut into chunks that depend on N alone; a chunk adds its column sums up in its own K floats, and the chunks
// are added in order, so the number of threads never shows. Per iteration the scores are read once: a row's
// exponentials stay in the first-level cache between its sum and its share of the column sums.
//
//   first pass   m_i, and column sums of 2^((s - m_i) c) weighted by 2^((m_i - M) c): a row's shift cancels from then
//   on every pass   e -> r_i = sum e -> column sums += a_i / r_i * e, which are what the columns hold now (C_j) between
//   log2 v_j += log2 b_j - log2 C_j, then shifted to a maximum of 0
//
// That is exact to fp32 while log2 v spans less than kSpan; a problem that leaves it starts again in float64
// (sinkhorn_exact.h).
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/sinkhorn/sinkhorn.h"
#include "ops/sinkhorn/sinkhorn_exact.h"
#include "ops/sinkhorn/sinkhorn_rows.h"

namespace vk::VK_ISA {
namespace {

// With v >= 2^-kSpan every row sum is at least that, so what 2^-126 flushes to zero is below 2^-78 of a row; a column
// sum above 2^-kSpan has then lost less than rounding does.
constexpr double kSpan = 48;
constexpr int64_t kStreamed = int64_t(32) << 20;  // bytes of a plan from which on it is written past the caches
constexpr int64_t kWork = 16384;                  // elements that are worth a thread

inline float exp2_to_zero(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

/// What the passes over one problem share.
struct Sums {
  Sums(int64_t rows, int64_t cols)
      : chunks(rows),
        padded((cols + 15) / 16 * 16),
        shift(size_t(rows)),
        g(size_t(padded)),
        partial(size_t(chunks.count * padded)),
        top(size_t(chunks.count)),
        log_v(size_t(cols)),
        column(size_t(padded)) {
    for (int64_t j = 0; j < padded; ++j) g[size_t(j)] = j < cols ? 0.0f : kGone;
  }

  /// column = partial sums of the chunks in order, each times its weight.
  void add_chunks(const float* weight) {
    parallel_for(padded / 16, 1 + kWork / (16 * chunks.count), [&](int64_t j0, int64_t j1) {
      for (int64_t j = 16 * j0; j < 16 * j1; j += 16) {
        V16 total(0.0f);
        for (int64_t q = 0; q < chunks.count; ++q) {
          const V16 x = load(partial.data() + q * padded + j);
          total = weight ? madd(x, V16(weight[q]), total) : total + x;
        }
        store(column.data() + j, total);
      }
    });
  }

  /// g from log_v; false if it spans too much for fp32.
  bool set_g(int64_t cols) {
    top_v = -INFINITY;
    double low = INFINITY;
    for (int64_t j = 0; j < cols; ++j) {
      const double x = log_v[size_t(j)];
      top_v = x > top_v ? x : top_v;
      if (x > -INFINITY) low = x < low ? x : low;
      if (!(x < INFINITY)) return false;
    }
    if (!(top_v - low < kSpan)) return false;
    for (int64_t j = 0; j < cols; ++j) {
      const double x = log_v[size_t(j)] - top_v;
      g[size_t(j)] = x > -INFINITY ? float(x) : kGone;
    }
    return true;
  }

  const Chunks chunks;
  const int64_t padded;
  Scratch<float> shift;       // [N] m_i
  Scratch<float> g;           // [padded]
  Scratch<float> partial;     // [chunks, padded]
  std::vector<float> top;     // [chunks] M, then a weight
  std::vector<double> log_v;  // [K] log2
  Scratch<float> column;      // [padded]
  double top_v = 0;           // log_v = g + top_v
};

/// Shifts of all rows, and column sums at u = mass: column[j] = sum_i mass_i 2^(s c - c M). Returns M, or sets `bad`.
template <class T>
float start(const T* scores, const float* mass, int64_t cols, float c, Sums& w, int64_t& bad) {
  std::vector<int64_t> first_bad(size_t(w.chunks.count), -1);
  parallel_for(w.chunks.count, 1 + kWork / (w.chunks.size * cols + 1), [&](int64_t q0, int64_t q1) {
    Scratch<float> e(size_t(w.padded));
    for (int64_t q = q0; q < q1; ++q) {
      float* acc = w.partial.data() + q * w.padded;
      std::fill(acc, acc + w.padded, 0.0f);
      float top = kGone;
      for (int64_t i = w.chunks.begin(q); i < w.chunks.end(q); ++i) {
        const T* row = scores + i * cols;
        const float m = w.shift[size_t(i)] = row_max(row, cols);
        if (m != m && first_bad[size_t(q)] < 0) first_bad[size_t(q)] = i;
        if (!(m > kGone)) continue;
        if (m > top) {
          const float less = exp2_to_zero((top - m) * c);
          for (int64_t j = 0; j < w.padded; j += 16) store(acc + j, load(acc + j) * V16(less));
          top = m;
        }
        row_exp<false>(row, cols, m, c, w.g.data(), e.data());
        row_add(e.data(), exp2_to_zero((m - top) * c) * (mass ? mass[i] : 1.0f), acc, w.padded);
      }
      w.top[size_t(q)] = top;
    }
  });
  for (int64_t q = 0; q < w.chunks.count && bad < 0; ++q) bad = first_bad[size_t(q)];
  float top = kGone;
  for (float t : w.top) top = t > top ? t : top;
  for (float& t : w.top) t = exp2_to_zero((t - top) * c);
  w.add_chunks(w.top.data());
  return top;
}

/// What a pass over the rows leaves; null where not wanted.
struct Out {
  float* plan = nullptr;
  float* row_log = nullptr;  // log a_i / r_i and so on: with `mass`; row_lse: without
  float* row_lse = nullptr;
  int64_t* label = nullptr;
  bool sums = false;
  bool rows_to_one = false;
};

template <class T>
void pass(const T* scores, const float* mass, float even_mass, int64_t rows, int64_t cols, float c, Sums& w,
          const Out& out) {
  const bool streamed = out.plan && rows * cols * int64_t(sizeof(float)) >= kStreamed;
  parallel_for(w.chunks.count, 1 + kWork / (w.chunks.size * cols + 1), [&](int64_t q0, int64_t q1) {
    Scratch<float> e(size_t(w.padded));
    for (int64_t q = q0; q < q1; ++q) {
      float* acc = w.partial.data() + q * w.padded;
      if (out.sums) std::fill(acc, acc + w.padded, 0.0f);
      for (int64_t i = w.chunks.begin(q); i < w.chunks.end(q); ++i) {
        const float m = w.shift[size_t(i)], a = mass ? mass[i] : even_mass;
        RowSum r{0.0f, 0.0f};
        if (m > kGone) {
          const T* row = scores + i * cols;
          r = out.label ? row_exp<true>(row, cols, m, c, w.g.data(), e.data())
                        : row_exp<false>(row, cols, m, c, w.g.data(), e.data());
        } else {
          std::fill(e.data(), e.data() + w.padded, 0.0f);
        }
        const float scale = r.sum > 0 ? 1.0f / r.sum : 0.0f;
        if (out.sums && scale > 0) row_add(e.data(), a * scale, acc, w.padded);
        if (out.plan) row_write(e.data(), out.rows_to_one ? scale : a * scale, out.plan + i * cols, cols, streamed);
        if (out.label) out.label[i] = r.best > 0 ? row_find(e.data(), r.best, cols) : 0;
        if (out.row_log || out.row_lse) {
          const double lse = (double(m) * c + w.top_v + std::log2(double(r.sum))) * kLn2;
          if (out.row_log) out.row_log[i] = r.sum > 0 ? float(std::log(double(a)) - lse) : -INFINITY;
          if (out.row_lse) out.row_lse[i] = r.sum > 0 ? float(lse) : -INFINITY;
        }
      }
    }
#if defined(__AVX2__)
    if (streamed) _mm_sfence();
#endif
  });
  if (out.sums) w.add_chunks(nullptr);
}

/// One problem in fp32; false where float64 has to do it.
template <class T>
bool solve(const Sinkhorn& a, int64_t b, int64_t& bad) {
  const int64_t rows = a.rows, cols = a.cols, kept = a.history ? a.iterations : 1;
  const T* scores = static_cast<const T*>(a.scores) + b * rows * cols;
  const float* mass = a.row_mass ? a.row_mass + b * rows : nullptr;
  const float* target = a.col_mass ? a.col_mass + b * cols : nullptr;
  const float even = 1.0f / float(rows), c = float(kLog2e / double(a.epsilon));
  Sums w(rows, cols);
  const float top = start(scores, mass, cols, c, w, bad);
  if (bad >= 0) return true;
  const double even_target = std::log2(1.0 / double(cols));
  for (int64_t t = 0; t < a.iterations; ++t) {
    for (int64_t j = 0; j < cols; ++j) {
      const double goal = target ? std::log2(double(target[j])) : even_target;
      if (goal == -INFINITY)
        w.log_v[size_t(j)] = -INFINITY;
      else if (t == 0)
        w.log_v[size_t(j)] =
            goal - std::log2(double(w.column[size_t(j)]) * (mass ? 1.0 : double(even))) - double(top) * c;
      else
        w.log_v[size_t(j)] += goal - std::log2(double(w.column[size_t(j)]));
    }
    if (!w.set_g(cols)) return false;
    const bool last = t + 1 == a.iterations;
    const int64_t slot = b * kept + (a.history ? t : 0);
    Out out;
    if (last || a.history) {
      out.row_log = a.row_log + slot * rows;
      for (int64_t j = 0; j < cols; ++j) a.col_log[slot * cols + j] = float(w.log_v[size_t(j)] * kLn2);
    }
    if (last) {
      out.plan = a.plan ? a.plan + b * rows * cols : nullptr;
      out.label = a.label ? a.label + b * rows : nullptr;
      out.rows_to_one = a.rows_to_one;
    }
    out.sums = !last;
    pass(scores, mass, even, rows, cols, c, w, out);
  }
  return true;
}

template <class T>
bool step(const SinkhornStep& a, int64_t b, int64_t& bad) {
  const int64_t rows = a.rows, cols = a.cols;
  const T* scores = static_cast<const T*>(a.scores) + b * rows * cols;
  const float* mass = a.row_mass ? a.row_mass + b * rows : nullptr;
  const float c = float(kLog2e / double(a.epsilon));
  float *lse = a.row_lse + b * rows, *sums = a.col_sum + b * cols;
  Sums w(rows, cols);
  double base = 0;
  if (a.col_log) {
    std::vector<int64_t> first_bad(size_t(w.chunks.count), -1);
    parallel_for(w.chunks.count, 1 + kWork / (w.chunks.size * cols + 1), [&](int64_t q0, int64_t q1) {
      for (int64_t i = w.chunks.begin(q0); i < w.chunks.end(q1 - 1); ++i) {
        const float m = w.shift[size_t(i)] = row_max(scores + i * cols, cols);
        if (m != m && first_bad[size_t(q0)] < 0) first_bad[size_t(q0)] = i;
      }
    });
    for (int64_t q = 0; q < w.chunks.count && bad < 0; ++q) bad = first_bad[size_t(q)];
    if (bad >= 0) return true;
    for (int64_t j = 0; j < cols; ++j) w.log_v[size_t(j)] = double(a.col_log[b * cols + j]) * kLog2e;
    if (!w.set_g(cols)) return false;
  } else {
    base = double(start(scores, mass, cols, c, w, bad)) * c;
    if (bad >= 0) return true;
  }
  Out out;
  out.row_lse = lse;
  out.label = a.label + b * rows;
  out.sums = a.col_log;
  pass(scores, mass, 1.0f, rows, cols, c, w, out);
  double low = INFINITY, total = 0;
  for (int64_t j = 0; j < cols; ++j) {
    const double x = w.column[size_t(j)];
    total += x;
    if (!a.col_log || a.col_log[b * cols + j] > -INFINITY) low = x < low ? x : low;
    sums[j] = x > 0 ? float((std::log2(x) + base) * kLn2) : -INFINITY;
  }
  if (!a.col_log)
    for (int64_t i = 0; i < rows; ++i)
      lse[i] = w.shift[size_t(i)] > kGone ? float(double(w.shift[size_t(i)]) * c * kLn2) : -INFINITY;
  return !(low < total * std::exp2(-kSpan));
}

/// solve(b, bad) -> done for every problem; large ones one after another with all threads, small ones side by side.
template <class F, class G>
void each_problem(int64_t batch, int64_t rows, int64_t cols, int64_t& bad, F fast, G exact) {
  bad = -1;
  if (batch * rows * cols == 0) return;
  std::vector<int64_t> found(size_t(batch), -1);
  const auto one = [&](int64_t b) {
    if (!fast(b, found[size_t(b)])) exact(b);
  };
  if (batch >= max_threads()) {
    parallel_for(batch, 1 + kWork / (rows * cols), [&](int64_t b0, int64_t b1) {
      for (int64_t b = b0; b < b1; ++b) one(b);
    });
  } else {
    for (int64_t b = 0; b < batch; ++b) one(b);
  }
  for (int64_t b = 0; b < batch && bad < 0; ++b)
    if (found[size_t(b)] >= 0) bad = b * rows + found[size_t(b)];
}

/// What an empty problem has to say: nothing goes anywhere.
void nothing(float* rows, int64_t row_count, float* cols, int64_t col_count, int64_t* label, int64_t label_count) {
  std::fill(rows, rows + row_count, -INFINITY);
  std::fill(cols, cols + col_count, -INFINITY);
  if (label) std::fill(label, label + label_count, int64_t(0));
}

template <class T>
void run(Sinkhorn& a) {
  const int64_t kept = a.history ? a.iterations : 1;
  if (a.rows * a.cols == 0)
    nothing(a.row_log, a.batch * kept * a.rows, a.col_log, a.batch * kept * a.cols, a.label, a.batch * a.rows);
  each_problem(
      a.batch, a.rows, a.cols, a.bad, [&](int64_t b, int64_t& bad) { return solve<T>(a, b, bad); },
      [&](int64_t b) { solve_exact<T>(a, b); });
}
template <class T>
void run(SinkhornStep& a) {
  if (a.rows * a.cols == 0)
    nothing(a.row_lse, a.batch * a.rows, a.col_sum, a.batch * a.cols, a.label, a.batch * a.rows);
  each_problem(
      a.batch, a.rows, a.cols, a.bad, [&](int64_t b, int64_t& bad) { return step<T>(a, b, bad); },
      [&](int64_t b) { step_exact<T>(a, b); });
}

template <class A>
void dispatch(A& a) {
  switch (a.element) {
    case Element::f16: return run<f16>(a);
    case Element::bf16: return run<bf16>(a);
    default: return run<float>(a);
  }
}

}  // namespace

void sinkhorn(Sinkhorn& a) { dispatch(a); }
void sinkhorn_step(SinkhornStep& a) { dispatch(a); }

}  // namespace vk::VK_ISA
