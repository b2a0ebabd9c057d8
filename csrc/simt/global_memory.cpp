#include "simt/global_memory.h"

#include <algorithm>
#include <vector>

#include "simt/reports.h"
#include "simt/worker.h"

namespace simt {
namespace {

constexpr uint8_t kInitialised = 1;

struct Buffer {
  uintptr_t begin, end;
  bool initialised, writable;
  std::string name;
  int region;
  std::vector<uint64_t> touched[2];  // one bit per sector, by direction
};

/// Buffers that overlap share a region, so that each byte has one state and one virtual address.
struct Region {
  uintptr_t begin, end;
  uint64_t base;                // virtual address of `begin`
  std::vector<uint8_t> shadow;  // one byte per byte; empty if all of it is initialised
};

std::vector<Buffer> buffers;
std::vector<Region> regions;

std::string size_text(size_t bytes) { return std::to_string(bytes) + " bytes"; }

const char* verb(Kind kind) { return kind == Kind::load ? "read" : kind == Kind::store ? "write" : "atomic"; }

void report_outside(uintptr_t begin, unsigned bytes, Kind kind, const void* pc) {
  if (!first_sight("out-of-bounds", pc)) return;
  const Buffer* nearest = nullptr;
  uintptr_t distance = ~uintptr_t(0);
  for (const Buffer& b : buffers) {
    const uintptr_t d = begin >= b.end ? begin - b.end : begin < b.begin ? b.begin - begin : 0;
    if (d < distance) distance = d, nearest = &b;
  }
  std::string text = std::string(verb(kind)) + " of " + size_text(bytes);
  if (!nearest)
    text += ": the op declared no buffers";
  else if (distance > (uintptr_t(1) << 30))
    text += " far from every buffer (a null or wild pointer?)";
  else if (begin < nearest->begin)
    text += " " + size_text(nearest->begin - begin) + " before the start of `" + nearest->name + "`";
  else
    text += " at byte " + std::to_string(begin - nearest->begin) + " of `" + nearest->name + "`, which has " +
            size_text(nearest->end - nearest->begin);
  report("out-of-bounds", pc, text);
}

}  // namespace

void set_buffers(const Range* ranges, int n) {
  buffers.clear();
  regions.clear();
  for (int i = 0; i < n && i < 255; ++i) {
    const auto begin = reinterpret_cast<uintptr_t>(ranges[i].data);
    buffers.push_back(
        {begin, begin + ranges[i].bytes, ranges[i].initialised, ranges[i].writable, ranges[i].name, 0, {}});
  }
  std::vector<Buffer*> order;
  for (Buffer& b : buffers) order.push_back(&b);
  std::sort(order.begin(), order.end(), [](const Buffer* a, const Buffer* b) { return a->begin < b->begin; });
  for (Buffer* b : order) {
    if (regions.empty() || b->begin >= regions.back().end)
      regions.push_back({b->begin, b->end, uint64_t(regions.size() + 1) << 44, {}});
    else
      regions.back().end = std::max(regions.back().end, b->end);
    b->region = int(regions.size()) - 1;
  }
  if constexpr (!kTrace) return;
  for (const Buffer& b : buffers)
    if (!b.initialised)
      regions[size_t(b.region)].shadow.resize(regions[size_t(b.region)].end - regions[size_t(b.region)].begin);
  for (const Buffer& b : buffers) {
    Region& r = regions[size_t(b.region)];
    if (b.initialised && !r.shadow.empty())
      std::fill(r.shadow.begin() + long(b.begin - r.begin), r.shadow.begin() + long(b.end - r.begin), kInitialised);
  }
}

void clear_buffers() {
  buffers.clear();
  regions.clear();
}

int buffer_count() { return int(buffers.size()); }
const std::string& buffer_name(int i) { return buffers[size_t(i)].name; }

void start_touching() {
  for (Buffer& b : buffers)
    for (auto& bits : b.touched) bits.assign((b.end - b.begin) / 32 / 64 + 2, 0);
}

int touch_sector(int buffer, uint64_t sector, bool store) {
  Buffer& b = buffers[size_t(buffer)];
  const Region& r = regions[size_t(b.region)];
  const uint64_t bit = sector - (r.base + (b.begin - r.begin)) / 32;
  uint64_t* word = &b.touched[store][bit / 64];
  const uint64_t mask = uint64_t(1) << (bit % 64);
  if (__atomic_load_n(word, __ATOMIC_RELAXED) & mask) return 0;
  return __atomic_fetch_or(word, mask, __ATOMIC_RELAXED) & mask ? 0 : 1;
}

Place access_global(const void* p, unsigned bytes, Kind kind, const void* pc) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  const uintptr_t end = begin + bytes;
  int owner = -1, readable = -1;
  for (size_t i = 0; i < buffers.size() && owner < 0; ++i) {
    if (begin < buffers[i].begin || end > buffers[i].end) continue;
    if (readable < 0) readable = int(i);
    if (kind == Kind::load || buffers[i].writable) owner = int(i);
  }
  if (owner < 0) {
    if (readable < 0) {
      report_outside(begin, bytes, kind, pc);
      return {};
    }
    if (first_sight("read-only-write", pc))
      report("read-only-write", pc,
             std::string(verb(kind)) + " of " + size_text(bytes) + " at byte " +
                 std::to_string(begin - buffers[size_t(readable)].begin) + " of the input `" +
                 buffers[size_t(readable)].name + "`");
    return {};
  }
  const Buffer& b = buffers[size_t(owner)];
  Region& r = regions[size_t(b.region)];
  if (!r.shadow.empty()) {
    uint8_t* shadow = &r.shadow[begin - r.begin];
    if (kind != Kind::store)
      for (unsigned i = 0; i < bytes; ++i)
        if (!(shadow[i] & kInitialised)) {
          if (first_sight("uninitialised-read", pc))
            report("uninitialised-read", pc,
                   std::string(verb(kind)) + " of " + size_text(bytes) + " at byte " + std::to_string(begin - b.begin) +
                       " of `" + b.name + "`, which no kernel of this op has written");
          break;
        }
    if (kind != Kind::load)
      for (unsigned i = 0; i < bytes; ++i) shadow[i] |= kInitialised;
  }
  return {owner, r.base + (begin - r.begin)};
}

bool write_from_host(const void* p, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(p);
  for (const Buffer& b : buffers) {
    if (!b.writable || begin < b.begin || begin + bytes > b.end) continue;
    Region& r = regions[size_t(b.region)];
    if (!r.shadow.empty()) std::fill_n(r.shadow.begin() + long(begin - r.begin), bytes, uint8_t(kInitialised));
    return true;
  }
  return false;
}

}  // namespace simt
