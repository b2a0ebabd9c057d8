// The native self-test: CPU kernels against plain loops, without Python and torch, so that it runs wherever a C++
// compiler reaches (a cross compiler and an emulator are enough).
//
//   VK_SELFTEST(gather_tokens_repeated_rows) { VK_EXPECT(a == b); }
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/element.h"
#include "core/half.h"

namespace selftest {

using Body = void (*)();
bool add(const char* name, Body body);
void fail(const char* file, int line, const char* text);

#define VK_SELFTEST(name)                                                        \
  static void name();                                                            \
  [[maybe_unused]] static const bool name##_added = selftest::add(#name, &name); \
  static void name()

#define VK_EXPECT(condition)                                          \
  do {                                                                \
    if (!(condition)) selftest::fail(__FILE__, __LINE__, #condition); \
  } while (0)

/// Numbers that are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return uint32_t(state_ >> 32);
  }
  int32_t below(int32_t n) { return int32_t(bits() % uint32_t(n)); }
  float uniform(float low, float high) { return low + (high - low) * float(bits() >> 8) * 0x1p-24f; }

 private:
  uint64_t state_;
};

template <class T>
struct ElementOf;
template <>
struct ElementOf<float> {
  static constexpr vk::Element value = vk::Element::f32;
};
template <>
struct ElementOf<double> {
  static constexpr vk::Element value = vk::Element::f64;
};
template <>
struct ElementOf<vk::f16> {
  static constexpr vk::Element value = vk::Element::f16;
};
template <>
struct ElementOf<vk::bf16> {
  static constexpr vk::Element value = vk::Element::bf16;
};

template <class T>
double number(T x) {
  return double(vk::to_float(x));
}

template <class T>
T element(double x) {
  return vk::from_float<T>(float(x));
}
template <>
inline double element<double>(double x) {
  return x;
}

template <class T>
std::vector<T> random_elements(size_t n, uint64_t seed, float low = -1, float high = 1) {
  Random random(seed);
  std::vector<T> out(n);
  for (T& x : out) x = element<T>(random.uniform(low, high));
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

/// Largest |a - b| over the largest |b|; NaN anywhere gives infinity.
template <class T>
double relative_error(const std::vector<T>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double worst = 0, scale = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = std::fabs(number(a[i]) - b[i]);
    if (!(d <= 1e300)) return INFINITY;
    worst = d > worst ? d : worst;
    scale = std::fabs(b[i]) > scale ? std::fabs(b[i]) : scale;
  }
  return worst > 0 ? worst / scale : 0;
}

/// A few units in the last place of each storage type, for kernels that sum in fp32 (or fp64).
template <class T>
double rounding() {
  return sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 2e-6 : ElementOf<T>::value == vk::Element::f16 ? 1.5e-3 : 1.2e-2;
}

}  // namespace selftest
