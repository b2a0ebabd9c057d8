#include <type_traits>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

constexpr unsigned kSpins = 4096;  // atomics in a row after which a lane may be waiting for another one

void begin(const void* address, unsigned bytes, const void* pc) {
  Worker* w = worker();
  poll_watchdog(w, pc);
  w->counters->total.atomic_operations++;
  access(address, bytes, Kind::atomic, pc);
  if (++w->current->spins == kSpins) pause_lane();
  w->call_pc = pc;
}

void end() { worker()->call_pc = nullptr; }

template <class T>
T combined(Atomic op, T a, T b) {
  switch (op) {
    case Atomic::add: return T(a + b);
    case Atomic::min: return b < a ? b : a;
    case Atomic::max: return a < b ? b : a;
    case Atomic::exchange: return b;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == Atomic::bit_or) return a | b;
    if (op == Atomic::bit_and) return a & b;
    if (op == Atomic::bit_xor) return a ^ b;
  }
  return a;
}

}  // namespace

template <class T>
T atomic(Atomic op, T* address, T value) {
  begin(address, sizeof(T), __builtin_return_address(0));
  T old, next;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    next = combined(op, old, value);
  } while (!__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
  end();
  return old;
}

template <class T>
T atomic_cas(T* address, T expected, T value) {
  begin(address, sizeof(T), __builtin_return_address(0));
  __atomic_compare_exchange(address, &expected, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  end();
  return expected;
}

#define VK_ATOMIC(T)                   \
  template T atomic<T>(Atomic, T*, T); \
  template T atomic_cas<T>(T*, T, T);
VK_ATOMIC(int)
VK_ATOMIC(unsigned)
VK_ATOMIC(long)
VK_ATOMIC(unsigned long)
VK_ATOMIC(long long)
VK_ATOMIC(unsigned long long)
VK_ATOMIC(float)
VK_ATOMIC(double)
#undef VK_ATOMIC

}  // namespace simt
