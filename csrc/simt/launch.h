// Settings of the emulator, from Python.
#pragma once
#include <cstdint>

namespace simt {

struct Settings {
  uint64_t seed = 0;     // 0: blocks, warps and lanes in ascending order; else a permutation of each
  int threads = 1;       // OS threads that run blocks side by side
  double timeout = 120;  // seconds that one block may take
};
void configure(const Settings& s);

}  // namespace simt
