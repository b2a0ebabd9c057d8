// Decoding keeps 32 states in registers; one step decodes 32 symbols.
//
//   bits <= 12   one gather gives everything:  | slot - start : 12 | f - 1 : 12 | symbol : 8 |   by slot
//   bits >  12   two gathers:                  symbol by slot, then | start : 16 | f - 1 : 16 |   by symbol
//
//   AVX-512   2 vectors of 16 lanes; words spread to the lanes that need one by expand
//   AVX2      4 vectors of 8 lanes; spread by a permutation looked up by the mask
//   else      lane by lane; also finishes what the vectors leave: the last words and the last symbols
#include <cstring>

#include "ops/rans/rans.h"
#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 says so of its own _mm512_undefined_epi32
#endif
#include <immintrin.h>
#endif

namespace vk::VK_ISA {
namespace {

struct Tables {
  uint32_t* slots;  // bits <= 12: [tables, M]; else bytes
  uint32_t* pairs;  // [tables, 256], bits > 12
};

Tables build(const RansDecode& a) {
  const int64_t size = int64_t(1) << a.bits;
  Tables t{a.workspace, a.workspace + ((a.tables * size) >> 2) + 1};
  for (int64_t k = 0; k < a.tables; ++k) {
    const int32_t* freqs = a.freqs + k * kRansSymbols;
    uint32_t start = 0;
    for (int s = 0; s < kRansSymbols; ++s) {
      const uint32_t f = uint32_t(freqs[s]);
      if (a.bits <= 12) {
        uint32_t* row = t.slots + k * size + start;
        const uint32_t fixed = uint32_t(s) | (f - 1) << 8;
        for (uint32_t j = 0; j < f; ++j) row[j] = fixed | j << 20;
      } else {
        std::memset(reinterpret_cast<uint8_t*>(t.slots) + k * size + start, s, f);
        t.pairs[k * kRansSymbols + s] = (f - 1) | start << 16;
      }
      start += f;
    }
  }
  return t;
}

inline uint32_t word_at(const uint8_t* words, int64_t i) { return uint32_t(words[2 * i] | words[2 * i + 1] << 8); }

/// One symbol out of state x.
inline uint8_t step(const RansDecode& a, const Tables& t, uint32_t context, uint32_t& x) {
  const uint32_t slot = x & ((1u << a.bits) - 1), at = context << a.bits | slot;
  if (a.bits <= 12) {
    const uint32_t e = t.slots[at];
    x = ((e >> 8 & 0xfff) + 1) * (x >> a.bits) + (e >> 20);
    return uint8_t(e);
  }
  const uint8_t s = reinterpret_cast<const uint8_t*>(t.slots)[at];
  const uint32_t pair = t.pairs[context * kRansSymbols + s];
  x = ((pair & 0xffff) + 1) * (x >> a.bits) + slot - (pair >> 16);
  return s;
}

/// Symbols [from, count), reading words from `at`; returns the first word not read, or -1 if some were missing.
int64_t decode_rest(const RansDecode& a, const Tables& t, uint32_t* x, int64_t from, int64_t at) {
  bool missing = false;
  for (int64_t i = from; i < a.count; ++i) {
    uint32_t& state = x[i % a.lanes];
    const uint32_t context = a.contexts && a.contexts[i] < a.tables ? a.contexts[i] : 0;
    a.symbols[i] = step(a, t, context, state);
    if (state < kRansLow) {
      missing |= at >= a.word_count;
      state = state << 16 | (at < a.word_count ? word_at(a.words, at++) : 0);
    }
  }
  return missing ? -1 : at;
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define VK_RANS_VECTOR 1

template <bool kOneGather>
inline __m512i vector_step(const RansDecode& a, const Tables& t, __m512i x, __m512i context, __m128i* symbols) {
  const __m512i slot = _mm512_and_si512(x, _mm512_set1_epi32((1 << a.bits) - 1));
  const __m512i high = _mm512_srl_epi32(x, _mm_cvtsi32_si128(a.bits));
  const __m512i at = _mm512_or_si512(_mm512_sll_epi32(context, _mm_cvtsi32_si128(a.bits)), slot);
  if (kOneGather) {
    const __m512i e = _mm512_i32gather_epi32(at, t.slots, 4);
    *symbols = _mm512_cvtepi32_epi8(e);
    const __m512i f = _mm512_and_si512(_mm512_srli_epi32(e, 8), _mm512_set1_epi32(0xfff));
    return _mm512_add_epi32(_mm512_mullo_epi32(f, high), _mm512_add_epi32(high, _mm512_srli_epi32(e, 20)));
  }
  const __m512i s = _mm512_and_si512(_mm512_i32gather_epi32(at, t.slots, 1), _mm512_set1_epi32(255));
  *symbols = _mm512_cvtepi32_epi8(s);
  const __m512i pair = _mm512_i32gather_epi32(_mm512_or_si512(_mm512_slli_epi32(context, 8), s), t.pairs, 4);
  const __m512i f = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff));
  const __m512i bias = _mm512_sub_epi32(slot, _mm512_srli_epi32(pair, 16));
  return _mm512_add_epi32(_mm512_mullo_epi32(f, high), _mm512_add_epi32(high, bias));
}

inline __m512i refill(__m512i x, const uint8_t* words, int64_t& at) {
  const __mmask16 low = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(int(kRansLow)));
  const __m512i next = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 2 * at)));
  at += __builtin_popcount(low);
  return _mm512_mask_or_epi32(x, low, _mm512_slli_epi32(x, 16), _mm512_maskz_expand_epi32(low, next));
}

