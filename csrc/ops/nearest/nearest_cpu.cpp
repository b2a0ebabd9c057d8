// Who does what, for every item of the batch (codes that the batch shares are prepared once):
//
//   prepare  the codes' mean; every code less the mean: its length (bias), its bf16 form, how far rounding moved it
//   look     a block of points against a stretch of codes: only the least score of every group of codes is kept
//   choose   the k-th least of these minima plus twice the bound on a score's error: groups above cannot matter
//   measure  the codes of the other groups, one by one, by the definition of a value; a sorted list of k per point
//
// Where rows are long (measuring costs) and tiles quick, the block's scores are all kept instead: a point's codes under
// its limit are measured from the least score on, until the next score cannot matter beside the values found.
//
// Where bf16 scores leave too many groups (clusters far tighter than the data), the block is looked at again in
// float32. Nothing that a result is made of depends on scores, blocks or threads.
//
// The bound, for l2 (X = x - mean, C = c - mean; x~, c~ what the products see):
//   2 (|X - x~| |C| + |x~| |C - c~|)  rounding of the operands, both residuals measured
//   + n u (|C|^2 + 2 |X| |C|)         sums of n terms; u = 2^-23 covers the bf16 units, too
//   + m u (|X| + |C|)^2               the measured value itself: m terms in each partial sum
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/nearest/nearest.h"
#include "ops/nearest/nearest_codes.h"
#include "ops/nearest/nearest_tiles.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kBlock = 128;               // points
constexpr int64_t kStretch = 43 * kUnit;      // codes whose minima are held at once
constexpr int64_t kKeptStretch = 21 * kUnit;  // codes whose scores are
constexpr int64_t kKeptDim = 128;             // rows as long are worth keeping scores for
constexpr int64_t kWaiting = 64;              // codes of a point that wait to be measured
constexpr int64_t kMostBuckets = 4 * kNearestMost;
constexpr int64_t kWaveBytes = 64 << 20;  // prepared codes that are held at once

struct Waiting {
  float score;
  int32_t code;
};

struct Block {
  const Plan& p;
  const Codes& codes;
  int64_t batch, first, points;  // rows first .. first + points of one item
  int64_t lanes16;               // blocks of 16 lanes, an even number
  Limits limits;
  bool screened;  // minima come from bf16 products, `group` codes each
  int64_t group;

  Scratch<float> memory;
  float *rows, *packed, *minima, *products, *slack, *exact_slack, *limit, *base, *code_rows;
  uint32_t* pairs;
  float* best;      // [points, k]
  int64_t* chosen;  // [points, k]
  const float* row_of[kBlock];
  int found[kBlock];
  bool broken[kBlock];

  static int64_t row_floats(int64_t dim) { return (dim + 31) / 16 * 16; }

  static size_t floats(const Plan& p) {
    const int64_t dim = p.a.dim, block = p.block, k = p.a.k;
    return size_t(block * (row_floats(dim) + dim + p.pairs + 4 + 3 * k) + block * (p.stretch / kGroup) +
                  (p.keeps ? block * p.stretch : 0) + kTileCodes * row_floats(dim) + 1024);
  }

  Block(const Plan& plan, const Codes& c, int64_t b, int64_t first_row)
      : p(plan), codes(c), batch(b), first(first_row), memory(floats(plan)) {
    const int64_t dim = p.a.dim, k = p.a.k;
    points = std::min(p.block, p.a.count - first);
    lanes16 = (points + 31) / 32 * 2;
    for (int64_t u = 0; u < p.units; ++u) limits.join(codes.limits[u]);
    float* at = memory.data();
    const auto take = [&](int64_t n) {
      float* mine = at;
      at += (n + 15) / 16 * 16;
      return mine;
    };
    rows = p.convert ? take(p.block * row_floats(dim)) : nullptr;
    packed = take(p.block * dim);
    pairs = reinterpret_cast<uint32_t*>(take(p.block * p.pairs));
    minima = take(p.block * (p.stretch / kGroup));
    products = p.keeps ? take(p.block * p.stretch) : nullptr;
    slack = take(p.block), exact_slack = take(p.block), limit = take(p.block), base = take(p.block);
    code_rows = take(kTileCodes * row_floats(dim));
    best = take(p.block * k);
    chosen = reinterpret_cast<int64_t*>(take(2 * p.block * k));
  }

