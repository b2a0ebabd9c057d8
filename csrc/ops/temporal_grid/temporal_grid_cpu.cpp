// Two steps each way, so that the many pixels pay for space only:
//   forward   frames = grid read at the times (small); rows of pixels = two rows of frames, then two cells of these
//   backward  a row of frames' gradients = the pixels that read it, rows first, then columns; then the frames of the
//             grid that a time has read, every frame written once, zeros included
// Tasks own rows of what they write and add in a fixed order: threads never show.
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/temporal_grid/temporal_grid.h"

namespace vk::VK_ISA {
namespace {

template <class T>
void convert(const float* from, T* to, int64_t n) {
  if constexpr (sizeof(T) == 4) {
    std::memcpy(to, from, size_t(n) * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(from[i]);
  }
}

/// out (+)= low * (1 - share) + high * share; a share of 0 is nothing, even of infinity
template <bool kAdd, class A, class B>
inline void blend(const A* __restrict low, const A* __restrict high, float share, B* __restrict out, int64_t n) {
  if (share == 0) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = from_float<B>((kAdd ? to_float(out[i]) : 0.0f) + to_float(low[i]));
    return;
  }
  const float rest = 1.0f - share;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float value = to_float(low[i]) * rest + to_float(high[i]) * share;
    out[i] = from_float<B>((kAdd ? to_float(out[i]) : 0.0f) + value);
  }
}

/// The frames at the times, before they are enlarged: rows [B * h], each [w, width].
template <class T>
void read_frames(const TemporalGrid& a, float* frames) {
  const int64_t cells = a.width_cells, row = cells * a.channels;
  parallel_for(a.batch * a.height, 1 + 32768 / (cells * a.width() + 1), [&](int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t b = r / a.height, y = r % a.height;
      const T* level = static_cast<const T*>(a.grid) + y * row;
      float* out = frames + r * cells * a.width();
      for (int64_t l = 0; l < a.levels; ++l) {
        const Between when = in_time(a.t[b], a.lengths[l]);
        const T *low = level + when.low * a.height * row, *high = level + when.high * a.height * row;
        if (!a.concat || a.levels == 1) {
          if (l == 0)
            blend<false>(low, high, when.share, out, row);
          else
            blend<true>(low, high, when.share, out, row);
        } else {
          for (int64_t x = 0; x < cells; ++x)
            blend<false>(low + x * a.channels, high + x * a.channels, when.share, out + x * a.width() + l * a.channels,
                         a.channels);
        }
        level += a.lengths[l] * a.height * row;
      }
    }
  });
}

/// What each pixel of a row reads: the same in all rows.
struct Columns {
  explicit Columns(const TemporalGrid& a) : count(a.width_cells * a.scale), at(size_t(count)) {
    for (int64_t x = 0; x < count; ++x) at[size_t(x)] = in_space(x, a.width_cells, a.scale);
  }
  const int64_t count;
  const Scratch<Between> at;
};

/// out[x] = blends of the cells of one row; C numbers each.
template <class T>
void enlarge_row(const float* cells, const Columns& columns, T* out, int64_t channels) {
  for (int64_t x = 0; x < columns.count; ++x) {
    const Between& at = columns.at[size_t(x)];
    blend<false>(cells + at.low * channels, cells + at.high * channels, at.share, out + x * channels, channels);
  }
}

template <class T>
void forward(const TemporalGrid& a) {
  const int64_t row = a.width_cells * a.width(), rows = a.height * a.scale;
  Scratch<float> frames(size_t(a.batch * a.height * row));
  const Columns columns(a);
  read_frames<T>(a, frames.data());
  T* out = static_cast<T*>(const_cast<void*>(a.out));
  parallel_for(a.batch * rows, 1 + 16384 / (row * a.scale + 1), [&](int64_t r0, int64_t r1) {
    if (a.scale == 1) return convert(frames.data() + r0 * row, out + r0 * row, (r1 - r0) * row);
    Scratch<float> between(static_cast<size_t>(row));
    for (int64_t r = r0; r < r1; ++r) {
      const float* frame = frames.data() + r / rows * a.height * row;
      const Between at = in_space(r % rows, a.height, a.scale);
      blend<false>(frame + at.low * row, frame + at.high * row, at.share, between.data(), row);
      enlarge_row(between.data(), columns, out + r * row * a.scale, a.width());
    }
  });
}

/// What is read of one of the two.
inline float share_of(const Between& at, int64_t cell) {
  return (at.low == cell ? 1.0f - at.share : 0.0f) + (at.high == cell ? at.share : 0.0f);
}

