// A task is a piece of a row, which goes by sixteens. Pieces leave their sums in `sums`; these are added at the end,
// one row after the other. Only sixteens with a number in the middle interval of a noisy grid need exponentials: of a
// rounded one the middle is q = 0, whose bits all numbers of the row share.
#include <algorithm>
#include <type_traits>

#include "core/parallel.h"
#include "core/vec.h"
#include "ops/fake_quantize_rate/fake_quantize_rate.h"

namespace vk::VK_ISA {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRun = 1024;              // numbers that are summed in float
constexpr float kBelowHalf = 0.499999970f;  // the float below 1/2
constexpr float kLn2High = 0.693359375f;    // few bits: n * kLn2High is exact
constexpr float kLn2Low = -2.12194440e-4f;  // the rest of ln 2
constexpr float kLn2 = 0.693147181f;
constexpr float kToInteger = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which lies in the low bits
constexpr int32_t kRootHalf = 0x3f3504f3;  // the bits of sqrt(1/2)

VK_INLINE V16 magnitude(V16 x) {
  VK_EACH_PART x.p[i] = (PartF)((PartI)x.p[i] & 0x7fffffff);
  return x;
}
VK_INLINE V16 with_sign(V16 x, const V16& sign) {
  VK_EACH_PART x.p[i] = (PartF)((PartI)x.p[i] | ((PartI)sign.p[i] & int32_t(0x80000000)));
  return x;
}

/// To the nearest integer, ties to even.
VK_INLINE V16 rounded(V16 x) {
#if defined(__AVX512F__)
  x.p[0] = (PartF)_mm512_maskz_roundscale_ps(0xffff, (__m512)x.p[0], 0);
#elif defined(__AVX2__)
  VK_EACH_PART x.p[i] = (PartF)_mm256_round_ps((__m256)x.p[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__SSE4_1__)
  VK_EACH_PART x.p[i] = (PartF)_mm_round_ps((__m128)x.p[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  VK_EACH_PART for (int k = 0; k < kPartLanes; ++k) x.p[i][k] = __builtin_nearbyintf(x.p[i][k]);
#endif
  return x;
}

/// e^t and e^t - 1 of t <= 0, both with all their digits.
struct Exponential {
  V16 value, less_one;

  explicit Exponential(const V16& t) {
    const V16 shifted = max(t * V16(kInverseLn2), V16(-126.0f)) + V16(kToInteger);
    const V16 n = shifted - V16(kToInteger);
    V16 scale;
    VK_EACH_PART scale.p[i] = (PartF)(((PartI)shifted.p[i] << 23) + 0x3f800000);
    // Below 2^-126 there is nothing left, and the polynomial must not see how far below.
    const V16 f = max((t - n * V16(kLn2High)) - n * V16(kLn2Low), V16(-0.4f));
    V16 p = madd(f, V16(1.0f / 5040), V16(1.0f / 720));
    p = madd(p, f, V16(1.0f / 120));
    p = madd(p, f, V16(1.0f / 24));
    p = madd(p, f, V16(1.0f / 6));
    p = madd(p, f, V16(0.5f));
    p = madd(p * f, f, f);
    value = madd(scale, p, scale);
    less_one = madd(scale, p, scale - V16(1.0f));
  }
};

/// Natural logarithm of normal numbers > 0, by log m = 2 atanh((m - 1) / (m + 1)) with m in [sqrt 1/2, sqrt 2).
VK_INLINE V16 logarithm(const V16& x) {
  V16 exponent, m;
  VK_EACH_PART {
    const PartI bits = (PartI)x.p[i] - kRootHalf;
    exponent.p[i] = __builtin_convertvector(bits >> 23, PartF);
    m.p[i] = (PartF)((bits & 0x7fffff) + kRootHalf);
  }
  const V16 f = m - V16(1.0f), s = f / (m + V16(1.0f)), z = s * s;
  V16 p = madd(z, V16(2.0f / 9), V16(2.0f / 7));
  p = madd(p, z, V16(2.0f / 5));
  p = madd(p, z, V16(2.0f / 3));
  p = madd(p, z, V16(2.0f));
  return madd(exponent, V16(kLn2), s * p);
}

/// The middle interval: what lies inside and outside.
struct Middle {
  Exponential near, far;

  Middle(const V16& m, const LaplaceRow& row)
      : near((min(m, V16(0.5f)) - V16(0.5f)) * V16(row.a)), far((V16(-0.5f) - m) * V16(row.a)) {}

  V16 mass() const { return (near.less_one + far.less_one) * V16(-0.5f); }

  /// -log(mass); where the mass is almost 1, from what is missing.
  V16 nats() const {
    const V16 miss = (near.value + far.value) * V16(0.5f), almost = V16(1.0f) - miss;
    const V16 lost = (almost - V16(1.0f)) + miss;  // by that subtraction
    const V16 few = select_ge(V16(0.5f), miss, lost / max(almost, V16(0.25f)), V16(0.0f));
    return few - logarithm(select_ge(V16(0.5f), miss, almost, mass()));
  }
};

VK_INLINE bool any_in_the_middle(const V16& m) { return any_ge(V16(kBelowHalf), m); }

template <class T>
VK_INLINE V16 load_few(const T* from, int64_t count) {
  float lane[kLanes] = {};
  for (int64_t k = 0; k < count; ++k) lane[k] = to_float(from[k]);
  return load(lane);
}
template <class T>
VK_INLINE V16 load_some(const T* from, int64_t count) {
  if (count >= kLanes) {
    if constexpr (sizeof(T) == 4) return load(from);
    return load_few(from, kLanes);
  }
  return load_few(from, count);
}
template <class T>
VK_INLINE void store_some(T* to, const V16& v, int64_t count) {
  if constexpr (sizeof(T) == 4) {
    if (count >= kLanes) return store(to, v);
  }
  float lane[kLanes];
  store(lane, v);
  for (int64_t k = 0; k < std::min(count, kLanes); ++k) to[k] = from_float<T>(lane[k]);
}
/// v with zeros behind the first `count` lanes.
VK_INLINE V16 first(const V16& v, int64_t count) {
  if (count >= kLanes) return v;
  float lane[kLanes];
  store(lane, v);
  for (int64_t k = count; k < kLanes; ++k) lane[k] = 0;
  return load(lane);
}

template <class T, bool kRound>
double forward_piece(const FakeQuantizeRate& a, const LaplaceRow& row, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(a.x);
  T* value = static_cast<T*>(a.value);
  const V16 step(row.step), rate(row.a), tail(row.tail), zero(row.zero);
  double total = 0;
  for (int64_t run = begin; run < end; run += kRun) {
    V16 nats(0.0f);
    const int64_t run_end = std::min(end, run + kRun);
    for (int64_t i = run; i < run_end; i += kLanes) {
      const int64_t left = run_end - i;
      const V16 z = load_some(x + i, left) / step;
      const V16 q = kRound ? rounded(z) : z + load_some(a.noise + i, left), m = magnitude(q);
      store_some(value + i, q * step, left);
      V16 some = madd(m - V16(0.5f), rate, tail);
      if constexpr (kRound)
        some = select_ge(V16(kBelowHalf), m, zero, some);
      else if (any_in_the_middle(m))
        some = select_ge(V16(kBelowHalf), m, Middle(m, row).nats(), some);
      nats = nats + first(some, left);
    }
    total += double(sum(nats));
  }
  return total;
}

template <class T, bool kRound>
void backward_piece(const FakeQuantizeRateBackward& a, const LaplaceRow& row, float scale, int64_t begin, int64_t end,
                    double* by_step, double* by_rate) {
  const T *x = static_cast<const T*>(a.in.x), *grad_value = static_cast<const T*>(a.grad_value);
  T* grad_x = static_cast<T*>(a.grad_x);
  const V16 step(row.step), rate(row.a), to_z(scale / row.step), tail_by_rate(row.tail_by_rate);
  const V16 zero_by_rate(row.zero_by_rate);
  double step_total = 0, rate_total = 0;
  for (int64_t run = begin; run < end; run += kRun) {
    V16 step_sum(0.0f), rate_sum(0.0f);
    const int64_t run_end = std::min(end, run + kRun);
    for (int64_t i = run; i < run_end; i += kLanes) {
      const int64_t left = run_end - i;
      const V16 z = load_some(x + i, left) / step, g = load_some(grad_value + i, left);
      V16 q, moved;  // moved = q - z
      if constexpr (kRound) {
        q = rounded(z);
        moved = q - z;
      } else {
        moved = load_some(a.in.noise + i, left);
        q = z + moved;
      }
      const V16 m = magnitude(q);
      V16 slope = rate, of_rate = m + tail_by_rate;
      if constexpr (kRound) {
        slope = select_ge(V16(kBelowHalf), m, V16(0.0f), slope);
        of_rate = select_ge(V16(kBelowHalf), m, zero_by_rate, of_rate);
      } else if (any_in_the_middle(m)) {
        const Middle middle(m, row);
        const V16 halved = V16(0.5f) / middle.mass();
        slope = select_ge(V16(kBelowHalf), m, (middle.near.less_one - middle.far.less_one) * halved * rate, slope);
        const V16 beyond = middle.near.value * (V16(0.5f) - m) + middle.far.value * (V16(0.5f) + m);
        of_rate = select_ge(V16(kBelowHalf), m, V16(0.0f) - beyond * halved, of_rate);
      }
      slope = with_sign(slope, q) * to_z;
      store_some(grad_x + i, g + slope, left);
      step_sum = step_sum + first(g * moved - slope * z, left);
      rate_sum = rate_sum + first(of_rate, left);
    }
    step_total += double(sum(step_sum));
    rate_total += double(sum(rate_sum));
  }
  *by_step = step_total;
  *by_rate = rate_total;
}

/// f(kernel for the element type and mode of the arguments, as a pair of tags)
template <class F>
void for_type(const FakeQuantizeRate& a, F f) {
  const auto with_mode = [&](auto element) { a.noise ? f(element, std::false_type()) : f(element, std::true_type()); };
  switch (a.element) {
    case Element::f16: return with_mode(f16());
    case Element::bf16: return with_mode(bf16());
    default: return with_mode(float());
  }
}

/// f(row, begin, end, piece) for all pieces of all rows.
template <class F>
void each_piece(const FakeQuantizeRate& a, F f) {
  const int64_t pieces = a.pieces();
  const int64_t grain = 1 + 2 * kRateChunk / std::max<int64_t>(1, std::min(a.count, kRateChunk));
  parallel_for(a.rows * pieces, grain, [&](int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; ++p) {
      const int64_t row = p / pieces, begin = row * a.count + p % pieces * kRateChunk;
      f(row, begin, std::min(begin + kRateChunk, (row + 1) * a.count), p);
    }
  });
}

double added(const double* sums, int64_t count) {
  double total = 0;
  for (int64_t k = 0; k < count; ++k) total += sums[k];
  return total;
}

}  // namespace

void fake_quantize_rate(const FakeQuantizeRate& a) {
  for_type(a, [&](auto element, auto round) {
    each_piece(a, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
      const LaplaceRow shared(a.step[row], a.spread[row]);
      a.sums[piece] = forward_piece<decltype(element), round.value>(a, shared, begin, end);
    });
  });
  for (int64_t row = 0; row < a.rows; ++row)
    a.bits[row] = float(added(a.sums + row * a.pieces(), a.pieces()) * kInverseLn2Double);
}

void fake_quantize_rate_backward(const FakeQuantizeRateBackward& a) {
  const int64_t rows = a.in.rows, pieces = a.in.pieces();
  double* by_rate = a.in.sums + rows * pieces;
  for_type(a.in, [&](auto element, auto round) {
    each_piece(a.in, [&](int64_t row, int64_t begin, int64_t end, int64_t piece) {
      const LaplaceRow shared(a.in.step[row], a.in.spread[row]);
      backward_piece<decltype(element), round.value>(a, shared, a.grad_bits[row] * kInverseLn2, begin, end,
                                                     a.in.sums + piece, by_rate + piece);
    });
  });
  for (int64_t row = 0; row < rows; ++row) {
    const double rate = 1 / double(a.in.spread[row]);
    a.grad_step[row] = float(added(a.in.sums + row * pieces, pieces));
    a.grad_spread[row] =
        float(added(by_rate + row * pieces, pieces) * double(a.grad_bits[row]) * -kInverseLn2Double * rate * rate);
  }
}

}  // namespace vk::VK_ISA
