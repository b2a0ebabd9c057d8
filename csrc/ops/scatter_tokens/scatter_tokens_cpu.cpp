// Both passes first turn the index around (which row lands on each token: B * N small integers) and check it there.
// Then the forward pass writes, and the backward pass reads, every row of the large tensor once, a tile of tokens
// at a time for all samples, so that the position (or its gradient) stays in the nearest cache.
#include <cstring>

#include "core/half.h"
#include "core/parallel.h"
#include "core/stream.h"
#include "ops/scatter_tokens/scatter_tokens.h"

namespace vk::VK_ISA {
namespace {

/// The first refused index, or -1.
int64_t turn_around(const int32_t* index, int32_t* sources, int64_t batch, int64_t length, int64_t count) {
  std::memset(sources, 0xff, size_t(batch * length) * sizeof(int32_t));
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t k = 0; k < count; ++k) {
      const int32_t n = index[b * count + k];
      if (uint32_t(n) >= uint64_t(length) || sources[b * length + n] >= 0) return b * count + k;
      sources[b * length + n] = int32_t(k);
    }
  return -1;
}

template <class T>
T narrow(decltype(to_float(T{})) value) {
  return from_float<T>(value);
}
template <>
double narrow<double>(double value) {
  return value;
}

template <class T, class P>
void forward(const ScatterTokens& a) {
  const int64_t dim = a.dim;
  const T* visible = static_cast<const T*>(a.visible);
  const P *filler = static_cast<const P*>(a.mask_token), *position = static_cast<const P*>(a.position);
  T* out = static_cast<T*>(a.out);
  const int64_t tile = ScatterTokensBackward::kTile, tiles = (a.length + tile - 1) / tile;
  const bool stream = worth_streaming(out, dim * int64_t(sizeof(T)), a.batch * a.length);
  parallel_for(tiles * a.batch, 1 + 16384 / (tile * dim + 1), [&](int64_t i0, int64_t i1) {
    T* buffer = stream ? new T[size_t(dim)] : nullptr;
    for (int64_t i = i0; i < i1; ++i) {
      const int64_t b = i % a.batch, n0 = i / a.batch * tile, n1 = n0 + tile < a.length ? n0 + tile : a.length;
      for (int64_t n = n0; n < n1; ++n) {
        const int32_t k = a.sources[b * a.length + n];
        const T* row = visible + (b * a.count + (k < 0 ? 0 : k)) * dim;
        const P* add = position + n * dim;
        T *final = out + (b * a.length + n) * dim, *to = stream ? buffer : final;
        if (k >= 0 && !position) {
          std::memcpy(to, row, size_t(dim) * sizeof(T));
        } else if (k >= 0) {
#pragma omp simd
          for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(to_float(row[d]) + to_float(add[d]));
        } else if (!position) {
#pragma omp simd
          for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(to_float(filler[d]));
        } else {
#pragma omp simd
          for (int64_t d = 0; d < dim; ++d) to[d] = narrow<T>(to_float(filler[d]) + to_float(add[d]));
        }
        if (stream) stream_row(final, buffer, dim * int64_t(sizeof(T)));
      }
    }
    if (stream) stream_end();
    delete[] buffer;
  });
}

/// One row of grad_out: to its visible row or to the mask token's sum, and to the position's sum.
template <class T, class Sum>
void add_row(const T* __restrict row, T* __restrict visible, Sum* __restrict masked, Sum* __restrict position,
             int64_t dim) {
  if (visible) {
    std::memcpy(visible, row, size_t(dim) * sizeof(T));
    for (int64_t d = 0; d < dim; ++d) position[d] += to_float(row[d]);
  } else {
    for (int64_t d = 0; d < dim; ++d) {
      masked[d] += to_float(row[d]);
      position[d] += to_float(row[d]);
    }
  }
}

template <class T, class P>
void backward(const ScatterTokensBackward& a) {
  using Sum = decltype(to_float(T{}));
  constexpr int64_t kTile = ScatterTokensBackward::kTile;
  const int64_t dim = a.dim, tiles = a.tiles();
  const T* grad_out = static_cast<const T*>(a.grad_out);
  T* grad_visible = static_cast<T*>(a.grad_visible);
  P* grad_position = static_cast<P*>(a.grad_position);
  Sum* partial = static_cast<Sum*>(a.partial);
  // As many tokens at a time as keep their sums in the nearest cache; their rows lie side by side in a sample.
  const int64_t fit = 24 * 1024 / int64_t(sizeof(Sum)) / (dim + 1), some = fit < 1 ? 1 : fit < kTile ? fit : kTile;
  parallel_for(tiles, 1 + 16384 / (kTile * dim * (a.batch + 1)), [&](int64_t t0, int64_t t1) {
    Sum* over_batch = new Sum[size_t(some * dim + 1)];
    for (int64_t t = t0; t < t1; ++t) {
      Sum* masked = partial + t * dim;
      for (int64_t d = 0; d < dim; ++d) masked[d] = 0;
      const int64_t tile_end = (t + 1) * kTile < a.length ? (t + 1) * kTile : a.length;
      for (int64_t n0 = t * kTile; n0 < tile_end; n0 += some) {
        const int64_t n1 = n0 + some < tile_end ? n0 + some : tile_end;
        for (int64_t i = 0; i < (n1 - n0) * dim; ++i) over_batch[i] = 0;
        for (int64_t b = 0; b < a.batch; ++b)
          for (int64_t n = n0; n < n1; ++n) {
            const int32_t k = a.sources[b * a.length + n];
            const T* row = grad_out + (b * a.length + n) * dim;
            add_row(row, k >= 0 ? grad_visible + (b * a.count + k) * dim : nullptr, masked, over_batch + (n - n0) * dim,
                    dim);
          }
        if (grad_position)
          for (int64_t i = 0; i < (n1 - n0) * dim; ++i) grad_position[n0 * dim + i] = narrow<P>(over_batch[i]);
      }
    }
    delete[] over_batch;
  });
  P* grad_mask_token = static_cast<P*>(a.grad_mask_token);
  for (int64_t d = 0; d < dim; ++d) {
    Sum sum = 0;
    for (int64_t t = 0; t < tiles; ++t) sum += partial[t * dim + d];
    grad_mask_token[d] = narrow<P>(sum);
  }
}

}  // namespace

void scatter_tokens(ScatterTokens& a) {
  a.bad = turn_around(a.index, a.sources, a.batch, a.length, a.count);
  if (a.bad >= 0) return;
  const bool wide = a.parameter == Element::f32;
  switch (a.element) {
    case Element::f32: return forward<float, float>(a);
    case Element::f64: return forward<double, double>(a);
    case Element::f16: return wide ? forward<f16, float>(a) : forward<f16, f16>(a);
    case Element::bf16: return wide ? forward<bf16, float>(a) : forward<bf16, bf16>(a);
  }
}

void scatter_tokens_backward(ScatterTokensBackward& a) {
  a.bad = turn_around(a.index, a.sources, a.batch, a.length, a.count);
  if (a.bad >= 0) return;
  const bool wide = a.parameter == Element::f32;
  switch (a.element) {
    case Element::f32: return backward<float, float>(a);
    case Element::f64: return backward<double, double>(a);
    case Element::f16: return wide ? backward<f16, float>(a) : backward<f16, f16>(a);
    case Element::bf16: return wide ? backward<bf16, float>(a) : backward<bf16, bf16>(a);
  }
}

}  // namespace vk::VK_ISA
