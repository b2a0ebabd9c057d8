#include "ops/decode_splats/decode_splats.h"
#include "selftest.h"

namespace {

struct Scene {
  std::vector<float> means, cholesky, colors, background;
  int64_t count, channels, height, width;
};

Scene scene(uint64_t seed, int64_t count, int64_t channels, int64_t height, int64_t width) {
  selftest::Random random(seed);
  Scene s{{}, {}, {}, {}, count, channels, height, width};
  for (int64_t i = 0; i < count; ++i) {
    s.means.push_back(random.uniform(-9, float(width) + 9));
    s.means.push_back(random.uniform(-9, float(height) + 9));
    s.cholesky.push_back(random.uniform(0.3f, 9));
    s.cholesky.push_back(random.uniform(-6, 6));
    s.cholesky.push_back(i % 97 == 5 ? 0.0f : random.uniform(0.3f, 9));
    for (int64_t c = 0; c < channels; ++c) s.colors.push_back(random.uniform(-0.1f, 0.35f));
  }
  for (int64_t c = 0; c < channels; ++c) s.background.push_back(0.125f * float(c));
  return s;
}

std::vector<uint8_t> decode(const Scene& s) {
  std::vector<uint8_t> out(size_t(s.height * s.width * s.channels), 77);
  vk::DecodeSplats a{s.means.data(),
                     s.cholesky.data(),
                     s.colors.data(),
                     s.background.data(),
                     out.data(),
                     nullptr,
                     s.count,
                     s.channels,
                     s.height,
                     s.width,
                     0.5f,
                     false};
  VK_CPU_CALL(decode_splats, a);
  VK_EXPECT(!a.no_memory);
  return out;
}

/// docs/exact_decode.md, line by line; this file is compiled without contraction.
std::vector<uint8_t> by_specification(const Scene& s) {
  std::vector<uint8_t> out;
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t x = 0; x < s.width; ++x) {
      float acc[4] = {};
      for (int64_t c = 0; c < s.channels; ++c) acc[c] = s.background[size_t(c)];
      for (int64_t i = 0; i < s.count; ++i) {
        const float *m = &s.means[size_t(2 * i)], *l = &s.cholesky[size_t(3 * i)];
        if (l[0] == 0 || l[2] == 0) continue;
        const float u1 = vk::kDecodeZeta / l[0], u2 = vk::kDecodeZeta / l[2], lu = l[1] * u1, k = lu / l[2];
        const float dx = (float(x) + 0.5f) - m[0], dy = (float(y) + 0.5f) - m[1];
        const float z1 = dx * u1, a = dy * u2, b = dx * k, z2 = a - b;
        const float p = z1 * z1, w = p + vk::kDecodeBeta, r = z2 * z2, t = r + w;
        if (!(t <= vk::kDecodeTau)) continue;
        const float v = t * t;
        float q = v + vk::kDecodeGamma;
        for (int n = 0; n < 5; ++n) q = q * q;
        for (int64_t c = 0; c < s.channels; ++c) {
          const float part = s.colors[size_t(s.channels * i + c)] * q;
          acc[c] = acc[c] + part;
        }
      }
      for (int64_t c = 0; c < s.channels; ++c) {
        float v = acc[c] > 0 ? acc[c] : 0.0f;
        v = v < 1 ? v : 1.0f;
        out.push_back(uint8_t(std::nearbyint(v * 255.0f)));
      }
    }
  return out;
}

}  // namespace

VK_SELFTEST(decode_splats_is_the_specification) {
  for (int64_t channels = 1; channels <= 4; ++channels) {
    const Scene s = scene(uint64_t(channels), 300, channels, 33 + 20 * channels, 150 - 19 * channels);
    VK_EXPECT(selftest::same_bits(decode(s), by_specification(s)));
  }
  const Scene pixel = scene(11, 40, 3, 1, 1);
  VK_EXPECT(selftest::same_bits(decode(pixel), by_specification(pixel)));
}

VK_SELFTEST(decode_splats_same_bytes_on_every_processor) {
  // FNV-1a of the bytes, noted once on x86-64-v4: other processors and later versions must find it again.
  uint64_t hash = 0xcbf29ce484222325u;
  for (uint8_t byte : decode(scene(2026, 500, 3, 90, 141))) hash = (hash ^ byte) * 0x100000001b3u;
  VK_EXPECT(hash == 0x9ae70a259f9e2af6u);
}

VK_SELFTEST(decode_splats_nothing_to_draw) {
  Scene s = scene(3, 0, 2, 5, 7);
  s.background = {1.0f, -3.0f};
  const std::vector<uint8_t> out = decode(s);
  for (size_t i = 0; i < out.size(); ++i) VK_EXPECT(out[i] == (i % 2 ? 0 : 255));
}