  /// Where the scores of the screen or, if `exact`, of the float32 tiles may be wrong by at most the result.
  double bound(double length, double moved, double plain, bool exact) const {
    constexpr double u = 0x1p-24;
    const double dim = double(p.a.dim), most = limits.length, steps = double(p.a.dim) + 8, terms = dim / 16 + 16;
    const double x_moved = (exact ? 0 : moved) + 2 * u * length;
    const double c_moved = (exact ? 0 : double(limits.moved)) + 2 * u * most;
    const double products = x_moved * most + (length + x_moved) * c_moved;
    const double tiny = dim * 0x1p-120 * (length + most + 1);
    const double largest = p.distance ? 4 * (length + most) * (length + most) : length * most + plain * limits.plain;
    if (!(largest < 1e38)) return kInf;  // a score or a value may overflow: measure everything
    if (p.distance)
      return 2 * products + 4 * u * most * most + steps * 2 * u * (most * most + 2 * length * most) +
             terms * u * (length + most) * (length + most) + 8 * u * length * length + tiny;
    return products + steps * 2 * u * length * most + terms * u * plain * double(limits.plain) + tiny;
  }

  void read_points() {
    const int64_t dim = p.a.dim, offset = batch * p.a.point_batch_stride;
    for (int64_t i = 0; i < lanes16 * kLanes; ++i) {
      const int64_t row = first + std::min(i, points - 1);  // lanes without a point repeat the last one
      if (p.convert) {
        float* mine = rows + i * row_floats(dim);
        read_row(p, p.a.points, offset + row * p.a.point_stride, mine);
        row_of[i] = mine;
      } else {
        row_of[i] = static_cast<const float*>(p.a.points) + offset + row * p.a.point_stride;
      }
      V16 length = 0.0f, moved = 0.0f, along = 0.0f;
      for (int64_t d = 0; d < dim; d += 16) {
        const int64_t n = std::min<int64_t>(16, dim - d);
        const V16 given = load_some(row_of[i] + d, n), mean = load_some(codes.mean + d, n);
        const V16 x = p.distance ? given - mean : given;
        length = madd(x, x, length);
        along = madd(given, mean, along);
#if defined(VK_NEAREST_SCREENS)
        const V16 rest = x - round_bf16(x);
        moved = madd(rest, rest, moved);
#endif
      }
      const double square = sum16(length), size = std::sqrt(square);
      broken[i] = !(square < double(kInf)) && has_nan(row_of[i], dim);
      slack[i] = up(2 * bound(size, std::sqrt(sum16(moved)), size, false));
      exact_slack[i] = up(2 * bound(size, 0, size, true));
      base[i] = float(p.distance ? square : -sum16(along));
      found[i] = 0;
    }
  }

  /// Points less the mean, times -2 (or -1), as [d][16] floats.
  void pack_floats() {
    const int64_t dim = p.a.dim;
    for (int64_t q = 0; q < lanes16; ++q) {
      float* to = packed + q * dim * kLanes;
      const float* const* row = row_of + q * kLanes;
      for (int64_t d = 0; d < dim; d += 16) {
        const int64_t n = std::min<int64_t>(16, dim - d);
        const V16 mean = p.distance ? load_some(codes.mean + d, n) : V16(0.0f);
        const V16 factor = p.distance ? -2.0f : -1.0f;
#if defined(VK_NEAREST_SCREENS)
        PartI r[16];
        for (int i = 0; i < 16; ++i) r[i] = (PartI)(factor * (load_some(row[i] + d, n) - mean)).p[0];
        transpose16(r);
        for (int64_t i = 0; i < n; ++i) store_part(to + (d + i) * kLanes, (PartF)r[i]);
#else
        for (int i = 0; i < 16; ++i) {
          float lane[16];
          store(lane, factor * (load_some(row[i] + d, n) - mean));
          for (int64_t m = 0; m < n; ++m) to[(d + m) * kLanes + i] = lane[m];
        }
#endif
      }
    }
  }

#if defined(VK_NEAREST_SCREENS)
  /// The same as [d / 2][16] pairs of bf16.
  void pack_pairs() {
    const int64_t dim = p.a.dim;
    const V16 factor = p.distance ? -2.0f : -1.0f;
    alignas(64) uint16_t line[16][32];
    for (int64_t q = 0; q < lanes16; ++q) {
      uint32_t* to = pairs + q * p.pairs * kLanes;
      for (int64_t d = 0; d < 2 * p.pairs; d += 32) {
        for (int i = 0; i < 16; ++i)
          for (int64_t h = 0; h < 32; h += 16) {
            const int64_t n = std::max<int64_t>(0, std::min<int64_t>(16, dim - d - h)), from = std::min(d + h, dim);
            V16 x = load_some(row_of[q * kLanes + i] + from, n);
            if (p.distance) x = x - load_some(codes.mean + from, n);
            store_bf16(line[i] + h, round_bf16(factor * x));
          }
        PartI r[16];
        std::memcpy(r, line, sizeof r);
        transpose16(r);
        const int64_t lines = std::min<int64_t>(16, p.pairs - d / 2);
        for (int64_t i = 0; i < lines; ++i) std::memcpy(to + (d / 2 + i) * kLanes, &r[i], sizeof r[i]);
      }
    }
  }

