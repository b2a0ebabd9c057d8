// Rows are cut into chunks that depend on N alone; a chunk adds its column sums up in its own K floats, and the chunks
// are added in order, so the number of threads never shows. Per iteration the scores, or their exponentials kept in
// the plan's memory, are read once: a row stays in the first-level cache between its sum and its share of the columns.
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
constexpr float kLeastRow = 0x1p-50f;  // a row sum below it has its best columns among those without mass: float64
constexpr int64_t kWork = 16384;       // elements that are worth a thread

inline float exp2_to_zero(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

/// What the passes over one problem share.
struct Sums {
  Sums(int64_t rows, int64_t cols)
      : chunks(rows),
        padded((cols + 15) / 16 * 16),
        shift(size_t(rows)),
        g(size_t(padded)),
        v(size_t(padded)),
        partial(size_t(chunks.count * padded)),
        top(size_t(chunks.count)),
        log_v(size_t(cols)),
        column(size_t(padded)) {
    for (int64_t j = 0; j < padded; ++j) g[size_t(j)] = j < cols ? 0.0f : kGone, v[size_t(j)] = 0.0f;
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
      v[size_t(j)] = float(std::exp2(x));
    }
    return true;
  }

  /// log sum_j E[i, j] v[j] from the sum with the shifts taken out.
  double row_lse(int64_t i, float sum, float c) const {
    return (double(shift[size_t(i)]) * c + top_v + std::log2(double(sum))) * kLn2;
  }

  const Chunks chunks;
  const int64_t padded;
  Scratch<float> shift;       // [N] m_i
  Scratch<float> g;           // [padded]
  Scratch<float> v;           // [padded] 2^g
  Scratch<float> partial;     // [chunks, padded]
  std::vector<float> top;     // [chunks] M, then a weight
  std::vector<double> log_v;  // [K] log2
  Scratch<float> column;      // [padded]
  double top_v = 0;           // log_v = g + top_v
};

/// Shifts of all rows, and column sums at u = mass: column[j] = sum_i mass_i 2^(s c - c M). Returns M, or sets `bad`.
/// `keep`, if there is one, gets 2^((s - m) c).
template <class T>
float start(const T* scores, const float* mass, int64_t cols, float c, float* keep, Sums& w, int64_t& bad) {
  std::vector<int64_t> first_bad(size_t(w.chunks.count), -1);
  parallel_for(w.chunks.count, 1 + kWork / (w.chunks.size * cols + 1), [&](int64_t q0, int64_t q1) {
    for (int64_t q = q0; q < q1; ++q) {
      float* acc = w.partial.data() + q * w.padded;
      std::fill(acc, acc + w.padded, 0.0f);
      float top = kGone;
      for (int64_t i = w.chunks.begin(q); i < w.chunks.end(q); ++i) {
        const T* row = scores + i * cols;
        const float m = w.shift[size_t(i)] = row_max(row, cols);
        if (m != m && first_bad[size_t(q)] < 0) first_bad[size_t(q)] = i;
        if (!(m > kGone)) {
          if (keep) std::fill(keep + i * cols, keep + (i + 1) * cols, 0.0f);
          continue;
        }
        if (m > top) {
          const float less = exp2_to_zero((top - m) * c);
          for (int64_t j = 0; j < w.padded; j += 16) store(acc + j, load(acc + j) * V16(less));
          top = m;
        }
        const float weight = exp2_to_zero((m - top) * c) * (mass ? mass[i] : 1.0f);
        if (keep)
          row_start<true>(row, cols, m, c, weight, acc, keep + i * cols);
        else
          row_start<false>(row, cols, m, c, weight, acc, nullptr);
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
  float* row_log = nullptr;  // log a_i / r_i and so on: with `mass`; row_lse: without
  float* row_lse = nullptr;
  int64_t* label = nullptr;
  bool sums = false;
};

/// False if a row's sum is too small for fp32.
template <class T>
bool pass(const T* scores, const float* mass, float even_mass, int64_t cols, float c, Sums& w, const Out& out) {
  std::vector<char> lost(size_t(w.chunks.count), 0);
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
          lost[size_t(q)] |= !(r.sum >= kLeastRow);
        } else {
          std::fill(e.data(), e.data() + w.padded, 0.0f);
        }
        const float scale = r.sum > 0 ? 1.0f / r.sum : 0.0f;
        if (out.sums && scale > 0) row_add(e.data(), a * scale, acc, w.padded);
        if (out.label) out.label[i] = r.best > 0 ? row_find(e.data(), r.best, cols) : 0;
        if (out.row_log || out.row_lse) {
          const double lse = w.row_lse(i, r.sum, c);
          if (out.row_log) out.row_log[i] = r.sum > 0 ? float(std::log(double(a)) - lse) : -INFINITY;
          if (out.row_lse) out.row_lse[i] = r.sum > 0 ? float(lse) : -INFINITY;
        }
      }
    }
  });
  if (out.sums) w.add_chunks(nullptr);
  return std::find(lost.begin(), lost.end(), 1) == lost.end();
}

