// Sort the points by cluster (a stable counting sort of their numbers), then add each cluster's rows: every point is
// read once and every sum is written once, wherever the clusters lie. A random row costs no more than the next one as
// long as it is asked for in time, hence the prefetches.
#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/vec.h"
#include "ops/cluster_sums/cluster_sums.h"

namespace vk::VK_ISA {
namespace {

/// Up to kClusterBlock members of one cluster. partial < 0: the cluster's only piece.
struct Piece {
  int32_t cluster, count;
  int64_t first, partial;
};

int64_t first_outside(const ClusterSums& a) {
  const auto outside = [&](int64_t i) { return uint64_t(a.index[i]) + 1 > uint64_t(a.clusters); };
  constexpr int64_t kStretch = 1024;  // looked through without stopping, so that vectors can do it
  for (int64_t from = 0; from < a.length; from += kStretch) {
    const int64_t to = std::min(a.length, from + kStretch);
    bool any = false;
    for (int64_t i = from; i < to; ++i) any |= outside(i);
    if (!any) continue;
    for (int64_t i = from;; ++i)
      if (outside(i)) return i;
  }
  return -1;
}

/// start[c]: where cluster c begins in `order`; start[K] is the number of points in clusters. The threads share the
/// points in ascending parts, so the outcome is that of one thread.
void sort_by_cluster(const ClusterSums& a, int64_t* start, int32_t* order) {
  const int64_t parts = std::clamp<int64_t>(a.length / std::max<int64_t>(a.clusters, 8192), 1, max_threads());
  const Scratch<int32_t> cursor(size_t(parts * a.clusters));
  const auto each_part = [&](auto f) {
    parallel_for(parts, 1, [&](int64_t p0, int64_t p1) {
      for (int64_t p = p0; p < p1; ++p)
        f(cursor.data() + p * a.clusters, a.length * p / parts, a.length * (p + 1) / parts);
    });
  };
  each_part([&](int32_t* own, int64_t begin, int64_t end) {
    std::memset(own, 0, size_t(a.clusters) * sizeof(int32_t));
    for (int64_t i = begin; i < end; ++i)
      if (a.index[i] >= 0) ++own[a.index[i]];
  });
  int64_t total = 0;
  for (int64_t c = 0; c < a.clusters; ++c) {
    start[c] = total;
    for (int64_t p = 0; p < parts; ++p) {
      int32_t& own = cursor[size_t(p * a.clusters + c)];
      const int32_t n = own;
      own = int32_t(total);
      total += n;
    }
  }
  start[a.clusters] = total;
  each_part([&](int32_t* own, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (a.index[i] >= 0) order[own[a.index[i]]++] = int32_t(i);
  });
}

void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

VK_INLINE V16 load16(const float* from) { return load(from); }
VK_INLINE V16 load16(const bf16* from) {
  V16 v;
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  v.p[0] = (PartF)_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16);
#elif defined(__AVX2__)
  const __m128i* bits = reinterpret_cast<const __m128i*>(from);
  VK_EACH_PART v.p[i] = (PartF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(bits + i)), 16);
#else
  typedef uint16_t Bits __attribute__((vector_size(kPartLanes * 2)));
  Bits bits[kParts];
  std::memcpy(bits, from, sizeof bits);
  VK_EACH_PART v.p[i] = (PartF)(__builtin_convertvector(bits[i], PartI) << 16);
#endif
  return v;
}
VK_INLINE V16 load16(const f16* from) {
  V16 v;
#if defined(__AVX512F__)
  v.p[0] = (PartF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
  VK_EACH_PART v.p[i] = (PartF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from) + i));
#else
  VK_EACH_PART for (int k = 0; k < kPartLanes; ++k) v.p[i][k] = to_float(from[i * kPartLanes + k]);
#endif
  return v;
}