  void look_screened(int64_t from, int64_t to) {
    const int64_t tile = p.screens == Screens::amx ? 32 : 12, per_block = p.stretch / group * kLanes;
#if defined(VK_NEAREST_AMX)
    if (p.screens == Screens::amx) amx_begin();
#endif
    for (int64_t j = from; j < to; j += tile) {
      float* out = minima + (j - from) / group * kLanes;
      const uint32_t* rows_of_codes = codes.pairs + j * p.pairs;
      if (p.screens == Screens::dot) tiles_dot(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block);
#if defined(VK_NEAREST_AMX)
      else if (group == 16)
        tiles_amx<true>(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block,
                        p.keeps ? products + (j - from) * kLanes : nullptr, p.stretch * kLanes);
      else
        tiles_amx<false>(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block, nullptr, 0);
#endif
    }
#if defined(VK_NEAREST_AMX)
    if (p.screens == Screens::amx) amx_end();
#endif
  }
#endif

  void look_exactly(int64_t from, int64_t to) {
    const int64_t dim = p.a.dim, stride = row_floats(dim), per_block = p.stretch / kGroup * kLanes;
    for (int64_t j = from; j < to; j += kTileCodes) {
      for (int i = 0; i < kTileCodes; ++i) {
        float* out = code_rows + i * stride;
        if (j + i >= p.a.length || codes.bias[j + i] == kInf) {
          std::fill_n(out, dim, 0.0f);
          continue;
        }
        const float* c = codes.rows + (j + i) * codes.stride;
        for (int64_t d = 0; d < dim; ++d) out[d] = c[d] - codes.mean[d];
      }
      tiles_f32(packed, lanes16, code_rows, stride, codes.bias + j, dim, minima + (j - from) / kGroup * kLanes,
                per_block);
    }
  }

  /// limit[i]: what the least score of a group may be for the group to matter. `groups` minima per block of lanes.
  void choose(int64_t groups, int64_t from) {
    const int64_t per_block = p.stretch / group * kLanes;
    const int k = p.a.k;
    const float* allowance = screened ? slack : exact_slack;
    const int64_t buckets = std::min<int64_t>(groups, k == 1 ? 1 : 4 * k);
    alignas(64) float bucket[kMostBuckets * kLanes], least[kNearestMost * kLanes];
    for (int64_t q = 0; q < lanes16; ++q) {
      float* mine = minima + q * per_block;
      if (p.a.candidates != NearestCandidates::all) mark(q, groups, from, kInf);
      for (int64_t g = 0; g < buckets; ++g) {
        V16 low = load(mine + g * kLanes);
        for (int64_t h = g + buckets; h < groups; h += buckets) low = min(low, load(mine + h * kLanes));
        store(bucket + g * kLanes, low);
      }
      if (buckets < k) {
        for (int i = 0; i < kLanes; ++i) limit[q * kLanes + i] = kInf;
      } else if (k == 1) {
        std::memcpy(limit + q * kLanes, bucket, sizeof(float) * kLanes);
      } else {
        for (int s = 0; s < k; ++s) store(least + s * kLanes, V16(kInf));
        for (int64_t g = 0; g < buckets; ++g) {
          V16 x = load(bucket + g * kLanes);
          for (int s = 0; s < k; ++s) {
            const V16 there = load(least + s * kLanes);
            store(least + s * kLanes, min(there, x));
            x = max(there, x);
          }
        }
        std::memcpy(limit + q * kLanes, least + (k - 1) * kLanes, sizeof(float) * kLanes);
      }
      for (int64_t i = q * kLanes; i < (q + 1) * kLanes; ++i) {
        const float bar = std::min(limit[i] + allowance[i], bar_of(i));
        limit[i] = bar == bar && allowance[i] < kInf && allowance[i] == allowance[i] ? bar : kInf;
        if (i >= points || broken[i]) limit[i] = -kInf;
      }
      if (p.a.candidates != NearestCandidates::all) mark(q, groups, from, -kInf);
    }
  }

