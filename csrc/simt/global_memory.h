// The buffers of the running op: which bytes a kernel may touch, which are written yet, which sectors were touched.
#pragma once
#include <array>
#include <string>

#include "simt/counters.h"
#include "simt/simt_runtime.h"

namespace simt {

void set_buffers(const Range* ranges, int n);
void clear_buffers();
int buffer_count();
const std::string& buffer_name(int i);

/// Resets the touched sectors at the start of a traced launch.
void start_touching();
/// Marks a 32-byte sector of a virtual address; 1 if the launch had not touched it yet in that direction.
int touch_sector(int buffer, uint64_t sector, bool store);

struct Place {
  int buffer = -1;       // that owns the access; -1: none
  uint64_t address = 0;  // virtual: every buffer starts on a 256-byte boundary
};
/// Finds the buffer of an access and checks it. Reports and returns buffer -1 if it lies in none.
Place access_global(const void* p, unsigned bytes, Kind kind, const void* pc);
/// A write that needs no thread: memset_async.
bool write_from_host(const void* p, size_t bytes);

}  // namespace simt
