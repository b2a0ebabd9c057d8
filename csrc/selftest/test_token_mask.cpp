#include <algorithm>
#include <array>
#include <utility>

#include "ops/token_mask/token_mask.h"
#include "selftest.h"

namespace {

struct Masks {
  std::vector<int32_t> visible, masked;
};

Masks run(vk::TokenMask a) {
  Masks m;
  m.visible.assign(size_t(a.batch * a.groups * a.repeat * (a.length - a.low)), 12345);
  m.masked.assign(size_t(a.batch * a.groups * a.repeat * a.high), 12345);
  a.visible = m.visible.data();
  a.masked = m.masked.data();
  VK_CPU_CALL(token_mask, a);
  return m;
}

uint32_t cell_word(int64_t seed, uint32_t b, uint32_t g, uint32_t p) {
  const vk::PhiloxWords w = vk::philox4x32(p / 4, g, b, vk::kCells, vk::philox_key(seed));
  const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
  return words[p % 4];
}

/// The definition: sort all candidates, mask the smallest, list both sides in ascending order.
template <class Score>
Masks by_sorting(const vk::TokenMask& a, Score score) {
  Masks m;
  const int64_t span = a.length * a.repeat;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t wish = a.counts ? a.counts[b] : a.high, count = std::clamp(wish, a.low, a.high);
    std::vector<int32_t> visible, masked;
    for (int64_t g = 0; g < a.groups; ++g) {
      std::vector<std::pair<uint32_t, int64_t>> order;
      for (int64_t p = 0; p < a.length; ++p) order.push_back({score(uint32_t(b), uint32_t(g), uint32_t(p)), p});
      std::sort(order.begin(), order.end());
      std::vector<bool> chosen(size_t(a.length));
      for (int64_t i = 0; i < count; ++i) chosen[size_t(order[size_t(i)].second)] = true;
      for (int64_t i = 0; i < span; ++i)
        (chosen[size_t(i % a.length)] ? masked : visible).push_back(int32_t(g * span + i));
    }
    visible.resize(size_t(a.groups * a.repeat * (a.length - a.low)), -1);
    masked.resize(size_t(a.groups * a.repeat * a.high), -1);
    m.visible.insert(m.visible.end(), visible.begin(), visible.end());
    m.masked.insert(m.masked.end(), masked.begin(), masked.end());
  }
  return m;
}

void expect_equal(const Masks& a, const Masks& b) {
  VK_EXPECT(selftest::same_bits(a.visible, b.visible));
  VK_EXPECT(selftest::same_bits(a.masked, b.masked));
}

vk::TokenMask arguments(vk::MaskKind kind, int64_t frames, int32_t height, int32_t width, int64_t masked) {
  vk::TokenMask a{};
  a.kind = kind;
  a.batch = 3;
  const int64_t cells = int64_t(height) * width;
  const bool shared = kind == vk::MaskKind::tube || kind == vk::MaskKind::block;
  a.groups = kind == vk::MaskKind::running_cell ? frames : 1;
  a.length = kind == vk::MaskKind::random ? frames * cells : cells;
  a.repeat = shared ? frames : 1;
  a.low = a.high = masked;
  a.height = height, a.width = width;
  return a;
}

}  // namespace

VK_SELFTEST(philox_known_answers) {
  // The published test vectors of Philox4x32-10 (counter and key all zeros, all ones).
  const vk::PhiloxWords zero = vk::philox4x32(0, 0, 0, 0, {0, 0});
  VK_EXPECT(zero.w0 == 0x6627e8d5u && zero.w1 == 0xe169c58du && zero.w2 == 0xbc57ac4cu && zero.w3 == 0x9b00dbd8u);
  const uint32_t f = 0xffffffffu;
  const vk::PhiloxWords ones = vk::philox4x32(f, f, f, f, {f, f});
  VK_EXPECT(ones.w0 == 0x408f276du && ones.w1 == 0x41c83b0eu && ones.w2 == 0xa20bc7c6u && ones.w3 == 0x6d5451fdu);
}