  /// What a score may be for its code to matter beside the values that were measured.
  float bar_of(int64_t i) const {
    const float allowance = screened ? slack[i] : exact_slack[i];
    if (found[i] < p.a.k || !(allowance < kInf)) return kInf;
    const double last = best[i * p.a.k + p.a.k - 1], other = last - double(base[i]);
    const double room = 0.5 * allowance + 0x1p-22 * (std::fabs(last) + std::fabs(double(base[i])));
    return up(other + room + 0x1p-20 * std::fabs(other + room));
  }

  bool is_candidate(int64_t i, int64_t code) const {
    if (p.a.candidates == NearestCandidates::all) return true;
    return p.a.candidates == NearestCandidates::others ? code != first + i : code < first + i;
  }

  /// The group in which a point meets itself takes `value`: it is left out of the choice, but always looked at. Groups
  /// of later codes only, where they are no candidates, are infinitely far.
  void mark(int64_t q, int64_t groups, int64_t from, float value) {
    const bool before = p.a.candidates == NearestCandidates::before;
    for (int64_t i = q * kLanes; i < std::min(points, (q + 1) * kLanes); ++i) {
      float* mine = minima + q * (p.stretch / group) * kLanes + i % kLanes;
      const int64_t row = first + i - from, g = row < 0 ? -1 : row / group;
      if (g >= 0 && g < groups) mine[g * kLanes] = value;
      for (int64_t later = g + 1; before && later < groups; ++later) mine[later * kLanes] = kInf;
    }
  }

  int64_t count_groups(int64_t groups) const {
    int64_t n = 0;
    for (int64_t q = 0; q < lanes16; ++q)
      for (int64_t g = 0; g < groups; ++g)
        n += __builtin_popcount(not_above(minima + (q * (p.stretch / group) + g) * kLanes, limit + q * kLanes));
    return n;
  }

  void insert(int64_t i, int64_t code, float value) {
    const int k = p.a.k;
    float* values = best + i * k;
    int64_t* codes_of = chosen + i * k;
    // Codes come in any order; of equal values the lower code is kept.
    const auto after = [&](int s) { return values[s] > value || (values[s] == value && codes_of[s] > code); };
    if (!(found[i] < k ? value == value : after(k - 1))) return;
    int at = found[i] < k ? found[i]++ : k - 1;
    for (; at > 0 && after(at - 1); --at) values[at] = values[at - 1], codes_of[at] = codes_of[at - 1];
    values[at] = value;
    codes_of[at] = code;
  }

  /// Up to four codes for point i.
  void measure_four(int64_t i, const int64_t* which, int count) {
    const float* four[4];
    for (int m = 0; m < 4; ++m) four[m] = codes.rows + which[std::min(m, count - 1)] * codes.stride;
    float value[4];
    if (p.distance)
      measure<true>(row_of[i], four, p.a.dim, value);
    else
      measure<false>(row_of[i], four, p.a.dim, value);
    for (int m = 0; m < count; ++m) insert(i, which[m], p.distance ? value[m] : -value[m]);
  }

