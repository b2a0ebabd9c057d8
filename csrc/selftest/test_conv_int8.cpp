#include "ops/conv_int8/conv_int8.h"
#include "selftest.h"

namespace {

struct Shape {
  int64_t batch, height, width, in, out, kh, kw, scale;
};
// Odd channels, runs of several tiles, more rows than a strip, one, two, three and more than four tiles of columns.
constexpr Shape kShapes[] = {{1, 2, 3, 1, 1, 1, 1, 1},   {2, 5, 19, 7, 3, 3, 3, 3},    {1, 9, 41, 33, 12, 5, 5, 2},
                             {2, 2, 4, 33, 5, 3, 3, 5},  {1, 6, 7, 9, 17, 1, 5, 1},    {1, 40, 70, 12, 3, 3, 3, 1},
                             {1, 7, 33, 15, 7, 3, 3, 2}, {1, 3, 17, 130, 20, 3, 1, 2}, {0, 4, 4, 2, 2, 3, 3, 2}};

/// Multipliers and shifts of networks, or any.
void check(int avoid, bool any) {
  for (const Shape& s : kShapes) {
    const int64_t filters = s.out * s.scale * s.scale, taps = s.kh * s.kw, pixels = s.batch * s.height * s.width;
    selftest::Random random(uint64_t(s.in * 100 + s.width));
    std::vector<uint8_t> x(size_t(pixels * s.in)), table(256), out(size_t(pixels * filters), 7);
    std::vector<int8_t> weight(size_t(filters * taps * s.in), 0);
    std::vector<int32_t> bias(size_t(filters), 0), multiplier(bias), shift(bias);
    for (auto& v : x) v = uint8_t(random.bits());
    for (auto& v : table) v = uint8_t(random.bits());
    for (auto& v : weight) v = int8_t(random.bits());
    for (size_t o = 0; o < bias.size(); ++o) {
      bias[o] = any ? int32_t(random.bits()) : random.below(400000) - 200000;
      multiplier[o] = any ? int32_t(random.bits()) : random.below(1 << 15);
      shift[o] = any ? int32_t(random.bits()) : 20 + random.below(12);
    }
    const vk::ConvInt8 a{s.batch,       s.height,    s.width,           s.in,         s.out,
                         s.kh,          s.kw,        s.scale,           251,          x.data(),
                         weight.data(), bias.data(), multiplier.data(), shift.data(), table.data(),
                         out.data(),    avoid};
    VK_CPU_CALL(conv_int8, a);
    bool same = true;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t o = 0; o < filters; ++o) {
        const int64_t b = p / s.width / s.height, y = p / s.width % s.height, column = p % s.width;
        uint32_t sum = uint32_t(bias[size_t(o)]);
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t from = y + t / s.kw - s.kh / 2, at = column + t % s.kw - s.kw / 2;
          const bool inside = from >= 0 && from < s.height && at >= 0 && at < s.width;
          for (int64_t c = 0; c < s.in; ++c) {
            const int value = inside ? x[size_t(((b * s.height + from) * s.width + at) * s.in + c)] : 251;
            sum += uint32_t(value * weight[size_t((o * taps + t) * s.in + c)]);
          }
        }
        const int64_t by = shift[size_t(o)] & 31;
        const int64_t index = (int64_t(int32_t(sum)) * multiplier[size_t(o)] + (int64_t(1) << by >> 1)) >> by;
        const int64_t c = o / (s.scale * s.scale), dy = o / s.scale % s.scale, dx = o % s.scale;
        const int64_t to =
            (((b * s.height + y) * s.scale + dy) * s.width * s.scale + column * s.scale + dx) * s.out + c;
        same = same && out[size_t(to)] == table[size_t(index < 0 ? 0 : index > 255 ? 255 : index)];
      }
    VK_EXPECT(same);
  }
}

}  // namespace

VK_SELFTEST(conv_int8) { check(0, false); }
VK_SELFTEST(conv_int8_with_any_multiplier) { check(0, true); }
VK_SELFTEST(conv_int8_without_the_matrix_unit) { check(1, false); }
VK_SELFTEST(conv_int8_by_pairs) { check(2, false); }

VK_SELFTEST(decode_tail_is_two_layers) {
  // Heads of one and several rows' reach, with and without shuffle; pictures of more than one tile of rows.
  constexpr Shape kFirst[] = {{2, 5, 19, 7, 3, 3, 3, 3}, {1, 37, 150, 3, 64, 3, 3, 2}, {3, 7, 4, 5, 6, 1, 1, 1}};
  for (const Shape& s : kFirst)
    for (int64_t kernel : {1, 3, 7})
      for (int64_t scale : {1, 2}) {
        const int64_t filters = s.out * s.scale * s.scale, heads = 3 * scale * scale;
        const int64_t pixels = s.batch * s.height * s.width, inner = pixels * s.scale * s.scale;
        selftest::Random random(uint64_t(kernel * 10 + scale));
        std::vector<uint8_t> x(size_t(pixels * s.in), 0), table(256, 0), between(size_t(inner * s.out), 7);
        std::vector<uint8_t> expected(size_t(inner * heads), 7), out(expected.size(), 9);
        std::vector<int8_t> weight(size_t(filters * s.kh * s.kw * s.in), 0);
        std::vector<int8_t> head_weight(size_t(heads * kernel * kernel * s.out), 0);
        for (auto& v : x) v = uint8_t(random.bits());
        for (auto& v : table) v = uint8_t(random.bits());
        for (auto& v : weight) v = int8_t(random.bits());
        for (auto& v : head_weight) v = int8_t(random.bits());
        const size_t most = size_t(filters > heads ? filters : heads);
        const std::vector<int32_t> bias(most, 9000), multiplier(most, 20001), shift(most, 22);
        vk::ConvInt8 a{s.batch,
                       s.height,
                       s.width,
                       s.in,
                       s.out,
                       s.kh,
                       s.kw,
                       s.scale,
                       3,
                       x.data(),
                       weight.data(),
                       bias.data(),
                       multiplier.data(),
                       shift.data(),
                       table.data(),
                       between.data()};
        vk::ConvInt8 b{s.batch,
                       s.height * s.scale,
                       s.width * s.scale,
                       s.out,
                       3,
                       kernel,
                       kernel,
                       scale,
                       200,
                       between.data(),
                       head_weight.data(),
                       bias.data(),
                       multiplier.data(),
                       shift.data(),
                       table.data(),
                       expected.data()};
        VK_CPU_CALL(conv_int8, a);
        VK_CPU_CALL(conv_int8, b);
        b.result = out.data();
        a.result = nullptr, b.x = nullptr;
        VK_CPU_CALL(decode_tail, a, b);
        VK_EXPECT(out == expected);
      }
}