/// The same from kept exponentials; the last pass turns them into the plan. A row's share of the column sums, or its
/// part of the plan, is computed along with the sum of the row after it.
template <bool kLast>
bool kept_pass(float* kept, const float* mass, float even_mass, int64_t cols, float c, bool rows_to_one, Sums& w,
               float* row_log) {
  std::vector<char> lost(size_t(w.chunks.count), 0);
  const float* v = w.v.data();
  parallel_for(w.chunks.count, 1 + kWork / (w.chunks.size * cols + 1), [&](int64_t q0, int64_t q1) {
    for (int64_t q = q0; q < q1; ++q) {
      float *acc = w.partial.data() + q * w.padded, *before = nullptr;
      V16 weight(0.0f);
      const auto finish = [&](int64_t j, int64_t count) {
        const V16 e = load_some(before + j, count);
        if constexpr (kLast)
          store_some(before + j, count, e * load(v + j) * weight);
        else
          store(acc + j, madd(e, weight, load(acc + j)));
      };
      if (!kLast) std::fill(acc, acc + w.padded, 0.0f);
      for (int64_t i = w.chunks.begin(q); i < w.chunks.end(q); ++i) {
        float* row = kept + i * cols;
        const float a = mass ? mass[i] : even_mass;
        const float r = before ? kept_sum(row, v, cols, finish) : kept_sum(row, v, cols, [](int64_t, int64_t) {});
        lost[size_t(q)] |= w.shift[size_t(i)] > kGone && !(r >= kLeastRow);
        weight = V16(r > 0 ? (kLast && rows_to_one ? 1.0f : a) / r : 0.0f);
        before = row;
        if (row_log) row_log[i] = r > 0 ? float(std::log(double(a)) - w.row_lse(i, r, c)) : -INFINITY;
      }
      if (before)
        for (int64_t j = 0; j < cols; j += 16) finish(j, cols - j);
    }
  });
  if (!kLast) w.add_chunks(nullptr);
  return std::find(lost.begin(), lost.end(), 1) == lost.end();
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
  float* plan = a.plan ? a.plan + b * rows * cols : nullptr;
  const float top = start(scores, mass, cols, c, plan, w, bad);
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
        w.log_v[size_t(j)] = goal - std::log2(double(w.column[size_t(j)])) + (plan ? w.top_v : w.log_v[size_t(j)]);
    }
    if (!w.set_g(cols)) return false;
    const bool last = t + 1 == a.iterations;
    const int64_t slot = b * kept + (a.history ? t : 0);
    float* row_log = last || a.history ? a.row_log + slot * rows : nullptr;
    if (row_log)
      for (int64_t j = 0; j < cols; ++j) a.col_log[slot * cols + j] = float(w.log_v[size_t(j)] * kLn2);
    bool fits;
    if (plan) {
      fits = last ? kept_pass<true>(plan, mass, even, cols, c, a.rows_to_one, w, row_log)
                  : kept_pass<false>(plan, mass, even, cols, c, a.rows_to_one, w, row_log);
    } else {
      Out out;
      out.row_log = row_log;
      out.label = last && a.label ? a.label + b * rows : nullptr;
      out.sums = !last;
      fits = pass(scores, mass, even, cols, c, w, out);
    }
    if (!fits) return false;
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
    base = double(start(scores, mass, cols, c, nullptr, w, bad)) * c;
    if (bad >= 0) return true;
  }
  Out out;
  out.row_lse = lse;
  out.label = a.label + b * rows;
  out.sums = a.col_log;
  const bool fits = pass(scores, mass, 1.0f, cols, c, w, out);
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
  return fits && !(low < total * std::exp2(-kSpan));
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
