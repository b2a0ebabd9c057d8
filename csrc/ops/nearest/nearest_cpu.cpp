// Who does what, for every item of the batch (codes that the batch shares are prepared once):
//
//   prepare  the codes' mean; every code less the mean: its length (bias), its bf16 form, how far rounding moved it
//   look     a block of points against a stretch of codes: only the least score of every group of codes is kept
//   choose   the k-th least of these minima plus twice the bound on a score's error: groups above cannot matter
//   measure  the codes of the other groups, one by one, by the definition of a value; a sorted list of k per point
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
#include "ops/nearest/nearest_tiles.h"

namespace vk::VK_ISA {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kUnit = 96;             // codes that are prepared together; a multiple of every tile
constexpr int64_t kStretch = 43 * kUnit;  // codes whose minima are held at once
constexpr int64_t kBlock = 128;           // points
constexpr int64_t kMostBuckets = 4 * kNearestMost;
constexpr int64_t kWaveBytes = 64 << 20;  // prepared codes that are held at once

struct Limits {                            // of some codes
  float length = 0, moved = 0, plain = 0;  // |C|, |C - c~|, |c|
  void join(const Limits& o) {
    length = std::fmax(length, o.length), moved = std::fmax(moved, o.moved), plain = std::fmax(plain, o.plain);
    if (o.length != o.length || o.plain != o.plain) length = kInf;
  }
};

/// One set of codes, ready to be looked at.
struct Codes {
  const float* rows;  // [K, D], as they were given, or normalised
  int64_t stride;
  float *own, *mean, *bias;  // [K, D] where rows had to be made; [D]; [Kp]
  uint32_t* pairs;           // [Kp, Dp / 2] bf16 of the codes less their mean
  Limits* limits;            // per unit
};

struct Plan {
  const Nearest& a;
  Screens screens;
  bool distance, convert;  // l2; rows need to be made (another type, or normalised)
  int64_t pairs;           // words of a bf16 row
  int64_t units;           // of codes
  int64_t block;           // points
  int64_t group;           // codes behind one minimum of a screen
};

float up(double x) { return float(x) * 1.000001f; }

bool has_nan(const float* x, int64_t n) {
  bool any = false;
  for (int64_t i = 0; i < n; ++i) any |= x[i] != x[i];
  return any;
}

float largest(const float* x, int64_t n) {
  V16 most = 0.0f;
  for (int64_t d = 0; d < n; d += 16) {
    const V16 v = load_some(x + d, std::min<int64_t>(16, n - d));
    most = max(max(v, 0.0f - v), most);
  }
  float lane[16];
  store(lane, most);
  return *std::max_element(lane, lane + 16);
}

void read_row(const Plan& p, const void* base, int64_t offset, float* out) {
  const int64_t dim = p.a.dim;
  switch (p.a.element) {
    case Element::bf16:
      for (int64_t d = 0; d < dim; ++d) out[d] = to_float(static_cast<const bf16*>(base)[offset + d]);
      break;
    case Element::f16:
      for (int64_t d = 0; d < dim; ++d) out[d] = to_float(static_cast<const f16*>(base)[offset + d]);
      break;
    default: std::memcpy(out, static_cast<const float*>(base) + offset, size_t(dim) * 4);
  }
  if (p.a.metric != NearestMetric::cosine) return;
  const float most = largest(out, dim);
  // First by a power of two, so that no square overflows or vanishes.
  int exponent = 0;
  if (most > 0 && most < kInf) std::frexp(most, &exponent);
  const float scale = std::ldexp(1.0f, -std::max(-126, std::min(126, exponent)));
  for (int64_t d = 0; d < dim; ++d) out[d] *= scale;  // NaN and infinity pass this as they are
  const float* same[4] = {out, out, out, out};
  float square[4];
  measure<false>(out, same, dim, square);
  const float inverse = square[0] == 0 ? 0 : 1 / std::sqrt(square[0]);
  for (int64_t d = 0; d < dim; ++d) out[d] *= inverse;
}

double sum16(const V16& v) {
  float lane[16];
  store(lane, v);
  double s = 0;
  for (float x : lane) s += x;
  return s;
}

// ---- prepare

void take_mean(const Plan& p, const void* base, int64_t offset, Codes& codes) {
  const int64_t step = std::max<int64_t>(1, p.a.length / 128);  // any vector will do, a rough mean is good
  int64_t used = 0;
  Scratch<float> row(size_t(p.a.dim));
  std::fill_n(codes.mean, p.a.dim, 0.0f);
  for (int64_t j = 0; j < p.a.length; j += step) {
    const float* c = codes.rows + j * codes.stride;
    if (codes.own) read_row(p, base, offset + j * p.a.code_stride, row.data()), c = row.data();
    if (has_nan(c, p.a.dim) || largest(c, p.a.dim) > 1e18f) continue;
    for (int64_t d = 0; d < p.a.dim; ++d) codes.mean[d] += c[d];
    ++used;
  }
  for (int64_t d = 0; d < p.a.dim; ++d) codes.mean[d] /= float(std::max<int64_t>(1, used));
}

/// Bias, bf16 form and limits of the codes [unit * kUnit, ...), padding included.
void prepare_unit(const Plan& p, const void* base, int64_t offset, const Codes& codes, int64_t unit) {
  const int64_t dim = p.a.dim;
  Limits limits;
  for (int64_t j = unit * kUnit; j < (unit + 1) * kUnit; ++j) {
    uint16_t* pairs = codes.pairs ? reinterpret_cast<uint16_t*>(codes.pairs + j * p.pairs) : nullptr;
    bool absent = j >= p.a.length;
    V16 length = 0.0f, moved = 0.0f, plain = 0.0f;
    if (!absent) {
      const float* c = codes.rows + j * codes.stride;
      if (codes.own) read_row(p, base, offset + j * p.a.code_stride, codes.own + j * dim);
      for (int64_t d = 0; d < dim; d += 16) {
        const int64_t n = std::min<int64_t>(16, dim - d);
        const V16 given = load_some(c + d, n), x = given - load_some(codes.mean + d, n);
        plain = madd(given, given, plain);
        length = madd(x, x, length);
#if defined(VK_NEAREST_SCREENS)
        if (pairs) {
          const V16 rounded = round_bf16(x), rest = x - rounded;
          moved = madd(rest, rest, moved);
          store_bf16(pairs + d, rounded);
        }
#endif
      }
      const double square = sum16(length);
      absent = !(square < double(kInf)) && has_nan(c, dim);
      codes.bias[j] = p.distance ? float(square) : 0.0f;
      if (!absent) limits.join({up(std::sqrt(square)), up(std::sqrt(sum16(moved))), up(std::sqrt(sum16(plain)))});
    }
    if (absent) codes.bias[j] = kInf;
    if (pairs) {
      const int64_t from = absent ? 0 : dim;
      std::fill(pairs + from, pairs + 2 * p.pairs, uint16_t(0));
    }
  }
  codes.limits[unit] = limits;
}

// ---- a block of points

struct Block {
  const Plan& p;
  const Codes& codes;
  int64_t batch, first, points;  // rows first .. first + points of one item
  int64_t lanes16;               // blocks of 16 lanes, an even number
  Limits limits;
  bool screened;  // minima come from bf16 products, `group` codes each
  int64_t group;

