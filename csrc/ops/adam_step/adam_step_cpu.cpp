// A task is a range of numbers, which go by sixteens. With `visible`, wide rows go one by one, runs of visible ones at
// once. Of narrow rows a byte per number says which of them move: sixteens without a visible number are not even
// loaded, mixed ones are computed whole and put together lane by lane.
#include <algorithm>
#include <cstring>
#include <vector>

#include "core/parallel.h"
#include "core/vec.h"
#include "ops/adam_step/adam_step.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kGrain = 16384;  // numbers that are worth a thread
constexpr int64_t kPiece = 4096;   // numbers of a task where there are many tensors
constexpr int64_t kChunk = 1024;   // numbers whose visibility is spread at a time
constexpr uint64_t kAll = 0x0101010101010101u;

VK_INLINE V16 square_root(const V16& x) { return sqrt(x); }

VK_INLINE void move(const AdamStep& a, const AdamFactors& f, int64_t i, const uint8_t* mask) {
  V16 p = load(a.param + i), m = load(a.mean + i), v = load(a.variance + i);
  const V16 p0 = p, m0 = m, v0 = v;
  f.move(p, load(a.grad + i), m, v, square_root);
  if (mask) {
    float lane[kLanes];
    for (int64_t k = 0; k < kLanes; ++k) lane[k] = float(mask[k]);
    const V16 moves = load(lane), half(0.5f);
    p = select_ge(moves, half, p, p0);
    m = select_ge(moves, half, m, m0);
    v = select_ge(moves, half, v, v0);
  }
  store(a.param + i, p);
  store(a.mean + i, m);
  store(a.variance + i, v);
}

/// Fewer than sixteen numbers, by way of a padded copy.
void move_few(const AdamStep& a, const AdamFactors& f, int64_t i, int64_t count, const uint8_t* mask) {
  float p[kLanes] = {}, g[kLanes] = {}, m[kLanes] = {}, v[kLanes] = {};
  const size_t bytes = size_t(count) * sizeof(float);
  std::memcpy(p, a.param + i, bytes);
  std::memcpy(g, a.grad + i, bytes);
  std::memcpy(m, a.mean + i, bytes);
  std::memcpy(v, a.variance + i, bytes);
  AdamStep few = a;
  few.param = p, few.grad = g, few.mean = m, few.variance = v;
  move(few, f, 0, mask);
  std::memcpy(a.param + i, p, bytes);
  std::memcpy(a.mean + i, m, bytes);
  std::memcpy(a.variance + i, v, bytes);
}

void move_all(const AdamStep& a, const AdamFactors& f, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) move(a, f, i, nullptr);
  if (i < end) move_few(a, f, i, end - i, nullptr);
}

void move_visible_rows(const AdamStep& a, const AdamFactors& f, int64_t r0, int64_t r1) {
  for (int64_t row = r0; row < r1; ++row) {
    if (!a.visible[row]) continue;
    const int64_t first = row;
    while (row + 1 < r1 && a.visible[row + 1]) ++row;
    move_all(a, f, first * a.width, (row + 1) * a.width);
  }
}

void move_visible(const AdamStep& a, const AdamFactors& f, int64_t begin, int64_t end) {
  uint8_t mask[kChunk];
  int64_t row = begin / a.width, column = begin % a.width;
  for (int64_t at = begin; at < end; at += kChunk) {
    const int64_t count = std::min(kChunk, end - at);
    for (int64_t k = 0; k < count; ++k) {
      mask[k] = a.visible[row] != 0;
      if (++column == a.width) column = 0, ++row;
    }
    std::memset(mask + count, 0, size_t(kChunk - count));
    for (int64_t k = 0; k < count; k += kLanes) {
      uint64_t eights[2];
      std::memcpy(eights, mask + k, sizeof eights);
      if ((eights[0] | eights[1]) == 0) continue;
      const bool mixed = eights[0] != kAll || eights[1] != kAll;
      if (k + kLanes <= count)
        move(a, f, at + k, mixed ? mask + k : nullptr);
      else
        move_few(a, f, at + k, count - k, mask + k);
    }
  }
}

}  // namespace

void adam_step(const AdamStep& a) {
  const AdamFactors factors(a);
  if (a.visible && a.width >= kLanes) {
    parallel_for(a.rows, 1 + kGrain / a.width, [&](int64_t r0, int64_t r1) { move_visible_rows(a, factors, r0, r1); });
    return;
  }
  const int64_t sixteens = (a.numbers() + kLanes - 1) / kLanes;
  parallel_for(sixteens, kGrain / kLanes, [&](int64_t s0, int64_t s1) {
    const int64_t begin = s0 * kLanes, end = std::min(a.numbers(), s1 * kLanes);
    a.visible ? move_visible(a, factors, begin, end) : move_all(a, factors, begin, end);
  });
}

// A task is a piece of one tensor, so that few large and many small ones are shared out alike.
void adam_step_many(const AdamStepMany& a) {
  std::vector<AdamFactors> factors;
  std::vector<int64_t> first(1, 0);  // piece
  for (int64_t k = 0; k < a.count; ++k) {
    factors.emplace_back(a.tensors[k]);
    first.push_back(first.back() + (a.tensors[k].numbers() + kPiece - 1) / kPiece);
  }
  parallel_for(first.back(), kGrain / kPiece, [&](int64_t p0, int64_t p1) {
    int64_t k = std::upper_bound(first.begin(), first.end(), p0) - first.begin() - 1;
    for (int64_t p = p0; p < p1; ++p) {
      while (p >= first[size_t(k) + 1]) ++k;
      const int64_t begin = (p - first[size_t(k)]) * kPiece;
      move_all(a.tensors[k], factors[size_t(k)], begin, std::min(begin + kPiece, a.tensors[k].numbers()));
    }
  });
}

}  // namespace vk::VK_ISA
