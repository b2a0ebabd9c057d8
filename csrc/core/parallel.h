// Threads: OpenMP's pool, which is also torch's (torch.set_num_threads governs both).
#pragma once
#include <cstdint>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace vk {

/// Threads a parallel region may use now. 1 in a forked child: OpenMP's pool does not survive fork, and a region
/// started there would wait for threads that are gone.
int max_threads();

namespace {

/// Calls f(begin, end) over [0, n) from several threads, at least `grain` items each. Kernels must not let the
/// partition show in their results.
template <class F>
inline void parallel_for(int64_t n, int64_t grain, F f) {
  if (n <= 0) return;
#ifdef _OPENMP
  const int64_t wanted = n / (grain > 0 ? grain : 1);
  const int threads = wanted < 2 || omp_in_parallel() ? 1 : int(wanted < max_threads() ? wanted : max_threads());
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t begin = n * me / count, end = n * (me + 1) / count;
      if (begin < end) f(begin, end);
    }
    return;
  }
#endif
  f(int64_t(0), n);
}

/// Calls f(i) for every i in [0, n), whoever is free taking the next: for items of unequal cost.
template <class F>
inline void parallel_each(int64_t n, F f) {
#ifdef _OPENMP
  const int threads = n < 2 || omp_in_parallel() ? 1 : int(n < max_threads() ? n : max_threads());
  if (threads > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) f(i);
}

}  // namespace
}  // namespace vk