VK_SELFTEST(token_mask_tube_and_random_are_the_smallest_scores) {
  const int64_t seed = -0x123456789abcdef;
  for (vk::MaskKind kind : {vk::MaskKind::tube, vk::MaskKind::random}) {
    for (auto [t, h, w, masked] : {std::array{8, 14, 14, 176}, {3, 5, 7, 11}, {1, 1, 1, 0}, {2, 3, 3, 9}}) {
      vk::TokenMask a = arguments(kind, t, h, w, masked);
      a.seed = &seed;
      expect_equal(run(a), by_sorting(a, [&](uint32_t b, uint32_t g, uint32_t p) { return cell_word(seed, b, g, p); }));
    }
  }
}

VK_SELFTEST(token_mask_counts_per_sample_are_held_and_padded) {
  const int64_t seed = 99;
  const int32_t counts[3] = {2, 1000, 20};
  vk::TokenMask a = arguments(vk::MaskKind::tube, 2, 5, 7, 0);
  a.seed = &seed, a.counts = counts, a.low = 3, a.high = 30;
  expect_equal(run(a), by_sorting(a, [&](uint32_t b, uint32_t g, uint32_t p) { return cell_word(seed, b, g, p); }));
}

VK_SELFTEST(token_mask_running_cell_turns_with_the_frame) {
  const int64_t seed = 7;
  for (auto [t, h, w, masked] : {std::array{4, 6, 8, 36}, {5, 1, 9, 4}}) {
    vk::TokenMask a = arguments(vk::MaskKind::running_cell, t, h, w, masked);
    a.seed = &seed;
    const auto score = [&](uint32_t b, uint32_t g, uint32_t p) {
      const uint32_t phase = vk::philox4x32(0, 0, b, vk::kSample, vk::philox_key(seed)).w0;
      const uint32_t place = vk::running_cell_place(p / uint32_t(a.width), p % uint32_t(a.width), a.height, a.width);
      return ((place + g + phase) & 3u) << 30 | cell_word(seed, b, g, p) >> 2;
    };
    expect_equal(run(a), by_sorting(a, score));
  }
}

VK_SELFTEST(token_mask_block_prefers_the_inside_of_rectangles) {
  const int64_t seed = 2024;
  vk::TokenMask a = arguments(vk::MaskKind::block, 3, 14, 14, 120);
  a.seed = &seed, a.blocks = 4, a.block_sizes = 2;
  const int32_t sizes[4] = {6, 5, 3, 9};
  std::copy(sizes, sizes + 4, a.sizes);
  const auto score = [&](uint32_t b, uint32_t g, uint32_t p) {
    bool inside = false;
    for (uint32_t j = 0; j < 4; ++j) {
      const vk::PhiloxWords w = vk::philox4x32(j, 0, b, vk::kSample, vk::philox_key(seed));
      const int32_t* size = sizes + 2 * vk::philox_below(w.w0, 2);
      const int32_t top = int32_t(vk::philox_below(w.w1, uint32_t(14 - size[0] + 1)));
      const int32_t left = int32_t(vk::philox_below(w.w2, uint32_t(14 - size[1] + 1)));
      const int32_t y = int32_t(p) / 14, x = int32_t(p) % 14;
      inside = inside || (y >= top && y < top + size[0] && x >= left && x < left + size[1]);
    }
    return uint32_t(!inside) << 31 | cell_word(seed, b, g, p) >> 1;
  };
  expect_equal(run(a), by_sorting(a, score));
}

VK_SELFTEST(token_mask_from_scores_ranks_floats) {
  const float inf = INFINITY, nan = NAN;
  const std::vector<float> scores = {1, -1, 0, -0.0f, nan, inf, -inf, 1e-40f, -1e-40f, 2, 2, 2};
  for (bool largest : {false, true}) {
    vk::TokenMask a{};
    a.kind = vk::MaskKind::scores;
    a.scores = scores.data();
    a.batch = 1, a.groups = 1, a.repeat = 1, a.length = int64_t(scores.size()), a.low = a.high = 5, a.largest = largest;
    const Masks m = run(a);
    const std::vector<int32_t> smallest = {1, 2, 4, 6, 8}, greatest = {0, 5, 9, 10, 11};
    VK_EXPECT(m.masked == (largest ? greatest : smallest));
  }
}
