// Rows are copied whole, so the forward pass knows bytes, not types. The backward pass first links the rows that
// meet in one place (usually none do), then writes every output row once: zeros, a copy, or a sum.
#include <cstring>

#include "core/half.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "ops/gather_tokens/gather_tokens.h"

namespace vk::VK_ISA {
namespace {

int64_t first_outside(const int32_t* index, int64_t n, int64_t length) {
  for (int64_t i = 0; i < n; ++i)
    if (uint32_t(index[i]) >= uint64_t(length)) return i;
  return -1;
}

template <class T>
void store(T& to, float value) {
  to = from_float<T>(value);
}
void store(double& to, double value) { to = value; }

template <class T>
void backward(const GatherTokensBackward& a) {
  using Sum = decltype(to_float(T{}));
  const int64_t row = a.dim;
  // scratch[b] = first[N] (a source row k of n, or -1), then next[K] (the following source of the same row, or -1)
  parallel_for(a.batch, 1 + 16384 / (a.length + a.count + 1), [&](int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      int32_t *first = a.scratch + b * (a.length + a.count), *next = first + a.length;
      for (int64_t n = 0; n < a.length; ++n) first[n] = -1;
      for (int64_t k = a.count; k-- > 0;) {  // downwards, so that each list ascends
        const int32_t n = a.index[b * a.count + k];
        next[k] = first[n];
        first[n] = int32_t(k);
      }
    }
  });
  const int64_t row_bytes = row * int64_t(sizeof(T));
  const bool stream = worth_streaming(a.grad, row_bytes, a.batch * a.length);
  parallel_for(a.batch * a.length, 1 + 16384 / (row + 1), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i / a.length;
      const int32_t *first = a.scratch + b * (a.length + a.count), *next = first + a.length;
      const T* source = static_cast<const T*>(a.grad_out) + b * a.count * row;
      T* out = static_cast<T*>(a.grad) + i * row;
      const int32_t k = first[i - b * a.length];
      if (stream && (k < 0 || next[k] < 0)) {
        stream_row(out, k < 0 ? nullptr : source + k * row, row_bytes);
      } else if (k < 0) {
        std::memset(out, 0, size_t(row_bytes));
      } else if (next[k] < 0) {
        std::memcpy(out, source + k * row, size_t(row_bytes));
      } else {
        for (int64_t d = 0; d < row; ++d) {
          Sum sum = 0;
          for (int32_t j = k; j >= 0; j = next[j]) sum += to_float(source[j * row + d]);
          store(out[d], sum);
        }
      }
    }
    if (stream) stream_end();
  });
}

}  // namespace

void gather_tokens(GatherTokens& a) {
  a.bad = first_outside(a.index, a.batch * a.count, a.length);
  if (a.bad >= 0) return;
  const char* tokens = static_cast<const char*>(a.tokens);
  char* out = static_cast<char*>(a.out);
  const bool stream = worth_streaming(out, a.row_bytes, a.batch * a.count);
  parallel_for(a.batch * a.count, 1 + 65536 / (a.row_bytes + 1), [&](int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; ++i) {
      const char* row = tokens + (i / a.count * a.length + a.index[i]) * a.row_bytes;
      if (stream)
        stream_row(out + i * a.row_bytes, row, a.row_bytes);
      else
        std::memcpy(out + i * a.row_bytes, row, size_t(a.row_bytes));
    }
    if (stream) stream_end();
  });
}

void gather_tokens_backward(GatherTokensBackward& a) {
  a.bad = first_outside(a.index, a.batch * a.count, a.length);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: return backward<float>(a);
    case Element::f64: return backward<double>(a);
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
  }
}

}  // namespace vk::VK_ISA
