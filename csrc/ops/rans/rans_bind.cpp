#include <vector>

#include "core/bind.h"
#include "ops/rans/rans.h"

namespace vk {
#ifdef VK_BUILD_CPU
namespace {

/// Checks what both directions share; the kernels rely on rows that sum to 2^bits.
void check_model(const Check& check, const Tensor& symbols, const Tensor& contexts, const Tensor& freqs, int bits,
                 const Tensor& states, const Tensor& words) {
  check.ndim(symbols, 1, "[count]");
  check.dtype(symbols, {Dtype::u8});
  check.contiguous(symbols);
  if (contexts.defined()) {
    check.shape(contexts, {symbols.size(0)});
    check.dtype(contexts, {Dtype::u8});
    check.contiguous(contexts);
  }
  check.shape(freqs, {-1, kRansSymbols});
  check.dtype(freqs, {Dtype::i32});
  check.contiguous(freqs);
  check.ndim(states, 1, "[lanes]");
  check.dtype(states, {Dtype::i32});
  check.contiguous(states);
  check.ndim(words, 1, "[bytes]");
  check.dtype(words, {Dtype::u8});
  check.contiguous(words);
  check.require(kRansMinBits <= bits && bits <= kRansMaxBits, "expected `bits` from 8 to 14.");
  check.require(1 <= states.size(0) && states.size(0) <= kRansLanes, "expected 1 to 32 lanes.");
  check.require(1 <= freqs.size(0) && freqs.size(0) <= 256, "expected 1 to 256 tables.");
  const int32_t* f = freqs.ptr<int32_t>();
  for (int64_t k = 0; k < freqs.size(0); ++k) {
    int64_t sum = 0;
    bool negative = false;
    for (int s = 0; s < kRansSymbols; ++s) sum += f[k * kRansSymbols + s], negative |= f[k * kRansSymbols + s] < 0;
    check.require(!negative && sum == int64_t(1) << bits,
                  "expected every row of `freqs` to be not negative and to sum to 2^bits.");
  }
}

int64_t encode_cpu(const Tensor& symbols, const Tensor& contexts, const Tensor& freqs, int bits, const Tensor& states,
                   const Tensor& words) {
  const Check check(
      "rans_encode", kDLCPU,
      {{"symbols", &symbols}, {"contexts", &contexts}, {"freqs", &freqs}, {"states", &states}, {"words", &words}});
  check_model(check, symbols, contexts, freqs, bits, states, words);
  check.shape(words, {2 * symbols.size(0)});
  check.output(states);
  check.output(words);
  RansEncode a{symbols.ptr<uint8_t>(),
               contexts.defined() ? contexts.ptr<uint8_t>() : nullptr,
               freqs.ptr<int32_t>(),
               symbols.size(0),
               int32_t(freqs.size(0)),
               bits,
               int32_t(states.size(0)),
               states.ptr<uint32_t>(),
               words.ptr<uint8_t>(),
               0,
               -1};
  VK_CPU_CALL(rans_encode, a);
  if (a.bad >= 0) check.fail("symbol " + std::to_string(a.bad) + " has frequency 0, or its context has no table.");
  return a.written;
}

bool decode_cpu(const Tensor& words, const Tensor& states, const Tensor& contexts, const Tensor& freqs, int bits,
                const Tensor& symbols) {
  const Check check(
      "rans_decode", kDLCPU,
      {{"words", &words}, {"states", &states}, {"contexts", &contexts}, {"freqs", &freqs}, {"symbols", &symbols}});
  check_model(check, symbols, contexts, freqs, bits, states, words);
  check.require(words.size(0) % 2 == 0, "expected an even number of bytes in `words`.");
  check.output(symbols);
  std::vector<uint32_t> workspace(size_t(rans_workspace(freqs.size(0), bits)));
  RansDecode a{words.ptr<uint8_t>(),    words.size(0) / 2,
               states.ptr<uint32_t>(),  contexts.defined() ? contexts.ptr<uint8_t>() : nullptr,
               freqs.ptr<int32_t>(),    symbols.size(0),
               int32_t(freqs.size(0)),  bits,
               int32_t(states.size(0)), symbols.ptr<uint8_t>(),
               workspace.data(),        false};
  const py::gil_scoped_release release;
  VK_CPU_CALL(rans_decode, a);
  return a.whole;
}

}  // namespace
#endif

void register_rans([[maybe_unused]] py::module_& m) {
#ifdef VK_BUILD_CPU
  m.def("rans_encode_cpu", &encode_cpu);
  m.def("rans_decode_cpu", &decode_cpu);
#endif
}

}  // namespace vk
