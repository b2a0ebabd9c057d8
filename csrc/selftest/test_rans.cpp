#include "ops/rans/rans.h"
#include "selftest.h"

namespace {

struct Model {
  std::vector<int32_t> freqs;
  std::vector<uint8_t> symbols, contexts;
  int32_t tables, bits, lanes;
};

/// Random tables with many zeros, symbols drawn from them.
Model make(int64_t count, int32_t tables, int32_t bits, int32_t lanes, uint64_t seed) {
  selftest::Random random(seed);
  Model m{std::vector<int32_t>(size_t(tables) * 256), {}, {}, tables, bits, lanes};
  for (int32_t k = 0; k < tables; ++k) {
    int32_t rest = 1 << bits;
    for (int s = 0; s < 255; ++s) rest -= m.freqs[size_t(k * 256 + s)] = random.below(rest / 8 + 1);
    m.freqs[size_t(k * 256 + 255)] = rest;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int32_t k = random.below(tables);
    int32_t slot = random.below(1 << bits), s = 0;
    while (slot >= m.freqs[size_t(k * 256 + s)]) slot -= m.freqs[size_t(k * 256 + s++)];
    m.contexts.push_back(uint8_t(k));
    m.symbols.push_back(uint8_t(s));
  }
  return m;
}

struct Stream {
  std::vector<uint32_t> states;
  std::vector<uint8_t> words;
};

Stream encode(const Model& m) {
  Stream s{std::vector<uint32_t>(size_t(m.lanes)), std::vector<uint8_t>(2 * m.symbols.size())};
  vk::RansEncode a{m.symbols.data(),
                   m.contexts.data(),
                   m.freqs.data(),
                   int64_t(m.symbols.size()),
                   m.tables,
                   m.bits,
                   m.lanes,
                   s.states.data(),
                   s.words.data(),
                   0,
                   0};
  VK_CPU_CALL(rans_encode, a);
  VK_EXPECT(a.bad == -1);
  s.words.erase(s.words.begin(), s.words.end() - 2 * a.written);
  return s;
}

/// The header's definition with divisions and a search through the table.
Stream encode_plainly(const Model& m) {
  Stream s{std::vector<uint32_t>(size_t(m.lanes), vk::kRansLow), {}};
  for (size_t i = m.symbols.size(); i-- > 0;) {
    uint32_t& x = s.states[i % size_t(m.lanes)];
    const int32_t* freqs = m.freqs.data() + m.contexts[i] * 256;
    uint32_t start = 0, f = uint32_t(freqs[m.symbols[i]]);
    for (int t = 0; t < m.symbols[i]; ++t) start += uint32_t(freqs[t]);
    if (x >= uint64_t(f) << (32 - m.bits)) {
      s.words.insert(s.words.begin(), {uint8_t(x), uint8_t(x >> 8)});
      x >>= 16;
    }
    x = (x / f << m.bits) + x % f + start;
  }
  return s;
}

/// Decodes into exactly as much memory as there must be, so that a sanitiser sees a byte too many.
bool decode(const Model& m, const Stream& s, std::vector<uint8_t>& out) {
  std::vector<uint32_t> workspace(size_t(vk::rans_workspace(m.tables, m.bits)));
  out.assign(m.contexts.size(), 0xaa);
  vk::RansDecode a{s.words.data(),   int64_t(s.words.size() / 2),
                   s.states.data(),  m.contexts.data(),
                   m.freqs.data(),   int64_t(out.size()),
                   m.tables,         m.bits,
                   m.lanes,          out.data(),
                   workspace.data(), false};
  VK_CPU_CALL(rans_decode, a);
  return a.whole;
}

}  // namespace

VK_SELFTEST(rans_is_its_definition_and_comes_back) {
  for (int32_t bits : {8, 12, 13, 14})
    for (int32_t tables : {1, 5})
      for (int32_t lanes : {1, 7, 32})
        for (int64_t count : {0, 1, 31, 32, 33, 700}) {
          const Model m = make(count, tables, bits, lanes, uint64_t(bits * 1000 + count));
          const Stream s = encode(m), plain = encode_plainly(m);
          VK_EXPECT(s.states == plain.states && s.words == plain.words);
          std::vector<uint8_t> back;
          VK_EXPECT(decode(m, s, back));
          VK_EXPECT(back == m.symbols);
        }
}

VK_SELFTEST(rans_survives_any_words) {
  selftest::Random random(3);
  std::vector<uint8_t> back;
  int refused = 0;
  for (int round = 0; round < 2000; ++round) {
    Model m = make(300, 1 + round % 3, 8 + round % 7, round % 2 ? 32 : 3, uint64_t(round));
    Stream s = encode(m);
    if (round % 4 == 0) s.words.resize(size_t(random.below(int32_t(s.words.size()) / 2 + 1)) * 2);
    if (round % 4 == 1)
      for (uint8_t& byte : s.words) byte = uint8_t(random.bits());
    if (round % 4 == 2)
      for (uint32_t& state : s.states) state = random.bits();
    if (round % 4 == 3) m.contexts[size_t(random.below(300))] = uint8_t(m.tables + random.below(200));
    refused += !decode(m, s, back);
  }
  VK_EXPECT(refused > 1950);  // a cut may take nothing away
}

VK_SELFTEST(rans_names_the_symbol_it_cannot_code) {
  Model m = make(100, 2, 12, 32, 1);
  m.contexts[40] = 2;
  Stream s{std::vector<uint32_t>(32), std::vector<uint8_t>(200)};
  vk::RansEncode a{m.symbols.data(), m.contexts.data(), m.freqs.data(), 100, m.tables, m.bits,
                   m.lanes,          s.states.data(),   s.words.data(), 0,   0};
  VK_CPU_CALL(rans_encode, a);
  VK_EXPECT(a.bad == 40);
}
