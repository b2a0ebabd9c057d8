// Where the traced build's instrumented kernels report their loads and stores. The compiler calls the functions named
// __tsan_*; this module is never linked with the library of that name.
#include <cstring>

#include "simt/global_memory.h"
#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

const char* verb(Kind kind) { return kind == Kind::load ? "read" : kind == Kind::store ? "write" : "atomic"; }

/// Returns false if the lane has logged so much that its warp should catch up first.
bool traced_access(Worker& w, const void* p, unsigned bytes, Kind kind, const void* pc) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const bool shared = w.shared.contains(p);
  if (!shared) {
    if (address - reinterpret_cast<uintptr_t>(w.launch->arguments) < w.launch->argument_bytes) return true;
    if (in_module(p) && kind == Kind::load) return true;  // __constant__ tables
  }
  if (address % bytes != 0) {
    if (first_sight("misaligned", pc))
      report("misaligned", pc,
             std::string(verb(kind)) + " of " + std::to_string(bytes) + " bytes at an address that is " +
                 std::to_string(address % bytes) + " past a multiple of " + std::to_string(bytes));
    abandon();
  }
  Access entry{0, pc_offset(pc), uint8_t(bytes), kind, shared, 0};
  if (shared) {
    if (!w.shared.access(w, p, bytes, kind, pc)) abandon();
    entry.address = w.shared.position(p);
  } else {
    const Place place = access_global(p, bytes, kind, pc);
    if (place.buffer < 0) abandon();
    entry.address = place.address;
    entry.buffer = uint8_t(place.buffer);
  }
  const int me = w.index(w.current);
  w.counters->log(me, entry);
  return !w.counters->full(me);
}

}  // namespace

void access(const void* p, unsigned bytes, Kind kind, const void* pc) {
  if constexpr (kTrace) {
    Worker* w = worker();
    if (!w || !w->current || w->stacks.contains(p)) return;
    poll_watchdog(w, pc);
    w->busy = true;
    const bool room = traced_access(*w, p, bytes, kind, pc);
    w->busy = false;
    if (!room) [[unlikely]]
      pause_lane();
  }
}

#ifdef VK_SIMT_TRACE
namespace {

/// A copy of a whole object: the accesses of the widest size that its address and length allow.
void access_range(const void* p, size_t bytes, Kind kind, const void* pc) {
  const Worker* w = worker();
  if (!w || !w->current || w->stacks.contains(p) || !bytes) return;
  const uintptr_t both = reinterpret_cast<uintptr_t>(p) | bytes | 16;
  const unsigned piece = unsigned(both & (~both + 1));
  for (size_t i = 0; i < bytes; i += piece) access(static_cast<const char*>(p) + i, piece, kind, pc);
}

}  // namespace

extern "C" {
#define VK_HOOK(suffix, bytes)                                                                                     \
  void __tsan_read##suffix(void* p) { access(p, bytes, Kind::load, __builtin_return_address(0)); }                 \
  void __tsan_write##suffix(void* p) { access(p, bytes, Kind::store, __builtin_return_address(0)); }               \
  void __tsan_volatile_read##suffix(void* p) { access(p, bytes, Kind::load, __builtin_return_address(0)); }        \
  void __tsan_volatile_write##suffix(void* p) { access(p, bytes, Kind::store, __builtin_return_address(0)); }      \
  void __tsan_unaligned_read##suffix(void* p) { access_range(p, bytes, Kind::load, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##suffix(void* p) { access_range(p, bytes, Kind::store, __builtin_return_address(0)); }
VK_HOOK(1, 1)
VK_HOOK(2, 2)
VK_HOOK(4, 4)
VK_HOOK(8, 8)
VK_HOOK(16, 16)
#undef VK_HOOK
void __tsan_read_range(void* p, size_t n) { access_range(p, n, Kind::load, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { access_range(p, n, Kind::store, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// What trace_memory.h makes of memcpy, memmove and memset in kernel files.
void* vk_simt_memcpy(void* to, const void* from, size_t n) {
  access_range(from, n, Kind::load, __builtin_return_address(0));
  access_range(to, n, Kind::store, __builtin_return_address(0));
  return memcpy(to, from, n);
}
void* vk_simt_memmove(void* to, const void* from, size_t n) {
  access_range(from, n, Kind::load, __builtin_return_address(0));
  access_range(to, n, Kind::store, __builtin_return_address(0));
  return memmove(to, from, n);
}
void* vk_simt_memset(void* to, int value, size_t n) {
  access_range(to, n, Kind::store, __builtin_return_address(0));
  return memset(to, value, n);
}
}
#endif

}  // namespace simt