struct Readers {
  int64_t begin, end;  // the pixels that may read a cell
};
inline Readers readers_of(int64_t cell, int64_t cells, int64_t scale) {
  return {std::max<int64_t>(0, (cell - 1) * scale + scale / 2), std::min(cells * scale, (cell + 2) * scale)};
}

template <class T>
void add_scaled(const T* __restrict from, float by, float* __restrict to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += by * to_float(from[i]);
}

/// Gradients of the frames before they were enlarged.
template <class T>
void shrink(const TemporalGrid& a, float* frames) {
  const int64_t row = a.width_cells * a.width(), wide = row * a.scale, rows = a.height * a.scale;
  const T* grad = static_cast<const T*>(a.out);
  const Columns columns(a);
  parallel_for(a.batch * a.height, 1 + 8192 / (wide * a.scale + 1), [&](int64_t r0, int64_t r1) {
    Scratch<float> column(static_cast<size_t>(wide));
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t y = r % a.height;
      const T* image = grad + r / a.height * rows * wide;
      float* out = frames + r * row;
      std::memset(column.data(), 0, size_t(wide) * sizeof(float));
      const Readers above = readers_of(y, a.height, a.scale);
      for (int64_t i = above.begin; i < above.end; ++i) {
        const float share = share_of(in_space(i, a.height, a.scale), y);
        if (share != 0) add_scaled(image + i * wide, share, column.data(), wide);
      }
      std::memset(out, 0, size_t(row) * sizeof(float));
      for (int64_t x = 0; x < a.width_cells; ++x) {
        const Readers across = readers_of(x, a.width_cells, a.scale);
        for (int64_t i = across.begin; i < across.end; ++i) {
          const float share = share_of(columns.at[size_t(i)], x);
          if (share != 0) add_scaled(column.data() + i * a.width(), share, out + x * a.width(), a.width());
        }
      }
    }
  });
}

template <class T>
void backward(const TemporalGrid& a) {
  const int64_t row = a.width_cells * a.width(), narrow = a.width_cells * a.channels;
  Scratch<float> frames(size_t(a.batch * a.height * row));
  shrink<T>(a, frames.data());
  T* grid = static_cast<T*>(const_cast<void*>(a.grid));
  parallel_for(a.total(), 1 + 16384 / (a.height * narrow + 1), [&](int64_t n0, int64_t n1) {
    Scratch<float> sum(static_cast<size_t>(narrow));
    int64_t level = 0, first = 0;
    for (int64_t n = n0; n < n1; ++n) {
      while (n - first >= a.lengths[level]) first += a.lengths[level++];
      const int64_t offset = a.concat ? level * a.channels : 0;
      T* out = grid + n * a.height * narrow;
      const auto share = [&](int64_t b) { return share_of(in_time(a.t[b], a.lengths[level]), n - first); };
      bool any = false;
      for (int64_t b = 0; b < a.batch && !any; ++b) any = share(b) != 0;
      if (!any) {
        std::memset(static_cast<void*>(out), 0, size_t(a.height * narrow) * sizeof(T));
        continue;
      }
      for (int64_t y = 0; y < a.height; ++y) {
        std::memset(sum.data(), 0, size_t(narrow) * sizeof(float));
        for (int64_t b = 0; b < a.batch; ++b) {
          const float by = share(b);
          if (by == 0) continue;
          const float* from = frames.data() + (b * a.height + y) * row + offset;
          if (a.width() == a.channels)
            add_scaled(from, by, sum.data(), narrow);
          else
            for (int64_t x = 0; x < a.width_cells; ++x)
              add_scaled(from + x * a.width(), by, sum.data() + x * a.channels, a.channels);
        }
        convert(sum.data(), out + y * narrow, narrow);
      }
    }
  });
}

}  // namespace

void temporal_grid(const TemporalGrid& a) {
  if (a.batch * a.height * a.width_cells * a.channels == 0) return;
  switch (a.element) {
    case Element::f16: return forward<f16>(a);
    case Element::bf16: return forward<bf16>(a);
    default: return forward<float>(a);
  }
}

void temporal_grid_backward(const TemporalGrid& a) {
  if (a.height * a.width_cells * a.channels == 0) return;
  switch (a.element) {
    case Element::f16: return backward<f16>(a);
    case Element::bf16: return backward<bf16>(a);
    default: return backward<float>(a);
  }
}

}  // namespace vk::VK_ISA
