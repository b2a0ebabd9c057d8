// Interleaved rANS: symbols [count] uint8 <-> 16-bit words, with one frequency table per context.
//
//   lane of symbol i   i mod lanes, each lane a 32-bit state x that starts and ends (seen by the encoder) at 2^16
//   tables             freqs [tables, 256], each row sums to M = 2^bits; start = sum of the frequencies before
//   decode             slot = x mod M, the symbol is the one with start <= slot < start + f,
//                      x = f * (x / M) + slot - start, and if x < 2^16: x = x * 2^16 + next word
//   encode             the same backwards, from the last symbol to the first; words are written from the end
//
// Every instruction set and the numpy version in vidkernels/codec/rans.py give the same bytes. Whatever words, states
// and contexts hold, the decoder reads and writes inside its arguments and stops after `count` symbols: a context
// outside the tables counts as 0, missing words as 0. Whether the stream was whole is reported, not assumed.
#pragma once
#include <cstdint>

#include "core/dispatch.h"

namespace vk {

constexpr int kRansLanes = 32, kRansSymbols = 256, kRansMinBits = 8, kRansMaxBits = 14;
constexpr uint32_t kRansLow = 1u << 16;

struct RansEncode {
  const uint8_t* symbols;   // [count]
  const uint8_t* contexts;  // [count] or null: all 0
  const int32_t* freqs;     // [tables, 256], rows sum to 2^bits
  int64_t count;
  int32_t tables, bits, lanes;
  uint32_t* states;  // out [lanes]
  uint8_t* words;    // out [2 * count], filled from the end
  int64_t written;   // out: words
  int64_t bad;       // out: a symbol whose frequency is 0 or whose context has no table, or -1
};

struct RansDecode {
  const uint8_t* words;  // [2 * words_count]
  int64_t word_count;
  const uint32_t* states;   // [lanes]
  const uint8_t* contexts;  // [count] or null
  const int32_t* freqs;     // [tables, 256], rows sum to 2^bits
  int64_t count;
  int32_t tables, bits, lanes;
  uint8_t* symbols;     // out [count]
  uint32_t* workspace;  // [rans_workspace(tables, bits)]
  bool whole;           // out: every word used, none missing, all states back at 2^16, contexts inside the tables
};

/// 32-bit words of scratch for decoding: symbols by slot in bytes, (frequency, start) pairs by symbol.
inline int64_t rans_workspace(int64_t tables, int bits) {
  return bits <= 12 ? tables << bits : ((tables << bits) >> 2) + 1 + tables * kRansSymbols;
}

VK_CPU_KERNEL(rans_encode, (RansEncode & a))
VK_CPU_KERNEL(rans_decode, (RansDecode & a))

}  // namespace vk
