// The source map is turned around first (which tokens land on each place: B * (N + M) small integers). Then every
// output row is written once: zeros, a copy (what most rows are), or a sum that is built in the nearest cache.
#include <cstring>
#include <type_traits>

#include "core/half.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/stream.h"
#include "ops/merge_tokens/merge_tokens.h"
#if defined(__F16C__) && defined(__AVX2__)
#include <immintrin.h>
#endif

namespace vk::VK_ISA {
namespace {

int64_t first_outside(const int32_t* source, int64_t n, int64_t count) {
  for (int64_t i = 0; i < n; ++i)
    if (uint32_t(source[i]) >= uint64_t(count)) return i;
  return -1;
}

template <class T>
using SumOf = decltype(to_float(T{}));

/// to = from, widened and narrowed; whole registers of halves where the machine has the instruction.
template <class T>
void narrow(T* __restrict to, const SumOf<T>* __restrict from, int64_t n) {
  if constexpr (std::is_same_v<T, SumOf<T>>) {
    std::memcpy(to, from, size_t(n) * sizeof(T));
  } else {
    int64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
    if constexpr (std::is_same_v<T, f16>)
      for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < n; ++i) to[i] = from_float<T>(from[i]);
  }
}

/// sum (+)= share * row
template <bool kFirst, class T>
void add_row(SumOf<T>* __restrict sum, SumOf<T> share, const T* __restrict row, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__) && defined(__AVX2__)
  if constexpr (std::is_same_v<T, f16>)
    for (; i + 8 <= n; i += 8) {
      const __m256 x = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)));
      const __m256 part = _mm256_set1_ps(share) * x;
      _mm256_storeu_ps(sum + i, kFirst ? part : part + _mm256_loadu_ps(sum + i));
    }
#endif
  for (; i < n; ++i) sum[i] = kFirst ? share * to_float(row[i]) : share * to_float(row[i]) + sum[i];
}

/// Rows of a large output go past the caches, through a buffer where they are computed.
template <class T>
class RowWriter {
 public:
  RowWriter(bool stream, int64_t dim) : stream_(stream), dim_(dim), sum_(size_t(dim)), row_(size_t(dim)) {}
  ~RowWriter() {
    if (stream_) stream_end();
  }
  SumOf<T>* sum() const { return sum_.data(); }
  void copy(T* to, const T* from) const {
    if (stream_)
      stream_row(to, from, dim_ * int64_t(sizeof(T)));
    else if (from)
      std::memcpy(to, from, size_t(dim_) * sizeof(T));
    else
      std::memset(to, 0, size_t(dim_) * sizeof(T));
  }
  void write_sum(T* to) const {
    if (!stream_) return narrow(to, sum_.data(), dim_);
    if constexpr (std::is_same_v<T, SumOf<T>>) {
      stream_row(to, sum_.data(), dim_ * int64_t(sizeof(T)));
    } else {
      narrow(row_.data(), sum_.data(), dim_);
      stream_row(to, row_.data(), dim_ * int64_t(sizeof(T)));
    }
  }

 private:
  bool stream_;
  int64_t dim_;
  Scratch<SumOf<T>> sum_;
  Scratch<T> row_;
};

template <class T>
void forward(const MergeTokens& a) {
  using Sum = SumOf<T>;
  const int64_t length = a.length, count = a.count, dim = a.dim, links = count + 1 + length;
  const Sum* size = static_cast<const Sum*>(a.size);
  Sum* total = static_cast<Sum*>(a.total);
  // Per sample: start[M + 1], then the tokens of place 0, of place 1, ..., ascending in each.
  const Scratch<int32_t> scratch(size_t(a.batch * links));
  parallel_for(a.batch, 1 + 16384 / (links + 1), [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      int32_t *start = scratch.data() + b * links, *member = start + count + 1;
      const int32_t* source = a.source + b * length;
      std::memset(start, 0, size_t(count + 1) * sizeof(int32_t));
      for (int64_t m = 0; m < count; ++m) total[b * count + m] = 0;
      for (int64_t n = 0; n < length; ++n) {
        ++start[source[n]];
        total[b * count + source[n]] += size ? size[b * length + n] : Sum(1);
      }
      for (int64_t m = 1; m <= count; ++m) start[m] += start[m - 1];
      for (int64_t n = length; n-- > 0;) member[--start[source[n]]] = int32_t(n);
    }
  });
  const bool stream = worth_streaming(a.merged, dim * int64_t(sizeof(T)), a.batch * count);
  parallel_for(a.batch * count, 1 + 16384 / (dim + 1), [&](int64_t i0, int64_t i1) {
    const RowWriter<T> writer(stream, dim);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / count, m = i % count;
      const int32_t *start = scratch.data() + b * links, *member = start + count + 1;
      const T* rows = static_cast<const T*>(a.tokens) + b * length * dim;
      T* out = static_cast<T*>(a.merged) + i * dim;
      const int32_t k0 = start[m], k1 = start[m + 1];
      if (!(total[i] > 0)) {
        writer.copy(out, nullptr);
      } else if (k1 - k0 == 1) {
        writer.copy(out, rows + member[k0] * dim);
      } else {
        bool first = true;
        for (int32_t k = k0; k < k1; ++k) {
          const Sum share = (size ? size[b * length + member[k]] : Sum(1)) / total[i];
          if (!(share > 0)) continue;
          if (first)
            add_row<true>(writer.sum(), share, rows + member[k] * dim, dim);
          else
            add_row<false>(writer.sum(), share, rows + member[k] * dim, dim);
          first = false;
        }
        writer.write_sum(out);
      }
    }
  });
}

template <class T>
void backward(const MergeTokensBackward& a) {
  using Sum = SumOf<T>;
  const int64_t dim = a.dim;
  const Sum *size = static_cast<const Sum*>(a.size), *total = static_cast<const Sum*>(a.total);
  const bool stream = worth_streaming(a.grad, dim * int64_t(sizeof(T)), a.batch * a.length);
  parallel_for(a.batch * a.length, 1 + 16384 / (dim + 1), [&](int64_t i0, int64_t i1) {
    const RowWriter<T> writer(stream, dim);
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t place = i / a.length * a.count + a.source[i];
      const T* row = static_cast<const T*>(a.grad_merged) + place * dim;
      T* out = static_cast<T*>(a.grad) + i * dim;
      const Sum whole = total[place], share = whole > 0 ? (size ? size[i] : Sum(1)) / whole : Sum(0);
      if (share == 1 || !(share > 0)) {
        writer.copy(out, share == 1 ? row : nullptr);
      } else {
        add_row<true>(writer.sum(), share, row, dim);
        writer.write_sum(out);
      }
    }
  });
}

}  // namespace

void merge_tokens(MergeTokens& a) {
  a.bad = first_outside(a.source, a.batch * a.length, a.count);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: return forward<float>(a);
    case Element::f64: return forward<double>(a);
    case Element::f16: return forward<f16>(a);
    case Element::bf16: return forward<bf16>(a);
  }
}

void merge_tokens_backward(MergeTokensBackward& a) {
  a.bad = first_outside(a.source, a.batch * a.length, a.count);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: return backward<float>(a);
    case Element::f64: return backward<double>(a);
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
  }
}

}  // namespace vk::VK_ISA