  Scratch<float> memory;
  float *rows, *packed, *minima, *slack, *exact_slack, *limit, *base, *code_rows;
  uint32_t* pairs;
  float* best;      // [points, k]
  int64_t* chosen;  // [points, k]
  const float* row_of[kBlock];
  int found[kBlock];
  bool broken[kBlock];

  static int64_t row_floats(int64_t dim) { return (dim + 31) / 16 * 16; }

  static size_t floats(const Plan& p) {
    const int64_t dim = p.a.dim, block = p.block, k = p.a.k;
    return size_t(block * (row_floats(dim) + dim + p.pairs + 4 + 3 * k) + block * (kStretch / kGroup) +
                  kTileCodes * row_floats(dim) + 1024);
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
    minima = take(p.block * (kStretch / kGroup));
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
    const int64_t tile = p.screens == Screens::amx ? 32 : 12, per_block = kStretch / group * kLanes;
#if defined(VK_NEAREST_AMX)
    if (p.screens == Screens::amx) amx_begin();
#endif
    for (int64_t j = from; j < to; j += tile) {
      float* out = minima + (j - from) / group * kLanes;
      const uint32_t* rows_of_codes = codes.pairs + j * p.pairs;
      if (p.screens == Screens::dot) tiles_dot(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block);
#if defined(VK_NEAREST_AMX)
      else if (group == 16)
        tiles_amx<true>(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block);
      else
        tiles_amx<false>(pairs, lanes16, rows_of_codes, p.pairs, codes.bias + j, out, per_block);
#endif
    }
#if defined(VK_NEAREST_AMX)
    if (p.screens == Screens::amx) amx_end();
#endif
  }
#endif

