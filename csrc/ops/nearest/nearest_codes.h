// Codes of nearest, made ready to be looked at: their mean, what is left of each, its length and its bf16 form.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/scratch.h"
#include "ops/nearest/nearest.h"
#include "ops/nearest/nearest_tiles.h"

namespace vk::VK_ISA {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kUnit = 96;  // codes that are prepared together; a multiple of every tile

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
  bool keeps;              // all scores of a block and a stretch
  int64_t stretch;         // codes whose scores are held at once
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
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i + half] > lane[i] ? lane[i + half] : lane[i];
  return lane[0];
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
  uint32_t bits = 127u << 23;
  if (most > 0 && most < kInf) {
    std::memcpy(&bits, &most, sizeof most);
    bits = (253 - std::min(bits >> 23, 252u)) << 23;
  }
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  for (int64_t d = 0; d < dim; ++d) out[d] *= scale;  // NaN and infinity pass this as they are
  const float square = measure_self(out, dim), inverse = square == 0 ? 0 : 1 / std::sqrt(square);
  for (int64_t d = 0; d < dim; ++d) out[d] *= inverse;
}

double sum16(const V16& v) {
  float lane[16];
  double s[8];
  store(lane, v);
  for (int i = 0; i < 8; ++i) s[i] = double(lane[i]) + double(lane[i + 8]);
  for (int i = 0; i < 4; ++i) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

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

}  // namespace
}  // namespace vk::VK_ISA