inline __m512i contexts_at(const RansDecode& a, int64_t i) {
  if (!a.contexts) return _mm512_setzero_si512();
  const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a.contexts + i)));
  return _mm512_maskz_mov_epi32(_mm512_cmplt_epu32_mask(c, _mm512_set1_epi32(a.tables)), c);
}

template <bool kOneGather>
int64_t decode_vectors(const RansDecode& a, const Tables& t, uint32_t* states, int64_t& at) {
  __m512i x0 = _mm512_loadu_si512(states), x1 = _mm512_loadu_si512(states + 16);
  int64_t i = 0;
  for (; i + 32 <= a.count && at + 32 <= a.word_count; i += 32) {
    __m128i s0, s1;
    x0 = vector_step<kOneGather>(a, t, x0, contexts_at(a, i), &s0);
    x1 = vector_step<kOneGather>(a, t, x1, contexts_at(a, i + 16), &s1);
    x0 = refill(x0, a.words, at);
    x1 = refill(x1, a.words, at);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a.symbols + i), s0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(a.symbols + i + 16), s1);
  }
  _mm512_storeu_si512(states, x0);
  _mm512_storeu_si512(states + 16, x1);
  return i;
}

#elif defined(__AVX2__)
#define VK_RANS_VECTOR 1

/// For each mask of 8 lanes: which of the next words every lane takes.
struct Spread {
  alignas(64) uint8_t place[256][8];
};
constexpr Spread make_spread() {
  Spread s{};
  for (int mask = 0; mask < 256; ++mask)
    for (int lane = 0, next = 0; lane < 8; ++lane)
      if (mask >> lane & 1) s.place[mask][lane] = uint8_t(next++);
  return s;
}
constexpr Spread kSpread = make_spread();

template <bool kOneGather>
inline __m256i vector_step(const RansDecode& a, const Tables& t, __m256i x, __m256i context, __m256i* symbols) {
  const __m256i slot = _mm256_and_si256(x, _mm256_set1_epi32((1 << a.bits) - 1));
  const __m256i high = _mm256_srl_epi32(x, _mm_cvtsi32_si128(a.bits));
  const __m256i at = _mm256_or_si256(_mm256_sll_epi32(context, _mm_cvtsi32_si128(a.bits)), slot);
  const int* slots = reinterpret_cast<const int*>(t.slots);
  if (kOneGather) {
    const __m256i e = _mm256_i32gather_epi32(slots, at, 4);
    *symbols = _mm256_and_si256(e, _mm256_set1_epi32(255));
    const __m256i f = _mm256_and_si256(_mm256_srli_epi32(e, 8), _mm256_set1_epi32(0xfff));
    return _mm256_add_epi32(_mm256_mullo_epi32(f, high), _mm256_add_epi32(high, _mm256_srli_epi32(e, 20)));
  }
  const __m256i s = _mm256_and_si256(_mm256_i32gather_epi32(slots, at, 1), _mm256_set1_epi32(255));
  *symbols = s;
  const __m256i pair = _mm256_i32gather_epi32(reinterpret_cast<const int*>(t.pairs),
                                              _mm256_or_si256(_mm256_slli_epi32(context, 8), s), 4);
  const __m256i f = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff));
  const __m256i bias = _mm256_sub_epi32(slot, _mm256_srli_epi32(pair, 16));
  return _mm256_add_epi32(_mm256_mullo_epi32(f, high), _mm256_add_epi32(high, bias));
}

inline __m256i refill(__m256i x, const uint8_t* words, int64_t& at) {
  const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256());
  const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(low));
  const __m256i next = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words + 2 * at)));
  const __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSpread.place[mask])));
  at += __builtin_popcount(unsigned(mask));
  const __m256i full = _mm256_or_si256(_mm256_slli_epi32(x, 16), _mm256_permutevar8x32_epi32(next, place));
  return _mm256_blendv_epi8(x, full, low);
}

