// The 16-bit types: every bit pattern, and every place where rounding can go wrong.
#include "selftest.h"

namespace {

using selftest::number;
using vk::bf16;
using vk::f16;

/// The value of a 16-bit float from its definition: sign, exponent, mantissa.
double decode(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int exponent = (bits >> mantissa_bits) & top, mantissa = bits & ((1 << mantissa_bits) - 1);
  double value;
  if (exponent == top)
    value = mantissa ? NAN : INFINITY;
  else if (exponent == 0)
    value = std::ldexp(double(mantissa), 1 - bias - mantissa_bits);
  else
    value = std::ldexp(double(mantissa + (1 << mantissa_bits)), exponent - bias - mantissa_bits);
  return bits & 0x8000 ? -value : value;
}

template <class T>
void every_pattern(int exponent_bits, int mantissa_bits) {
  for (int bits = 0; bits < 65536; ++bits) {
    const T x{uint16_t(bits)};
    const double expected = decode(x.bits, exponent_bits, mantissa_bits), got = number(x);
    if (std::isnan(expected)) {
      VK_EXPECT(std::isnan(got));
      VK_EXPECT(std::isnan(number(vk::from_float<T>(vk::to_float(x)))));
      continue;
    }
    VK_EXPECT(got == expected && std::signbit(got) == std::signbit(expected));
    VK_EXPECT(vk::from_float<T>(vk::to_float(x)).bits == x.bits);
  }
}

/// Between each pair of neighbours: the middle goes to the even one, a float beside the middle to the nearer one.
template <class T>
void every_midpoint(int largest_finite) {
  for (int low = 0; low < largest_finite; ++low) {
    const T a{uint16_t(low)}, b{uint16_t(low + 1)};
    const float middle = float((number(a) + number(b)) / 2);
    const uint16_t even = low % 2 ? b.bits : a.bits;
    VK_EXPECT(vk::from_float<T>(middle).bits == even);
    VK_EXPECT(vk::from_float<T>(-middle).bits == (even | 0x8000));
    VK_EXPECT(vk::from_float<T>(std::nextafterf(middle, 0.0f)).bits == a.bits);
    VK_EXPECT(vk::from_float<T>(std::nextafterf(middle, INFINITY)).bits == b.bits);
  }
}

}  // namespace

VK_SELFTEST(half_every_f16_pattern) { every_pattern<f16>(5, 10); }
VK_SELFTEST(half_every_bf16_pattern) { every_pattern<bf16>(8, 7); }
VK_SELFTEST(half_f16_rounds_to_nearest_even) { every_midpoint<f16>(0x7bff); }
VK_SELFTEST(half_bf16_rounds_to_nearest_even) { every_midpoint<bf16>(0x7f7f); }

VK_SELFTEST(half_overflow_goes_to_infinity) {
  VK_EXPECT(vk::from_float<f16>(65519.996f).bits == 0x7bff);
  VK_EXPECT(vk::from_float<f16>(65520.0f).bits == 0x7c00);
  VK_EXPECT(vk::from_float<f16>(-1e30f).bits == 0xfc00);
  VK_EXPECT(vk::from_float<bf16>(3.4e38f).bits == 0x7f80);
  VK_EXPECT(vk::from_float<bf16>(-INFINITY).bits == 0xff80);
}