  /// The best of sixteen codes from `from` on for point i, where all are candidates and one is wanted: only it is
  /// inserted. False where a value is no finite number, which takes more care.
  bool measure_sixteen(int64_t i, int64_t from) {
    alignas(64) float value[kLanes], least[kLanes];
    for (int f = 0; f < kLanes; f += 4) {
      const float* four[4];
      for (int m = 0; m < 4; ++m) four[m] = codes.rows + (from + f + m) * codes.stride;
      if (p.distance)
        measure<true>(row_of[i], four, p.a.dim, value + f);
      else
        measure<false>(row_of[i], four, p.a.dim, value + f);
    }
    V16 all = load(value);
    if (!(std::fabs(sum(all)) < kInf)) return false;
    if (!p.distance) all = 0.0f - all;
    store(value, all);
    store(least, all);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int m = 0; m < half; ++m) least[m] = least[m + half] < least[m] ? least[m + half] : least[m];
    store(least, V16(least[0]));
    insert(i, from + __builtin_ctz(not_above(value, least)), least[0]);
    return true;
  }

  /// Codes [from, to) for point i, less those that are no candidates of it.
  void measure_codes(int64_t i, int64_t from, int64_t to) {
    if (to - from == kLanes && p.a.k == 1 && p.a.candidates == NearestCandidates::all && measure_sixteen(i, from))
      return;
    int64_t which[4];
    int count = 0;
    for (int64_t j = from; j < to; ++j) {
      if (is_candidate(i, j)) which[count++] = j;
      if (count == 4 || (count && j + 1 == to)) measure_four(i, which, count), count = 0;
    }
  }

  /// The codes of the list, the most promising first, until no other can matter.
  void measure_waiting(int64_t i, int64_t from, Waiting* list, int64_t count) {
    std::sort(list, list + count, [](const Waiting& a, const Waiting& b) { return a.score < b.score; });
    for (int64_t n = 0; n < count && !(list[n].score > bar_of(i)); n += 4) {
      const int some = int(std::min<int64_t>(4, count - n));
      int64_t which[4];
      for (int m = 0; m < some; ++m) which[m] = from + list[n + m].code;
      measure_four(i, which, some);
    }
  }

  /// Calls f(j, lanes, scores) for every kept score of block q, with the lanes where the code might matter.
  template <class F>
  void each_kept(int64_t q, int64_t from, int64_t to, F f) const {
    const float* mine = limit + q * kLanes;
    alignas(64) float score[kLanes];
    for (int64_t j = 0; j < to - from; j += group) {
      if (!not_above(minima + (q * p.stretch + j) / group * kLanes, mine)) continue;
      for (int64_t i = j; i < std::min(to - from, j + group); ++i) {
        store(score, load(products + (q * p.stretch + i) * kLanes) + codes.bias[from + i]);
        if (const uint32_t mask = not_above(score, mine)) f(i, mask, score);
      }
    }
  }

  int64_t count_kept(int64_t from, int64_t to) const {
    int64_t n = 0;
    for (int64_t q = 0; q < lanes16; ++q)
      each_kept(q, from, to, [&](int64_t, uint32_t mask, const float*) { n += __builtin_popcount(mask); });
    return n;
  }

  /// As measure_groups, by the scores of the single codes.
  void measure_kept(int64_t from, int64_t to) {
    Waiting list[kLanes][kWaiting];
    for (int64_t q = 0; q < lanes16; ++q) {
      int64_t waiting[kLanes] = {};
      each_kept(q, from, to, [&](int64_t j, uint32_t mask, const float* score) {
        for (; mask; mask &= mask - 1) {
          const int64_t lane = __builtin_ctz(mask), i = q * kLanes + lane;
          if (i >= points || broken[i] || !is_candidate(i, from + j)) continue;
          list[lane][waiting[lane]++] = {score[lane] == score[lane] ? score[lane] : -kInf, int32_t(j)};
          if (waiting[lane] < kWaiting) continue;
          measure_waiting(i, from, list[lane], kWaiting);
          waiting[lane] = 0;
        }
      });
      for (int64_t lane = 0; lane < kLanes; ++lane)
        if (waiting[lane]) measure_waiting(q * kLanes + lane, from, list[lane], waiting[lane]);
    }
  }

  void measure_groups(int64_t groups, int64_t from, int64_t to) {
    for (int64_t q = 0; q < lanes16; ++q)
      for (int64_t g = 0; g < groups; ++g) {
        uint32_t mask = not_above(minima + (q * (p.stretch / group) + g) * kLanes, limit + q * kLanes);
        for (; mask; mask &= mask - 1) {
          const int64_t i = q * kLanes + __builtin_ctz(mask);
          if (i < points && !broken[i]) measure_codes(i, from + g * group, std::min(to, from + (g + 1) * group));
        }
      }
  }

  void run() {
    read_points();
    const int64_t end = p.a.candidates == NearestCandidates::before ? first + points : p.a.length;
    bool floats_packed = false;
#if defined(VK_NEAREST_SCREENS)
    if (codes.pairs && end > 0) pack_pairs();
#endif
    for (int64_t from = 0; from < end; from += p.stretch) {
      const int64_t to = std::min(end, from + p.stretch);
      screened = false;
#if defined(VK_NEAREST_SCREENS)
      if (codes.pairs) {
        screened = true;
        group = p.group;
        look_screened(from, to);
        const int64_t groups = (to - from + group - 1) / group;
        choose(groups, from);
        if (p.keeps) {
          screened = count_kept(from, to) * 8 <= (to - from + 256) * points;
          if (screened) measure_kept(from, to);
        } else {
          screened = count_groups(groups) * 8 <= (groups + 64) * points;
          if (screened) measure_groups(groups, from, to);
        }
      }
#endif
      if (screened) continue;
      if (!floats_packed) pack_floats();
      floats_packed = true;
      group = kGroup;
      look_exactly(from, to);
      const int64_t groups = (to - from + group - 1) / group;
      choose(groups, from);
      measure_groups(groups, from, to);
    }
    write();
  }

  void write() {
    const int k = p.a.k;
    for (int64_t i = 0; i < points; ++i) {
      const int64_t at = (batch * p.a.count + first + i) * k;
      for (int s = 0; s < k; ++s) {
        const bool there = s < found[i] && !broken[i];
        const float value = broken[i] ? std::numeric_limits<float>::quiet_NaN() : there ? best[i * k + s] : kInf;
        p.a.index[at + s] = there ? chosen[i * k + s] : -1;
        p.a.value[at + s] = p.distance ? value : 0.0f - value;
      }
    }
  }
};

}  // namespace

