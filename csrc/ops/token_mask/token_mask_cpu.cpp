// One selection: scores into a small array, then the threshold by bisection (count the scores up to `middle`: one
// vectorised pass, whatever the distribution, and no passes beyond the point where the count is exact), then one
// branch-free pass that appends every position to both lists and advances one of them.
// Running cells whose count is a whole number of places need no random numbers: four pairs of lists serve all frames.
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "core/parallel.h"
#include "ops/token_mask/token_mask.h"

namespace vk::VK_ISA {
namespace {

struct Threshold {
  uint32_t score;  // smaller scores are masked
  int64_t ties;    // and so many of the equal ones, in ascending order of position
};

/// `score` is padded to whole calls of the generator.
void random_words(uint32_t* score, int64_t length, uint32_t group, uint32_t sample, PhiloxKey key) {
  const int64_t calls = (length + 3) / 4;
#pragma omp simd
  for (int64_t i = 0; i < calls; ++i) {
    const PhiloxWords w = philox4x32(uint32_t(i), group, sample, kCells, key);
    score[4 * i] = w.w0;
    score[4 * i + 1] = w.w1;
    score[4 * i + 2] = w.w2;
    score[4 * i + 3] = w.w3;
  }
}

/// The start of sample b's cycle, for running cells.
uint32_t phase(uint32_t b, PhiloxKey key) { return philox4x32(0, 0, b, kSample, key).w0; }

void add_places(uint32_t* score, const TokenMask& a, uint32_t shift) {
  for (int32_t y = 0; y < a.height; ++y)
    for (int32_t x = 0; x < a.width; ++x) {
      uint32_t& s = score[int64_t(y) * a.width + x];
      s = ((running_cell_place(y, x, a.height, a.width) + shift) & 3) << 30 | s >> 2;
    }
}

void add_blocks(uint32_t* score, const TokenMask& a, uint32_t b, PhiloxKey key) {
  for (int64_t i = 0; i < a.length; ++i) score[i] = score[i] >> 1 | 0x80000000u;
  for (int32_t j = 0; j < a.blocks; ++j) {
    const PhiloxWords w = philox4x32(uint32_t(j), 0, b, kSample, key);
    const uint32_t size = philox_below(w.w0, uint32_t(a.block_sizes));
    const int32_t h = a.sizes[2 * size], wide = a.sizes[2 * size + 1];
    const int64_t top = philox_below(w.w1, uint32_t(a.height - h + 1));
    const int64_t left = philox_below(w.w2, uint32_t(a.width - wide + 1));
    for (int64_t y = top; y < top + h; ++y)
      for (int64_t x = left; x < left + wide; ++x) score[y * a.width + x] &= 0x7fffffffu;
  }
}

int64_t count_up_to(const uint32_t* score, int64_t length, uint32_t bound) {
  int64_t total = 0;
  for (int64_t i0 = 0; i0 < length; i0 += 1 << 20) {  // 32-bit counters keep the vectors full
    const int64_t end = i0 + (1 << 20) < length ? i0 + (1 << 20) : length;
    uint32_t n = 0;
#pragma omp simd reduction(+ : n)
    for (int64_t i = i0; i < end; ++i) n += score[i] <= bound;
    total += n;
  }
  return total;
}

Threshold find(const uint32_t* score, int64_t length, int64_t count) {
  if (count == 0) return {0, 0};
  uint32_t low = 0, high = 0xffffffffu;  // count_up_to(high) >= count
  int64_t below = 0;                     // count_up_to(low - 1)
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    const int64_t n = count_up_to(score, length, middle);
    if (n == count) return {middle, length};  // every score up to here is masked, ties included
    if (n < count) {
      low = middle + 1;
      below = n;
    } else {
      high = middle;
    }
  }
  return {low, count - below};
}

constexpr int64_t kSlack = 16;  // entries that a list may get too many before the other one advances

/// Positions of the visible and of the masked, ascending.
struct Lists {
  int32_t *visible, *masked;
  int64_t count = -1;  // of the masked, if these lists can serve again
};

/// What one thread works with.
struct Work {
  uint32_t* score;
  Lists lists[4];
  int64_t places[4] = {};  // running cells: how many there are of each
};

void split(const uint32_t* score, int64_t length, Threshold t, const Lists& to) {
  int64_t v = 0, m = 0, i = 0;
  if (t.ties >= length) {
#if defined(__AVX512F__)
    const __m512i bound = _mm512_set1_epi32(int32_t(t.score));
    __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= length; i += 16) {
      const __mmask16 hide = _mm512_cmple_epu32_mask(_mm512_loadu_si512(score + i), bound);
      _mm512_storeu_si512(to.masked + m, _mm512_maskz_compress_epi32(hide, position));
      _mm512_storeu_si512(to.visible + v, _mm512_maskz_compress_epi32(__mmask16(~hide), position));
      const int hidden = __builtin_popcount(hide);
      m += hidden;
      v += 16 - hidden;
      position = _mm512_add_epi32(position, _mm512_set1_epi32(16));
    }
#endif
    for (; i < length; ++i) {
      const bool hide = score[i] <= t.score;
      to.visible[v] = to.masked[m] = int32_t(i);
      m += hide;
      v += !hide;
    }
    return;
  }
  for (; i < length; ++i) {
    const bool tie = score[i] == t.score && t.ties > 0;
    const bool hide = score[i] < t.score || tie;
    t.ties -= tie;
    to.visible[v] = to.masked[m] = int32_t(i);
    m += hide;
    v += !hide;
  }
}

