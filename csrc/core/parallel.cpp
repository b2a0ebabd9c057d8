#include "core/parallel.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/dispatch.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace vk {
namespace {

std::atomic<bool> forked_child{false};

#if defined(__unix__) || defined(__APPLE__)
const int registered = pthread_atfork(nullptr, nullptr, [] { forked_child = true; });
#endif

Isa detect() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  Isa best = Isa::v2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) best = Isa::v3;
  if (best == Isa::v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    best = Isa::v4;
  if (const char* wish = std::getenv("VIDKERNELS_ISA")) {
    for (Isa i : {Isa::v2, Isa::v3, Isa::v4})
      if (!std::strcmp(wish, isa_name(i)) && i < best) best = i;
  }
  return best;
#else
  return Isa::base;
#endif
}

}  // namespace

int max_threads() {
#ifdef _OPENMP
  return forked_child ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* isa_name(Isa i) {
  switch (i) {
    case Isa::v2: return "v2";
    case Isa::v3: return "v3";
    case Isa::v4: return "v4";
    default: return "base";
  }
}

}  // namespace vk