template <class Sum, class T>
void add_rows(const T* __restrict points, const int32_t* __restrict order, int64_t count, int64_t dim,
              Sum* __restrict sum) {
  constexpr int64_t kAhead = 8;
  const int64_t bytes = std::min<int64_t>(dim * int64_t(sizeof(T)), 1024);  // the rest of a long row streams in
  const auto ask = [&](int64_t j) {
    if (j < count) prefetch_row(reinterpret_cast<const char*>(points + order[j] * dim), bytes);
  };
  for (int64_t j = 0; j < kAhead; ++j) ask(j);
  std::fill_n(sum, dim, Sum(0));
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    for (int64_t k = 0; k < 4; ++k) ask(j + k + kAhead);
    const T* __restrict r0 = points + order[j] * dim;
    const T* __restrict r1 = points + order[j + 1] * dim;
    const T* __restrict r2 = points + order[j + 2] * dim;
    const T* __restrict r3 = points + order[j + 3] * dim;
    int64_t d = 0;
    if constexpr (sizeof(Sum) == sizeof(float))
      for (; d + 16 <= dim; d += 16)
        store(sum + d, load(sum + d) + load16(r0 + d) + load16(r1 + d) + load16(r2 + d) + load16(r3 + d));
    for (; d < dim; ++d) sum[d] = (((sum[d] + to_float(r0[d])) + to_float(r1[d])) + to_float(r2[d])) + to_float(r3[d]);
  }
  for (; j < count; ++j) {
    const T* __restrict row = points + order[j] * dim;
    int64_t d = 0;
    if constexpr (sizeof(Sum) == sizeof(float))
      for (; d + 16 <= dim; d += 16) store(sum + d, load(sum + d) + load16(row + d));
    for (; d < dim; ++d) sum[d] += to_float(row[d]);
  }
}

template <class T>
void run(const ClusterSums& a) {
  using Sum = decltype(to_float(T{}));
  const auto* points = static_cast<const T*>(a.points);
  auto* sums = static_cast<Sum*>(a.sums);
  auto* counts = static_cast<Sum*>(a.counts);
  const Scratch<int64_t> start(size_t(a.clusters + 1));
  const Scratch<int32_t> order(size_t(a.length));
  sort_by_cluster(a, start.data(), order.data());

  const Scratch<Piece> pieces(size_t(a.pieces()));
  int64_t used = 0, partials = 0;
  for (int64_t c = 0; c < a.clusters; ++c) {
    const int64_t count = start[size_t(c + 1)] - start[size_t(c)];
    counts[c] = Sum(count);
    const bool split = count > kClusterBlock;
    for (int64_t from = 0; from == 0 || from < count; from += kClusterBlock)
      pieces[size_t(used++)] = {int32_t(c), int32_t(std::min(kClusterBlock, count - from)), start[size_t(c)] + from,
                                split ? partials++ : -1};
  }
  const Scratch<Sum> partial(size_t(partials * a.dim));
  constexpr int64_t kGroup = 16;  // pieces that a thread takes at a time
  parallel_each((used + kGroup - 1) / kGroup, [&](int64_t g) {
    for (int64_t p = g * kGroup; p < std::min(used, (g + 1) * kGroup); ++p) {
      const Piece& piece = pieces[size_t(p)];
      add_rows(points, order.data() + piece.first, piece.count, a.dim,
               piece.partial < 0 ? sums + piece.cluster * a.dim : partial.data() + piece.partial * a.dim);
    }
  });
  for (int64_t p = 0; p < used; ++p) {
    const Piece& piece = pieces[size_t(p)];
    if (piece.partial < 0) continue;
    const bool opens = piece.first == start[size_t(piece.cluster)];
    const Sum* from = partial.data() + piece.partial * a.dim;
    Sum* to = sums + piece.cluster * a.dim;
    for (int64_t d = 0; d < a.dim; ++d) to[d] = opens ? from[d] : to[d] + from[d];
  }
}

}  // namespace

void cluster_sums(ClusterSums& a) {
  a.bad = first_outside(a);
  if (a.bad >= 0) return;
  switch (a.element) {
    case Element::f32: return run<float>(a);
    case Element::f64: return run<double>(a);
    case Element::f16: return run<f16>(a);
    case Element::bf16: return run<bf16>(a);
  }
}

}  // namespace vk::VK_ISA
