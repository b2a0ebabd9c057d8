// cp.async: the copy happens when it is waited for, so that code which does not wait sees the old bytes.
#include <cstring>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {

void cp_async(void* shared, const void* global, int bytes, int source_bytes) {
  const void* pc = __builtin_return_address(0);
  Worker* w = worker();
  poll_watchdog(w, pc);
  const auto misaligned =
      (reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % uintptr_t(bytes);
  if (misaligned) {
    if (first_sight("misaligned", pc))
      report("misaligned", pc,
             "cp.async of " + std::to_string(bytes) + " bytes between addresses that are not multiples of it");
    abandon();
  }
  if constexpr (kTrace) {
    if (source_bytes > 0) access(global, unsigned(source_bytes), Kind::load, pc);
    if (!w->shared.contains(shared)) {
      if (first_sight("out-of-bounds", pc))
        report("out-of-bounds", pc, "cp.async to an address outside of shared memory");
      abandon();
    }
    access(shared, unsigned(bytes), Kind::store, pc);
    w->shared.set_pending(shared, unsigned(bytes), true);
  }
  w->current->copies.push_back(
      {static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), bytes, source_bytes});
}

void cp_commit() {
  Lane* me = worker()->current;
  size_t grouped = 0;
  for (const size_t n : me->groups) grouped += n;
  me->groups.push_back(me->copies.size() - grouped);
}

void cp_wait(int groups_in_flight) {
  Worker* w = worker();
  Lane* me = w->current;
  while (int(me->groups.size()) > groups_in_flight) {
    const size_t n = me->groups.front();
    me->groups.erase(me->groups.begin());
    w->busy = true;
    for (size_t i = 0; i < n; ++i) {
      const AsyncCopy& c = me->copies[i];
      unsigned char bytes[16] = {};
      std::memcpy(bytes, c.global, size_t(c.source_bytes));
      std::memcpy(c.shared, bytes, size_t(c.bytes));
      if constexpr (kTrace) w->shared.land(w->index(me), c.shared, unsigned(c.bytes));
    }
    w->busy = false;
    me->copies.erase(me->copies.begin(), me->copies.begin() + long(n));
  }
}

void drop_copies(Worker& w, Lane& lane) {
  if constexpr (kTrace)
    for (const AsyncCopy& c : lane.copies) w.shared.set_pending(c.shared, unsigned(c.bytes), false);
  lane.copies.clear();
  lane.groups.clear();
}

}  // namespace simt