void nearest(const Nearest& a) {
  if (a.batch * a.count == 0) return;
  static const Screens here = find_screens();
  Plan p{a,
         here,
         a.metric == NearestMetric::l2,
         a.element != Element::f32 || a.metric == NearestMetric::cosine,
         0,
         0,
         kBlock,
         kGroup,
         false,
         kStretch};
  if (a.screen == NearestScreen::none) p.screens = Screens::none;
  if (a.screen == NearestScreen::dot && here == Screens::amx) p.screens = Screens::dot;
  p.keeps = p.screens == Screens::amx && a.dim >= kKeptDim;
  if (p.keeps) p.stretch = kKeptStretch;
  if (p.keeps || (p.screens == Screens::amx && a.k == 1)) p.group = 16;
  if (p.screens != Screens::none) p.pairs = (a.dim + 31) / 32 * 16;
  if (p.screens == Screens::dot || a.candidates == NearestCandidates::before) p.block = kBlock / 2;
  p.units = (a.length + kUnit - 1) / kUnit;

  // Codes of as many items as fit are prepared, then used.
  const int64_t padded = p.units * kUnit, mean = (a.dim + 15) / 16 * 16;
  const int64_t own = p.convert ? (a.length * a.dim + 15) / 16 * 16 : 0;
  const int64_t limits = (p.units * int64_t(sizeof(Limits)) / 4 + 16) / 16 * 16;
  const int64_t words = own + mean + padded + padded * p.pairs + limits;
  const int64_t wave = std::max<int64_t>(1, std::min(a.code_batch, kWaveBytes / 4 / std::max<int64_t>(1, words)));
  const int64_t blocks = (a.count + p.block - 1) / p.block, items = a.code_batch == 1 ? a.batch : 1;
  Scratch<float> memory(size_t(wave * words));
  Scratch<Codes> sets(static_cast<size_t>(wave));
  for (int64_t b0 = 0; b0 < a.code_batch; b0 += wave) {
    const int64_t held = std::min(wave, a.code_batch - b0);
    const auto offset = [&](int64_t b) { return (b0 + b) * a.code_batch_stride; };
    parallel_each(held, [&](int64_t b) {
      float* at = memory.data() + b * words;
      Codes& c = sets[size_t(b)];
      c.own = p.convert ? at : nullptr;
      c.rows = p.convert ? at : static_cast<const float*>(a.codes) + offset(b);
      c.stride = p.convert ? a.dim : a.code_stride;
      c.mean = at + own, c.bias = c.mean + mean;
      c.pairs = p.pairs ? reinterpret_cast<uint32_t*>(c.bias + padded) : nullptr;
      c.limits = reinterpret_cast<Limits*>(c.bias + padded + padded * p.pairs);
      take_mean(p, a.codes, offset(b), c);
    });
    parallel_each(held * p.units, [&](int64_t u) {
      prepare_unit(p, a.codes, offset(u / p.units), sets[size_t(u / p.units)], u % p.units);
    });
    parallel_each(held * items * blocks, [&](int64_t i) {
      const int64_t b = i / blocks;
      Block block(p, sets[size_t(a.code_batch == 1 ? 0 : b)], a.code_batch == 1 ? b : b0 + b, i % blocks * p.block);
      block.run();
    });
  }
}

}  // namespace vk::VK_ISA