  void look_exactly(int64_t from, int64_t to) {
    const int64_t dim = p.a.dim, stride = row_floats(dim), per_block = kStretch / kGroup * kLanes;
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
    const int64_t per_block = kStretch / group * kLanes;
    const int k = p.a.k;
    const float* allowance = screened ? slack : exact_slack;
    const int64_t buckets = std::min<int64_t>(groups, k == 1 ? 1 : 4 * k);
    alignas(64) float bucket[kMostBuckets * kLanes], least[kNearestMost * kLanes];
    for (int64_t q = 0; q < lanes16; ++q) {
      float* mine = minima + q * per_block;
      if (p.a.candidates == NearestCandidates::others) mark_own(q, groups, from, kInf);
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
        float bar = limit[i] + allowance[i];
        if (found[i] == k) {  // what earlier stretches left
          const double last = best[i * k + k - 1], other = last - double(base[i]);
          const double room = 0.5 * allowance[i] + 0x1p-22 * (std::fabs(last) + std::fabs(double(base[i])));
          if (other + room < bar) bar = up(other + room + 0x1p-20 * std::fabs(other + room));
        }
        limit[i] = bar == bar && allowance[i] < kInf && allowance[i] == allowance[i] ? bar : kInf;
        if (i >= points || broken[i]) limit[i] = -kInf;
      }
      if (p.a.candidates == NearestCandidates::others) mark_own(q, groups, from, -kInf);
    }
  }

  /// The group in which a point meets itself: left out of the choice, always measured.
  void mark_own(int64_t q, int64_t groups, int64_t from, float value) {
    for (int64_t i = q * kLanes; i < std::min(points, (q + 1) * kLanes); ++i) {
      const int64_t g = (first + i - from) / group;
      if (first + i >= from && g < groups) minima[q * (kStretch / group) * kLanes + g * kLanes + i % kLanes] = value;
    }
  }

  int64_t count_groups(int64_t groups) const {
    int64_t n = 0;
    for (int64_t q = 0; q < lanes16; ++q)
      for (int64_t g = 0; g < groups; ++g)
        n += __builtin_popcount(not_above(minima + (q * (kStretch / group) + g) * kLanes, limit + q * kLanes));
    return n;
  }

  void insert(int64_t i, int64_t code, float value) {
    const int k = p.a.k;
    float* values = best + i * k;
    int64_t* codes_of = chosen + i * k;
    if (!(found[i] < k ? value == value : value < values[k - 1])) return;
    int at = found[i] < k ? found[i]++ : k - 1;
    for (; at > 0 && values[at - 1] > value; --at) values[at] = values[at - 1], codes_of[at] = codes_of[at - 1];
    values[at] = value;
    codes_of[at] = code;
  }

  /// Codes [from, to) for point i, less those that are no candidates of it.
  void measure_codes(int64_t i, int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j += 4) {
      const float* four[4];
      for (int m = 0; m < 4; ++m) four[m] = codes.rows + std::min(j + m, to - 1) * codes.stride;
      float value[4];
      if (p.distance)
        measure<true>(row_of[i], four, p.a.dim, value);
      else
        measure<false>(row_of[i], four, p.a.dim, value);
      for (int m = 0; m < 4 && j + m < to; ++m) {
        if (p.a.candidates == NearestCandidates::others && j + m == first + i) continue;
        insert(i, j + m, p.distance ? value[m] : -value[m]);
      }
    }
  }

  void measure_groups(int64_t groups, int64_t from, int64_t to) {
    for (int64_t q = 0; q < lanes16; ++q)
      for (int64_t g = 0; g < groups; ++g) {
        uint32_t mask = not_above(minima + (q * (kStretch / group) + g) * kLanes, limit + q * kLanes);
        for (; mask; mask &= mask - 1) {
          const int64_t i = q * kLanes + __builtin_ctz(mask);
          if (i < points && !broken[i]) measure_codes(i, from + g * group, std::min(to, from + (g + 1) * group));
        }
      }
  }

  void run() {
    read_points();
    const bool before = p.a.candidates == NearestCandidates::before;
    // Earlier tokens only: whole groups before the block are looked at, the last few codes are measured at once.
    const int64_t end = before ? first / kUnit * kUnit : p.a.length;
    bool floats_packed = false;
#if defined(VK_NEAREST_SCREENS)
    if (codes.pairs && end > 0) pack_pairs();
#endif
    for (int64_t from = 0; from < end; from += kStretch) {
      const int64_t to = std::min(end, from + kStretch);
      screened = false;
#if defined(VK_NEAREST_SCREENS)
      if (codes.pairs) {
        screened = true;
        group = p.group;
        look_screened(from, to);
        const int64_t groups = (to - from + group - 1) / group;
        choose(groups, from);
        screened = count_groups(groups) * 8 <= groups * points + 64 * points;
        if (screened) measure_groups(groups, from, to);
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
    if (before)
      for (int64_t i = 0; i < points; ++i)
        if (!broken[i]) measure_codes(i, end, first + i);
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
         kGroup};
  if (a.screen == NearestScreen::none) p.screens = Screens::none;
  if (a.screen == NearestScreen::dot && here == Screens::amx) p.screens = Screens::dot;
  if (p.screens == Screens::amx && a.k == 1) p.group = 16;
  if (p.screens != Screens::none) p.pairs = (a.dim + 31) / 32 * 16;
  if (p.screens != Screens::amx || a.candidates == NearestCandidates::before) p.block = kBlock / 2;
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