inline __m256i contexts_at(const RansDecode& a, int64_t i) {
  if (!a.contexts) return _mm256_setzero_si256();
  const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(a.contexts + i)));
  return _mm256_and_si256(c, _mm256_cmpgt_epi32(_mm256_set1_epi32(a.tables), c));
}

template <bool kOneGather>
int64_t decode_vectors(const RansDecode& a, const Tables& t, uint32_t* states, int64_t& at) {
  __m256i x[4];
  for (int v = 0; v < 4; ++v) x[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(states + 8 * v));
  int64_t i = 0;
  for (; i + 32 <= a.count && at + 32 <= a.word_count; i += 32) {
    __m256i s[4];
    for (int v = 0; v < 4; ++v) x[v] = vector_step<kOneGather>(a, t, x[v], contexts_at(a, i + 8 * v), &s[v]);
    for (int v = 0; v < 4; ++v) x[v] = refill(x[v], a.words, at);
    // Packing works within halves of a register, which leaves fours of bytes in the order 0 2 4 6 1 3 5 7.
    const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(s[0], s[1]), _mm256_packus_epi32(s[2], s[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.symbols + i), _mm256_permutevar8x32_epi32(bytes, order));
  }
  for (int v = 0; v < 4; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(states + 8 * v), x[v]);
  return i;
}
#endif

/// x / f by multiplication: exact for every 32-bit x (Alverson's reciprocals, one more bit than the dividend).
struct Division {
  uint64_t multiplier;
  uint32_t freq, start, limit;  // limit: the high half of the largest state that may take this symbol, plus one
};

void prepare(const RansEncode& a, Division* table) {
  for (int64_t k = 0; k < int64_t(a.tables); ++k) {
    uint32_t start = 0;
    for (int s = 0; s < kRansSymbols; ++s) {
      const uint32_t f = uint32_t(a.freqs[k * kRansSymbols + s]);
      table[k * kRansSymbols + s] = {f ? (uint64_t(1) << 48) / f + 1 : 0, f, start, f << (16 - a.bits)};
      start += f;
    }
  }
}

}  // namespace

void rans_encode(RansEncode& a) {
  Division* table = new Division[size_t(a.tables) * kRansSymbols];
  prepare(a, table);
  uint32_t x[kRansLanes];
  for (uint32_t& state : x) state = kRansLow;
  int64_t at = a.count;
  a.bad = -1;
  int lane = int(a.count % a.lanes);
  for (int64_t i = a.count - 1; i >= 0; --i) {
    lane = lane ? lane - 1 : a.lanes - 1;
    const uint32_t context = a.contexts ? a.contexts[i] : 0;
    if (context >= uint32_t(a.tables) || !table[context * kRansSymbols + a.symbols[i]].freq) {
      a.bad = i;
      break;
    }
    const Division& d = table[context * kRansSymbols + a.symbols[i]];
    uint32_t state = x[lane];
    // Both bytes are written always and kept if the state is too large: no branch that data decides.
    const bool full = (state >> 16) >= d.limit;
    a.words[2 * at - 2] = uint8_t(state);
    a.words[2 * at - 1] = uint8_t(state >> 8);
    at -= full;
    state >>= full ? 16 : 0;
    // state < f * 2^(32 - bits), so the quotient is below 2^24 and the product below 2^80: high half of 128 bits.
    const uint32_t quotient = uint32_t((unsigned __int128)(state)*d.multiplier >> 48);
    x[lane] = (quotient << a.bits) + (state - quotient * d.freq) + d.start;
  }
  delete[] table;
  for (int l = 0; l < a.lanes; ++l) a.states[l] = x[l];
  a.written = a.count - at;
}

void rans_decode(RansDecode& a) {
  const Tables t = build(a);
  uint32_t x[kRansLanes];
  for (int l = 0; l < a.lanes; ++l) x[l] = a.states[l];
  int64_t done = 0, at = 0;
#ifdef VK_RANS_VECTOR
  if (a.lanes == kRansLanes)
    done = a.bits <= 12 ? decode_vectors<true>(a, t, x, at) : decode_vectors<false>(a, t, x, at);
#endif
  at = decode_rest(a, t, x, done, at);
  a.whole = at == a.word_count;
  for (int l = 0; l < a.lanes; ++l) a.whole &= x[l] == kRansLow;
  uint8_t largest = 0;
  for (int64_t i = 0; a.contexts && i < a.count; ++i) largest = a.contexts[i] > largest ? a.contexts[i] : largest;
  a.whole &= largest < a.tables;
}

}  // namespace vk::VK_ISA