/// Whether masking `count` cells takes whole places, those that stand first in the cycle at this shift.
bool whole_places(const Work& w, uint32_t shift, int64_t count) {
  int64_t taken = 0;
  for (uint32_t c = 0; c < 4 && taken < count; ++c) taken += w.places[(c - shift) & 3];
  return taken == count;
}

/// The lists of sample b, group g.
const Lists& choose(const TokenMask& a, int64_t b, int64_t g, uint32_t start, int64_t count, PhiloxKey key, Work& w) {
  const uint32_t shift = uint32_t(g) + start;
  Lists& lists = w.lists[a.kind == MaskKind::running_cell ? shift & 3 : 0];
  const bool whole = a.kind == MaskKind::running_cell && whole_places(w, shift, count);
  if (whole && lists.count == count) return lists;
  lists.count = whole ? count : -1;
  if (a.kind == MaskKind::scores) {
    const float* given = a.scores + (b * a.groups + g) * a.length;
    for (int64_t i = 0; i < a.length; ++i) w.score[i] = score_key(given[i], a.largest);
  } else if (!whole) {
    random_words(w.score, a.length, uint32_t(g), uint32_t(b), key);
  } else {
    for (int64_t i = 0; i < a.length; ++i) w.score[i] = 0;
  }
  if (a.kind == MaskKind::running_cell) add_places(w.score, a, shift);
  if (a.kind == MaskKind::block) add_blocks(w.score, a, uint32_t(b), key);
  split(w.score, a.length, find(w.score, a.length, count), lists);
  return lists;
}

void select(const TokenMask& a, int64_t b, Work& w) {
  const int64_t count = !a.counts ? a.high : a.counts[b] < a.low ? a.low : a.counts[b] > a.high ? a.high : a.counts[b];
  const int64_t rest = a.length - count, times = a.groups * a.repeat;
  const int64_t visible_width = times * (a.length - a.low), masked_width = times * a.high;
  int32_t *visible = a.visible + b * visible_width, *masked = a.masked + b * masked_width;
  const PhiloxKey key = a.seed ? philox_key(*a.seed) : PhiloxKey{0, 0};
  const uint32_t start = a.kind == MaskKind::running_cell ? phase(uint32_t(b), key) : 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    const Lists& lists = choose(a, b, g, start, count, key, w);
    for (int64_t r = 0; r < a.repeat; ++r) {
      const int32_t offset = int32_t((g + r) * a.length);
      int32_t *to_visible = visible + (g + r) * rest, *to_masked = masked + (g + r) * count;
      for (int64_t i = 0; i < rest; ++i) to_visible[i] = lists.visible[i] + offset;
      for (int64_t i = 0; i < count; ++i) to_masked[i] = lists.masked[i] + offset;
    }
  }
  for (int64_t i = times * rest; i < visible_width; ++i) visible[i] = -1;
  for (int64_t i = times * count; i < masked_width; ++i) masked[i] = -1;
}

}  // namespace

void token_mask(const TokenMask& a) {
  const int64_t padded = (a.length + 3) / 4 * 4, list = a.length + kSlack;
  const bool cells = a.kind == MaskKind::running_cell;
  const int64_t work = a.groups * a.length * (4 + a.repeat / 4);
  parallel_for(a.batch, 1 + 49152 / work, [&](int64_t b0, int64_t b1) {
    uint32_t* memory = new uint32_t[size_t(padded + (cells ? 8 : 2) * list)];
    int32_t* lists = reinterpret_cast<int32_t*>(memory + padded);
    Work w{memory, {}};
    for (int i = 0; i < (cells ? 4 : 1); ++i) w.lists[i] = {lists + 2 * i * list, lists + (2 * i + 1) * list};
    if (cells)
      for (int32_t y = 0; y < a.height; ++y)
        for (int32_t x = 0; x < a.width; ++x) ++w.places[running_cell_place(y, x, a.height, a.width) & 3];
    for (int64_t b = b0; b < b1; ++b) select(a, b, w);
    delete[] memory;
  });
}

}  // namespace vk::VK_ISA
